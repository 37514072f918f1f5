//! What the integers of a scheme mean: the weights that they were made of, within the scheme's errors.

use std::collections::BTreeMap;
use std::sync::Arc;

use brain_adapter::graph::{Builder, Dim, Graph};
use brain_adapter::passes::quantize::{Plan, Scheme, quantize};
use brain_adapter::tensor::{DType, LazyTensor, Tensor};
use support::reference::weights::Random;

use super::quantize::{normal, run};

/// `y = x W` for a weight `[n, k]` as PyTorch has it.
fn product(k: usize, weight: &[f32]) -> Graph {
    let mut g = Builder::new("product");
    let x = g.input("x", DType::F32, &[Dim::Symbol("rows"), Dim::Known(k)]);
    let y = g.linear(x, "layer", &LazyTensor::from_f32(&[weight.len() / k, k], weight), None).unwrap();
    g.output("y", y).unwrap();
    g.finish().unwrap()
}

fn with_scheme(graph: &Graph, scheme: Scheme, importance: Option<Vec<f32>>) -> Graph {
    let mut plan = Plan { schemes: BTreeMap::from([("layer".to_owned(), scheme)]), ..Plan::default() };
    plan.importance.extend(importance.map(|i| ("layer".to_owned(), Arc::from(i))));
    quantize(graph, &plan).unwrap()
}

/// The weight `[n, k]` as the graph has it: what it makes of the unit vectors.
fn weight_of(graph: &Graph, k: usize, n: usize) -> Vec<f32> {
    let unit = (0..k * k).map(|i| if i / k == i % k { 1.0 } else { 0.0 }).collect();
    let y = run(graph, &BTreeMap::from([("x".to_owned(), Tensor::f32(&[k, k], unit).unwrap())]));
    let y = y["y"].as_f32().unwrap().to_vec();
    (0..n * k).map(|i| y[(i % k) * n + i / k]).collect()
}

/// Errors of rounded weights, in parts of the range of their block.
#[derive(Clone, Copy)]
struct Errors {
    largest: f32,
    rms: f32,
}

/// The schemes, with the width of a block of `k` weights and its errors.
fn schemes(k: usize) -> [(Scheme, usize, Errors); 7] {
    let eight = Errors { largest: 0.5 / 254.0, rms: 1.0 / 254.0 / 12f32.sqrt() };
    // The grid may cover 66 % of the range (`SHARES`), and what lies beyond is cut off.
    let four = Errors { largest: 0.5 * (1.0 - 0.66), rms: 1.0 / 15.0 / 12f32.sqrt() };
    let half = Errors { largest: 1.0 / 4096.0, rms: 1.0 / 4096.0 };
    [
        (Scheme::INT8, k, eight),
        (Scheme::Int8 { zero_point: 12 }, k, eight),
        (Scheme::Blocks { bits: 8, block: 32 }, 32, eight),
        (Scheme::Blocks { bits: 4, block: 64 }, 64, four),
        (Scheme::Blocks { bits: 4, block: 32 }, 32, four),
        (Scheme::Blocks { bits: 4, block: 16 }, 16, four),
        (Scheme::Fp16Weight, k, half),
    ]
}

#[test]
fn integers_mean_the_weights_that_they_were_made_of() {
    let rng = &mut Random::new(1);
    for (k, n) in [(1, 1), (5, 3), (16, 1), (31, 8), (32, 5), (33, 2), (64, 4), (100, 7), (129, 3), (200, 65)] {
        let mut weight = normal(rng, k * n);
        // A row of zeros, one of a single value, and a tiny one.
        weight[..k].fill(0.0);
        if n > 2 {
            weight[k..2 * k].fill(0.25);
            weight[2 * k..3 * k].iter_mut().for_each(|w| *w *= 1e-30);
        }
        let graph = product(k, &weight);
        for (scheme, block, Errors { largest: most, rms: usual }) in schemes(k) {
            let found = weight_of(&with_scheme(&graph, scheme, None), k, n);
            for (row, (found, expected)) in found.chunks(k).zip(weight.chunks(k)).enumerate() {
                for (b, (found, expected)) in found.chunks(block).zip(expected.chunks(block)).enumerate() {
                    let symmetric = 2.0 * expected.iter().fold(0f32, |m, w| m.max(w.abs()));
                    let (low, high) = expected.iter().fold((0f32, 0f32), |(l, h), w| (l.min(*w), h.max(*w)));
                    let range = if matches!(scheme, Scheme::Blocks { bits: 4, .. }) { high - low } else { symmetric };
                    // Half precision has no numbers below 6e-8.
                    let least = if scheme == Scheme::Fp16Weight { 6e-8 } else { 0.0 };
                    let far: Vec<f32> = found.iter().zip(expected).map(|(f, e)| (f - e).abs()).collect();
                    let largest = far.iter().copied().fold(0.0, f32::max);
                    let what = format!("{scheme} [{n}, {k}] row {row} block {b}");
                    assert!(largest <= range * most * 1.02 + least, "{what}: off by {largest}, range {range}");
                    // A 4-bit zero point is rounded too, which few values feel more than many.
                    let mean = (far.iter().map(|f| f * f / range.max(1e-38) / range.max(1e-38)).sum::<f32>()
                        / far.len() as f32)
                        .sqrt();
                    if far.len() >= 16 {
                        assert!(mean <= usual * 1.25 + least, "{what}: {mean} of the range, usual {usual}");
                    }
                }
            }
        }
    }
}

#[test]
fn an_important_input_gets_the_better_weights() {
    let rng = &mut Random::new(2);
    let (k, n) = (64, 200);
    let weight = normal(rng, k * n);
    let graph = product(k, &weight);
    let scheme = Scheme::Blocks { bits: 4, block: 64 };
    let mut importance = vec![1.0; k];
    importance[7] = 400.0;
    let error = |importance: Option<Vec<f32>>| -> f64 {
        let found = weight_of(&with_scheme(&graph, scheme, importance), k, n);
        (0..n).map(|row| f64::from(found[row * k + 7] - weight[row * k + 7]).powi(2)).sum()
    };
    let (plain, weighted) = (error(None), error(Some(importance)));
    assert!(weighted < 0.5 * plain, "{weighted} with importance, {plain} without");
}

#[test]
fn tokens_of_any_size_are_quantized_by_their_own_scale() {
    let rng = &mut Random::new(3);
    let (k, n) = (96, 40);
    let weight = normal(rng, k * n);
    let graph = product(k, &weight);
    // From tiny to huge, and a token of zeros.
    let sizes = [1e-20f32, 1e-3, 1.0, 1e6, 1e20, 0.0];
    let x: Vec<f32> = sizes.iter().flat_map(|s| normal(rng, k).into_iter().map(move |v| v * s)).collect();
    let feed = BTreeMap::from([("x".to_owned(), Tensor::f32(&[sizes.len(), k], x).unwrap())]);
    let expected = run(&graph, &feed);
    for scheme in [Scheme::INT8, Scheme::Int8 { zero_point: 96 }] {
        let found = run(&with_scheme(&graph, scheme, None), &feed);
        for (i, size) in sizes.iter().enumerate() {
            let row = |t: &BTreeMap<String, Tensor>| t["y"].as_f32().unwrap()[i * n..][..n].to_vec();
            let (found, expected) = (row(&found), row(&expected));
            let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let far: Vec<f32> = found.iter().zip(&expected).map(|(f, e)| f - e).collect();
            assert!(
                norm(&far) <= 0.03 * norm(&expected),
                "{scheme}, size {size}: {} of {}",
                norm(&far),
                norm(&expected)
            );
        }
    }
}
