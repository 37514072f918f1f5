//! Damaged manifests, graphs and tokenizers, thousands of them: accepted or refused, never a panic, and soon.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use brain_adapter::Code;
use brain_adapter::bundle::{Bundle, Manifest};
use brain_adapter::onnx::{SegmentedModel, external_files, external_files_in};
use brain_adapter::text::Tokenizer;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use support::commands::{tiny_bundle, tiny_copy};

/// One to eight random changes.
fn mutate(bytes: &[u8], rng: &mut impl Rng) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..rng.random_range(1..=8) {
        if out.is_empty() {
            out.push(0);
        }
        let at = rng.random_range(0..out.len());
        let to = rng.random_range(at..out.len().min(at + 64) + 1).min(out.len());
        match rng.random_range(0..8) {
            0 => out[at] ^= 1 << rng.random_range(0..8),
            1 => out[at] = rng.random(),
            2 => out[at] = *[0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'9', b'-'].get(rng.random_range(0..9)).unwrap(),
            3 => out.truncate(at),
            4 => drop(out.drain(at..to)),
            5 => {
                let copy = out[at..to].to_vec();
                let place = rng.random_range(0..=out.len());
                out.splice(place..place, copy);
            }
            6 => drop(out.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0x0f])),
            _ => drop(out.splice(at..at, *b"999999999999999999999")),
        }
    }
    out
}

/// Runs `check` on many mutations of `bytes`; each must end within a second.
fn each(seed: u64, count: usize, bytes: &[u8], mut check: impl FnMut(&[u8])) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for i in 0..count {
        let mutated = mutate(bytes, &mut rng);
        let started = Instant::now();
        check(&mutated);
        assert!(started.elapsed() < Duration::from_secs(2), "mutation {i} took {:?}", started.elapsed());
    }
}

#[test]
fn manifests() {
    let good = fs::read(tiny_bundle().join("bundle.json")).unwrap();
    let mut accepted = 0;
    each(1, 4000, &good, |bytes| match Manifest::from_bytes(bytes) {
        Ok(manifest) => {
            accepted += 1;
            let again = serde_json::to_vec(&manifest).unwrap();
            assert_eq!(Manifest::from_bytes(&again).unwrap(), manifest);
        }
        Err(e) => assert!([Code::BUNDLE_MANIFEST, Code::BUNDLE_PATH].contains(&e.code()), "{e}"),
    });
    assert!(accepted > 20, "nearly nothing was read: the mutations show little");
}

#[test]
fn whole_bundles() {
    let dir = tiny_copy();
    let path = dir.path().join("bundle.json");
    let good = fs::read(&path).unwrap();
    let allowed = [Code::BUNDLE_MANIFEST, Code::BUNDLE_PATH, Code::BUNDLE_CHECKSUM];
    each(2, 300, &good, |bytes| {
        fs::write(&path, bytes).unwrap();
        if let Err(e) = Bundle::open(dir.path()) {
            assert!(allowed.contains(&e.code()), "{}: {e}", e.code());
        }
    });
}

#[test]
fn graphs() {
    for (seed, name) in [(3, "adapter.onnx"), (4, "text.onnx"), (5, "heads.onnx")] {
        let good = fs::read(tiny_bundle().join(name)).unwrap();
        assert!(external_files(&tiny_bundle().join(name)).unwrap().len() <= 1);
        each(seed, 1500, &good, |bytes| {
            if let Err(e) = external_files_in(bytes) {
                assert_eq!(e.code(), Code::ONNX_INVALID);
            }
            take_apart(bytes);
        });
    }
    // Subgraphs a million deep: the decoder's limit, not the stack's.
    let mut deep = Vec::new();
    for _ in 0..2000 {
        let wrap = |tag: u8, bytes: &[u8]| {
            let n = bytes.len();
            [&[tag << 3 | 2, n as u8 | 0x80, (n >> 7) as u8 | 0x80, (n >> 14) as u8][..], bytes].concat()
        };
        deep = wrap(1, &wrap(5, &wrap(6, &deep)));
    }
    let n = deep.len();
    let model = [&[0x3a, n as u8 | 0x80, (n >> 7) as u8 | 0x80, (n >> 14) as u8][..], &deep].concat();
    assert_eq!(external_files_in(&model).unwrap_err().code(), Code::ONNX_INVALID);
}

