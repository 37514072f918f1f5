//! Adapter and heads under any prefix, beside anything: found, told or refused. Names and depths are random.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use brain_adapter::checkpoint::{Checkpoint, Selection, write_safetensors};
use brain_adapter::config::Config;
use brain_adapter::error::{Code, WarningCode};
use brain_adapter::model::{self, Trained, keys};
use brain_adapter::tensor::{DType, LazyTensor};
use proptest::prelude::*;

fn config() -> Config {
    Config::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures/tiny/config.json")).unwrap()
}

type Tensors = BTreeMap<String, LazyTensor>;

/// Adapter and heads behind a prefix, filled with a number.
fn set(config: &Config, prefix: &str, fill: f32) -> Tensors {
    let keys = keys::adapter(config).into_iter().chain(keys::heads(config));
    let filled = |shape: &[usize]| LazyTensor::from_f32(shape, &vec![fill; shape.iter().product()]);
    keys.map(|(name, shape)| (format!("{prefix}{name}"), filled(&shape))).collect()
}

fn find(tensors: &Tensors, selection: &Selection) -> brain_adapter::Result<Trained> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    write_safetensors(&path, tensors.clone(), &BTreeMap::new()).unwrap();
    model::trained(&config(), &Checkpoint::open_with(&path, selection)?)
}

fn bias(found: &Trained) -> f32 {
    let (_, tensor) = found.weights.iter().find(|(name, _)| *name == "classifier.bias").unwrap();
    tensor.to_f32().unwrap()[0]
}

fn codes(found: &Trained) -> Vec<WarningCode> {
    found.warnings.iter().map(|w| w.code).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_prefix_is_taken_off(parts in prop::collection::vec("[a-z][a-z0-9_]{0,9}", 0..4), frozen in any::<bool>()) {
        let prefix: String = parts.iter().map(|part| format!("{part}.")).collect();
        let mut tensors = set(&config(), &prefix, 2.0);
        if frozen {
            tensors.insert(format!("{prefix}vision.blocks.0.norm1.weight"), LazyTensor::zeros(&[3]));
            tensors.insert("train_acc.correct".into(), LazyTensor::zeros(&[3]));
            tensors.insert("criterion.weight".into(), LazyTensor::zeros(&[3]));
        }
        let found = find(&tensors, &Selection::default()).unwrap();
        prop_assert_eq!(bias(&found), 2.0);
        prop_assert_eq!(codes(&found), vec![]);
        prop_assert_eq!(found.skipped.len(), if frozen { 3 } else { 0 });
    }
}

#[test]
fn of_two_whole_sets_the_user_chooses() {
    let mut tensors = set(&config(), "student.", 1.0);
    tensors.extend(set(&config(), "avg_model.", 2.0));
    let error = find(&tensors, &Selection::default()).unwrap_err();
    let line = error.to_string();
    assert_eq!(error.code(), Code::CHECKPOINT_TENSORS, "{line}");
    assert!(["`student.`", "`avg_model.`", "--prefix"].iter().all(|word| line.contains(word)), "{line}");
    for (prefix, want) in [("student.", 1.0), ("avg_model", 2.0)] {
        let found = find(&tensors, &Selection { prefix: Some(prefix.into()), key: None }).unwrap();
        assert_eq!((bias(&found), codes(&found)), (want, vec![]));
    }
    // Names without a prefix come first, and the copy is told.
    tensors.extend(set(&config(), "", 3.0));
    let found = find(&tensors, &Selection::default()).unwrap();
    assert_eq!((bias(&found), codes(&found)), (3.0, vec![WarningCode::CHECKPOINT_CHOICE]));
    assert!(found.warnings[0].message.contains("`avg_model.`"), "{:?}", found.warnings);
}

#[test]
fn what_is_missing_stands_beside_what_was_found() {
    let mut tensors = set(&config(), "net.core.", 1.0);
    let bias = tensors.remove("net.core.classifier.bias").unwrap();
    tensors.insert("net.core.cls_head.bias".into(), bias);
    let line = find(&tensors, &Selection::default()).unwrap_err().to_string();
    let words = ["1 tensor missing: `classifier.bias`", "under `net.core.`", "`cls_head.bias`"];
    assert!(words.iter().all(|word| line.contains(word)), "{line}");
    let other: Tensors = [("encoder.layer.weight".to_owned(), LazyTensor::zeros(&[2]))].into();
    let line = find(&other, &Selection::default()).unwrap_err().to_string();
    assert!(line.contains("found instead: `encoder.layer.weight`"), "{line}");
}

#[test]
fn unknown_modules_are_told_wherever_they_are() {
    for name in ["gate_norm.weight", "net.gate_norm.weight"] {
        let mut tensors = set(&config(), "net.", 1.0);
        tensors.insert(name.into(), LazyTensor::zeros(&[4]));
        tensors.insert("n_averaged".into(), LazyTensor::from_i64(&[], &[3]));
        let found = find(&tensors, &Selection::default()).unwrap();
        assert_eq!(codes(&found), [WarningCode::CHECKPOINT_UNKNOWN]);
        assert!(found.warnings[0].message.contains("gate_norm.weight"), "{:?}", found.warnings);
    }
}

#[test]
fn integers_and_flags_are_no_weights() {
    for (name, dtype) in [
        ("classifier.weight", DType::I8),
        ("adapter.reduce.conv.weight", DType::I64),
        ("vision_projection.bias", DType::Bool),
        ("logit_scale", DType::I32),
    ] {
        let mut tensors = set(&config(), "", 1.0);
        let shape = tensors.get(name).map_or(Vec::new(), |t| t.shape().to_vec());
        let bytes = vec![1u8; shape.iter().product::<usize>() * dtype.size()];
        tensors.insert(name.into(), LazyTensor::new(dtype, shape, Arc::new(bytes)));
        tensors.insert("adapter.reduce.norm.num_batches_tracked".into(), LazyTensor::from_i64(&[], &[9]));
        let error = find(&tensors, &Selection::default()).unwrap_err();
        let line = error.to_string();
        assert_eq!(error.code(), Code::CHECKPOINT_DTYPE, "{line}");
        assert!(line.contains(&format!("`{name}` ({dtype})")) && !line.contains("num_batches"), "{line}");
    }
}

#[test]
fn a_float64_that_overflows_float32_is_refused() {
    let tensor = |value: f64| {
        let bytes: Vec<u8> = [1.0, value].iter().flat_map(|x: &f64| x.to_le_bytes()).collect();
        LazyTensor::new(DType::F64, vec![2], Arc::new(bytes)).checked_finite("w").to_f32()
    };
    let largest = f64::from(f32::MAX);
    let edge = largest + (2f64.powi(128) - largest) / 2.0;
    for value in [largest, -largest, edge.next_down(), f64::MIN_POSITIVE, 0.0] {
        assert!(tensor(value).unwrap()[1].is_finite(), "{value:e}");
    }
    for value in [edge, -edge, 4e39, f64::MAX, f64::INFINITY, f64::NAN] {
        let error = tensor(value).unwrap_err();
        assert!(error.code() == Code::CHECKPOINT_NONFINITE && error.message().contains("`w`"), "{value:e}: {error}");
    }
}
