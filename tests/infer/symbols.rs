//! Words that a SentencePiece tokenizer takes whole: user-defined symbols and tokens added next to it, token for token
//! as the package `sentencepiece` has them (`tests/data/tokenizer/make_symbols.py`).

use std::process::Command;

use brain_adapter::text::{AddedTokens, Tokenizer};
use serde_json::{Value, json};
use support::{oracle, package};

const SCRIPT: &str = "tests/data/tokenizer/make_symbols.py";

/// Whether a text between two words may be what a special token or a byte is called.
fn spells_special(text: &str) -> bool {
    text.contains("<s>") || text.contains("<0x41>")
}

/// The file of a model, which is recorded in hexadecimal.
fn bytes_of(model: &Value) -> Vec<u8> {
    let text = model["model"].as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Compares all texts of all models; returns how many there were.
fn compare(models: &Value) -> usize {
    let mut compared = 0;
    for model in models.as_array().unwrap() {
        let bytes = bytes_of(model);
        for row in model["rows"].as_array().unwrap() {
            let config = json!({"legacy": row["legacy"]});
            let added = AddedTokens::of(&row["added"], &config, &Value::Null).unwrap();
            let tokenizer =
                Tokenizer::from_bytes_with(&bytes, &added, 1).unwrap_or_else(|e| panic!("{e}: {}", model["symbols"]));
            let written = Tokenizer::from_bytes(tokenizer.to_json().unwrap().as_bytes(), 1).unwrap();
            for case in row["texts"].as_array().unwrap() {
                let text = case["text"].as_str().unwrap();
                let found = tokenizer.encode(text, usize::MAX).unwrap();
                let expected: Vec<i64> =
                    case["ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
                let place = format!("{text:?}, symbols {}, added {}, {config}", model["symbols"], row["added"]);
                assert_eq!(found, written.encode(text, usize::MAX).unwrap(), "{place}");
                assert!(found.ids[1..].iter().all(|id| *id > 2), "{place}: {:?}", found.ids);
                if found.ids != expected {
                    assert!(spells_special(text), "{place}: {:?}, expected {expected:?}", found.ids);
                }
                compared += 1;
            }
        }
    }
    compared
}

#[test]
fn recorded_texts_have_the_ids_of_sentencepiece() {
    let models = std::fs::read(package("tests/data/tokenizer/symbols.json")).unwrap();
    assert_eq!(compare(&serde_json::from_slice(&models).unwrap()), 90);
}

#[test]
fn random_texts_have_the_ids_of_sentencepiece() {
    let Some(python) = oracle::torch("ids of random texts by random models with user-defined symbols") else { return };
    for seed in ["1", "2"] {
        let done = Command::new(&python).arg(package(SCRIPT)).args([seed, "8"]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(compare(&serde_json::from_slice(&done.stdout).unwrap()), 8 * 3 * 60);
    }
}

/// What is spelled between two symbols never becomes a special token or a byte.
#[test]
fn text_between_symbols_stays_text() {
    let models: Value =
        serde_json::from_slice(&std::fs::read(package("tests/data/tokenizer/symbols.json")).unwrap()).unwrap();
    let bytes = bytes_of(&models[0]);
    let tokenizer = Tokenizer::from_bytes(&bytes, 1).unwrap();
    let symbol = models[0]["symbols"][0].as_str().unwrap();
    let byte = tokenizer.id("<0x41>").map(i64::from).unwrap();
    for name in ["<s>", "</s>", "<unk>", "<0x41>"] {
        let ids = tokenizer.encode(&format!("{symbol}{name}{symbol}"), 99).unwrap().ids;
        assert!(ids.len() > 5 && ids[1..].iter().all(|id| *id > 2 && *id != byte), "{name}: {ids:?}");
    }
}
