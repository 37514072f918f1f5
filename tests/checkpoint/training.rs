//! ONNX Runtime's training checkpoints: those of Microsoft's runtime read as the `flatbuffers` package reads them, ours
//! read by it, round trips, damage. `tests/train/interop.rs` has Microsoft's runtime load ours.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use brain_adapter::Code;
use brain_adapter::bundle::sha256_of;
use brain_adapter::checkpoint::{Checkpoint, Format, Moments, OptimizerState, Properties, TrainingState};
use brain_adapter::tensor::{DType, LazyTensor};
use proptest::prelude::*;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use support::oracle;
use support::package;

const FILES: [&str; 3] = ["ms/checkpoint", "portable/checkpoint", "portable/checkpoint_after_3_steps"];

fn fixture(name: &str) -> std::path::PathBuf {
    package("tests/data/ort-training").join(name)
}

/// Tensors as `odtc.py` reports them, sorted by name: name, shape, ONNX's type, SHA-256. Where they lie differs.
fn sorted(tensors: &Value) -> Value {
    let mut rows: Vec<Value> = tensors.as_array().unwrap().iter().map(|t| json!([t[0], t[1], t[2], t[3]])).collect();
    rows.sort_by_key(|row| row[0].as_str().unwrap().to_owned());
    Value::Array(rows)
}

fn rows<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a LazyTensor)>) -> Value {
    let scratch = tempfile::NamedTempFile::new().unwrap();
    let row = |(name, tensor): (&str, &LazyTensor)| {
        std::fs::write(scratch.path(), tensor.bytes().unwrap()).unwrap();
        json!([name, tensor.shape(), tensor.dtype().onnx(), sha256_of(scratch.path()).unwrap()])
    };
    tensors.into_iter().map(row).collect()
}

fn named(tensors: &BTreeMap<String, LazyTensor>) -> Value {
    rows(tensors.iter().map(|(name, t)| (name.as_str(), t)))
}

/// Holds a state against what `odtc.py` read from a file of it.
fn agrees(state: &TrainingState, expected: &Value) {
    assert_eq!(named(&state.trainable), sorted(&expected["trainable"]));
    assert_eq!(named(&state.frozen), sorted(&expected["frozen"]));
    let groups = expected["groups"].as_array().unwrap();
    assert_eq!(groups.len(), usize::from(state.optimizer.is_some()));
    for (group, optimizer) in groups.iter().zip(&state.optimizer) {
        assert_eq!(group["step"], optimizer.step);
        assert_eq!(group["learning_rate"].as_f64().unwrap(), f64::from(optimizer.learning_rate));
        let moments = group["moments"].as_array().unwrap();
        assert_eq!(moments.len(), optimizer.moments.len());
        for entry in moments {
            let found = &optimizer.moments[entry[0].as_str().unwrap()];
            assert_eq!(rows([("momentum0", &found.first), ("momentum1", &found.second)]), sorted(&entry[1]));
        }
    }
    let Properties { ints, floats, strings } = &state.properties;
    assert_eq!(expected["ints"], ints.iter().map(|(k, v)| json!([k, v])).collect::<Value>());
    assert_eq!(expected["floats"], floats.iter().map(|(k, v)| json!([k, f64::from(*v)])).collect::<Value>());
    assert_eq!(expected["strings"], strings.iter().map(|(k, v)| json!([k, v])).collect::<Value>());
}

/// What `odtc.py` reads from a file; none where Python is skipped.
fn read_by_flatbuffers(path: &Path) -> Option<Value> {
    let what = "our checkpoint as the flatbuffers package reads it";
    let report = oracle::run_python(what, "tests/scripts/ort_training/odtc.py", [path])?;
    let mut report: Value = serde_json::from_slice(&report).unwrap();
    Some(report[path.to_str().unwrap()].take())
}

#[test]
fn microsofts_checkpoints_read_as_the_flatbuffers_package_reads_them() {
    let expected: Value = serde_json::from_slice(&std::fs::read(fixture("checkpoints.json")).unwrap()).unwrap();
    assert_eq!(expected.as_object().unwrap().len(), FILES.len());
    for name in FILES {
        let expected = &expected[name];
        assert_eq!(expected["trainable"].as_array().unwrap().len(), 6);
        agrees(&TrainingState::open(fixture(name)).unwrap(), expected);
        let opened = Checkpoint::open(fixture(name)).unwrap();
        assert_eq!(opened.format(), Format::OrtTraining);
        let all: Vec<Value> =
            ["trainable", "frozen"].iter().flat_map(|k| expected[k].as_array().unwrap().clone()).collect();
        assert_eq!(rows(opened.iter()), sorted(&Value::Array(all)));
        assert_eq!(opened.skipped().len(), expected["groups"].as_array().unwrap().len());
    }
    // After three steps of AdamW, moments are no zeros.
    let trained = TrainingState::open(fixture(FILES[2])).unwrap().optimizer.unwrap();
    assert_eq!(trained.step, 3);
    assert!(trained.moments["scale"].second.to_f32().unwrap()[0] > 0.0);
}

