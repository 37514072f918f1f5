//! What of the model `ba-train fit` trains: the heads alone on features that are computed once, running statistics and
//! counters of batch norms, the other kinds of adapters.

#![cfg(unix)]

use std::collections::BTreeMap;
use std::fs;

use brain_adapter::checkpoint::TrainingState;
use brain_adapter::model::Mode;
use brain_adapter::model::adapter::Statistics;
use brain_adapter::train::{Activations, GraphOptions, StagedModel, TrainingGraphs};
use serde_json::Value;
use support::commands::{self, tiny_model, write_model};
use support::common;
use support::fitting::{self, Study, TRAIN, VALIDATION};
#[cfg(target_os = "linux")]
use support::stopped::stop_when;
use support::training::{self, Fixture, norm_error};

/// Every tensor's bytes by name.
fn tensors(state: &TrainingState) -> BTreeMap<String, Vec<u8>> {
    let all = state.trainable.iter().chain(&state.frozen);
    all.map(|(name, t)| (name.clone(), t.bytes().unwrap().into_owned())).collect()
}

/// The tensors of a training's state that are not those that it began with.
fn moved(study: &Study, run: &str) -> Vec<String> {
    let open = |path| tensors(&TrainingState::open(path).unwrap());
    let (before, after) = (open(study.artifacts.join("checkpoint")), open(study.path(run).join("last")));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    after.into_iter().filter(|(name, bytes)| before[name] != *bytes).map(|(name, _)| name).collect()
}

