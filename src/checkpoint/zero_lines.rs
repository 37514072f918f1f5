//! Flat groups of ZeRO one after the other, and the parameters that lie in them.
//!
//! Flows in: tensors of one axis. Flows out: any stretch of their elements, as views of the files, and the tensor of a
//! shape that such stretches make.
//!
//! # Errors
//! `checkpoint.corrupt` when a stretch reaches past the end, or when its parts differ in type.

use std::sync::Arc;

use super::torch_archive::Line;
use crate::error::{Code, Error, Result};
use crate::tensor::{DType, LazyTensor};

/// Lines that follow each other, and where each begins.
pub(super) struct Lines<'a> {
    lines: Vec<&'a Line>,
    starts: Vec<usize>,
    /// Elements of all lines.
    pub len: usize,
}

impl<'a> Lines<'a> {
    pub fn new(lines: impl IntoIterator<Item = &'a Line>) -> Self {
        let mut all = Self { lines: Vec::new(), starts: Vec::new(), len: 0 };
        for line in lines {
            all.lines.push(line);
            all.starts.push(all.len);
            all.len = all.len.saturating_add(line.len);
        }
        all
    }

    /// `count` elements from `at` on.
    pub fn take(&self, at: usize, count: usize) -> Result<Vec<LazyTensor>> {
        let end = at.checked_add(count).filter(|&end| end <= self.len);
        let end = end.ok_or_else(|| {
            let held = self.len;
            corrupt(format!("its {count} elements from {at} on are past the {held} that the ranks hold"))
        })?;
        let (mut at, mut parts) = (at, Vec::new());
        // The last line that begins at or before `at`: empty ones lie before it.
        let mut number = self.starts.partition_point(|&start| start <= at).saturating_sub(1);
        while at < end {
            let (line, start) = (self.lines[number], self.starts[number]);
            let stop = end.min(start + line.len);
            if at < stop {
                parts.push(line.part(at - start..stop - start)?);
            }
            (at, number) = (stop, number + 1);
        }
        Ok(parts)
    }
}

/// Parts of one type as a tensor of this shape.
pub(super) fn whole(parts: Vec<LazyTensor>, shape: &[usize]) -> Result<LazyTensor> {
    let Some(first) = parts.first() else {
        return Ok(LazyTensor::new(DType::F32, shape.to_vec(), Arc::new(Vec::new())));
    };
    if parts.iter().any(|part| part.dtype() != first.dtype()) {
        return Err(corrupt("its parts differ in type"));
    }
    let joined = if let [only] = parts.as_slice() { only.clone() } else { LazyTensor::concat(&parts) };
    Ok(joined.reshaped(shape))
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(Code::CHECKPOINT_CORRUPT, message)
}
