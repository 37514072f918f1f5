//! The records of a zip archive that PyTorch wrote: stored, never compressed, mapped where they lie.
//!
//! # Errors
//! `checkpoint.truncated` when the zip directory is gone; `checkpoint.corrupt` when records are compressed, doubled or
//! outside the file; `checkpoint.format` for archives of big-endian machines.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;

use zip::{CompressionMethod, ZipArchive};

use super::mapping::Mapping;
use super::names::shown;
use crate::error::{Code, Error, Result};

/// The records of an archive: name and byte range in the file.
pub(super) type Records = HashMap<String, Range<usize>>;

/// Refuses archives of big-endian machines; those of before PyTorch 2.1 do not say, and are little-endian.
pub(super) fn check_byte_order(map: &Arc<Mapping>, records: &Records, folder: &str) -> Result<()> {
    match records.get(&format!("{folder}/byteorder")) {
        Some(order) if map.bytes()[order.clone()].trim_ascii() != b"little" => {
            let message = "was saved on a big-endian machine, expected little-endian: load and save it again on a PC";
            Err(Error::new(Code::CHECKPOINT_FORMAT, message))
        }
        _ => Ok(()),
    }
}

/// The archive's directory. Only stored records are kept; `.data/` bookkeeping and folders are passed over.
pub(super) fn records(map: &Arc<Mapping>) -> Result<Records> {
    records_in(map, 0..map.bytes().len())
}

/// As [`records`], of the archive that takes up the range `within` of the file.
pub(super) fn records_in(map: &Arc<Mapping>, within: Range<usize>) -> Result<Records> {
    let bytes = map.bytes().get(within.clone()).ok_or_else(|| corrupt("an archive lies outside the file"))?;
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|e| {
        let message =
            format!("is a zip archive whose directory is missing or damaged ({e}): copy or download it again");
        Error::new(Code::CHECKPOINT_TRUNCATED, message)
    })?;
    if archive.has_duplicate_names() {
        return Err(corrupt("holds two records of the same name"));
    }
    if let Some(what) = archive.file_names().filter_map(Result::ok).find_map(|name| not_a_checkpoint(&name)) {
        return Err(Error::new(Code::CHECKPOINT_FORMAT, what));
    }
    let mut records = Records::new();
    for index in 0..archive.len() {
        let damaged = |e: zip::result::ZipError| corrupt(format!("zip record {index} is damaged: {e}"));
        let file = archive.by_index_raw(index).map_err(damaged)?;
        let name = String::from_utf8_lossy(file.name_raw()).into_owned();
        if name.ends_with('/') {
            continue;
        }
        let range = stored(&file, bytes.len()).map_err(|why| {
            let shown = shown(&name);
            corrupt(format!("its record `{shown}` {why}"))
        })?;
        // No overflow: both lie inside the file.
        records.insert(name, within.start + range.start..within.start + range.end);
    }
    Ok(records)
}

/// What an archive with a record of this name is, in place of one that `torch.save` wrote.
fn not_a_checkpoint(record: &str) -> Option<&'static str> {
    if record.ends_with("/constants.pkl") || record.contains("/code/__torch__") {
        return Some(
            "is a TorchScript archive, expected a state dict: load it with torch.jit.load in Python and save \
             torch.save(model.state_dict(), …)",
        );
    }
    if record.ends_with("/.data/extern_modules") {
        return Some(
            "is a torch.package archive, expected a state dict: load what it holds with \
             torch.package.PackageImporter in Python and save it with torch.save",
        );
    }
    record.ends_with(".npy").then_some(
        "is a numpy archive (.npz), expected tensors: in Python, \
         torch.save({k: torch.from_numpy(a) for k, a in numpy.load(file).items()}, …)",
    )
}

/// Where a record's bytes lie, or what is wrong with it.
fn stored<R: std::io::Read>(file: &zip::read::ZipFile<'_, R>, len: usize) -> Result<Range<usize>, &'static str> {
    if file.encrypted() {
        return Err("is encrypted");
    }
    if file.compression() != CompressionMethod::Stored || file.size() != file.compressed_size() {
        return Err("is compressed, which torch.save never does: load and save the file again with PyTorch");
    }
    let range = || {
        let start = usize::try_from(file.data_start()?).ok()?;
        let end = start.checked_add(usize::try_from(file.size()).ok()?)?;
        (end <= len).then_some(start..end)
    };
    range().ok_or("reaches past the end of the file")
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(Code::CHECKPOINT_CORRUPT, message)
}
