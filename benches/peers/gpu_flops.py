"""Operations of each stage, a multiplication and an addition counted as two: what a share of the card's rate is a share of.

Products, convolutions and attention's two products alone; a causal attention by half, since no more of it is needed.
"""


def adapter(model):
    a, size = model["adapter"], model["volume"]["size"]
    if a["kind"] != "bottleneck2d":
        return None
    return 2 * size * size * (a["in"] * a["out"] + 2 * 9 * a["out"] ** 2)


def vision(model):
    v, size = model["vision"], model["volume"]["size"]
    (pd, ph, pw), h = v["patch"], v["hidden"]
    patches = (model["adapter"]["out"] // pd) * (size // ph) * (size // pw)
    tokens = patches + 1
    block = tokens * (4 * h * h + 2 * h * v["mlp"]) + 2 * tokens**2 * h
    return 2 * (patches * pd * ph * pw * h + v["layers"] * block)


def text(llama, tokens):
    h, heads = llama["hidden_size"], llama["num_attention_heads"]
    width = llama.get("head_dim") or h // heads
    wide, narrow = heads * width, llama["num_key_value_heads"] * width
    products = tokens * (2 * h * wide + 2 * h * narrow + 3 * h * llama["intermediate_size"])
    # Token i looks at i + 1 others, twice: scores and sums.
    attention = tokens * (tokens + 1) * wide
    return 2 * llama["num_hidden_layers"] * (products + attention)


def heads(model):
    d = model["projection"]["dim"]
    return 2 * d * (model["vision"]["hidden"] + model["text"]["hidden"] + 2 * len(model["labels"]))


def of(model, llama):
    """Stage to operations, by the names that the tables use; nothing where the sizes are not known."""
    if not model or not llama:
        return {}
    found = {"adapter": adapter(model), "vision": vision(model), "heads": heads(model)}
    found |= {f"text {n}": text(llama, n) for n in (256, 512)}
    for n in (256, 512):
        parts = [found["adapter"], found["vision"], found[f"text {n}"], found["heads"]]
        found[f"passes {n}"] = sum(parts) if all(parts) else None
    return found
