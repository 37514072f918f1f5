//! SentencePiece's `tokenizer.model` (as Meta ships it) → a BPE tokenizer of the crate `tokenizers`.
//!
//! The file is a protobuf, `sentencepiece_model.proto`: pieces with scores, and the normaliser's settings. A
//! SentencePiece BPE joins the neighbours whose union has the best score; the merge list that says the same is
//! every pair of pieces whose union is a piece, ordered by that piece's score. User-defined symbols, and tokens that
//! files next to it add ([`super::added`]), are taken whole ([`super::whole`]).

use std::collections::{HashMap, HashSet};

use super::added::AddedTokens;
use super::components::brief;
use super::tokenizer_check::{self, Checked};
use super::whole;
use crate::error::{Code, Error, Result};
use prost::Message;
use serde_json::{Value, json};

/// SentencePiece's mark of a space.
const SPACE: &str = "\u{2581}";
/// `TrainerSpec.ModelType.BPE`.
const BPE_MODEL: i32 = 2;
/// Most pieces that a model may have.
const MAX_PIECES: usize = 1 << 19;
/// Most merges that its pieces may have.
const MAX_MERGES: usize = 1 << 20;
/// Longest piece in characters: splitting one is quadratic in nothing else.
const MAX_PIECE_CHARS: usize = 512;

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

/// `ModelProto.SentencePiece.Type`.
mod kind {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const BYTE: i32 = 6;
}

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
}

/// The tokenizer of a `tokenizer.model`, by way of the `tokenizer.json` that says the same.
pub(super) fn convert(bytes: &[u8], added: &AddedTokens) -> Result<Checked> {
    if is_tiktoken(bytes) {
        return Err(invalid(
            "a vocabulary of tiktoken, as Llama 3's tokenizer.model is, which lacks the special tokens and the rules for \
             words: put the tokenizer.json of the same model (Hugging Face's download has it) next to it"
                .into(),
        ));
    }
    let model =
        ModelProto::decode(bytes).map_err(|e| invalid(format!("neither tokenizer.json nor SentencePiece: {e}")))?;
    check(&model)?;
    let added = if added.legacy { added.clone() } else { as_normalized(added) };
    let mut vocab: HashMap<&str, usize> = model.pieces.iter().map(Piece::piece).zip(0..).collect();
    let merges = merges(&model.pieces, &vocab)
        .ok_or_else(|| invalid(format!("its pieces can be joined in more than {MAX_MERGES} ways")))?;
    add(&mut vocab, &model.pieces, &added)?;
    let names = Names::of(&model.pieces, &added)?;
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})];
    if model.normalizer.as_ref().is_none_or(|n| n.add_dummy_prefix.unwrap_or(true)) {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
    }
    let mut json = json!({
        "version": "1.0",
        "added_tokens": names.listed,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "model": {
            "type": "BPE",
            "unk_token": of_kind(&model.pieces, &[kind::UNKNOWN]).next().map(|(_, piece)| piece),
            "fuse_unk": true,
            "byte_fallback": of_kind(&model.pieces, &[kind::BYTE]).next().is_some(),
            "merges": merges,
            "vocab": vocab,
        },
    });
    if !names.words.iter().all(Vec::is_empty) {
        json["pre_tokenizer"] = whole::pre_tokenizer(names.words, &names.reserved).map_err(invalid)?;
        json["model"]["ignore_merges"] = Value::Bool(true);
    }
    let checked = tokenizer_check::read(json.to_string().as_bytes())?;
    let normal = of_kind(&model.pieces, &[kind::NORMAL]).map(|(_, piece)| piece);
    whole::check_pieces(&checked.tokenizer, normal).map_err(invalid)?;
    Ok(checked)
}

/// The pieces of these kinds, with their ids.
fn of_kind<'a>(pieces: &'a [Piece], kinds: &'static [i32]) -> impl Iterator<Item = (usize, &'a str)> {
    let of = pieces.iter().enumerate().filter(|(_, piece)| kinds.contains(&piece.role()));
    of.map(|(id, piece)| (id, piece.piece()))
}

