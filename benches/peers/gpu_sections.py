"""The sections of the GPU's tables: each a function from records to Markdown."""
import math
import re

# What is counted as the same rate: a floor that is not above it.
RATES = {"fp16": "fp16", "tf32": "float32 by TF32", "fp32": "float32", "int8": "int8 (`torch._int_mm`)"}
MISSING = "-"


def table(head, rows):
    """Columns of numbers to the right, others to the left."""
    lines = [[str(cell).replace("|", "/").replace("\n", " ") for cell in line] for line in [head] + rows]
    numbers = [all(line[i] in ("", MISSING) or line[i][0] in "0123456789.+" for line in lines[1:]) for i in range(len(head))]
    lines.insert(1, ["--:" if right else "---" for right in numbers])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value, digits=3):
    """So many digits that count."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(places, 6)}f}"


def wanted(column):
    """A column's heading."""
    name, _, tokens = column.partition(" ")
    name = {"end": "end to end", "passes": "all passes"}.get(name, name)
    return f"{name}, {tokens} tokens" if tokens else name


def circumstances(results, dry):
    facts = results.get("facts")
    read = lambda name: (results.folder / name).read_text().splitlines() if (results.folder / name).exists() else []
    join = lambda pairs: ", ".join(f"{name} {value}" for name, value in pairs.items())
    lines = []
    if dry:
        lines.append("**Dry run with a tiny model: the figures mean nothing. Rows are named as on a card; all ran on the CPU, PyTorch in float32.**\n")
    lines += [f"* date: {facts.get('date', 'unknown')}, commit {facts.get('commit', 'unknown')}"]
    card = dict(facts.get("card", {}))
    name = card.pop("name", "unknown")
    lines += [f"* card: {name}{', ' + join(card) if card else ''}", f"* machine: {facts.get('machine', 'unknown')}"]
    lines += [f"* ours with: {join(facts.get('libraries', {}))}", f"* peers: {join(facts.get('peers', {}))}"]
    lines += [f"* model: {', '.join(read('of')) or 'unknown'}; seeded random weights"]
    # Where things lie on somebody's machine is nobody's business.
    commands = dict.fromkeys(re.sub(r"(?<=[ =])/\S+", "PATH", command) for command in read("commands"))
    lines += ["* command: " + ", then ".join(f"`{command}`" for command in commands)]
    return "\n".join(lines)


def rates(found):
    rows = []
    for key, name in RATES.items():
        one = found.get(key, {})
        size = one.get("size")
        value = number(one["tflops"]) if "tflops" in one else one.get("error", "not run")
        rows.append([f"{name}, {size}³" if size else name, value])
    return "Rates of square matrix products, PyTorch, random values (TFLOP/s, TOP/s for int8):\n\n" + table(["product", "rate"], rows)


def milliseconds(rows, columns):
    body = []
    for name, row in rows.items():
        body.append([name] + [number(row.get(column)) for column in columns] + [row.get("why", "")])
    head = ["milliseconds per scan"] + [wanted(c) for c in columns] + ["what is missing, and why"]
    return table(head, body)


def fastest_compiled(rows, column, forms):
    found = [rows.get(f"{forms[form]} fp16", {}).get(column) for form in ("compile", "graphs")]
    return min((value for value in found if value is not None), default=None)


def ratio(theirs, own):
    return theirs / own if theirs is not None and own else None


def ratios(rows, columns, forms):
    body = []
    for name, row in rows.items():
        if not name.startswith("ours"):
            continue
        if all(column not in row for column in columns):
            body.append([name, "not run: see above"] + [MISSING] * len(columns))
            continue
        eager = [ratio(rows[f"{forms['eager']} fp16"].get(c), row.get(c)) for c in columns]
        compiled = [ratio(fastest_compiled(rows, c, forms), row.get(c)) for c in columns]
        body.append([name, "PyTorch eager"] + [number(r) for r in eager])
        body.append([name, "torch.compile, its faster mode"] + [number(r) for r in compiled])
    head = ["times as fast"] + ["as"] + [wanted(c) for c in columns]
    return "Times PyTorch's speed (above 1: ours is faster):\n\n" + table(head, body)


def share(row, column, flops, rate):
    """Achieved operations a second over the card's rate."""
    ms, operations, tflops = row.get(column), flops.get(column), (rate or {}).get("tflops")
    return operations / ms / 1e9 / tflops if ms and operations and tflops else None


