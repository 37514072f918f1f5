//! Checks a `tokenizer.json` before the crate `tokenizers` reads it: some of what a file may hold makes that
//! crate panic, take memory or time without bound, or read one report differently from call to call.

use std::collections::HashSet;

use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use super::added::{MAX_ADDED, MAX_ADDED_BYTES};
use super::components::{self, brief};
use crate::error::{Code, Error, Result};
use crate::json;

/// Maximum number of pieces, and the bound of their ids. Gemma, the largest vocabulary of its time, has 262,144.
const MAX_PIECES: usize = 1 << 19;
/// Maximum number of merges.
const MAX_MERGES: usize = 1 << 20;
/// Maximum length of a piece, in bytes.
const MAX_PIECE: usize = 2048;
/// Maximum length of the piece for unknown characters: each of them becomes it.
const MAX_UNKNOWN: usize = 64;
/// Maximum number of JSON values in the file: merges may be lists of two.
const MAX_VALUES: usize = MAX_PIECES + 3 * MAX_MERGES;
/// Maximum factor by which a text may grow before it is cut into pieces.
const MAX_GROWTH: f64 = 64.0;

/// A tokenizer that was checked.
pub(super) struct Checked {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// By which factor it can lengthen a text, in bytes.
    pub growth: f64,
}

/// The tokenizer of that text.
pub(super) fn read(bytes: &[u8]) -> Result<Checked> {
    let invalid = |message: String| Error::new(Code::TOKENIZER_INVALID, message);
    // Invalid JSON inside `decoder` panics there.
    let json = json::parse(bytes, MAX_VALUES).map_err(|e| invalid(format!("not a tokenizer.json: {e}")))?;
    let Value::Object(mut json) = json else { return Err(invalid("not a tokenizer.json: not an object".into())) };
    // Neither is ours: a report is cut to the model's tokens, and never padded.
    json.retain(|key, _| key != "truncation" && key != "padding");
    check_model(json.get("model").unwrap_or(&Value::Null)).map_err(invalid)?;
    let added = check_added(json.get("added_tokens").unwrap_or(&Value::Null)).map_err(invalid)?;
    let growth = components::check(&json, added.shortest).map_err(invalid)?;
    if growth > MAX_GROWTH {
        let message = format!("it can make a text {growth:.0} times as long, at most {MAX_GROWTH} times is read");
        return Err(invalid(message));
    }
    let text = Value::Object(json).to_string();
    let tokenizer = Tokenizer::from_bytes(text).map_err(|e| invalid(format!("not a tokenizer.json: {e}")))?;
    // The crate gives ids of its own where the file's do not follow the pieces, and only logs that it does.
    for (content, id) in added.ids {
        if tokenizer.token_to_id(&content).map(u64::from) != Some(id) {
            return Err(invalid(format!("its added token `{}` cannot have the id {id}", brief(&content))));
        }
    }
    Ok(Checked { tokenizer, growth })
}

/// A byte-pair encoding of bounded size whose merges all lead to a piece: one that does not is an index out of bounds
/// there.
fn check_model(model: &Value) -> Result<(), String> {
    let Some(model) = model.as_object() else { return Err("it has no model".into()) };
    let kind = model.get("type").and_then(Value::as_str);
    // Old files name no type.
    if kind.is_some_and(|kind| kind != "BPE") {
        return Err(format!("its model is {}, expected BPE, as LLaMA's is", brief(kind.unwrap_or_default())));
    }
    for affix in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model.get(affix).and_then(Value::as_str).is_some_and(|text| !text.is_empty()) {
            return Err(format!("its model has a {affix}, which LLaMA's has not"));
        }
    }
    if model.get("dropout").is_some_and(|d| !d.is_null() && d.as_f64() != Some(0.0)) {
        return Err("it has dropout: one report would be read differently each time".into());
    }
    if model.get("unk_token").and_then(Value::as_str).is_some_and(|text| text.len() > MAX_UNKNOWN) {
        return Err(format!("its unk_token has more than {MAX_UNKNOWN} bytes"));
    }
    let vocab = model.get("vocab").and_then(Value::as_object);
    let (Some(vocab), Some(merges)) = (vocab, model.get("merges").and_then(Value::as_array)) else {
        return Err("its model has no vocabulary or no merges".into());
    };
    check_pieces(vocab)?;
    if merges.len() > MAX_MERGES {
        return Err(format!("it has {} merges, at most {MAX_MERGES} are read", merges.len()));
    }
    for merge in merges {
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            _ => merge.get(0).and_then(Value::as_str).zip(merge.get(1).and_then(Value::as_str)),
        };
        let joined = pair.map(|(a, b)| format!("{a}{b}"));
        if joined.is_none_or(|piece| vocab.get(&piece).is_none()) {
            return Err(format!("the merge {} leads to no piece", brief(&merge.to_string())));
        }
    }
    Ok(())
}

