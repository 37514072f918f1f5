//! Batches taken apart and put together along axis 0.

use ndarray::Axis;

use crate::error::{Code, Error, Result};
use crate::tensor::Tensor;

/// The rows of a float32 tensor `[batch, ..]`, each `[1, ..]`.
pub(super) fn rows(tensor: &Tensor) -> Result<Vec<Tensor>> {
    let Tensor::F32(array) = tensor else { return Err(unexpected()) };
    Ok(array.axis_chunks_iter(Axis(0), 1).map(|row| Tensor::F32(row.as_standard_layout().into_owned())).collect())
}

/// Float32 tensors one behind the other along axis 0.
pub(super) fn stack(parts: &[Tensor]) -> Result<Tensor> {
    let views = parts.iter().map(|part| match part {
        Tensor::F32(array) => Ok(array.view()),
        Tensor::I64(_) => Err(unexpected()),
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    ndarray::concatenate(Axis(0), &views).map(Tensor::F32).map_err(|e| unexpected().caused_by(e))
}

/// The only result of a run.
pub(super) fn first(results: Vec<(String, Tensor)>) -> Result<Tensor> {
    results.into_iter().next().map(|(_, tensor)| tensor).ok_or_else(unexpected)
}

fn unexpected() -> Error {
    Error::new(Code::RUNTIME_RUN, "a stage gave a result of another shape or type")
}