def shares(rows, columns, flops, rates, own_rates):
    body = []
    for name, row in rows.items():
        key = own_rates.get(name, "fp16")
        found = [share(row, column, flops, rates.get(key)) for column in columns]
        if any(value is not None for value in found):
            # More than all there is was not computed in that time: then a clock or a rate is wrong.
            cells = [MISSING if v is None else number(v * 100) + (" (impossible)" if v > 1 else "") for v in found]
            body.append([f"{name} (of {RATES[key]})"] + cells)
    if not body:
        return "Share of the card's rate: not known, for times, sizes or rates were not measured."
    head = ["% of the rate"] + [f"{wanted(c)}" for c in columns]
    work = ["operations, GFLOP"] + [number(flops[c] / 1e9) if flops.get(c) else MISSING for c in columns]
    return "Share of the card's measured rate (operations of the stage over time and rate):\n\n" + table(head, [work] + body)


def goals(rows, flops, rates, forms):
    body = []

    def goal(what, value, least, unit):
        met = "not known" if value is None else "met" if value >= least else "**not met**"
        body.append([what, f"at least {least} {unit}", f"{number(value)} {unit}" if value is not None else "not measured", met])

    for way in ("cuda-fp16", "tensorrt-fp16", "tensorrt-rtx-fp16"):
        row = rows[f"ours, {way}"]
        if "why" in row and way != "cuda-fp16":
            continue
        for column in ("end 256", "end 512", "passes 256", "passes 512"):
            goal(f"{way}: {wanted(column)}, against torch.compile", ratio(fastest_compiled(rows, column, forms), row.get(column)), 1.5, "times")
        for column in ("vision", "text 256", "text 512"):
            value = share(row, column, flops, rates.get("fp16"))
            goal(f"{way}: {wanted(column)}, share of the fp16 rate", value * 100 if value is not None else None, 50, "%")
    return table(["goal", "aimed at", "measured", ""], body)


def planned(record):
    """MiB that `ba-infer` expected to take on the card."""
    runs = [line["run"] for line in record.get("told", []) if "run" in line]
    memory = (runs[-1].get("gpu_memory_bytes") or {}) if runs else {}
    return f"{memory['planned'] / 2**20:.0f}" if "planned" in memory else MISSING


def mib(memory):
    if "used_mib" in memory:
        return f"{memory['used_mib']:.0f}"
    return memory.get("why", MISSING)


def starts(results, ways):
    body = []
    for way in ways:
        for temperature in ("cold", "warm"):
            record = results.get(f"start-{way}-{temperature}")
            if not record:
                continue
            timing = next((line["timing_ms"] for line in record.get("told", []) if "timing_ms" in line), {})
            parts = ", ".join(f"{stage} {number(ms / 1e3)}" for stage, ms in timing.items() if stage != "total")
            body.append([f"ours, {way}, one scan, {temperature}", number(record.get("answer_s")), number(record.get("seconds")),
                         mib(record.get("memory", {})), planned(record), record.get("error", parts)])
        record = results.get(f"time-{way}-512")
        if record:
            body.append([f"ours, {way}, a cohort, 512 tokens", MISSING, number(record.get("seconds")),
                         mib(record.get("memory", {})), planned(record), record.get("error", "")])
    for name, record in results.named("torch-*-run").items():
        body.append([f"PyTorch, {name.removeprefix('torch-').removesuffix('-run')}, all its measurements", MISSING,
                     number(record.get("seconds")), mib(record.get("memory", {})), MISSING, record.get("error", "")])
    if not body:
        return "Starts and memory: not run."
    head = ["process", "s to the answer", "s to its end", "card's memory taken, MiB", "planned", "its seconds, or what failed"]
    return "Starts (cold: page cache and our caches empty, engines are built; warm: the second call) and memory:\n\n" + table(head, body)


def first_runs(results, columns, forms):
    """What a warm-up of PyTorch's costs: it is not in the other tables."""
    body = []
    for form, name in forms.items():
        record = results.get(f"torch-{form}")
        found = [record.get(column, {}).get("first_ms") for column in columns]
        if any(found):
            body.append([name] + [number(ms / 1e3) if ms else MISSING for ms in found])
    if not body:
        return ""
    return "PyTorch's first run of each, compiling included (s; compiled code of an earlier call may be found again):\n\n" + table(
        ["first run"] + [wanted(c) for c in columns], body)


