#!/usr/bin/env python3
"""csv_dialects.py FOLDER COUNT SEED: writes COUNT lists with Python's csv module, in random dialects and encodings, and prints as JSON what
its reader finds in each: [{"file", "rows": [{"scan", "report", "others": [[name, cell], ...]}]}].

What ba-infer's reader adds to that is applied here in Python's words: cells are stripped, blank rows are none, n/a is no report."""
import csv, io, json, random, sys

folder, count, rng = sys.argv[1], int(sys.argv[2]), random.Random(int(sys.argv[3]))
WORDS = ["a", "b7", "71,5", "0;3", "x|y", "t\tz", 'a "quoted" word', "", "Größe", "日本", "\U0001f9e0", "two\nlines", "=1+1", "'", "007", "1.0", "a, b; c"]
NAMES = ["age", "sex", "Größe", "mmse,total", "note;2", "x|y", "site id", "scan_date", "日付"]


def cell():
    return "".join(rng.choice(WORDS) for _ in range(rng.randint(0, 2))).strip()


def table():
    names = ["scan", "report"] + rng.sample(NAMES, rng.randint(0, 4))
    rng.shuffle(names)
    pad = rng.randint(0, 2)
    rows = [[spelled(n) for n in names] + [""] * pad]
    for i in range(rng.randint(1, 8)):
        cells = {"scan": f"s{i} {cell()}.nii".replace("\n", " "), "report": rng.choice(["", "n/a", "NaN", f"r{cell()}.txt"])}
        rows.append([cells.get(n, cell()) for n in names] + [""] * rng.randint(0, pad))
        if rng.random() < 0.2:
            rows.append([""] * rng.randint(1, len(names)))
    return rows


def spelled(name):
    if name not in ("scan", "report"):
        return name
    return " " * rng.randint(0, 1) + rng.choice([name, name.upper(), name.capitalize()]) + " " * rng.randint(0, 2)


found = []
for i in range(count):
    delimiter = rng.choice(",;\t|")
    end = rng.choice(["\n", "\r\n", "\r"])
    # Before Python 3.13 the writer leaves a line break without quotes where rows end in another.
    quoting = rng.choice([csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC] + [csv.QUOTE_MINIMAL] * (end != "\r"))
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(table())
    text = text.getvalue()
    header, *rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    known = [h.strip().lower() for h in header]
    others = [(k, h) for k, h in enumerate(header) if known[k] not in ("scan", "report", "")]
    scan, report = known.index("scan"), known.index("report")
    rows = [[c.strip() for c in r] for r in rows]
    rows = [r for r in rows if any(r)]
    expected = [dict(scan=r[scan], report=None if r[report].lower() in ("", "n/a", "nan") else r[report], others=[[h, r[k]] for k, h in others]) for r in rows]
    if rng.random() < 0.2:
        text = f"sep={delimiter}{end}" + text
    encoding = rng.choice(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
    open(f"{folder}/{i}.csv", "wb").write(text.encode(encoding))
    found.append(dict(file=f"{i}.csv", how=[delimiter, end, encoding], rows=expected))
json.dump(found, sys.stdout)
