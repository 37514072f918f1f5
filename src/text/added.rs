//! Tokens that files next to a `tokenizer.model` add to it.
//!
//! In: `added_tokens.json` (content → id), and of `tokenizer_config.json` the `added_tokens_decoder` (id → content and
//! settings), `legacy`, and which tokens are special by name, as in `special_tokens_map.json`. Out: the tokens in the
//! order of their ids. The settings of the decoder win. A token without settings is special if it is named as one.
//! Sizes are bounded: `tokenizer.invalid`.
//!
//! How a report is read with them follows transformers' slow `LlamaTokenizer`. A token is taken whole. With `legacy`
//! (the default) each part of the report between them is a text of its own, with a space in front; without it the space
//! is in front of the whole report alone. Special tokens are names only: a report is text.

use std::collections::BTreeMap;

use serde_json::Value;

use super::components::brief;
use crate::error::{Code, Error, Result};

/// Maximum number of added tokens, and maximum length of one, in bytes: as those of a `tokenizer.json`.
pub(super) const MAX_ADDED: usize = 1 << 14;
pub(super) const MAX_ADDED_BYTES: usize = 128;

/// A token that was added to a tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    /// Its text.
    pub content: String,
    /// Its id.
    pub id: u32,
    /// Whether it is special: never found in a report.
    pub special: bool,
    /// Whether it takes the space in front of it, behind it, or is a word of its own only.
    pub(super) settings: [bool; 3],
}

/// The tokens that were added to a `tokenizer.model`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedTokens {
    /// The tokens by their ids, which are all different.
    pub tokens: Vec<AddedToken>,
    /// Whether each part of a report between them has a space in front.
    pub legacy: bool,
}

impl Default for AddedTokens {
    fn default() -> Self {
        Self { tokens: Vec::new(), legacy: true }
    }
}

impl AddedTokens {
    /// The tokens of these files; null where there is no such file.
    ///
    /// # Errors
    /// `tokenizer.invalid`.
    pub fn of(added_tokens: &Value, tokenizer_config: &Value, special_tokens_map: &Value) -> Result<Self> {
        let named = names(tokenizer_config).chain(names(special_tokens_map)).collect::<Vec<_>>();
        let mut tokens = BTreeMap::new();
        for (content, id) in added_tokens.as_object().into_iter().flatten() {
            let special = named.contains(&content.as_str());
            insert(&mut tokens, content, id.as_u64(), special, [false; 3])?;
        }
        let decoder = tokenizer_config.get("added_tokens_decoder").and_then(Value::as_object);
        for (id, token) in decoder.into_iter().flatten() {
            let content = token.get("content").or(Some(token)).and_then(Value::as_str).unwrap_or_default();
            let flag = |name: &str| token.get(name).and_then(Value::as_bool);
            let special = flag("special").unwrap_or_else(|| named.contains(&content));
            let settings = ["lstrip", "rstrip", "single_word"].map(|name| flag(name).unwrap_or(false));
            insert(&mut tokens, content, id.parse().ok(), special, settings)?;
        }
        let legacy = tokenizer_config.get("legacy").and_then(Value::as_bool).unwrap_or(true);
        let token = |(id, (content, special, settings))| AddedToken { content, id, special, settings };
        Ok(Self { tokens: tokens.into_iter().map(token).collect(), legacy })
    }
}

/// A token's text, whether it is special, its settings; by ids.
type Found = BTreeMap<u32, (String, bool, [bool; 3])>;

fn insert(tokens: &mut Found, content: &str, id: Option<u64>, special: bool, settings: [bool; 3]) -> Result<()> {
    let invalid = |what: String| Error::new(Code::TOKENIZER_INVALID, what);
    let shown = brief(content);
    let id = id.and_then(|id| u32::try_from(id).ok());
    let id = id.ok_or_else(|| invalid(format!("the added token `{shown}` has no number as its id")))?;
    if content.is_empty() || content.len() > MAX_ADDED_BYTES {
        let bytes = content.len();
        return Err(invalid(format!("the added token {id} has {bytes} bytes, expected 1 to {MAX_ADDED_BYTES}")));
    }
    if let Some((other, ..)) = tokens.insert(id, (content.to_owned(), special, settings))
        && other != content
    {
        return Err(invalid(format!("two added tokens have the id {id}: `{}` and `{shown}`", brief(&other))));
    }
    if tokens.len() > MAX_ADDED {
        return Err(invalid(format!("there are more than {MAX_ADDED} added tokens")));
    }
    Ok(())
}

/// The tokens that a `tokenizer_config.json` or `special_tokens_map.json` names as special: `bos_token` and the like.
fn names(json: &Value) -> impl Iterator<Item = &str> {
    let fields = json.as_object().into_iter().flatten();
    let fields = fields.filter(|(key, _)| key.ends_with("_token") || key.ends_with("special_tokens"));
    let lists = fields.flat_map(|(_, value)| match value {
        Value::Array(list) => list.iter().collect(),
        one => vec![one],
    });
    lists.filter_map(content)
}

/// The text of a token as the two files have it: a text, or an object with `content`.
pub(super) fn content(token: &Value) -> Option<&str> {
    token.get("content").unwrap_or(token).as_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_files_are_one_list() {
        let config = json!({
            "legacy": false, "pad_token": {"content": "<pad>"}, "extra_special_tokens": ["<x>"],
            "added_tokens_decoder": {"9": {"content": "CDR", "special": false, "rstrip": true}, "7": {"content": "<x>"}},
        });
        let added = json!({"<pad>": 8, "CDR": 9, "MoCA": 10, "<map>": 11});
        let found = AddedTokens::of(&added, &config, &json!({"sep_token": "<map>"})).unwrap();
        let found_tokens: Vec<_> = found.tokens.iter().map(|t| (t.id, t.content.as_str(), t.special)).collect();
        let expected =
            [(7, "<x>", true), (8, "<pad>", true), (9, "CDR", false), (10, "MoCA", false), (11, "<map>", true)];
        assert_eq!((found_tokens.as_slice(), found.legacy), (expected.as_slice(), false));
        assert_eq!(found.tokens[2].settings, [false, true, false]);
        assert_eq!(AddedTokens::of(&Value::Null, &Value::Null, &Value::Null).unwrap(), AddedTokens::default());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (added, config, word) in [
            (json!({"a": -1}), json!({}), "no number"),
            (json!({"": 3}), json!({}), "0 bytes"),
            (json!({"a": 3}), json!({"added_tokens_decoder": {"3": {"content": "b"}}}), "two added tokens"),
            (json!({}), json!({"added_tokens_decoder": {"x": {"content": "b"}}}), "no number"),
            (json!({"y".repeat(200): 3}), json!({}), "200 bytes"),
        ] {
            let error = AddedTokens::of(&added, &config, &Value::Null).unwrap_err();
            assert!(error.message().contains(word) && error.message().contains("added token"), "{error}");
        }
    }
}
