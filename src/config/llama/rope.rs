//! Rotary embeddings: the base, and how frequencies are scaled.
//!
//! `rope_theta` with `rope_scaling` (transformers 4) or `rope_parameters` (5), the latter also nested by layer type.
//! All that are there must agree: one base and one scaling serve all layers.

use serde_json::Value;

use super::json::{found, number, optional_size, show, text};
use super::kinds::Kind;
use super::variant::RopeScaling;
use crate::error::{Code, Error, Result, Warning, WarningCode};

/// Maximum number of positions that frequencies were trained for.
const MAX_POSITIONS: usize = 1 << 24;

/// Settings that mean nothing to plain and LLaMA 3.1's frequencies.
const UNREAD: [&str; 3] = ["rope_theta", "finetuned", "max_position_embeddings"];

/// What the configuration says of rotary embeddings.
pub(super) struct Rope {
    pub theta: f64,
    pub scaling: Option<RopeScaling>,
    pub warning: Option<Warning>,
}

/// One set of settings, and the name under which it stands.
struct Entry<'a> {
    name: String,
    json: &'a Value,
}

/// Reads the settings of a model with these layer types.
///
/// # Errors
/// `config.unsupported` for another scaling than LLaMA 3.1's, and where layer types differ; `config.contradiction`
/// where two bases or scalings disagree.
pub(super) fn read(json: &Value, kind: &Kind, used: &[&str]) -> Result<Rope> {
    let entries = entries(json, used)?;
    let mut theta: Option<(String, f64)> = number(json, "rope_theta")?.map(|t| ("rope_theta".to_owned(), t));
    let mut scaling: Option<(String, Option<RopeScaling>)> = None;
    let mut warning = None;
    for entry in &entries {
        let own = number(entry.json, "rope_theta")?;
        let own_name = format!("{}.rope_theta", entry.name);
        match (&theta, own) {
            (Some((name, a)), Some(b)) if *a != b => return disagree(name, a, &own_name, &b),
            (None, Some(b)) => theta = Some((own_name, b)),
            _ => {}
        }
        let (own, untyped) = entry.scaling(json)?;
        warning = warning.or(untyped);
        match &scaling {
            Some((name, other)) if *other != own => {
                let message = format!(
                    "{name} and {} scale rotary embeddings differently: one scaling serves all layers here",
                    entry.name
                );
                return Err(Error::new(Code::CONFIG_UNSUPPORTED, message));
            }
            _ => scaling = Some((entry.name.clone(), own)),
        }
    }
    if kind.needs_rope && entries.is_empty() {
        let message =
            format!("rope_parameters are missing: {} scales rotary embeddings, and nothing says how", kind.name);
        return Err(Error::new(Code::CONFIG_SYNTAX, message));
    }
    let theta = theta.map_or(kind.theta, |(_, theta)| theta);
    Ok(Rope { theta, scaling: scaling.and_then(|(_, scaling)| scaling), warning })
}

fn disagree<T>(name: &str, a: &f64, other: &str, b: &f64) -> Result<T> {
    // Two layer types are no mistake, only more than is computed.
    let by_layer = |name: &str| name.matches('.').count() > 1;
    let (code, why) = match by_layer(name) && by_layer(other) {
        true => (Code::CONFIG_UNSUPPORTED, "one base serves all layers here"),
        false => (Code::CONFIG_CONTRADICTION, "they must agree"),
    };
    Err(Error::new(code, format!("{name} is {a} and {other} {b}: {why}")))
}

/// Every set of settings that some layer uses.
fn entries<'a>(json: &'a Value, used: &[&str]) -> Result<Vec<Entry<'a>>> {
    let mut all = Vec::new();
    for field in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = found(json, field) else { continue };
        let Some(object) = rope.as_object() else {
            let message = format!("{field} is {}, expected an object", show(rope));
            return Err(Error::new(Code::CONFIG_SYNTAX, message));
        };
        let nested: Vec<(&String, &Value)> = object.iter().filter(|(_, value)| value.is_object()).collect();
        if nested.is_empty() {
            if !object.is_empty() {
                all.push(Entry { name: field.to_owned(), json: rope });
            }
            continue;
        }
        // What stands beside them is for all of them.
        if object.len() > nested.len() {
            all.push(Entry { name: field.to_owned(), json: rope });
        }
        let is_used = |name: &str| used.contains(&name);
        let any = nested.iter().any(|(name, _)| is_used(name));
        let of_use = nested.into_iter().filter(|(name, _)| !any || is_used(name));
        all.extend(of_use.map(|(name, json)| Entry { name: format!("{field}.{name}"), json }));
    }
    Ok(all)
}

