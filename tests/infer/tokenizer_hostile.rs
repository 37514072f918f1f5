//! Tokenizers that would make the crate that reads them panic, or take memory or time without bound, are refused; those
//! of LLaMA's relatives are not.

use std::time::{Duration, Instant};

use brain_adapter::Code;
use brain_adapter::text::Tokenizer;
use serde_json::{Value, json};

fn special(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
           "special": true})
}

fn ordinary(id: u32, content: &str) -> Value {
    let mut token = special(id, content);
    token["special"] = json!(false);
    token
}

/// A small tokenizer with the letters of `pieces`, and this part changed.
fn with(key: &str, value: Value) -> Value {
    let pieces = ["<unk>", "<s>", "\u{2581}", "a", "b", "e", "ab", "\u{120}", "x"];
    let vocab: serde_json::Map<String, Value> = pieces.iter().zip(0..).map(|(p, i)| ((*p).into(), json!(i))).collect();
    let mut all = json!({
        "version": "1.0", "added_tokens": [special(1, "<s>")], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": vocab, "merges": ["a b"]},
    });
    *all.pointer_mut(key).unwrap() = value;
    all
}

fn load(json: &Value) -> brain_adapter::Result<Tokenizer> {
    Tokenizer::from_bytes(json.to_string().as_bytes(), 1)
}

fn split(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

fn replace(pattern: &str, content: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": pattern}, "content": content})
}

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

#[test]
fn parts_of_real_tokenizers_are_read() {
    let byte_level =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let template = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}});
    let metaspace = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": false});
    let rows = [
        // Llama 3, LLaMA 2 since 2024, DeepSeek, SmolLM, Phi-3's added tokens.
        ("/pre_tokenizer", json!({"type": "Sequence", "pretokenizers": [split(LLAMA_3), byte_level(false)]})),
        ("/post_processor", json!({"type": "Sequence", "processors": [byte_level(true), template.clone()]})),
        ("/post_processor", template),
        ("/decoder", byte_level(true)),
        ("/pre_tokenizer", metaspace),
        (
            "/pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [split("[\r\n]"), split(r"\s?\p{L}+"),
            split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"), {"type": "Digits", "individual_digits": true}, byte_level(false)]}),
        ),
        ("/normalizer", json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, replace(" ", "\u{2581}")]})),
        ("/normalizer", json!({"type": "Sequence", "normalizers": []})),
        ("/added_tokens", json!([special(1, "<s>"), special(9, "<|end|>"), ordinary(10, "<pad>")])),
        (
            "/added_tokens",
            json!([special(1, "<s>"), {"id": 9, "content": "</s>", "single_word": false, "lstrip": false,
            "rstrip": true, "normalized": false, "special": false}]),
        ),
    ];
    for (part, value) in rows {
        let shown = value.to_string();
        let tokenizer = load(&with(part, value)).unwrap_or_else(|e| panic!("{shown}: {e}"));
        for report in ["ab a  b\r\nMMSE 24/30", "é\u{301} \u{fdfa} 日", " ", "<pad>a</s> <|end|>"] {
            assert_eq!(tokenizer.encode(report, 64).unwrap_or_else(|e| panic!("{shown}: {e}")).ids[0], 1);
        }
    }
}

/// Settings of padding and truncation are neither used nor read: reports are cut and never padded.
#[test]
fn padding_is_not_what_the_file_says() {
    let mut json = with("/decoder", Value::Null);
    json["padding"] = json!({"strategy": {"Fixed": 1u64 << 60}, "direction": "Right", "pad_to_multiple_of": 1u64 << 59,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "x"});
    json["truncation"] = json!({"direction": "Left", "max_length": 0, "strategy": "OnlySecond", "stride": 1u64 << 60});
    let tokenizer = load(&json).unwrap();
    assert_eq!(tokenizer.encode("ab", 64).unwrap().ids, [1, 6]);
    let written: Value = serde_json::from_str(&tokenizer.to_json().unwrap()).unwrap();
    assert!(written["padding"].is_null() && written["truncation"].is_null());
}

