"""Makes `extra/`: python make_extra.py (needs torch, safetensors). The rest of this folder has its own generator, which
wrote the adapter of a tiny model; `legacy-pickle/expected.safetensors` holds its tensors as they must load."""
import copy
import json
import re
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parent / "extra"


class Adapter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.reduce = torch.nn.Conv2d(4, 2, 1)
        self.norm = torch.nn.BatchNorm2d(2)
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.5))
        self.turned = torch.nn.Parameter(torch.randn(4, 3).half().t())

    def forward(self, x):
        return self.norm(self.reduce(x)) * self.logit_scale + self.turned.sum()


def without_folders(path):
    """Traces in the exported program name the folders of this machine: blanks them, without moving a byte"""
    data = path.read_bytes()
    with zipfile.ZipFile(path) as z:
        for info in z.infolist():
            old = z.read(info)
            new = re.sub(rb"(?<![\w.])(?:/[\w.-]+)+/(?=(?:tests|torch)/)", lambda m: (b"./" * len(m[0]))[-len(m[0]):], old)
            if new != old:
                crc = [c.to_bytes(4, "little") for c in (info.CRC, zlib.crc32(new))]
                data = data.replace(old, new).replace(*crc)
    path.write_bytes(data)


def dtypes():
    """every dtype, and the views and sizes that files hold now and then"""
    sd = OrderedDict()
    for dt in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
               torch.uint8, torch.bool, torch.uint16, torch.uint32, torch.uint64):
        sd[str(dt)[6:]] = (torch.arange(12).reshape(3, 4) % 7).to(dt)
    sd["scalar"] = torch.tensor(1.25)
    sd["empty"] = torch.zeros(0, 5)
    sd["expanded"] = torch.tensor([[1.0], [2.0]]).expand(2, 3)
    sd["permuted"] = torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)
    sd["stepped"] = torch.arange(30.0)[3::4]
    sd["parameter"] = torch.nn.Parameter(torch.arange(4.0))
    tagged = torch.nn.Parameter(torch.arange(5.0))
    tagged.tag = "kept"
    sd["tagged"] = tagged
    return sd


def meta(folder):
    """two slices of a llama with grouped KV heads: dim 16, 4 heads, 2 KV heads, 1 layer; Hugging Face's rows beside them"""
    g = torch.Generator().manual_seed(3)
    r = lambda *s: torch.randn(*s, generator=g).half()
    dim, kv, mlp, vocab, hd = 16, 8, 24, 10, 4
    whole = {"tok_embeddings.weight": (r(vocab, dim), 1), "norm.weight": (r(dim), None), "output.weight": (r(vocab, dim), 0),
             "layers.0.attention.wq.weight": (r(dim, dim), 0), "layers.0.attention.wk.weight": (r(kv, dim), 0),
             "layers.0.attention.wv.weight": (r(kv, dim), 0), "layers.0.attention.wo.weight": (r(dim, dim), 1),
             "layers.0.feed_forward.w1.weight": (r(mlp, dim), 0), "layers.0.feed_forward.w2.weight": (r(dim, mlp), 1),
             "layers.0.feed_forward.w3.weight": (r(mlp, dim), 0), "layers.0.attention_norm.weight": (r(dim), None),
             "layers.0.ffn_norm.weight": (r(dim), None), "rope.freqs": (r(hd // 2), None)}
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(2):
        torch.save({k: (w if d is None else w.chunk(2, d)[i]).clone() for k, (w, d) in whole.items()}, folder / f"consolidated.{i:02d}.pth")
    (folder / "params.json").write_text(json.dumps(dict(dim=dim, multiple_of=8, n_heads=4, n_kv_heads=2, n_layers=1, norm_eps=1e-5, vocab_size=-1)))
    # transformers' convert_llama_weights_to_hf.py
    permute = lambda w, n: w.view(n, w.shape[0] // n // 2, 2, w.shape[1]).transpose(1, 2).reshape(w.shape)
    w = {k: t for k, (t, _) in whole.items()}
    p = "model.layers.0."
    hf = {"model.embed_tokens.weight": w["tok_embeddings.weight"], "model.norm.weight": w["norm.weight"], "lm_head.weight": w["output.weight"],
          p + "self_attn.q_proj.weight": permute(w["layers.0.attention.wq.weight"], 4), p + "self_attn.k_proj.weight": permute(w["layers.0.attention.wk.weight"], 2),
          p + "self_attn.v_proj.weight": w["layers.0.attention.wv.weight"], p + "self_attn.o_proj.weight": w["layers.0.attention.wo.weight"],
          p + "mlp.gate_proj.weight": w["layers.0.feed_forward.w1.weight"], p + "mlp.down_proj.weight": w["layers.0.feed_forward.w2.weight"],
          p + "mlp.up_proj.weight": w["layers.0.feed_forward.w3.weight"], p + "input_layernorm.weight": w["layers.0.attention_norm.weight"],
          p + "post_attention_layernorm.weight": w["layers.0.ffn_norm.weight"]}
    save_file({k: t.contiguous() for k, t in hf.items()}, folder / "hf.safetensors")


def main():
    torch.manual_seed(1)
    OUT.mkdir(exist_ok=True)
    model = Adapter().eval()
    torch.export.save(torch.export.export(model, (torch.randn(1, 4, 3, 3),)), OUT / "adapter.pt2")
    without_folders(OUT / "adapter.pt2")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, OUT / "adapter.safetensors")
    sd = dtypes()
    save_file({k: v.detach().clone().contiguous() for k, v in sd.items()}, OUT / "dtypes.safetensors")
    for protocol in (2, 4, 5):
        torch.save(sd, OUT / f"dtypes_p{protocol}.pt", pickle_protocol=protocol)
    legacy = {k: v for k, v in sd.items() if k not in ("uint16", "uint32", "uint64")}
    torch.save(legacy, OUT / "dtypes_legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"model": {"_orig_mod.module." + k: v for k, v in legacy.items()}, "ema": copy.deepcopy(legacy), "lr": {0.1, 0.2}, "steps": 7}, OUT / "wrapped.pt")
    torch.save({"w": torch.ones(2, dtype=torch.complex64), "x": torch.ones(2)}, OUT / "complex.pt")
    meta(OUT / "meta")


main()
