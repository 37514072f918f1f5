"""restored.py OUT SEED small|large [NAME]: checkpoints that are merged or made floats on reading, and what becomes of them.

Writes OUT/NAME/model (what a user has), OUT/NAME/expected.safetensors (float32, by Hugging Face's names) and, for LoRA on
a base in half precision, OUT/NAME/half.safetensors (PEFT's own result in that precision). LoRA is merged by PEFT; packed
integers are made by the packing loops of AutoGPTQ and AutoAWQ from known integers; 8-bit floats by torch's casts."""
import json, sys, warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

warnings.filterwarnings("ignore")
OUT, SEED, SMALL = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "small"
ONLY = sys.argv[4:]
H, M, V, N = (8, 12, 16, 1) if SMALL else (48, 80, 96, 2)


def write(name, expected, half=None):
    d = OUT / name
    (d / "model").mkdir(parents=True, exist_ok=True)
    save_file({k: t.detach().float().clone().contiguous() for k, t in expected.items()}, d / "expected.safetensors")
    if half:
        save_file({k: t.detach().clone().contiguous() for k, t in half.items()}, d / "half.safetensors")
    return d / "model"


def model(bias=False):
    from transformers import LlamaConfig, LlamaForCausalLM
    c = LlamaConfig(vocab_size=V, hidden_size=H, intermediate_size=M, num_hidden_layers=N, num_attention_heads=2, num_key_value_heads=1, attention_bias=bias, tie_word_embeddings=False)
    m = LlamaForCausalLM(c)
    for p in m.parameters():
        p.data = torch.randn(p.shape) * 0.1
    return m


def weights(m):
    return {k: t for k, t in m.state_dict().items() if "rotary" not in k}


def lora(name, dtype=torch.float32, bias=False, file="safetensors", bare=False, wrapped=False, edit=None, **kw):
    if ONLY and name not in ONLY:
        return
    import copy
    from peft import LoraConfig, PeftModel, get_peft_model
    base = model(bias).to(dtype)
    original = {k: t.clone() for k, t in weights(base).items()}
    p = get_peft_model(copy.deepcopy(base).float(), LoraConfig(**kw))
    for n, t in p.named_parameters():
        if "lora_" in n or "modules_to_save" in n or (n.endswith(".bias") and kw.get("bias", "none") != "none"):
            t.data = torch.randn(t.shape) * 0.3
    d = OUT / name
    p.save_pretrained(d / "model", safe_serialization=file == "safetensors")
    half = None
    if dtype != torch.float32:
        half = weights(PeftModel.from_pretrained(copy.deepcopy(base), d / "model").merge_and_unload())
    state = p.state_dict()
    expected = weights(PeftModel.from_pretrained(copy.deepcopy(base).float(), d / "model").merge_and_unload())
    (d / "model/README.md").unlink(missing_ok=True)
    write(name, expected, half)
    if file == "bin" and (d / "model/adapter_model.safetensors").exists():
        from safetensors.torch import load_file
        torch.save(load_file(d / "model/adapter_model.safetensors"), d / "model/adapter_model.bin")
        (d / "model/adapter_model.safetensors").unlink()
    if wrapped:
        (d / "model/adapter_model.safetensors").unlink()
        original = state
    if bare:
        original = {k.removeprefix("model."): t for k, t in original.items() if k.startswith("model.")}
    if edit:
        edit(d / "model")
    save_file({k: t.clone().contiguous() for k, t in original.items()}, d / "model/model.safetensors")


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def loras():
    lora("lora-plain", r=3, lora_alpha=7, target_modules=["k_proj", "down_proj"])
    lora("lora-all-rs", r=2, lora_alpha=5, target_modules=ALL, use_rslora=True, file="bin")
    lora("lora-patterns", r=4, lora_alpha=6, target_modules=ALL, bare=True, rank_pattern={"q_proj": 1, r"layers\.0\.mlp\..*_proj": 2}, alpha_pattern={"layers.0.mlp.up_proj": 9, "v_proj": 1})
    lora("lora-embedding", r=2, lora_alpha=3, target_modules=["embed_tokens", "q_proj"], modules_to_save=["norm", "lm_head"])
    lora("lora-wrapped", r=2, lora_alpha=8, target_modules=["o_proj", "gate_proj"], modules_to_save=["input_layernorm"], wrapped=True)
    lora("lora-fan", r=2, lora_alpha=4, target_modules=["q_proj"], fan_in_fan_out=True)
    lora("lora-biases", bias=True, r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], lora_bias=True)
    lora("lora-fp16", dtype=torch.float16, r=3, lora_alpha=4, target_modules=["q_proj", "up_proj"])
    lora("lora-bf16", dtype=torch.bfloat16, r=3, lora_alpha=4, target_modules=["v_proj", "down_proj", "embed_tokens"])


def config(d, quantization, file="config.json"):
    (d / file).write_text(json.dumps({"model_type": "llama", "quantization_config": quantization} if file == "config.json" else quantization))