/// Every row was a panic, an endless loop, or gigabytes, or is a part that no LLaMA has.
fn hostile_texts() -> Vec<(&'static str, &'static str, Value)> {
    let sequence = |key: &str, parts: Vec<Value>| json!({"type": "Sequence", key: parts});
    let many = |n: u32| (0..n).map(|_| replace("x", "x")).collect::<Vec<_>>();
    vec![
        ("chunks of nothing", "/pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
        ("chunks", "/pre_tokenizer", json!({"type": "FixedLength", "length": 5})),
        ("nested chunks", "/pre_tokenizer", sequence("pretokenizers", vec![json!({"type": "FixedLength", "length": 0})])),
        ("a bomb of two letters", "/normalizer", sequence("normalizers", (0..12).map(|_| replace("e", "ee")).collect())),
        ("a bomb of spaces", "/pre_tokenizer", sequence("pretokenizers", (0..16).map(|i| {
            json!({"type": "Metaspace", "replacement": char::from(b'a' + i).to_string(), "prepend_scheme": "always"})
        }).collect())),
        ("a bomb of Unicode", "/normalizer", sequence("normalizers", vec![json!({"type": "NFKC"}), json!({"type": "NFKD"})])),
        ("a match everywhere", "/normalizer", replace("", "abababab")),
        ("a replacement by nothing", "/normalizer", replace("e", "")),
        ("a long replacement", "/normalizer", replace("e", &"x".repeat(65))),
        ("a replacement by expression", "/normalizer",
            json!({"type": "Replace", "pattern": {"Regex": "a*"}, "content": "x"})),
        ("a long prefix", "/normalizer", json!({"type": "Prepend", "prepend": "x".repeat(1 << 20)})),
        ("too many parts", "/normalizer", sequence("normalizers", many(17))),
        ("sequences in sequences", "/normalizer", sequence("normalizers", vec![sequence("normalizers", many(1))])),
        ("an unnamed part", "/normalizer", json!({"prepend": "a"})),
        ("a character map", "/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
        ("BERT", "/normalizer", json!({"type": "BertNormalizer", "clean_text": true})),
        ("an unknown setting", "/normalizer", json!({"type": "NFC", "level": 9})),
        ("a list for a part", "/pre_tokenizer", json!([{"type": "Whitespace"}])),
        ("a back reference", "/pre_tokenizer", split(r"(\w+)\s\1")),
        ("a named reference", "/pre_tokenizer", split(r"(?<a>a)\k<a>")),
        ("recursion", "/pre_tokenizer", split(r"(a|\g<1>b)+")),
        ("look-behind", "/pre_tokenizer", split(r"(?<=a)b")),
        ("look-behind in what a comment hides", "/pre_tokenizer", split("(?ix:#[\n(?<=a)b)")),
        ("a conditional", "/pre_tokenizer", split(r"(?(1)a|b)")),
        ("large repetitions", "/pre_tokenizer", split(r"(?:\w{1000}){1000}")),
        ("an open repetition", "/pre_tokenizer", split(r"\p{L}{99,}")),
        ("many groups", "/pre_tokenizer", split(&"(?=a)".repeat(40))),
        ("a long expression", "/pre_tokenizer", split(&"a|".repeat(4096))),
    ]
}

/// The same, for what comes behind the text's own changes.
fn hostile_models() -> Vec<(&'static str, &'static str, Value)> {
    let template =
        |single: Value| json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}});
    let vocab = |id: u64| json!({"<unk>": 0, "<s>": 1, "a": id});
    let mut spaces = ordinary(9, "  ");
    spaces["rstrip"] = json!(true);
    let mut word = ordinary(9, "e");
    word["single_word"] = json!(true);
    let mut left = ordinary(9, "e");
    left["lstrip"] = json!(true);
    vec![
        ("a pair for one text", "/post_processor", template(json!([{"Sequence": {"id": "B", "type_id": 0}}]))),
        (
            "the text twice",
            "/post_processor",
            template(json!([{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}])),
        ),
        ("no text", "/post_processor", template(json!([]))),
        ("a decoder for nothing", "/decoder", json!({"type": "BPEDecoder", "suffix": "</w>"})),
        ("a number for a decoder", "/decoder", json!(7)),
        ("an endless strip", "/decoder", json!({"type": "Strip", "content": " ", "start": 0, "stop": u64::MAX})),
        ("the last id", "/model/vocab", vocab(u64::from(u32::MAX))),
        ("a large id", "/model/vocab", vocab(1 << 30)),
        ("an id twice", "/model/vocab", vocab(1)),
        ("a negative id", "/model/vocab", json!({"<s>": 1, "a": -1})),
        ("a long piece", "/model/vocab", json!({"<s>": 1, "x".repeat(4096): 2})),
        ("a long unknown", "/model/unk_token", json!("u".repeat(100))),
        ("a merge to nothing", "/model/merges", json!([["b", "a"]])),
        ("another model", "/model/type", json!("Unigram")),
        ("tokens that are none", "/added_tokens", json!({"a": 1})),
        ("an empty token", "/added_tokens", json!([special(1, "")])),
        ("a long token", "/added_tokens", json!([special(9, &"t".repeat(1000))])),
        ("a token twice", "/added_tokens", json!([special(1, "<s>"), special(9, "<s>")])),
        ("another id than it gets", "/added_tokens", json!([special(77, "<pad>")])),
        ("spaces that take spaces", "/added_tokens", json!([spaces])),
        ("a word alone", "/added_tokens", json!([word])),
        ("a token that strips", "/added_tokens", json!([left])),
    ]
}

