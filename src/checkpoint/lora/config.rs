//! `adapter_config.json`: what PEFT says of an adapter.
//!
//! Flows in: the file's bytes. Flows out: [`Config`]: rank and scale of each module. Rank and alpha are PEFT's:
//! `rank_pattern` and `alpha_pattern` hold regular expressions for the end of a module's name, the first that matches
//! counts, and the scale is alpha / r, or alpha / √r with `use_rslora`.
//!
//! `fan_in_fan_out` is not asked: PEFT itself ignores it for the linear layers that our models are made of. Which
//! modules the update has, its tensors say (`target_modules`, `layers_to_transform` and their kin do not).
//!
//! # Errors
//! `checkpoint.lora`: another method, a setting that makes the update something else than s·B·A, or one that is
//! missing.

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::super::names::shown;
use super::refuse;
use crate::error::Result;
use crate::json;
use crate::tensor::number::{to_f32, to_f64};

/// Most values in the file: a pattern for each module of a large model.
const MAX_VALUES: usize = 1 << 16;
/// Most patterns of either kind.
const MAX_PATTERNS: usize = 4096;

/// Settings under which the weights are not W + s·B·A, or whose tensors are others, and what they are.
const REFUSED: &[(&str, &str)] = &[
    ("use_dora", "DoRA"),
    ("use_qalora", "QA-LoRA"),
    ("use_bdlora", "BD-LoRA"),
    ("arrow_config", "Arrow"),
    ("kasa_config", "KaSA"),
    ("monteclora_config", "MonteCLoRA"),
    ("velora_config", "VeLoRA"),
    ("alora_invocation_tokens", "activated LoRA, which works on some tokens only"),
    ("layer_replication", "layers replicated"),
    ("trainable_token_indices", "single tokens trained"),
    ("target_parameters", "parameters targeted by name"),
    ("enable_lora", "merged linear layers"),
    ("megatron_config", "Megatron's layers"),
];

/// Ways to begin that leave the base as it was. Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take s·B·A at the start of
/// training from it, which the saved base does not tell.
const BEGINNINGS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

/// Settings that are read, or that leave s·B·A what it is, though their names are like those of other methods.
const HARMLESS: [&str; 7] =
    ["use_rslora", "use_cache", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"];

/// What an adapter's configuration says.
#[derive(Debug)]
pub(super) struct Config {
    rank: usize,
    alpha: f64,
    ranks: Vec<(Regex, f64)>,
    alphas: Vec<(Regex, f64)>,
    rslora: bool,
}

impl Config {
    /// Reads the file's bytes.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let json = json::parse_settings(bytes.to_vec(), MAX_VALUES);
        let json = json.map_err(|e| refuse(format!("is no adapter_config.json: {e}")))?;
        check(&json)?;
        let rank = number(&json, "r")?;
        let rank = whole(rank).ok_or_else(|| refuse(format!("r is {rank}, expected a whole number above 0")))?;
        let patterns = |name| patterns(&json, name);
        Ok(Self {
            rank,
            alpha: number(&json, "lora_alpha")?,
            ranks: patterns("rank_pattern")?,
            alphas: patterns("alpha_pattern")?,
            rslora: flag(&json, "use_rslora")?,
        })
    }

    /// The rank of `module`, named without PEFT's prefix, and the scale of its update.
    pub fn of(&self, module: &str) -> Result<(usize, f32)> {
        let rank = first(&self.ranks, module);
        let rank = rank.map_or(Some(self.rank), whole);
        let rank = rank.ok_or_else(|| refuse(format!("rank_pattern gives `{}` no whole rank", shown(module))))?;
        let alpha = first(&self.alphas, module).unwrap_or(self.alpha);
        let scale = to_f32(if self.rslora { alpha / to_f64(rank).sqrt() } else { alpha / to_f64(rank) });
        match scale.is_finite() {
            true => Ok((rank, scale)),
            false => Err(refuse(format!("lora_alpha {alpha} over rank {rank} is no float32"))),
        }
    }

    /// Rank and alpha, for a message.
    pub fn summary(&self) -> String {
        let rank = if self.ranks.is_empty() { self.rank.to_string() } else { format!("{} and others", self.rank) };
        let alpha = if self.alphas.is_empty() { self.alpha.to_string() } else { format!("{} and others", self.alpha) };
        format!("r {rank}, alpha {alpha}{}", if self.rslora { ", rsLoRA" } else { "" })
    }
}

/// `base_model_name_or_path`, cut for a message.
pub(super) fn base(json: &Value) -> Option<String> {
    json.get("base_model_name_or_path").and_then(Value::as_str).filter(|name| !name.is_empty()).map(shown)
}

