"""The whole model in PyTorch on a GPU, and the card's rates of matrix products.

python torch_gpu.py rates RECORD.json [--device cuda] [--size 8192]
python torch_gpu.py model RECORD.json CHECKPOINT COHORTS eager|compile|graphs [--device cuda] [--dtype fp16] [--tokens 256,512]

`model`: sizes from CHECKPOINT's configurations, seeded random weights made on the card, scaled_dot_product_attention, static
shapes. `compile` is torch.compile(fullgraph, dynamic=False), `graphs` the same with mode="reduce-overhead" (CUDA graphs). Stages are
timed on the card's own clock (CUDA events) on inputs that lie there; `passes` is a whole answer by the clock: float32 volume and ids
from pinned memory, logits back; `end` the same over COHORTS/cohort-TOKENS.csv from the scans' files, read and conformed by MONAI on
a thread ahead. Medians after a warm-up that is told apart. What is in the record already is not measured again.
"""
import argparse
import csv
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from torch_gpu_model import Adapter, Heads, Text, Vision

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Clock:
    """Milliseconds of a call: a first one by itself, then the median of `times` after `warm` more."""

    def __init__(self, device, warm, times, before=lambda: None):
        self.cuda, self.warm, self.times, self.before = device == "cuda", warm, times, before

    def wait(self):
        if self.cuda:
            torch.cuda.synchronize()

    def wall(self, run):
        self.wait()
        begun = time.perf_counter()
        self.before()
        run()
        self.wait()
        return (time.perf_counter() - begun) * 1e3

    def events(self, run):
        if not self.cuda:
            return self.wall(run)
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.before()
        begun.record()
        run()
        ended.record()
        ended.synchronize()
        return begun.elapsed_time(ended)

    def measure(self, run, one):
        first = self.wall(run)
        for _ in range(self.warm):
            self.wall(run)
        found = [one(run) for _ in range(self.times)]
        return {"ms": statistics.median(found), "least": min(found), "most": max(found), "first_ms": first}


class Record:
    """A file that is whole after each thing measured."""

    def __init__(self, path):
        self.path, self.found = path, json.loads(path.read_text()) if path.exists() else {}

    def add(self, name, measure):
        if "ms" in self.found.get(name, {}) or "tflops" in self.found.get(name, {}):
            return
        begun = time.perf_counter()
        try:
            self.found[name] = measure()
        except Exception as error:
            # A compiler's first line only says which compiler it was.
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            self.found[name] = {"error": f"{type(error).__name__}: {' '.join(lines[:2])}"[:300]}
        print(f"  {name}: {self.found[name]} ({time.perf_counter() - begun:.1f} s)", flush=True)
        whole = self.path.with_suffix(".part")
        whole.write_text(json.dumps(self.found) + "\n")
        whole.replace(self.path)


def rates(args, record):
    """Operations a second of square products, the median of 20 after a warm-up; random values, for zeros are faster."""
    n, clock = args.size, Clock(args.device, 5, 20)

    def product(dtype, tf32):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(n, n, device=args.device).to(dtype) for _ in range(2))
        found = clock.measure(lambda: a @ b, clock.events)
        return found | {"tflops": 2 * n**3 / found["ms"] / 1e9, "size": n}

    def integers():
        a, b = (torch.randint(-127, 127, (n, n), dtype=torch.int8, device=args.device) for _ in range(2))
        found = clock.measure(lambda: torch._int_mm(a, b.t()), clock.events)
        return found | {"tflops": 2 * n**3 / found["ms"] / 1e9, "size": n}

    half = torch.float16 if args.device == "cuda" else torch.bfloat16
    record.add("fp16", lambda: product(half, False))
    record.add("tf32", lambda: product(torch.float32, True))
    record.add("fp32", lambda: product(torch.float32, False))
    record.add("int8", integers)


def conforming(config, device):
    """A scan's file to the model's input, float32 [1, size, size, size] in its axis order."""
    from scan import monai

    read = monai(config["volume"]["size"], config["volume"]["voxel_mm"])
    pinned = (lambda x: x.pin_memory()) if device == "cuda" else (lambda x: x)
    # MetaTensor would follow every operation.
    return lambda path: pinned(read(path).as_tensor().permute(0, 3, 2, 1).contiguous())


