//! The adapter: a CNN bottleneck with a residual block that turns the scan's 256 slices into 64.
//!
//! `volume` f32 `[batch, D, H, W]` → `adapter` f32 `[batch, out, H, W]`. Both kinds share one body
//! (arXiv 2501.16282, section 3; the bottleneck of He et al., "Deep Residual Learning", 2016):
//!
//! ```text
//! y = relu(norm(reduce(x)));  out = relu(y + norm2(conv2(relu(norm1(conv1(y))))))
//! ```
//!
//! They differ in the convolutions and in what stands before and behind. Norms are written as their own
//! operators; [`crate::passes::fold_batch_norm`] folds batch norms into the convolutions for inference.

mod bottleneck2d;
mod bottleneck3d;
mod norm;

use super::{Part, Weights};
use crate::config::{AdapterKind, Config, Norm};
use crate::error::Result;
use crate::graph::{Builder, Dim, Graph, Op, ValueId};
use crate::tensor::DType;

/// What a batch norm normalises by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Statistics {
    /// The stored running statistics (PyTorch's `eval`).
    #[default]
    Running,
    /// The statistics of the batch, which also move the running ones (PyTorch's `train`).
    Batch,
}

/// The adapter's graph, with the running statistics.
///
/// # Errors
/// `checkpoint.tensors` or `checkpoint.value` when a weight is missing, misshapen or impossible.
pub fn build(config: &Config, weights: &Weights) -> Result<Graph> {
    build_with(config, weights, Statistics::Running)
}

/// The adapter's graph. With the batch's statistics, the moved running ones are further outputs, each under its name
/// with `.out`.
///
/// # Errors
/// As [`build`].
pub fn build_with(config: &Config, weights: &Weights, statistics: Statistics) -> Result<Graph> {
    let mut g = Builder::new(Part::Adapter.as_str());
    let side = Dim::Known(config.volume.size);
    let x = g.input("volume", DType::F32, &[Dim::BATCH, Dim::Known(config.adapter.slices_in), side, side]);
    let y = match config.adapter.kind {
        AdapterKind::Bottleneck2d => bottleneck2d::build(&mut g, config, weights, statistics, x)?,
        AdapterKind::Bottleneck3d => bottleneck3d::build(&mut g, config, weights, statistics, x)?,
    };
    g.output(Part::Adapter.as_str(), y)?;
    g.finish()
}

/// One convolution with its normalisation.
struct Layer<'a> {
    weights: &'a Weights,
    norm: Norm,
    statistics: Statistics,
    channels: usize,
}

impl Layer<'_> {
    /// `norm(conv(x))`. The kernel's shape is that of the weight `[out, in, kernel..]`.
    fn build(
        &self,
        g: &mut Builder,
        x: ValueId,
        conv: &str,
        norm: &str,
        w: &[usize],
        strides: &[i64],
    ) -> Result<ValueId> {
        let kernel: Vec<i64> = w[2..].iter().map(|&k| k as i64).collect();
        let half: Vec<i64> = kernel.iter().map(|k| k / 2).collect();
        let op = Op::new("Conv")
            .ints("kernel_shape", &kernel)
            .ints("pads", &[half.clone(), half].concat())
            .ints("strides", strides);
        let weight = g.weight(&format!("{conv}.weight"), self.weights.get(&format!("{conv}.weight"), w)?);
        let mut inputs = vec![Some(x), Some(weight)];
        if self.norm == Norm::None {
            let name = format!("{conv}.bias");
            inputs.push(Some(g.weight(&name, self.weights.get(&name, &[self.channels])?)));
        }
        let y = g.scope(conv, |g| g.node(op, &inputs))?;
        g.scope(norm, |g| norm::build(g, self, y, norm))
    }
}

/// `relu(y + norm2(conv2(relu(norm1(conv1(y))))))`, kernels of 3 along every axis.
fn residual(g: &mut Builder, layer: &Layer<'_>, y: ValueId, axes: usize) -> Result<ValueId> {
    let c = layer.channels;
    let shape = [vec![c, c], vec![3; axes]].concat();
    let strides = vec![1; axes];
    let z = layer.build(g, y, "adapter.residual.conv1", "adapter.residual.norm1", &shape, &strides)?;
    let z = g.unary("Relu", z)?;
    let z = layer.build(g, z, "adapter.residual.conv2", "adapter.residual.norm2", &shape, &strides)?;
    let sum = g.add(y, z)?;
    g.unary("Relu", sum)
}
