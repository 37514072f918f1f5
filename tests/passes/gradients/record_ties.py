"""Records PyTorch's gradients in float64 at corners and far out: python record_ties.py > ties.json"""
import json
import math

import torch
import torch.nn.functional as F

BOUND = 1.5
x = [-1e30, -100.0, -12.0, -5.0, -1.5, -0.0, 0.0, 1e-30, 1.0, 1.5, 1.5000001, 2.0, 5.0, 100.0, 1e30]
x = [float(torch.tensor(v, dtype=torch.float32)) for v in x]


def gradient(f):
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    f(t).sum().backward()
    return t.grad.tolist()


def both(f):
    ends = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (a, b)]
    f(*ends).sum().backward()
    return [t.grad.tolist() for t in ends]


a, b = [1.0, 2.0, 2.0, 0.0, -3.0], [1.0, 2.5, 1.5, -0.0, -3.0]
rows = {
    "relu": F.relu,
    "clamp_min": lambda t: t.clamp(min=BOUND),
    "clamp_max": lambda t: t.clamp(max=BOUND),
    "gelu": F.gelu,
}
record = {"torch": torch.__version__.split("+")[0], "x": x, "bound": BOUND, "a": a, "b": b}
record |= {n: gradient(f) for n, f in rows.items()}
record |= {"maximum": both(torch.maximum), "minimum": both(torch.minimum)}
print(json.dumps(record, indent=1))
