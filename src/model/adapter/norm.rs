//! The three normalisations behind a convolution.

use super::Layer;
use crate::config::{NORM_GROUPS, Norm};
use crate::error::{Code, Error, Result};
use crate::graph::{Builder, Op, ValueId};
use crate::tensor::LazyTensor;

/// PyTorch's default epsilon of BatchNorm and GroupNorm.
pub const NORM_EPS: f32 = 1e-5;

/// The layer's norm over `x` `[batch, channels, ..]`; `name` is the module's state-dict prefix.
pub(super) fn build(g: &mut Builder, layer: &Layer<'_>, x: ValueId, name: &str) -> Result<ValueId> {
    match layer.norm {
        Norm::None => Ok(x),
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
    let extents = g.ty(x).shape[2..].iter().map(|d| d.known().map(|n| n as i64)).collect::<Option<Vec<i64>>>();
    let extents = extents.expect("the adapter's extents are numbers");
    let grouped = g.reshape(x, &[0, NORM_GROUPS as i64, -1])?;
    let ones = g.weight(&format!("{name}.ones"), LazyTensor::from_f32(&[NORM_GROUPS], &[1.0; NORM_GROUPS]));
    let zeros = g.weight(&format!("{name}.zeros"), LazyTensor::from_f32(&[NORM_GROUPS], &[0.0; NORM_GROUPS]));
    let op = Op::new("InstanceNormalization").float("epsilon", NORM_EPS);
    let normal = g.node(op, &[Some(grouped), Some(ones), Some(zeros)])?;
    let y = g.reshape(normal, &[vec![0, layer.channels as i64], extents.clone()].concat())?;
    // One number a channel, broadcast over the extents behind it.
    let per_channel = [vec![layer.channels], vec![1; extents.len()]].concat();
    let key = format!("{name}.weight");
    let weight = g.weight(&key, layer.weights.get(&key, &[layer.channels])?.reshaped(&per_channel));
    let y = g.mul(y, weight)?;
    let key = format!("{name}.bias");
    let bias = g.weight(&key, layer.weights.get(&key, &[layer.channels])?.reshaped(&per_channel));
    g.add(y, bias)
}
