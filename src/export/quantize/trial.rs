//! Linear layers on their own under a candidate scheme, on sampled tokens.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::calibrate::{Feed, Fidelity, LinearGroup, Runner, Sample, fidelity};
use crate::error::{Code, Error, Result};
use crate::export::numeric_format::NumericFormat;
use crate::graph::{Builder, Dim, Graph};
use crate::passes::quantize::{Plan, Scheme, quantize};
use crate::passes::to_fp16;
use crate::tensor::{DType, LazyTensor, Tensor};

/// The layers that read one activation.
pub(super) struct Trial<'a> {
    pub graph: &'a Graph,
    pub group: &'a LinearGroup,
    /// How much an error in each input's weights matters, `[k]`.
    pub importance: &'a Arc<[f32]>,
    /// The largest magnitude of each of the activation's channels, `[k]`.
    pub max_abs: &'a [f32],
    pub form: NumericFormat,
    pub runner: &'a Runner<'a>,
}

impl Trial<'_> {
    /// How close the layers are to float32 under these schemes, one per layer.
    pub fn run(&self, schemes: &[Scheme], factors: Option<&[f32]>, sample: &Sample) -> Result<Vec<Fidelity>> {
        if schemes.iter().all(|s| *s == Scheme::Fp32) && factors.is_none() {
            return Ok(vec![Fidelity::EXACT; schemes.len()]);
        }
        let mut loaded = self.runner.open(&self.layers(0..schemes.len(), schemes, factors)?)?;
        let names: Vec<String> = (0..schemes.len()).map(output).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let results = loaded.run(&feed(sample)?, &names)?;
        results.iter().zip(&sample.y).map(|(found, expected)| compare(found, &expected.view())).collect()
    }

    /// Seconds that the layers take on the sample, one after the other: the best of a few runs each. Loaded together
    /// they would be in memory as written, cast and prepacked: more than the rest of an export needs.
    pub fn seconds(&self, schemes: &[Scheme], factors: Option<&[f32]>, sample: &Sample) -> Result<f64> {
        const RUNS: usize = 4;
        let feed = feed(sample)?;
        let mut sum = 0.0;
        for i in 0..schemes.len() {
            let mut loaded = self.runner.open_prepacked(&self.layers(i..i + 1, schemes, factors)?)?;
            let mut best = f64::INFINITY;
            for _ in 0..RUNS {
                let started = Instant::now();
                loaded.run(&feed, &[&output(i)])?;
                best = best.min(started.elapsed().as_secs_f64());
            }
            sum += best;
        }
        Ok(sum)
    }

    /// Some of the layers as a graph of `x [rows, k]`.
    fn layers(&self, which: Range<usize>, schemes: &[Scheme], factors: Option<&[f32]>) -> Result<Graph> {
        let k = self.group.linears[0].k;
        let mut g = Builder::new("layers");
        let mut x = g.input("x", DType::F32, &[Dim::Symbol("rows"), Dim::Known(k)]);
        if let Some(factors) = factors {
            let inverse: Vec<f32> = factors.iter().map(|f| 1.0 / f).collect();
            let inverse = g.weight("inverse", LazyTensor::from_f32(&[k], &inverse));
            x = g.mul(x, inverse)?;
        }
        let mut plan = Plan { whole_activations: self.form.uses_fp16(), ..Plan::default() };
        let max_abs = max_abs(self.max_abs, factors);
        for i in which {
            let (linear, scheme) = (&self.group.linears[i], &schemes[i]);
            let init = self.graph.value(linear.weight).init.as_ref();
            let init = init.ok_or_else(|| Error::internal(format!("the layer `{}` has no weight", linear.name)))?;
            let init = factors.map_or_else(|| init.clone(), |f| init.scaled_rows(&Arc::from(f)));
            let w = g.weight(&format!("{}.weight.T", linear.name), init);
            let y = g.scope(&linear.name, |g| g.matmul(x, w))?;
            g.output(&output(i), y)?;
            plan.schemes.insert(linear.name.clone(), *scheme);
            plan.importance.insert(linear.name.clone(), smoothed_importance(self.importance, factors));
            plan.max_abs.insert(linear.name.clone(), max_abs);
        }
        let graph = quantize(&g.finish()?, &plan)?;
        if !self.form.uses_fp16() {
            return Ok(graph);
        }
        let fp32 = self.group.linears.iter().zip(schemes).filter(|(_, s)| **s == Scheme::Fp32);
        let keep: BTreeSet<String> = fp32.map(|(l, _)| format!("{}.MatMul", l.name)).collect();
        to_fp16(&graph, &keep)
    }
}

/// The largest magnitude of an activation whose channels, with these largest magnitudes, are divided by `factors`.
pub(super) fn max_abs(channels: &[f32], factors: Option<&[f32]>) -> f32 {
    match factors {
        Some(factors) => channels.iter().zip(factors).map(|(l, f)| l / f).fold(0.0, f32::max),
        None => channels.iter().copied().fold(0.0, f32::max),
    }
}

/// `importance` for the weights of a smoothed activation: its channels are smaller by their factors.
pub(super) fn smoothed_importance(importance: &Arc<[f32]>, factors: Option<&[f32]>) -> Arc<[f32]> {
    match factors {
        Some(factors) => importance.iter().zip(factors).map(|(i, f)| i / (f * f)).collect(),
        None => Arc::clone(importance),
    }
}

fn output(i: usize) -> String {
    format!("y{i}")
}

fn feed(sample: &Sample) -> Result<Feed> {
    let x = Tensor::F32(sample.x.view().to_owned().into_dyn());
    if x.shape()[0] == 0 {
        return Err(Error::new(Code::CALIBRATION_INPUT, "no token of a calibration input reaches a layer"));
    }
    Ok(Feed::from([("x".to_owned(), Arc::new(x))]))
}

fn compare(found: &Tensor, expected: &ndarray::ArrayView2<'_, f32>) -> Result<Fidelity> {
    let Tensor::F32(found) = found else {
        return Err(Error::internal("a linear layer's result is not a float32 tensor"));
    };
    let found = found.view().into_dimensionality::<ndarray::Ix2>();
    let found = found.map_err(|e| Error::internal(format!("a linear layer's result: {e}")))?;
    Ok(fidelity(&found, expected))
}
