//! Texts: configurations, lists, tokenizers.

use std::path::Path;

use brain_adapter::cohort::{assign_splits, parse_labelled, parse_list, subject_warnings};
use brain_adapter::config::{Config, LlamaConfig};
use brain_adapter::text::{ReportFormat, ReportProfile, Tokenizer, Tokens, decode_report_as, report_warnings};
use brain_adapter::train::artifacts::{FORMAT, Manifest};

const REPORT: &str = "Memory complaints: <s> 2 years, MMSE 24/30.\r\n\t  aaaa \u{2581}é日\u{fdfa}e\u{301}İ don't";

/// A tokenizer: what loads tokenizes reports or refuses, BOS first and within the limit, in the time that an input may
/// take; and what it writes loads again and says the same.
pub fn tokenizer(data: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_bytes(data, 1) else { return };
    let written = tokenizer.to_json().ok().map(|json| Tokenizer::from_bytes(json.as_bytes(), 1));
    // A text of the input's own: what it replaces is then often there.
    let own: String = String::from_utf8_lossy(data).chars().rev().take(200).collect();
    for report in [REPORT, &own] {
        let Ok(tokens) = tokenizer.encode(report, 9) else { continue };
        assert!(tokens.ids.first() == Some(&1) && tokens.ids.len() <= 9);
        if let Some(Ok(again)) = &written {
            assert_eq!(again.encode(report, 9).ok(), Some(tokens));
        }
    }
}

/// A `config.json`, of ours, of Hugging Face's and of Meta's: sizes that can be built, or a refusal.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(config) = Config::from_text(text) {
        let patches: usize = config.run_grid().iter().product();
        assert!(patches > 0 && patches * config.vision.hidden <= 1 << 28 && config.vision.layers <= 1024);
        assert!(config.trained_grid().iter().all(|n| *n > 0) && config.vision.hidden % config.vision.heads == 0);
        let again = serde_json::to_string(&config).expect("a configuration is written");
        assert_eq!(Config::from_text(&again).ok(), Some(config));
    }
    let Ok(json) = serde_json::from_str(text) else { return };
    for llama in [LlamaConfig::from_hf(&json), LlamaConfig::from_meta(&json, 11008, 32000)].into_iter().flatten() {
        assert!(llama.validate().is_ok() && llama.layers <= 1024);
        assert!(llama.heads.checked_mul(llama.head_dim).is_some_and(|width| width <= 1 << 22));
    }
}

/// A `training.json`: a manifest that keeps its own rules, or a refusal.
pub fn training(data: &[u8]) {
    let Ok(manifest) =
        std::str::from_utf8(data).map_err(|_| ()).and_then(|text| Manifest::from_text(text).map_err(|_| ()))
    else {
        return;
    };
    assert!(manifest.format == FORMAT && manifest.config.validate().is_ok());
    assert!(manifest.files.iter().all(|file| !file.name.contains(['/', '\\'])));
}

/// Whether an error is one line of bounded length.
fn one_line(e: &brain_adapter::Error) -> bool {
    let text = e.to_string();
    text.lines().count() == 1 && text.len() < 4000
}

/// A list of scans, with and without labels, in any dialect: rows with their lines and all cells, bad rows named in one
/// line, subjects that never part, or a refusal in one line.
pub fn list(data: &[u8]) {
    let path = Path::new("folder/list.csv");
    // Of UTF-16, half of the line end; of old Macs, the other character.
    let lines = data.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count() + 1;
    match parse_list(data, path) {
        Ok(list) => {
            let rows = &list.rows;
            assert!(rows.iter().all(|row| !row.scan.is_empty() && row.line >= 1 && row.line <= lines as u64));
            assert!(rows.windows(2).all(|pair| pair[0].line <= pair[1].line));
            assert!(rows.iter().all(|row| row.others.len() == list.columns.len()));
            assert!(rows.is_empty() <= list.bad.is_empty());
            assert!(list.bad.iter().all(|bad| bad.line <= lines as u64 && one_line(&bad.error)));
            let names: std::collections::BTreeSet<_> = list.columns.iter().collect();
            assert_eq!(names.len(), list.columns.len());
        }
        Err(e) => assert!(one_line(&e)),
    }
    // Without that column nothing is parsed. What is between its letters may be half of UTF-16.
    let text: Vec<u8> = data.iter().filter(|byte| **byte != 0).map(u8::to_ascii_lowercase).collect();
    if !text.windows(5).any(|word| word == b"label") {
        return;
    }
    let labels = ["CN", "MCI", "AD"].map(String::from);
    let Ok(mut cases) = parse_labelled(data, path, &labels) else { return };
    assert!(!cases.is_empty() && cases.iter().all(|case| case.label < labels.len() && case.line <= lines));
    assert!(assign_splits(&mut cases, [0.5, 0.25, 0.25], 7).is_ok());
    let mut splits = std::collections::BTreeMap::new();
    let _ = subject_warnings(&cases);
    for case in &cases {
        assert!(case.split.is_some() && *splits.entry(&case.subject).or_insert(case.split) == case.split);
    }
}

/// A report, as plain text and as HTML: a text with LF line ends and a letter, which is read again as it is, or a
/// refusal.
pub fn report(data: &[u8]) {
    for format in [ReportFormat::Text, ReportFormat::Html] {
        let Ok(text) = decode_report_as(data, format) else { continue };
        assert!(!text.contains(['\r', '\0', '\u{feff}', '\u{85}']) && text.chars().any(char::is_alphabetic));
        assert!(format == ReportFormat::Html || decode_report_as(text.as_bytes(), format).ok() == Some(text.clone()));
        let tokens = Tokens { ids: vec![1, 5], lost: 0, unknown: 0 };
        if let Some(profile) = ReportProfile::of(&[(text.clone(), tokens.clone())]) {
            assert!(report_warnings(&text, &tokens, Some(&profile)).is_empty());
        }
    }
}
