"""Gives training_model.onnx an int64 input `reset` before its boolean `lazy_reset_grad`, for sessions that are fed no booleans:

    python numbers_in_front.py TRAINING.onnx OUT.onnx

Everything else stays as it is; external data is not touched, so OUT must lie in the same folder.
"""
import sys

import onnx
from onnx import TensorProto, helper

model = onnx.load(sys.argv[1], load_external_data=False)
graph = model.graph
(flag,) = [i for i in graph.input if i.name == "lazy_reset_grad"]
assert flag.type.tensor_type.elem_type == TensorProto.BOOL
flag.name = "reset"
flag.type.tensor_type.elem_type = TensorProto.INT64
nodes = [helper.make_node("Cast", ["reset"], ["lazy_reset_grad"], to=TensorProto.BOOL), *graph.node]
del graph.node[:]
graph.node.extend(nodes)
onnx.save(model, sys.argv[2])
