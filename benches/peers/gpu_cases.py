"""What the GPU's measurements read: python gpu_cases.py scans|reports|fixtures ...

scans SCAN.nii.gz FOLDER COUNT TOKENS...   COUNT scans that differ in a voxel, reports of exactly so many tokens (by the tokenizer
                                           of examples/synthesize_checkpoint), and a list for `ba-infer --list` of each length
fixtures FOLDER                            the fixtures of tests/data as model folders, each with scan.nii.gz and report.txt

Scans and reports differ from row to row, so that no cache answers in place of the model.
"""
import csv
import gzip
import json
import shutil
import struct
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Each is one token of the synthetic tokenizer, at any size of its vocabulary.
WORDS = "the of and in is no with for normal mild moderate severe atrophy".split()


def scans(source, folder, count):
    voxels = bytearray(gzip.decompress(Path(source).read_bytes()))
    # NIfTI-1's vox_offset; the voxels changed lie at the edge, outside the head.
    first = int(struct.unpack_from("<f", voxels, 108)[0])
    for i in range(count):
        voxels[first] = i
        with gzip.GzipFile(folder / f"scan-{i}.nii.gz", "wb", compresslevel=6, mtime=0) as out:
            out.write(voxels)


def reports(folder, count, tokens):
    # BOS comes first; no line break at the end, which would be a token.
    for i in range(count):
        words = [WORDS[(i + j * (1 + i % 3)) % len(WORDS)] for j in range(tokens - 1)]
        (folder / f"report-{tokens}-{i}.txt").write_text(" ".join(words))
    with open(folder / f"cohort-{tokens}.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["scan", "report"])
        rows.writerows([f"scan-{i}.nii.gz", f"report-{tokens}-{i}.txt"] for i in range(count))


def split(source, prefix, target):
    """The tensors of a safetensors file whose names begin with `prefix`, without it, into another; bytes as they are."""
    data = source.read_bytes()
    length = struct.unpack_from("<Q", data)[0]
    header, body = json.loads(data[8:8 + length]), data[8 + length:]
    picked, parts, at = {}, [], 0
    for name, tensor in header.items():
        if name.startswith(prefix):
            begin, end = tensor["data_offsets"]
            picked[name.removeprefix(prefix)] = {**tensor, "data_offsets": [at, at + end - begin]}
            parts.append(body[begin:end])
            at += end - begin
    text = json.dumps(picked).encode()
    text += b" " * (-len(text) % 8)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def fixtures(folder):
    data = ROOT / "tests/data/fixtures"
    for name, towers in (("tiny", "tiny"), ("tiny-gqa-bf16-sharded",) * 2, ("tiny-bottleneck3d", "tiny")):
        model = folder / name
        split(data / name / "weights.safetensors", "heads/", model / "adapter.safetensors")
        split(data / towers / "weights.safetensors", "vit/", model / "m3d/pretrained_ViT.safetensors")
        split(data / towers / "weights.safetensors", "llama/", model / "llama/model.safetensors")
        shutil.copyfile(data / name / "config.json", model / "config.json")
        shutil.copyfile(data / towers / "llama/config.json", model / "llama/config.json")
        shutil.copyfile(ROOT / "tests/data/tokenizer/tokenizer.json", model / "llama/tokenizer.json")
        shutil.copyfile(data / towers / "scan.nii.gz", model / "scan.nii.gz")
        (model / "report.txt").write_text(json.loads((data / name / "reports.json").read_text())[0])
    demo = ROOT / "examples/demo"
    shutil.copytree(demo / "checkpoint", folder / "demo", dirs_exist_ok=True)
    shutil.copyfile(demo / "mni152_t1.nii.gz", folder / "demo/scan.nii.gz")
    shutil.copyfile(demo / "report.txt", folder / "demo/report.txt")


def main():
    what, rest = sys.argv[1], sys.argv[2:]
    if what == "scans":
        folder, count = Path(rest[1]), int(rest[2])
        folder.mkdir(parents=True, exist_ok=True)
        scans(rest[0], folder, count)
        for tokens in rest[3:]:
            reports(folder, count, int(tokens))
    else:
        fixtures(Path(rest[0]))


if __name__ == "__main__":
    main()
