"""Builds TensorRT for RTX engines ahead of time, without a GPU: python tensorrt_build.py [OPTIONS] FILE.onnx...

One JSON object a file on stdout, a line each: whether it was parsed and built, for each compute capability by itself,
with the engine's bytes and seconds; what TensorRT said where it refused; layers; the process's largest memory so far.
Every `batch` is 1; `tokens` goes from 1 over --tokens OPT to --tokens MAX.
"""
import argparse
import json
import resource
import sys
import time

import tensorrt_rtx_bindings as trt


class Log(trt.ILogger):
    """Keeps what went wrong."""

    def __init__(self):
        trt.ILogger.__init__(self)
        self.errors = []

    def log(self, severity, message):
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message)


def extents(tensor, tokens):
    """The least, the usual and the largest shape of an input."""
    shapes = ([], [], [])
    for axis, extent in enumerate(tensor.shape):
        # A dimension without a name belongs to no input that this project writes.
        name = tensor.get_dimension_name(axis) if extent < 0 else None
        known = {None: (extent,) * 3, "batch": (1, 1, 1), "tokens": (1, *tokens)}
        for shape, value in zip(shapes, known[name]):
            shape.append(value)
    return shapes


def build(path, capability, tokens):
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    started = time.monotonic()
    row = {"parsed": parser.parse_from_file(path), "layers": network.num_layers, "bytes": None}
    row["parse_errors"] = [parser.get_error(i).desc() for i in range(parser.num_errors)]
    if row["parsed"]:
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + capability.replace(".", "")), 0)
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            if -1 in tensor.shape:
                profile.set_shape(tensor.name, *extents(tensor, tokens))
        config.add_optimization_profile(profile)
        engine = builder.build_serialized_network(network, config)
        row["bytes"] = engine.nbytes if engine is not None else None
    row["errors"] = log.errors
    row["seconds"] = round(time.monotonic() - started, 3)
    return row


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--capability", action="append", help="compute capability, such as 8.9; may be repeated")
    arguments.add_argument("--tokens", nargs=2, type=int, default=(256, 512), metavar=("OPT", "MAX"))
    arguments.add_argument("files", nargs="+")
    args = arguments.parse_args()
    for path in args.files:
        rows = {c: build(path, c, args.tokens) for c in args.capability or ["8.6", "8.9", "12.0"]}
        # In KiB on Linux.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"file": path, "version": trt.__version__, "builds": rows, "peak_kib": peak}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
