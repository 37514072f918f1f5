//! Random chains of operators: the gradient of a sum against finite differences, both sides small enough to be read
//! here.

use brain_adapter::graph::{Builder, Dim, ValueId};
use brain_adapter::passes::autodiff::joint;
use brain_adapter::tensor::{DType, LazyTensor, Tensor};
use ndarray::{ArrayD, Axis, IxDyn};
use proptest::prelude::*;

use super::harness::{norm_error, run};

/// One step, as it is drawn; what it does depends on the shape that it meets.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// `x ∘ w` with a weight of `x`'s shape where bits of `mask` are set, 1 where not, and `rank` leading axes fewer.
    Pair(&'static str, u8, usize),
    Unary(&'static str),
    /// All elements as `[.., n, 1]`, or with the first two axes joined.
    Reshape(bool),
    Reverse,
    Sum(usize, bool),
    /// `x ∘ h` for the value `h` before the last step, where both have one shape.
    Again,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (prop::sample::select(vec!["Add", "Sub", "Mul", "Div", "Max", "Min"]), any::<u8>(), 0..3usize)
            .prop_map(|(kind, mask, less)| Step::Pair(kind, mask, less)),
        2 => prop::sample::select(vec!["Exp", "Neg", "Relu", "Gelu"]).prop_map(Step::Unary),
        1 => any::<bool>().prop_map(Step::Reshape),
        1 => Just(Step::Reverse),
        1 => (0..4usize, any::<bool>()).prop_map(|(axis, keep)| Step::Sum(axis, keep)),
        2 => Just(Step::Again),
    ]
}

/// Numbers that are nowhere near each other's ties and never near 0.
fn weight(shape: &[usize], salt: usize) -> ArrayD<f64> {
    let value = |i: usize| f64::from(0.55 + 0.9 * ((i * 7 + salt * 13) % 11) as f32 / 11.0);
    ArrayD::from_shape_vec(IxDyn(shape), (0..shape.iter().product()).map(value).collect()).unwrap()
}

