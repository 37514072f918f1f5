//! Clinical report → tokens.
//!
//! Layer 2. A report is data: bytes of bounded size that become a text with LF line ends or an error
//! ([`read_report`]); nothing in it becomes a special token, and [`report_warnings`] tells what the model may not
//! know. The tokenizer is Hugging Face's `tokenizer.json`, or a SentencePiece `tokenizer.model`, which
//! [`Tokenizer::load`] turns into the former. BOS is put in front here, once, whatever the tokenizer's own template
//! says.
//!
//! ```
//! use brain_adapter::text::{Tokenizer, decode_report};
//!
//! let report = decode_report("Memory complaints for 18 months. MMSE 26/30.".as_bytes())?;
//! let tokenizer = Tokenizer::load("examples/demo/checkpoint/llama/tokenizer.json".as_ref(), 1)?; // 1: the BOS token
//! let tokens = tokenizer.encode(&report, 512)?;
//! assert_eq!(tokens.ids[0], 1);
//! # Ok::<(), brain_adapter::Error>(())
//! ```

#![cfg_attr(not(test), deny(clippy::as_conversions))]

mod added;
mod components;
mod inspect;
mod language;
mod profile;
mod report;
mod sentencepiece;
mod tokenizer_check;
mod whole;

use std::path::Path;

use tokenizer_check::Checked;
use tokenizers::ModelWrapper;

use crate::error::{Code, Error, Result, Warning, WarningCode};

pub use added::{AddedToken, AddedTokens};
pub use inspect::{Beyond, Template};
pub use profile::{ReportProfile, report_warnings};
pub use report::{
    MAX_REPORT_BYTES, ReportFormat, decode_report, decode_report_as, read_report, read_report_argument, read_report_as,
};

/// Maximum size of a tokenizer file, in bytes. Gemma's has 33 MB.
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;

/// Maximum length that a tokenizer may give a report before it cuts it into pieces, in bytes: each may become a token,
/// and takes 200 bytes on its way there.
const MAX_GROWN_BYTES: f64 = 4.0 * 1_048_576.0;

/// A report as the language model reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids, BOS first; at most the model's `text.max_tokens`.
    pub ids: Vec<i64>,
    /// How many tokens were cut off at the end.
    pub lost: usize,
    /// How many of `ids` stand for characters that the tokenizer has no piece for: its unknown token, and bytes of such
    /// characters (not line ends, which are bytes to LLaMA 2's).
    pub unknown: usize,
}

impl Tokens {
    /// The warning of a report that was cut, if it was.
    pub fn warning(&self) -> Option<Warning> {
        let (kept, lost) = (self.ids.len(), self.lost);
        let message = format!("the report was cut to {kept} tokens: its last {lost} tokens were not read");
        (lost > 0).then(|| Warning::new(WarningCode::REPORT_TRUNCATED, message))
    }
}

/// A tokenizer whose special tokens cannot be written in a report.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: u32,
    /// By which factor it can lengthen a text, in bytes.
    growth: f64,
    /// The ids that [`Tokens::unknown`] counts, sorted.
    unknown: Vec<u32>,
}

impl Tokenizer {
    /// Loads `tokenizer.json`, or `tokenizer.model` (distinguished by content).
    ///
    /// # Errors
    /// `tokenizer.missing` or `tokenizer.invalid`.
    pub fn load(path: &Path, bos: u32) -> Result<Self> {
        Self::load_with(path, &AddedTokens::default(), bos)
    }

    /// As [`Self::load`], with the tokens that files next to a `tokenizer.model` add to it; a `tokenizer.json` has its
    /// own.
    ///
    /// # Errors
    /// `tokenizer.missing` or `tokenizer.invalid`.
    pub fn load_with(path: &Path, added: &AddedTokens, bos: u32) -> Result<Self> {
        Self::open(path, added)?.with_bos(bos).map_err(|e| e.at(path))
    }

