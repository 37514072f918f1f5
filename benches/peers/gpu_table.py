"""The tables of benches/gpu.sh, from its records: python gpu_table.py RESULTS [--dry] [--write PAGE.md]

Prints Markdown; with --write it goes between the page's markers too. What was not measured says why, in the tool's own words.
"""
import argparse
import json
import statistics
from pathlib import Path

import gpu_flops
import gpu_sections as sections

BEGIN, END = "<!-- benches/gpu.sh: begin; generated, edits are lost -->", "<!-- benches/gpu.sh: end -->"
LENGTHS = (256, 512)
COLUMNS = ["adapter", "vision", "text 256", "text 512", "heads", "passes 256", "passes 512", "end 256", "end 512"]
# Rows of ours that are not counted: graphs are loaded, kernels chosen, memory taken.
SKIP = 3
# Our way: its device, and the rate that its products run at.
WAYS = {
    "cuda-fp16": ("cuda", "fp16"), "tensorrt-fp16": ("tensorrt", "fp16"), "tensorrt-rtx-fp16": ("tensorrt-rtx", "fp16"),
    "tensorrt-int8": ("tensorrt", "int8"), "tensorrt-rtx-int8": ("tensorrt-rtx", "int8"),
    # Weights alone are int8.
    "cuda-int8": ("cuda", "fp16"), "cuda-fp32": ("cuda", "tf32"),
}
FORMS = {"eager": "PyTorch eager", "compile": "torch.compile", "graphs": "torch.compile, reduce-overhead"}


class Results:
    """The records of a folder, by name."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def get(self, name):
        path = self.folder / f"{name}.json"
        try:
            return json.loads(path.read_text())
        except (OSError, json.JSONDecodeError):
            return {}

    def named(self, pattern):
        return {path.stem: self.get(path.stem) for path in sorted(self.folder.glob(f"{pattern}.json"))}


def steady(record):
    """Milliseconds by stage of a cohort's rows after the first: medians."""
    rows = [row for row in record.get("told", []) if "timing_ms" in row]
    rows = rows[SKIP:] or rows[-1:]
    if not rows:
        return {"why": record.get("error", "not run")}
    if "error" in record:
        return {"why": record["error"]}
    if any(row.get("run", {}).get("from_cache") for row in rows):
        return {"why": "not measured: features came from the cache"}
    found, median = {}, lambda pick: statistics.median(pick(row) for row in rows)
    for stage in ("adapter", "vision", "text", "heads"):
        found[stage] = median(lambda row: row["timing_ms"].get(stage, float("nan")))
    found["passes"] = median(lambda row: sum(row["timing_ms"].get(s, float("nan")) for s in ("adapter", "vision", "text", "heads")))
    found["end"] = median(lambda row: row["run"].get("wall_ms") or float("nan"))
    return found


def ours(results, way):
    """A row: stage to milliseconds, or why not."""
    row, whys = {}, []
    for n in LENGTHS:
        # Stages one after the other; whole answers as a user gets them, where report and image may be computed at once.
        alone, whole = steady(results.get(f"alone-{way}-{n}")), steady(results.get(f"time-{way}-{n}"))
        whys += [found["why"] for found in (whole, alone) if "why" in found]
        if "why" not in whole:
            row[f"end {n}"] = whole["end"]
        if "why" not in alone:
            row |= {f"text {n}": alone["text"], f"passes {n}": alone["passes"]}
            row |= {stage: min(alone[stage], row.get(stage, alone[stage])) for stage in ("adapter", "vision", "heads")}
    # The first step that failed tells more than those that were not tried after it.
    before = [f"probe-{WAYS[way][0]}", f"export-{way_precision(way)}", f"start-{way}-cold", f"start-{way}-warm"]
    earlier = [record["error"] for record in map(results.get, before) if "error" in record]
    if whys:
        row["why"] = (earlier + [why for why in whys if why != "not run"] + ["not run"])[0]
    return row


def way_precision(way):
    device, _, precision = way.rpartition("-")
    return precision if precision != "int8" else "int8-" + device.split("-")[0]


def torch(results, form):
    """A row of PyTorch's: the better of what was measured before ours and after."""
    row, whys = {}, []
    for again in ("", "-again"):
        record = results.get(f"torch-{form}{again}")
        for column in COLUMNS:
            found = record.get(column, {})
            if "ms" in found:
                row[column] = min(found["ms"], row.get(column, found["ms"]))
            elif "error" in found:
                whys.append(f"{column}: {found['error']}")
    if any(column not in row for column in COLUMNS):
        run = results.get(f"torch-{form}-run")
        row["why"] = whys[0] if whys else run.get("error", "not run")
    return row


def rows_of(results):
    rows = {f"ours, {way}": ours(results, way) for way in WAYS}
    return rows | {f"{name} fp16": torch(results, form) for form, name in FORMS.items()}


def document(results, dry):
    rows = rows_of(results)
    flops = gpu_flops.of(results.get("model"), results.get("llama"))
    rates = results.get("rates")
    parts = [
        sections.circumstances(results, dry),
        sections.rates(rates),
        sections.milliseconds(rows, COLUMNS),
        sections.ratios(rows, COLUMNS, FORMS),
        sections.shares(rows, COLUMNS[:7], flops, rates, {f"ours, {way}": rate for way, (_, rate) in WAYS.items()}),
        # A dry run reaches no goal.
        "" if dry else sections.goals(rows, flops, rates, FORMS),
        sections.starts(results, WAYS),
        sections.first_runs(results, COLUMNS[:5], FORMS),
        sections.parity(results, dry),
        sections.placement(results, WAYS),
        sections.exits(results),
        sections.notes(results, SKIP),
    ]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


def write(page, text):
    whole = page.read_text()
    before, rest = whole.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    page.write_text(f"{before}{BEGIN}\n\n{text.rstrip()}\n\n{END}{after}")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("results")
    arguments.add_argument("--dry", action="store_true")
    arguments.add_argument("--write", type=Path)
    args = arguments.parse_args()
    text = document(Results(args.results), args.dry)
    print(text, end="")
    if args.write:
        write(args.write, text)


if __name__ == "__main__":
    main()
