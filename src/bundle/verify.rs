//! Reads `bundle.json` and checks a bundle's files against it, before anything uses them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::file_hash::sha256_of;
use super::manifest::Manifest;
use super::names;
use super::records::{FileRecord, PartRecord};
use crate::error::{Code, Error, Result};
use crate::files::open_regular;
use crate::model::PartMap;
use crate::tensor::hex;
use crate::tensor::number::to_u64;
use crate::threads;

/// Maximum size of `bundle.json`.
const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// The manifest at `path` and its SHA-256.
pub(super) fn read_manifest(path: &Path) -> Result<(Manifest, String)> {
    let bytes = manifest_bytes(path)?;
    let manifest = Manifest::from_bytes(&bytes).map_err(|e| e.at(path))?;
    Ok((manifest, hex(&Sha256::digest(&bytes))))
}

/// The SHA-256 of the manifest at `path`, whatever its content.
pub(super) fn manifest_hash(path: &Path) -> Result<String> {
    manifest_bytes(path).map(|bytes| hex(&Sha256::digest(&bytes)))
}

/// The bytes of `bundle.json`: a regular file of bounded size.
pub(super) fn manifest_bytes(path: &Path) -> Result<Vec<u8>> {
    let invalid = |message: String| Error::new(Code::BUNDLE_MANIFEST, message).at(path);
    let Some(file) = open_regular(path).map_err(|e| Error::io(path, "cannot open the file", e))? else {
        return Err(invalid("the manifest is a link, or not a file".into()));
    };
    let mut bytes = Vec::new();
    let read = file.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut bytes);
    let length = to_u64(read.map_err(|e| Error::io(path, "cannot read the file", e))?);
    if length > MAX_MANIFEST_BYTES {
        return Err(invalid(format!("the manifest holds more than {MAX_MANIFEST_BYTES} bytes")));
    }
    Ok(bytes)
}

/// The files that a manifest lists, in any format version: an export may replace such a bundle. None if the file is not
/// a bundle's manifest, or one that lists what cannot be a file of a bundle.
pub(super) fn listed_files(path: &Path) -> Option<Vec<String>> {
    let json: serde_json::Value = serde_json::from_slice(&manifest_bytes(path).ok()?).ok()?;
    json.get("format")?.as_u64()?;
    let plain = |name: &&str| names::check(name).is_ok();
    let name = |file: &serde_json::Value| file.get("name")?.as_str().filter(plain).map(str::to_owned);
    json.get("files")?.as_array()?.iter().map(name).collect()
}

/// Larger files are weights, which [`super::Bundle::open_quickly`] leaves to be hashed later.
pub(super) const LARGE_BYTES: u64 = 32 << 20;

/// Checks the sizes and hashes of all files, and what graphs refer to.
pub(super) fn all_files(dir: &Path, manifest: &Manifest) -> Result<()> {
    small_files(dir, manifest)?;
    let large = manifest.files.par_iter().filter(|file| file.bytes > LARGE_BYTES);
    large.try_for_each(|file| check_hash(dir, file))
}

/// Checks the names and sizes of all files, the hashes of those that are not large, and what graphs refer to. Returns
/// the external data files of each part's graphs.
pub(super) fn small_files(dir: &Path, manifest: &Manifest) -> Result<PartMap<BTreeSet<String>>> {
    let listed: BTreeSet<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
    let graphs_and_tokenizer = manifest.parts.values().flat_map(PartRecord::graphs).chain([&manifest.tokenizer.file]);
    for file in graphs_and_tokenizer {
        if !listed.contains(file.as_str()) {
            return Err(Error::new(Code::BUNDLE_MANIFEST, format!("the file `{file}` is not listed")).at(dir));
        }
    }
    manifest.files.iter().try_for_each(|file| check_size(dir, file))?;
    threads::start_pool(None)?;
    manifest.files.par_iter().filter(|file| file.bytes <= LARGE_BYTES).try_for_each(|file| check_hash(dir, file))?;
    let mut data_files = BTreeMap::new();
    for (name, part) in &manifest.parts {
        let mut all = BTreeSet::new();
        for file in part.graphs() {
            let path = names::join(dir, file)?;
            let external = crate::onnx::bundle_graph(&path)?;
            for file in &external {
                names::check(file).map_err(|e| e.at(&path))?;
                if !listed.contains(file.as_str()) {
                    let message = format!("the graph's weights lie in `{file}`, which the bundle does not list");
                    return Err(Error::new(Code::BUNDLE_PATH, message).at(path));
                }
            }
            all.extend(external);
        }
        data_files.insert(name.as_str(), all);
    }
    Ok(PartMap::from_fn(|part| data_files.remove(part.as_str()).unwrap_or_default()))
}

/// Checks that a file is a regular file of the recorded size.
fn check_size(dir: &Path, record: &FileRecord) -> Result<()> {
    let path = names::join(dir, &record.name)?;
    let wrong = |message: String| Error::new(Code::BUNDLE_CHECKSUM, message).at(&path);
    let meta = std::fs::symlink_metadata(&path).map_err(|e| wrong(format!("the bundle's file is missing: {e}")))?;
    if !meta.is_file() {
        return Err(Error::new(Code::BUNDLE_PATH, "the bundle's file is a link or a folder").at(&path));
    }
    if meta.len() != record.bytes {
        return Err(wrong(format!("the file has {} bytes, expected {}: {RESTORE}", meta.len(), record.bytes)));
    }
    Ok(())
}

/// What to do about a damaged bundle: the reader may not be the one who exported it.
const RESTORE: &str = "copy the bundle again from its source, or export it again with ba-export";

/// Checks a file's hash.
pub(super) fn check_hash(dir: &Path, record: &FileRecord) -> Result<()> {
    let path = names::join(dir, &record.name)?;
    let found = sha256_of(&path)?;
    if found != record.sha256 {
        let message = format!("the file was changed: SHA-256 {found}, expected {}; {RESTORE}", record.sha256);
        return Err(Error::new(Code::BUNDLE_CHECKSUM, message).at(&path));
    }
    Ok(())
}