/// Added tokens that are found in the normalized report, where spaces are marks.
fn as_normalized(added: &AddedTokens) -> AddedTokens {
    let mut added = added.clone();
    for token in added.tokens.iter_mut().filter(|token| !token.special) {
        token.content = token.content.replace(' ', SPACE);
    }
    added
}

/// What is no ordinary piece.
struct Names<'a> {
    /// The entries of `added_tokens`.
    listed: Vec<Value>,
    /// What is taken whole after normalization: added tokens, and user-defined symbols.
    words: [Vec<&'a str>; 2],
    /// Names of special tokens and bytes.
    reserved: Vec<&'a str>,
}

impl<'a> Names<'a> {
    fn of(pieces: &'a [Piece], added: &'a AddedTokens) -> Result<Self> {
        let listed = |id: usize, content: &str, [lstrip, rstrip, single_word]: [bool; 3], special: bool| {
            json!({"id": id, "content": content, "single_word": single_word, "lstrip": lstrip, "rstrip": rstrip,
                   "normalized": false, "special": special})
        };
        let control: Vec<(usize, &str)> = of_kind(pieces, &[kind::UNKNOWN, kind::CONTROL]).collect();
        let mut names = Self {
            listed: control.iter().map(|(id, piece)| listed(*id, piece, [false; 3], true)).collect(),
            words: [Vec::new(), Vec::new()],
            reserved: of_kind(pieces, &[kind::UNKNOWN, kind::CONTROL, kind::BYTE]).map(|(_, piece)| piece).collect(),
        };
        let new = |content: &str| !control.iter().any(|(_, piece)| *piece == content);
        for token in added.tokens.iter().filter(|token| new(&token.content)) {
            if token.special {
                names.reserved.push(&token.content);
            } else if !added.legacy {
                whole::check(token).map_err(invalid)?;
                names.words[0].push(&token.content);
                continue;
            }
            let id = usize::try_from(token.id).unwrap_or(usize::MAX);
            names.listed.push(listed(id, &token.content, token.settings, token.special));
        }
        let defined = of_kind(pieces, &[kind::USER_DEFINED]).map(|(_, piece)| piece);
        names.words[1] = defined.filter(|piece| !piece.is_empty() && !names.reserved.contains(piece)).collect();
        Ok(names)
    }
}

impl Piece {
    fn role(&self) -> i32 {
        self.kind.unwrap_or(kind::NORMAL)
    }
}

/// Whether the file is tiktoken's: lines of a piece in base64 and its number.
fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default().trim_ascii_end();
    let base64 = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=');
    let mut words = line.split(|b| *b == b' ');
    let (piece, number) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    line.len() < 1024
        && words.next().is_none()
        && (piece.len() >= 4 && piece.len().is_multiple_of(4) && piece.iter().all(base64))
        && (!number.is_empty() && number.iter().all(u8::is_ascii_digit))
}

/// Adds the tokens to the vocabulary; one that is a piece already must have its id.
fn add<'a>(vocab: &mut HashMap<&'a str, usize>, pieces: &[Piece], added: &'a AddedTokens) -> Result<()> {
    for token in &added.tokens {
        let (id, shown) = (usize::try_from(token.id).unwrap_or(usize::MAX), brief(&token.content));
        let wrong = |what: String| Err(invalid(format!("the added token `{shown}` has the id {id}, {what}")));
        match (vocab.get(token.content.as_str()), pieces.get(id)) {
            (Some(known), _) if *known == id => {}
            (Some(known), _) => return wrong(format!("and tokenizer.model has it as its piece {known}")),
            (None, Some(piece)) => {
                return wrong(format!("which is the piece `{}` of tokenizer.model", brief(piece.piece())));
            }
            (None, None) => drop(vocab.insert(&token.content, id)),
        }
    }
    Ok(())
}

fn invalid(message: String) -> Error {
    Error::new(Code::TOKENIZER_INVALID, message)
}

