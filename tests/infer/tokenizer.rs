//! Tokenizers token for token: recorded ids of Hugging Face's `tokenizers` and of llama-tokenizer-js.

use std::io::Read;
use std::path::Path;

use brain_adapter::Code;
use brain_adapter::text::{Tokenizer, decode_report, read_report};
use serde_json::Value;
use support::oracle;

fn assert_ids(tokenizer: &Tokenizer, texts: &Value) {
    let cases = texts.as_array().expect("a list of texts");
    assert!(cases.len() > 5);
    for case in cases {
        let text = case["text"].as_str().expect("text");
        let expected: Vec<i64> = case["ids"].as_array().expect("ids").iter().map(|v| v.as_i64().expect("id")).collect();
        let found = tokenizer.encode(text, usize::MAX).expect("encodes").ids;
        if ["<s>", "</s>", "<unk>"].iter().any(|special| text.contains(special)) {
            // Recorded with special tokens read as such, which a report's text must never be.
            assert!(expected[1..].iter().any(|&id| id <= 2) && found[1..].iter().all(|&id| id > 2), "{text:?}");
        } else {
            assert_eq!(found, expected, "{text:?}");
        }
    }
}

#[test]
fn small_tokenizer_in_both_formats() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer");
    let texts: Value = serde_json::from_slice(&std::fs::read(folder.join("tokens.json")).unwrap()).unwrap();
    for file in ["tokenizer.json", "tokenizer.model"] {
        assert_ids(&Tokenizer::load(&folder.join(file), 1).unwrap(), &texts);
    }
}

#[test]
fn a_converted_model_survives_writing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer");
    let texts: Value = serde_json::from_slice(&std::fs::read(folder.join("tokens.json")).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let converted = Tokenizer::load(&folder.join("tokenizer.model"), 1).unwrap();
    std::fs::write(&path, converted.to_json().unwrap()).unwrap();
    assert_ids(&Tokenizer::load(&path, 1).unwrap(), &texts);
}

#[test]
fn llama2_token_for_token() {
    let Some(folder) = oracle::shared("fixtures/llama2_tokenizer") else { return };
    let texts: Value = serde_json::from_slice(&std::fs::read(folder.join("encoded.json")).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer.model"] {
        let packed = std::fs::read(folder.join(format!("{file}.gz"))).unwrap();
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut plain).unwrap();
        let path = dir.path().join(file);
        std::fs::write(&path, plain).unwrap();
        let tokenizer = Tokenizer::load(&path, 1).unwrap();
        assert_eq!(tokenizer.vocabulary(), 32_000);
        assert_ids(&tokenizer, &texts);
        special_tokens_stay_text(&tokenizer);
    }
}

#[test]
fn special_tokens_in_a_report_stay_text() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer");
    for file in ["tokenizer.json", "tokenizer.model"] {
        special_tokens_stay_text(&Tokenizer::load(&folder.join(file), 1).unwrap());
    }
}

/// `<s>`, `</s>` and `<unk>` in a report are characters, and only the first token is BOS.
fn special_tokens_stay_text(tokenizer: &Tokenizer) {
    for text in ["<s>", "</s>", "<unk>", "a <s> b</s><unk>", "<s><s>"] {
        let ids = tokenizer.encode(text, usize::MAX).unwrap().ids;
        assert_eq!(ids[0], 1);
        assert!(ids.len() > 3 && ids[1..].iter().all(|&id| id > 2), "{text:?} became {ids:?}");
    }
}

#[test]
fn truncation_counts_what_is_lost() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer");
    let tokenizer = Tokenizer::load(&folder.join("tokenizer.json"), 1).unwrap();
    let all = tokenizer.encode("memory complaints for two years, MMSE 24 of 30", usize::MAX).unwrap();
    assert!(all.lost == 0 && all.warning().is_none());
    let cut = tokenizer.encode("memory complaints for two years, MMSE 24 of 30", 5).unwrap();
    assert_eq!((cut.ids.as_slice(), cut.lost), (&all.ids[..5], all.ids.len() - 5));
    assert!(cut.warning().unwrap().message.contains(&cut.lost.to_string()));
}

#[test]
fn reports_that_are_no_text_are_refused() {
    let rows: [(&[u8], Code); 5] = [
        (b"", Code::REPORT_EMPTY),
        (b" \n\t ", Code::REPORT_EMPTY),
        (b"\xef\xbb\xbf", Code::REPORT_EMPTY),
        (b"caf\xe9", Code::REPORT_ENCODING),
        (b"ok\xed\xa0\x80", Code::REPORT_ENCODING),
    ];
    for (bytes, code) in rows {
        assert_eq!(decode_report(bytes).unwrap_err().code(), code, "{bytes:?}");
    }
    assert_eq!(decode_report(b"\xef\xbb\xbfnormal").unwrap(), "normal");
    assert_eq!(decode_report(b"\xff\xfea\0b\0").unwrap(), "ab");
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(read_report(dir.path()).unwrap_err().code(), Code::REPORT_NOT_FOUND);
    assert_eq!(read_report(&dir.path().join("none")).unwrap_err().code(), Code::REPORT_NOT_FOUND);
    let large = dir.path().join("large");
    std::fs::write(&large, vec![b'a'; (1 << 20) + 1]).unwrap();
    assert_eq!(read_report(&large).unwrap_err().code(), Code::REPORT_TOO_LARGE);
}
