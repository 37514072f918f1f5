#!/usr/bin/env python3
"""Writes examples/demo/checkpoint/: a small Brain-Adapter with seeded random weights, in the layouts of real files.

Needs torch, monai, transformers, tokenizers, safetensors, nibabel and scipy. Nobody who uses or tests this project has
to run it: what it writes is committed. It also records `expected.safetensors`, the outputs of every stage for
mni152_t1.nii.gz and report.txt, computed with MONAI's transformer blocks, Hugging Face's LlamaModel and nibabel's
conform: nothing of this project's own code takes part. And it makes the small scan in calibration/.

    python make_checkpoint.py
"""
import gzip
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.networks.blocks import PatchEmbeddingBlock, TransformerBlock
from nibabel.processing import conform, resample_to_output
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel

HERE = Path(__file__).resolve().parent
OUT = HERE / "checkpoint"
SEED = 20250116

CONFIG = {
    "volume": {"size": 64, "voxel_mm": 4.0, "clip": None},
    "adapter": {"kind": "bottleneck2d", "norm": "batch", "in": 64, "out": 16},
    # "Pre-trained" at depth 8 and run at depth 16: the position embeddings are interpolated, as M3D's are.
    "vision": {"img": [8, 64, 64], "patch": [4, 8, 8], "hidden": 96, "mlp": 192, "layers": 3, "heads": 6, "pool": "cls"},
    "text": {"hidden": 128, "pool": "mean", "max_tokens": 512},
    "projection": {"dim": 64},
    "labels": ["CN", "MCI", "AD"],
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 224,
    "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "rope_scaling": None, "max_position_embeddings": 4096, "hidden_act": "silu",
    "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True,
    "torch_dtype": "float16", "transformers_version": "4.31.0",
}

# Invented sentences, from which the tokenizer learns its pieces.
SENTENCES = [
    "MRI brain without contrast. No acute infarct, haemorrhage or mass. Ventricles and sulci are normal for age.",
    "Mild cortical atrophy, more marked in the medial temporal lobes. Hippocampal volume is reduced on both sides (MTA 3).",
    "Hippocampi are preserved; MTA score 0. Impression: normal study, no pattern specific for a neurodegenerative disease.",
    "Atrophy of the hippocampus, left more than right, with widening of the choroid fissure and the temporal horn.",
    "72-year-old patient, memory complaints for 18 months, MMSE 26/30, CDR 0.5. Mild cognitive impairment is suspected.",
    "Scattered FLAIR hyperintensities of the white matter, Fazekas 1. No microbleeds. Findings suggest Alzheimer's disease.",
    "Follow-up at 12 months: progressive widening of the parietal sulci; the entorhinal cortex is thin. MMSE 20/30.",
    "Normal gray-white differentiation. Corpus callosum, brainstem and cerebellum are unremarkable. This report is invented.",
] + [
    f"{side} {region}: {grade} {finding}."
    for side in ("Left", "Right", "Bilateral")
    for region in ("hippocampus", "amygdala", "temporal lobe", "parietal lobe", "entorhinal cortex", "lateral ventricle",
                   "precuneus", "thalamus", "frontal lobe", "occipital lobe", "posterior cingulate")
    for grade in ("mild", "moderate", "severe", "no")
    for finding in ("atrophy", "enlargement", "volume loss", "signal change", "widening of the sulci")
]