/// Refuses other methods, and settings that change what is merged.
fn check(json: &Value) -> Result<()> {
    let kind = json.get("peft_type").and_then(Value::as_str);
    let kind = kind.ok_or_else(|| refuse("is no adapter_config.json: it has no peft_type".into()))?;
    if !kind.eq_ignore_ascii_case("lora") {
        return Err(refuse(format!("peft_type is {}, and LORA alone is merged here", shown(kind))));
    }
    if let Some((name, what)) = REFUSED.iter().find(|(name, _)| json.get(name).is_some_and(json::is_on)) {
        return Err(refuse(format!("{name} is set ({what}), and plain LoRA alone is merged here")));
    }
    let beginning = json.get("init_lora_weights").and_then(Value::as_str);
    if let Some(kind) = beginning.filter(|kind| !BEGINNINGS.contains(&kind.to_ascii_lowercase().as_str())) {
        return Err(refuse(format!(
            "init_lora_weights is {}, which changed the base before training: save with \
             path_initial_model_for_weight_conversion",
            shown(kind)
        )));
    }
    let unknown = json.as_object().into_iter().flatten().find(|(name, value)| {
        !HARMLESS.contains(&name.as_str())
            && (name.starts_with("use_") || name.ends_with("_config"))
            && json::is_on(value)
    });
    match unknown {
        Some((name, _)) => Err(refuse(format!("{} is set, which is not known here", shown(name)))),
        None => Ok(()),
    }
}

fn flag(json: &Value, name: &str) -> Result<bool> {
    match json.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(_) => Err(refuse(format!("{name} is neither true nor false"))),
    }
}

fn number(json: &Value, name: &str) -> Result<f64> {
    let number = json.get(name).and_then(Value::as_f64).filter(|n| n.is_finite());
    number.ok_or_else(|| refuse(format!("{name} is missing or no number: it scales the update")))
}

fn whole(number: f64) -> Option<usize> {
    let whole = crate::tensor::number::truncate(number);
    (number >= 1.0 && to_f64(whole) == number).then_some(whole)
}

/// The patterns of that name, in the file's order; each is held against the end of a module's name.
fn patterns(json: &Value, name: &str) -> Result<Vec<(Regex, f64)>> {
    let map = match json.get(name) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(map)) if map.len() <= MAX_PATTERNS => map,
        Some(_) => return Err(refuse(format!("{name} is no table of at most {MAX_PATTERNS} patterns"))),
    };
    let pattern = |(key, value): (&String, &Value)| {
        let whole = format!(r"^(?:(?:.*\.)?(?:{key}))$");
        let regex = RegexBuilder::new(&whole).size_limit(1 << 20).build();
        let regex = regex.map_err(|_| refuse(format!("{name} has the pattern `{}`, which is not read", shown(key))))?;
        let number = value.as_f64().filter(|n| n.is_finite());
        let number = number.ok_or_else(|| refuse(format!("{name} gives `{}` no number", shown(key))))?;
        Ok((regex, number))
    };
    map.iter().map(pattern).collect()
}

fn first(patterns: &[(Regex, f64)], module: &str) -> Option<f64> {
    patterns.iter().find(|(regex, _)| regex.is_match(module)).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(change: impl Fn(&mut Value)) -> Result<Config> {
        let mut json = json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "use_dora": false, "loftq_config": {},
            "init_lora_weights": true, "bias": "none", "layer_replication": null, "qalora_group_size": 16});
        change(&mut json);
        Config::read(json.to_string().as_bytes())
    }

    #[test]
    fn the_first_pattern_that_fits_the_end_of_a_name_counts() {
        let c = config(|j| {
            j["rank_pattern"] = json!({"q_proj": 4, r"layers\.[01]\..*_proj": 2, "^model.layers.3.v_proj": 1});
            j["alpha_pattern"] = json!({"layers.0.q_proj": 32});
        })
        .unwrap();
        for (module, want) in [
            ("model.layers.0.q_proj", (4, 8.0)),
            ("model.layers.1.k_proj", (2, 8.0)),
            ("model.layers.3.v_proj", (1, 16.0)),
            ("model.layers.5.seq_proj", (8, 2.0)),
            ("q_proj", (4, 4.0)),
            ("model.layers.10.q_proj.x", (8, 2.0)),
        ] {
            assert_eq!(c.of(module).unwrap(), want, "{module}");
        }
        assert_eq!(config(|j| j["use_rslora"] = json!(true)).unwrap().of("x").unwrap(), (8, 16.0 / 8f32.sqrt()));
    }

    #[test]
    fn what_is_not_plain_lora_is_named() {
        for (name, value, words) in [
            ("use_dora", json!(true), "DoRA"),
            ("peft_type", json!("IA3"), "IA3"),
            ("peft_type", json!(7), "peft_type"),
            ("init_lora_weights", json!("pissa_niter_4"), "pissa_niter_4"),
            ("init_lora_weights", json!("loftq"), "loftq"),
            ("trainable_token_indices", json!([1, 2]), "single tokens"),
            ("use_something_new", json!(true), "use_something_new"),
            ("other_config", json!({"a": 1}), "other_config"),
            ("lora_alpha", json!(null), "lora_alpha"),
            ("r", json!(0), "r is 0"),
            ("r", json!(2.5), "r is 2.5"),
            ("rank_pattern", json!({"(?=x)": 1}), "(?=x)"),
            ("alpha_pattern", json!([]), "alpha_pattern"),
        ] {
            let error = config(|j| j[name] = value.clone()).unwrap_err();
            assert!(error.message().contains(words), "{error}");
        }
        config(|j| j["init_lora_weights"] = json!("gaussian")).unwrap();
        assert!(config(|j| j["lora_alpha"] = json!(1e300)).unwrap().of("x").is_err());
        assert!(Config::read(br#"{"peft_type": "LORA", "r": 4, "lora_alpha": Infinity}"#).is_err());
    }
}
