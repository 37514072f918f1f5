#!/usr/bin/env python3
"""Pins what is fetched: by SHA-256 for pip, and for the program that loads it. Run it after changing a version.

    python3 scripts/pin.py                        all of it; some GB to fetch, some minutes
    python3 scripts/pin.py test trt               these requirement files only
    python3 scripts/pin.py gpu libraries          gpu-libraries.txt, src/runtime/pinned.txt

A file NAME-requirements.txt pins what NAME-requirements.in asks for and everything that it needs in turn, with the hash of each
wheel that pip would choose for the Pythons and platforms below: `pip install --require-hashes` accepts nothing else. Hashes
are those of pip's own index (`pip install --dry-run --report`); versions are resolved for the first Python and kept for the
others. src/runtime/pinned.txt has the hashes of ONNX Runtime's libraries inside the wheels.

Needs Python 3.11 with pip: markers such as `python_version < "3.12"` are those of the Python that runs this.
"""
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
PINNED = ROOT / "src" / "runtime" / "pinned.txt"
VERSION = (ROOT / "ONNXRUNTIME_VERSION").read_text().strip()
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def linux(machine):
    """pip takes the names of platforms as they are: older bases have to be named too."""
    return [f"manylinux_2_{minor}_{machine}" for minor in range(40, 4, -1)] + [f"manylinux2014_{machine}"]


LINUX, ARM = linux("x86_64"), linux("aarch64")
MAC = [f"macosx_{major}_0_arm64" for major in range(15, 10, -1)] + ["macosx_10_9_universal2"]
WINDOWS, WINDOWS_ARM = ["win_amd64"], ["win_arm64"]
EVERYWHERE = [LINUX, ARM, MAC, WINDOWS, WINDOWS_ARM]
# Pythons and platforms of each requirement file.
FILES = {
    "onnxruntime": (PYTHONS[:1], EVERYWHERE),
    "test": (PYTHONS, [LINUX, ARM, MAC]),
    "ort119": (PYTHONS[:2], [LINUX]),
    "trt": (PYTHONS, [LINUX]),
    "bench": (PYTHONS[:3], [LINUX]),
    "bench-source": (PYTHONS[:1], [None]),
}


def pip(*arguments):
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def target(python, platform):
    names = [word for name in platform for word in ("--platform", name)]
    return ["--only-binary=:all:", "--python-version", python, *names]


def chosen(requirements, python, platform, more=()):
    """What pip would install: (name, version, SHA-256) of each package."""
    with tempfile.TemporaryDirectory() as folder:
        where = ["--target", folder, *target(python, platform)] if platform else ["--no-deps"]
        report = pip("install", "--dry-run", "--ignore-installed", "--report", "-", *where, *more, *requirements)
    packages = json.loads(report)["install"]
    return [(p["metadata"]["name"], p["metadata"]["version"], p["download_info"]["archive_info"]["hashes"]["sha256"])
            for p in packages]


def asked(name):
    lines = (SCRIPTS / f"{name}-requirements.in").read_text().splitlines()
    return [line.replace("$ONNXRUNTIME_VERSION", VERSION) for line in lines if line and not line.startswith("#")]


def pin(name):
    """Writes NAME-requirements.txt."""
    pythons, platforms = FILES[name]
    alone = ["--no-deps"] if name == "onnxruntime" else []
    pins = {}
    for python in pythons:
        for platform in platforms:
            # What is pinned already stays as it is for the other Pythons and platforms.
            held = [f"{package}=={version}" for package, (version, _) in pins.items()]
            with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
                constraints.write("\n".join(held))
                constraints.flush()
                found = chosen(asked(name), python, platform, [*alone, "-c", constraints.name])
            for package, version, sha256 in found:
                pins.setdefault(package, (version, set()))[1].add(sha256)
    text = f"# Made by scripts/pin.py from {name}-requirements.in: change that file, and run it.\n"
    for package in sorted(pins, key=str.lower):
        version, hashes = pins[package]
        text += f"{package}=={version}" + "".join(f" \\\n    --hash=sha256:{h}" for h in sorted(hashes)) + "\n"
    (SCRIPTS / f"{name}-requirements.txt").write_text(text)
    print(f"{name}-requirements.txt: {len(pins)} packages, {sum(len(h) for _, h in pins.values())} hashes")


def gpu():
    """Writes the hashes of the wheels that `make gpu` fetches into gpu-libraries.txt."""
    path, text = SCRIPTS / "gpu-libraries.txt", ""
    for line in path.read_text().splitlines():
        if line and not line.startswith("#") and not line[0].isspace():
            package = line.split()[0]
            wanted = [package.replace("$ONNXRUNTIME_VERSION", VERSION)]
            [(_, _, sha256)] = chosen(wanted, "3.11", LINUX, ["--no-deps"])
            line = f"{package} sha256:{sha256}"
        text += line + "\n"
    path.write_text(text)
    print(path.name)


def is_library(name):
    """ONNX Runtime's own libraries: it, and its providers."""
    return name.startswith(("libonnxruntime.", "libonnxruntime_providers_", "onnxruntime.dll", "onnxruntime_providers_"))


def libraries():
    """Writes the hashes of ONNX Runtime's libraries inside the wheels of all Pythons and platforms into pinned.txt."""
    gpu_packages = [line.split()[0] for line in (SCRIPTS / "gpu-libraries.txt").read_text().splitlines()
                    if line.startswith("onnxruntime")]
    wanted = [(f"onnxruntime=={VERSION}", platform) for platform in EVERYWHERE]
    wanted += [(package.replace("$ONNXRUNTIME_VERSION", VERSION), LINUX) for package in gpu_packages]
    rows = set()
    for package, platform in wanted:
        for python in PYTHONS:
            with tempfile.TemporaryDirectory() as folder:
                pip("download", "--no-deps", "--dest", folder, *target(python, platform), package)
                [wheel] = Path(folder).glob("*.whl")
                tag = "-".join(wheel.stem.split("-")[-1:])
                with zipfile.ZipFile(wheel) as archive:
                    for member in archive.infolist():
                        name = member.filename.rsplit("/", 1)[-1]
                        if is_library(name):
                            with archive.open(member) as file:
                                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                            rows.add((package, tag, name, sha256))
    text = f"# Made by scripts/pin.py: ONNX Runtime {VERSION}\n# SHA-256, file, package, platform\n"
    text += "".join(f"{sha256} {name} {package} {tag}\n" for package, tag, name, sha256 in sorted(rows))
    PINNED.write_text(text)
    print(f"{PINNED.name}: {len(rows)} libraries")


def main():
    steps = {**{name: lambda name=name: pin(name) for name in FILES}, "gpu": gpu, "libraries": libraries}
    names = sys.argv[1:] or list(steps)
    if unknown := [name for name in names if name not in steps]:
        sys.exit(f"unknown: {', '.join(unknown)}; known: {', '.join(steps)}")
    for name in names:
        steps[name]()


if __name__ == "__main__":
    main()