    /// As [`Self::load_with`], without BOS yet.
    pub(crate) fn open(path: &Path, added: &AddedTokens) -> Result<Self> {
        let invalid = |message: String| Error::new(Code::TOKENIZER_INVALID, message).at(path);
        let meta = std::fs::metadata(path)
            .map_err(|e| Error::new(Code::TOKENIZER_MISSING, format!("cannot find the tokenizer: {e}")).at(path))?;
        if !meta.is_file() || meta.len() > MAX_TOKENIZER_BYTES {
            return Err(invalid(format!("expected a file of at most {MAX_TOKENIZER_BYTES} bytes")));
        }
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "cannot read the tokenizer", e))?;
        Self::parse(&bytes, added).map_err(|e| e.at(path))
    }

    /// As [`Self::load`], from the file's bytes.
    ///
    /// # Errors
    /// `tokenizer.invalid`.
    pub fn from_bytes(bytes: &[u8], bos: u32) -> Result<Self> {
        Self::from_bytes_with(bytes, &AddedTokens::default(), bos)
    }

    /// As [`Self::load_with`], from the file's bytes.
    ///
    /// # Errors
    /// `tokenizer.invalid`.
    pub fn from_bytes_with(bytes: &[u8], added: &AddedTokens, bos: u32) -> Result<Self> {
        Self::parse(bytes, added)?.with_bos(bos)
    }

    /// The tokenizer with another BOS.
    pub(crate) fn with_bos(self, bos: u32) -> Result<Self> {
        if self.inner.id_to_token(bos).is_none() {
            let message = format!("the tokenizer has no token {bos}, which the model's configuration names as BOS");
            return Err(Error::new(Code::TOKENIZER_INVALID, message));
        }
        Ok(Self { bos, ..self })
    }

    fn parse(bytes: &[u8], added: &AddedTokens) -> Result<Self> {
        let invalid = |message: String| Error::new(Code::TOKENIZER_INVALID, message);
        let json = bytes.trim_ascii_start().starts_with(b"{");
        let Checked { tokenizer: mut inner, growth } =
            if json { tokenizer_check::read(bytes)? } else { sentencepiece::convert(bytes, added)? };
        let no_change = |e| invalid(format!("{e}"));
        inner.with_truncation(None).map_err(no_change)?;
        inner.with_padding(None);
        inner.set_encode_special_tokens(true);
        // The crate remembers the words of ten thousand texts, and LLaMA's word is the whole report: patient data would
        // stay in memory, and memory would grow with each report.
        let mut model = inner.get_model().clone();
        model.resize_cache(0);
        inner.with_model(model);
        let unknown = unknown_ids(&inner);
        Ok(Self { inner, bos: 0, growth, unknown })
    }

    /// Number of token ids, special ones included.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Number of the model's own pieces, without tokens that were added to it later.
    pub fn pieces(&self) -> usize {
        self.inner.get_vocab_size(false)
    }

    /// The id that stands in front of every report.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// The tokens of `report`, BOS first, cut to `max_tokens`.
    ///
    /// # Errors
    /// `tokenizer.invalid` when the tokenizer fails on the text, or could make it too long.
    pub fn encode(&self, report: &str, max_tokens: usize) -> Result<Tokens> {
        let length = u32::try_from(report.len()).map_or(f64::INFINITY, f64::from);
        if length * self.growth > MAX_GROWN_BYTES {
            let growth = self.growth;
            let message = format!(
                "the report holds {length} bytes and the tokenizer can make it {growth:.1} times as long, expected at \
                 most {MAX_GROWN_BYTES} bytes together: is it a report?"
            );
            return Err(Error::new(Code::TOKENIZER_INVALID, message));
        }
        let encoding = self.inner.encode(report, false);
        let encoding = encoding.map_err(|e| Error::new(Code::TOKENIZER_INVALID, format!("cannot tokenize: {e}")))?;
        let all = encoding.get_ids();
        let kept = all.get(..max_tokens.saturating_sub(1)).unwrap_or(all);
        let unknown = kept.iter().filter(|id| self.unknown.binary_search(id).is_ok()).count();
        let ids: Vec<i64> = std::iter::once(&self.bos).chain(all).take(max_tokens).map(|id| i64::from(*id)).collect();
        let lost = (all.len() + 1).saturating_sub(max_tokens);
        Ok(Tokens { ids, lost, unknown })
    }

    /// The tokenizer as the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// `tokenizer.invalid` when it cannot be written.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(false).map_err(|e| Error::new(Code::TOKENIZER_INVALID, format!("cannot write it: {e}")))
    }
}

/// The ids of unknown characters: the unknown token's, and those of bytes, without those of line ends and tabs.
fn unknown_ids(tokenizer: &tokenizers::Tokenizer) -> Vec<u32> {
    let ModelWrapper::BPE(model) = tokenizer.get_model() else { return Vec::new() };
    let bytes = (0x20..=0xff_u8).filter(|_| model.byte_fallback).map(|byte| format!("<0x{byte:02X}>"));
    let tokens = model.unk_token.iter().cloned().chain(bytes);
    let mut ids: Vec<u32> = tokens.filter_map(|token| tokenizer.token_to_id(&token)).collect();
    ids.sort_unstable();
    ids
}

/// A part of a whole; 0 of nothing.
fn share(part: usize, whole: usize) -> f64 {
    let number = |n: usize| u32::try_from(n).map_or(f64::INFINITY, f64::from);
    if whole == 0 { 0.0 } else { number(part) / number(whole) }
}