impl Entry<'_> {
    /// How frequencies are scaled, if they are; and what to tell of it.
    fn scaling(&self, json: &Value) -> Result<(Option<RopeScaling>, Option<Warning>)> {
        let (new, old) = (text(self.json, "rope_type")?, text(self.json, "type")?);
        let kinds: Vec<&str> = [new, old].into_iter().flatten().collect();
        let kind = kinds.iter().find(|kind| **kind != "default").or(kinds.first()).copied();
        let factor = number(self.json, "factor")?;
        let mut allowed = vec!["rope_type", "type", "factor", "original_max_position_embeddings"];
        allowed.extend(["low_freq_factor", "high_freq_factor"]);
        let scaling = match kind.unwrap_or("default") {
            "default" => None,
            "llama3" => Some(self.llama3(json)?),
            // Within the positions that the model was trained for, its base is not changed.
            "dynamic" if found(json, "max_position_embeddings").is_some() => None,
            "linear" if factor == Some(1.0) => None,
            other => {
                let message = format!(
                    "{} has type \"{}\": rotary embeddings are computed plain (\"default\") or as LLaMA 3.1 scales \
                     them (\"llama3\")",
                    self.name,
                    super::json::short(other)
                );
                return Err(Error::new(Code::CONFIG_UNSUPPORTED, message));
            }
        };
        self.check_others(&allowed)?;
        let untyped = factor.filter(|factor| kind.is_none() && *factor != 1.0).map(|factor| {
            let message = format!(
                "{} has factor {factor} and no rope_type: rotary embeddings are not scaled, as in transformers",
                self.name
            );
            Warning::new(WarningCode::CONFIG_CHOICE, message)
        });
        Ok((scaling, untyped))
    }

    /// Refuses settings that no scaling here reads and that are not 1.
    fn check_others(&self, allowed: &[&str]) -> Result<()> {
        let Some(object) = self.json.as_object() else { return Ok(()) };
        let nothing = |value: &Value| value.is_null() || value.is_object() || value.as_f64() == Some(1.0);
        let other = object.iter().find(|(name, value)| {
            !allowed.contains(&name.as_str()) && !UNREAD.contains(&name.as_str()) && !nothing(value)
        });
        let Some((name, value)) = other else { return Ok(()) };
        let message = format!(
            "{}.{} is {}: rotary embeddings are computed on whole heads, plain or as LLaMA 3.1 scales them",
            self.name,
            super::json::short(name),
            show(value)
        );
        Err(Error::new(Code::CONFIG_UNSUPPORTED, message))
    }

    fn llama3(&self, json: &Value) -> Result<RopeScaling> {
        let number = |field: &str| {
            let found = number(self.json, field)?;
            let missing = || Error::new(Code::CONFIG_SYNTAX, format!("{}.{field} is missing", self.name));
            found.ok_or_else(missing)
        };
        let field = "original_max_position_embeddings";
        let original = [(json, field), (self.json, field), (json, "max_position_embeddings")];
        let mut places = original.into_iter().filter(|(json, field)| found(json, field).is_some());
        let Some((place, field)) = places.next() else {
            return Err(Error::new(Code::CONFIG_SYNTAX, format!("{}.{field} is missing", self.name)));
        };
        let original = optional_size(place, field, MAX_POSITIONS)?.unwrap_or(MAX_POSITIONS);
        let (low_freq_factor, high_freq_factor) = (number("low_freq_factor")?, number("high_freq_factor")?);
        Ok(RopeScaling { factor: number("factor")?, low_freq_factor, high_freq_factor, original })
    }
}