def parity(results, dry):
    body = []
    stages = ("adapter", "vision", "text", "v", "t", "logits")
    for name, record in results.named("parity-*").items():
        way, _, model = name.removeprefix("parity-").partition("-fixture-")
        model = model or ("the dry run's" if dry else "full size")
        cells = []
        for stage in stages:
            found = record.get("stages", {}).get(stage, {})
            cells.append(f"{found['cosine']:.7f} / {found['max_abs']:.1e}" if "cosine" in found else found.get("error", MISSING))
        body.append([way.removesuffix("-full"), model] + cells + [record.get("error", "")])
    for name, record in results.named("fixture-*").items():
        if "error" in record:
            body.append([name.removeprefix("fixture-"), "fixture"] + [MISSING] * len(stages) + [record["error"]])
    if not body:
        return "Parity with float32 on the CPU: not run."
    head = ["with", "model"] + list(stages) + ["what failed"]
    return "Parity with float32 on the CPU (cosine over all values / largest absolute difference):\n\n" + table(head, body)


def placed(entry):
    """A part's providers with their nodes, whatever the form in which they are told."""
    entries = entry.get("providers", [entry])
    cells = []
    for one in entries:
        nodes, left = one.get("nodes"), one.get("left") or one.get("left_to_cpu") or []
        count = len(nodes) if isinstance(nodes, list) else nodes
        names = [f"{n.get('name', '?')} ({n.get('kind', '?')})" if isinstance(n, dict) else str(n) for n in left]
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        cells.append(f"{one.get('provider', '?')} {count}" + (f": left {shown}" if names else ""))
    return "; ".join(cells)


def placement(results, ways):
    body = []
    for way in ways:
        rows = [row for row in results.get(f"time-{way}-256").get("told", []) if "run" in row]
        if not rows:
            continue
        # The last row's: by then every graph was loaded.
        run = rows[-1]["run"]
        parts = [{"part": stage["part"], **stage["placement"]} for stage in run.get("stages", []) if stage.get("placement")]
        if not parts:
            body.append([way, MISSING, "`ba-infer` did not tell it"])
        merged = {}
        for entry in parts:
            merged.setdefault(entry.get("part", "?"), []).append(placed(entry))
        body += [[way, part, "; ".join(cells)] for part, cells in merged.items()]
    if not body:
        return "Which nodes ran where: not run."
    return "Which provider computed how many nodes:\n\n" + table(["with", "part", "nodes"], body)


def exits(results):
    records = {name: r for name, r in results.named("*").items() if isinstance(r, dict) and "exit" in r}
    wrong = [[name, record.get("signal", record["exit"]), record.get("error", "")] for name, record in records.items() if record["exit"] != 0]
    if not records:
        return "Exits: no process was run."
    text = f"Exits: {len(records) - len(wrong)} of {len(records)} processes ended with status 0."
    return text + ("\n\n" + table(["process", "ended with", "its words"], wrong) if wrong else "")


def drift(results):
    """The largest change between PyTorch's two measurements."""
    changes = []
    for name, again in results.named("torch-*-again").items():
        first = results.get(name.removesuffix("-again"))
        changes += [abs(found["ms"] / first[c]["ms"] - 1) for c, found in again.items() if "ms" in found and "ms" in first.get(c, {})]
    return max(changes, default=None)


def notes(results, skip):
    changed = drift(results)
    again = "PyTorch was measured once." if changed is None else (
        f"PyTorch was measured before ours and after, and the better counts; a stage's two differ by at most {changed * 100:.0f} %.")
    return "\n".join([
        f"* Ours: `ba-infer --list --mode resident`, medians over its scans without the first {skip}, all different. Stages: "
        "`timing_ms` of a process with `--threads 1`, which computes them one after the other; a run ends synchronized with the card, "
        "and the adapter's includes bringing the volume there. All passes: their sum. End to end: `wall_ms` of another process, from "
        "answer to answer, report and image at once where the card's memory allows, the scan's file read and conformed while the one "
        "before is computed.",
        "* PyTorch: fp16, static shapes, scaled_dot_product_attention. Stages by CUDA events on inputs that lie on the card, which "
        "favours its adapter; all passes by the clock, from float32 in pinned memory to logits on the host. End to end: MONAI reads and conforms on a thread ahead.",
        f"* {again}",
        "* Memory: what NVML shows for the whole card, less what was taken before the process began.",
        "* Weights are random: parity says that the arithmetic is right, not what reduced precision does to a trained model.",
    ])