/// Refuses what the conversion does not carry over: it would tokenize differently, silently.
fn check(model: &ModelProto) -> Result<()> {
    if model.pieces.is_empty() || model.pieces.len() > MAX_PIECES {
        return Err(invalid(format!("it has {} pieces, expected 1 to {MAX_PIECES}", model.pieces.len())));
    }
    if model.pieces.iter().any(|p| p.piece().chars().count() > MAX_PIECE_CHARS) {
        return Err(invalid(format!("a piece is longer than {MAX_PIECE_CHARS} characters")));
    }
    let model_type = model.trainer.as_ref().and_then(|t| t.model_type).unwrap_or(1);
    if model_type != BPE_MODEL {
        return Err(invalid(format!(
            "SentencePiece model type {model_type}, expected {BPE_MODEL} (BPE), as LLaMA 2 has"
        )));
    }
    let normalizer = model.normalizer.clone().unwrap_or_default();
    if normalizer.remove_extra_whitespaces.unwrap_or(true) || !normalizer.precompiled_charsmap().is_empty() {
        return Err(invalid("its normaliser changes the text, which LLaMA 2's does not".into()));
    }
    Ok(())
}

/// The pairs of pieces whose union is a normal piece, best score first; of one piece's splits the one with the
/// longest left part first. None where there are more than [`MAX_MERGES`].
fn merges<'a>(pieces: &'a [Piece], vocab: &HashMap<&str, usize>) -> Option<Vec<(&'a str, &'a str)>> {
    let mut scored: Vec<(f32, usize, (&str, &str))> = Vec::new();
    // Those are taken whole, and never a part of another.
    let whole: HashSet<&str> = pieces.iter().filter(|p| p.role() == kind::USER_DEFINED).map(Piece::piece).collect();
    for piece in pieces.iter().filter(|p| p.role() == kind::NORMAL) {
        let text = piece.piece();
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            let known = |part: &str| vocab.contains_key(part) && !whole.contains(part);
            if known(left) && known(right) {
                scored.push((piece.score(), at, (left, right)));
            }
        }
        if scored.len() > MAX_MERGES {
            return None;
        }
    }
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
    Some(scored.into_iter().map(|(_, _, pair)| pair).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, score: f32, kind: i32) -> Piece {
        Piece { piece: Some(text.into()), score: Some(score), kind: Some(kind) }
    }

    fn pieces() -> Vec<Piece> {
        let normal = [("\u{2581}", -9.0), ("a", -9.0), ("b", -9.0), ("c", -9.0), ("ab", -2.0), ("bc", -3.0)];
        let longer = [("abc", -1.0), ("\u{2581}a", -4.0)];
        let normal = normal.into_iter().chain(longer).map(|(text, score)| piece(text, score, kind::NORMAL));
        [piece("<unk>", 0.0, kind::UNKNOWN), piece("cc", 0.0, kind::CONTROL)].into_iter().chain(normal).collect()
    }

    /// Best score first, of one piece's splits the longest left part; what is no normal piece is never joined.
    #[test]
    fn merges_are_ordered_by_score_and_by_the_left_part() {
        let pieces = pieces();
        let vocab: HashMap<&str, usize> = pieces.iter().map(Piece::piece).zip(0..).collect();
        let expected = [("ab", "c"), ("a", "bc"), ("a", "b"), ("b", "c"), ("\u{2581}", "a")];
        assert_eq!(merges(&pieces, &vocab).unwrap(), expected);
    }

    /// What the file leaves out has the defaults of `sentencepiece_model.proto`: a space in front, and spaces removed.
    #[test]
    fn settings_that_are_left_out_have_their_defaults() {
        let model = |prefix, spaces| ModelProto {
            pieces: pieces(),
            trainer: Some(TrainerSpec { model_type: Some(BPE_MODEL) }),
            normalizer: Some(NormalizerSpec {
                precompiled_charsmap: None,
                add_dummy_prefix: prefix,
                remove_extra_whitespaces: spaces,
            }),
        };
        let tokens = |prefix| {
            let tokenizer =
                convert(&model(prefix, Some(false)).encode_to_vec(), &AddedTokens::default()).unwrap().tokenizer;
            tokenizer.encode("a", false).unwrap().get_tokens().to_vec()
        };
        assert_eq!([tokens(None), tokens(Some(true)), tokens(Some(false))], [["\u{2581}a"], ["\u{2581}a"], ["a"]]);
        for spaces in [None, Some(true)] {
            let error = convert(&model(None, spaces).encode_to_vec(), &AddedTokens::default()).err().unwrap();
            assert!(error.message().contains("normaliser"), "{error}");
        }
    }
}
