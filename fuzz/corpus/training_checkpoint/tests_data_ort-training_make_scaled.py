"""Makes scaled_feeds.npz and scaled_expected.npz: python make_scaled.py (needs torch). Made with PyTorch 2.15.

loss = mean((x · w · s)²) of x [2, 3], w [3] and s [], trained by torch.optim.AdamW: what `tests/training_interop.rs` trains in
Microsoft's runtime with a graph of this project's own. Two micro-batches a step, whose gradients add up.
"""
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
torch.manual_seed(9)
w = torch.nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))
s = torch.nn.Parameter(torch.tensor(1.5))
x = torch.randn(6, 2, 3)
optimizer = torch.optim.AdamW([w, s], lr=0.125, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.25)
loss = lambda i: ((x[i] * w * s) ** 2).mean()
losses, out = [], {}
for step in range(3):
    optimizer.zero_grad()
    parts = [loss(2 * step), loss(2 * step + 1)]
    for part in parts:
        part.backward()
        if not out:
            out = {"grad0.w": w.grad.numpy().copy(), "grad0.s": s.grad.numpy().copy()}
    losses.append(sum(parts).item() / 2)
    optimizer.step()
out |= {"losses": np.array(losses, np.float32), "eval_loss": np.float32(loss(0).item())}
out |= {"param.w": w.detach().numpy(), "param.s": s.detach().numpy()}
np.savez(HERE / "scaled_feeds.npz", x=x.numpy())
np.savez(HERE / "scaled_expected.npz", **out)
