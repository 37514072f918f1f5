#!/usr/bin/env python3
"""Hashes all that the programs make from the demo and the fixtures, so that a refactoring can show that it changed no byte.

    scripts/byte_identity.py -o before.txt                 # with the programs of the old commit
    scripts/byte_identity.py --compare before.txt          # with those of the new one: exit 1 and a line a difference

Bundles in every precision and for every target, predictions with every stage's tensor, trainings with their checkpoints,
evaluations. Hashed are files as they are, and JSON without what differs from run to run (times, memory, places) and
without sentences: words may change, keys, numbers and codes may not.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "examples" / "demo"
SCAN, REPORT = DEMO / "mni152_t1.nii.gz", DEMO / "report.txt"
# Fields of JSON that differ from run to run, or hold sentences.
VOLATILE = {"libraries", "timing_ms", "memory_bytes", "gpu_memory_bytes", "started_ms", "wall_ms", "seconds", "slowdowns", "weights"}
WORDS = {"message", "reason", "why", "chosen", "intended_use", "research_use"}
FORMATS = [("fp32", []), ("fp16", ["--quantize", "fp16"]), ("int8", ["--quantize", "int8"]), ("int4", ["--quantize", "int4"]),
           ("int8-cuda", ["--quantize", "int8", "--target", "cuda"]), ("int4-cuda", ["--quantize", "int4", "--target", "cuda"]),
           ("int8-tensorrt", ["--quantize", "int8", "--target", "tensorrt"])]
LABELS = ["CN", "MCI", "AD"]


class Run:
    """One run over everything: a folder to work in, the programs, and the hashes by name."""

    def __init__(self, programs: Path, work: Path):
        self.programs, self.work, self.hashes = programs, work, {}

    def add(self, name: str, content: bytes):
        self.hashes[name] = hashlib.sha256(content).hexdigest()

    def files(self, name: str, folder: Path, skip=()):
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in skip):
            self.add(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def call(self, name: str, program: str, *args, expect=0):
        """Runs a program; its JSON, where it prints some, is one entry."""
        command = [str(self.programs / program), *map(str, args)]
        environment = {k: v for k, v in os.environ.items() if k != "BA_MODEL"}
        done = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment, check=False)
        if expect is not None and done.returncode != expect:
            sys.exit(f"{name}: {' '.join(command)}: exit {done.returncode}\n{done.stderr.decode(errors='replace')}")
        if "--json" in args and expect is not None:
            lines = [json.loads(line) for line in done.stdout.decode().splitlines()]
            if program != "ba-infer":  # the other programs list their warnings only since 0.1.0
                lines = [{k: v for k, v in line.items() if k != "warnings"} for line in lines]
            self.add(f"{name}.json", json.dumps([self.stable(line) for line in lines], sort_keys=True).encode())
        return done

    def stable(self, value, key=None):
        """JSON without what may differ."""
        if isinstance(value, dict):
            return {k: self.stable(v, k) for k, v in value.items() if k not in VOLATILE | WORDS | {"warnings"}} | (
                {"warnings": [w["code"] for w in value["warnings"]]} if value.get("warnings") and isinstance(value["warnings"][0], dict) else {})
        if isinstance(value, list):
            return [self.stable(v, key) for v in value]
        if isinstance(value, str):
            return value.replace(str(self.work), "WORK").replace(str(ROOT), "ROOT").replace(str(ROOT.parent), "PARENT")
        return value


def export(run: Run, name: str, model: list, formats, calibration, verify=None):
    """A bundle in each format, and the export's own JSON."""
    for form, args in formats:
        bundle = run.work / name / form
        more = (["--calibration", calibration] if calibration else []) + (["--verify", verify] if verify and form == "fp32" else [])
        run.call(f"{name}/{form}/export", "ba-export", *model, *args, *more, "-o", bundle, "--json")
        run.files(f"{name}/{form}", bundle)


