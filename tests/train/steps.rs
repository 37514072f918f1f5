//! Five steps of AdamW against PyTorch in float64: losses, and parameters and running statistics after the first step
//! and the fifth, in all modes, with both conventions of batch norm. `tests/data/fixtures/grads` are recorded outputs.

use brain_adapter::Code;
use brain_adapter::config::AdamW;
use brain_adapter::model::Mode;
use brain_adapter::model::adapter::Statistics;
use brain_adapter::tensor::Tensor;
use brain_adapter::train::{Activations, Optimizer, Parameters, moments};
use support::common;
use support::training::{self, Fixture};

/// Largest differences after one step and after five; PyTorch in float32 differs by 6e-7 and 2e-6.
const LIMITS: [f32; 2] = [1e-5, 5e-5];

fn farthest(found: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(found.shape(), expected.shape());
    let pairs = found.as_f32().unwrap().iter().zip(expected.as_f32().unwrap());
    pairs.map(|(f, e)| (f - e).abs()).fold(0.0, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) })
}

/// Trains five steps; gives the largest differences after the first and the fifth.
fn check(mode: Mode, statistics: Statistics) -> [f32; 2] {
    let fixture = Fixture::tiny();
    let convention = if statistics == Statistics::Batch { "bn_train" } else { "bn_eval" };
    let expected = training::tensors(&format!("grads/{}-{convention}.safetensors", mode.name()), "");
    let (mut parameters, batch) = (fixture.parameters.clone(), fixture.batch(mode));
    let mut model = fixture.model(mode, statistics, Activations::Recompute);
    let mut both = moments(&parameters, &|name| mode.trains(name));
    // The fixture's, and this crate's default.
    let adam = AdamW { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01, clip: None };
    let mut optimizer = Optimizer::new(common::runtime(), &training::one_thread(), &adam, &both).unwrap();
    let mut worst = [0f32; 2];
    for step in 1..=5 {
        let found = model.forward_backward(&parameters, &batch, 1.0).unwrap();
        let loss = expected[&format!("loss.{step}")].as_f32().unwrap()[0];
        let far = (found.heads.loss - loss).abs();
        assert!(far <= 2e-5 * loss.abs(), "{mode:?} {statistics:?}, step {step}: loss {} of {loss}", found.heads.loss);
        parameters.extend(found.running_stats);
        optimizer.step(&mut parameters, &mut both, &found.gradients, step, 1e-3).unwrap();
        let Some(at) = [1, 5].iter().position(|&kept| kept == step) else { continue };
        let mut compared = 0;
        for (key, tensor) in &expected {
            let name = key.strip_prefix(&format!("after{step}."));
            let Some(name) = name.filter(|n| !n.ends_with("num_batches_tracked")) else { continue };
            let far = farthest(&parameters[name], tensor);
            assert!(far <= LIMITS[at], "{mode:?} {statistics:?} {name} after {step} steps: {far:.1e}");
            worst[at] = worst[at].max(far);
            compared += 1;
        }
        assert!(compared >= both.len(), "{compared} of {}", both.len());
    }
    for (name, tensor) in &parameters {
        let moves = expected.contains_key(&format!("after5.{name}"));
        let before = &fixture.parameters[name];
        assert_eq!(tensor.as_f32() != before.as_f32(), moves, "{mode:?} {statistics:?} {name}");
    }
    worst
}

#[test]
fn parameters_after_steps_are_those_of_pytorch() {
    for mode in [Mode::Tlp, Mode::Fpm, Mode::Mri] {
        for statistics in [Statistics::Running, Statistics::Batch] {
            let [one, five] = check(mode, statistics);
            println!("{mode:?} {statistics:?}: {one:.1e} after one step, {five:.1e} after five");
        }
    }
}

/// A step that would make something infinite, or that lacks a gradient, moves nothing.
#[test]
fn a_step_that_fails_moves_nothing() {
    let tensor = |values: &[f32]| Tensor::f32(&[values.len()], values.to_vec()).unwrap();
    let start = Parameters::from([("a".to_owned(), tensor(&[1.0, 2.0])), ("b".to_owned(), tensor(&[3.0]))]);
    let both = moments(&start, &|_| true);
    let options = training::one_thread();
    let mut optimizer = Optimizer::new(common::runtime(), &options, &AdamW::default(), &both).unwrap();
    let (mut parameters, mut moved) = (start.clone(), both.clone());
    let mut step = |gradients: &[(&str, Tensor)], rate| {
        let gradients = gradients.iter().map(|(n, t)| ((*n).to_owned(), t.clone())).collect();
        let code = optimizer.step(&mut parameters, &mut moved, &gradients, 1, rate).unwrap_err().code();
        let same = |p: &Parameters| p.iter().all(|(n, t)| t.as_f32() == start[n].as_f32());
        assert!(same(&parameters) && moved.values().flatten().all(|t| t.as_f32().unwrap().iter().all(|&x| x == 0.0)));
        code
    };
    let (a, b) = (("a", tensor(&[1.0, -1.0])), ("b", tensor(&[0.5])));
    assert_eq!(step(std::slice::from_ref(&a), 0.1), Code::INTERNAL);
    assert_eq!(step(&[a.clone(), b.clone()], f32::INFINITY), Code::TRAINING_DIVERGED);
    // Its square is no number any more.
    assert_eq!(step(&[a, ("b", tensor(&[3e38]))], 0.1), Code::TRAINING_DIVERGED);
    assert_eq!(step(&[("a", tensor(&[f32::NAN, 0.0])), b], 0.1), Code::TRAINING_DIVERGED);
}
