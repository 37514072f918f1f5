//! What the model's reports are like, and warnings of a report that is unlike them.
//!
//! [`ReportProfile`] is a record of the calibration reports, in `bundle.json`: counts and names of languages, no text.
//! Bundles without calibration reports, and older ones, have none; then only tokens that are unknown in themselves are
//! warned of.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Tokens, language, share};
use crate::error::{Warning, WarningCode};

/// Fewest unknown tokens, and least share of all, that are warned of. With LLaMA 2's tokenizer English reports have
/// none, Chinese ones 55 % and Japanese ones 44 % (medians of `tests/infer/report_language.rs`).
const UNKNOWN: (usize, f64) = (10, 1.0 / 3.0);

/// Plain figures of the calibration reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportProfile {
    /// Number of reports.
    pub reports: usize,
    /// Their tokens, each report cut to the model's maximum.
    pub tokens: usize,
    /// Tokens among them that are unknown to the tokenizer ([`Tokens::unknown`]).
    pub unknown_tokens: usize,
    /// The languages that they are recognizably in, in alphabetical order; none where none is recognized.
    pub languages: BTreeSet<String>,
}

impl ReportProfile {
    /// The figures of these reports; none of no reports.
    pub fn of(reports: &[(String, Tokens)]) -> Option<Self> {
        let all = reports.iter().map(|(text, _)| text.as_str());
        // One report may be too short; together they have words enough.
        let together = all.clone().collect::<Vec<_>>().join("\n");
        let recognized = all.chain([together.as_str()]).filter_map(language::recognize);
        let profile = Self {
            reports: reports.len(),
            tokens: reports.iter().map(|(_, tokens)| tokens.ids.len()).sum(),
            unknown_tokens: reports.iter().map(|(_, tokens)| tokens.unknown).sum(),
            languages: recognized.map(|found| found.language.to_owned()).collect(),
        };
        (!reports.is_empty()).then_some(profile)
    }
}

/// What the reader of a result should know of a report: another language than the calibration reports', unknown tokens,
/// what was cut off.
pub fn report_warnings(report: &str, tokens: &Tokens, profile: Option<&ReportProfile>) -> Vec<Warning> {
    let foreign = profile.and_then(|profile| foreign(report, profile));
    [foreign, unknown(tokens, profile), tokens.warning()].into_iter().flatten().collect()
}

fn foreign(report: &str, profile: &ReportProfile) -> Option<Warning> {
    let found = language::foreign(report, &profile.languages)?;
    let percent = 100.0 * found.share;
    let expected = profile.languages.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let language = found.language;
    let evidence = match found.by_script {
        true => format!("{percent:.0} % of its letters are {language}"),
        false => format!("{percent:.0} % of its words are common {language} ones"),
    };
    let message = format!(
        "the report is in another language than the model's calibration reports ({expected}): {evidence}; translate it"
    );
    Some(Warning::new(WarningCode::REPORT_LANGUAGE, message))
}

fn unknown(tokens: &Tokens, profile: Option<&ReportProfile>) -> Option<Warning> {
    // BOS is none of the report's.
    let (unknown, all) = (tokens.unknown, tokens.ids.len().saturating_sub(1));
    let usual = profile.map_or(0.0, |p| share(p.unknown_tokens, p.tokens));
    if unknown < UNKNOWN.0 || share(unknown, all) < UNKNOWN.1.max(2.0 * usual) {
        return None;
    }
    let usual = profile.map_or_else(String::new, |_| format!("; of the calibration reports', {:.0} %", 100.0 * usual));
    let message = format!(
        "{:.0} % of the report's tokens ({unknown} of {all}) are characters that the tokenizer has no pieces \
         for{usual}: is it in the model's language?",
        100.0 * share(unknown, all)
    );
    Some(Warning::new(WarningCode::REPORT_UNKNOWN_TOKENS, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(all: usize, unknown: usize) -> Tokens {
        Tokens { ids: vec![1; all + 1], lost: 0, unknown }
    }

    #[test]
    fn unknown_tokens_are_warned_of_by_their_share() {
        for (all, unknown, warns) in [(100, 33, false), (100, 34, true), (27, 9, false), (27, 10, true), (0, 0, false)]
        {
            let warnings = report_warnings("MRI", &tokens(all, unknown), None);
            assert_eq!(!warnings.is_empty(), warns, "{unknown} of {all}");
        }
        // Where the calibration reports are as full of them, they are usual.
        let profile = ReportProfile { reports: 1, tokens: 10, unknown_tokens: 3, languages: BTreeSet::new() };
        assert!(report_warnings("MRI", &tokens(100, 59), Some(&profile)).is_empty());
        let warnings = report_warnings("MRI", &tokens(100, 61), Some(&profile));
        assert!(warnings[0].message.starts_with("61 % of the report's tokens (61 of 100)"), "{warnings:?}");
    }

    #[test]
    fn a_profile_has_counts_and_languages() {
        assert_eq!(ReportProfile::of(&[]), None);
        let german = "Kein Hinweis auf eine Blutung, keine Raumforderung. Die Hippocampi sind beidseits regelrecht.";
        let english = "No mass. The hippocampi are normal.";
        let both = [(german.to_owned(), tokens(9, 2)), (english.to_owned(), tokens(5, 0))];
        let profile = ReportProfile::of(&both).unwrap();
        assert_eq!((profile.reports, profile.tokens, profile.unknown_tokens), (2, 16, 2));
        assert_eq!(profile.languages, BTreeSet::from(["English".to_owned(), "German".to_owned()]));
        let one = ReportProfile::of(&both[1..]).unwrap();
        let warnings = report_warnings(german, &tokens(20, 0), Some(&one));
        assert_eq!(warnings.iter().map(|w| w.code).collect::<Vec<_>>(), [WarningCode::REPORT_LANGUAGE]);
        assert!(warnings[0].message.contains("(English)") && warnings[0].message.contains("German"), "{warnings:?}");
        assert!(report_warnings(german, &tokens(20, 0), Some(&profile)).is_empty());
        assert!(report_warnings(german, &tokens(20, 0), None).is_empty());
    }
}