def infer(run: Run, name: str, bundle: Path, quick: bool):
    """Predictions in the ways that a run can go."""
    ways = {"report": ["--report", REPORT], "image": []}
    if not quick:
        ways |= {
            "resident": ["--report", REPORT, "--mode", "resident"],
            "one-thread": ["--report", REPORT, "--mode", "one-shot", "--threads", "1"],
            "two": [DEMO / "calibration" / "noise.nii.gz", "--report", REPORT, "--same-report"],
            "max-memory": ["--report", REPORT, "--max-memory", "4G"],
            "prepacked": ["--report", REPORT, "--cache", run.work / f"prepacked-{name.replace('/', '-')}", "--prepacked"],
        }
    for way, args in ways.items():
        run.call(f"{name}/infer/{way}", "ba-infer", SCAN, "--bundle", bundle, *args, "--json")
    run.call(f"{name}/infer/no-memory", "ba-infer", SCAN, "--bundle", bundle, "--max-memory", "40M", "--json", expect=1)
    out = run.work / f"saved-{name.replace('/', '-')}"
    out.mkdir()
    saves = ["--save-tensors", out / "t.safetensors", "--save-conformed", out / "c.nii.gz", "--save-preview", out / "p.png"]
    run.call(f"{name}/save", "ba-infer", SCAN, "--report", REPORT, "--bundle", bundle, *saves)
    run.files(f"{name}/saved", out)
    if quick:
        return
    cohort = out / "cohort.csv"
    rows = [f"{p},{p.with_suffix('').with_suffix('.txt')}" for p in sorted((DEMO / "calibration").glob("*.nii.gz"))]
    cohort.write_text("scan,report\n" + "\n".join(rows) + "\nmissing.nii.gz,\n")
    for kind in ("csv", "jsonl"):
        run.call(f"{name}/list", "ba-infer", "--list", cohort, "--bundle", bundle, "-o", out / f"r.{kind}", expect=1)
    run.add(f"{name}/list.csv", (out / "r.csv").read_bytes().replace(str(run.work).encode(), b"WORK").replace(str(ROOT).encode(), b"ROOT"))
    lines = [json.loads(line) for line in (out / "r.jsonl").read_text().splitlines()]
    run.add(f"{name}/list.jsonl", json.dumps([run.stable(line) for line in lines], sort_keys=True).encode())
    for again in ("first", "again"):
        run.call(f"{name}/cache/{again}", "ba-infer", SCAN, "--report", REPORT, "--bundle", bundle, "--cache", out / "cache", "--json")
    run.files(f"{name}/cache/features", out / "cache" / "features")


def train(run: Run, name: str, model: list, bundle: Path, quick: bool):
    """Artifacts, trainings, evaluation, and the trained weights in a bundle."""
    cohort = run.work / f"{name}-cohort.csv"
    # Relative paths: a training's state depends on its list.
    inputs = run.work / "inputs"
    shutil.copytree(DEMO / "calibration", inputs)
    shutil.copy(SCAN, inputs)
    shutil.copy(REPORT, inputs)
    scans = [(p.name, p.name.replace(".nii.gz", ".txt"), "train") for p in sorted((DEMO / "calibration").glob("*.nii.gz"))]
    scans.append((SCAN.name, REPORT.name, "validation"))
    rows = [f"inputs/{scan},inputs/{report},{LABELS[i % 3]},{split}" for i, (scan, report, split) in enumerate(scans)]
    cohort.write_text("scan,report,label,split\n" + "\n".join(rows) + "\n")
    for mode in ["tlp"] if quick else ["tlp", "fpm", "mri"]:
        at = run.work / f"{name}-{mode}"
        run.call(f"{name}/{mode}/prepare", "ba-train", "prepare", *model, "--mode", mode, "-o", at / "artifacts", "--json")
        run.files(f"{name}/{mode}/artifacts", at / "artifacts")
        args = ["--data", cohort, "--artifacts", at / "artifacts", "--bundle", bundle, "--epochs", 2, "--batch", 2, "--seed", 3]
        run.call(f"{name}/{mode}/fit", "ba-train", "fit", *args, "--threads", 1, "-o", at / "run")
        run.files(f"{name}/{mode}/run", at / "run")
        if not quick:
            run.call(f"{name}/{mode}/fit-2", "ba-train", "fit", *args, "--threads", 2, "-o", at / "run-2")
            run.files(f"{name}/{mode}/run-2", at / "run-2")
        shutil.copytree(bundle, at / "bundle")
        run.call(f"{name}/{mode}/apply", "ba-train", "apply", "--checkpoint", at / "run" / "best", "--bundle", at / "bundle",
                 "--calibration", DEMO / "calibration", "--json")
        run.files(f"{name}/{mode}/applied", at / "bundle")
        run.call(f"{name}/{mode}/eval", "ba-train", "eval", "--data", cohort, "--bundle", at / "bundle", "--json")
        if not quick:
            run.call(f"{name}/{mode}/temperature", "ba-train", "eval", "--data", cohort, "--bundle", at / "bundle",
                     "--fit-temperature", "--split", "train", "--json")
            run.files(f"{name}/{mode}/calibrated", at / "bundle")
            run.files(f"{name}/{mode}/versions", at / "bundle.versions")


