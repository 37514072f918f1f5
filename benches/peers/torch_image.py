"""The adapter or the ViT in PyTorch: python torch_image.py adapter|vision sdpa|eager fp32|bf16

The paper's sizes, random weights, inference mode; the best of two runs after a first; one alone for `eager`, which
writes attention out as MONAI's SABlock does by default.
"""
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F

from common import best, report

HIDDEN, HEADS, MLP, LAYERS = 768, 12, 3072, 12


class Adapter(nn.Module):
    def __init__(self):
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(256, 64, 1, bias=False), nn.BatchNorm2d(64))
        self.residual = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
                                      nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64))

    def forward(self, x):
        y = F.relu(self.reduce(x))
        return F.relu(y + self.residual(y))


class Block(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False), nn.Linear(HIDDEN, HIDDEN)
        self.mlp = nn.Sequential(nn.Linear(HIDDEN, MLP), nn.GELU(), nn.Linear(MLP, HIDDEN))

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, HEADS, HIDDEN // HEADS).permute(2, 0, 3, 1, 4)
        if self.form == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q @ k.transpose(-1, -2)) * (HIDDEN // HEADS) ** -0.5).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(b, n, HIDDEN))
        return x + self.mlp(self.norm2(x))


class Vision(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.patch, self.norm = nn.Linear(1024, HIDDEN), nn.LayerNorm(HIDDEN)
        self.positions, self.cls = nn.Parameter(torch.randn(1, 4096, HIDDEN)), nn.Parameter(torch.randn(1, 1, HIDDEN))
        self.blocks = nn.ModuleList([Block(form) for _ in range(LAYERS)])

    def forward(self, x):
        b = x.shape[0]
        x = x.view(b, 16, 4, 16, 16, 16, 16).permute(0, 1, 3, 5, 2, 4, 6).reshape(b, 4096, 1024)
        x = torch.cat([self.cls.expand(b, -1, -1), self.patch(x) + self.positions], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


def main():
    stage, form, dtype = sys.argv[1:]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = (Adapter() if stage == "adapter" else Vision(form)).eval().to(dtype)
    x = torch.rand(1, 256 if stage == "adapter" else 64, 256, 256).to(dtype)
    with torch.inference_mode():
        if form == "sdpa":
            model(x)
        seconds = best(lambda: model(x), 2 if form == "sdpa" else 1)
    report(seconds)


if __name__ == "__main__":
    main()
