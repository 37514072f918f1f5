"""llama.cpp's prefill of a LLaMA with random Q8_0 weights, through llama-cpp-python.

python llama_prefill.py write FILE.gguf LAYERS       LLaMA2-7B's geometry, 512 words of vocabulary
python llama_prefill.py run FILE.gguf TOKENS [load]  seconds of evaluating that many tokens; with `load`, from opening the file
"""
import os
import sys
import time

from common import best, report

HIDDEN, MLP, HEADS, VOCAB = 4096, 11008, 32, 512


def write(path, layers):
    import gguf
    import numpy as np

    rng = np.random.default_rng(5)
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(4096)
    out.add_embedding_length(HIDDEN)
    out.add_feed_forward_length(MLP)
    out.add_block_count(layers)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(HIDDEN // HEADS)
    out.add_rope_freq_base(1e4)
    out.add_vocab_size(VOCAB)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    words = [b"<unk>", b"<s>", b"</s>"] + [b"<0x%02X>" % i for i in range(256)]
    words += [b"w%d" % i for i in range(VOCAB - len(words))]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL] + [gguf.TokenType.BYTE] * 256
    kinds += [gguf.TokenType.NORMAL] * (VOCAB - len(kinds))
    out.add_tokenizer_model("llama")
    out.add_token_list(words)
    out.add_token_scores([0.0] * VOCAB)
    out.add_token_types(kinds)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)

    def q8(name, rows, columns):
        # A block is a half-precision scale and 32 signed bytes: uniform ones, of a trained layer's size.
        blocks = np.empty((rows, columns // 32, 34), np.uint8)
        blocks[:, :, :2] = np.frombuffer(np.float16((3 / columns) ** 0.5 / 127).tobytes(), np.uint8)
        blocks[:, :, 2:] = rng.integers(-127, 128, (rows, columns // 32, 32), np.int8).view(np.uint8)
        out.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    def ones(name):
        out.add_tensor(name, np.ones(HIDDEN, np.float32))

    q8("token_embd.weight", VOCAB, HIDDEN)
    for i in range(layers):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            q8(f"blk.{i}.{part}.weight", HIDDEN, HIDDEN)
        q8(f"blk.{i}.ffn_gate.weight", MLP, HIDDEN)
        q8(f"blk.{i}.ffn_up.weight", MLP, HIDDEN)
        q8(f"blk.{i}.ffn_down.weight", HIDDEN, MLP)
        ones(f"blk.{i}.attn_norm.weight")
        ones(f"blk.{i}.ffn_norm.weight")
    ones("output_norm.weight")
    q8("output.weight", VOCAB, HIDDEN)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def run(path, tokens, from_opening):
    from llama_cpp import Llama

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ids = [3 + (i * 37) % (VOCAB - 3) for i in range(tokens)]
    start = time.perf_counter()
    model = Llama(path, n_ctx=512, n_batch=tokens, n_ubatch=tokens, n_threads=cores, n_threads_batch=cores, verbose=False)

    def prefill():
        model.reset()
        model.eval(ids)

    prefill()
    first = time.perf_counter() - start
    report(first if from_opening else best(prefill, 3))


def main():
    if sys.argv[1] == "write":
        start = time.perf_counter()
        write(sys.argv[2], int(sys.argv[3]))
        report(time.perf_counter() - start)
    else:
        run(sys.argv[2], int(sys.argv[3]), "load" in sys.argv[4:])


if __name__ == "__main__":
    main()
