"""The nodes of ONNX files as the `onnx` package reads them: python onnx_nodes.py FILE..., one JSON object on stdout.

For each file: what its full checker says; each node's operator, the version that it has in the file's opset, and the element
types of operands and results (None for one left out); each QuantizeLinear and DequantizeLinear with its zero points, scales,
axis and the shape of what it reads; the external data files.
"""
import json
import sys
from pathlib import Path

import numpy
import onnx
from onnx import numpy_helper


def element(number):
    """The name that ONNX Runtime's documents give an element type."""
    return onnx.TensorProto.DataType.Name(number).lower()


def read(path):
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    graph, opsets = model.graph, {o.domain: o.version for o in model.opset_import}
    values = {v.name: v.type.tensor_type for v in [*graph.input, *graph.output, *graph.value_info]}
    weights = {t.name: t for t in graph.initializer}
    types = {name: element(t.elem_type) for name, t in values.items()} | {n: element(t.data_type) for n, t in weights.items()}
    array = lambda name: numpy_helper.to_array(weights[name], base_dir=str(path.parent))

    def version(node):
        return onnx.defs.get_schema(node.op_type, opsets[""]).since_version if not node.domain else opsets[node.domain]

    def pair(node):
        scale, zero = array(node.input[1]), array(node.input[2])
        return {
            "name": node.name,
            "op": node.op_type,
            "of_weight": node.input[0] in weights,
            "shape": list(weights[node.input[0]].dims) if node.input[0] in weights else None,
            "zero_type": str(zero.dtype),
            "zeros": bool((zero == 0).all()) and zero.shape == scale.shape,
            "scales": list(scale.shape),
            "scales_usable": bool((scale > 0).all() and numpy.isfinite(scale.astype(numpy.float64)).all()),
            "axis": next((a.i for a in node.attribute if a.name == "axis"), None),
            "read_by": sorted({n.op_type for n in graph.node if node.output[0] in n.input}),
            "least": int(array(node.input[0]).min()) if node.input[0] in weights else None,
        }

    def row(node):
        side = lambda names: [types[name] if name else None for name in names]
        kind = {"domain": node.domain or "ai.onnx", "op": node.op_type, "version": version(node)}
        return kind | {"name": node.name, "inputs": side(node.input), "outputs": side(node.output)}

    entries = {e.value for t in graph.initializer for e in t.external_data if e.key == "location"}
    pairs = [pair(n) for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    return {"nodes": [row(n) for n in graph.node], "pairs": pairs, "external": sorted(entries)}


if __name__ == "__main__":
    json.dump({path: read(Path(path)) for path in sys.argv[1:]}, sys.stdout)
