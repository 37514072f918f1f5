//! `torch.save` archives since PyTorch 1.6: a zip of stored (uncompressed) records.
//!
//! `NAME/data.pkl` is the pickle, `NAME/data/KEY` one storage each, `NAME/byteorder` says `little` or `big`; `NAME` is
//! whatever the file was called when it was saved. Records are aligned, so they are mapped where they lie.
//!
//! Flows in: the mapped file. Flows out: the state dict's tensors, each over its record.
//!
//! # Errors
//! `checkpoint.truncated` when the zip directory is gone; `checkpoint.corrupt` when records are missing, of the wrong
//! size, compressed or doubled; those of the pickle.
//!
//! # Safety
//! No `unsafe`. Checksums are not compared (13 GB would be read twice); every size and offset is.

use std::ops::Range;
use std::sync::Arc;

use super::mapping::Mapping;
use super::names::shown;
use super::pickle::{MAX_BYTES, Pickle, Storage};
use super::zip_records::{Records, check_byte_order, records};
use super::{Contents, Format, pt2, state_dict};
use crate::error::{Code, Error, Result};

/// Reads a zip archive that PyTorch wrote.
pub(super) fn read(map: &Arc<Mapping>, key: Option<&str>) -> Result<Contents> {
    let records = records(map)?;
    let mut pickles = records.keys().filter_map(|name| name.strip_suffix("/data.pkl"));
    let folder = match (pickles.next(), pickles.next()) {
        (Some(only), None) => only.to_owned(),
        (Some(_), Some(_)) => return Err(corrupt("holds two data.pkl records")),
        (None, _) if pt2::is_archive(&records) => return pt2::read(map, &records).and_then(|c| c.without_key(key)),
        (None, _) => {
            let message = "is a zip archive without a data.pkl, expected one written by torch.save";
            return Err(Error::new(Code::CHECKPOINT_FORMAT, message));
        }
    };
    read_state_dict(map, &records, &folder, key)
}

/// Reads the state dict whose pickle is `folder/data.pkl`.
fn read_state_dict(map: &Arc<Mapping>, records: &Records, folder: &str, key: Option<&str>) -> Result<Contents> {
    check_byte_order(map, records, folder)?;
    let range = records.get(&format!("{folder}/data.pkl")).ok_or_else(|| corrupt("holds no data.pkl record"))?;
    if range.len() > MAX_BYTES {
        let len = range.len();
        return Err(corrupt(format!("its data.pkl has {len} bytes, more than {MAX_BYTES}: no checkpoint's has")));
    }
    let (pickle, found) = state_dict::read(&map.bytes()[range.clone()], key)?;
    let mut contents = Contents::new(Format::TorchZip);
    contents.add_found(map, &pickle, found, &|storage| record(records, folder, &pickle, storage))?;
    Ok(contents)
}

/// The byte range of a storage's record.
pub(super) fn record(records: &Records, folder: &str, pickle: &Pickle, storage: &Storage) -> Result<Range<usize>> {
    let key = pickle.text(storage.key).unwrap_or_default();
    let shown = shown(key);
    let found = records.get(&format!("{folder}/data/{key}"));
    let range = found.ok_or_else(|| corrupt(format!("its storage `data/{shown}` is missing")))?;
    let size = storage.element.map_or(1, |e| e.size());
    match storage.numel.checked_mul(size) {
        Some(want) if want == range.len() => Ok(range.clone()),
        _ => {
            let (have, numel) = (range.len(), storage.numel);
            Err(corrupt(format!("its storage `data/{shown}` has {have} bytes, expected {numel} elements of {size}")))
        }
    }
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(Code::CHECKPOINT_CORRUPT, message)
}