# ---------------------------------------------------------------- the model, with the names of real state dicts
class Bottleneck(nn.Module):
    def __init__(self, slices, channels):
        super().__init__()
        block = lambda i, k: nn.Conv2d(i, channels, k, padding=k // 2, bias=False)
        self.reduce = nn.ModuleDict({"conv": block(slices, 1), "norm": nn.BatchNorm2d(channels)})
        self.residual = nn.ModuleDict({"conv1": block(channels, 3), "norm1": nn.BatchNorm2d(channels),
                                       "conv2": block(channels, 3), "norm2": nn.BatchNorm2d(channels)})

    def forward(self, x):
        r = self.residual
        y = F.relu(self.reduce["norm"](self.reduce["conv"](x)))
        z = F.relu(r["norm1"](r["conv1"](y)))
        return F.relu(y + r["norm2"](r["conv2"](z)))


class Trained(nn.Module):
    """What fine-tuning trains. Its state dict is adapter.pt."""

    def __init__(self, c):
        super().__init__()
        dim, classes = c["projection"]["dim"], len(c["labels"])
        self.adapter = Bottleneck(c["adapter"]["in"], c["adapter"]["out"])
        self.vision_projection = nn.Linear(c["vision"]["hidden"], dim)
        self.text_projection = nn.Linear(c["text"]["hidden"], dim)
        self.classifier = nn.Linear(2 * dim, classes)
        self.image_classifier = nn.Linear(dim, classes)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))


