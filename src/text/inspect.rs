//! What a tokenizer says of itself, for whoever puts it next to a language model: its special tokens, its template,
//! and the ids that it can produce.

use serde_json::Value;
use tokenizers::ModelWrapper;

use super::Tokenizer;

/// What a tokenizer's own template puts around a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    /// The special tokens in front of the text.
    pub before: Vec<String>,
    /// Those behind it.
    pub after: Vec<String>,
}

/// A token that a report can become, beyond the rows of an embedding table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beyond {
    /// Its text.
    pub content: String,
    /// Its id.
    pub id: u32,
    /// Whether it was added to the model's own pieces.
    pub added: bool,
}

impl Tokenizer {
    /// The text of a token.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token.
    pub fn id(&self, content: &str) -> Option<u32> {
        self.inner.token_to_id(content)
    }

    /// Whether a token is special: one that a report cannot become.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    /// Whether it lists any special token.
    pub fn has_special(&self) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().values().any(|token| token.special)
    }

    /// The id that stands for unknown characters.
    pub fn unknown_token(&self) -> Option<u32> {
        let ModelWrapper::BPE(model) = self.inner.get_model() else { return None };
        model.unk_token.as_ref().and_then(|token| self.id(token))
    }

    /// The template; none where the tokenizer has no post-processor at all, and says nothing therefore.
    pub fn template(&self) -> Option<Template> {
        let json = serde_json::to_value(self.inner.get_post_processor()?).ok()?;
        let parts = match json.get("processors").and_then(Value::as_array) {
            Some(parts) => parts.iter().collect(),
            None => vec![&json],
        };
        let single = parts.into_iter().find_map(|part| part.get("single").and_then(Value::as_array));
        let Some(single) = single else { return Some(Template::default()) };
        let names = |pieces: &[Value]| -> Vec<String> {
            let name = |piece: &Value| piece.pointer("/SpecialToken/id").and_then(Value::as_str).map(str::to_owned);
            pieces.iter().filter_map(name).collect()
        };
        let text = single.iter().position(|piece| piece.get("Sequence").is_some()).unwrap_or(single.len());
        let (before, after) = single.split_at(text);
        Some(Template { before: names(before), after: names(after) })
    }

    /// The first token that a report can become and that a table of so many rows does not have. Special tokens are none
    /// of these: padding is often beyond.
    pub fn beyond(&self, rows: usize) -> Option<Beyond> {
        let outside = |id: u32| usize::try_from(id).is_ok_and(|id| id >= rows);
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let added = added.iter().filter(|(id, token)| outside(**id) && !token.special);
        let added = added.map(|(id, token)| Beyond { content: token.content.clone(), id: *id, added: true });
        let pieces = self.inner.get_vocab(false).into_iter().filter(|(_, id)| outside(*id) && !self.is_special(*id));
        let pieces = pieces.map(|(content, id)| Beyond { content, id, added: false });
        added.chain(pieces).min_by_key(|token| (token.id, !token.added))
    }

    /// Number of the ids below `rows` that are tokens.
    pub fn within(&self, rows: usize) -> usize {
        let ids: std::collections::BTreeSet<u32> = self.inner.get_vocab(true).into_values().collect();
        ids.into_iter().filter(|id| usize::try_from(*id).is_ok_and(|id| id < rows)).count()
    }
}
