"""Python's path from a LLaMA checkpoint to an int8 graph, a step a process.

python onnx_export.py export CHECKPOINT FOLDER       transformers' LLaMA through torch.onnx.export, float32
python onnx_export.py quantize GRAPH.onnx FOLDER     onnxruntime.quantization.quantize_dynamic, its defaults

The export holds the checkpoint in float32, as the quantizer needs it: DynamicQuantizeLinear takes nothing else.
"""
import sys
import time
from pathlib import Path

from common import report


def export(checkpoint, folder):
    import torch
    from transformers import LlamaModel

    model = LlamaModel.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state

    ids = torch.arange(256)[None] % 512
    torch.onnx.export(Encoder(), (ids, torch.ones_like(ids)), str(Path(folder) / "model.onnx"),
                      input_names=["input_ids", "attention_mask"], output_names=["text_hidden"],
                      opset_version=18, external_data=True, dynamo=True, verbose=False)


def quantize(graph, folder):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(graph, str(Path(folder) / "int8.onnx"), weight_type=QuantType.QInt8, use_external_data_format=True)


def main():
    step, source, folder = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    {"export": export, "quantize": quantize}[step](source, folder)
    report(time.perf_counter() - start)


if __name__ == "__main__":
    main()
