"""The model's parts as one would write them in PyTorch, at any size: random weights, attention by scaled_dot_product_attention."""
import torch
import torch.nn as nn
import torch.nn.functional as F


class Adapter(nn.Module):
    """[B, size, size, size] to [B, depth, size, size]: the 2-D bottleneck, slices as channels."""

    def __init__(self, config):
        super().__init__()
        size, depth = config["adapter"]["in"], config["adapter"]["out"]
        conv = lambda inputs, kernel: nn.Conv2d(inputs, depth, kernel, padding=kernel // 2, bias=False)
        self.reduce = nn.Sequential(conv(size, 1), nn.BatchNorm2d(depth))
        self.residual = nn.Sequential(conv(depth, 3), nn.BatchNorm2d(depth), nn.ReLU(), conv(depth, 3), nn.BatchNorm2d(depth))

    def forward(self, x):
        y = F.relu(self.reduce(x))
        return F.relu(y + self.residual(y))


class Block(nn.Module):
    def __init__(self, hidden, mlp, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, mlp), nn.GELU(), nn.Linear(mlp, hidden))

    def forward(self, x):
        b, n, h = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, h // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, h))
        return x + self.mlp(self.norm2(x))


class Vision(nn.Module):
    """[B, depth, size, size] to the CLS token, [B, hidden]."""

    def __init__(self, config):
        super().__init__()
        v, size = config["vision"], config["volume"]["size"]
        self.patch, hidden = v["patch"], v["hidden"]
        self.grid = [n // p for n, p in zip((config["adapter"]["out"], size, size), self.patch)]
        tokens, values = 1, 1
        for n, p in zip(self.grid, self.patch):
            tokens, values = tokens * n, values * p
        self.embed, self.norm = nn.Linear(values, hidden), nn.LayerNorm(hidden)
        self.positions, self.cls = nn.Parameter(torch.randn(1, tokens, hidden)), nn.Parameter(torch.randn(1, 1, hidden))
        self.blocks = nn.ModuleList(Block(hidden, v["mlp"], v["heads"]) for _ in range(v["layers"]))

    def forward(self, x):
        b, (gd, gh, gw), (pd, ph, pw) = x.shape[0], self.grid, self.patch
        x = x.view(b, gd, pd, gh, ph, gw, pw).permute(0, 1, 3, 5, 2, 4, 6).reshape(b, gd * gh * gw, pd * ph * pw)
        x = torch.cat([self.cls.expand(b, -1, -1), self.embed(x) + self.positions], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


class Norm(nn.Module):
    """RMSNorm as transformers has it: in float32."""

    def __init__(self, hidden, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(hidden)), eps

    def forward(self, x):
        y = x.float()
        return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        hidden, mlp = c["hidden_size"], c["intermediate_size"]
        self.heads, self.kv = c["num_attention_heads"], c["num_key_value_heads"]
        self.width = c.get("head_dim") or hidden // self.heads
        line = lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False)
        self.norm1, self.norm2 = Norm(hidden, c["rms_norm_eps"]), Norm(hidden, c["rms_norm_eps"])
        self.q, self.o = line(hidden, self.heads * self.width), line(self.heads * self.width, hidden)
        self.k, self.v = (line(hidden, self.kv * self.width) for _ in range(2))
        self.gate, self.up, self.down = line(hidden, mlp), line(hidden, mlp), line(mlp, hidden)

    def forward(self, x, cos, sin):
        b, n, _ = x.shape
        h = self.norm1(x)
        turn = lambda y: y * cos + torch.cat([-y[..., self.width // 2:], y[..., :self.width // 2]], -1) * sin
        q, k, v = (f(h).view(b, n, heads, self.width).transpose(1, 2)
                   for f, heads in ((self.q, self.heads), (self.k, self.kv), (self.v, self.kv)))
        y = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True, enable_gqa=self.kv != self.heads)
        x = x + self.o(y.transpose(1, 2).reshape(b, n, -1))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Text(nn.Module):
    """Token ids [B, T] to the mean of the last hidden states, [B, hidden]. No padding: all tokens count."""

    def __init__(self, c, longest):
        super().__init__()
        self.embed = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"], c["rms_norm_eps"])
        width = self.layers[0].width
        steps = torch.arange(0, width, 2, dtype=torch.float32) / width
        angle = torch.arange(longest, dtype=torch.float32)[:, None] * c.get("rope_theta", 1e4) ** -steps
        angle = torch.cat([angle, angle], -1)
        self.register_buffer("cos", angle.cos().to(torch.get_default_dtype()))
        self.register_buffer("sin", angle.sin().to(torch.get_default_dtype()))

    def forward(self, ids):
        n = ids.shape[1]
        x, cos, sin = self.embed(ids), self.cos[:n], self.sin[:n]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x).float().mean(1).to(x.dtype)


class Heads(nn.Module):
    def __init__(self, config):
        super().__init__()
        d = config["projection"]["dim"]
        self.vision, self.text = nn.Linear(config["vision"]["hidden"], d), nn.Linear(config["text"]["hidden"], d)
        self.classifier = nn.Linear(2 * d, len(config["labels"]))

    def forward(self, vision, text):
        return self.classifier(torch.cat([self.vision(vision), self.text(text)], -1))
