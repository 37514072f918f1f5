"""Gradients by finite differences in float64: python check.py FOLDER, one JSON object on stdout.

FOLDER/cases.json lists cases: `model` (a graph) and `joint` (that graph with its gradients), ONNX files beside it; `feed`, the
values of the operands and of the results' gradients `d.NAME`; `of` and `wrt`, names. Each graph is run by onnx's own reference
implementation, the values in float64. `joint` goes through onnx's full checker with shape inference.
"""
import json
import math
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from onnx_check import disagreements  # noqa: E402

STEP = 1e-5


class MultiHeadAttention(OpRun):
    """As ONNX Runtime documents it, without masks and biases: onnx has no reference of another domain's operator."""

    op_domain = "com.microsoft"

    def _run(self, q, k, v, num_heads=None):
        split = lambda x: x.reshape(*x.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)
        q, k, v = map(split, (q, k, v))
        s = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
        p = np.exp(s - s.max(-1, keepdims=True))
        o = p / p.sum(-1, keepdims=True) @ v
        return (o.transpose(0, 2, 1, 3).reshape(o.shape[0], o.shape[2], -1),)


class Gelu(OpRun):
    """onnx's own has constants in float32: with them differences are mostly rounding."""

    def _run(self, x, approximate=None):
        assert approximate == "none"
        return (np.asarray(x * 0.5 * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2)))),)


class Cast(OpRun):
    """To float32 is to float64 here."""

    def _run(self, x, to=None, saturate=None, round_mode=None):
        assert to == onnx.TensorProto.FLOAT
        return (x.astype(np.float64),)


def in_double(path):
    """The model with its constants in float64."""
    model = onnx.load(path)
    for constant in model.graph.initializer:
        if constant.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(constant).astype(np.float64)
            constant.CopyFrom(onnx.numpy_helper.from_array(values, constant.name))
    return ReferenceEvaluator(model, new_ops=[MultiHeadAttention, Gelu, Cast])


def differences(case, folder):
    model = in_double(folder / case["model"])
    feed = {n: np.array(t["data"], np.float64).reshape(t["shape"]) for n, t in case["feed"].items()}
    x = {n: v for n, v in feed.items() if not n.startswith("d.")}
    results = model.run(case["of"], x)
    for name, y in zip(case["of"], results):
        assert y.dtype == np.float64, f"{name} was computed in {y.dtype}"

    def scalar():
        return sum(float(np.vdot(feed["d." + n], y)) for n, y in zip(case["of"], model.run(case["of"], x)))

    gradients = []
    for name in case["wrt"]:
        value = x[name] = x[name].copy()
        flat, found = value.reshape(-1), np.empty(value.size)
        for i, kept in enumerate(flat.copy()):
            flat[i] = kept + STEP
            above = scalar()
            flat[i] = kept - STEP
            below = scalar()
            flat[i] = kept
            found[i] = (above - below) / (2 * STEP)
        gradients.append(found.tolist())
    return {"results": [y.reshape(-1).tolist() for y in results], "gradients": gradients}


def main(folder):
    report = []
    for case in json.loads((folder / "cases.json").read_text()):
        try:
            row = differences(case, folder)
            path = folder / case["joint"]
            onnx.checker.check_model(str(path), full_check=True)
            row["wrong"], row["error"] = disagreements(path)[0], None
        except Exception as e:  # whatever it is, the test is to show it
            row = {"error": f"{type(e).__name__}: {e}"}
        report.append(row)
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
