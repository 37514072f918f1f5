//! Hugging Face's `config.json`, of transformers 4 and 5.

use serde_json::Value;

use super::super::limits::{MAX_HEADS, MAX_LAYERS, MAX_MLP, MAX_WIDTH};
use super::json::{found, language_model, number, optional_size, short, show, size, text};
use super::kinds::{Kind, Scales, missing, names};
use super::size::{LlamaConfig, MAX_HEAD_DIM, MAX_POSITIONS, MAX_VOCAB};
use super::variant::{Activation, Variant};
use super::{attention, fields, rope};
use crate::error::{Code, Error, Result, Warning, WarningCode};

impl LlamaConfig {
    /// Reads Hugging Face's `config.json` (transformers 4 and 5), for reports of any length.
    ///
    /// # Errors
    /// As [`Self::from_hf_for`].
    pub fn from_hf(json: &Value) -> Result<Self> {
        Ok(Self::read_hf(json, None)?.0)
    }

    /// Reads Hugging Face's `config.json` for reports of at most `max_tokens` tokens: windows that are wider are none.
    /// Also what to tell where the configuration leaves open what is computed.
    ///
    /// # Errors
    /// `config.unsupported`, `config.contradiction`, `config.syntax` or `config.value`, naming the field.
    pub fn from_hf_for(json: &Value, max_tokens: usize) -> Result<(Self, Vec<Warning>)> {
        let (config, warnings) = Self::read_hf(json, Some(max_tokens))?;
        Ok((config.for_tokens(max_tokens), warnings))
    }

    fn read_hf(json: &Value, tokens: Option<usize>) -> Result<(Self, Vec<Warning>)> {
        let (inner, under) = language_model(json);
        let place = |e: Error| match under {
            Some(under) => Error::new(e.code(), format!("{under}: {}", e.message())),
            None => e,
        };
        read(inner, under.is_some(), tokens).map_err(place)
    }
}

fn read(json: &Value, nested: bool, tokens: Option<usize>) -> Result<(LlamaConfig, Vec<Warning>)> {
    let Some(all) = json.as_object() else {
        return Err(Error::new(Code::CONFIG_SYNTAX, format!("found {}, expected an object", show(json))));
    };
    let classes = attention::classes(json)?;
    let mut warnings = Vec::new();
    let kind = kind(json, &classes, &mut warnings)?;
    fields::check(all, kind, tokens)?;
    let sizes = &kind.sizes;
    // Parts of a larger configuration leave out what is as in their class; of its own file, that is a mistake.
    let default = |size: usize| nested.then_some(size);
    let heads = size(json, "num_attention_heads", MAX_HEADS, default(sizes.heads))?;
    let hidden = size(json, "hidden_size", MAX_WIDTH, default(sizes.hidden))?;
    let layers = size(json, "num_hidden_layers", MAX_LAYERS, default(sizes.layers))?;
    let (bidirectional, told) = attention::bidirectional(json, &classes)?;
    warnings.extend(told);
    let nope_layers = attention::nope_layers(json, kind, layers)?;
    let window = attention::window(json, kind, layers, &nope_layers, tokens)?;
    let windowed = window.as_ref().map_or(0, |window| window.layers.len());
    let used = [(windowed < layers, "full_attention"), (windowed > 0, "sliding_attention")];
    let used: Vec<&str> = used.into_iter().filter(|(used, _)| *used).map(|(_, name)| name).collect();
    let rope = rope::read(json, kind, &used)?;
    warnings.extend(rope.warning);
    let [embedding_scale, residual_scale, attention_scale] = scales(json, kind, layers)?;
    let variant = Variant {
        bidirectional,
        window,
        nope_layers,
        interleaved: kind.interleaved,
        rope_scaling: rope.scaling,
        attention_scale,
        embedding_scale,
        residual_scale,
        qkv_bias: kind.qkv.read(json)?,
        out_bias: kind.out.read(json)?,
        mlp_bias: kind.mlp.read(json)?,
        qk_norm: kind.qk_norm,
        activation: activation(json, kind)?,
        ungated: kind.ungated,
    };
    let config = LlamaConfig {
        vocab: size(json, "vocab_size", MAX_VOCAB, default(sizes.vocab))?,
        hidden,
        mlp: size(json, "intermediate_size", MAX_MLP, default(sizes.mlp))?,
        layers,
        heads,
        kv_heads: kv_heads(json, kind, heads)?,
        head_dim: head_dim(json, kind, hidden, heads)?,
        rms_eps: number(json, "rms_norm_eps")?.unwrap_or(kind.eps),
        rope_theta: rope.theta,
        max_positions: optional_size(json, "max_position_embeddings", MAX_POSITIONS)?,
        variant,
    };
    config.validate()?;
    Ok((config, warnings))
}