class Vision(nn.Module):
    """M3D's ViT."""

    def __init__(self, v):
        super().__init__()
        self.grid = [i // p for i, p in zip(v["img"], v["patch"])]
        self.patch = v["patch"]
        self.patch_embedding = PatchEmbeddingBlock(1, v["img"], v["patch"], v["hidden"], v["heads"],
                                                   proj_type="perceptron")
        self.blocks = nn.ModuleList(TransformerBlock(v["hidden"], v["mlp"], v["heads"]) for _ in range(v["layers"]))
        self.norm = nn.LayerNorm(v["hidden"])
        self.cls_token = nn.Parameter(torch.zeros(1, 1, v["hidden"]))

    def forward(self, x):
        grid = [s // p for s, p in zip(x.shape[2:], self.patch)]
        position = self.patch_embedding.position_embeddings
        position = position.transpose(1, 2).reshape(1, -1, *self.grid)
        position = F.interpolate(position, grid, mode="trilinear", align_corners=False).flatten(2).transpose(1, 2)
        tokens = self.patch_embedding.patch_embeddings(x) + position
        tokens = torch.cat([self.cls_token, tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 0]

    def m3d_state_dict(self):
        """As MONAI 1.3 writes it, which M3D pins: later versions add tensors for a cross-attention that never runs."""
        return {k: v for k, v in self.state_dict().items() if "cross_attn" not in k}


def randomize(module, seed):
    """No parameter or statistic stays 0 or 1, so that one which a program forgets shows in the outputs."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda p: torch.randn(p.shape, generator=g)
    with torch.no_grad():
        for name, p in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith("num_batches_tracked"):
                p.fill_(1000)
            elif name.endswith("running_var"):
                p.copy_(0.5 + torch.rand(p.shape, generator=g))
            elif name.endswith("running_mean") or name.endswith("bias"):
                p.copy_(0.1 * normal(p))
            elif "norm" in name:
                p.copy_(1 + 0.2 * normal(p))
            elif "embed" in name and p.dim() != 2 or name == "cls_token":
                p.copy_(0.3 * normal(p))
            elif p.dim() > 1 and "inv_freq" not in name:
                p.copy_(normal(p) / (1 if "embed_tokens" in name else math.sqrt(p[0].numel())))
    return module.eval()


# ---------------------------------------------------------------- tokenizer
def train_tokenizer():
    """A BPE with LLaMA's conventions: `▁` for spaces, pieces for bytes, BOS in front."""
    special = ["<unk>", "<s>", "</s>"]
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # Digits stand alone and pieces do not reach across spaces, as in LLaMA's own vocabulary.
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("▁", "merged_with_next"),
                                                     pre_tokenizers.Split(Regex("[0-9]"), "isolated")])
    learner.train_from_iterator(SENTENCES, trainers.BpeTrainer(
        vocab_size=900, special_tokens=special + [f"<0x{b:02X}>" for b in range(256)], show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    tokenizer = Tokenizer(models.BPE(vocab=learned["vocab"], merges=[tuple(m) for m in learned["merges"]],
                                     unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = learner.normalizer
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    return tokenizer


# ---------------------------------------------------------------- files
def save_gz(image, path):
    """A .nii.gz whose bytes hold no time."""
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as out:
        out.write(image.to_bytes())


def save_sharded(tensors, folder, shards):
    names = sorted(tensors)
    each = math.ceil(len(names) / shards)
    places = {}
    for n in range(shards):
        file = f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[n * each:(n + 1) * each]}
        save_file(part, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def read_volume(path):
    """The model's input: conform in float64, min-max to [0, 1], axes inferior→superior, posterior→anterior, left→right."""
    scan = nib.load(path)
    scan = nib.Nifti1Image(np.asarray(scan.dataobj, np.float64), scan.affine)
    v = CONFIG["volume"]
    ras = conform(scan, (v["size"],) * 3, (v["voxel_mm"],) * 3, order=1, cval=0.0, orientation="RAS").get_fdata()
    ras = (ras - ras.min()) / (ras.max() - ras.min())
    return torch.from_numpy(np.ascontiguousarray(ras.transpose(2, 1, 0)))[None]


@torch.no_grad()
def main():
    for folder in ("m3d", "llama"):
        (OUT / folder).mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(OUT / "llama" / "tokenizer.json"), pretty=False)

    trained = randomize(Trained(CONFIG), SEED)
    vision = randomize(Vision(CONFIG["vision"]), SEED + 1)
    llama_config = LLAMA | {"vocab_size": tokenizer.get_vocab_size()}
    sizes = {k: v for k, v in llama_config.items() if k not in ("torch_dtype", "transformers_version", "rope_scaling")}
    text = randomize(LlamaModel(LlamaConfig(**sizes, attn_implementation="eager")), SEED + 2)
    for p in text.parameters():
        p.copy_(p.half().float())  # what the file holds
    assert text.rotary_emb.inv_freq[0] == 1 and text.config.num_key_value_heads == 4

    (OUT / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (OUT / "llama" / "config.json").write_text(json.dumps(llama_config, indent=2) + "\n")
    torch.save(trained.state_dict(), OUT / "adapter.pt")
    torch.save(vision.m3d_state_dict(), OUT / "m3d" / "pretrained_ViT.bin")
    save_sharded({f"model.{k}": v.half().contiguous() for k, v in text.state_dict().items()}, OUT / "llama", 2)

    # The record keeps the volume in half precision, for its size; the stages are those of exactly these numbers.
    stored = read_volume(HERE / "mni152_t1.nii.gz").half()
    report = (HERE / "report.txt").read_text()
    ids = torch.tensor([tokenizer.encode(report).ids])
    mask = torch.ones_like(ids)
    record = {"volume": stored, "input_ids": ids, "attention_mask": mask}
    record["adapter"] = trained.adapter(stored.float())
    record["vision"] = vision(record["adapter"][:, None])
    record["text"] = text(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.mean(1)
    record["v"], record["t"] = trained.vision_projection(record["vision"]), trained.text_projection(record["text"])
    record["logits"] = trained.classifier(torch.cat([record["v"], record["t"]], 1))
    record["image_logits"] = trained.image_classifier(record["v"])
    save_file({k: v.contiguous() for k, v in record.items()}, OUT / "expected.safetensors")

    small = resample_to_output(nib.load(HERE / "mni152_t1.nii.gz"), (5, 5, 5), order=1)
    small = nib.Nifti1Image(np.round(small.get_fdata()).astype(np.uint8), small.affine)
    save_gz(small, HERE / "calibration" / "mni152_t1_5mm.nii.gz")
    print(f"{ids.shape[1]} tokens of {tokenizer.get_vocab_size()} pieces, logits {record['logits'].tolist()}, "
          f"image logits {record['image_logits'].tolist()}")


if __name__ == "__main__":
    main()
