"""Two files of `ba-infer --save-tensors`, stage by stage: python gpu_parity.py RECORD.json EXPECTED FOUND [TOKENS]

For each stage: cosine over all its values, largest absolute difference, that over the largest expected value. Inputs must be equal,
and the report TOKENS long where that is given. Needs numpy.
"""
import json
import struct
import sys
from pathlib import Path

import numpy as np

STAGES = ("adapter", "vision", "text", "v", "t", "logits", "image_logits", "similarity")
TYPES = {"F32": np.float32, "I64": np.int64}


def tensors(path):
    data = np.memmap(path, np.uint8, "r")
    length = struct.unpack("<Q", data[:8].tobytes())[0]
    header = json.loads(data[8:8 + length].tobytes())
    body = data[8 + length:]
    found = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            begin, end = tensor["data_offsets"]
            found[name] = np.frombuffer(body[begin:end].tobytes(), TYPES[tensor["dtype"]])
    return found


def compare(expected, found):
    a, b = expected.astype(np.float64), found.astype(np.float64)
    if a.shape != b.shape:
        return {"error": f"{b.size} values, expected {a.size}"}
    if not np.isfinite(b).all():
        return {"error": f"{int((~np.isfinite(b)).sum())} of {b.size} values are not finite"}
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    largest = np.abs(a - b).max()
    cosine = float(a @ b / norms) if norms > 0 else float(np.array_equal(a, b))
    return {"cosine": cosine, "max_abs": float(largest), "relative": float(largest / max(np.abs(a).max(), 1e-30))}


def main():
    record, expected, found = (Path(p) for p in sys.argv[1:4])
    a, b = tensors(expected), tensors(found)
    told = {}
    for name in ("volume", "input_ids", "attention_mask"):
        if not np.array_equal(a[name], b[name]):
            sys.exit(f"Error: the two runs did not read the same: {name} differs")
    told["tokens"] = int(b["attention_mask"].sum())
    if len(sys.argv) > 4 and told["tokens"] != int(sys.argv[4]):
        sys.exit(f"Error: the report has {told['tokens']} tokens where {sys.argv[4]} were meant")
    told["stages"] = {name: compare(a[name], b[name]) for name in STAGES if name in a and name in b}
    record.write_text(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