def hostile(run: Run, shared: Path):
    """Damaged files: the exit code and the error's code."""
    for path in sorted((ROOT / "tests" / "data" / "nifti-hostile").glob("*")):
        if path.suffix in (".gz", ".nii", ".hdr"):
            code = run.call(f"hostile/{path.name}", "ba-infer", path, "--bundle", run.work / "demo" / "int8", expect=None).returncode
            run.add(f"hostile/{path.name}", str(code).encode())
    for path in sorted((shared / "hostile").glob("*")):
        out = run.work / "hostile"
        done = run.call(f"hostile/{path.name}", "ba-export", "--model", shared / "tiny", "--adapter", path, "-o", out, "--json", expect=None)
        value = json.loads(done.stdout)
        run.add(f"hostile/{path.name}", f"{done.returncode} {value.get('error', {}).get('code')}".encode())


def everything(run: Run, shared: Path, quick: bool):
    demo = ["--model", DEMO / "checkpoint"]
    formats = [f for f in FORMATS if f[0] in ("fp32", "int8")] if quick else FORMATS
    export(run, "demo", demo, formats, DEMO / "calibration", DEMO / "checkpoint" / "expected.safetensors")
    if not quick:
        export(run, "demo-uncalibrated", demo, formats[:4], None)
    for form in ["int8"] if quick else ["fp32", "fp16", "int8", "int4"]:
        infer(run, f"demo/{form}", run.work / "demo" / form, quick)
    train(run, "demo-train", demo, run.work / "demo" / ("int8" if quick else "fp32"), quick)
    if quick or not shared.is_dir():
        return
    calibration = run.work / "calibration"
    calibration.mkdir()
    for i, text in enumerate(json.loads((shared / "tiny" / "reports.json").read_text())):
        (calibration / f"{i}.txt").write_text(text)
    shutil.copy(shared / "tiny" / "scan.nii.gz", calibration)
    tiny, gqa = shared / "tiny", shared / "tiny-gqa-bf16-sharded"
    models = {
        "tiny": ["--model", tiny],
        "tiny-gqa-bf16-sharded": ["--model", gqa, "--vision", gqa / "m3d-clip"],
        "tiny-bottleneck3d": ["--model", shared / "tiny-bottleneck3d", "--vision", tiny / "m3d", "--text", tiny / "llama"],
        "tiny-meta-layout": ["--model", tiny, "--text", shared / "tiny-meta-layout"],
    }
    for name, model in models.items():
        export(run, name, model, FORMATS, calibration)
    hostile(run, shared)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=Path, default=ROOT / "target" / "release", help="folder of ba-export, ba-infer, ba-train")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "fixtures", help="more models, where they exist")
    parser.add_argument("--quick", action="store_true", help="the demo alone, in fp32 and int8")
    parser.add_argument("--compare", type=Path, help="a list that was written before")
    parser.add_argument("-o", "--output", type=Path, help="where to write the list")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        run = Run(args.programs.resolve(), Path(work))
        everything(run, args.shared, args.quick)
    found = run.hashes
    if args.output:
        args.output.write_text("".join(f"{sha}  {name}\n" for name, sha in sorted(found.items())))
    print(f"{len(found)} files and JSON values")
    if not args.compare:
        return 0
    before = {name: sha for sha, name in (line.split("  ", 1) for line in args.compare.read_text().splitlines())}
    different = sorted(n for n in before.keys() | found.keys() if before.get(n) != found.get(n))
    for name in different:
        what = "missing" if name not in found else "new" if name not in before else "different"
        print(f"{what}: {name}")
    print(f"{len(before.keys() & found.keys()) - sum(n in before and n in found for n in different)} the same, {len(different)} not")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
