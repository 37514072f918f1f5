#!/usr/bin/env python3
"""Puts ONNX Runtime's build for NVIDIA GPUs, and the libraries that it needs beside the driver, into .ort/gpu/.

Packages, the hashes of their wheels and the files are pinned in gpu-libraries.txt. Wheels are unpacked one by one, not installed,
and removed again; what is there already in the pinned version is not fetched anew, so an interrupted call goes on where it
stopped. Needs Python 3 with pip, 1.5 GB to fetch and 2.4 GB of disk. For a machine without a network, copy the contents of .ort/
next to the programs.

CUDA, cuBLAS, cuRAND, cuDNN and TensorRT for RTX come under NVIDIA's licences, not under this project's.
"""
import fnmatch
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / ".ort" / "gpu"
STAMP = TARGET / "VERSION"
# NVIDIA's wheels name older bases than ONNX Runtime's; pip under another Python or platform takes these all the same.
PLATFORMS = ["manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"]


def wanted():
    """Each package with its hash, and with the files wanted of it: (pattern, name or none)."""
    version, packages, hashes = (ROOT / "ONNXRUNTIME_VERSION").read_text().strip(), {}, {}
    for line in (ROOT / "scripts" / "gpu-libraries.txt").read_text().splitlines():
        words = line.replace("$ONNXRUNTIME_VERSION", version).split()
        if not words or words[0].startswith("#"):
            continue
        if line[0].isspace():
            packages[package].append((words[0], words[1] if len(words) > 1 else None))
        else:
            package, hashes[words[0]] = words
            packages[package] = []
    return packages, hashes


def download(package, sha256, folder):
    requirements = Path(folder) / "requirements.txt"
    requirements.write_text(f"{package} --hash={sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "--require-hashes", "--python-version", "3.11", "--dest", folder]
    for name in PLATFORMS:
        command += ["--platform", name]
    if subprocess.run(command + ["--requirement", requirements]).returncode:
        sys.exit(f"{package} could not be fetched, or is not the wheel that gpu-libraries.txt pins")
    return next(Path(folder).glob("*.whl"))


def unpack(wheel, files, folder):
    """Unpacks the files into the target, each whole or not at all; gives their bytes."""
    total = 0
    with zipfile.ZipFile(wheel) as archive:
        for pattern, name in files:
            inside = [i for i in archive.infolist() if fnmatch.fnmatchcase(i.filename.rsplit("/", 1)[-1], pattern)]
            if not inside or (name and len(inside) != 1):
                sys.exit(f"{wheel.name}: {len(inside)} files are called {pattern}")
            for member in inside:
                part = Path(folder) / "library"
                with archive.open(member) as source, open(part, "wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
                part.replace(TARGET / (name or member.filename.rsplit("/", 1)[-1]))
                total += member.file_size
    return total


def main():
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit("the GPU's libraries are pinned for Linux on x86-64 alone")
    TARGET.mkdir(parents=True, exist_ok=True)
    packages, hashes = wanted()
    state = {package: " ".join([package, *(f"{p}={n or p}" for p, n in files)]) for package, files in packages.items()}
    there = STAMP.read_text().splitlines() if STAMP.is_file() else []
    done = [line for line in state.values() if line in there]
    for package, files in packages.items():
        if state[package] in done:
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=TARGET) as folder:
            wheel = download(package, hashes[package], folder)
            fetched, unpacked = wheel.stat().st_size, unpack(wheel, files, folder)
        done.append(state[package])
        STAMP.write_text("".join(f"{line}\n" for line in done))
        seconds = time.monotonic() - started
        print(f"{package}: {fetched / 1e6:.0f} MB fetched, {unpacked / 1e6:.0f} MB unpacked, {seconds:.0f} s",
              file=sys.stderr)


if __name__ == "__main__":
    main()
