//! Weights by PyTorch name, as float32, finite.

use std::collections::BTreeMap;

use super::keys::Key;
use crate::error::{Code, Error, Result};
use crate::tensor::{DType, LazyTensor, show};

/// The tensors of one model, by state-dict key without any prefix.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    tensors: BTreeMap<String, LazyTensor>,
}

/// Refuses integers and booleans in the place of weights: cast, they would be other numbers than were trained.
///
/// # Errors
/// `checkpoint.dtype`, naming each tensor and its type.
pub(super) fn floats<'a>(tensors: impl Iterator<Item = (&'a str, &'a LazyTensor)>) -> Result<()> {
    let wrong: Vec<String> =
        tensors.filter(|(_, t)| !t.dtype().is_float()).map(|(name, t)| format!("`{name}` ({})", t.dtype())).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    let (noun, shown) = (if wrong.len() == 1 { "tensor" } else { "tensors" }, wrong[..wrong.len().min(8)].join(", "));
    let more = wrong.len().checked_sub(8).filter(|n| *n > 0).map_or(String::new(), |n| format!(" and {n} more"));
    let message = format!(
        "{} {noun} of integers or booleans in the place of weights: {shown}{more}; expected floats. A quantized or masked \
         model must be saved in floating point",
        wrong.len()
    );
    Err(Error::new(Code::CHECKPOINT_DTYPE, message))
}

impl FromIterator<(String, LazyTensor)> for Weights {
    fn from_iter<T: IntoIterator<Item = (String, LazyTensor)>>(tensors: T) -> Self {
        Self { tensors: tensors.into_iter().collect() }
    }
}

impl Weights {
    /// Zeros of these shapes, which take no memory: for a graph whose weights come from elsewhere.
    pub fn placeholders(keys: impl IntoIterator<Item = Key>) -> Self {
        keys.into_iter().map(|(name, shape)| (name, LazyTensor::zeros(&shape))).collect()
    }

    /// The tensor of that name and shape as float32; reading it fails when it holds a NaN or an infinity.
    ///
    /// # Errors
    /// `checkpoint.tensors` when it is missing or has another shape; `checkpoint.dtype` when it is no float.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<LazyTensor> {
        let tensor = self.tensors.get(name);
        let tensor =
            tensor.ok_or_else(|| Error::new(Code::CHECKPOINT_TENSORS, format!("tensor `{name}` is missing")))?;
        if tensor.shape() != shape {
            let (found, expected) = (show(tensor.shape()), show(shape));
            let message = format!("tensor `{name}` has shape {found}, expected {expected}");
            return Err(Error::new(Code::CHECKPOINT_TENSORS, message));
        }
        floats([(name, tensor)].into_iter())?;
        Ok(tensor.checked_finite(name).cast(DType::F32))
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// All tensors by name, as they were stored.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &LazyTensor)> {
        self.tensors.iter().map(|(n, t)| (n.as_str(), t))
    }
}
