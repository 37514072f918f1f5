//! What every reader produces, before it becomes a [`super::Checkpoint`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::mapping::Mapping;
use super::names::{shown, strip};
use super::pickle::{Element, Pickle, Storage, TensorNode};
use super::state_dict::Found;
use super::strided::View;
use super::{Format, MetaParams, Skipped, SourceFile};
use crate::error::{Code, Error, Result, Warning};
use crate::tensor::LazyTensor;

/// Names and tensors of one file, or of several that belong together.
#[derive(Clone)]
pub(super) struct Contents {
    pub format: Format,
    pub tensors: BTreeMap<String, LazyTensor>,
    pub skipped: Vec<Skipped>,
    pub metadata: BTreeMap<String, String>,
    /// What whoever opens the checkpoint should know of it.
    pub warnings: Vec<Warning>,
}

/// [`Contents`] and where they came from.
pub(super) struct Opened {
    pub contents: Contents,
    pub files: Vec<SourceFile>,
    pub params: Option<MetaParams>,
}

/// Finds a storage's bytes in the file.
pub(super) type Locate<'a> = dyn Fn(&Storage) -> Result<Range<usize>> + 'a;

impl Contents {
    pub fn new(format: Format) -> Self {
        Self { format, tensors: BTreeMap::new(), skipped: Vec::new(), metadata: BTreeMap::new(), warnings: Vec::new() }
    }

    /// Adds the tensors that a pickle describes.
    pub fn add_found(&mut self, map: &Arc<Mapping>, pickle: &Pickle, found: Found, locate: &Locate<'_>) -> Result<()> {
        self.skipped.extend(found.skipped);
        self.warnings.extend(found.warnings);
        for (name, node) in found.tensors {
            let tensor = tensor(map, pickle, &node, locate).map_err(|e| {
                let shown = shown(&name);
                Error::new(e.code(), format!("tensor `{shown}`: {}", e.message()))
            })?;
            match tensor {
                Ok(tensor) => drop(self.tensors.insert(name, tensor)),
                Err(dtype) => self.skipped.push(Skipped { name, why: format!("a tensor of type {dtype}") }),
            }
        }
        Ok(())
    }

    /// The same, where no state dict in it was asked for by key: this format has none.
    ///
    /// # Errors
    /// `checkpoint.format`.
    pub fn without_key(self, key: Option<&str>) -> Result<Self> {
        let Some(key) = key else { return Ok(self) };
        let shown = shown(key);
        let format = self.format;
        let message = format!(
            "has no entry `{shown}` (--key): a {format} has one set of tensors; --prefix chooses by the start of names"
        );
        Err(Error::new(Code::CHECKPOINT_FORMAT, message))
    }

    /// The same tensors, their names without the prefixes of wrapper modules.
    pub fn stripped(mut self) -> Result<Self> {
        for (name, tensor) in std::mem::take(&mut self.tensors) {
            let short = strip(&name);
            if self.tensors.insert(short.clone(), tensor).is_some() {
                let message = format!("two tensors are named `{short}` once wrapper prefixes are stripped");
                return Err(Error::new(Code::CHECKPOINT_CORRUPT, message));
            }
        }
        Ok(self)
    }
}

/// A described tensor over its storage; the inner error is the name of a dtype that is not read.
pub(super) fn tensor(
    map: &Arc<Mapping>,
    pickle: &Pickle,
    node: &TensorNode,
    locate: &Locate<'_>,
) -> Result<Result<LazyTensor, &'static str>> {
    let dtype = match node.element {
        Element::Known(dtype) => dtype,
        Element::Other(name, _) => return Ok(Err(name)),
    };
    let storage = locate(&node.storage)?;
    // The interpreter has checked both.
    let sizes = |at| pickle.sizes(at).ok_or_else(|| Error::new(Code::CHECKPOINT_CORRUPT, "has no shape"));
    let view = View { dtype, offset: node.offset, shape: sizes(node.shape)?, strides: sizes(node.strides)? };
    view.over(map, storage).map(Ok)
}