/// Each block of a graph and what it takes; whether that makes sense, ONNX Runtime says.
fn take_apart(bytes: &[u8]) {
    let Ok(model) = SegmentedModel::from_bytes(bytes) else { return };
    let extents = BTreeMap::from([("batch", 1), ("tokens", u64::MAX / 3)]);
    for i in 0..model.segments().len() {
        model.live_bytes(i..i + 1, &extents);
        if let Err(e) = model.extract(i..i + 1).map(drop) {
            assert_eq!(e.code(), Code::ONNX_INVALID);
        }
    }
}

const REPORT: &str = "Memory complaints: <s> 2 years, MMSE 24/30.\n\u{2581}é日 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!";

fn tokenize(bytes: &[u8]) {
    match Tokenizer::from_bytes(bytes, 1) {
        Ok(tokenizer) => match tokenizer.encode(REPORT, 16) {
            Ok(tokens) => assert!(tokens.ids[0] == 1 && tokens.ids.len() <= 16),
            Err(e) => assert_eq!(e.code(), Code::TOKENIZER_INVALID),
        },
        Err(e) => assert_eq!(e.code(), Code::TOKENIZER_INVALID),
    }
}

#[test]
fn tokenizers() {
    for (seed, name) in [(6, "tokenizer.json"), (7, "tokenizer.model")] {
        let good = fs::read(support::package("tests/data/tokenizer").join(name)).unwrap();
        each(seed, 1500, &good, tokenize);
    }
}

/// Parts that a tokenizer.json may name, with nonsense in them.
#[test]
fn tokenizers_with_strange_parts() {
    let good = fs::read(support::package("tests/data/tokenizer/tokenizer.json")).unwrap();
    let good: serde_json::Value = serde_json::from_slice(&good).unwrap();
    let parts = [
        ("pre_tokenizer", r#"{"type":"Split","pattern":{"Regex":"(a+)+(?=b)"},"behavior":"Isolated","invert":false}"#),
        ("pre_tokenizer", r#"{"type":"Split","pattern":{"Regex":"(a|a|aa)+\\1$"},"behavior":"Removed","invert":true}"#),
        ("pre_tokenizer", r#"{"type":"Split","pattern":{"Regex":""},"behavior":"Isolated","invert":false}"#),
        ("pre_tokenizer", r#"{"type":"Split","pattern":{"Regex":"("},"behavior":"Isolated","invert":false}"#),
        ("normalizer", r#"{"type":"Replace","pattern":{"Regex":"(a+)+(?=b)"},"content":"x"}"#),
        ("normalizer", r#"{"type":"Replace","pattern":{"String":""},"content":"xxxxxxxxxxxxxxxx"}"#),
        ("normalizer", r#"{"type":"Precompiled","precompiled_charsmap":"AAAA"}"#),
        ("normalizer", r#"{"type":"Precompiled","precompiled_charsmap":"/////w=="}"#),
        ("normalizer", r#"{"type":"Precompiled","precompiled_charsmap":"BAAAAP////8="}"#),
        ("post_processor", r#"{"type":"TemplateProcessing","single":[],"pair":[],"special_tokens":{}}"#),
        ("truncation", r#"{"direction":"Right","max_length":0,"strategy":"LongestFirst","stride":9}"#),
        (
            "padding",
            r#"{"strategy":{"Fixed":99999999999},"direction":"Right","pad_to_multiple_of":0,"pad_id":0,"pad_type_id":0,"pad_token":""}"#,
        ),
        ("model", r#"{"type":"BPE","vocab":{"a":0,"b":1},"merges":[["a","b"]]}"#),
        ("model", r#"{"type":"BPE","vocab":{"a":0,"b":1},"merges":[]}"#),
        ("model", r#"{"type":"BPE","vocab":{"a":4294967295,"b":1},"merges":[],"dropout":2.0}"#),
        ("model", r#"{"type":"BPE","vocab":{},"merges":[],"byte_fallback":true}"#),
        ("model", r#"{"type":"Unigram","unk_id":9,"vocab":[["a",0.0]]}"#),
        ("model", r#"{"type":"Unigram","unk_id":0,"vocab":[["",0.0],["",1.0]]}"#),
        (
            "model",
            r#"{"type":"WordPiece","unk_token":"?","continuing_subword_prefix":"","max_input_chars_per_word":0,"vocab":{"b":1}}"#,
        ),
        ("model", r#"{"type":"WordLevel","unk_token":"?","vocab":{"b":1}}"#),
    ];
    for (part, json) in parts {
        let mut changed = good.clone();
        changed[part] = serde_json::from_str(json).unwrap();
        let started = Instant::now();
        tokenize(changed.to_string().as_bytes());
        assert!(started.elapsed() < Duration::from_secs(5), "{part} {json}: {:?}", started.elapsed());
    }
}
