//! The optimizer's graph, run by ONNX Runtime, against recorded runs of torch.optim.AdamW (`tests/data/adamw`).

use std::collections::BTreeMap;

use brain_adapter::Code;
use brain_adapter::checkpoint::Checkpoint;
use brain_adapter::config::AdamW;
use brain_adapter::optimizer::{Parameter, adamw, decays};
use brain_adapter::runtime::{Session, SessionOptions};
use brain_adapter::tensor::Tensor;
use support::common::{assert_close, runtime};
use support::package;

/// Of the largest magnitude in a tensor before and after a step: both sides round to float32, in another order.
/// (Before, too: what is left where terms cancel has the rounding of the terms.)
const TOLERANCE: f32 = 5e-7;

fn largest(tensor: &Tensor) -> f32 {
    tensor.as_f32().unwrap().iter().fold(0.0, |m, v| m.max(v.abs()))
}

const CASES: [&str; 7] =
    ["default", "no_decay", "strong_decay", "clip", "clip_seldom", "clip_tiny_gradients", "large_rates"];

fn case(name: &str) -> (Checkpoint, Vec<Parameter>, AdamW, usize) {
    let run = Checkpoint::open(package("tests/data/adamw").join(format!("{name}.safetensors"))).unwrap();
    let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_str(&run.metadata()["parameters"]).unwrap();
    let parameters = shapes.into_iter().map(|(name, shape)| Parameter { name, shape }).collect();
    let options = serde_json::from_str(&run.metadata()["options"]).unwrap();
    let steps = run.metadata()["steps"].parse().unwrap();
    (run, parameters, options, steps)
}

#[test]
fn every_step_is_pytorchs() {
    for name in CASES {
        let (run, parameters, options, steps) = case(name);
        let recorded = |step: usize, name: &str| {
            let tensor = run.get(&format!("{step}.{name}")).unwrap_or_else(|| panic!("{step}.{name}"));
            Tensor::f32(tensor.shape(), tensor.to_f32().unwrap()).unwrap()
        };
        let graph = adamw(&parameters, &options).unwrap();
        let folder = tempfile::tempdir().unwrap();
        brain_adapter::onnx::write(&graph, folder.path(), "optimizer", &mut |_| {}).unwrap();
        let path = folder.path().join("optimizer.onnx");
        let mut session = Session::open(runtime(), &path, &SessionOptions::default()).unwrap();
        // Our own results are the inputs of the next step: an error would grow.
        let mut state: BTreeMap<String, Tensor> = BTreeMap::new();
        for Parameter { name, shape } in &parameters {
            let zeros = Tensor::f32(shape, vec![0.0; shape.iter().product()]).unwrap();
            state.insert(name.clone(), recorded(0, name));
            state.insert(format!("{name}.m"), zeros.clone());
            state.insert(format!("{name}.v"), zeros);
        }
        for step in 1..=steps {
            let mut inputs = state.clone();
            inputs.insert("step".into(), Tensor::i64(&[1], vec![step as i64]).unwrap());
            inputs.insert("learning_rate".into(), recorded(step, "learning_rate"));
            for Parameter { name, .. } in &parameters {
                inputs.insert(format!("{name}_grad"), recorded(step, &format!("{name}_grad")));
            }
            let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (name.as_str(), t)).collect();
            let outputs: Vec<String> = state.keys().map(|name| format!("{name}.out")).collect();
            let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
            let results = session.run(&inputs, &outputs).unwrap();
            for ((key, value), result) in state.iter_mut().zip(results) {
                let expected = recorded(step, key);
                assert_eq!(result.shape(), expected.shape(), "{name} step {step} {key}");
                let what = format!("{name} step {step} {key}");
                let most = TOLERANCE * largest(&expected).max(largest(value));
                for (found, expected) in result.as_f32().unwrap().iter().zip(expected.as_f32().unwrap()) {
                    assert!((found - expected).abs() <= most, "{what}: {found}, expected {expected} within {most}");
                }
                *value = result;
            }
            if options.clip.is_some() {
                let norm = &session.run(&inputs, &["grad_norm"]).unwrap()[0];
                let expected = recorded(step, "grad_norm");
                assert_eq!(norm.shape(), [0; 0]);
                assert_close("grad_norm", norm.as_f32().unwrap(), expected.as_f32().unwrap(), TOLERANCE);
            }
        }
    }
}

#[test]
fn inputs_and_outputs_are_named_in_order() {
    let parameters = [("b.weight", vec![2, 3]), ("a.bias", vec![3])];
    let parameters = parameters.map(|(name, shape)| Parameter { name: name.into(), shape });
    let graph = adamw(&parameters, &AdamW { clip: Some(1.0), ..AdamW::default() }).unwrap();
    let names = |ids: &[_]| ids.iter().map(|&id| graph.value(id).name.clone()).collect::<Vec<_>>().join(" ");
    let expected =
        "learning_rate step b.weight b.weight_grad b.weight.m b.weight.v a.bias a.bias_grad a.bias.m a.bias.v";
    assert_eq!(names(&graph.inputs), expected);
    let expected = "b.weight.out b.weight.m.out b.weight.v.out a.bias.out a.bias.m.out a.bias.v.out grad_norm";
    assert_eq!(names(&graph.outputs), expected);
    assert!(adamw(&parameters, &AdamW::default()).unwrap().outputs.len() == 6);
}

#[test]
fn what_cannot_be_an_optimizer_is_refused() {
    let named = |names: &[&str]| -> Vec<Parameter> {
        names.iter().map(|n| Parameter { name: (*n).into(), shape: vec![2] }).collect()
    };
    for names in [&["a", "a"][..], &["a", "a.m"], &["a", "a_grad"], &["step"], &[]] {
        let error = adamw(&named(names), &AdamW::default()).unwrap_err();
        assert_eq!(error.code(), Code::GRAPH_INVALID, "{names:?}: {error}");
    }
    let error = adamw(&named(&["a"]), &AdamW { betas: [1.0, 0.9], ..AdamW::default() }).unwrap_err();
    assert_eq!(error.code(), Code::CONFIG_VALUE);
}

#[test]
fn weights_decay_and_nothing_else() {
    for (name, shape, expected) in [
        ("adapter.reduce.conv.weight", &[64, 256, 1, 1][..], true),
        ("adapter.residual.norm1.weight", &[64], false),
        ("adapter.residual.norm1.bias", &[64], false),
        ("adapter.out.bias", &[1], false),
        ("vision_projection.weight", &[768, 768], true),
        ("classifier.bias", &[3], false),
        ("attention.relative_bias", &[12, 64], false),
        ("logit_scale", &[], false),
        ("logit_scale", &[1], false),
    ] {
        assert_eq!(decays(name, shape), expected, "{name}");
    }
}
