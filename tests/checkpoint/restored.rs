//! LoRA merged and quantized weights made floats: equal to what PEFT and the published packing loops make, recorded and
//! at random; and what cannot be merged or read is refused by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use brain_adapter::checkpoint::{Checkpoint, write_safetensors};
use brain_adapter::error::{Code, WarningCode};
use brain_adapter::tensor::{DType, LazyTensor};
use serde_json::{Value, json};
use support::{oracle, package};

/// Every case of `tests/scripts/restored.py` in `folder`; how many there were.
fn compare(folder: &Path) -> usize {
    let cases = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let cases: Vec<_> = cases.filter(|path| path.is_dir()).collect();
    for case in &cases {
        let name = case.file_name().unwrap().to_str().unwrap();
        let expected = Checkpoint::open(case.join("expected.safetensors")).unwrap();
        let found = Checkpoint::open(case.join("model")).unwrap_or_else(|e| panic!("{name}: {e}"));
        let is_lora = name.starts_with("lora");
        let code = if is_lora { WarningCode::CHECKPOINT_MERGED } else { WarningCode::CHECKPOINT_DEQUANTIZED };
        assert_eq!(found.warnings().iter().map(|w| w.code).collect::<Vec<_>>(), [code], "{name}");
        let half = case.join("half.safetensors");
        let half = half.exists().then(|| Checkpoint::open(half).unwrap());
        let mut changed = 0;
        for (key, want) in expected.iter() {
            let Some(tensor) = found.get(key).or_else(|| found.get(key.strip_prefix("model.")?)) else {
                assert!(key.starts_with("lm_head"), "{name}: {key} is missing");
                continue;
            };
            assert_eq!(tensor.shape(), want.shape(), "{name} {key}");
            let (got, exact) = (tensor.to_f32().unwrap(), want.to_f32().unwrap());
            for (g, w) in got.iter().zip(&exact) {
                // A formula's products are exact; PEFT adds up in another order.
                let limit = if is_lora { 1e-6 } else { 0.0 };
                assert!((g - w).abs() <= limit, "{name} {key}: {g}, expected {w}");
            }
            if let [_, _] = want.shape() {
                let turned = tensor.transposed().to_f32().unwrap();
                assert_eq!(turned, LazyTensor::from_f32(want.shape(), &got).transposed().to_f32().unwrap(), "{name}");
            }
            changed += usize::from(tensor.dtype() == DType::F32);
            if let Some(half) = &half {
                in_half(key, tensor, half.get(key).unwrap());
            }
        }
        assert!(changed > 0, "{name}: nothing was made float32");
    }
    cases.len()
}

/// PEFT's result in half precision is ours, rounded: but for ties, where the last bit of a sum decides. An embedding's
/// update is rounded before it is added: there, the last bits of the update differ.
fn in_half(key: &str, ours: &LazyTensor, peft: &LazyTensor) {
    let rounded = ours.cast(peft.dtype()).to_f32().unwrap();
    let (theirs, step) = (peft.to_f32().unwrap(), if peft.dtype() == DType::F16 { 1.0 / 1024.0 } else { 1.0 / 128.0 });
    let (least, share) = if key.contains("embed_tokens") { (0.5, 2) } else { (1e-3, 20) };
    let others = rounded.iter().zip(&theirs).filter(|(a, b)| a != b).count();
    assert!(rounded.iter().zip(&theirs).all(|(a, b)| (a - b).abs() <= step * b.abs().max(least)), "{key}");
    assert!(others * share <= theirs.len(), "{key}: {others} of {}", theirs.len());
}

#[test]
fn recorded_checkpoints_become_what_peft_and_the_formulas_make() {
    assert_eq!(compare(&package("tests/data/checkpoint/restored")), 22);
}

#[test]
fn random_checkpoints_become_what_peft_and_the_formulas_make() {
    let Some(python) = oracle::torch("LoRA that PEFT merges, packed integers and 8-bit floats") else { return };
    let folder = tempfile::tempdir().unwrap();
    for seed in ["11", "12"] {
        let out = folder.path().join(seed);
        let script = package("tests/scripts/restored.py");
        let run = Command::new(&python).arg(script).arg(&out).args([seed, "large"]).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        assert_eq!(compare(&out), 22);
    }
}

type Tensors = BTreeMap<String, LazyTensor>;

fn ramp(shape: &[usize]) -> LazyTensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i % 13) as f32 / 8.0 - 0.5).collect();
    LazyTensor::from_f32(shape, &values)
}

