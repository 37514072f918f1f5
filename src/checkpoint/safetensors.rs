//! safetensors files: an 8-byte length, a JSON header and the tensors.
//!
//! Flows in: the mapped file. Flows out: its tensors, each over its range, and the header's metadata.
//! The header is parsed and checked by the `safetensors` crate: ranges without overlap or hole, sizes that fit shapes.
//!
//! # Errors
//! `checkpoint.truncated` when the file is shorter than its header says; `checkpoint.corrupt` for everything else that
//! contradicts itself, in the crate's words where it is the crate that refuses.
//!
//! # Safety
//! No `unsafe`; the header's length is compared with the file's and with [`MAX_HEADER`] before anything is read.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::{Dtype, Metadata};

use super::mapping::{Mapped, Mapping};
use super::{Contents, Format, Skipped, alias};
use crate::error::{Code, Error, Result};
use crate::tensor::number::to_u64;
use crate::tensor::{DType, LazyTensor};

/// Longest header, as in the reference implementation.
pub(super) const MAX_HEADER: usize = 100_000_000;

/// Our types and theirs.
pub(super) const DTYPES: [(DType, Dtype); 15] = [
    (DType::Bool, Dtype::BOOL),
    (DType::U8, Dtype::U8),
    (DType::I8, Dtype::I8),
    (DType::U16, Dtype::U16),
    (DType::I16, Dtype::I16),
    (DType::U32, Dtype::U32),
    (DType::I32, Dtype::I32),
    (DType::U64, Dtype::U64),
    (DType::I64, Dtype::I64),
    (DType::F8E4M3, Dtype::F8_E4M3),
    (DType::F8E5M2, Dtype::F8_E5M2),
    (DType::F16, Dtype::F16),
    (DType::BF16, Dtype::BF16),
    (DType::F32, Dtype::F32),
    (DType::F64, Dtype::F64),
];

/// Whether the file begins like a safetensors file: a length, then an object.
pub(super) fn is_safetensors(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b'{')
}

/// Whether the bytes are a safetensors file, its header valid and its tensors there.
pub(super) fn is_whole(bytes: &[u8]) -> bool {
    is_safetensors(bytes) && header(bytes).is_ok()
}

/// Reads a safetensors file.
pub(super) fn read(map: &Arc<Mapping>) -> Result<Contents> {
    let (start, header) = header(map.bytes())?;
    let mut contents = Contents::new(Format::Safetensors);
    contents.metadata.extend(header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
    for (name, info) in header.tensors() {
        let Some(&(dtype, _)) = DTYPES.iter().find(|(_, theirs)| *theirs == info.dtype) else {
            contents.skipped.push(Skipped { name, why: format!("a tensor of type {}", info.dtype) });
            continue;
        };
        let (from, to) = info.data_offsets;
        // No overflow: `header` has made sure that the last offset lies inside the file.
        let range = Mapped::new(map, start + from..start + to)
            .ok_or_else(|| corrupt(format!("tensor `{name}` lies outside the file")))?;
        contents.tensors.insert(name, LazyTensor::new(dtype, info.shape.clone(), Arc::new(range)));
    }
    alias::restore(&mut contents);
    Ok(contents)
}

/// The first byte of each tensor of a safetensors file: for files that refer to parts of it.
///
/// # Errors
/// `checkpoint.not_found`, `.truncated`, `.corrupt`; `io`.
pub fn safetensors_offsets(path: &Path) -> Result<BTreeMap<String, u64>> {
    let map = Mapping::open(path)?;
    let (start, header) = header(map.bytes()).map_err(|e| e.at(path))?;
    let offset = |(name, info): (String, &safetensors::tensor::TensorInfo)| (name, to_u64(start + info.data_offsets.0));
    Ok(header.tensors().into_iter().map(offset).collect())
}

/// Where the tensors begin, and the checked header.
///
/// The crate's own `SafeTensors::read_metadata` adds lengths without a check, so its parts are called here instead.
fn header(bytes: &[u8]) -> Result<(usize, Metadata)> {
    let have = bytes.len();
    let len = bytes.first_chunk::<8>().map_or(0, |n| u64::from_le_bytes(*n));
    let start = usize::try_from(len).ok().filter(|&n| n <= MAX_HEADER).map(|n| n + 8);
    let Some(start) = start else {
        return Err(corrupt(format!("claims a safetensors header of {len} bytes; the most is {MAX_HEADER}")));
    };
    let Some(text) = bytes.get(8..start) else {
        return Err(truncated(format!("ends after {have} bytes, inside its safetensors header of {len}")));
    };
    let header: Metadata = serde_json::from_slice(text).map_err(|e| match wrong_metadata(text) {
        Some(message) => corrupt(message),
        None => corrupt(format!("is a damaged safetensors file: {e}")).caused_by(e),
    })?;
    match header.data_len().checked_add(start) {
        Some(want) if want == have => Ok((start, header)),
        Some(want) if want < have => {
            Err(corrupt(format!("has {have} bytes, its safetensors header accounts for {want}")))
        }
        want => {
            let want = want.map_or_else(|| "more than fit an address".to_owned(), |n| n.to_string());
            Err(truncated(format!("ends after {have} bytes, expected {want}: copy or download it again")))
        }
    }
}

/// What is wrong with the header's `__metadata__`, if that is what is wrong: it maps names to texts.
fn wrong_metadata(header: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Header {
        #[serde(rename = "__metadata__")]
        metadata: serde_json::Value,
    }
    let Header { metadata } = serde_json::from_slice(header).ok()?;
    let Some(entries) = metadata.as_object() else {
        return Some("its __metadata__ is no object of texts: save it again with the safetensors library".to_owned());
    };
    let (name, value) = entries.iter().find(|(_, value)| !value.is_string())?;
    let (name, value): (String, String) =
        (name.chars().take(80).collect(), value.to_string().chars().take(80).collect());
    let remedy = "write it as a text, as the safetensors library demands";
    Some(format!("its __metadata__ has {value} under `{name}`, expected a string: {remedy}"))
}

fn corrupt(message: String) -> Error {
    Error::new(Code::CHECKPOINT_CORRUPT, message)
}

fn truncated(message: String) -> Error {
    Error::new(Code::CHECKPOINT_TRUNCATED, message)
}
