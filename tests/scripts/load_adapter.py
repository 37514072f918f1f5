"""Loads a saved adapter into a PyTorch module, strictly, and holds every tensor against the state dict that was applied.

    python load_adapter.py SAVED.safetensors TRAINED.safetensors CONFIG_JSON
"""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn


def bottleneck(c):
    """`adapter.kind` bottleneck2d with batch norms."""
    conv = lambda i, k: nn.Conv2d(i, c["out"], k, padding=k // 2, bias=False)
    norm = lambda: nn.BatchNorm2d(c["out"])
    adapter = nn.Module()
    adapter.reduce = nn.ModuleDict({"conv": conv(c["in"], 1), "norm": norm()})
    adapter.residual = nn.ModuleDict(
        {"conv1": conv(c["out"], 3), "norm1": norm(), "conv2": conv(c["out"], 3), "norm2": norm()}
    )
    return adapter


def trained(c):
    dim, classes = c["projection"]["dim"], len(c["labels"])
    model = nn.Module()
    model.adapter = bottleneck(c["adapter"])
    model.vision_projection = nn.Linear(c["vision"]["hidden"], dim)
    model.text_projection = nn.Linear(c["text"]["hidden"], dim)
    model.classifier = nn.Linear(2 * dim, classes)
    model.image_classifier = nn.Linear(dim, classes)
    model.logit_scale = nn.Parameter(torch.zeros(()))
    return model


saved, applied, config = sys.argv[1:]
module, state, expected = trained(json.loads(Path(config).read_text())), load_file(saved), load_file(applied)
module.load_state_dict(state, strict=True)
assert set(state) == set(expected) == set(module.state_dict())
for name, tensor in module.state_dict().items():
    assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name
