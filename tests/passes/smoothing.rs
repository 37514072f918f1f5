//! Where the factors of smoothing may go, and which they become.

#![allow(clippy::unwrap_used)]

use support::reference;

use brain_adapter::config::{LlamaConfig, TextPool};
use brain_adapter::graph::{Builder, Dim, Graph, ValueId};
use brain_adapter::model::{Stages, Weights, llama};
use brain_adapter::passes::linears;
use brain_adapter::passes::quantize::smoothing_factors;
use brain_adapter::tensor::{DType, LazyTensor};
use reference::generate::case_around;

/// Two layers behind a gain each, with weights of their own or one for both; the activations that they read.
fn gained(shared: bool) -> (Graph, Vec<ValueId>) {
    let mut g = Builder::new("gained");
    let weight = |g: &mut Builder, name: &str| g.weight(name, LazyTensor::from_f32(&[4, 2], &[1.0; 8]));
    let mut of_both = None;
    for name in ["a", "b"] {
        let x = g.input(name, DType::F32, &[Dim::Symbol("rows"), Dim::Known(4)]);
        let gain = g.weight(&format!("{name}.gain"), LazyTensor::from_f32(&[4], &[1.0; 4]));
        let x = g.mul(x, gain).unwrap();
        let own = match of_both {
            Some(weight) if shared => weight,
            _ => weight(&mut g, &format!("{name}.weight.T")),
        };
        of_both = Some(own);
        let y = g.matmul(x, own).unwrap();
        g.output(&format!("{name}.y"), y).unwrap();
    }
    let graph = g.finish().unwrap();
    let inputs = linears(&graph, 0..graph.nodes.len()).into_iter().map(|l| l.input).collect();
    (graph, inputs)
}

#[test]
fn factors_are_powers_of_two_that_half_precision_holds() {
    let (graph, inputs) = gained(false);
    for input in inputs {
        let found = smoothing_factors(&graph, input, &[1e9, 1e-9, 3.0, 0.0]);
        assert_eq!(found.unwrap(), [1024.0, 1.0 / 1024.0, 4.0, 1.0 / 1024.0]);
    }
}

/// Rows that are multiplied for one layer would be wrong for the other.
#[test]
fn a_weight_of_two_layers_is_not_smoothed_for_one() {
    let (graph, inputs) = gained(true);
    assert_eq!(inputs.len(), 2);
    assert!(inputs.iter().all(|&input| smoothing_factors(&graph, input, &[4.0; 4]).is_none()));
}

/// Query heads that share a value head share its factors: the geometric mean of what each wants.
#[test]
fn heads_that_share_values_share_the_mean_factor() {
    let sizes = reference::LlamaConfig {
        vocab: 64,
        hidden: 64,
        mlp: 96,
        layers: 1,
        heads: 8,
        kv_heads: 2,
        head_dim: 8,
        eps: 1e-5,
        theta: 1e4,
    };
    let case = case_around(4, &sizes);
    let config = LlamaConfig::from_hf(&case.llama_config).unwrap();
    let weights: Weights = case
        .llama
        .iter()
        .map(|(n, a)| (n.trim_start_matches("model.").to_owned(), LazyTensor::from_f32(&a.shape, &a.to_f32())))
        .collect();
    let graph = llama::build(&config, TextPool::Mean, &weights, Stages::Output).unwrap();
    let layers = linears(&graph, 0..graph.nodes.len());
    let joined = layers.iter().find(|l| l.name.ends_with("o_proj")).unwrap();
    // Columns are `[value head, copy, element]`: four copies, eight elements.
    let exponents = [0, 1, 2, 6];
    let wanted: Vec<f32> = (0..64).map(|column| 2f32.powi(exponents[column / 8 % 4])).collect();
    assert_eq!(smoothing_factors(&graph, joined.input, &wanted).unwrap(), [4.0; 64]);
}
