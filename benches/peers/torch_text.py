"""Decoder layers of LLaMA2-7B in PyTorch: python torch_text.py bf16|fp32|int_mm|gemm TOKENS LAYERS

`bf16`, `fp32`: the layers in that type, inference mode. `int_mm`, `gemm`: their products alone, in int8 and float32.
Every layer has its own random weights; the best of four runs counts.
"""
import sys

import torch
import torch.nn.functional as F

from common import best, report

HIDDEN, MLP, HEADS = 4096, 11008, 32


def shapes(layers):
    return [(HIDDEN, HIDDEN)] * 4 * layers + [(HIDDEN, MLP)] * 2 * layers + [(MLP, HIDDEN)] * layers


def integers(tokens, layers):
    x = {k: torch.randint(-127, 127, (tokens, k), dtype=torch.int8) for k in (HIDDEN, MLP)}
    w = [(k, torch.randint(-127, 127, (n, k), dtype=torch.int8).t()) for k, n in shapes(layers)]
    return best(lambda: [torch._int_mm(x[k], m) for k, m in w], 4)


def products(tokens, layers):
    x = {k: torch.randn(tokens, k) for k in (HIDDEN, MLP)}
    w = [(k, torch.randn(n, k)) for k, n in shapes(layers)]
    with torch.inference_mode():
        return best(lambda: [F.linear(x[k], m) for k, m in w], 4)


def norm(x, gain):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * gain


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def decoder(tokens, layers, t):
    weight = lambda k, n: torch.randn(n, k, dtype=t) * k ** -0.5
    blocks = [([weight(HIDDEN, HIDDEN) for _ in range(4)], [weight(HIDDEN, MLP) for _ in range(2)], weight(MLP, HIDDEN))
              for _ in range(layers)]
    gain = torch.ones(HIDDEN, dtype=t)
    angle = torch.arange(tokens)[:, None] * 1e4 ** (-torch.arange(64) / 64)
    cos, sin = angle.cos().to(t), angle.sin().to(t)
    x0 = torch.randn(1, tokens, HIDDEN, dtype=t)

    def run():
        x = x0
        for (q, k, v, o), (gate, up), down in blocks:
            h = norm(x, gain)
            q, k, v = (F.linear(h, w).view(1, tokens, HEADS, -1).transpose(1, 2) for w in (q, k, v))
            y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
            x = x + F.linear(y.transpose(1, 2).reshape(1, tokens, HIDDEN), o)
            h = norm(x, gain)
            x = x + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)
        return x

    with torch.inference_mode():
        return best(run, 4)


def main():
    what, tokens, layers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if what == "int_mm":
        report(integers(tokens, layers))
    elif what == "gemm":
        report(products(tokens, layers))
    else:
        report(decoder(tokens, layers, {"bf16": torch.bfloat16, "fp32": torch.float32}[what]))


if __name__ == "__main__":
    main()
