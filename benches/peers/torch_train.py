"""Training in PyTorch, as one would write it.

python torch_train.py step CONFIG ADAPTER VISION CASE sdpa|eager save|recompute STEPS THREADS RATE
    Steps of the mode tlp: forward, loss, backward, AdamW. CONFIG is config.json, the others are safetensors: adapter and
    heads, the folder of M3D's ViT, and a case of `volumes`, `text` and `labels`. `save` keeps what autograd keeps, `recompute`
    checkpoints each block; `eager` writes attention out as MONAI's SABlock does by default.
python torch_train.py epoch CONFIG TRAINING VALIDATION BATCH EPOCHS THREADS RATE plain|fused
    Epochs of projections and classifier on made-up features, each with its validation and the state written.
"""
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from common import report


class Adapter(nn.Module):
    def __init__(self, config):
        super().__init__()
        a, self.flat = config["adapter"], config["adapter"]["kind"] == "bottleneck2d"
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if self.flat else (nn.Conv3d, nn.BatchNorm3d)
        c = a["out"] if self.flat else a["width"]
        self.reduce, self.residual = nn.Module(), nn.Module()
        if self.flat:
            self.reduce.conv = conv(a["in"], c, 1, bias=False)
        else:
            self.reduce.conv = conv(1, c, 3, stride=(a["in"] // a["out"], 1, 1), padding=1, bias=False)
            self.out = conv(c, 1, 1)
        self.reduce.norm = norm(c)
        for i in "12":
            setattr(self.residual, "conv" + i, conv(c, c, 3, padding=1, bias=False))
            setattr(self.residual, "norm" + i, norm(c))

    def forward(self, x):
        r = self.residual
        y = F.relu(self.reduce.norm(self.reduce.conv(x if self.flat else x[:, None])))
        y = F.relu(y + r.norm2(r.conv2(F.relu(r.norm1(r.conv1(y))))))
        return y if self.flat else self.out(y)[:, 0]


class Block(nn.Module):
    def __init__(self, hidden, mlp, heads, form):
        super().__init__()
        self.form, self.heads = form, heads
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.out_proj = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden)
        self.mlp.linear1, self.mlp.linear2 = nn.Linear(hidden, mlp), nn.Linear(mlp, hidden)

    def forward(self, x):
        b, n, h = x.shape
        q, k, v = self.attn.qkv(self.norm1(x)).view(b, n, 3, self.heads, h // self.heads).permute(2, 0, 3, 1, 4)
        if self.form == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q @ k.transpose(-1, -2)) * (h // self.heads) ** -0.5).softmax(-1) @ v
        x = x + self.attn.out_proj(y.transpose(1, 2).reshape(b, n, h))
        return x + self.mlp.linear2(F.gelu(self.mlp.linear1(self.norm2(x))))


class Vision(nn.Module):
    def __init__(self, config, form, again):
        super().__init__()
        v = config["vision"]
        h, self.patch, self.again = v["hidden"], v["patch"], again
        self.trained = [i // p for i, p in zip(v["img"], v["patch"])]
        size = config["volume"]["size"]
        self.grid = [s // p for s, p in zip([config["adapter"]["out"], size, size], v["patch"])]
        self.patch_embedding = nn.Module()
        self.patch_embedding.patch_embeddings = nn.Sequential(
            nn.Identity(), nn.Linear(self.patch[0] * self.patch[1] * self.patch[2], h))
        tokens = self.trained[0] * self.trained[1] * self.trained[2]
        self.patch_embedding.position_embeddings = nn.Parameter(torch.empty(1, tokens, h))
        self.cls_token = nn.Parameter(torch.empty(1, 1, h))
        self.blocks = nn.ModuleList([Block(h, v["mlp"], v["heads"], form) for _ in range(v["layers"])])
        self.norm = nn.LayerNorm(h)

    def fit_positions(self):
        """Position embeddings for the grid that the model runs on."""
        p = self.patch_embedding
        x = p.position_embeddings.detach().view(1, *self.trained, -1).permute(0, 4, 1, 2, 3)
        x = F.interpolate(x, size=self.grid, mode="trilinear", align_corners=False)
        p.position_embeddings = nn.Parameter(x.flatten(2).transpose(1, 2).contiguous())

    def forward(self, x):
        b, (gd, gh, gw), (pd, ph, pw) = x.shape[0], self.grid, self.patch
        x = x.view(b, gd, pd, gh, ph, gw, pw).permute(0, 1, 3, 5, 2, 4, 6).reshape(b, gd * gh * gw, pd * ph * pw)
        x = self.patch_embedding.patch_embeddings(x) + self.patch_embedding.position_embeddings
        x = torch.cat([self.cls_token.expand(b, -1, -1), x], 1)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.again else block(x)
        return self.norm(x)[:, 0]


class Heads(nn.Module):
    def __init__(self, config):
        super().__init__()
        d = config["projection"]["dim"]
        self.vision_projection = nn.Linear(config["vision"]["hidden"], d)
        self.text_projection = nn.Linear(config["text"]["hidden"], d)
        self.classifier = nn.Linear(2 * d, len(config["labels"]))
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))
        self.weight = config["train"]["contrastive_weight"]

    def forward(self, vision, text, labels):
        v, t = self.vision_projection(vision), self.text_projection(text)
        logits = self.classifier(torch.cat([v, t], 1))
        pairs = self.logit_scale.exp().clamp(max=100) * F.normalize(v) @ F.normalize(t).T
        own = torch.arange(len(labels))
        contrastive = 0.5 * (F.cross_entropy(pairs, own) + F.cross_entropy(pairs.T, own))
        return F.cross_entropy(logits, labels) + self.weight * contrastive, logits


def adamw(modules, rate, **more):
    """Decay for weights of layers alone: as ours."""
    both = [p for m in modules for p in m.parameters()]
    groups = [{"params": [p for p in both if p.dim() > 1], "weight_decay": 0.01},
              {"params": [p for p in both if p.dim() <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, **more)


def step(config, adapter_path, vision_path, case, form, kept, steps, threads, rate):
    from safetensors.torch import load_file

    torch.set_num_threads(int(threads))
    config = json.loads(Path(config).read_text())
    adapter, heads = Adapter(config).train(), Heads(config)
    with torch.device("meta"):
        vision = Vision(config, form, kept == "recompute")
    tensors = load_file(adapter_path)
    own = {name.removeprefix("adapter."): t for name, t in tensors.items() if name.startswith("adapter.")}
    adapter.load_state_dict({**{n: t for n, t in adapter.state_dict().items() if n.endswith("num_batches_tracked")}, **own})
    heads.load_state_dict({name: tensors[name] for name in heads.state_dict()})
    vision.load_state_dict(load_file(Path(vision_path) / "model.safetensors"), assign=True)
    vision.fit_positions()
    vision.requires_grad_(False)
    del tensors, own
    case = load_file(case)
    optimizer = adamw([adapter, heads], float(rate))
    seconds, losses = [], []
    for _ in range(int(steps)):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss, _ = heads(vision(adapter(case["volumes"])), case["text"], case["labels"])
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    report(statistics.median(seconds[1:]), losses=losses, first=seconds[0])


def epoch(config, training, validation, batch, epochs, threads, rate, kind):
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    config, training, validation, batch = json.loads(Path(config).read_text()), int(training), int(validation), int(batch)
    n = training + validation
    vision, text = torch.randn(n, config["vision"]["hidden"]), torch.randn(n, config["text"]["hidden"])
    labels = torch.arange(n) % len(config["labels"])
    heads = Heads(config)
    optimizer = adamw([heads], float(rate), fused=kind == "fused")
    steps, whole = [], []
    for _ in range(int(epochs)):
        start = time.perf_counter()
        total = 0.0
        for some in torch.randperm(training).split(batch):
            optimizer.zero_grad()
            loss, _ = heads(vision[some], text[some], labels[some])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(some)
        steps.append(time.perf_counter() - start)
        right = 0
        with torch.no_grad():
            for some in torch.arange(training, n).split(batch):
                loss, logits = heads(vision[some], text[some], labels[some])
                total += loss.item() * len(some)
                right += (logits.argmax(1) == labels[some]).sum().item()
        with tempfile.TemporaryFile() as file:
            torch.save({"model": heads.state_dict(), "optimizer": optimizer.state_dict()}, file)
        whole.append(time.perf_counter() - start)
    report(statistics.median(steps[1:]), whole=statistics.median(whole[1:]))


if __name__ == "__main__":
    {"step": step, "epoch": epoch}[sys.argv[1]](*sys.argv[2:])
