//! Every field of the configuration: read, known to change nothing, or refused.
//!
//! Labs add fields of their own, most of them harmless: notes on training, on images, on generation. One that is not
//! read is refused where its name says that it changes the computation (`embedding_multiplier`, `*_bias`, `*rope*`,
//! `*window*`, …) and its value that it is in use.

use serde_json::{Map, Value};

use super::attention::is_direction;
use super::json::{short, show};
use super::kinds::Kind;
use crate::error::{Code, Error, Result};

/// Fields that every kind reads, here or by whoever asks for the tokenizer.
const READ: [&str; 18] = [
    "architectures",
    "auto_map",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "vocab_size",
];

/// Words of a name (between underscores) of what changes no hidden state, whatever else the name has.
const INERT_WORDS: [&str; 32] = [
    "aux",
    "cache",
    "checkpointing",
    "coef",
    "config",
    "drop",
    "dropout",
    "dtype",
    "epsilon",
    "eps",
    "flash",
    "fused",
    "id",
    "ids",
    "implementation",
    "init",
    "initializer",
    "layerdrop",
    "loss",
    "lr",
    "optimizer",
    "path",
    "pdrop",
    "quantization",
    "sdpa",
    "std",
    "token",
    "tokenizer",
    "training",
    "version",
    "vocab",
    "warmup",
];

/// Beginnings of the names of what belongs to another part of the model, or to training.
const FOREIGN: [&str; 24] = [
    "audio_",
    "data_parallel",
    "model_parallel",
    "pipeline_",
    "sequence_parallel",
    "tensor_parallel",
    "encoder_",
    "freeze_",
    "gradient_",
    "image_",
    "img_",
    "logits_to_keep",
    "lora_",
    "mm_",
    "perceiver_",
    "projector_",
    "proj_",
    "seg_",
    "speech_",
    "tp_",
    "tune_",
    "video_",
    "vision_",
    "visual_",
];

/// Words of a name of what changes the computation.
const WORDS: [&str; 67] = [
    "act",
    "activation",
    "activations",
    "alibi",
    "attention",
    "attn",
    "bias",
    "biases",
    "cap",
    "causal",
    "chunk",
    "chunked",
    "clip",
    "conv",
    "embd",
    "expert",
    "experts",
    "factor",
    "factors",
    "hybrid",
    "hyper",
    "interleave",
    "interleaved",
    "latent",
    "layernorm",
    "logit",
    "logits",
    "mamba",
    "mask",
    "mixture",
    "moe",
    "multiplier",
    "multipliers",
    "mup",
    "nope",
    "norm",
    "norms",
    "ntk",
    "parallel",
    "pos",
    "position",
    "positional",
    "qk",
    "rank",
    "residual",
    "rmsnorm",
    "rope",
    "rotary",
    "scalar",
    "scale",
    "scaled",
    "scales",
    "scaling",
    "sink",
    "sinks",
    "sliding",
    "softcap",
    "softcapping",
    "sparse",
    "ssm",
    "temperature",
    "theta",
    "window",
    "windowed",
    "windows",
    "xpos",
    "yarn",
];

/// Fields that say with `true` what the graph computes anyway, or what changes no bit.
const TRUE_IS_PLAIN: [&str; 14] = [
    "attention_softmax_in_fp32",
    "is_decoder",
    "no_bias",
    "rms_norm",
    "rope",
    "rotary",
    "scale_attn_weights",
    "use_rms_norm",
    "use_rmsnorm",
    "use_rope",
    "use_rotary",
    "use_rotary_embedding",
    "use_rotary_embeddings",
    "use_rotary_position_embeddings",
];

/// Settings in words that name what the graph computes.
const PLAIN_TEXTS: [&str; 16] = [
    "",
    "none",
    "default",
    "rope",
    "rotary",
    "rotary_embedding",
    "silu",
    "swish",
    "swiglu",
    "rms",
    "rmsnorm",
    "rms_norm",
    "causal",
    "full",
    "eager",
    "softmax",
];

