//! Clinical report → tokens.
//!
//! Layer 2. A report is data: bytes of bounded size, UTF-8, not empty; nothing in it becomes a special token. The
//! tokenizer is Hugging Face's `tokenizer.json`, or a SentencePiece `tokenizer.model`, which [`Tokenizer::load`]
//! turns into the former. BOS is put in front here, once, whatever the tokenizer's own template says.
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

mod components;
mod sentencepiece;
mod tokenizer_check;

use std::io::Read;
use std::path::Path;

use tokenizer_check::Checked;

use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::tensor::number::to_u64;

/// Largest report that is read, in bytes. A long discharge letter has 50 kB.
pub const MAX_REPORT_BYTES: u64 = 1 << 20;

/// Maximum size of a tokenizer file, in bytes. Gemma's has 33 MB.
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;

/// Maximum length that a tokenizer may give a report before it cuts it into pieces, in bytes: each may become a token,
/// and takes 200 bytes on its way there.
const MAX_GROWN_BYTES: f64 = 4.0 * 1_048_576.0;

/// Reads a report; `-` is standard input.
///
/// # Errors
/// `report.not_found`, `report.too_large`, `report.encoding` with the offending byte's place, `report.empty`.
pub fn read_report(path: &Path) -> Result<String> {
    let bytes = if path == Path::new("-") {
        bounded(std::io::stdin().lock(), path)?
    } else {
        let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::new(Code::REPORT_NOT_FOUND, "no such report").at(path),
            _ => Error::io(path, "cannot open the report", e),
        })?;
        // A pipe by name would be opened and waited for; a folder cannot be read.
        if !meta.is_file() {
            return Err(Error::new(Code::REPORT_NOT_FOUND, "the report is not a file").at(path));
        }
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, "cannot open the report", e))?;
        bounded(file, path)?
    };
    decode_report(&bytes).map_err(|e| e.at(path))
}

fn bounded(reader: impl Read, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut limited = reader.take(MAX_REPORT_BYTES + 1);
    limited.read_to_end(&mut bytes).map_err(|e| Error::io(path, "cannot read the report", e))?;
    if to_u64(bytes.len()) > MAX_REPORT_BYTES {
        let message = format!("the report holds more than {MAX_REPORT_BYTES} bytes: is it a report?");
        return Err(Error::new(Code::REPORT_TOO_LARGE, message).at(path));
    }
    Ok(bytes)
}

/// A report's text from its bytes: UTF-8, with or without a byte order mark.
///
/// # Errors
/// `report.encoding` or `report.empty`.
pub fn decode_report(bytes: &[u8]) -> Result<String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let hint = match bytes {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "it looks like UTF-16.",
            _ => "is it Latin-1 or Windows-1252?",
        };
        let message = format!("the report is not UTF-8 at byte {}: {hint} Save it as UTF-8", e.valid_up_to());
        Error::new(Code::REPORT_ENCODING, message)
    })?;
    if text.trim().is_empty() {
        return Err(Error::new(Code::REPORT_EMPTY, "the report holds no text"));
    }
    Ok(text.to_owned())
}

/// A report as the language model reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids, BOS first; at most the model's `text.max_tokens`.
    pub ids: Vec<i64>,
    /// How many tokens were cut off at the end.
    pub lost: usize,
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
}

impl Tokenizer {
    /// Loads `tokenizer.json`, or `tokenizer.model` (distinguished by content).
    ///
    /// # Errors
    /// `tokenizer.missing` or `tokenizer.invalid`.
    pub fn load(path: &Path, bos: u32) -> Result<Self> {
        let invalid = |message: String| Error::new(Code::TOKENIZER_INVALID, message).at(path);
        let meta = std::fs::metadata(path)
            .map_err(|e| Error::new(Code::TOKENIZER_MISSING, format!("cannot find the tokenizer: {e}")).at(path))?;
        if !meta.is_file() || meta.len() > MAX_TOKENIZER_BYTES {
            return Err(invalid(format!("expected a file of at most {MAX_TOKENIZER_BYTES} bytes")));
        }
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "cannot read the tokenizer", e))?;
        Self::from_bytes(&bytes, bos).map_err(|e| e.at(path))
    }

    /// As [`Self::load`], from the file's bytes.
    ///
    /// # Errors
    /// `tokenizer.invalid`.
    pub fn from_bytes(bytes: &[u8], bos: u32) -> Result<Self> {
        let invalid = |message: String| Error::new(Code::TOKENIZER_INVALID, message);
        let json = bytes.trim_ascii_start().starts_with(b"{");
        let Checked { tokenizer: mut inner, growth } =
            if json { tokenizer_check::read(bytes)? } else { sentencepiece::convert(bytes)? };
        let no_change = |e| invalid(format!("{e}"));
        inner.with_truncation(None).map_err(no_change)?;
        inner.with_padding(None);
        inner.set_encode_special_tokens(true);
        // The crate remembers the words of ten thousand texts, and LLaMA's word is the whole report: patient data would
        // stay in memory, and memory would grow with each report.
        let mut model = inner.get_model().clone();
        model.resize_cache(0);
        inner.with_model(model);
        if inner.id_to_token(bos).is_none() {
            return Err(invalid(format!(
                "the tokenizer has no token {bos}, which the model's configuration names as BOS"
            )));
        }
        Ok(Self { inner, bos, growth })
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
        let mut ids: Vec<i64> =
            std::iter::once(self.bos).chain(encoding.get_ids().iter().copied()).map(i64::from).collect();
        let lost = ids.len().saturating_sub(max_tokens);
        ids.truncate(max_tokens);
        Ok(Tokens { ids, lost })
    }

    /// The tokenizer as the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// `tokenizer.invalid` when it cannot be written.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(false).map_err(|e| Error::new(Code::TOKENIZER_INVALID, format!("cannot write it: {e}")))
    }
}
