"""Gives optimizer_model.onnx tensors for inputs and outputs, which any session can be fed:

    python tensors_in_front.py OPTIMIZER.onnx COUNT OUT.onnx

`params.0`, `params.1`, ... become the sequence `params`, and so on; after the node, `params.out` becomes `params.out.0`, ...
The model, its node and its functions stay as they are. Runs the full checker on the original before.
"""
import sys

import onnx
from onnx import TensorProto, helper

path, count, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
onnx.checker.check_model(path, full_check=True)
model = onnx.load(path)
graph = model.graph
assert [(o.domain, o.version) for o in model.opset_import] == [("", 20), ("com.microsoft", 1)] and model.ir_version == 9
kind = lambda values: {v.name: v.type.WhichOneof("value") for v in values}
lists = ["params", "gradients", "first_order_moments", "second_order_moments"]
assert kind(graph.input) == {"learning_rate": "tensor_type", "step": "tensor_type"} | {n: "sequence_type" for n in lists}
updated = [f"{n}.out" for n in lists if n != "gradients"]
assert kind(graph.output) == {"updated_flag": "tensor_type"} | {n: "sequence_type" for n in updated}
assert [n.op_type for n in graph.node] == ["AdamWOptimizer"]
info = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
before, after = [], []
del graph.input[2:], graph.output[:]
for name in lists:
    parts = [f"{name}.{i}" for i in range(count)]
    before.append(helper.make_node("SequenceConstruct", parts, [name]))
    graph.input.extend(info(part) for part in parts)
for name in updated:
    for i in range(count):
        index = helper.make_node("Constant", [], [f"{name}.{i}.index"], value_int=i)
        after += [index, helper.make_node("SequenceAt", [name, f"{name}.{i}.index"], [f"{name}.{i}"])]
        graph.output.append(info(f"{name}.{i}"))
nodes = [*before, *graph.node, *after]
del graph.node[:]
graph.node.extend(nodes)
onnx.save(model, out)
