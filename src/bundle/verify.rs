//! Reads `bundle.json` and checks a bundle's files against it, before anything uses them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::manifest::{MAX_VALUES, Manifest};
use super::names;
use super::open_file::OpenFile;
use super::records::PartRecord;
use crate::error::{Code, Error, Result};
use crate::files::open_regular;
use crate::model::PartMap;
use crate::tensor::hex;
use crate::tensor::number::to_u64;
use crate::threads;

/// Maximum size of `bundle.json`.
const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// Most files of a bundle: each is open while it is verified. An export writes at most 20.
const MAX_FILES: usize = 256;

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
    let failed = |e| Error::io(path, "cannot read the file", e);
    let length = file.metadata().map_err(failed)?.len();
    let mut bytes = Vec::new();
    if length <= MAX_MANIFEST_BYTES {
        file.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    let length = length.max(to_u64(bytes.len()));
    if length > MAX_MANIFEST_BYTES {
        return Err(invalid(format!("the manifest has {length} bytes, expected at most {MAX_MANIFEST_BYTES}")));
    }
    Ok(bytes)
}

/// The files that a manifest lists, in any format version: an export may replace such a bundle. None if the file is not
/// a bundle's manifest, or one that lists what cannot be a file of a bundle.
pub(super) fn listed_files(path: &Path) -> Option<Vec<String>> {
    let json = crate::json::parse(&manifest_bytes(path).ok()?, MAX_VALUES).ok()?;
    json.get("format")?.as_u64()?;
    let plain = |name: &&str| names::check(name).is_ok();
    let name = |file: &serde_json::Value| file.get("name")?.as_str().filter(plain).map(str::to_owned);
    json.get("files")?.as_array()?.iter().map(name).collect()
}

/// Larger files are weights, which [`super::Bundle::open_quickly`] leaves to be hashed later.
pub(super) const LARGE_BYTES: u64 = 32 << 20;

/// Checks the hashes of those files that [`small_files`] left.
pub(super) fn all_files(dir: &Path, manifest: &Manifest, open: &OpenFiles) -> Result<()> {
    manifest.files.par_iter().filter(|record| record.bytes > LARGE_BYTES).try_for_each(|record| {
        match open.get(&record.name) {
            Some(file) => file.verify(),
            None => OpenFile::open(dir, record)?.verify(),
        }
    })
}

/// The open files of a bundle, by name.
pub(super) type OpenFiles = BTreeMap<String, Arc<OpenFile>>;

/// Names of the external data files of each part's graphs.
pub(super) type DataFiles = PartMap<BTreeSet<String>>;

/// Checks the names and sizes of all files, the hashes of those that are not large, and what graphs refer to. Returns
/// the files that graphs and tokenizer consist of, open.
pub(super) fn small_files(dir: &Path, manifest: &Manifest) -> Result<(DataFiles, OpenFiles)> {
    if manifest.files.len() > MAX_FILES {
        let message = format!("{} files are listed, expected at most {MAX_FILES}", manifest.files.len());
        return Err(Error::new(Code::BUNDLE_MANIFEST, message).at(dir));
    }
    let listed: BTreeSet<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
    let graphs_and_tokenizer = manifest.parts.values().flat_map(PartRecord::graphs).chain([&manifest.tokenizer.file]);
    for file in graphs_and_tokenizer {
        if !listed.contains(file.as_str()) {
            return Err(Error::new(Code::BUNDLE_MANIFEST, format!("the file `{file}` is not listed")).at(dir));
        }
    }
    let open = manifest.files.iter().map(|file| Ok((file.name.clone(), Arc::new(OpenFile::open(dir, file)?))));
    let mut files = open.collect::<Result<OpenFiles>>()?;
    threads::start_pool(None)?;
    files.par_iter().filter(|(_, file)| file.record().bytes <= LARGE_BYTES).try_for_each(|(_, file)| file.verify())?;
    let mut data_files = BTreeMap::new();
    for (name, part) in &manifest.parts {
        let mut all = BTreeSet::new();
        for file in part.graphs() {
            let path = names::join(dir, file)?;
            let graph = graph_of(&files, &path)?;
            let check = |file: &str| {
                names::check(file)?;
                if !listed.contains(file) {
                    let message = format!("the graph's weights lie in `{file}`, which the bundle does not list");
                    return Err(Error::new(Code::BUNDLE_PATH, message));
                }
                Ok(())
            };
            let external = crate::onnx::bundle_graph_in(&graph, check).map_err(|e| e.at(&path))?;
            all.extend(external);
        }
        data_files.insert(name.as_str(), all);
    }
    let data_files = PartMap::from_fn(|part| data_files.remove(part.as_str()).unwrap_or_default());
    let graphs = manifest.parts.values().flat_map(PartRecord::graphs).chain([&manifest.tokenizer.file]);
    let used: BTreeSet<&String> = graphs.chain(data_files.values().flatten()).collect();
    files.retain(|name, _| used.contains(name));
    Ok((data_files, files))
}

/// The bytes of a graph, as they were hashed.
fn graph_of(files: &OpenFiles, path: &Path) -> Result<Vec<u8>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let file = files.get(name.as_ref()).ok_or_else(|| Error::internal(format!("the graph `{name}` is not open")))?;
    file.read_graph()
}