fn of(dtype: DType, shape: &[usize]) -> LazyTensor {
    LazyTensor::new(dtype, shape.to_vec(), Arc::new(vec![1u8; shape.iter().product::<usize>() * dtype.size()]))
}

fn tensors(all: &[(&str, LazyTensor)]) -> Tensors {
    all.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect()
}

fn save(path: &Path, all: Tensors) {
    write_safetensors(path, all, &BTreeMap::new()).unwrap();
}

const Q: &str = "model.layers.0.self_attn.q_proj";

fn base() -> Tensors {
    tensors(&[("model.embed_tokens.weight", ramp(&[7, 4])), (&format!("{Q}.weight"), ramp(&[6, 4]))])
}

fn adapter() -> Tensors {
    let name = |part: &str| format!("base_model.model.{Q}.lora_{part}.weight");
    tensors(&[(&name("A"), ramp(&[2, 4])), (&name("B"), ramp(&[6, 2]))])
}

fn settings() -> Value {
    json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "lab/base-7b"})
}

/// A model folder with an adapter, changed.
fn with_adapter(change: impl Fn(&mut Tensors, &mut Tensors, &mut Value)) -> tempfile::TempDir {
    let (mut base, mut adapter, mut settings) = (base(), adapter(), settings());
    change(&mut base, &mut adapter, &mut settings);
    let folder = tempfile::tempdir().unwrap();
    if !base.is_empty() {
        save(&folder.path().join("weights.safetensors"), base);
    }
    if !adapter.is_empty() {
        save(&folder.path().join("adapter_model.safetensors"), adapter);
    }
    if !settings.is_null() {
        fs::write(folder.path().join("adapter_config.json"), settings.to_string()).unwrap();
    }
    folder
}

fn merged(checkpoint: &Checkpoint, key: &str) -> Vec<f32> {
    checkpoint.get(key).unwrap_or_else(|| panic!("{key} is missing")).to_f32().unwrap()
}

fn expected() -> Vec<f32> {
    ramp(&[6, 4]).plus_low_rank(&ramp(&[6, 2]), &ramp(&[2, 4]), 2.0).to_f32().unwrap()
}

#[test]
fn adapters_beside_and_above_are_merged_under_any_prefix() {
    for prefix in ["model.", "", "language_model.model.", "base_model.model.model."] {
        let folder = with_adapter(|base, _, _| {
            let renamed = std::mem::take(base).into_iter();
            *base = renamed.map(|(n, t)| (format!("{prefix}{}", n.strip_prefix("model.").unwrap()), t)).collect();
        });
        let found = Checkpoint::open(folder.path()).unwrap();
        let key = format!("{prefix}{}.weight", Q.strip_prefix("model.").unwrap());
        assert_eq!(merged(&found, &key), expected(), "{prefix}");
        assert_eq!(found.files().len(), 3);
        // The folder above, and the file itself.
        let below = folder.path().join("llama");
        fs::create_dir(&below).unwrap();
        fs::rename(folder.path().join("weights.safetensors"), below.join("weights.safetensors")).unwrap();
        for path in [below.clone(), below.join("weights.safetensors")] {
            assert_eq!(merged(&Checkpoint::open(path).unwrap(), &key), expected());
        }
        // A checkpoint of another part lies in the same folder.
        save(&folder.path().join("adapter.safetensors"), tensors(&[("classifier.weight", ramp(&[3, 4]))]));
        assert!(Checkpoint::open(folder.path().join("adapter.safetensors")).unwrap().warnings().is_empty());
    }
    let folder = with_adapter(|_, _, _| ());
    let below = folder.path().join("checkpoint-500");
    fs::create_dir(&below).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::rename(folder.path().join(name), below.join(name)).unwrap();
    }
    let found = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(found.warnings()[0].code, WarningCode::CHECKPOINT_CHOICE);
    assert!(found.warnings()[0].message.contains("checkpoint-500"));
}

