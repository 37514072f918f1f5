//! A `torch.save` archive as parts: its records and its one pickle, for formats that are built of such archives.
//!
//! Flows in: a byte range of a mapped file. Flows out: an [`Archive`], whose tensors are views of the file.
//!
//! # Errors
//! As `torch_zip`; `checkpoint.format` when the range holds no archive of `torch.save`.
//!
//! # Safety
//! No `unsafe`. Views are checked against their records by `strided`.

use std::ops::Range;
use std::sync::Arc;

use super::contents;
use super::mapping::Mapping;
use super::pickle::{self, Dialect, Element, MAX_BYTES, Node, Pickle, Ref, TensorNode};
use super::strided::View;
use super::torch_zip::record;
use super::zip_records::{Records, check_byte_order, records_in};
use crate::error::{Code, Error, Result};
use crate::tensor::{DType, LazyTensor};

/// An opened archive.
pub(super) struct Archive {
    map: Arc<Mapping>,
    records: Records,
    folder: String,
    pub pickle: Pickle,
}

impl Archive {
    /// Opens the archive that takes up `range` of `map`.
    pub fn open(map: &Arc<Mapping>, range: Range<usize>, dialect: Dialect) -> Result<Self> {
        let records = records_in(map, range)?;
        let mut pickles = records.iter().filter_map(|(name, at)| Some((name.strip_suffix("/data.pkl")?, at)));
        let (Some((folder, at)), None) = (pickles.next(), pickles.next()) else {
            let message = "is no archive of torch.save with one data.pkl";
            return Err(Error::new(Code::CHECKPOINT_FORMAT, message));
        };
        check_byte_order(map, &records, folder)?;
        if at.len() > MAX_BYTES {
            return Err(corrupt(format!("its data.pkl has {} bytes, more than {MAX_BYTES}", at.len())));
        }
        let pickle = pickle::read_as(dialect, &map.bytes()[at.clone()])?;
        let folder = folder.to_owned();
        Ok(Self { map: Arc::clone(map), records, folder, pickle })
    }

    /// The file's name, for messages.
    pub fn map(&self) -> &Mapping {
        &self.map
    }

    /// The tensor at `at`; the inner error is the name of a dtype that is not read.
    pub fn tensor(&self, at: Ref) -> Result<Result<LazyTensor, &'static str>> {
        let node = self.node(at)?;
        contents::tensor(&self.map, &self.pickle, node, &|storage| {
            record(&self.records, &self.folder, &self.pickle, storage)
        })
    }

    /// The tensor of one axis at `at`, to be read in parts.
    pub fn line(&self, at: Ref) -> Result<Line> {
        let node = self.node(at)?;
        let sizes = |at| self.pickle.sizes(at).unwrap_or_default();
        let (&[len], &[stride], Element::Known(dtype)) =
            (sizes(node.shape).as_slice(), sizes(node.strides).as_slice(), node.element)
        else {
            return Err(corrupt("a flat group is no tensor of one axis of a known type".into()));
        };
        let storage = record(&self.records, &self.folder, &self.pickle, &node.storage)?;
        // Stride 0 would let a few bytes claim to be many.
        if len.checked_mul(dtype.size()).is_none_or(|bytes| bytes > storage.len()) {
            return Err(corrupt(format!("a flat group of {len} elements has {} bytes", storage.len())));
        }
        let line = Line { map: Arc::clone(&self.map), storage, dtype, offset: node.offset, stride, len };
        line.part(0..len)?;
        Ok(line)
    }

    fn node(&self, at: Ref) -> Result<&TensorNode> {
        match self.pickle.get(at) {
            Node::Tensor(node) => Ok(node),
            other => Err(corrupt(format!("holds {} where a tensor is expected", other.kind()))),
        }
    }
}

/// A tensor of one axis.
pub(super) struct Line {
    map: Arc<Mapping>,
    storage: Range<usize>,
    pub dtype: DType,
    offset: usize,
    stride: usize,
    pub len: usize,
}

impl Line {
    /// The elements of `range`, which lies inside.
    pub fn part(&self, range: Range<usize>) -> Result<LazyTensor> {
        let offset = range.start.checked_mul(self.stride).and_then(|o| o.checked_add(self.offset));
        let offset = offset.filter(|_| range.start <= range.end && range.end <= self.len);
        let offset = offset.ok_or_else(|| corrupt("a part of a flat group lies outside it".into()))?;
        let view = View { dtype: self.dtype, offset, shape: vec![range.len()], strides: vec![self.stride] };
        view.over(&self.map, self.storage.clone())
    }
}

fn corrupt(message: String) -> Error {
    Error::new(Code::CHECKPOINT_CORRUPT, message)
}
