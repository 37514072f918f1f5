//! Names of LoRA tensors, as PEFT and its older versions write them.
//!
//! Flows in: a state-dict key. Flows out: what it is: a factor of a module's update, a plain tensor, or the mark of
//! another method. `base_model.model.` and the components that PEFT puts between (`base_layer`, `modules_to_save.NAME`,
//! the adapter's name behind `lora_A`) are gone from the module's name.

/// Which part of an update a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Factor {
    /// `lora_A`, `[r, inputs]`.
    A,
    /// `lora_B`, `[outputs, r]`.
    B,
    /// `lora_B`'s bias, `[outputs]`.
    Bias,
    /// `lora_embedding_A`, `[r, words]`.
    EmbeddingA,
    /// `lora_embedding_B`, `[hidden, r]`.
    EmbeddingB,
}

/// What a name says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    /// A factor of the update of `module`, of the adapter of that name (empty: not named).
    Factor { module: String, factor: Factor, adapter: String },
    /// A tensor of the model, under the name that it has without PEFT.
    Plain(String),
    /// The original of a module of which a trained copy is there.
    Original,
    /// A tensor of another method.
    Other(&'static str),
}

/// Components of names that other methods write, in lower case, and the methods.
const OTHERS: &[(&str, &str)] = &[
    ("lora_magnitude_vector", "DoRA"),
    ("lora_e", "AdaLoRA"),
    ("ranknum", "AdaLoRA"),
    ("lora_diag", "KaSA"),
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("ia3_l", "IA3"),
    ("oft_r", "OFT"),
    ("boft_", "BOFT"),
    ("vera_lambda", "VeRA"),
    ("trainable_tokens_delta", "trainable tokens"),
];

/// What `name` says.
pub(super) fn part(name: &str) -> Part {
    let bare = name.strip_prefix("base_model.model.").or_else(|| name.strip_prefix("base_model.")).unwrap_or(name);
    let parts: Vec<&str> = bare.split('.').collect();
    let factors = [
        ("lora_A", Factor::A),
        ("lora_B", Factor::B),
        ("lora_embedding_A", Factor::EmbeddingA),
        ("lora_embedding_B", Factor::EmbeddingB),
    ];
    for (at, part) in parts.iter().enumerate() {
        let Some((_, factor)) = factors.iter().find(|(known, _)| known == part) else { continue };
        let (factor, adapter) = match (factor, &parts[at + 1..]) {
            (_, [] | ["weight"]) => (*factor, ""),
            (Factor::B, ["bias"]) => (Factor::Bias, ""),
            (Factor::B, [adapter, "bias"]) => (Factor::Bias, *adapter),
            (_, [adapter] | [adapter, "weight"]) => (*factor, *adapter),
            _ => return Part::Other("an unknown kind of LoRA"),
        };
        let module = parts[..at].iter().filter(|p| **p != "base_layer").copied().collect::<Vec<_>>().join(".");
        return Part::Factor { module, factor, adapter: adapter.to_owned() };
    }
    if parts.windows(2).any(|pair| matches!(pair, ["adaptor", "A" | "B"])) {
        return Part::Other("LoRA as Meta names it, outside Meta's layout");
    }
    if let Some(method) = parts.iter().find_map(|part| other(part)) {
        return Part::Other(method);
    }
    if parts.contains(&"original_module") {
        return Part::Original;
    }
    let mut kept = Vec::with_capacity(parts.len());
    let mut rest = parts.iter();
    while let Some(part) = rest.next() {
        match *part {
            // Followed by the adapter's name.
            "modules_to_save" if rest.len() > 1 => drop(rest.next()),
            "modules_to_save" | "base_layer" => {}
            part => kept.push(part),
        }
    }
    Part::Plain(kept.join("."))
}

fn other(part: &str) -> Option<&'static str> {
    let lower = part.to_ascii_lowercase();
    let known = OTHERS.iter().find(|(mark, _)| lower.starts_with(mark)).map(|(_, method)| *method);
    known.or_else(|| (lower == "lora" || lower.starts_with("lora_")).then_some("LoRA in names that are not PEFT's"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_version_are_understood() {
        let factor = |module: &str, factor, adapter: &str| Part::Factor {
            module: module.into(),
            factor,
            adapter: adapter.into(),
        };
        let plain = |name: &str| Part::Plain(name.into());
        for (name, want) in [
            ("base_model.model.model.layers.0.q_proj.lora_A.weight", factor("model.layers.0.q_proj", Factor::A, "")),
            ("model.layers.0.q_proj.lora_B.mine.weight", factor("model.layers.0.q_proj", Factor::B, "mine")),
            ("base_model.model.x.base_layer.lora_B.default.bias", factor("x", Factor::Bias, "default")),
            ("q.lora_A", factor("q", Factor::A, "")),
            (
                "model.embed_tokens.lora_embedding_A.default",
                factor("model.embed_tokens", Factor::EmbeddingA, "default"),
            ),
            ("embed_tokens.lora_embedding_B", factor("embed_tokens", Factor::EmbeddingB, "")),
            ("base_model.model.model.norm.weight", plain("model.norm.weight")),
            ("base_model.model.model.q.base_layer.weight", plain("model.q.weight")),
            ("base_model.model.lm_head.modules_to_save.default.weight", plain("lm_head.weight")),
            ("lm_head.modules_to_save.weight", plain("lm_head.weight")),
            ("lm_head.original_module.weight", Part::Original),
            ("x.lora_magnitude_vector.default.weight", Part::Other("DoRA")),
            ("x.lora_E", Part::Other("AdaLoRA")),
            ("x.hada_w1_a", Part::Other("LoHa")),
            ("x.lora_a.weight", Part::Other("LoRA in names that are not PEFT's")),
            ("x.lora_up.weight", Part::Other("LoRA in names that are not PEFT's")),
            ("x.lora_A.a.b.weight", Part::Other("an unknown kind of LoRA")),
            ("x.adaptor.A.weight", Part::Other("LoRA as Meta names it, outside Meta's layout")),
            ("seg.prompt_encoder.adaptor_pool.weight", plain("seg.prompt_encoder.adaptor_pool.weight")),
            ("flora_x.adaptive.weight", plain("flora_x.adaptive.weight")),
            ("base_model.model.", plain("")),
        ] {
            assert_eq!(part(name), want, "{name}");
        }
    }
}
