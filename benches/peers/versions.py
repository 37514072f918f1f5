"""Versions of the peers that this Python has, in a line."""
import platform
from importlib.metadata import PackageNotFoundError, version

found = [f"Python {platform.python_version()}"]
for package in ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "llama-cpp-python", "nibabel", "monai"):
    try:
        found.append(f"{package} {version(package)}")
    except PackageNotFoundError:
        found.append(f"{package} not installed")
print(", ".join(found))
