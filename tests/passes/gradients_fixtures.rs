//! One training step against PyTorch in float64: the loss and every gradient, in all modes, with both conventions of
//! batch norm, with saved and with recomputed activations. `tests/data/fixtures/grads` are recorded outputs
//! (`make_weights.py` documents how the fixtures were made).

use brain_adapter::model::Mode;
use brain_adapter::model::adapter::Statistics;
use brain_adapter::train::Activations;
use support::training::{self, Fixture, norm_error};

/// Largest relative error of a gradient in norm.
const LIMIT: f64 = 1e-4;

fn check(mode: Mode, statistics: Statistics, activations: Activations) -> f64 {
    let fixture = Fixture::tiny();
    let parameters = fixture.parameters.clone();
    let mut model = fixture.model(mode, statistics, activations);
    let step = model.forward_backward(&parameters, &fixture.batch(mode), 1.0).unwrap();
    let convention = if statistics == Statistics::Batch { "bn_train" } else { "bn_eval" };
    let expected = training::tensors(&format!("grads/{}-{convention}.safetensors", mode.name()), "");
    let loss = expected["loss.1"].as_f32().unwrap()[0];
    assert!((step.heads.loss - loss).abs() <= 1e-5 * loss.abs(), "loss {} of {loss}", step.heads.loss);
    let names: Vec<&str> = expected.keys().filter_map(|k| k.strip_prefix("grad.")).collect();
    let found: Vec<&str> = step.gradients.keys().map(String::as_str).collect();
    assert_eq!(found, names, "the trained parameters of {mode:?}");
    let mut worst = 0f64;
    for name in names {
        let error = norm_error(&step.gradients[name], &expected[&format!("grad.{name}")]);
        assert!(error <= LIMIT, "{mode:?} {statistics:?} {name}: {error:.1e}");
        worst = worst.max(error);
    }
    for (name, moved) in &step.running_stats {
        let error = norm_error(moved, &expected[&format!("after1.{name}")]);
        assert!(error <= 1e-6, "{name}: {error:.1e}");
    }
    let statistics_moved = expected.keys().filter(|k| k.starts_with("after1.") && k.contains(".running_")).count();
    assert_eq!(step.running_stats.len(), statistics_moved);
    worst
}

#[test]
fn loss_and_gradients_are_those_of_pytorch() {
    for mode in [Mode::Tlp, Mode::Fpm, Mode::Mri] {
        for statistics in [Statistics::Running, Statistics::Batch] {
            for activations in [Activations::Recompute, Activations::Save] {
                let worst = check(mode, statistics, activations);
                println!("{mode:?} {statistics:?} {activations:?}: {worst:.1e}");
            }
        }
    }
}

/// Other fusions of the same operators round otherwise; nothing more may differ.
#[test]
fn what_is_kept_changes_nothing_but_rounding() {
    let fixture = Fixture::tiny();
    let step = |activations| {
        let mut model = fixture.model(Mode::Tlp, Statistics::Batch, activations);
        model.forward_backward(&fixture.parameters, &fixture.batch(Mode::Tlp), 0.5).unwrap().gradients
    };
    let (saved, recomputed) = (step(Activations::Save), step(Activations::Recompute));
    for (name, gradient) in &saved {
        let error = norm_error(gradient, &recomputed[name]);
        assert!(error <= 1e-5, "{name}: {error:.1e}");
    }
}
