//! The language models that are computed, by `model_type`: an allow-list, a row each.
//!
//! Sizes and constants are the defaults of transformers' own configuration classes (5.24), which a `config.json` may
//! leave out; MiniCPM's are those of its authors' class. What each computes was read from the same classes, and is held
//! against them by `tests/graph/language_models.rs`.

use serde_json::Value;

use super::json::flag;
use super::variant::Activation;
use crate::error::Result;

/// Whether some linear layers have a bias.
#[derive(Clone, Copy)]
pub(super) enum Bias {
    Never,
    Always,
    /// As the field says; where it is absent, the default.
    Field(&'static str, bool),
}

/// Which layers have a sliding window where the configuration does not list them.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Windows {
    /// The model has none.
    Never,
    /// All; `layer_types` is not read.
    All,
    /// All, unless `layer_types` says otherwise.
    Types,
    /// Those from `max_window_layers` on, where `use_sliding_window` is set.
    Upper,
    /// Those without rotary embeddings, where `use_sliding_window` is set.
    Nope,
    /// Three of four.
    Pattern,
}

/// Fields of scales.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Scales {
    None,
    Granite,
    MiniCpm,
}

/// Sizes by default.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub vocab: usize,
    pub hidden: usize,
    pub mlp: usize,
    pub layers: usize,
    pub heads: usize,
    /// As many as heads where none.
    pub kv_heads: Option<usize>,
    /// `hidden / heads` where none.
    pub head_dim: Option<usize>,
}

/// One row of the allow-list.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    /// `model_type`.
    pub name: &'static str,
    /// How the names of its classes begin.
    pub class: &'static str,
    pub sizes: Sizes,
    pub eps: f64,
    pub theta: f64,
    /// Whether its rotary embeddings have no default: they are scaled ones.
    pub needs_rope: bool,
    pub interleaved: bool,
    pub qkv: Bias,
    pub out: Bias,
    pub mlp: Bias,
    pub qk_norm: bool,
    pub windows: Windows,
    /// `sliding_window` by default.
    pub window: Option<usize>,
    /// Whether `no_rope_layers` is read.
    pub nope: bool,
    pub scales: Scales,
    pub activation: Activation,
    pub ungated: bool,
}

const LLAMA: Kind = Kind {
    name: "llama",
    class: "Llama",
    sizes: sizes([32_000, 4096, 11_008, 32, 32], None, None),
    eps: 1e-6,
    theta: 1e4,
    needs_rope: false,
    interleaved: false,
    qkv: Bias::Field("attention_bias", false),
    out: Bias::Field("attention_bias", false),
    mlp: Bias::Field("mlp_bias", false),
    qk_norm: false,
    windows: Windows::Never,
    window: None,
    nope: false,
    scales: Scales::None,
    activation: Activation::Silu,
    ungated: false,
};

const MISTRAL: Kind = Kind {
    name: "mistral",
    class: "Mistral",
    sizes: sizes([32_000, 4096, 14_336, 32, 32], Some(8), None),
    qkv: Bias::Never,
    out: Bias::Never,
    mlp: Bias::Never,
    windows: Windows::All,
    window: Some(4096),
    ..LLAMA
};

const QWEN2: Kind = Kind {
    name: "qwen2",
    class: "Qwen2",
    sizes: sizes([151_936, 4096, 22_016, 32, 32], Some(32), None),
    qkv: Bias::Always,
    out: Bias::Never,
    mlp: Bias::Never,
    windows: Windows::Upper,
    window: Some(4096),
    ..LLAMA
};

/// Every kind that is computed.
pub(super) const KINDS: [Kind; 13] = [
    LLAMA,
    MISTRAL,
    Kind { name: "ministral", class: "Ministral", windows: Windows::Types, ..MISTRAL },
    QWEN2,
    Kind {
        name: "qwen3",
        class: "Qwen3",
        sizes: sizes([151_936, 4096, 22_016, 32, 32], Some(32), Some(128)),
        qkv: Bias::Field("attention_bias", false),
        out: Bias::Field("attention_bias", false),
        qk_norm: true,
        ..QWEN2
    },
    Kind { name: "granite", class: "Granite", scales: Scales::Granite, ..LLAMA },
    Kind { name: "minicpm", class: "MiniCPM", scales: Scales::MiniCpm, ..LLAMA },
    Kind {
        name: "smollm3",
        class: "SmolLM3",
        sizes: sizes([128_256, 2048, 11_008, 36, 16], Some(4), None),
        theta: 2e6,
        windows: Windows::Nope,
        nope: true,
        ..LLAMA
    },
    Kind {
        name: "ernie4_5",
        class: "Ernie4_5",
        sizes: sizes([103_424, 1024, 3072, 18, 16], Some(2), Some(128)),
        eps: 1e-5,
        theta: 5e5,
        interleaved: true,
        qkv: Bias::Field("use_bias", false),
        out: Bias::Field("use_bias", false),
        mlp: Bias::Field("use_bias", false),
        ..LLAMA
    },
    Kind {
        name: "helium",
        class: "Helium",
        sizes: sizes([48_000, 2560, 7040, 24, 20], Some(20), Some(128)),
        eps: 1e-8,
        theta: 1e5,
        interleaved: true,
        out: Bias::Never,
        ..LLAMA
    },
    Kind {
        name: "seed_oss",
        class: "SeedOss",
        sizes: sizes([155_136, 4096, 27_648, 64, 80], Some(8), Some(128)),
        qkv: Bias::Field("attention_bias", true),
        out: Bias::Field("attention_out_bias", false),
        ..LLAMA
    },
    Kind {
        name: "arcee",
        class: "Arcee",
        sizes: sizes([32_000, 2560, 18_432, 32, 32], None, None),
        eps: 1e-5,
        activation: Activation::Relu2,
        ungated: true,
        ..LLAMA
    },
    Kind {
        name: "cwm",
        class: "Cwm",
        sizes: sizes([128_256, 6144, 21_504, 64, 48], Some(8), Some(128)),
        eps: 1e-5,
        theta: 1e6,
        needs_rope: true,
        qkv: Bias::Never,
        out: Bias::Never,
        windows: Windows::Pattern,
        window: Some(8192),
        ..LLAMA
    },
];