def stream(values, bits):
    """Integers [n, m] → words [n * bits / 32, m]: the loops of AutoGPTQ's pack, for any number of bits."""
    n, m = values.shape
    words = torch.zeros(n * bits // 32, m, dtype=torch.int64)
    for i in range(n):
        for b in range(bits):
            at = i * bits + b
            words[at // 32] |= ((values[i] >> b) & 1) << (at % 32)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def gptq(name, bits, group, v2=False, act_order=False, file="config.json", bias=False, sym=False):
    if ONLY and name not in ONLY:
        return
    n, m = 64, 32
    out, t = {}, {}
    for layer in range(N):
        g = n if group == -1 else group
        groups = -(-n // g)
        q = torch.randint(0, 2**bits, (n, m)); z = torch.randint(0 if v2 else 1, 2**bits, (groups, m))
        if sym:
            z[:] = 2 ** (bits - 1)
        s = (torch.rand(groups, m) * 0.02 + 0.001).half()
        idx = torch.arange(n) // g
        if act_order:
            idx = idx[torch.randperm(n)]
        p = f"model.layers.{layer}.mlp.up_proj."
        stored = z if v2 else z - 1
        t |= {p + "qweight": stream(q, bits), p + "qzeros": stream(stored.T, bits).T.contiguous(), p + "scales": s, p + "g_idx": idx.int()}
        if bias:
            t[p + "bias"] = torch.zeros(m).half()
        out[p + "weight"] = (s.double()[idx] * (q - z[idx]).double()).T
    t["model.norm.weight"] = torch.rand(n).half(); out["model.norm.weight"] = t["model.norm.weight"]
    d = write(name, out)
    save_file(t, d / "model.safetensors")
    c = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order, "sym": sym}
    config(d, c | ({"checkpoint_format": "gptq_v2"} if v2 else {}), file)


def awq(name, group, file="config.json"):
    if ONLY and name not in ONLY:
        return
    n, m, order = 64, 32, [0, 2, 4, 6, 1, 3, 5, 7]
    q, z, s = torch.randint(0, 16, (n, m)), torch.randint(0, 16, (n // group, m)), (torch.rand(n // group, m) * 0.02 + 0.001).half()

    def pack(x):
        words = torch.zeros(x.shape[0], m // 8, dtype=torch.int64)
        for column in range(m // 8):
            for i in range(8):
                words[:, column] |= x[:, column * 8 + order[i]] << (i * 4)
        return torch.where(words >= 2**31, words - 2**32, words).int()

    p = "model.layers.0.self_attn.o_proj."
    idx = torch.arange(n) // group
    d = write(name, {p + "weight": (s.double()[idx] * (q - z[idx]).double()).T})
    save_file({p + "qweight": pack(q), p + "qzeros": pack(z), p + "scales": s}, d / "model.safetensors")
    if file == "config.json":
        config(d, {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"})
    else:
        config(d, {"w_bit": 4, "q_group_size": group, "zero_point": True, "version": "GEMM"}, file)


def fp8(name, kind, dtype=torch.float8_e4m3fn):
    if ONLY and name not in ONLY:
        return
    m, n = 40, 24
    p = "model.layers.0.mlp.down_proj."
    q = (torch.randn(m, n) * (30 if dtype == torch.float8_e4m3fn else 3000)).to(dtype)
    if kind == "block":
        s = torch.rand(3, 2) * 0.01; full = s.repeat_interleave(16, 0)[:m].repeat_interleave(16, 1)[:, :n]
        c, scale = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [16, 16]}, "weight_scale_inv"
    elif kind == "channel":
        s = torch.rand(m, 1) * 0.01; full = s.expand(m, n)
        c = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}}}}
        scale = "weight_scale"
    elif kind == "int8":
        q = torch.randint(-128, 128, (m, n), dtype=torch.int8); s = (torch.rand(m, 1) * 0.01).bfloat16(); full = s.float().expand(m, n)
        c = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}}}}
        scale = "weight_scale"
    else:
        s = torch.rand(()) * 0.01; full = s.expand(m, n)
        c, scale = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}, "weight_scale"
    d = write(name, {p + "weight": q.float() * full.float()})
    t = {p + "weight": q, p + scale: s.clone()}
    if kind == "tensor":
        t[p + "input_scale"] = torch.rand(())
        torch.save(t, d / "pytorch_model.bin")
    else:
        save_file(t, d / "model.safetensors")
    config(d, c)


torch.manual_seed(SEED)
loras()
for bits in (2, 3, 4, 8):
    gptq(f"gptq-{bits}", bits, 32, v2=bits == 8, act_order=bits in (3, 8), file="quantize_config.json" if bits == 2 else "config.json", bias=bits == 4)
gptq("gptq-whole", 4, -1, sym=True)
gptq("gptq-rest", 4, 48)
awq("awq-16", 16)
awq("awq-old", 32, file="quant_config.json")
for kind in ("block", "channel", "int8", "tensor"):
    fp8(f"fp8-{kind}", kind)
fp8("fp8-e5m2", "tensor", torch.float8_e5m2)
