//! Trained tensors as safetensors for PyTorch's `load_state_dict(strict=True)`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::checkpoint::{Checkpoint, write_safetensors};
use crate::config::{Config, Norm};
use crate::error::{Code, Error, Result};
use crate::model;
use crate::tensor::{DType, LazyTensor};

/// Key of the labels in a file's metadata.
pub(super) const LABELS: &str = "labels";

/// The labels in their order, as stored in metadata: a JSON array.
pub(super) fn labels(config: &Config) -> String {
    serde_json::json!(config.labels.0).to_string()
}

/// Name of a batch norm's counter: int64 `[]`.
const COUNT: &str = "num_batches_tracked";

/// Writes the trained tensors of a checkpoint to `path`: under PyTorch's names, in the types and shapes in which they
/// are stored. A batch norm's `num_batches_tracked` is int64 `[]`, and 0 where the checkpoint has none: PyTorch reads
/// it only for norms without a momentum. The file's metadata holds `more` besides format and labels.
///
/// # Errors
/// `checkpoint.*` when tensors are missing, misshapen or cannot be read; `io`, `disk.full`.
pub fn save(path: &Path, checkpoint: &Checkpoint, config: &Config, more: BTreeMap<String, String>) -> Result<()> {
    let found = model::trained(config, checkpoint)?;
    let mut tensors: BTreeMap<String, LazyTensor> =
        found.weights.iter().map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect();
    let others = found.checkpoint.iter().filter(|(name, _)| model::is_trained(name));
    for (name, tensor) in others {
        let tensor = match name {
            name if name.ends_with(COUNT) => count(name, tensor, checkpoint.path())?,
            // A scalar: not every format has rank 0.
            "logit_scale" if tensor.len() == 1 => tensor.reshaped(&[]),
            _ => tensor.clone(),
        };
        tensors.insert(name.to_owned(), tensor);
    }
    if config.adapter.norm == Norm::Batch {
        let norms: Vec<String> =
            tensors.keys().filter_map(|name| Some(format!("{}{COUNT}", name.strip_suffix("running_mean")?))).collect();
        for name in norms {
            tensors.entry(name).or_insert_with(|| LazyTensor::from_i64(&[], &[0]));
        }
    }
    // Other readers of safetensors expect `format`.
    let metadata = [("format", "pt".to_owned()), (LABELS, labels(config))];
    let metadata = metadata.into_iter().map(|(k, v)| (k.to_owned(), v)).chain(more).collect();
    write_safetensors(path, tensors, &metadata).map(drop)
}

/// Whether [`save`] wrote this file.
pub fn is_ours(path: &Path) -> bool {
    Checkpoint::open(path).is_ok_and(|file| file.metadata().contains_key(LABELS))
}

/// A counter as int64 `[]`, also from checkpoints that store only floats.
fn count(name: &str, tensor: &LazyTensor, path: &Path) -> Result<LazyTensor> {
    if tensor.dtype() == DType::I64 && tensor.shape().is_empty() {
        return Ok(tensor.clone());
    }
    let values = tensor.cast(DType::F64).bytes().map_err(|e| e.at(path))?.into_owned();
    match values.as_chunks::<8>().0 {
        [value] if (0.0..9e15).contains(&f64::from_le_bytes(*value)) => {
            Ok(LazyTensor::from_i64(&[], &[f64::from_le_bytes(*value) as i64]))
        }
        _ => Err(Error::new(Code::CHECKPOINT_VALUE, format!("`{name}` is not a count of batches")).at(path)),
    }
}
