//! Fields that are read, that change nothing, and that are refused by name.

use serde_json::{Value, json};

use super::*;
use crate::error::{Code, Warning};

fn with(changes: Value) -> Value {
    let mut all = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 90, "hidden_size": 48,
        "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 12, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5});
    for (name, value) in changes.as_object().unwrap() {
        all[name] = value.clone();
    }
    all
}

#[track_caller]
fn read(changes: Value) -> (LlamaConfig, Vec<Warning>) {
    LlamaConfig::from_hf_for(&with(changes), 512).unwrap()
}

#[track_caller]
fn refused(changes: Value, code: Code, words: &[&str]) {
    let error = LlamaConfig::from_hf_for(&with(changes.clone()), 512).expect_err(&changes.to_string());
    assert_eq!(error.code(), code, "{error}");
    assert!(words.iter().all(|word| error.message().contains(word)), "{words:?}: {error}");
    assert!(!error.message().contains('\n') && error.message().len() < 500, "{error}");
}

#[test]
fn what_changes_the_computation_and_is_not_read_is_refused_by_name() {
    for (changes, words) in [
        (json!({"embedding_multiplier": 3.5}), ["embedding_multiplier is 3.5", "granite reads it"]),
        (json!({"scale_emb": 8}), ["scale_emb is 8", "minicpm reads it"]),
        (json!({"no_rope_layers": [1, 0, 1, 1]}), ["no_rope_layers is [1,0,1,1]", "smollm3 reads it"]),
        (json!({"residual_multiplier": 0.5}), ["residual_multiplier is 0.5", "granite"]),
        (json!({"attn_logit_softcapping": 50.0}), ["attn_logit_softcapping is 50.0", "llama"]),
        (json!({"partial_rotary_factor": 0.5}), ["partial_rotary_factor is 0.5", "llama"]),
        (json!({"qkv_bias": true}), ["qkv_bias is true", "llama"]),
        (json!({"use_qk_norm": true}), ["use_qk_norm is true", "llama"]),
        (json!({"sliding_window": 128}), ["sliding_window is 128", "mistral"]),
        (json!({"attention_window": [64, 64]}), ["attention_window is [64,64]", "llama"]),
        (json!({"num_local_experts": 8}), ["num_local_experts is 8", "llama"]),
        (json!({"use_parallel_residual": true}), ["use_parallel_residual is true", "llama"]),
        (json!({"rope_interleaved": true}), ["rope_interleaved is true", "llama"]),
        (json!({"query_pre_attn_scalar": 256}), ["query_pre_attn_scalar is 256", "llama"]),
        (json!({"position_embedding_type": "alibi"}), ["position_embedding_type is \"alibi\"", "llama"]),
        (json!({"hidden_act": "gelu_pytorch_tanh"}), ["hidden_act is \"gelu_pytorch_tanh\"", "silu"]),
        (
            json!({"layer_types": ["full_attention", "linear_attention", "full_attention", "full_attention"]}),
            ["layer_types has \"linear_attention\"", "sliding_attention"],
        ),
        (json!({"rope_scaling": {"type": "linear", "factor": 4.0}}), ["rope_scaling has type \"linear\"", "llama3"]),
        (
            json!({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}),
            ["rope_parameters has type \"yarn\"", "llama3"],
        ),
        (
            json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}),
            ["rope_parameters.partial_rotary_factor is 0.25", "whole heads"],
        ),
        (json!({"model_type": "gemma2", "architectures": null}), ["model_type is \"gemma2\"", "mistral"]),
        (json!({"model_type": null, "architectures": ["CohereForCausalLM"]}), ["CohereForCausalLM", "qwen2"]),
        (json!({"is_encoder_decoder": true}), ["is_encoder_decoder is true", "llama"]),
        (
            json!({"model_type": "mistral", "architectures": null, "attention_bias": true}),
            ["attention_bias is true", "llama"],
        ),
        (json!({"use_bidirectional_attention": "vision"}), ["use_bidirectional_attention is \"vision\"", "throughout"]),
    ] {
        refused(changes, Code::CONFIG_UNSUPPORTED, &words);
    }
}

