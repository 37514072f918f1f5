"""Runs one command and writes down how it went: python gpu_run.py [OPTIONS] RECORD.json -- COMMAND...

The record: exit status or signal, seconds to the last answer and to the end of the process, the lines of JSON that it printed, the
card's memory before and at most (NVML, every 20 ms), and, where it failed, its own words. The exit status is the command's.
"""
import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.02


class Memory(ctypes.Structure):
    """NVML's nvmlMemory_t, bytes."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class CardMemory:
    """MiB in use on one card: before, and the most since. All processes' together: in containers NVML does not tell whose."""

    def __init__(self, card):
        self.before = self.most = None
        self.ended = threading.Event()
        try:
            self.nvml, self.handle = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
            self.ask("nvmlInit_v2")
            self.ask("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(int(card)), ctypes.byref(self.handle))
            self.before = self.most = self.used()
        except (OSError, ValueError) as error:
            self.why = f"not measured: {error}"
            return
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def ask(self, function, *arguments):
        status = getattr(self.nvml, function)(*arguments)
        if status != 0:
            raise OSError(f"{function} gave {status}")

    def used(self):
        memory = Memory()
        self.ask("nvmlDeviceGetMemoryInfo", self.handle, ctypes.byref(memory))
        return memory.used / 2**20

    def read(self):
        while not self.ended.wait(POLL_S):
            self.most = max(self.most, self.used())

    def done(self):
        if self.before is None:
            return {"why": self.why}
        self.ended.set()
        self.reader.join()
        return {"before_mib": self.before, "peak_mib": self.most, "used_mib": self.most - self.before}


def published(text):
    """The records are published: where folders lie is nobody's business."""
    places = [(str(ROOT), ".")] + [(os.environ.get(name, ""), name) for name in ("WORK", "RESULTS", "HOME", "TMPDIR")]
    for place, name in sorted(places, key=lambda p: -len(p[0])):
        if len(place) > 1:
            text = text.replace(place, name)
    return text


def drop_from_page_cache(folder):
    """Pages that are clean go at once; a hint that needs no rights."""
    os.sync()
    for path in (p for p in Path(folder).rglob("*") if p.is_file()):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reason(told, errors):
    """Why it failed: its own error where it printed one, else the last line of stderr that is one."""
    for line in reversed(told):
        if isinstance(line, dict) and isinstance(line.get("error"), dict):
            return f"{line['error'].get('code')}: {line['error'].get('message')}"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    named = [line for line in lines if line.lower().startswith("error") or "Error:" in line]
    return (named or lines or ["it said nothing"])[-1]


def run(command, record, limit, device):
    """Starts the command and reads what it prints."""
    begun = time.perf_counter()
    stderr = record.with_suffix(".stderr")
    told, found = [], {"command": [published(word) for word in command]}
    with open(stderr, "wb") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace")
        late = threading.Timer(limit, child.kill)
        # An interrupted run must not wait for it.
        late.daemon = True
        late.start()
        try:
            for line in child.stdout:
                try:
                    told.append(json.loads(line))
                except json.JSONDecodeError:
                    continue
                found["answer_s"] = round(time.perf_counter() - begun, 4)
            status = child.wait()
        except KeyboardInterrupt:
            child.kill()
            raise
        found["seconds"] = round(time.perf_counter() - begun, 4)
        timed_out = not late.is_alive()
        late.cancel()
    found |= {"exit": status, "told": told}
    if status < 0:
        found["signal"] = signal.Signals(-status).name
    if status != 0:
        said = published(reason(told, stderr.read_text(errors="replace")))
        found["error"] = f"not done within {limit} s" if timed_out else f"{found.get('signal', f'exit {status}')}: {said}"
    elsewhere = {line["device"] for line in told if isinstance(line, dict) and line.get("device", device) != device}
    if device and status == 0 and elsewhere:
        found["error"] = f"asked for {device}, it ran on {', '.join(sorted(elsewhere))}"
    return found


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--card", default="0")
    arguments.add_argument("--limit", type=float, default=1800, help="seconds after which it is ended")
    arguments.add_argument("--device", help="what the answers must say that they were computed on")
    arguments.add_argument("--cold", action="append", default=[], help="a folder whose files leave the page cache first")
    arguments.add_argument("record", type=Path)
    arguments.add_argument("command", nargs=argparse.REMAINDER)
    args = arguments.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    args.record.unlink(missing_ok=True)
    for folder in args.cold:
        drop_from_page_cache(folder)
    memory = CardMemory(args.card)
    found = run(command, args.record, args.limit, args.device)
    found["memory"] = memory.done()
    whole = args.record.with_suffix(".part")
    whole.write_text(json.dumps(found) + "\n")
    whole.replace(args.record)
    if "error" in found:
        print(f"  failed: {found['error'][:500]}", file=sys.stderr)
    status = found["exit"] or int("error" in found)
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