#[test]
fn hostile_tokenizers_are_refused() {
    for (what, part, value) in hostile_texts().into_iter().chain(hostile_models()) {
        let started = Instant::now();
        let error = load(&with(part, value)).map(drop).expect_err(what);
        assert_eq!(error.code(), Code::TOKENIZER_INVALID, "{what}");
        let message = error.message();
        assert!(!message.contains('\n') && message.len() < 300, "{what}: {message}");
        assert!(started.elapsed() < Duration::from_secs(2), "{what}: {:?}", started.elapsed());
    }
}

/// A file of values that would take gigabytes is refused by their number.
#[test]
fn more_values_than_a_tokenizer_has_are_not_made() {
    let json = format!("{{\"normalizer\":[{}[]]}}", "[],".repeat(6 << 20));
    let error = Tokenizer::from_bytes(json.as_bytes(), 1).err().unwrap();
    assert!(error.code() == Code::TOKENIZER_INVALID && error.message().contains("JSON values"), "{error}");
}

/// What may grow is bounded by the length of the report: the worst accepted tokenizer on the longest report.
#[test]
fn a_report_that_would_grow_too_long_is_refused() {
    let parts = json!({"type": "Sequence", "normalizers": [replace("e", &"x".repeat(60))]});
    let tokenizer = load(&with("/normalizer", parts)).unwrap();
    assert_eq!(tokenizer.encode("e", 99).unwrap().ids.len(), 61);
    let error = tokenizer.encode(&"e".repeat(1 << 20), 99).unwrap_err();
    assert!(error.code() == Code::TOKENIZER_INVALID && error.message().contains("60.0 times"), "{error}");
    // LLaMA 2's own, on the longest report that is read.
    let own = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}, replace(" ", "\u{2581}")]});
    let tokens = load(&with("/normalizer", own)).unwrap().encode(&" ".repeat(1 << 20), 9).unwrap();
    assert_eq!(tokens.ids.len() + tokens.lost, (1 << 20) + 2);
}

/// Real expressions on long reports of the texts that are hardest for them.
#[test]
fn expressions_take_time_in_proportion_to_the_report() {
    let tokenizer = load(&with("/pre_tokenizer", split(LLAMA_3))).unwrap();
    for text in [" ", "\n", " \n", "a", "1", "'", " a", "\t\u{a0}"] {
        let started = Instant::now();
        tokenizer.encode(&text.repeat((1 << 18) / text.len()), 9).unwrap();
        assert!(started.elapsed() < Duration::from_secs(20), "{text:?}: {:?}", started.elapsed());
    }
}

/// Beginnings and ends of words change which pieces merge: LLaMA's tokenizers have neither.
#[test]
fn affixes_of_words_are_refused() {
    let model = with("/version", json!("1.0"))["model"].clone();
    for affix in ["continuing_subword_prefix", "end_of_word_suffix"] {
        let set = |value: Value| {
            let mut model = model.clone();
            model[affix] = value;
            load(&with("/model", model))
        };
        let error = set(json!("##")).err().unwrap();
        assert!(error.code() == Code::TOKENIZER_INVALID && error.message().contains(affix), "{error}");
        for none in [json!(null), json!("")] {
            set(none).unwrap();
        }
    }
}