#[test]
fn what_excludes_each_other_is_refused() {
    let contradiction = Code::CONFIG_CONTRADICTION;
    refused(json!({"architectures": ["MistralForCausalLM"]}), contradiction, &["llama", "MistralForCausalLM"]);
    refused(json!({"is_causal": false, "bidirectional": false}), contradiction, &["is_causal", "bidirectional"]);
    refused(
        json!({"architectures": ["LlamaBiModel"], "is_causal": true}),
        contradiction,
        &["LlamaBiModel", "is_causal"],
    );
    refused(json!({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}), contradiction, &["10000", "500000"]);
    let types = ["sliding_attention"; 4];
    let qwen = json!({"model_type": "qwen2", "architectures": null, "layer_types": types, "sliding_window": 64});
    refused(qwen, contradiction, &["layer_types", "sliding_window"]);
    // A word of Python's for what is no number, where one is read.
    let infinite = json!({"rope_theta": "Infinity"});
    refused(infinite, Code::CONFIG_SYNTAX, &["rope_theta is \"Infinity\"", "a number"]);
    let lacks = json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}});
    refused(lacks, Code::CONFIG_SYNTAX, &["rope_scaling.high_freq_factor is missing"]);
}

#[test]
fn harmless_fields_change_nothing() {
    let (plain, _) = read(json!({}));
    assert!(plain.variant.is_plain());
    assert!(!serde_json::to_string(&plain).unwrap().contains("variant"));
    for changes in [
        json!({"attention_dropout": 0.1, "pretraining_tp": 4, "use_cache": false, "torch_dtype": "bfloat16"}),
        json!({"embedding_multiplier": 1.0, "residual_multiplier": 1, "logit_scale": null, "attn_logit_softcapping": null}),
        json!({"attention_bias": false, "mlp_bias": false, "qkv_bias": false, "is_causal": true, "layer_norm_eps": 1e-5}),
        json!({"sliding_window": 4096, "use_sliding_window": false, "max_window_layers": 28}),
        json!({"sliding_window": 4096, "layer_types": ["full_attention", "full_attention", "full_attention", "full_attention"]}),
        json!({"mm_projector_type": "linear", "mm_attention_window": 7, "vision_scale": 3, "hospital": "ours", "norm_notes": ""}),
        json!({"_attn_implementation": "flash_attention_2", "chunk_size_feed_forward": 0, "temperature": 0.6, "top_p": 0.9}),
        json!({"quantization_config": {"quant_method": "gptq"}, "rope_scaling": {}, "partial_rotary_factor": 1.0}),
        json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "initializer_range": 0.02, "time_step_limit": [0, "Infinity"]}),
        json!({"model_type": null, "architectures": null}),
        json!({"model_type": null, "architectures": ["LlamaModel"]}),
        json!({"model_type": "lamed_llama", "architectures": ["LamedLlamaForCausalLM"], "image_channel": 1, "proj_layer_num": 2}),
        json!({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}, "sliding_attention": {"rope_theta": 9.0}}}),
        json!({"model_type": "mistral", "architectures": ["MistralModel"], "sliding_window": 512}),
        json!({"model_type": "mistral", "architectures": null, "sliding_window": null}),
    ] {
        let (config, warnings) =
            LlamaConfig::from_hf_for(&with(changes.clone()), 512).unwrap_or_else(|e| panic!("{changes}: {e}"));
        assert!(config == plain && warnings.is_empty(), "{changes}: {config:?} {warnings:?}");
    }
}

#[test]
fn who_sees_whom_is_read() {
    for changes in [
        json!({"model_type": "llama_bidirec", "architectures": ["LlamaBidirectionalModel"], "pooling": "avg"}),
        json!({"is_causal": false}),
        json!({"use_bidirectional_attention": true}),
        json!({"architectures": ["LlamaBiModel"]}),
        json!({"auto_map": {"AutoModel": "org/repo--modeling_llama_encoder.LlamaEncoderModel"}}),
        json!({"model_type": "bidirectional_qwen3", "architectures": null}),
    ] {
        assert!(read(changes.clone()).0.variant.bidirectional, "{changes}");
    }
    assert!(read(json!({"architectures": ["LlamaBiForMNTP"]})).1[0].message.contains("LlamaBiForMNTP"));
    assert!(
        !read(json!({"architectures": ["LlamaForSequenceClassification"], "is_decoder": true})).0.variant.bidirectional
    );
    let own = read(json!({"architectures": ["OurLlama"]}));
    assert!(own.0.variant.is_plain() && own.1[0].message.contains("OurLlama"));
    let layers = |changes: Value| read(changes).0.variant.window.map(|w| (w.tokens, w.layers));
    assert_eq!(
        layers(json!({"model_type": "mistral", "architectures": null, "sliding_window": 511})),
        Some((511, vec![0, 1, 2, 3]))
    );
    let qwen = json!({"model_type": "qwen2", "architectures": null, "sliding_window": 9, "use_sliding_window": true, "max_window_layers": 3});
    assert_eq!(layers(qwen), Some((9, vec![3])));
    assert_eq!(read(json!({"model_type": "smollm3", "architectures": null})).0.variant.nope_layers, [3]);
}

