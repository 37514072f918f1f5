//! Checks a bundle before anything uses it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::manifest::{FORMAT, FileRecord, Manifest, PartRecord};
use crate::error::{Code, Error, Result};
use crate::model::Part;
use crate::tensor::hex;

/// Largest `bundle.json` that is read.
const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// The manifest at `path` and its SHA-256.
pub(super) fn manifest(path: &Path) -> Result<(Manifest, String)> {
    let bytes = manifest_bytes(path)?;
    let manifest = Manifest::from_bytes(&bytes).map_err(|e| e.at(path))?;
    Ok((manifest, hex(&Sha256::digest(&bytes))))
}

/// The SHA-256 of the manifest at `path`, whatever it holds.
pub(super) fn manifest_hash(path: &Path) -> Result<String> {
    manifest_bytes(path).map(|bytes| hex(&Sha256::digest(&bytes)))
}

/// The manifest of that text, checked as far as it can be without the files.
pub(super) fn parse(bytes: &[u8]) -> Result<Manifest> {
    let invalid = |message: String| Error::new(Code::BUNDLE_MANIFEST, message);
    // The version first: another format may have other fields.
    let json: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| invalid(format!("not JSON: {e}")))?;
    match json.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format == u64::from(FORMAT) => {}
        Some(format) => {
            return Err(invalid(format!(
                "the bundle has format {format}, this program reads {FORMAT}: export it again"
            )));
        }
        None => return Err(invalid("the manifest has no format version".into())),
    }
    let manifest: Manifest = serde_json::from_value(json).map_err(|e| invalid(format!("{e}")))?;
    manifest.config.validate().map_err(|e| invalid(e.message().to_owned()))?;
    if manifest.labels != manifest.config.labels.0 {
        return Err(invalid("its labels differ from its configuration's".into()));
    }
    if let Some(part) = Part::ALL.iter().find(|part| !manifest.parts.contains_key(part.as_str())) {
        return Err(invalid(format!("the graph `{part}` is missing")));
    }
    if manifest.tokenizer.max_tokens == 0 {
        return Err(invalid("tokenizer.max_tokens is 0, expected at least 1".into()));
    }
    manifest.temperature.check(manifest.image_head).map_err(invalid)?;
    Ok(manifest)
}

/// The bytes of `bundle.json`: a regular file of bounded size.
pub(super) fn manifest_bytes(path: &Path) -> Result<Vec<u8>> {
    let invalid = |message: String| Error::new(Code::BUNDLE_MANIFEST, message).at(path);
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, "cannot open the file", e))?;
    // Opening a pipe would wait for ever.
    if !meta.is_file() {
        return Err(invalid("the manifest is not a file".into()));
    }
    if meta.len() > MAX_MANIFEST_BYTES {
        let length = meta.len();
        return Err(invalid(format!("the manifest holds {length} bytes, expected at most {MAX_MANIFEST_BYTES}")));
    }
    std::fs::read(path).map_err(|e| Error::io(path, "cannot read the file", e))
}

/// The files that a manifest lists, also one of another format version, whose bundle an export may replace; none when
/// the file is no bundle's manifest.
pub(super) fn listed_files(path: &Path) -> Option<Vec<String>> {
    let json: serde_json::Value = serde_json::from_slice(&manifest_bytes(path).ok()?).ok()?;
    json.get("format")?.as_u64()?;
    let name = |file: &serde_json::Value| file.get("name")?.as_str().map(str::to_owned);
    json.get("files")?.as_array()?.iter().map(name).collect()
}

/// Files of more bytes are weights, which [`super::Bundle::open_quickly`] leaves to be hashed later.
pub(super) const LARGE_BYTES: u64 = 32 << 20;

/// All files: sizes and hashes, and what graphs refer to.
pub(super) fn files(dir: &Path, manifest: &Manifest) -> Result<()> {
    small_files(dir, manifest)?;
    let large = manifest.files.par_iter().filter(|file| file.bytes > LARGE_BYTES);
    large.try_for_each(|file| hashed(dir, file))
}

/// Names and sizes of all files, hashes of those that are not large, and what graphs refer to: gives the files beside each
/// graph, by part.
pub(super) fn small_files(dir: &Path, manifest: &Manifest) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut names = BTreeSet::new();
    for file in &manifest.files {
        plain_name(dir, &file.name)?;
        if !names.insert(file.name.as_str()) {
            return Err(Error::new(Code::BUNDLE_MANIFEST, format!("the file `{}` is listed twice", file.name)).at(dir));
        }
    }
    let needed = manifest.parts.values().flat_map(PartRecord::graphs).chain([&manifest.tokenizer.file]);
    for file in needed {
        if !names.contains(file.as_str()) {
            return Err(Error::new(Code::BUNDLE_MANIFEST, format!("the file `{file}` is not listed")).at(dir));
        }
    }
    manifest.files.iter().try_for_each(|file| sized(dir, file))?;
    manifest.files.par_iter().filter(|file| file.bytes <= LARGE_BYTES).try_for_each(|file| hashed(dir, file))?;
    let mut beside = BTreeMap::new();
    for (name, part) in &manifest.parts {
        let mut all = BTreeSet::new();
        for path in part.graphs().map(|file| dir.join(file)) {
            let external = crate::onnx::external_files(&path)?;
            for file in &external {
                plain_name(&path, file)?;
                if !names.contains(file.as_str()) {
                    let message = format!("its weights lie in `{file}`, which the bundle does not list");
                    return Err(Error::new(Code::BUNDLE_PATH, message).at(path));
                }
            }
            all.extend(external);
        }
        beside.insert(name.clone(), all);
    }
    Ok(beside)
}

/// A name inside the folder: one component, no way up or elsewhere.
fn plain_name(place: &Path, name: &str) -> Result<()> {
    let mut components = Path::new(name).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    if plain && !name.contains(['/', '\\', '\0']) {
        return Ok(());
    }
    Err(Error::new(Code::BUNDLE_PATH, format!("`{name}` is not a plain file name inside the bundle")).at(place))
}

/// A regular file of the recorded size.
fn sized(dir: &Path, record: &FileRecord) -> Result<()> {
    let path = dir.join(&record.name);
    let wrong = |message: String| Error::new(Code::BUNDLE_CHECKSUM, message).at(&path);
    let meta =
        std::fs::symlink_metadata(&path).map_err(|e| wrong(format!("the bundle's file cannot be found: {e}")))?;
    if !meta.is_file() {
        return Err(Error::new(Code::BUNDLE_PATH, "the bundle's file is a link or a folder").at(&path));
    }
    if meta.len() != record.bytes {
        return Err(wrong(format!("the file holds {} bytes, expected {}: export again", meta.len(), record.bytes)));
    }
    Ok(())
}

/// A file with the recorded hash.
pub(super) fn hashed(dir: &Path, record: &FileRecord) -> Result<()> {
    let path = dir.join(&record.name);
    let found = sha256_of(&path)?;
    if found != record.sha256 {
        let message = format!("the file was changed: SHA-256 {found}, expected {}; export again", record.sha256);
        return Err(Error::new(Code::BUNDLE_CHECKSUM, message).at(&path));
    }
    Ok(())
}

/// SHA-256 of a file, in lower-case hexadecimal; reads a megabyte at a time.
///
/// # Errors
/// `io` when the file cannot be read.
pub fn sha256_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|e| Error::io(path, "cannot open the file", e))?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(|e| Error::io(path, "cannot read the file", e))? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}
