//! Where there is no derivative: at ties and at corners, what PyTorch gives.
//!
//! `relu` gives 0 at 0, and `clamp` 0 at a bound that is a number; `maximum` and `minimum` of two tensors give each one
//! half where they are equal: of all that would do, the gradient of least norm. (Until 2.13 PyTorch's `clamp` gave 1 at
//! its bounds.) `ties.json` is recorded by `record_ties.py`.

use brain_adapter::graph::Builder;
use brain_adapter::passes::autodiff::joint;
use brain_adapter::tensor::{DType, Tensor};
use serde_json::Value;

use super::harness::run;

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

#[test]
fn corners_are_those_of_pytorch() {
    let recorded: Value = serde_json::from_str(include_str!("ties.json")).unwrap();
    let (x, bound) = (numbers(&recorded["x"]), recorded["bound"].as_f64().unwrap() as f32);
    let n = x.len();
    assert!(x.contains(&bound) && x.contains(&0.0));
    for (kind, name) in [("Relu", "relu"), ("Max", "clamp_min"), ("Min", "clamp_max"), ("Gelu", "gelu")] {
        let mut g = Builder::new("corner");
        let input = g.input("x", DType::F32, &[n.into()]);
        let limit = g.scalar(bound);
        let y = if matches!(kind, "Max" | "Min") { g.binary(kind, input, limit) } else { g.unary(kind, input) };
        g.output("y", y.unwrap()).unwrap();
        let graph = joint(&g.finish().unwrap(), &["y"], &["x"]).unwrap();
        let feed = [
            ("x".to_owned(), Tensor::f32(&[n], x.clone()).unwrap()),
            ("d.y".to_owned(), Tensor::f32(&[n], vec![1.0; n]).unwrap()),
        ];
        let found = run(name, &graph, &feed, &["d.x"]);
        let expected = numbers(&recorded[name]);
        for ((x, found), expected) in x.iter().zip(found[0].as_f32().unwrap()).zip(&expected) {
            assert!((found - expected).abs() <= 2e-7, "{name} at {x}: {found}, PyTorch {expected}");
        }
    }
}

/// Both operands are differentiated.
#[test]
fn ties_are_shared() {
    let recorded: Value = serde_json::from_str(include_str!("ties.json")).unwrap();
    for (kind, name) in [("Max", "maximum"), ("Min", "minimum")] {
        let operands = ["a", "b"].map(|side| numbers(&recorded[side]));
        let n = operands[0].len();
        let mut g = Builder::new("tie");
        let [a, b] = ["a", "b"].map(|side| g.input(side, DType::F32, &[n.into()]));
        let y = g.binary(kind, a, b).unwrap();
        g.output("y", y).unwrap();
        let graph = joint(&g.finish().unwrap(), &["y"], &["a", "b"]).unwrap();
        let tensor = |values: &[f32]| Tensor::f32(&[n], values.to_vec()).unwrap();
        let feed = [
            ("a".to_owned(), tensor(&operands[0])),
            ("b".to_owned(), tensor(&operands[1])),
            ("d.y".to_owned(), tensor(&vec![1.0; n])),
        ];
        for (found, expected) in
            run(name, &graph, &feed, &["d.a", "d.b"]).iter().zip(recorded[name].as_array().unwrap())
        {
            assert_eq!(found.as_f32().unwrap(), numbers(expected), "{name}");
        }
    }
}