#[test]
fn parts_of_larger_configurations_are_read_with_their_classes_defaults() {
    let inner = json!({"model_type": "mistral", "vocab_size": 99, "num_hidden_layers": 3, "rope_theta": 1e6});
    let llava =
        json!({"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": inner});
    let config = LlamaConfig::from_hf_for(&llava, 64).unwrap().0;
    assert_eq!(
        (config.hidden, config.mlp, config.layers, config.kv_heads, config.rope_theta),
        (4096, 14_336, 3, 8, 1e6)
    );
    let error = LlamaConfig::from_hf(&json!({"text_config": {"hidden_size": 8, "model_type": "phi3"}})).unwrap_err();
    assert!(error.message().starts_with("text_config: model_type is \"phi3\""), "{error}");
    let absent = LlamaConfig::from_hf(&json!({"model_type": "mistral"})).unwrap_err();
    assert!(absent.code() == Code::CONFIG_SYNTAX && absent.message().contains("num_attention_heads is missing"));
}

#[test]
fn what_meta_scales_is_known_or_asked_for() {
    let meta = |changes: Value| {
        let mut all = json!({"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "norm_eps": 1e-5, "rope_theta": 5e5,
            "multiple_of": 1024, "ffn_dim_multiplier": 1.3, "vocab_size": -1, "use_scaled_rope": true});
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        LlamaConfig::from_meta(&all, 64, 90)
    };
    let factor = |changes| meta(changes).unwrap().variant.rope_scaling.unwrap().factor;
    assert_eq!(
        [factor(json!({})), factor(json!({"dim": 2048, "n_layers": 16})), factor(json!({"rope_scaling_factor": 4}))],
        [8.0, 32.0, 4.0]
    );
    let error = meta(json!({"dim": 64, "n_layers": 2})).unwrap_err();
    assert!(error.code() == Code::CONFIG_UNSUPPORTED && error.message().contains("rope_scaling_factor"), "{error}");
    assert!(meta(json!({"moe": {"num_experts": 8}})).unwrap_err().message().contains("moe"));
    assert_eq!(meta(json!({"sliding_window": 4096})).unwrap().for_tokens(512).variant.window, None);
}

#[test]
fn a_bundles_variant_is_bounded() {
    let (plain, _) = read(json!({}));
    let change = |change: &dyn Fn(&mut Variant)| {
        let mut config = plain.clone();
        change(&mut config.variant);
        config.validate()
    };
    let window = |tokens, layers: &[usize]| Some(Window { tokens, layers: layers.to_vec() });
    change(&|v| v.window = window(7, &[0, 3])).unwrap();
    for error in [
        change(&|v| v.window = window(0, &[0])),
        change(&|v| v.window = window(usize::MAX, &[0])),
        change(&|v| v.window = window(7, &[4])),
        change(&|v| v.window = window(7, &[1, 1])),
        change(&|v| v.nope_layers = vec![2, 1]),
        change(&|v| v.embedding_scale = Some(f64::NAN)),
        change(&|v| v.attention_scale = Some(0.0)),
        change(&|v| v.residual_scale = Some(1e300)),
        change(&|v| {
            v.rope_scaling = Some(RopeScaling { factor: 8.0, low_freq_factor: 4.0, high_freq_factor: 4.0, original: 8 })
        }),
    ] {
        assert_eq!(error.unwrap_err().code(), Code::CONFIG_VALUE);
    }
}
