"""Checks ONNX files with the `onnx` package: python onnx_check.py FOLDER, one JSON object on stdout.

For every *.onnx: the full checker, then shape inference from the inputs alone (strict, with data propagation), held
against the types that the file declares; then each weight's place and the SHA-256 of its values.
"""
import hashlib
import json
import sys
from pathlib import Path

import onnx
from onnx import numpy_helper


def type_of(value):
    t = value.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in t.shape.dim]
    return [t.elem_type, dims]


def disagreements(path):
    """Values whose declared type contradicts the inferred one, and how many were compared."""
    declared = onnx.load(path, load_external_data=False)
    stated = {v.name: type_of(v) for v in [*declared.graph.value_info, *declared.graph.output]}
    del declared.graph.value_info[:]
    for v in declared.graph.output:
        v.type.tensor_type.ClearField("shape")
    bare = path.with_suffix(".bare")
    onnx.save(declared, bare)
    inferred_path = path.with_suffix(".inferred")
    onnx.shape_inference.infer_shapes_path(str(bare), str(inferred_path), check_type=True, strict_mode=True, data_prop=True)
    inferred = onnx.load(inferred_path, load_external_data=False)
    found = {v.name: type_of(v) for v in [*inferred.graph.value_info, *inferred.graph.output]}
    wrong, compared = [], 0
    for name, (dtype, dims) in stated.items():
        other = found.get(name)
        if other is None or (other[1] == [] and dims != []):
            continue
        compared += 1
        same = len(dims) == len(other[1]) and all(
            a == b or isinstance(b, str) and (b == "?" or b.startswith("unk__")) for a, b in zip(dims, other[1])
        )
        if dtype != other[0] or not same:
            wrong.append(f"{name}: declared {[dtype, dims]}, inferred {other}")
    return wrong, compared, len(stated)


def weights(path):
    model = onnx.load(path, load_external_data=False)
    rows = {}
    for t in model.graph.initializer:
        entries = {e.key: e.value for e in t.external_data}
        array = numpy_helper.to_array(t, base_dir=str(path.parent))
        raw = array.astype(array.dtype.newbyteorder("<")).tobytes()
        rows[t.name] = {
            "shape": list(t.dims),
            "sha256": hashlib.sha256(raw).hexdigest(),
            "bytes": len(raw),
            "offset": int(entries["offset"]) if entries else None,
            "length": int(entries["length"]) if entries else None,
        }
    return rows


def main(folder):
    report = {}
    for path in sorted(Path(folder).glob("*.onnx")):
        row = {"error": None}
        try:
            onnx.checker.check_model(str(path), full_check=True)
            row["wrong"], row["compared"], row["declared"] = disagreements(path)
            row["weights"] = weights(path)
        except Exception as e:  # whatever it is, the test is to show it
            row["error"] = f"{type(e).__name__}: {e}"
        report[path.name] = row
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
