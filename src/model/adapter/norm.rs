//! The three normalisations behind a convolution.

use super::{Layer, Statistics};
use crate::config::{NORM_GROUPS, Norm};
use crate::error::{Code, Error, Result};
use crate::graph::{Builder, Op, ValueId};
use crate::tensor::{DType, LazyTensor};

/// PyTorch's default epsilon of BatchNorm and GroupNorm.
pub const NORM_EPS: f32 = 1e-5;

/// PyTorch's default share of a new batch in BatchNorm's running statistics.
pub const MOMENTUM: f32 = 0.1;

/// The layer's norm over `x` `[batch, channels, ..]`; `name` is the module's state-dict prefix.
pub(super) fn build(g: &mut Builder, layer: &Layer<'_>, x: ValueId, name: &str) -> Result<ValueId> {
    match layer.norm {
        Norm::None => Ok(x),
        Norm::Batch if layer.statistics == Statistics::Batch => batch_statistics(g, layer, x, name),
        Norm::Batch => batch(g, layer, x, name),
        Norm::Group => group(g, layer, x, name),
    }
}

/// Batch normalisation with the running statistics.
fn batch(g: &mut Builder, layer: &Layer<'_>, x: ValueId, name: &str) -> Result<ValueId> {
    let mut inputs = vec![Some(x)];
    for part in ["weight", "bias", "running_mean", "running_var"] {
        let key = format!("{name}.{part}");
        let tensor = layer.weights.get(&key, &[layer.channels])?;
        if part == "running_var" {
            check_variance(&key, &tensor)?;
        }
        inputs.push(Some(g.weight(&key, tensor)));
    }
    g.node(Op::new("BatchNormalization").float("epsilon", NORM_EPS), &inputs)
}

/// Batch normalisation with the statistics of `x` itself, as PyTorch has it in training (Ioffe and Szegedy 2015). The
/// running statistics become outputs of the graph under their names with `.out`: moved by [`MOMENTUM`] towards the
/// mean, and the unbiased variance, over all axes but the channels'.
fn batch_statistics(g: &mut Builder, layer: &Layer<'_>, x: ValueId, name: &str) -> Result<ValueId> {
    let spatial = g.ty(x).shape.len() - 2;
    let axes: Vec<i64> = std::iter::once(0).chain(2..spatial as i64 + 2).collect();
    let mean = g.reduce_mean(x, &axes, true)?;
    let centred = g.sub(x, mean)?;
    let square = g.mul(centred, centred)?;
    let var = g.reduce_mean(square, &axes, true)?;
    let eps = g.scalar(NORM_EPS);
    let sum = g.add(var, eps)?;
    let deviation = g.unary("Sqrt", sum)?;
    let weight = vector(g, layer, name, "weight", spatial)?;
    let factor = g.div(weight, deviation)?;
    let y = g.mul(centred, factor)?;
    let bias = vector(g, layer, name, "bias", spatial)?;
    let y = g.add(y, bias)?;
    let sizes = [x, mean].map(|id| {
        let size = g.unary("Size", id)?;
        g.cast(size, DType::F32)
    });
    let [all, channels] = sizes;
    let count = g.div(all?, channels?)?;
    let one = g.scalar(1.0);
    let less = g.sub(count, one)?;
    let correction = g.div(count, less)?;
    let unbiased = g.mul(var, correction)?;
    for (part, new) in [("running_mean", mean), ("running_var", unbiased)] {
        let key = format!("{name}.{part}");
        let old = g.weight(&key, layer.weights.get(&key, &[layer.channels])?);
        let [keep, take] = [1.0 - MOMENTUM, MOMENTUM].map(|k| g.scalar(k));
        let new = g.reshape(new, &[layer.channels as i64])?;
        let (old, new) = (g.mul(old, keep)?, g.mul(new, take)?);
        let moved = g.add(old, new)?;
        g.output(&format!("{key}.out"), moved)?;
    }
    Ok(y)
}

/// A negative variance would become a NaN in every voxel.
fn check_variance(key: &str, tensor: &LazyTensor) -> Result<()> {
    match tensor.to_f32()?.iter().enumerate().find(|(_, v)| **v < 0.0) {
        Some((i, v)) => Err(Error::new(
            Code::CHECKPOINT_VALUE,
            format!("tensor `{key}` holds {v} at [{i}]: a variance is not negative"),
        )),
        None => Ok(()),
    }
}

/// Group normalisation (Wu and He 2018), written as an instance normalisation over `[batch, groups, rest]`:
/// ONNX Runtime has no kernel of `GroupNormalization`, and the operator's meaning changed between opsets.
fn group(g: &mut Builder, layer: &Layer<'_>, x: ValueId, name: &str) -> Result<ValueId> {
    let sizes = g.ty(x).shape[2..].iter().map(|d| d.known().map(|n| n as i64)).collect::<Option<Vec<i64>>>();
    let sizes = sizes.expect("the adapter's dimensions are numbers");
    let grouped = g.reshape(x, &[0, NORM_GROUPS as i64, -1])?;
    let ones = g.weight(&format!("{name}.ones"), LazyTensor::from_f32(&[NORM_GROUPS], &[1.0; NORM_GROUPS]));
    let zeros = g.weight(&format!("{name}.zeros"), LazyTensor::from_f32(&[NORM_GROUPS], &[0.0; NORM_GROUPS]));
    let op = Op::new("InstanceNormalization").float("epsilon", NORM_EPS);
    let normal = g.node(op, &[Some(grouped), Some(ones), Some(zeros)])?;
    let y = g.reshape(normal, &[vec![0, layer.channels as i64], sizes.clone()].concat())?;
    let weight = vector(g, layer, name, "weight", sizes.len())?;
    let y = g.mul(y, weight)?;
    let bias = vector(g, layer, name, "bias", sizes.len())?;
    g.add(y, bias)
}

/// One number a channel, to be broadcast over the axes behind it.
fn vector(g: &mut Builder, layer: &Layer<'_>, name: &str, part: &str, axes: usize) -> Result<ValueId> {
    let key = format!("{name}.{part}");
    let vector = g.weight(&key, layer.weights.get(&key, &[layer.channels])?);
    g.unsqueeze(vector, &(1..=axes as i64).collect::<Vec<_>>())
}
