"""Records hidden states of transformers' own classes over weights made from a seed by a formula (`tensor` below, and in
tests/graph/language_models.rs).

    python language_models.py SEED > tests/data/language-models/SEED.json

MiniCPM has no class in transformers: Granite's computes the same with its scales.
"""
import json
import math
import random
import sys

import torch
import transformers as T

MASK = (1 << 64) - 1


def tensor(name, shape, seed):
    state = 14695981039346656037 ^ seed
    for byte in name.encode():
        state = (state ^ byte) * 1099511628211 & MASK
    norm = name.endswith("norm.weight")
    scale = 0.5 if norm or len(shape) == 1 else 2.5 / math.sqrt(shape[-1])
    values = []
    for _ in range(math.prod(shape)):
        state = (state * 6364136223846793005 + 1442695040888963407) & MASK
        values.append(float(norm) + ((state >> 40) / (1 << 23) - 1.0) * scale)
    return torch.tensor(values, dtype=torch.float64).float().reshape(shape)


def kinds(r, n):
    full, slide = "full_attention", "sliding_attention"
    theta = r.choice([50.0, 1e4, 5e5])
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    three = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 16}
    mixed = {"layer_types": [slide if i % 2 else full for i in range(n)]}
    w = r.choice([2, 3, 5])
    scales = {"embedding_multiplier": 6.0, "attention_multiplier": 0.19, "residual_multiplier": 0.37, "logits_scaling": 4.0}
    return [
        ("llama", "Llama", rope),
        ("llama 3.1", "Llama", {"rope_parameters": three, "tie_word_embeddings": True}),
        ("llama, dynamic rope", "Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": theta, "factor": 4.0}}),
        ("llama, biases", "Llama", rope | {"attention_bias": True, "mlp_bias": True}),
        ("llama, gelu", "Llama", rope | {"hidden_act": "gelu"}),
        ("llama, bidirectional", "Llama", rope | {"is_causal": False}),
        ("mistral, window", "Mistral", rope | {"sliding_window": w}),
        ("mistral, no window", "Mistral", rope | {"sliding_window": None}),
        ("mistral, window, bidirectional", "Mistral", rope | {"sliding_window": w, "is_causal": False}),
        ("ministral", "Ministral", rope | mixed | {"sliding_window": w}),
        ("qwen2", "Qwen2", rope),
        ("qwen2, windows", "Qwen2", rope | {"use_sliding_window": True, "sliding_window": w, "max_window_layers": 1}),
        ("qwen2, bidirectional", "Qwen2", rope | {"is_causal": False}),
        ("qwen3", "Qwen3", rope),
        ("qwen3, windows", "Qwen3", rope | mixed | {"use_sliding_window": True, "sliding_window": w, "attention_bias": True}),
        ("qwen3, bidirectional", "Qwen3", rope | {"is_causal": False}),
        ("granite", "Granite", rope | scales),
        ("granite, biases", "Granite", rope | scales | {"attention_bias": True, "mlp_bias": True}),
        ("minicpm", "Granite", rope | {"embedding_multiplier": 5.0, "residual_multiplier": 1.4 / math.sqrt(n)}),
        ("smollm3", "SmolLM3", rope | {"no_rope_layer_interval": 2}),
        ("smollm3, windows", "SmolLM3", rope | {"no_rope_layers": [0] + [1] * (n - 1), "use_sliding_window": True, "sliding_window": w}),
        ("ernie4_5", "Ernie4_5", rope),
        ("ernie4_5, biases", "Ernie4_5", rope | {"use_bias": True}),
        ("helium", "Helium", rope | {"attention_bias": True}),
        ("seed_oss", "SeedOss", rope),
        ("arcee", "Arcee", rope | {"mlp_bias": True}),
        ("cwm", "Cwm", {"rope_parameters": three, "sliding_window": w}),
    ]


@torch.no_grad()
def record(name, cls, extra, seed, r, layers):
    heads, kv = r.choice([(4, 1), (4, 2), (4, 4), (6, 3)])
    dim = r.choice([4, 6, 10])
    # Helium's output projection is square.
    hidden = heads * dim if cls == "Helium" else r.choice([24, 30])
    hidden = hidden // heads * heads or heads
    sizes = dict(vocab_size=40, hidden_size=hidden, intermediate_size=r.choice([20, 36]), num_hidden_layers=layers,
                 num_attention_heads=heads, num_key_value_heads=kv, head_dim=dim, rms_norm_eps=r.choice([1e-5, 1e-6]),
                 max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    if name == "minicpm":
        extra = extra | {"attention_multiplier": dim ** -0.5}
    config = getattr(T, cls + "Config")(**(sizes | extra))
    config._attn_implementation = "eager"
    model = getattr(T, cls + "Model")(config).eval()
    weights = {k: tensor(k, list(v.shape), seed) for k, v in model.state_dict().items()}
    model.load_state_dict(weights)
    lengths = [r.randint(9, 14), r.randint(1, 8)]
    ids = torch.tensor([[r.randrange(40) for _ in range(max(lengths))] for _ in lengths])
    mask = torch.tensor([[int(t < n) for t in range(max(lengths))] for n in lengths])
    h = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    m = mask.float()[..., None]
    mean = (h * m).sum(1) / m.sum(1)
    last = torch.stack([h[i, n - 1] for i, n in enumerate(lengths)])
    written = json.loads(config.to_json_string())
    if name == "minicpm":
        written = {k: v for k, v in written.items() if "multiplier" not in k and k != "logits_scaling"}
        written |= {"model_type": "minicpm", "scale_emb": 5.0, "scale_depth": 1.4, "dim_model_base": 256}
    number = lambda x: [float(f"{v:.7g}") for v in x.flatten().tolist()]
    return {"name": name, "config": written | extra_fields(extra), "tensors": len(weights), "ids": ids.tolist(), "mask": mask.tolist(),
            "mean": number(mean), "last": number(last)}


def extra_fields(extra):
    """What the class does not write by itself."""
    return {k: v for k, v in extra.items() if k == "is_causal"}


if __name__ == "__main__":
    seed = int(sys.argv[1])
    r = random.Random(seed)
    layers = r.choice([2, 3])
    print("[\n" + ",\n".join(json.dumps(record(*kind, seed, r, layers)) for kind in kinds(r, layers)) + "\n]")