#[test]
fn ours_reads_as_microsofts_to_the_flatbuffers_package() {
    let expected: Value = serde_json::from_slice(&std::fs::read(fixture("checkpoints.json")).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in FILES {
        let path = folder.path().join("checkpoint");
        let size = TrainingState::open(fixture(name)).unwrap().write(&path).unwrap();
        assert_eq!(size, path.metadata().unwrap().len());
        let Some(found) = read_by_flatbuffers(&path) else { return };
        for group in ["trainable", "frozen"] {
            assert_eq!(sorted(&found[group]), sorted(&expected[name][group]));
            // Sorted by name, each at a multiple of 16 bytes.
            assert_eq!(
                sorted(&found[group]),
                found[group].as_array().unwrap().iter().map(|t| json!([t[0], t[1], t[2], t[3]])).collect::<Value>()
            );
            assert!(found[group].as_array().unwrap().iter().all(|t| t[4] == 0));
        }
        agrees(&TrainingState::open(&path).unwrap(), &found);
        assert_eq!(
            (&found["version"], &found["nominal"], &found["external"]),
            (&json!(2), &json!(false), &json!(false))
        );
        let groups = found["groups"].as_array().unwrap();
        assert!(groups.iter().all(|g| g["name"] == "group0"));
        assert_eq!(groups.len(), expected[name]["groups"].as_array().unwrap().len());
    }
}

fn tensor(dtypes: &'static [DType]) -> impl Strategy<Value = LazyTensor> {
    (0..dtypes.len(), prop::collection::vec(0usize..6, 0..4), any::<u8>()).prop_map(|(dtype, shape, seed)| {
        let size = shape.iter().product::<usize>() * dtypes[dtype].size();
        let bytes: Vec<u8> = (0..size).map(|i| (i as u8).wrapping_mul(37).wrapping_add(seed)).collect();
        LazyTensor::new(dtypes[dtype], shape, Arc::new(bytes))
    })
}

fn names<T: std::fmt::Debug>(value: impl Strategy<Value = T>) -> impl Strategy<Value = BTreeMap<String, T>> {
    prop::collection::btree_map("[a-z.0-9 é]{0,12}", value, 0..6)
}

fn optimizer(trainable: &BTreeMap<String, LazyTensor>, step: i64, learning_rate: f32) -> OptimizerState {
    let like = |t: &LazyTensor, by: f32| {
        let values: Vec<f32> = (0..t.len()).map(|i| i as f32 * by).collect();
        LazyTensor::from_f32(t.shape(), &values)
    };
    let moments =
        |(name, t): (&String, &LazyTensor)| (name.clone(), Moments { first: like(t, -0.5), second: like(t, 0.25) });
    OptimizerState { step, learning_rate, moments: trainable.iter().map(moments).collect() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(
        trainable in names(tensor(&[DType::F32])),
        frozen in names(tensor(&[DType::F32, DType::I64, DType::F16, DType::Bool, DType::F64])),
        trained in prop::option::of((0i64.., any::<f32>().prop_filter("equal to itself", |x| !x.is_nan()))),
        ints in names(any::<i64>()),
        floats in names(any::<f32>().prop_filter("equal to itself", |x| !x.is_nan())),
        strings in names("\\PC{0,20}"),
    ) {
        // Names of its own: a parameter is trainable or frozen.
        let frozen: BTreeMap<String, LazyTensor> = frozen.into_iter().map(|(n, t)| (format!("{n}/f"), t)).collect();
        let optimizer = trained.map(|(step, rate)| optimizer(&trainable, step, rate));
        let state = TrainingState { trainable, frozen, optimizer, properties: Properties { ints, floats, strings } };
        let folder = tempfile::tempdir().unwrap();
        let (path, again) = (folder.path().join("a"), folder.path().join("b"));
        state.write(&path).unwrap();
        let found = TrainingState::open(&path).unwrap();
        prop_assert_eq!(named(&found.trainable), named(&state.trainable));
        prop_assert_eq!(named(&found.frozen), named(&state.frozen));
        prop_assert_eq!(&found.properties, &state.properties);
        prop_assert_eq!(found.optimizer.is_some(), state.optimizer.is_some());
        for (a, b) in found.optimizer.iter().zip(&state.optimizer) {
            prop_assert_eq!((a.step, a.learning_rate), (b.step, b.learning_rate));
            prop_assert_eq!(a.moments.len(), b.moments.len());
            for (name, moments) in &b.moments {
                prop_assert_eq!(a.moments[name].first.bytes().unwrap(), moments.first.bytes().unwrap());
                prop_assert_eq!(a.moments[name].second.bytes().unwrap(), moments.second.bytes().unwrap());
            }
        }
        found.write(&again).unwrap();
        prop_assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap());
    }
}

/// A file of every kind of entry, and what it holds.
fn sample() -> (Vec<u8>, TrainingState) {
    let trainable: BTreeMap<String, LazyTensor> = BTreeMap::from([
        ("fc.weight".to_owned(), LazyTensor::from_f32(&[2, 3], &[1.0, -2.0, 3.0, -4.0, 5.0, -6.0])),
        ("logit_scale".to_owned(), LazyTensor::from_f32(&[], &[2.5])),
    ]);
    let frozen = BTreeMap::from([("norm.num_batches_tracked".to_owned(), LazyTensor::from_i64(&[], &[7]))]);
    let properties = Properties {
        ints: BTreeMap::from([("epoch".to_owned(), -3)]),
        floats: BTreeMap::from([("best".to_owned(), 0.75)]),
        strings: BTreeMap::from([("schedule".to_owned(), "cosine ✓".to_owned())]),
    };
    let state = TrainingState { optimizer: Some(optimizer(&trainable, 9, 1e-3)), trainable, frozen, properties };
    let file = tempfile::NamedTempFile::new().unwrap();
    state.write(file.path()).unwrap();
    (std::fs::read(file.path()).unwrap(), state)
}

#[test]
fn every_kind_of_entry_is_read_by_the_flatbuffers_package() {
    let (bytes, state) = sample();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    if let Some(found) = read_by_flatbuffers(file.path()) {
        agrees(&state, &found);
        assert_eq!(found["strings"], json!([["schedule", "cosine ✓"]]));
    }
}

/// A damaged file loads or fails; what loads streams, in no more memory than the file.
fn loads(bytes: Vec<u8>, what: &dyn std::fmt::Display) -> Result<(), Code> {
    let len = bytes.len();
    let as_checkpoint = Checkpoint::from_bytes(bytes.clone(), "damaged").map(|_| ());
    let state = match TrainingState::from_bytes(bytes, "damaged") {
        Ok(state) => state,
        Err(error) => {
            assert!(error.code().as_str().starts_with("checkpoint."), "{what}: {error}");
            let line = error.to_string();
            assert!(!line.contains('\n') && line.len() < 2000, "{what}: {line}");
            return Err(error.code());
        }
    };
    let moments = state.optimizer.iter().flat_map(|o| o.moments.values()).flat_map(|m| [&m.first, &m.second]);
    let mut total = 0;
    for tensor in state.trainable.values().chain(state.frozen.values()).chain(moments) {
        let count = &mut |chunk: &[u8]| {
            total += chunk.len();
            Ok(())
        };
        tensor.stream(count).unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    assert!(total <= 2 * len, "{what}: {total} bytes from {len}");
    assert!(as_checkpoint.is_ok() || as_checkpoint.unwrap_err().code() == Code::CHECKPOINT_CORRUPT, "{what}");
    Ok(())
}

#[test]
fn every_truncation_is_refused() {
    let originals = FILES.map(|name| std::fs::read(fixture(name)).unwrap());
    for (i, original) in originals.into_iter().chain([sample().0]).enumerate() {
        assert_eq!(loads(original.clone(), &i), Ok(()));
        let mut fitting = 0;
        for len in 0..original.len() {
            match loads(original[..len].to_vec(), &format!("{i} cut to {len}")) {
                // Padding and a text's final zero may be missing: nothing points at them.
                Ok(()) => fitting += 1,
                Err(code) if len >= 8 => assert!(code == Code::CHECKPOINT_TRUNCATED, "{i} cut to {len}: {code}"),
                Err(code) => assert_eq!(code, Code::CHECKPOINT_FORMAT, "{i} cut to {len}"),
            }
        }
        assert!(fitting < 16, "{i}: {fitting} cuts went unnoticed");
    }
}

#[test]
fn damaged_files_load_or_fail() {
    let count = std::env::var("BA_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(4000);
    let originals = FILES.map(|name| std::fs::read(fixture(name)).unwrap());
    let (mut loaded, mut refused) = (0, 0);
    for (i, original) in originals.into_iter().chain([sample().0]).enumerate() {
        let mut rng = ChaCha8Rng::seed_from_u64(i as u64);
        for round in 0..count {
            let mut bytes = original.clone();
            for _ in 0..rng.random_range(1..=4) {
                let at = rng.random_range(8..bytes.len());
                match rng.random_range(0..4) {
                    0 => bytes[at] ^= 1 << rng.random_range(0..8),
                    1 => bytes[at] = rng.next_u32() as u8,
                    2 => bytes[at] = b"\0\x01\x7f\x80\xff\x04\x08"[rng.random_range(0..7)],
                    // A whole offset or length.
                    _ => {
                        let at = at / 4 * 4;
                        let value =
                            [0, 4, u32::MAX, i32::MIN as u32, rng.random_range(0..4096)][rng.random_range(0..5)];
                        bytes.splice(at..(at + 4).min(original.len()), value.to_le_bytes());
                    }
                }
            }
            match loads(bytes, &format!("{i} {round}")) {
                Ok(()) => loaded += 1,
                Err(_) => refused += 1,
            }
        }
    }
    eprintln!("{loaded} loaded, {refused} refused");
    assert!(loaded > 100 && refused > 100, "{loaded} loaded, {refused} refused");
}

/// Replaces the only place where `old` stands.
fn patched(bytes: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let places: Vec<usize> = (0..=bytes.len() - old.len()).filter(|&i| bytes[i..].starts_with(old)).collect();
    let [at] = places[..] else { panic!("{old:?} stands at {places:?}") };
    let mut bytes = bytes.to_vec();
    bytes.splice(at..at + old.len(), new.iter().copied());
    bytes
}

fn refused(bytes: Vec<u8>, code: Code, words: &str) {
    let error = TrainingState::from_bytes(bytes, "c").unwrap_err();
    assert_eq!(error.code(), code, "{error}");
    assert!(error.message().contains(words), "{error}");
}

#[test]
fn refusals_say_why() {
    let (bytes, state) = sample();
    // The root table lies behind its vtable; `version` is its first field.
    let root = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
    let mut version = bytes.clone();
    assert_eq!(version[root + 4], 2);
    version[root + 4] = 1;
    refused(version, Code::CHECKPOINT_FORMAT, "version 1");
    refused(std::fs::read(fixture("ms/nominal_checkpoint")).unwrap(), Code::CHECKPOINT_FORMAT, "nominal");
    refused(b"not a checkpoint at all".to_vec(), Code::CHECKPOINT_FORMAT, "ODTC");
    refused(patched(&bytes, b"epoch", b"ep\xffch"), Code::CHECKPOINT_CORRUPT, "UTF-8");

    let file = tempfile::NamedTempFile::new().unwrap();
    TrainingState { optimizer: None, ..state }.write(file.path()).unwrap();
    let bytes = std::fs::read(file.path()).unwrap();
    let dims = |a: i64, b: i64| [a.to_le_bytes(), b.to_le_bytes()].concat();
    let shaped = |a, b| patched(&bytes, &dims(2, 3), &dims(a, b));
    refused(shaped(2, 4), Code::CHECKPOINT_CORRUPT, "`fc.weight` is float32 [2, 4] and has 24 bytes");
    refused(shaped(-2, -3), Code::CHECKPOINT_CORRUPT, "negative");
    refused(shaped(1 << 62, 1 << 62), Code::CHECKPOINT_CORRUPT, "has 24 bytes");
    assert_eq!(TrainingState::from_bytes(shaped(3, 2), "c").unwrap().trainable["fc.weight"].shape(), [3, 2]);
}

#[test]
fn a_state_that_contradicts_itself_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint");
    let (_, state) = sample();
    let other = |change: &dyn Fn(&mut TrainingState)| {
        let mut state = state.clone();
        change(&mut state);
        state.write(&path).unwrap_err()
    };
    let one = LazyTensor::from_f32(&[1], &[0.0]);
    let errors = [
        (other(&|s| drop(s.frozen.insert("fc.weight".into(), one.clone()))), "both trainable and frozen"),
        (other(&|s| drop(s.optimizer.as_mut().unwrap().moments.remove("fc.weight"))), "all or none"),
        (other(&|s| drop(s.trainable.remove("fc.weight"))), "not trainable"),
        (other(&|s| s.optimizer.as_mut().unwrap().step = -1), "-1 steps"),
        (other(&|s| drop(s.trainable.insert("logit_scale".into(), one.clone()))), "is float32[], expected float32[1]"),
    ];
    for (error, words) in errors {
        assert_eq!((error.code(), error.path()), (Code::CHECKPOINT_CORRUPT, Some(path.as_path())));
        assert!(error.message().contains(words), "{error}");
    }
    // More than the format holds, without a byte read.
    let huge = LazyTensor::new(DType::F32, vec![1 << 20, 1 << 10], Arc::new(Vec::new()));
    let error = other(&|s| drop(s.frozen.insert("huge".into(), huge.clone())));
    assert_eq!(error.code(), Code::CHECKPOINT_FORMAT, "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
