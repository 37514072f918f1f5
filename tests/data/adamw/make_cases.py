"""Makes this folder's files: python make_cases.py (needs torch, safetensors). Made with PyTorch 2.15.

Each file is a run of torch.optim.AdamW (and clip_grad_norm_) over random gradients. `S.NAME` is the value of parameter NAME
after step S (0 is before the first), `S.NAME.m` and `S.NAME.v` are its moments, `S.NAME_grad` is the gradient of step S
before clipping, `S.grad_norm` the norm that clip_grad_norm_ gives, `S.learning_rate` [1] the rate of the step. The constants
are in the metadata. What decays is named here, one by one; in `uniform` everything does, as in Microsoft's optimizer.
"""
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
SHAPES = {
    "adapter.reduce.conv.weight": [3, 2, 1, 1],
    "adapter.reduce.norm.weight": [3],
    "adapter.reduce.norm.bias": [3],
    "adapter.out.bias": [1],
    "vision_projection.weight": [5, 7],
    "single.weight": [1, 1],
    "logit_scale": [],
}
DECAYED = {"adapter.reduce.conv.weight", "vision_projection.weight", "single.weight"}


RATES = (1e-2, 1e-3, 3e-2, 1e-3, 1e-4)


def case(name, seed, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, clip=None, size=1.0, rates=RATES, decayed=DECAYED):
    torch.manual_seed(seed)
    params = {k: torch.nn.Parameter(torch.randn(s)) for k, s in SHAPES.items()}
    groups = [
        {"params": [p for k, p in params.items() if k in decayed], "weight_decay": weight_decay},
        {"params": [p for k, p in params.items() if k not in decayed], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=eps, foreach=False)
    out = {f"0.{k}": p.detach().clone() for k, p in params.items()}
    for step, rate in enumerate(rates, 1):
        rate = np.float32(rate)
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        for k, p in params.items():
            # Of very different sizes, and one that is all zeros in one step.
            p.grad = torch.randn(p.shape) * size * 10 ** (torch.randint(-3, 2, ()).item())
            if step == 2 and k == "adapter.out.bias":
                p.grad.zero_()
            out[f"{step}.{k}_grad"] = p.grad.clone()
        out[f"{step}.learning_rate"] = torch.tensor([rate])
        if clip is not None:
            out[f"{step}.grad_norm"] = torch.nn.utils.clip_grad_norm_(params.values(), clip, foreach=False)
        optimizer.step()
        for k, p in params.items():
            state = optimizer.state[p]
            out |= {f"{step}.{k}": p.detach().clone()}
            out |= {f"{step}.{k}.m": state["exp_avg"].clone(), f"{step}.{k}.v": state["exp_avg_sq"].clone()}
    options = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "clip": clip}
    metadata = {"options": json.dumps(options), "steps": str(len(rates)), "parameters": json.dumps(SHAPES)}
    save_file(out, HERE / f"{name}.safetensors", metadata=metadata)


case("default", 1)
case("no_decay", 2, weight_decay=0.0)
case("strong_decay", 3, weight_decay=0.5, betas=(0.5, 0.9), eps=1e-3)
case("clip", 4, clip=1.0)
# Below the limit in most steps.
case("clip_seldom", 5, clip=40.0, weight_decay=0.1)
case("clip_tiny_gradients", 6, clip=1e-7, size=1e-6, betas=(0.0, 0.99))
# Changes as large as the parameters, which show how exact the bias correction is.
case("large_rates", 7, weight_decay=0.0, rates=(1.0, 0.5, 2.0, 1.0, 0.25))
case("uniform", 8, weight_decay=0.1, rates=(0.5, 0.25, 1.0), decayed=set(SHAPES))
