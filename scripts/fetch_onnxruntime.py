#!/usr/bin/env python3
"""Puts ONNX Runtime's shared library into .ort/, out of the PyPI wheel, in the version that ONNXRUNTIME_VERSION pins.

The wheel must have one of the hashes in onnxruntime-requirements.txt, and the library one of those in
src/runtime/pinned.txt (scripts/pin.py writes both). Needs Python 3 with pip, and nothing else: the wheel is unpacked here, not
installed. For a machine without a network, copy the library next to the programs.
"""
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION = (ROOT / "ONNXRUNTIME_VERSION").read_text().strip()
REQUIREMENTS = ROOT / "scripts" / "onnxruntime-requirements.txt"
PINNED = ROOT / "src" / "runtime" / "pinned.txt"
TARGET = ROOT / ".ort"
NAMES = {"Linux": "libonnxruntime.so", "Darwin": "libonnxruntime.dylib", "Windows": "onnxruntime.dll"}
# pip may run under a Python for which there is no wheel; the library inside does not depend on Python.
LINUX = {"x86_64": "manylinux_2_28_x86_64", "aarch64": "manylinux_2_28_aarch64"}


def download(folder):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "--require-hashes", "--python-version", "3.11", "--dest", folder]
    if platform.system() == "Linux":
        command += ["--platform", LINUX[platform.machine()]]
    if subprocess.run(command + ["--requirement", REQUIREMENTS]).returncode:
        sys.exit(f"the wheel of ONNX Runtime {VERSION} could not be fetched, or is not one of {REQUIREMENTS.name}")
    return next(Path(folder).glob("*.whl"))


def is_pinned(library):
    with open(library, "rb") as file:
        sha256 = hashlib.sha256()
        while piece := file.read(1 << 20):
            sha256.update(piece)
    return any(line.startswith(f"{sha256.hexdigest()} ") for line in PINNED.read_text().splitlines())


def is_library(name):
    file = name.rsplit("/", 1)[-1]
    return file.startswith(("libonnxruntime.so", "libonnxruntime.1", "libonnxruntime.dylib", "onnxruntime.dll"))


def main():
    library, stamp = TARGET / NAMES[platform.system()], TARGET / "VERSION"
    if library.is_file() and stamp.is_file() and stamp.read_text() == VERSION and is_pinned(library):
        return
    if f"onnxruntime=={VERSION} " not in REQUIREMENTS.read_text():
        sys.exit(f"{REQUIREMENTS.name} pins another version than {VERSION}: run scripts/pin.py")
    print(f"fetching ONNX Runtime {VERSION}", file=sys.stderr)
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TARGET) as folder:
        with zipfile.ZipFile(download(folder)) as wheel:
            inside = [n for n in wheel.namelist() if is_library(n)]
            if len(inside) != 1:
                sys.exit(f"expected one library in the wheel, found {inside}")
            with wheel.open(inside[0]) as source, open(Path(folder) / "library", "wb") as out:
                shutil.copyfileobj(source, out)
        if not is_pinned(Path(folder) / "library"):
            sys.exit(f"{inside[0]} in the wheel is none of the libraries in {PINNED.name}")
        (Path(folder) / "library").replace(library)
    stamp.write_text(VERSION)


if __name__ == "__main__":
    main()