/// The row of the allow-list: by `model_type`, where it is absent by the class; a configuration that names neither is
/// LLaMA's.
fn kind(json: &Value, classes: &[String], warnings: &mut Vec<Warning>) -> Result<&'static Kind> {
    let Some(model_type) = text(json, "model_type")? else {
        let Some(class) = classes.first() else { return Ok(Kind::named("llama").expect("the first row")) };
        return Kind::of_class(class).map(|(kind, _)| kind).ok_or_else(|| {
            let message = format!(
                "there is no model_type, and architectures names {}, which is not computed: computed are {}",
                short(class),
                names()
            );
            Error::new(Code::CONFIG_UNSUPPORTED, message)
        });
    };
    let (base, _) = attention::without_direction(model_type);
    let Some(kind) = Kind::named(&base) else {
        let why = missing(model_type).map(|why| format!(" ({why})")).unwrap_or_default();
        let message =
            format!("model_type is \"{}\", which is not computed{why}: computed are {}", short(model_type), names());
        return Err(Error::new(Code::CONFIG_UNSUPPORTED, message));
    };
    for class in classes {
        match Kind::of_class(class) {
            Some((other, _)) if other.name != kind.name => {
                let message = format!(
                    "model_type is \"{}\" and architectures or auto_map name {}, a class of {}: mend one",
                    short(model_type),
                    short(class),
                    other.name
                );
                return Err(Error::new(Code::CONFIG_CONTRADICTION, message));
            }
            None if base == kind.name && !attention::is_bidirectional_class(class) => {
                let message = format!(
                    "{} is no class of transformers: computed is {}Model, as model_type \"{}\" says",
                    short(class),
                    kind.class,
                    short(model_type)
                );
                warnings.push(Warning::new(WarningCode::CONFIG_CHOICE, message));
            }
            _ => {}
        }
    }
    Ok(kind)
}

fn kv_heads(json: &Value, kind: &Kind, heads: usize) -> Result<usize> {
    let field = "num_key_value_heads";
    match (optional_size(json, field, MAX_HEADS)?, json.get(field)) {
        (Some(kv), _) => Ok(kv),
        (None, Some(_)) => Ok(heads),
        // A default that cannot be is not what was left out.
        (None, None) => Ok(kind.sizes.kv_heads.filter(|kv| heads.is_multiple_of(*kv)).unwrap_or(heads)),
    }
}

fn head_dim(json: &Value, kind: &Kind, hidden: usize, heads: usize) -> Result<usize> {
    match (optional_size(json, "head_dim", MAX_HEAD_DIM)?, json.get("head_dim"), kind.sizes.head_dim) {
        (Some(dim), ..) => Ok(dim),
        (None, None, Some(dim)) => Ok(dim),
        _ if hidden.is_multiple_of(heads) => Ok(hidden / heads),
        _ => {
            let message = format!("hidden_size {hidden} is not a multiple of {heads} heads");
            Err(Error::new(Code::CONFIG_VALUE, message))
        }
    }
}

fn activation(json: &Value, kind: &Kind) -> Result<Activation> {
    match text(json, "hidden_act")? {
        None => Ok(kind.activation),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu") => Ok(Activation::Gelu),
        Some("relu") => Ok(Activation::Relu),
        Some("relu2") => Ok(Activation::Relu2),
        Some(other) => {
            let message = format!("hidden_act is \"{}\": computed are silu, gelu, relu and relu2", short(other));
            Err(Error::new(Code::CONFIG_UNSUPPORTED, message))
        }
    }
}

/// The scales of embeddings, of the residual stream and of attention.
fn scales(json: &Value, kind: &Kind, layers: usize) -> Result<[Option<f64>; 3]> {
    let scale = |field: &str| Ok(number(json, field)?.unwrap_or(1.0));
    // A factor of 1 is none: no node is made for it.
    let used = |scale: f64| Some(scale).filter(|scale| *scale != 1.0);
    match kind.scales {
        Scales::None => Ok([None; 3]),
        Scales::Granite => Ok([
            used(scale("embedding_multiplier")?),
            used(scale("residual_multiplier")?),
            // Without it scores are not divided by √head_dim either.
            Some(scale("attention_multiplier")?),
        ]),
        Scales::MiniCpm => {
            let depth = scale("scale_depth")? / (layers as f64).sqrt();
            Ok([used(scale("scale_emb")?), used(depth), None])
        }
    }
}

impl LlamaConfig {
    /// The same model where nothing says how wide a head is, and the class's default does not fit weights of
    /// `query_rows` rows, while `hidden / heads` does.
    #[must_use]
    pub(crate) fn with_query_rows(mut self, json: &Value, query_rows: usize) -> Self {
        let absent = found(language_model(json).0, "head_dim").is_none();
        let plain = self.hidden.is_multiple_of(self.heads) && query_rows == self.hidden;
        if absent && plain && self.heads * self.head_dim != query_rows && (self.hidden / self.heads).is_multiple_of(2) {
            self.head_dim = self.hidden / self.heads;
        }
        self
    }
}