/// Pieces of bounded number and length, each with an id of its own that a table of that size can have.
fn check_pieces(vocab: &Map<String, Value>) -> Result<(), String> {
    if vocab.len() > MAX_PIECES {
        return Err(format!("it has {} pieces, at most {MAX_PIECES} are read", vocab.len()));
    }
    let mut taken = vec![false; MAX_PIECES];
    for (piece, id) in vocab {
        if piece.len() > MAX_PIECE {
            return Err(format!("its piece `{}` has {} bytes, at most {MAX_PIECE}", brief(piece), piece.len()));
        }
        let place = id.as_u64().and_then(|id| usize::try_from(id).ok()).and_then(|id| taken.get_mut(id));
        match place {
            Some(place) if !*place => *place = true,
            Some(_) => return Err(format!("two of its pieces have the id {id}")),
            None => {
                let id = brief(&id.to_string());
                return Err(format!("its piece `{}` has the id {id}, expected 0 to {}", brief(piece), MAX_PIECES - 1));
            }
        }
    }
    Ok(())
}

/// What added tokens promise.
struct Added {
    ids: Vec<(String, u64)>,
    /// Length in bytes of the shortest that is found in a text. Special ones are not: a report is text.
    shortest: Option<f64>,
}

/// Added tokens of bounded number and length, whose settings cost no time that grows with the square of the text.
fn check_added(tokens: &Value) -> Result<Added, String> {
    let mut added = Added { ids: Vec::new(), shortest: None };
    if tokens.is_null() {
        return Ok(added);
    }
    let list = tokens.as_array().filter(|list| list.len() <= MAX_ADDED);
    let list = list.ok_or_else(|| format!("its added_tokens are no list of at most {MAX_ADDED}"))?;
    let (mut contents, mut ids) = (HashSet::new(), HashSet::new());
    for token in list {
        let flag = |name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
        let (content, id) = (token.get("content").and_then(Value::as_str), token.get("id").and_then(Value::as_u64));
        let (Some(content), Some(id)) = (content, id) else {
            return Err(format!("its added token {} has no content or no id", brief(&token.to_string())));
        };
        let shown = brief(content);
        if content.is_empty() || content.len() > MAX_ADDED_BYTES {
            return Err(format!("its added token {id} has {} bytes, expected 1 to {MAX_ADDED_BYTES}", content.len()));
        }
        if !contents.insert(content) || !ids.insert(id) {
            return Err(format!("its added token `{shown}`, or the id {id}, is there twice"));
        }
        if !flag("special") {
            // Each would search the whole text in front of it, or take the space behind it more than once.
            if flag("single_word") || flag("lstrip") || flag("rstrip") && content.contains(char::is_whitespace) {
                return Err(format!("its added token `{shown}` depends on its surroundings, which LLaMA's do not"));
            }
            let length = u32::try_from(content.len()).map_or(f64::INFINITY, f64::from);
            added.shortest = Some(added.shortest.map_or(length, |shortest: f64| shortest.min(length)));
        }
        added.ids.push((content.to_owned(), id));
    }
    Ok(added)
}