#[test]
fn what_cannot_be_merged_is_refused_by_name() {
    let nan = |shape: &[usize]| LazyTensor::from_f32(shape, &vec![f32::NAN; shape.iter().product()]);
    let (a, b) = (format!("base_model.model.{Q}.lora_A.weight"), format!("base_model.model.{Q}.lora_B.weight"));
    type Change<'a> = &'a dyn Fn(&mut Tensors, &mut Tensors, &mut Value);
    let cases: &[(&str, Change<'_>)] = &[
        ("lab/base-7b", &|base, _, _| base.clear()),
        ("adapter_model.safetensors is not", &|_, adapter, _| adapter.clear()),
        ("use_dora", &|_, _, s| s["use_dora"] = json!(true)),
        ("ADALORA", &|_, _, s| s["peft_type"] = json!("ADALORA")),
        ("init_lora_weights is olora", &|_, _, s| s["init_lora_weights"] = json!("olora")),
        ("r is 1000000007", &|_, _, s| s["r"] = json!(1_000_000_007)),
        ("lora_alpha", &|_, _, s| s["lora_alpha"] = json!(null)),
        ("no float32", &|_, _, s| s["lora_alpha"] = json!(1e60)),
        ("does not have", &|base, _, _| drop(base.remove(&format!("{Q}.weight")))),
        ("not both", &|_, adapter, _| drop(adapter.remove(&b))),
        ("expected [2, 4]", &|_, adapter, _| drop(adapter.insert(a.clone(), ramp(&[2, 5])))),
        ("three float matrices", &|_, adapter, _| drop(adapter.insert(a.clone(), of(DType::I8, &[2, 4])))),
        ("DoRA", &|_, adapter, _| {
            adapter.insert(format!("base_model.model.{Q}.lora_magnitude_vector"), ramp(&[6]));
        }),
        ("LoHa", &|_, adapter, _| drop(adapter.insert(format!("base_model.model.{Q}.hada_w1_a"), ramp(&[6, 2])))),
        ("several adapters", &|_, adapter, _| drop(adapter.insert(format!("{Q}.lora_A.other.weight"), ramp(&[2, 4])))),
        ("does not have", &|_, adapter, _| drop(adapter.insert("model.norm.weight".into(), ramp(&[4])))),
        ("has no bias", &|_, adapter, _| drop(adapter.insert(format!("{Q}.lora_B.bias"), ramp(&[6])))),
        ("which of the two", &|base, _, _| drop(base.insert(format!("{Q}.lora_A.weight"), ramp(&[2, 4])))),
        ("lora_alpha over r", &|base, adapter, s| {
            base.append(adapter);
            *s = Value::Null;
        }),
        ("not PEFT's", &|base, adapter, s| {
            adapter.clear();
            *s = Value::Null;
            base.insert(format!("{Q}.lora_down.weight"), ramp(&[2, 4]));
        }),
    ];
    for (words, change) in cases {
        let folder = with_adapter(change);
        let error = Checkpoint::open(folder.path()).map(|_| ()).unwrap_err();
        assert_eq!(error.code(), Code::CHECKPOINT_LORA, "{words}: {error}");
        assert!(error.message().contains(words) && !error.message().contains('\n'), "{words}: {error}");
        assert!(error.message().contains("LoRA") && error.message().contains("merge_and_unload"), "{error}");
    }
    let folder = with_adapter(|_, adapter, _| drop(adapter.insert(b.clone(), nan(&[6, 2]))));
    let found = Checkpoint::open(folder.path()).unwrap();
    let error = found.get(&format!("{Q}.weight")).unwrap().to_f32().unwrap_err();
    assert_eq!(error.code(), Code::CHECKPOINT_NONFINITE);
    assert!(error.message().contains("lora_B"), "{error}");
    // A head that nothing here computes.
    let folder =
        with_adapter(|_, adapter, _| drop(adapter.insert("base_model.model.lm_head.weight".into(), ramp(&[7, 4]))));
    assert!(Checkpoint::open(folder.path()).unwrap().skipped().iter().any(|s| s.name.contains("lm_head")));
}

/// Adaptors of Meta's layout, whose query rows are interleaved: merged as those of Hugging Face's are.
#[test]
fn adaptors_of_meta_are_merged_or_refused() {
    let open = |extra: Value, change: &dyn Fn(&mut Tensors)| {
        let folder = tempfile::tempdir().unwrap();
        let mut params = json!({"dim": 8, "n_layers": 1, "n_heads": 2});
        params.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        fs::write(folder.path().join("params.json"), params.to_string()).unwrap();
        let mut all = tensors(&[
            ("tok_embeddings.weight", ramp(&[7, 8])),
            ("layers.0.attention.wq.weight", ramp(&[8, 8])),
            ("layers.0.attention.wq.adaptor.A.weight", ramp(&[3, 8])),
            ("layers.0.attention.wq.adaptor.B.weight", ramp(&[8, 3])),
        ]);
        change(&mut all);
        save(&folder.path().join("consolidated.00.pth"), all);
        Checkpoint::open(folder.path())
    };
    let args = json!({"lora_args": {"rank": 3, "scale": 0.5}});
    let found = open(args.clone(), &|_| ()).unwrap();
    let whole = ramp(&[8, 8]).plus_low_rank(&ramp(&[8, 3]), &ramp(&[3, 8]), 0.5);
    let want = whole.rows([0, 2, 1, 3, 4, 6, 5, 7]).to_f32().unwrap();
    assert_eq!(merged(&found, "model.layers.0.self_attn.q_proj.weight"), want);
    assert_eq!(found.warnings()[0].code, WarningCode::CHECKPOINT_MERGED);
    let b = "layers.0.attention.wq.adaptor.B.weight";
    type Change<'a> = &'a dyn Fn(&mut Tensors);
    let cases: [(Value, Change<'_>, Code, &str); 6] = [
        (json!({}), &|_| (), Code::CHECKPOINT_LORA, "no lora_args"),
        (json!({"lora_args": {"rank": 4, "scale": 0.5}}), &|_| (), Code::CHECKPOINT_LORA, "the rank 4"),
        (json!({"lora_args": {"rank": 3}}), &|_| (), Code::CHECKPOINT_LORA, "rank and scale"),
        (args.clone(), &|all| drop(all.remove(b)), Code::CHECKPOINT_LORA, "without adaptor.B"),
        (
            args.clone(),
            &|all| drop(all.insert("layers.0.attention.wk.scales".into(), ramp(&[8, 1]))),
            Code::CHECKPOINT_QUANTIZED,
            "Meta's tools",
        ),
        (
            args,
            &|all| drop(all.insert("layers.0.attention.wk.weight".into(), of(DType::I8, &[8, 8]))),
            Code::CHECKPOINT_QUANTIZED,
            "int8",
        ),
    ];
    for (extra, change, code, words) in cases {
        let error = open(extra, change).map(|_| ()).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(words), "{error}");
    }
}

fn quantized(config: Value, all: &[(&str, LazyTensor)]) -> brain_adapter::error::Result<Checkpoint> {
    let folder = tempfile::tempdir().unwrap();
    if !config.is_null() {
        fs::write(folder.path().join("config.json"), json!({"quantization_config": config}).to_string()).unwrap();
    }
    save(&folder.path().join("model.safetensors"), tensors(all));
    Checkpoint::open(folder.path())
}

type Damaged = Vec<(Value, Vec<(&'static str, LazyTensor)>, &'static str)>;

fn gptq(change: &dyn Fn(&mut Value)) -> Value {
    let mut config = json!({"quant_method": "gptq", "bits": 4, "group_size": 8});
    change(&mut config);
    config
}

/// Layers of packed integers that do not fit, or whose layout is another.
fn damaged_packed() -> Damaged {
    let words = of(DType::I32, &[2, 8]);
    let good = [("l.qweight", words.clone()), ("l.qzeros", of(DType::I32, &[2, 1])), ("l.scales", ramp(&[2, 8]))];
    assert!(quantized(gptq(&|_| ()), &good).is_ok());
    let with = |at: usize, name: &'static str, tensor: LazyTensor| {
        let mut all = good.to_vec();
        all.truncate(all.len().min(3));
        if at < 3 {
            all[at] = (name, tensor)
        } else {
            all.push((name, tensor))
        }
        all
    };
    vec![
        (Value::Null, good.to_vec(), "says how"),
        (gptq(&|c| c["bits"] = json!(5)), good.to_vec(), "5 bits"),
        (gptq(&|c| c["bits"] = json!(null)), good.to_vec(), "its bits"),
        (gptq(&|c| c["group_size"] = json!(null)), good.to_vec(), "its group_size"),
        (gptq(&|c| c["checkpoint_format"] = json!("marlin")), good.to_vec(), "marlin"),
        (gptq(&|c| c["quant_method"] = json!("quip")), good.to_vec(), "quip"),
        (gptq(&|_| ()), with(2, "l.scales", ramp(&[1, 8])), "expected [2, 8]"),
        (gptq(&|_| ()), with(1, "l.qzeros", of(DType::I32, &[2, 2])), "expected [2, 1]"),
        (gptq(&|_| ()), with(0, "l.qweight", ramp(&[2, 8])), "int32"),
        (gptq(&|_| ()), with(3, "l.g_idx", of(DType::I32, &[16])), "names the group 16843009 of 2"),
        (gptq(&|_| ()), with(3, "l.g_idx", LazyTensor::new(DType::I32, vec![16], Arc::new(vec![0; 64]))), "desc_act"),
        (gptq(&|_| ()), with(3, "l.weight", ramp(&[8, 16])), "plain weight"),
        (
            json!({"quant_method": "awq", "bits": 4, "group_size": 8, "zero_point": true, "version": "gemv"}),
            good.to_vec(),
            "gemv",
        ),
    ]
}

/// 8-bit weights whose scales are missing or do not fit, and tensors of other methods.
fn damaged_scaled() -> Damaged {
    let f8 = of(DType::F8E4M3, &[8, 8]);
    let scaled = |scale: &'static str, shape: &[usize]| vec![("l.weight", f8.clone()), (scale, ramp(shape))];
    vec![
        (json!({"quant_method": "fp8"}), scaled("l.weight_scale_inv", &[1, 1]), "weight_block_size"),
        (json!({"quant_method": "fp8"}), scaled("l.weight_scale", &[]), "activation_scheme"),
        (json!({"quant_method": "fp8", "weight_block_size": [4, 4]}), scaled("l.weight_scale_inv", &[2, 1]), "[2, 2]"),
        (
            json!({"quant_method": "fp8", "weight_block_size": [0, 4]}),
            scaled("l.weight_scale_inv", &[2, 1]),
            "block size",
        ),
        (
            json!({"quant_method": "fp8", "activation_scheme": "static"}),
            vec![("l.weight", f8.clone())],
            "float8_e4m3fn",
        ),
        (
            json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}),
            scaled("l.weight_scale", &[8]),
            "pack-quantized",
        ),
        (Value::Null, scaled("l.weight_scale", &[]), "no quantization_config"),
        (json!({"load_in_8bit": true}), vec![("l.weight", of(DType::I8, &[4, 4]))], "bitsandbytes"),
        (Value::Null, vec![("l.weight", of(DType::I8, &[4, 4])), ("l.SCB", ramp(&[4]))], "8 bits"),
        (Value::Null, vec![("l.weight", of(DType::U8, &[8, 1])), ("l.weight.absmax", ramp(&[4]))], "nf4"),
        (Value::Null, vec![("l.weight.quant_state.bitsandbytes__fp4", of(DType::U8, &[8]))], "fp4"),
        (Value::Null, vec![("l.W_q", of(DType::U8, &[8, 8]))], "HQQ"),
        (Value::Null, vec![("l.weight", of(DType::I8, &[8, 8])), ("l.weight_scales", ramp(&[8]))], "EETQ"),
        (json!({"quant_method": "torchao"}), vec![("l.weight_qdata", of(DType::I8, &[8, 8]))], "torchao"),
    ]
}