def model(args, record):
    config = json.loads((args.checkpoint / "config.json").read_text())
    llama = json.loads((args.checkpoint / "llama/config.json").read_text())
    device, dtype, lengths = args.device, DTYPES[args.dtype], [int(n) for n in args.tokens.split(",")]
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        parts = Adapter(config), Vision(config), Text(llama, max(lengths)), Heads(config)
    torch.set_default_dtype(torch.float32)
    parts = [part.eval().requires_grad_(False) for part in parts]
    before = lambda: None
    if args.form != "eager":
        mode = "reduce-overhead" if args.form == "graphs" else "default"
        parts = [torch.compile(part, mode=mode, dynamic=False, fullgraph=True) for part in parts]
        before = torch.compiler.cudagraph_mark_step_begin
    adapter, vision, text, heads = parts
    clock = Clock(device, args.warm, args.times, before)
    size, depth = config["volume"]["size"], config["adapter"]["out"]
    x = torch.rand(1, size, size, size, device=device, dtype=dtype)
    slices = torch.rand(1, depth, size, size, device=device, dtype=dtype)
    seen = torch.rand(1, config["vision"]["hidden"], device=device, dtype=dtype)
    read = torch.rand(1, llama["hidden_size"], device=device, dtype=dtype)
    ids = {n: (torch.arange(n)[None] * 37) % (llama["vocab_size"] - 3) + 3 for n in lengths}
    host = torch.rand(1, size, size, size)
    on_card = {n: i.to(device) for n, i in ids.items()}
    if device == "cuda":
        host, ids = host.pin_memory(), {n: i.pin_memory() for n, i in ids.items()}

    def answer(volume, words):
        image = vision(adapter(volume.to(device, non_blocking=True).to(dtype)))
        return heads(image, text(words.to(device, non_blocking=True))).float().cpu()

    def stage(name, run):
        record.add(name, lambda: clock.measure(run, clock.events))

    def end(tokens):
        conform = conforming(config, device)
        with open(args.cohorts / f"cohort-{tokens}.csv", newline="") as file:
            paths = [args.cohorts / row["scan"] for row in csv.DictReader(file)]
        times, last = [], time.perf_counter()
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(conform, paths[0])
            for i in range(len(paths)):
                volume = coming.result()
                if i + 1 < len(paths):
                    coming = ahead.submit(conform, paths[i + 1])
                before()
                answer(volume, ids[tokens])
                last, now = time.perf_counter(), last
                times.append((last - now) * 1e3)
        # The same rows are left out as of ours.
        steady = times[args.skip:] or times[-1:]
        return {"ms": statistics.median(steady), "least": min(steady), "most": max(steady), "first_ms": times[0]}

    with torch.inference_mode():
        stage("adapter", lambda: adapter(x))
        stage("vision", lambda: vision(slices))
        for n in lengths:
            stage(f"text {n}", lambda: text(on_card[n]))
        stage("heads", lambda: heads(seen, read))
        for n in lengths:
            record.add(f"passes {n}", lambda: clock.measure(lambda: answer(host, ids[n]), clock.wall))
        for n in lengths:
            record.add(f"end {n}", lambda: end(n))


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("what", choices=["rates", "model"])
    arguments.add_argument("record", type=Path)
    arguments.add_argument("checkpoint", type=Path, nargs="?")
    arguments.add_argument("cohorts", type=Path, nargs="?")
    arguments.add_argument("form", choices=["eager", "compile", "graphs"], nargs="?")
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--dtype", choices=DTYPES, default="fp16")
    arguments.add_argument("--tokens", default="256,512")
    arguments.add_argument("--size", type=int, default=8192)
    arguments.add_argument("--warm", type=int, default=5)
    arguments.add_argument("--times", type=int, default=20)
    arguments.add_argument("--skip", type=int, default=3, help="first rows of a cohort that are not counted")
    args = arguments.parse_args()
    record = Record(args.record)
    {"rates": rates, "model": model}[args.what](args, record)
    # A package that is not there is told in its row; all else that goes wrong ends in the exit status.
    wrong = [f"{name}: {found['error']}" for name, found in record.found.items() if "error" in found]
    wrong = [line for line in wrong if "ModuleNotFoundError" not in line]
    sys.exit("Error: " + "; ".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
