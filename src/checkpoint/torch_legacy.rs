//! `torch.save` files of before PyTorch 1.6 (or with `_use_new_zipfile_serialization=False`).
//!
//! Five pickles one after the other: a magic number, the protocol version 1001, facts about the machine, the object,
//! and the list of storage keys; then, for each key in order, the number of elements (8 bytes) and the elements.
//!
//! Flows in: the mapped file. Flows out: the state dict's tensors, each over its storage in the file.
//!
//! # Errors
//! `checkpoint.truncated` when it ends within a storage; `checkpoint.corrupt` when storages and keys disagree;
//! `checkpoint.format` for a pickle that is no such file; those of the pickle.
//!
//! # Safety
//! No `unsafe`; sizes are checked before they are added.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::mapping::Mapping;
use super::pickle::{self, Node, Pickle, Storage};
use super::{Contents, Format, state_dict};
use crate::error::{Code, Error, Result};

/// The magic number 0x1950a86a20f9469cfc6c as `torch.save` pickles it, in protocols 2 and up and in protocol 0 and 1.
const MAGIC: [&[u8]; 2] = [b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"L119547037146038801333356L\n."];

/// Whether the file begins with the magic number's pickle.
pub(super) fn is_legacy(bytes: &[u8]) -> bool {
    let body = match bytes {
        [0x80, _, 0x95, rest @ ..] => rest.get(8..).unwrap_or_default(),
        [0x80, _, rest @ ..] => rest,
        _ => bytes,
    };
    MAGIC.iter().any(|m| body.starts_with(m))
}

/// Reads a legacy file.
pub(super) fn read(map: &Arc<Mapping>, key: Option<&str>) -> Result<Contents> {
    let bytes = map.bytes();
    let mut at = 0;
    let mut next = || -> Result<Pickle> {
        let pickle = pickle::read(bytes.get(at..).unwrap_or_default())?;
        at += pickle.len;
        Ok(pickle)
    };
    next()?;
    let version = next()?;
    if *version.get(version.root) != Node::Int(1001) {
        return Err(corrupt("its protocol version is not 1001"));
    }
    let machine = next()?;
    if machine.entry(machine.root, "little_endian") == Some(&Node::Bool(false)) {
        let message = "was saved on a big-endian machine, expected little-endian: load and save it again on a PC";
        return Err(Error::new(Code::CHECKPOINT_FORMAT, message));
    }
    let object = next()?;
    let keys = next()?;
    let storages = storages(bytes, at, &object, &keys)?;
    let found = state_dict::find(&object, key)?;
    let mut contents = Contents::new(Format::TorchLegacy);
    contents.add_found(map, &object, found, &|storage| part(&storages, &object, storage))?;
    Ok(contents)
}

/// Reads a bare pickle for the sake of a good message: it is refused in any case.
pub(super) fn refuse_bare_pickle(bytes: &[u8]) -> Error {
    if let Err(error) = pickle::read(bytes) {
        return error;
    }
    let message = "is a plain pickle, expected a file written by torch.save: save torch.save(model.state_dict(), …)";
    Error::new(Code::CHECKPOINT_FORMAT, message)
}

/// Key to byte range, for the storages that follow the pickles.
fn storages(bytes: &[u8], mut at: usize, object: &Pickle, keys: &Pickle) -> Result<HashMap<String, Range<usize>>> {
    let mut sizes: HashMap<&str, usize> = HashMap::new();
    for node in object.nodes() {
        let Node::Storage(storage) = node else { continue };
        let (key, size) = (object.text(storage.key).unwrap_or_default(), storage.element.map_or(1, |e| e.size()));
        if *sizes.entry(key).or_insert(size) != size {
            return Err(corrupt("one storage has two element types"));
        }
    }
    let (Node::List(list) | Node::Tuple(list)) = keys.get(keys.root) else {
        return Err(corrupt("its list of storages is not a list"));
    };
    let mut ranges = HashMap::new();
    for &key in list {
        let key = keys.text(key).ok_or_else(|| corrupt("a storage's key is not a string"))?;
        let size = *sizes.get(key).ok_or_else(|| corrupt("a storage is listed that no tensor uses"))?;
        let header = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()).ok_or_else(truncated)?;
        let len = usize::try_from(u64::from_le_bytes(*header)).ok().and_then(|n| n.checked_mul(size));
        let start = at + 8;
        let end = len.and_then(|n| start.checked_add(n)).filter(|&e| e <= bytes.len()).ok_or_else(truncated)?;
        if ranges.insert(key.to_owned(), start..end).is_some() {
            return Err(corrupt("one storage is listed twice"));
        }
        at = end;
    }
    Ok(ranges)
}

/// A storage's range, or that of its part when it is a view of another one.
fn part(ranges: &HashMap<String, Range<usize>>, object: &Pickle, storage: &Storage) -> Result<Range<usize>> {
    let key = object.text(storage.key).unwrap_or_default();
    let whole = ranges.get(key).ok_or_else(|| corrupt("a tensor's storage is not in the file"))?;
    let size = storage.element.map_or(1, |e| e.size());
    let want = |n: usize| n.checked_mul(size);
    if want(storage.numel) != Some(whole.len()) {
        let (have, numel) = (whole.len(), storage.numel);
        return Err(corrupt(format!("a storage has {have} bytes, expected {numel} elements of {size}")));
    }
    let Some((offset, len)) = storage.part else { return Ok(whole.clone()) };
    let start = want(offset).and_then(|o| whole.start.checked_add(o));
    let end = start.zip(want(len)).and_then(|(s, l)| s.checked_add(l)).filter(|&e| e <= whole.end);
    start.zip(end).map(|(s, e)| s..e).ok_or_else(|| corrupt("a part of a storage reaches past its end"))
}

fn truncated() -> Error {
    Error::new(Code::CHECKPOINT_TRUNCATED, "ends within its weights: copy or download it again")
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(Code::CHECKPOINT_CORRUPT, message)
}
