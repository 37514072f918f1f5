//! Words that are taken whole: the user-defined symbols of a SentencePiece model, and added tokens that are read as
//! these.
//!
//! In: the words. Out: the pre-tokenizer that cuts a normalized report at them, for a BPE with `ignore_merges`, which
//! takes a part whole that is a piece. SentencePiece does the same: from the left, the longest word that begins there,
//! which is then never joined to its neighbours (`bpe_model.cc`, `PrefixMatcher`); transformers 5 converts it alike
//! (`build_tokenizer_from_spm_proto`). A part between two words may spell a special token or a byte, `<s>` or `<0x41>`:
//! such a part is cut behind its first character, so that a report's text stays text.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tokenizers::{Model, ModelWrapper, Tokenizer};

use super::added::AddedToken;
use super::components::{MAX_PATTERN, brief};

/// Refuses an added token that is read as a symbol but has settings of its own.
pub(super) fn check(token: &AddedToken) -> Result<(), String> {
    match token.settings.contains(&true) {
        true => {
            Err(format!("the added token `{}` depends on its surroundings, which is not read", brief(&token.content)))
        }
        false => Ok(()),
    }
}

/// The pre-tokenizer that cuts out `words`, those of the first list before those of the second, and cuts parts that
/// spell one of `reserved`.
pub(super) fn pre_tokenizer(words: [Vec<&str>; 2], reserved: &[&str]) -> Result<Value, String> {
    let mut words = words.map(|list| list.into_iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>());
    // Of alternatives, the first that fits is taken: the longest must come first.
    words.iter_mut().for_each(|list| list.sort_by_key(|word| Reverse(word.len())));
    let words = words.concat();
    let count = words.len();
    let pattern = words.into_iter().map(escaped).collect::<Vec<_>>().join("|");
    let mut guard: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for name in reserved.iter().filter(|name| !is_byte(name) && !name.is_empty()) {
        let (first, rest) = name.split_at(name.chars().next().map_or(0, char::len_utf8));
        if rest.is_empty() {
            return Err(format!(
                "its control piece `{}` is one character, and it has user-defined symbols",
                brief(name)
            ));
        }
        guard.entry(first).or_default().insert(escaped(rest));
    }
    guard.entry("<").or_default().insert("0x[0-9A-F][0-9A-F]>".to_owned());
    let cut = |(first, rests): (&str, BTreeSet<String>)| {
        format!("{}(?=(?:{})\\z)", escaped(first), rests.into_iter().collect::<Vec<_>>().join("|"))
    };
    let guard = format!("\\A(?:{})", guard.into_iter().map(cut).collect::<Vec<_>>().join("|"));
    if pattern.len().max(guard.len()) > MAX_PATTERN {
        return Err(format!(
            "its {count} user-defined symbols (pieces that are taken whole) are more than is read: save it as \
             tokenizer.json (transformers' save_pretrained) and put that next to the language model"
        ));
    }
    let split =
        |pattern| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    Ok(json!({"type": "Sequence", "pretokenizers": [split(pattern), split(guard)]}))
}

/// Checks that `ignore_merges` changes nothing but for the words: each of these pieces is what merging makes of its
/// text.
pub(super) fn check_pieces<'a>(tokenizer: &Tokenizer, pieces: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let ModelWrapper::BPE(model) = tokenizer.get_model() else { return Ok(()) };
    if !model.ignore_merges {
        return Ok(());
    }
    let mut merging = model.clone();
    merging.ignore_merges = false;
    for piece in pieces {
        let tokens =
            merging.tokenize(piece).map_err(|e| format!("its piece `{}` cannot be read: {e}", brief(piece)))?;
        if tokens.len() != 1 {
            return Err(format!(
                "no merge of its pieces makes `{}`, and it has user-defined symbols: which texts are that piece is not \
                 known here. Save it as tokenizer.json (transformers' save_pretrained) and put that next to the model",
                brief(piece)
            ));
        }
    }
    Ok(())
}

/// Whether a piece is a byte, `<0x00>` to `<0xFF>`.
fn is_byte(piece: &str) -> bool {
    let digits = piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && u8::from_str_radix(d, 16).is_ok())
}

/// A text as a regular expression.
fn escaped(text: &str) -> String {
    text.chars().flat_map(|c| r"\.+*?()|[]{}^$#&-~".contains(c).then_some('\\').into_iter().chain([c])).collect()
}
