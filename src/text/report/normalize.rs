//! A report's text as the model is given it.
//!
//! - *Line ends.* CR LF and CR become LF: Python's `open()` reads text so (universal newlines), hence so did the model
//!   in training. NEL (U+0085) too: it is the line end of reports from EBCDIC hosts, which `open()` leaves, and which
//!   no model has seen.
//! - *Zero-width characters.* U+FEFF (a mark that a tool put in front of each part it joined), U+2060 and U+200B are
//!   hints where a line may break: they change tokens and nothing that is read. They go everywhere. U+200C and U+200D
//!   go as well, except behind a character of a script (or an emoji) that they shape: Persian, Indic scripts, joined
//!   emoji. Latin has no use for them; there they are remains of web pages.
//! - Nothing else changes. In particular there is no Unicode normalization: the tokenizer sees the characters that
//!   Python would have given it.

use crate::error::{Code, Error, Result};

/// Words that stand for a missing report, in lower case and without punctuation. pandas writes and reads the first ten.
const PLACEHOLDERS: &[&str] = &[
    "nan",
    "na",
    "null",
    "none",
    "nat",
    "nil",
    "ind",
    "qnan",
    "n",
    "a",
    "missing",
    "empty",
    "undefined",
    "unknown",
    "tbd",
    "todo",
    "pending",
    "void",
    "blank",
    "notavailable",
    "notapplicable",
    "noreport",
    "noreportavailable",
    "nodata",
    "notprovided",
    "notreported",
];

/// The text with LF line ends and without characters that carry nothing.
pub(super) fn normalize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\r' => {
                chars.next_if_eq(&'\n');
                out.push('\n');
            }
            '\u{85}' => out.push('\n'),
            '\u{200b}' | '\u{2060}' | '\u{feff}' => {}
            '\u{200c}' | '\u{200d}' if !out.chars().next_back().is_some_and(is_shaped) => {}
            c => out.push(c),
        }
    }
    out
}

/// Whether joiners behind this character mean something: scripts from Hebrew on, and emoji, but neither spaces,
/// punctuation, nor Latin with diacritics.
fn is_shaped(c: char) -> bool {
    let latin_or_punctuation = matches!(c, '\u{1e00}'..='\u{1eff}' | '\u{2000}'..='\u{206f}' | '\u{3000}'..='\u{303f}');
    c >= '\u{590}' && !latin_or_punctuation && !c.is_whitespace()
}

/// Fails where a normalized text says nothing.
pub(super) fn check_text(text: &str) -> Result<()> {
    let empty = |message: String| Err(Error::new(Code::REPORT_EMPTY, message));
    if text.chars().all(|c| c.is_whitespace() || is_invisible(c)) {
        return empty("the report holds no text".into());
    }
    if !text.chars().any(char::is_alphabetic) {
        return empty("the report has no letters, only digits or punctuation: leave it out where there is none".into());
    }
    // Long texts are no placeholders.
    if text.len() <= 256 && is_placeholder(text) {
        let shown: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(40).collect();
        return empty(format!("the report is the placeholder `{shown}`: leave it out where there is none"));
    }
    Ok(())
}

/// Characters without a glyph: joiners, directions, soft hyphens, variation selectors.
fn is_invisible(c: char) -> bool {
    let formats = matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}');
    formats || matches!(c, '\u{ad}' | '\u{fe00}'..='\u{fe0f}') || c.is_control()
}

fn is_placeholder(text: &str) -> bool {
    let letters =
        |text: &str| text.chars().filter(|c| c.is_alphabetic()).flat_map(char::to_lowercase).collect::<String>();
    let known = |text: &str| PLACEHOLDERS.contains(&letters(text).as_str());
    let mut words = text.split_whitespace().filter(|word| word.chars().any(char::is_alphabetic)).peekable();
    // As one word (`not available`), or each by itself (`nan nan`).
    // `Na 140` is a laboratory value, `-1.#IND` is none.
    let value = text.contains(char::is_numeric) && !text.contains('#');
    !value && (known(text) || words.all(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_become_lf() {
        let rows = [
            ("a\r\nb\rc\nd\u{85}e", "a\nb\nc\nd\ne"),
            ("a\r\r\nb\n\rc\r", "a\n\nb\n\nc\n"),
            ("a\u{2028}b\u{b}c\u{c}d\te", "a\u{2028}b\u{b}c\u{c}d\te"),
        ];
        rows.iter().for_each(|(text, expected)| assert_eq!(normalize(text), *expected));
    }

    #[test]
    fn zero_width_characters_go_where_they_mean_nothing() {
        let rows = [
            ("\u{feff}hippo\u{200b}campus\u{2060} \u{feff}MTA", "hippocampus MTA"),
            ("hippo\u{200c}campus \u{200d}MTA\u{200d}", "hippocampus MTA"),
            ("é\u{200d}\u{1ea1}\u{200c}–\u{200d}。\u{200d}", "é\u{1ea1}–。"),
            // Persian, Devanagari, a family.
            ("می\u{200c}شود", "می\u{200c}شود"),
            ("क्\u{200d}ष", "क्\u{200d}ष"),
            ("👩\u{200d}⚕\u{fe0f} e\u{301} \u{a0}ﬁ", "👩\u{200d}⚕\u{fe0f} e\u{301} \u{a0}ﬁ"),
        ];
        rows.iter().for_each(|(text, expected)| assert_eq!(normalize(text), *expected));
        assert_eq!(normalize("\u{feff}\u{200b}\u{200c}\u{200d}\u{2060}"), "");
    }

    #[test]
    fn placeholders_are_no_reports() {
        let placeholders = [
            "nan",
            "NaN\n",
            "n/a",
            "N/A",
            "NA",
            "None",
            "null",
            "NULL",
            "<NA>",
            "#N/A",
            "-nan",
            "-1.#IND",
            "1.#QNAN",
            "(none)",
            "nan nan",
            "nan\nnan\n",
            "N. A.",
            "not available",
            "No report available.",
            "\"\"",
            "-",
            "--",
            "…",
            "?",
            "0",
            "-9",
            "999",
            "1.0",
            "***",
            "。",
            "\u{200e}",
            "\u{ad}",
            " \n\t",
            "",
            "🙂",
        ];
        for text in placeholders {
            assert_eq!(check_text(&normalize(text)).unwrap_err().code(), Code::REPORT_EMPTY, "{text:?}");
        }
        let reports = [
            "normal",
            "Normal.",
            "AD",
            "No atrophy",
            "none of the above; MTA 1",
            "n/a, see MMSE 24",
            "NAD",
            "unknown primary",
            "MTA 1",
            "正常",
            "норма",
            "No",
            "Nan Goldin, 70 y",
            "Unremarkable",
            "a 70-year-old",
        ];
        reports.iter().for_each(|text| assert!(check_text(text).is_ok(), "{text:?}"));
    }
}
