//! A model whose language model is large enough for memory to matter: 77 million weights in its layers, the rest tiny.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use brain_adapter::bundle::{Precision, Target};
use brain_adapter::export::{self, Plan, Sources};
use brain_adapter::infer::{Options, Predictor};
use brain_adapter::progress::Silent;
use brain_adapter::tensor::{DType, LazyTensor};

use crate::commands::save;
use crate::package;
use crate::reference::LlamaConfig;
use crate::reference::generate::case_around;
use crate::reference::write::write_case;

/// Sizes of the language model.
pub const L: LlamaConfig = LlamaConfig {
    vocab: 512,
    hidden: 1024,
    mlp: 2816,
    layers: 6,
    heads: 8,
    kv_heads: 4,
    head_dim: 128,
    eps: 1e-5,
    theta: 1e4,
};

/// What the language model's layers take in float32.
pub const SINGLE: u64 = 4 * (L.layers * (3 * L.hidden * (L.hidden + L.mlp))) as u64;

/// The language model's tensors under Hugging Face's names, in float16.
pub fn tensors() -> Vec<(String, LazyTensor)> {
    let mut state = 1u64;
    let mut random = |shape: &[usize]| {
        let mut bytes = Vec::with_capacity(2 * shape.iter().product::<usize>());
        while bytes.len() < bytes.capacity() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // A sign, one of four exponents and a fraction: magnitudes up to 0.12.
            bytes.extend(((state >> 33) as u16 & 0x8fff | 0x2000).to_le_bytes());
        }
        LazyTensor::new(DType::F16, shape.to_vec(), Arc::new(bytes))
    };
    let (h, kv) = (L.hidden, L.kv_heads * L.head_dim);
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), random(&[L.vocab, h])),
        ("model.norm.weight".to_owned(), random(&[h])),
    ];
    for n in 0..L.layers {
        let mut put =
            |name: &str, shape: &[usize]| all.push((format!("model.layers.{n}.{name}.weight"), random(shape)));
        for (p, rows) in [("q", h), ("k", kv), ("v", kv)] {
            put(&format!("self_attn.{p}_proj"), &[rows, h]);
        }
        put("self_attn.o_proj", &[h, h]);
        put("mlp.gate_proj", &[L.mlp, h]);
        put("mlp.up_proj", &[L.mlp, h]);
        put("mlp.down_proj", &[h, L.mlp]);
        put("input_layernorm", &[h]);
        put("post_attention_layernorm", &[h]);
    }
    all
}

/// Writes the model folder, and `write_text` the language model into its `llama/`.
pub fn write_model(folder: &Path, write_text: &dyn Fn(&Path)) {
    fs::create_dir_all(folder).unwrap();
    let small = case_around(7, &LlamaConfig { layers: 1, mlp: 8, ..L });
    write_case(&small, folder, Some(&package("tests/data/tokenizer/tokenizer.json")));
    let llama = folder.join("llama");
    let config = fs::read(llama.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    (config["num_hidden_layers"], config["intermediate_size"]) = (L.layers.into(), L.mlp.into());
    fs::write(llama.join("config.json"), config.to_string()).unwrap();
    for entry in fs::read_dir(&llama).unwrap().map(|e| e.unwrap().path()) {
        if entry.file_name().unwrap().to_string_lossy().contains("safetensors") {
            fs::remove_file(entry).unwrap();
        }
    }
    write_text(&llama);
}

/// A bundle of the model for the CPU, made once a precision.
pub fn bundle(precision: Precision) -> PathBuf {
    bundle_for(precision, Target::Cpu)
}

/// A bundle of the model, made once a precision and target.
pub fn bundle_for(precision: Precision, target: Target) -> PathBuf {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    static MAKING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = MAKING.lock().unwrap();
    let folder = FOLDER.get_or_init(|| {
        let dir = crate::lasting();
        write_model(&dir.path().join("model"), &|llama| save(&llama.join("model.safetensors"), tensors()));
        dir
    });
    let made = folder.path().join(format!("{precision}-{target}"));
    if !made.exists() {
        let sources = Sources::in_folder(&folder.path().join("model")).unwrap();
        export::run(&Plan { precision, target, ..Plan::new(sources, &made) }, &mut Silent).unwrap();
    }
    made
}

/// In the least memory that is enough: what the process has already, which counts, changes from test to test.
pub fn tightest(bundle: &Path, options: &Options) -> Predictor {
    let limits = (1..1000).map(|i| i * SINGLE / 16);
    let open = |limit| Predictor::open(bundle, Options { max_memory: Some(limit), ..options.clone() }).ok();
    limits.into_iter().find_map(open).expect("some memory is enough")
}