#[test]
fn quantized_weights_of_other_kinds_are_refused_by_name() {
    for (config, all, words) in damaged_packed().into_iter().chain(damaged_scaled()) {
        let error = quantized(config, &all).map(|_| ()).unwrap_err();
        assert_eq!(error.code(), Code::CHECKPOINT_QUANTIZED, "{words}: {error}");
        assert!(error.message().contains(words) && !error.message().contains('\n'), "{words}: {error}");
        assert!(error.message().contains("quantized") && error.message().contains("original float"), "{error}");
    }
}

#[test]
fn healthy_checkpoints_stay_as_they_are() {
    let plain = [("l.weight", ramp(&[4, 4])), ("attn.W_q", ramp(&[2, 2])), ("flora.adaptive", ramp(&[2]))];
    // What was quantized while it was trained leaves its configuration behind.
    for config in [Value::Null, json!({"quant_method": "bitsandbytes", "load_in_4bit": true})] {
        let found = quantized(config, &plain).unwrap();
        assert!(found.warnings().is_empty() && found.len() == 3 && found.skipped().is_empty());
    }
    let found = quantized(Value::Null, &[("l.weight", of(DType::F8E5M2, &[2, 2]))]).unwrap();
    assert_eq!(found.warnings()[0].code, WarningCode::CHECKPOINT_DEQUANTIZED);
    assert_eq!(merged(&found, "l.weight"), [1.0 / 65536.0; 4]);
}
