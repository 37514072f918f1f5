//! Batches split and concatenated along axis 0.

use ndarray::Axis;

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The rows of a float32 tensor `[batch, ..]`, each `[1, ..]`.
pub(super) fn rows(tensor: &Tensor) -> Result<Vec<Tensor>> {
    let Tensor::F32(array) = tensor else { return Err(Error::internal("batch: expected a float32 tensor")) };
    Ok(array.axis_chunks_iter(Axis(0), 1).map(|row| Tensor::F32(row.as_standard_layout().into_owned())).collect())
}

/// Float32 tensors concatenated along axis 0.
pub(super) fn stack(parts: &[Tensor]) -> Result<Tensor> {
    let views = parts.iter().map(|part| match part {
        Tensor::F32(array) => Ok(array.view()),
        Tensor::I64(_) => Err(Error::internal("batch: expected float32 tensors")),
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    ndarray::concatenate(Axis(0), &views)
        .map(Tensor::F32)
        .map_err(|e| Error::internal("batch: tensors of unequal shapes").caused_by(e))
}

/// The output of a graph that has one.
pub(super) fn only_output(results: Vec<(String, Tensor)>) -> Result<Tensor> {
    results.into_iter().next().map(|(_, tensor)| tensor).ok_or_else(|| Error::internal("a graph has no output"))
}
