//! Checks a `tokenizer.json` before the crate `tokenizers` reads it: some of what a file may hold makes that
//! crate panic, or read one report differently from call to call.

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::error::{Code, Error, Result};

/// The tokenizer of that text.
pub(super) fn read(bytes: &[u8]) -> Result<Tokenizer> {
    let invalid = |message: String| Error::new(Code::TOKENIZER_INVALID, message);
    // Invalid JSON inside `decoder` panics there.
    let json: Value = serde_json::from_slice(bytes).map_err(|e| invalid(format!("not a tokenizer.json: {e}")))?;
    // A character map that cannot be parsed panics there. LLaMA's tokenizers have none.
    if json.get("normalizer").is_some_and(has_character_map) {
        return Err(invalid("its normaliser is precompiled, which LLaMA's are not".into()));
    }
    check_model(json.get("model").unwrap_or(&Value::Null)).map_err(invalid)?;
    if json.pointer("/model/dropout").is_some_and(|d| !d.is_null() && d.as_f64() != Some(0.0)) {
        return Err(invalid("it has dropout: one report would be read differently each time".into()));
    }
    Tokenizer::from_bytes(json.to_string()).map_err(|e| invalid(format!("not a tokenizer.json: {e}")))
}

/// A byte-pair encoding whose merges all lead to a piece: one that does not is an index out of bounds there.
fn check_model(model: &Value) -> Result<(), String> {
    let kind = model.get("type").and_then(Value::as_str);
    // Old files name no type.
    if kind.is_some_and(|kind| kind != "BPE") {
        return Err(format!("its model is {}, expected BPE, as LLaMA's is", kind.unwrap_or_default()));
    }
    for affix in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model.get(affix).and_then(Value::as_str).is_some_and(|text| !text.is_empty()) {
            return Err(format!("its model has a {affix}, which LLaMA's has not"));
        }
    }
    let (Some(vocab), Some(merges)) = (model.get("vocab"), model.get("merges").and_then(Value::as_array)) else {
        return Err("its model has no vocabulary or no merges".into());
    };
    for merge in merges {
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            _ => merge.get(0).and_then(Value::as_str).zip(merge.get(1).and_then(Value::as_str)),
        };
        let joined = pair.map(|(a, b)| format!("{a}{b}"));
        if joined.is_none_or(|piece| vocab.get(piece).is_none()) {
            return Err(format!("the merge {merge} leads to no piece"));
        }
    }
    Ok(())
}

/// Whether a normaliser, or one inside it, is of the type `Precompiled`.
fn has_character_map(normalizer: &Value) -> bool {
    match normalizer {
        Value::Object(map) => {
            map.get("type").is_some_and(|t| t == "Precompiled") || map.values().any(has_character_map)
        }
        Value::Array(all) => all.iter().any(has_character_map),
        _ => false,
    }
}
