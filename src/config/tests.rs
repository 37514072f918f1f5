//! Settings that are refused, with what to write instead.

use super::*;

#[track_caller]
fn refused(json: &str, words: &[&str]) {
    let config: Config = serde_json::from_str(json).unwrap();
    let error = config.validate().unwrap_err();
    assert_eq!(error.code(), Code::CONFIG_VALUE);
    words.iter().for_each(|words| assert!(error.message().contains(words), "{words}: {error}"));
}

/// What to write is said where it can be known.
#[test]
fn settings_in_another_unit_are_refused() {
    refused(r#"{"volume": {"clip": [0.005, 0.995]}}"#, &["[0.005, 0.995]", "percent", "write [0.5, 99.5]"]);
    refused(r#"{"volume": {"clip": [0.0, 1.0]}}"#, &["write [0, 100]"]);
    refused(r#"{"volume": {"clip": [0.01, 0.29]}}"#, &["write [1, 29]"]);
    refused(r#"{"volume": {"clip": [99.5, 0.5]}}"#, &["write [0.5, 99.5]"]);
    refused(r#"{"volume": {"clip": [-1.0, 99.0]}}"#, &["0 <= low < high <= 100"]);
    refused(r#"{"volume": {"clip": [5.0, 5.0]}}"#, &["0 <= low < high <= 100"]);
    refused(r#"{"volume": {"voxel_mm": 0.001}}"#, &["millimetres", "written 1"]);
    refused(r#"{"labels": ["AD", "AD "]}"#, &["different names"]);
    refused(r#"{"labels": ["AD", " "]}"#, &["different names"]);
    for clip in ["[0.0, 99.9]", "[0.5, 99.5]", "[0.1, 1.5]", "null"] {
        let json = format!(r#"{{"volume": {{"clip": {clip}}}}}"#);
        serde_json::from_str::<Config>(&json).unwrap().validate().unwrap();
    }
}

#[test]
fn reports_have_no_more_tokens_than_the_model_has_positions() {
    let json = serde_json::json!({"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 4096});
    let mut llama = LlamaConfig::from_hf(&json).unwrap();
    llama.check_tokens(4096).unwrap();
    let error = llama.check_tokens(4097).unwrap_err();
    assert!(error.code() == Code::CONFIG_VALUE && error.message().contains("write 4096 or less"), "{error}");
    llama.max_positions = None;
    llama.check_tokens(1 << 20).unwrap();
}
