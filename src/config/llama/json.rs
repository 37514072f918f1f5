//! Fields of a JSON object, by type and within bounds.
//!
//! # Errors
//! `config.syntax` for a field that is missing or of another type, `config.value` for one out of bounds.

use serde_json::Value;

use crate::error::{Code, Error, Result};

/// Fields under which configurations of larger models keep that of their language model.
const NESTED: [&str; 3] = ["text_config", "llm_config", "language_config"];

/// The object that describes the language model: `text_config` of LLaVA-like configurations, which have no sizes of
/// their own; else the configuration itself. And the name of the field that it lies under.
pub(crate) fn language_model(json: &Value) -> (&Value, Option<&'static str>) {
    let own = found(json, "hidden_size").is_some();
    let nested = NESTED.into_iter().find(|name| !own && json.get(name).is_some_and(Value::is_object));
    (nested.and_then(|name| json.get(name)).unwrap_or(json), nested)
}

/// The field, unless it is absent or null.
pub(super) fn found<'a>(json: &'a Value, field: &str) -> Option<&'a Value> {
    json.get(field).filter(|value| !value.is_null())
}

/// A whole number from 1 to `max`.
pub(super) fn optional_size(json: &Value, field: &str, max: usize) -> Result<Option<usize>> {
    let Some(found) = found(json, field) else { return Ok(None) };
    match found.as_u64().and_then(|n| usize::try_from(n).ok()) {
        Some(n) if (1..=max).contains(&n) => Ok(Some(n)),
        _ => {
            let message = format!("{field} is {}, expected a whole number from 1 to {max}", show(found));
            Err(Error::new(Code::CONFIG_VALUE, message))
        }
    }
}

/// A whole number from 1 to `max`; where it is absent, the default, if there is one.
pub(super) fn size(json: &Value, field: &str, max: usize, default: Option<usize>) -> Result<usize> {
    let found = optional_size(json, field, max)?.or(default);
    found.ok_or_else(|| Error::new(Code::CONFIG_SYNTAX, format!("the field {field} is missing")))
}

/// A number.
pub(super) fn number(json: &Value, field: &str) -> Result<Option<f64>> {
    let Some(found) = found(json, field) else { return Ok(None) };
    match found.as_f64() {
        Some(n) => Ok(Some(n)),
        None => Err(Error::new(Code::CONFIG_SYNTAX, format!("{field} is {}, expected a number", show(found)))),
    }
}

/// `true` or `false`.
pub(super) fn flag(json: &Value, field: &str) -> Result<Option<bool>> {
    let Some(found) = found(json, field) else { return Ok(None) };
    match found.as_bool() {
        Some(b) => Ok(Some(b)),
        None => Err(Error::new(Code::CONFIG_SYNTAX, format!("{field} is {}, expected true or false", show(found)))),
    }
}

/// A text.
pub(super) fn text<'a>(json: &'a Value, field: &str) -> Result<Option<&'a str>> {
    let Some(found) = found(json, field) else { return Ok(None) };
    match found.as_str() {
        Some(text) => Ok(Some(text)),
        None => Err(Error::new(Code::CONFIG_SYNTAX, format!("{field} is {}, expected a text", show(found)))),
    }
}

/// A value as a message shows it: in one line, and short.
pub(super) fn show(value: &Value) -> String {
    short(&value.to_string())
}

/// A name as a message shows it.
pub(super) fn short(text: &str) -> String {
    let mut shown: String = text.escape_debug().to_string().replace("\\\"", "\"").chars().take(60).collect();
    if text.chars().count() > 60 {
        shown.push('…');
    }
    shown
}
