"""Trains a folder of artifacts with Microsoft's own runtime (onnxruntime-training-cpu 1.19.2).

    python train.py ARTIFACTS FEEDS.npz OUT.npz [--steps N] [--lr LR] [--accumulate K] [--checkpoint FILE] [--save FILE]
                    [--expect EXPECTED.npz]

ARTIFACTS holds training_model.onnx, eval_model.onnx, optimizer_model.onnx and, unless named apart, checkpoint. FEEDS.npz has
one array for each user input, named as the graph's input, with a leading axis of steps (step i takes [i % len]). OUT.npz gets
`losses` [N], `eval_loss` [] (batch 0, afterwards), `param.NAME`, and the gradients of the first micro-batch, `grad0.NAME`.
With --expect, prints a JSON object: for each array of EXPECTED.npz the largest difference, null where there is no such array.

Scripts and values are those of the interop experiments behind tests/data/ort-training; the module stubs keep
`onnxruntime.training` from importing torch, which its training API does not use.
"""
import argparse
import json
import os
import sys
import types

for name in ("onnxruntime.training.amp", "onnxruntime.training.optim"):
    sys.modules.setdefault(name, types.ModuleType(name))

import numpy as np
import onnxruntime
from onnxruntime.training.api import CheckpointState, Module, Optimizer


def train(a):
    onnxruntime.set_default_logger_severity(3)
    file = lambda name: os.path.join(a.artifacts, name)
    feeds = dict(np.load(a.feeds))
    state = CheckpointState.load_checkpoint(a.checkpoint or file("checkpoint"))
    module = Module(file("training_model.onnx"), state, file("eval_model.onnx"), device="cpu")
    optimizer = Optimizer(file("optimizer_model.onnx"), module)
    optimizer.set_learning_rate(a.lr)
    first = lambda r: float(np.asarray(r[0] if isinstance(r, tuple) else r).reshape(-1)[0])
    batch = lambda i: [feeds[n][i % len(feeds[n])] for n in module.input_names()]
    out, losses = {}, []
    module.train()
    for step in range(a.steps):
        part = []
        for micro in range(step * a.accumulate, (step + 1) * a.accumulate):
            part.append(first(module(*batch(micro))))
            if micro == 0:
                out.update({f"grad0.{n}": p.grad.copy() for n, p in state.parameters if p.requires_grad})
        losses.append(sum(part) / len(part))
        optimizer.step()
        module.lazy_reset_grad()
    module.eval()
    out["losses"] = np.array(losses, np.float32)
    out["eval_loss"] = np.float32(first(module(*batch(0))))
    out.update({f"param.{n}": p.data.copy() for n, p in state.parameters})
    np.savez(a.out, **out)
    if a.save:
        CheckpointState.save_checkpoint(state, a.save, include_optimizer_state=True)
    return out


def differences(found, expected):
    def difference(name):
        if name not in found or found[name].shape != expected[name].shape:
            return None
        largest = float(np.abs(found[name].astype(np.float64) - expected[name]).max())
        return largest if np.isfinite(largest) else None

    return {name: difference(name) for name in expected}


def arguments():
    p = argparse.ArgumentParser()
    for name in ("artifacts", "feeds", "out"):
        p.add_argument(name)
    p.add_argument("--steps", type=int, default=3)
    p.add_argument("--lr", type=float, default=1e-2)
    p.add_argument("--accumulate", type=int, default=1)
    p.add_argument("--checkpoint")
    p.add_argument("--save")
    p.add_argument("--expect")
    return p.parse_args()


if __name__ == "__main__":
    a = arguments()
    found = train(a)
    if a.expect:
        json.dump(differences(found, dict(np.load(a.expect))), sys.stdout)
