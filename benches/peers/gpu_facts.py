"""Card, driver and libraries of a run on a GPU: python gpu_facts.py RECORD.json CARD [FOLDER...]

FOLDERs hold the libraries that ONNX Runtime is given; they are asked for their own versions. What is not there says so.
"""
import ctypes
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CARD = ("name", "driver_version", "memory.total", "compute_cap", "power.limit", "clocks.max.sm", "clocks.max.memory")


def said(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def card(index):
    told = said(["nvidia-smi", f"--query-gpu={','.join(CARD)}", "--format=csv,noheader", "-i", index])
    if told is None:
        return {"name": "no card: nvidia-smi is not there or found none"}
    found = dict(zip(CARD, (value.strip() for value in told.split(","))))
    cuda = re.search(r"CUDA\D*Version:\s*([\d.]+)", said(["nvidia-smi"]) or "")
    return found | {"driver's CUDA": cuda.group(1) if cuda else "unknown"}


def library(folders, name, ask):
    """What a library says of its version; looked for in the folders, then where the system looks."""
    places = [str(path) for folder in folders for path in sorted(Path(folder).rglob(name))] + [name]
    for place in places:
        try:
            return ask(ctypes.CDLL(place))
        except (OSError, AttributeError):
            continue
    return "not found"


def digits(number, *powers):
    """A number such as 91002 as 9.10.2."""
    parts = []
    for power in powers:
        parts.append(str(number // power))
        number %= power
    return ".".join(parts)


def runtime(library):
    class Base(ctypes.Structure):
        _fields_ = [("api", ctypes.c_void_p), ("version", ctypes.CFUNCTYPE(ctypes.c_char_p))]

    library.OrtGetApiBase.restype = ctypes.POINTER(Base)
    return library.OrtGetApiBase().contents.version().decode()


def cuda(library):
    number = ctypes.c_int()
    library.cudaRuntimeGetVersion(ctypes.byref(number))
    return digits(number.value, 1000, 10)


def cudnn(library):
    library.cudnnGetVersion.restype = ctypes.c_size_t
    return digits(library.cudnnGetVersion(), 10000, 100, 1)


def tensorrt(library):
    # 10.13.2 is 101302; before TensorRT 10 it was 8601 for 8.6.1.
    number = library.getInferLibVersion()
    return digits(number, 10000, 100, 1) if number >= 10000 else digits(number, 1000, 100, 1)


def package(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def processor():
    try:
        names = re.findall(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
        memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    except OSError:
        return platform.processor()
    cores = len(os.sched_getaffinity(0))
    return f"{(names or ['unknown'])[0]}, {cores} cores, {int(memory.group(1)) / 2**20:.0f} GiB, {platform.system()} {platform.release()}"


TORCH = """import torch
c = torch.backends.cudnn.version() if torch.version.cuda else None
print(torch.__version__, torch.version.cuda, c)"""


def torch():
    """In a process of its own: a library that is loaded already would answer in place of torch's."""
    done = subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True)
    if done.returncode != 0:
        return {"torch": f"{package('torch')} ({(done.stderr.strip().splitlines() or ['cannot be imported'])[-1]})"}
    found, cuda, cudnn = done.stdout.split()
    return {"torch": found, "torch's CUDA": cuda, "torch's cuDNN": digits(int(cudnn), 10000, 100, 1) if cudnn.isdigit() else cudnn}


def main():
    record, index, *folders = sys.argv[1:]
    libraries = {
        "ONNX Runtime": library(folders, "libonnxruntime.so*", runtime),
        "CUDA": library(folders, "libcudart.so.1*", cuda),
        "cuDNN": library(folders, "libcudnn.so.9*", cudnn),
        "TensorRT": library(folders, "libnvinfer.so.10*", tensorrt),
        "TensorRT for RTX": library(folders, "libtensorrt_rtx.so*", tensorrt),
    }
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": said(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]) or os.environ.get("BA_COMMIT", "unknown"),
        "card": card(index),
        "machine": processor(),
        "libraries": libraries,
        "peers": torch() | {name: package(name) for name in ("triton", "monai", "numpy")} | {"Python": platform.python_version()},
    }
    Path(record).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