/// Other names: models of two parts that keep their language model's sizes beside the others.
const ALIASES: [(&str, &str); 5] = [
    ("lamed_llama", "llama"),
    ("llava", "llama"),
    ("llava_llama", "llama"),
    ("llava_mistral", "mistral"),
    ("llava_qwen", "qwen2"),
];

/// Well-known models that are not computed, by the beginning of their `model_type`, and what is missing.
const OTHERS: [(&str, &str); 24] = [
    ("gemma", "it scales embeddings by √hidden, and its norms by 1 + weight"),
    ("vaultgemma", "it scales embeddings by √hidden, and its norms by 1 + weight"),
    ("phi3", "its projections are fused, and its rotary embeddings may be long ones"),
    ("phi", "it has layer norms and partial rotary embeddings"),
    ("olmoe", "it has experts"),
    ("olmo2", "its norms lie behind attention and MLP"),
    ("olmo3", "its norms lie behind attention and MLP"),
    ("olmo", "its norms have no weights"),
    ("mixtral", "it has experts"),
    ("qwen2_moe", "it has experts"),
    ("qwen3_moe", "it has experts"),
    ("deepseek", "it has experts and latent attention"),
    ("llama4", "it has experts and chunked attention"),
    ("mllama", "it has cross-attention layers"),
    ("cohere", "it has layer norms and parallel blocks"),
    ("glm", "its rotary embeddings are partial"),
    ("stablelm", "it has layer norms and partial rotary embeddings"),
    ("starcoder2", "it has layer norms and no gate"),
    ("nemotron", "it has layer norms and partial rotary embeddings"),
    ("exaone4", "its norms lie behind attention and MLP"),
    ("hunyuan", "its queries and keys are normalized behind the rotation"),
    ("granitemoe", "it has experts"),
    ("falcon", "it has layer norms and parallel blocks"),
    ("bert", "it is an encoder with learned positions"),
];

const fn sizes(of: [usize; 5], kv_heads: Option<usize>, head_dim: Option<usize>) -> Sizes {
    let [vocab, hidden, mlp, layers, heads] = of;
    Sizes { vocab, hidden, mlp, layers, heads, kv_heads, head_dim }
}

impl Kind {
    /// The kind of that `model_type`.
    pub fn named(model_type: &str) -> Option<&'static Self> {
        let name = ALIASES.iter().find(|(alias, _)| *alias == model_type).map_or(model_type, |(_, name)| name);
        KINDS.iter().find(|kind| kind.name == name)
    }

    /// The kind that a class belongs to, and what stands behind the kind's name: `Llama` and `ForCausalLM`.
    pub fn of_class(class: &str) -> Option<(&'static Self, &str)> {
        // Of transformers' classes the rest of the name begins with one of these.
        let begins = |rest: &str| ["Model", "For", "PreTrained", "Bi", "Encoder"].iter().any(|w| rest.starts_with(w));
        KINDS
            .iter()
            .find_map(|kind| class.strip_prefix(kind.class).filter(|rest| begins(rest)).map(|rest| (kind, rest)))
    }

    /// The other kinds that read a field.
    pub fn that_read(field: &str) -> Vec<&'static str> {
        KINDS.iter().filter(|kind| kind.reads(field)).map(|kind| kind.name).collect()
    }

    /// Whether the kind reads this field, besides those that all read.
    pub fn reads(&self, field: &str) -> bool {
        let bias = |bias: Bias| matches!(bias, Bias::Field(name, _) if name == field);
        let window = match self.windows {
            Windows::Never => false,
            Windows::All | Windows::Types | Windows::Pattern => field == "sliding_window",
            Windows::Upper => ["sliding_window", "use_sliding_window", "max_window_layers"].contains(&field),
            Windows::Nope => ["sliding_window", "use_sliding_window"].contains(&field),
        };
        let scale = match self.scales {
            Scales::None => false,
            // Logits are no hidden states: what scales them is read past.
            Scales::Granite => {
                ["embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"]
                    .contains(&field)
            }
            Scales::MiniCpm => ["scale_emb", "scale_depth", "dim_model_base"].contains(&field),
        };
        // Of biases that are always there, the field says what is.
        let always = matches!(self.qkv, Bias::Always) && ["attention_bias", "qkv_bias"].contains(&field);
        let nope = self.nope && ["no_rope_layers", "no_rope_layer_interval"].contains(&field);
        window || scale || always || nope || [self.qkv, self.out, self.mlp].into_iter().any(bias)
    }
}

impl Bias {
    /// Whether there is one.
    ///
    /// # Errors
    /// `config.syntax` when the field is neither true nor false.
    pub fn read(self, json: &Value) -> Result<bool> {
        match self {
            Self::Never => Ok(false),
            Self::Always => Ok(true),
            Self::Field(name, default) => Ok(flag(json, name)?.unwrap_or(default)),
        }
    }
}

/// The names of all kinds, for a message.
pub(super) fn names() -> String {
    KINDS.map(|kind| kind.name).join(", ")
}

/// What a model that is not computed would need, where it is known.
pub(super) fn missing(model_type: &str) -> Option<&'static str> {
    OTHERS.iter().find(|(name, _)| model_type.starts_with(name)).map(|(_, why)| *why)
}
