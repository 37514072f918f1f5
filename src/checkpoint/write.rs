//! safetensors files, written as the reference implementation writes them.
//!
//! Flows in: names and lazy tensors. Flows out: a file: 8-byte length, JSON header padded with spaces to a multiple of
//! 8 (tensors by falling alignment, then by name, so that all are aligned), then the tensors, streamed.
//!
//! # Errors
//! `io`, `disk.full`; those of the tensors' sources. On an error nothing is left behind, and a file that was there
//! before is untouched: the new one is written under a temporary name next to it and renamed at the end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::safetensors::{DTYPES, MAX_HEADER};
use crate::error::{Code, Error, Result};
use crate::files::{MADE_BY, MAKER, Pending};
use crate::tensor::number::to_u64;
use crate::tensor::{CHUNK_BYTES, DType, LazyTensor, show};

/// Key of the maker's name in `__metadata__`.
const MAKER_KEY: &str = "made_by";

/// Longest header in which the maker's name is looked for, in bytes. Ours have a few kilobytes.
const MAX_OWN_HEADER: u64 = 16 << 20;

/// The metadata of a file that users keep among their own: the maker's name, by which [`has_maker`] knows it.
pub fn maker_metadata() -> BTreeMap<String, String> {
    BTreeMap::from([(MAKER_KEY.to_owned(), MADE_BY.to_owned())])
}

/// Whether the file at `path` is safetensors with [`maker_metadata`].
///
/// # Errors
/// `io`.
pub fn has_maker(path: &Path) -> Result<bool> {
    let failed = |e| Error::io(path, "cannot read the output", e);
    let mut file = File::open(path).map_err(failed)?;
    let mut length = Vec::new();
    (&mut file).take(8).read_to_end(&mut length).map_err(failed)?;
    let length = <[u8; 8]>::try_from(length.as_slice()).map(u64::from_le_bytes);
    let Some(length) = length.ok().filter(|length| *length <= MAX_OWN_HEADER) else { return Ok(false) };
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).map_err(failed)?;
    let header: Value = serde_json::from_slice(&header).unwrap_or_default();
    Ok(header["__metadata__"][MAKER_KEY].as_str().is_some_and(|name| name.starts_with(MAKER)))
}

/// Writes `tensors` to `path` and gives the file's size in bytes. `metadata` becomes the header's `__metadata__`.
///
/// The bytes depend on nothing but the tensors and the metadata.
///
/// # Errors
/// `checkpoint.corrupt` when a name comes twice or is `__metadata__`; `io` and `disk.full`; what the tensors' sources
/// fail with, naming the tensor.
pub fn write_safetensors(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = (String, LazyTensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<u64> {
    let path = path.as_ref();
    let mut tensors: Vec<(String, LazyTensor)> = tensors.into_iter().collect();
    tensors.sort_by(|(a, s), (b, t)| rank(t.dtype()).cmp(&rank(s.dtype())).then(a.cmp(b)));
    let header = header(&tensors, metadata).map_err(|e| Error::new(e.code(), e.message()).at(path))?;

    let failed = |e| Error::io(path, "cannot write the file", e);
    let pending = Pending::next_to(path, "")?;
    let mut out = BufWriter::with_capacity(CHUNK_BYTES, pending.file());
    let mut written = to_u64(header.len());
    out.write_all(&header).map_err(failed)?;
    for (name, tensor) in &tensors {
        let at = |e: Error| {
            let named = e.message().contains(name.as_str());
            if named || e.code() == Code::IO {
                e
            } else {
                Error::new(e.code(), format!("tensor `{name}`: {}", e.message()))
            }
        };
        tensor
            .stream(&mut |chunk| {
                written += to_u64(chunk.len());
                out.write_all(chunk).map_err(failed)
            })
            .map_err(|e| at(e).at(path))?;
    }
    out.flush().map_err(failed)?;
    drop(out);
    pending.put()?;
    Ok(written)
}

/// Place of a dtype in the reference implementation's order, smallest alignment first.
fn rank(dtype: DType) -> safetensors::Dtype {
    let row = DTYPES.iter().find(|(ours, _)| *ours == dtype);
    row.map(|(_, theirs)| *theirs).expect("every dtype has a row")
}

fn header(tensors: &[(String, LazyTensor)], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let bad = |message: String| Error::new(Code::CHECKPOINT_CORRUPT, message);
    let mut entries = Map::new();
    if !metadata.is_empty() {
        entries.insert("__metadata__".into(), json!(metadata));
    }
    let mut at = 0usize;
    for (name, tensor) in tensors {
        let end = at
            .checked_add(tensor.byte_len())
            .ok_or_else(|| bad(format!("`{name}` {} is too large", show(tensor.shape()))))?;
        let dtype = rank(tensor.dtype()).to_string();
        let entry = json!({"dtype": dtype, "shape": tensor.shape(), "data_offsets": [at, end]});
        if name == "__metadata__" || entries.insert(name.clone(), entry).is_some() {
            return Err(bad(format!("two entries of the new file would be named `{name}`")));
        }
        at = end;
    }
    let mut json = Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() > MAX_HEADER {
        return Err(bad(format!("the header would have {} bytes, more than {MAX_HEADER}", json.len())));
    }
    let mut header = to_u64(json.len()).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}
