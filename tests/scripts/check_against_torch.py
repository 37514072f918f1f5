"""Holds the Rust reference against PyTorch (MONAI's blocks, Hugging Face's LlamaModel) on the random cases.

    CASES=FOLDER COUNT=60 cargo test --test reference_cases -- --ignored
    python check_against_torch.py REFERENCE_PY FOLDER [--float64]

REFERENCE_PY is the PyTorch reference the fixtures were recorded with (fixtures/reference.py). PyTorch runs in
float64. Hugging Face computes RMSNorm, the rotary tables and attention's softmax in float32 whatever the model's
type; with --float64 these three are widened, so that what is left of a difference is a difference in meaning.
"""
import importlib.util
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

PREFIXES = ("model.vision_tower.vision_tower.", "vision_encoder.", "")


def load(path):
    spec = importlib.util.spec_from_file_location("torch_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fill(module, sd):
    """Loads by name; names of ours that the module has and sd lacks must be MONAI's unused ones or computed."""
    r = module.load_state_dict(sd, strict=False)
    assert all("cross_attn." in k or "inv_freq" in k for k in r.missing_keys), r.missing_keys
    return r.unexpected_keys


def widen():
    from transformers.models.llama import modeling_llama as L

    def rms(self, x):
        return self.weight * (x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self, x, position_ids):
        c = self.config
        inv = c.rope_parameters["rope_theta"] ** (-torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim)
        angle = position_ids[..., None].double() * inv
        angle = torch.cat((angle, angle), -1)
        return angle.cos(), angle.sin()

    softmax = F.softmax
    F.softmax = lambda x, dim=None, dtype=None, **k: softmax(x, dim=dim)
    L.LlamaRMSNorm.forward, L.LlamaRotaryEmbedding.forward = rms, rotary


@torch.no_grad()
def check(R, d):
    cfg = json.loads((d / "config.json").read_text())
    conf = json.loads((d / "llama/config.json").read_text())
    cfg["adapter"] = {"kind": "bottleneck2d", "norm": "batch"} | cfg["adapter"]
    cfg["vision"] = {"pool": "cls"} | cfg["vision"]
    cfg["text"] = {"pool": "mean"} | cfg["text"]
    conf["rms_norm_eps"] = float(conf["rms_norm_eps"])

    heads, sd = R.Heads(cfg).double().eval(), load_file(d / "adapter.safetensors")
    image = "image_classifier.weight" in sd
    r = heads.load_state_dict(sd, strict=False)
    assert not r.unexpected_keys and (not r.missing_keys or not image), r

    sd = load_file(next((d / "m3d").glob("*.safetensors")))
    prefix = next(p for p in PREFIXES if p + "cls_token" in sd)
    vit = R.make_vit(cfg).double().eval()
    unexpected = fill(vit, {k[len(prefix):]: t for k, t in sd.items() if k.startswith(prefix)})
    # without a prefix M3D-LaMed's and M3D-CLIP's other parts never stand in the file
    assert all("cross_attn." in k for k in unexpected), unexpected

    sd = {}
    for f in sorted((d / "llama").glob("*.safetensors")):
        sd |= load_file(f)
    bare = {k.removeprefix("model."): t for k, t in sd.items() if "lm_head" not in k and "inv_freq" not in k}
    llama = R.LlamaModel(R.llama_config(conf)).double().eval()
    assert not fill(llama, bare)

    e = load_file(d / "expected.safetensors")
    got = R.forward_all(cfg, heads, vit, llama, e["volume"], e["input_ids"].long(), e["attention_mask"].long())
    if not image:
        del got["image_logits"]
    assert set(got) == set(e) - {"volume", "input_ids", "attention_mask"}
    return {k: float((got[k] - e[k]).abs().max()) for k in got}


def main(reference, folder, wide):
    R, worst = load(reference), {}
    if wide:
        widen()
    cases = sorted(folder.iterdir(), key=lambda p: int(p.name))
    for d in cases:
        for k, x in check(R, d).items():
            worst[k] = max(worst.get(k, (0.0, "")), (x, d.name))
    for k, (x, case) in worst.items():
        print(f"{k:20} {x:.1e}  (case {case})")
    print(f"{len(cases)} cases")
    bad = {k: x for k, (x, _) in worst.items() if not x < (2e-5 if not wide and ("text" in k or k in ("t", "logits")) else 1e-10)}
    sys.exit(f"too far: {bad}" if bad else 0)


if __name__ == "__main__":
    args = [a for a in sys.argv[1:] if a != "--float64"]
    main(args[0], Path(args[1]), "--float64" in sys.argv)
