//! Warnings of a report's language and of unknown tokens: false alarms and misses on composed reports.
//!
//! Reports are three to seven sentences of `tests/data/reports/LANGUAGE.txt` in random order; the calibration reports
//! are the demo's, or two of them.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use brain_adapter::WarningCode;
use brain_adapter::text::{ReportProfile, Tokenizer, decode_report, report_warnings};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use support::{oracle, package};

/// Reports of each kind.
const REPORTS: usize = 200;

const FOREIGN: [&str; 8] = ["german", "french", "spanish", "italian", "dutch", "chinese", "japanese", "russian"];

fn sentences(language: &str) -> Vec<String> {
    let path = package("tests/data/reports").join(format!("{language}.txt"));
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

/// Composed reports, each as its author's program might have written it.
fn reports(languages: &[&str], sizes: std::ops::Range<usize>) -> Vec<String> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut bank: Vec<String> = languages.iter().flat_map(|language| sentences(language)).collect();
    let mut one = |i: usize| {
        bank.shuffle(&mut rng);
        let text = bank[..rng.random_range(sizes.clone())].join(["\n", " ", "\r\n"][i % 3]);
        let text = if i % 10 == 9 { text.to_uppercase() } else { text };
        decode_report(text.as_bytes()).unwrap()
    };
    (0..REPORTS).map(&mut one).collect()
}

fn small() -> Tokenizer {
    Tokenizer::load(&package("examples/demo/checkpoint/llama/tokenizer.json"), 1).unwrap()
}

/// LLaMA 2's, where it is recorded.
fn llama2() -> Option<Tokenizer> {
    let packed = std::fs::read(oracle::shared("fixtures/llama2_tokenizer")?.join("tokenizer.model.gz")).unwrap();
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut plain).unwrap();
    Some(Tokenizer::from_bytes(&plain, 1).unwrap())
}

/// The demo's calibration reports, or only the first two.
fn profiles(tokenizer: &Tokenizer) -> [ReportProfile; 2] {
    let read = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap();
        let tokens = tokenizer.encode(&text, 512).unwrap();
        (text, tokens)
    };
    let folder = package("examples/demo/calibration");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "txt"));
    paths.sort();
    let all: Vec<_> = paths.iter().map(|path| read(path)).collect();
    [&all[..], &all[..2]].map(|reports| ReportProfile::of(reports).unwrap())
}

/// How many reports get a warning of each code.
fn warned(reports: &[String], tokenizer: &Tokenizer, profile: Option<&ReportProfile>) -> BTreeMap<WarningCode, usize> {
    let mut counts = BTreeMap::new();
    for report in reports {
        let tokens = tokenizer.encode(report, 512).unwrap();
        for warning in report_warnings(report, &tokens, profile) {
            *counts.entry(warning.code).or_insert(0) += 1;
        }
    }
    counts.remove(&WarningCode::REPORT_TRUNCATED);
    counts
}

#[test]
fn calibration_reports_are_english_also_when_they_are_two() {
    for profile in profiles(&small()) {
        assert_eq!(profile.languages.iter().collect::<Vec<_>>(), ["English"], "{profile:?}");
    }
}

#[test]
fn english_reports_are_not_alarmed() {
    let styles: [(&[&str], _); 4] = [
        (&["english"], 3..8),
        (&["english"], 1..3),
        (&["english_telegraphic"], 1..9),
        (&["english", "english_telegraphic"], 2..12),
    ];
    for tokenizer in [Some(small()), llama2()].into_iter().flatten() {
        let [all, few] = profiles(&tokenizer);
        for (languages, sizes) in &styles {
            let reports = reports(languages, sizes.clone());
            for profile in [Some(&all), Some(&few), None] {
                let found = warned(&reports, &tokenizer, profile);
                assert!(found.is_empty(), "{languages:?}: {found:?} of {REPORTS}");
            }
        }
    }
}

#[test]
fn reports_in_other_languages_are_alarmed() {
    let tokenizer = small();
    let profiles = profiles(&tokenizer);
    for language in FOREIGN {
        for (sizes, least) in [(3..8, 0.99), (1..3, 0.5)] {
            let reports = reports(&[language], sizes.clone());
            for profile in &profiles {
                let found = warned(&reports, &tokenizer, Some(profile));
                let n = found.get(&WarningCode::REPORT_LANGUAGE).copied().unwrap_or(0);
                support::say(&format!("{language}, {sizes:?} sentences: {n} of {REPORTS} warned of"));
                assert!(n as f64 >= least * REPORTS as f64, "{language}: {n} of {REPORTS}");
            }
        }
        // The language is the model's own: nothing is said.
        let own = reports(&[language], 4..8);
        let tokens = |text: &String| (text.clone(), tokenizer.encode(text, 512).unwrap());
        let profile = ReportProfile::of(&own[..4].iter().map(tokens).collect::<Vec<_>>()).unwrap();
        assert_eq!(profile.languages.len(), 1, "{language}: {profile:?}");
        let found = warned(&reports(&[language], 3..8), &tokenizer, Some(&profile));
        assert_eq!(found.get(&WarningCode::REPORT_LANGUAGE), None, "{language}");
    }
}

/// The share of unknown tokens with LLaMA 2's tokenizer, which has pieces for what is common in each script.
#[test]
fn unknown_tokens_are_counted_in_what_llama_reads() {
    let Some(tokenizer) = llama2() else { return };
    for language in [&["english", "english_telegraphic"][..], &FOREIGN].concat() {
        let shares = reports(&[language], 3..8).into_iter().map(|report| {
            let tokens = tokenizer.encode(&report, 512).unwrap();
            tokens.unknown as f64 / tokens.ids.len() as f64
        });
        let mut shares: Vec<f64> = shares.collect();
        shares.sort_by(f64::total_cmp);
        let (median, largest) = (shares[shares.len() / 2], shares[shares.len() - 1]);
        support::say(&format!("{language}: unknown tokens {median:.3}, at most {largest:.3}"));
        let european = !["chinese", "japanese", "russian"].contains(&language);
        assert!(!european || largest == 0.0, "{language}: {largest}");
    }
    let rare = "𓀀𓀁 ꙮ ⡿⣿ 🧠🧠🧠🧠 ᚠᚢᚦ";
    let tokens = tokenizer.encode(rare, 512).unwrap();
    let warnings = report_warnings(rare, &tokens, None);
    assert_eq!(warnings.iter().map(|w| w.code).collect::<Vec<_>>(), [WarningCode::REPORT_UNKNOWN_TOKENS], "{tokens:?}");
}