fn counts(path: std::path::PathBuf) -> Vec<i64> {
    let all = tensors(&TrainingState::open(path).unwrap());
    let own = all.into_iter().filter(|(name, _)| name.ends_with(".num_batches_tracked"));
    own.map(|(_, bytes)| i64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn what_a_mode_does_not_train_stays() {
    for (mode, statistics) in [("tlp", "batch"), ("fpm", "running"), ("fpm", "batch"), ("mri", "batch")] {
        let study = Study::of(tiny_model(), mode, &["--norm-statistics", statistics]);
        study.fit("run", &["--epochs", "2", "--accumulate", "3"]).ok();
        let trains = [Mode::Tlp, Mode::Fpm, Mode::Mri].into_iter().find(|m| m.name() == mode).unwrap();
        let statistic = |name: &str| name.contains(".running_") || name.ends_with(".num_batches_tracked");
        let expected = |name: &String| trains.trains(name) || statistics == "batch" && statistic(name);
        let all = tensors(&TrainingState::open(study.artifacts.join("checkpoint")).unwrap());
        let expected: Vec<String> = all.into_keys().filter(expected).collect();
        assert_eq!(moved(&study, "run"), expected, "{mode} {statistics}");
        // Each micro-batch counts, as each forward pass does in PyTorch.
        let before = counts(study.artifacts.join("checkpoint"));
        let more = if statistics == "batch" { 2 * TRAIN.len().div_ceil(2) as i64 } else { 0 };
        let after: Vec<i64> = before.iter().map(|n| n + more).collect();
        assert!(!before.is_empty());
        assert_eq!(counts(study.path("run/last")), after);
    }
}

#[test]
fn features_of_a_frozen_adapter_are_computed_once() {
    let study = Study::new("tlp");
    let args = ["--epochs", "3", "--frozen-adapter", "--embed", "3"];
    study.fit("run", &args).ok();
    let moved = moved(&study, "run");
    assert!(moved.iter().all(|name| !name.starts_with("adapter.")) && moved.len() == 7, "{moved:?}");
    // Scans and reports (two rows may share one) have a file each.
    let features = study.path("run/cache/features");
    let scans = TRAIN.len() + VALIDATION.len();
    assert_eq!(commands::names(&features).len(), scans + 5);
    let again = |run: &str| {
        let cache = study.path("run/cache");
        study.fit(run, &[args.as_slice(), &["--cache", cache.to_str().unwrap()]].concat()).ok();
        study.results(run)
    };
    let read = |name: &String| -> Value { serde_json::from_slice(&fs::read(features.join(name)).unwrap()).unwrap() };
    // Scans' features have the transformer's width, 48; reports' 64.
    let of_scans: Vec<String> = commands::names(&features).into_iter().filter(|n| read(n)["shape"][1] == 48).collect();
    assert_eq!(of_scans.len(), scans);
    // The same features again: the same bytes, and none computed.
    let written =
        || -> Vec<_> { of_scans.iter().map(|n| fs::metadata(features.join(n)).unwrap().modified().unwrap()).collect() };
    let first = written();
    assert_eq!(again("again"), study.results("run"));
    assert_eq!(written(), first);
    // Swapped behind its back, they are no patient's: computed again.
    let texts: Vec<Vec<u8>> = of_scans.iter().map(|n| fs::read(features.join(n)).unwrap()).collect();
    for (i, name) in of_scans.iter().enumerate() {
        fs::write(features.join(name), &texts[(i + 1) % scans]).unwrap();
    }
    let swapped = written();
    assert_eq!(again("swapped"), study.results("run"));
    assert!(written().iter().zip(&swapped).all(|(now, before)| now != before));
    // A damaged file is computed anew.
    of_scans.iter().for_each(|name| fs::write(features.join(name), "{").unwrap());
    assert_eq!(again("mended"), study.results("run"));
    // Other artifacts, activations or threads are other features.
    let files = || commands::names(&features).len();
    let (before, cache) = (files(), study.path("run/cache"));
    let cache = cache.to_str().unwrap();
    study.fit("saved", &["--epochs", "1", "--frozen-adapter", "--activations", "save", "--cache", cache]).ok();
    assert_eq!(files(), before + scans);
    fitting::prepare(tiny_model(), "fpm", &study.artifacts, &[]).ok();
    study.fit("fpm", &["--epochs", "1", "--frozen-adapter", "--cache", cache]).ok();
    assert_eq!(files(), before + 2 * scans);
}

/// Frozen weights that are written to under a training: it ends, with the steps before them saved.
#[cfg(target_os = "linux")]
#[test]
fn frozen_weights_do_not_change_under_a_training() {
    let study = Study::new("tlp");
    let frozen = study.artifacts.join("frozen.safetensors");
    let bytes = fs::read(&frozen).unwrap();
    let args = ["--epochs", "200", "--save-every", "0"];
    let run = stop_when(&mut study.command("run", &args), &|_| study.path("run/last").exists());
    let mut other = bytes.clone();
    let end = other.len();
    other[end / 2..].iter_mut().for_each(|b| *b ^= 1);
    fs::write(&frozen, other).unwrap();
    run.goes_on().fails("checkpoint.changed").naming(&["frozen.safetensors"]);
    // They are no artifacts any more, until they are what they were.
    study.fit("run", &["--epochs", "1", "--resume"]).fails("training.artifacts");
    fs::write(&frozen, bytes).unwrap();
    TrainingState::open(study.path("run/last")).unwrap();
}

/// The heads' gradients on features are those of the whole model with running statistics.
#[test]
fn heads_alone_learn_as_they_do_in_the_whole_model() {
    let fixture = Fixture::tiny();
    for mode in [Mode::Tlp, Mode::Fpm, Mode::Mri] {
        let batch = fixture.batch(mode);
        let mut whole = fixture.model(mode, Statistics::Running, Activations::Recompute);
        let expected = whole.forward_backward(&fixture.parameters, &batch, 0.5).unwrap();
        let options = GraphOptions {
            mode,
            statistics: Statistics::Running,
            activations: Activations::Recompute,
            class_weights: None,
        };
        let heads = |name: &str| mode.trains(name) && !name.starts_with("adapter.");
        let graphs = TrainingGraphs::new(&fixture.config, &options, &heads).unwrap();
        let mut model = StagedModel::new(common::runtime(), training::one_thread(), &graphs, fixture.frozen());
        let vision = model.features(&fixture.parameters, &batch.volumes).unwrap();
        let found = model
            .forward_backward_heads(&fixture.parameters, &vision, batch.text.as_ref(), &batch.labels, 0.5)
            .unwrap();
        let names: Vec<&String> = expected.gradients.keys().filter(|n| heads(n)).collect();
        assert_eq!(found.gradients.keys().collect::<Vec<_>>(), names);
        assert!((found.heads.loss - expected.heads.loss).abs() <= 1e-6 * expected.heads.loss);
        for name in names {
            let error = norm_error(&found.gradients[name], &expected.gradients[name]);
            assert!(error <= 1e-5, "{mode:?} {name}: {error:.1e}");
        }
    }
}

#[test]
fn other_adapters_are_trained_too() {
    for (name, towers) in [("tiny-bottleneck3d", "tiny"), ("tiny-gqa-bf16-sharded", "tiny-gqa-bf16-sharded")] {
        let dir = tempfile::tempdir().unwrap();
        write_model(&dir.path().join("model"), name, towers);
        let study = Study::of(&dir.path().join("model"), "mri", &[]);
        let args = ["--epochs", "2", "--activations", "save"];
        study.fit("run", &args).ok();
        study.fit("again", &args).ok();
        assert_eq!(study.results("run"), study.results("again"));
        assert!(moved(&study, "run").iter().any(|n| n.starts_with("adapter.")), "{name}");
    }
}