/// Fields of generation that sound like the model's.
const GENERATION: [&str; 5] = ["temperature", "num_return_sequences", "begin_suppress_tokens", "typical_p", "top_p"];

/// Fields that mean that this is not a decoder alone.
const OTHER_MODELS: [&str; 3] = ["is_encoder_decoder", "add_cross_attention", "tie_encoder_decoder"];

/// Refuses the first field that changes the computation and is not read.
///
/// # Errors
/// `config.unsupported`, naming the field, its value, and what is computed.
pub(super) fn check(fields: &Map<String, Value>, kind: &Kind, tokens: Option<usize>) -> Result<()> {
    let wide = windows_are_wide(fields, tokens);
    for (name, value) in fields {
        let read = READ.contains(&name.as_str()) || kind.reads(name) || is_direction(name);
        if read || !changes(name) || is_plain(name, value) || (wide && is_window(name)) {
            continue;
        }
        let readers = Kind::that_read(name);
        let way_out = match readers.as_slice() {
            [] => format!("remove the field if {}'s weights were not trained with it", kind.name),
            some => format!("{} reads it: write that as model_type if the model is one", some.join(" or ")),
        };
        let message = format!(
            "{} is {}, which changes what a model computes, and {} as computed here does not read it: {way_out}",
            short(name),
            show(value),
            kind.name
        );
        return Err(Error::new(Code::CONFIG_UNSUPPORTED, message));
    }
    Ok(())
}

/// Whether a name is that of something which changes hidden states.
fn changes(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let lower = lower.trim_start_matches('_');
    if OTHER_MODELS.contains(&lower) {
        return true;
    }
    if GENERATION.contains(&lower) || FOREIGN.iter().any(|start| lower.starts_with(start)) {
        return false;
    }
    let has = |list: &[&str]| lower.split(['_', '-', '.']).any(|word| list.contains(&word));
    has(&WORDS) && !has(&INERT_WORDS)
}

/// Whether a value says that the thing is off, or what the graph computes anyway.
fn is_plain(name: &str, value: &Value) -> bool {
    let has = |words: &[&str]| name.to_ascii_lowercase().split('_').any(|word| words.contains(&word));
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => TRUE_IS_PLAIN.contains(&name.trim_start_matches('_')),
        Value::String(text) => PLAIN_TEXTS.contains(&text.to_ascii_lowercase().as_str()),
        Value::Array(list) => list.iter().all(|item| is_plain(name, item)),
        Value::Object(fields) => fields.is_empty(),
        Value::Number(number) => {
            let multiplies =
                has(&["factor", "factors", "multiplier", "multipliers", "mup", "scalar", "scale", "scales", "scaling"]);
            let share = has(&["rotary", "temperature", "pct", "percent"]);
            let counts = has(&["max", "num", "n"]) && has(&["position", "pos"]);
            // One expert, one chunk.
            let one = has(&["expert", "experts", "chunk"]) || multiplies || share;
            number.as_f64().is_some_and(|n| n == 1.0 && one || n == 0.0 && !multiplies) || counts
        }
    }
}

/// Whether a field is about windows.
fn is_window(name: &str) -> bool {
    name.split('_').any(|word| ["window", "windows", "windowed", "sliding"].contains(&word))
}

/// Whether no window that the fields give is narrower than the longest report: then none has an effect.
fn windows_are_wide(fields: &Map<String, Value>, tokens: Option<usize>) -> bool {
    let off = fields.get("use_sliding_window") == Some(&Value::Bool(false));
    let widths = fields.iter().filter(|(name, _)| {
        is_window(name) && !name.ends_with("layers") && !name.ends_with("pattern") && !name.ends_with("interval")
    });
    let narrow = |(name, value): (&String, &Value)| match value {
        Value::Number(n) if off && name == "sliding_window" => n.as_f64().is_none(),
        Value::Number(n) => {
            let width = n.as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
            n.as_f64() != Some(0.0) && tokens.is_none_or(|tokens| width < tokens)
        }
        Value::Array(_) | Value::Object(_) | Value::String(_) => !is_plain(name, value),
        _ => false,
    };
    !widths.into_iter().any(narrow)
}