fn erf(x: f64) -> f64 {
    // Abramowitz and Stegun 7.1.5, the Taylor series: exact enough below 4, where operands are here.
    let x = x.clamp(-4.0, 4.0);
    let (mut term, mut sum) = (x, x);
    for n in 1..80 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn pair(kind: &str, a: f64, b: f64) -> f64 {
    match kind {
        "Add" => a + b,
        "Sub" => a - b,
        "Mul" => a * b,
        "Div" => a / b,
        "Max" => a.max(b),
        _ => a.min(b),
    }
}

fn unary(kind: &str, x: f64) -> f64 {
    match kind {
        // Scaled in the graph as well, so that chains of it stay small.
        "Exp" => (x * 0.25).exp(),
        "Neg" => -x,
        "Relu" => x.max(0.0),
        _ => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
    }
}

/// What `shape` of a weight a mask makes of a value's shape.
fn masked(shape: &[usize], mask: u8, less: usize) -> Vec<usize> {
    let kept = shape.iter().enumerate().skip(less.min(shape.len()));
    kept.map(|(i, &n)| if mask >> i & 1 == 1 { n } else { 1 }).collect()
}

fn reshaped(shape: &[usize], join: bool) -> Vec<usize> {
    match shape {
        [a, b, rest @ ..] if join => [&[a * b], rest].concat(),
        _ => [shape, &[1]].concat(),
    }
}

/// The chain in float64.
fn evaluate(steps: &[Step], x: &ArrayD<f64>) -> f64 {
    let (mut y, mut before) = (x.clone(), x.clone());
    for (i, step) in steps.iter().enumerate() {
        let last = y.clone();
        y = match *step {
            Step::Pair(kind, mask, less) => {
                let w = weight(&masked(y.shape(), mask, less), i);
                let w = w.broadcast(y.shape()).unwrap();
                ndarray::Zip::from(&y).and(&w).map_collect(|&a, &b| pair(kind, a, b))
            }
            Step::Unary(kind) => y.mapv(|v| unary(kind, v)),
            Step::Reshape(join) => {
                let shape = reshaped(y.shape(), join);
                y.as_standard_layout().into_owned().into_shape_with_order(IxDyn(&shape)).unwrap()
            }
            Step::Reverse => y.reversed_axes(),
            Step::Sum(axis, keep) if axis < y.ndim() => {
                let sum = y.sum_axis(Axis(axis));
                if keep { sum.insert_axis(Axis(axis)) } else { sum }
            }
            Step::Sum(..) => y,
            Step::Again if before.shape() == y.shape() => &y * &before * 0.5,
            Step::Again => y,
        };
        before = last;
    }
    y.sum()
}

fn known(g: &Builder, id: ValueId) -> Vec<usize> {
    g.ty(id).shape.iter().map(|d| d.known().unwrap()).collect()
}

fn add(g: &mut Builder, step: Step, i: usize, y: ValueId, before: ValueId) -> brain_adapter::Result<ValueId> {
    let shape = known(g, y);
    match step {
        Step::Pair(kind, mask, less) => {
            let w = weight(&masked(&shape, mask, less), i);
            let values: Vec<f32> = w.iter().map(|&v| v as f32).collect();
            let w = g.weight("w", LazyTensor::from_f32(w.shape(), &values));
            g.binary(kind, y, w)
        }
        Step::Unary("Exp") => {
            let quarter = g.scalar(0.25);
            let small = g.mul(y, quarter)?;
            g.unary("Exp", small)
        }
        Step::Unary(kind) => g.unary(kind, y),
        Step::Reshape(join) => g.reshape(y, &reshaped(&shape, join).iter().map(|&n| n as i64).collect::<Vec<_>>()),
        Step::Reverse if shape.is_empty() => Ok(y),
        Step::Reverse => g.transpose(y, &(0..shape.len() as i64).rev().collect::<Vec<_>>()),
        Step::Sum(axis, keep) if axis < shape.len() => g.reduce_sum(y, &[axis as i64], keep),
        Step::Again if known(g, before) == shape => {
            let half = g.scalar(0.5);
            let product = g.mul(y, before)?;
            g.mul(product, half)
        }
        Step::Sum(..) | Step::Again => Ok(y),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gradients_of_sums(
        steps in prop::collection::vec(step(), 1..7),
        shape in prop::collection::vec(1..4usize, 0..4),
        seed in 0..1000usize,
    ) {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|i| ((i * 37 + seed * 101) % 257) as f32 / 128.5 - 1.0).collect();
        let x = ArrayD::from_shape_vec(IxDyn(&shape), values.iter().map(|&v| f64::from(v)).collect()).unwrap();
        let mut g = Builder::new("chain");
        let input = g.input("x", DType::F32, &shape.iter().map(|&n| Dim::Known(n)).collect::<Vec<_>>());
        let (mut y, mut before) = (input, input);
        for (i, &step) in steps.iter().enumerate() {
            let next = add(&mut g, step, i, y, before).unwrap();
            (before, y) = (y, next);
        }
        let all: Vec<i64> = (0..known(&g, y).len() as i64).collect();
        let sum = if all.is_empty() { g.unary("Identity", y) } else { g.reduce_sum(y, &all, false) };
        g.output("sum", sum.unwrap()).unwrap();
        let graph = joint(&g.finish().unwrap(), &["sum"], &["x"]).unwrap();
        // Two steps that agree: where they do not, a corner is nearby and there is no derivative to compare with.
        let differences = |h: f64| -> Vec<f64> {
            (0..n).map(|i| {
                let moved = |h: f64| {
                    let mut x = x.clone();
                    *x.iter_mut().nth(i).unwrap() += h;
                    evaluate(&steps, &x)
                };
                (moved(h) - moved(-h)) / (2.0 * h)
            }).collect()
        };
        let (expected, coarse) = (differences(1e-5), differences(3e-4));
        let largest = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
        prop_assume!(expected.iter().zip(&coarse).all(|(a, b)| (a - b).abs() <= 1e-4 * largest.max(1e-6)));
        prop_assume!(largest < 1e6);
        let feed = [
            ("x".to_owned(), Tensor::f32(&shape, values).unwrap()),
            ("d.sum".to_owned(), Tensor::f32(&[], vec![1.0]).unwrap()),
        ];
        let found = run("chain", &graph, &feed, &["d.x"]);
        prop_assert_eq!(found[0].shape(), &shape[..]);
        let error = norm_error(found[0].as_f32().unwrap(), &expected);
        prop_assert!(error <= 3e-5, "{error:.1e}: {found:?} of {expected:?}\n{graph}");
    }
}
