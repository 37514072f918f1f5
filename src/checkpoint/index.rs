//! Sharded checkpoints: `*.index.json`, whose `weight_map` says which file holds which tensor.
//!
//! Flows in: the path of the index. Flows out: the union of the shards' tensors (safetensors or torch files).
//!
//! # Errors
//! `checkpoint.corrupt` for an index without a usable `weight_map`, a shard outside the folder, or a name that its
//! shard does not hold; `checkpoint.not_found` names a missing shard and how many are missing.
//!
//! # Safety
//! No `unsafe`. A shard is named by a path inside the folder: an index cannot reach outside it.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use super::mapping::Mapping;
use super::names::shown;
use super::{Contents, Format, Opened, Skipped, SourceFile, detect};
use crate::error::{Code, Error, Result};
use crate::tensor::number::to_u64;

/// Longest index that is read. That of a 7B model has 30 kB.
const MAX_BYTES: u64 = 64 << 20;

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The weight map at `path`, or `None` when the JSON there is no index.
pub(super) fn weight_map(path: &Path) -> Result<Option<BTreeMap<String, String>>> {
    let map = Mapping::open(path)?;
    if to_u64(map.bytes().len()) > MAX_BYTES {
        return Ok(None);
    }
    Ok(serde_json::from_slice::<Index>(map.bytes()).ok().map(|index| index.weight_map))
}

/// Reads all shards of the index at `path`.
pub(super) fn read(path: &Path) -> Result<Opened> {
    let mut files = vec![SourceFile::at(path)?];
    let weights = weight_map(path)?.ok_or_else(|| {
        let message = "is a JSON file without a weight_map, expected a checkpoint or its index";
        Error::new(Code::CHECKPOINT_FORMAT, message).at(path)
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, shard) in &weights {
        confined(shard).map_err(|e| e.at(path))?;
        shards.entry(shard).or_default().push(name);
    }
    let missing: Vec<&str> = shards.keys().copied().filter(|s| !folder.join(s).exists()).collect();
    if !missing.is_empty() {
        let (n, of, names) = (missing.len(), shards.len(), super::listed(&missing));
        let dangling = missing.iter().find(|s| folder.join(s).is_symlink());
        let link = dangling.map_or_else(String::new, |s| format!(" ({s} is a link that leads nowhere)"));
        let message = format!("{n} of its {of} shards are missing: {names}{link}");
        return Err(Error::new(Code::CHECKPOINT_NOT_FOUND, message).at(path));
    }
    let mut all = Contents::new(Format::Safetensors);
    for (shard, names) in shards {
        let at = folder.join(shard);
        let map = Mapping::open(&at).map_err(|e| e.at(&at))?;
        let part = detect::read(&map).map_err(|e| e.at(&at))?;
        files.push(SourceFile::of(&map));
        merge(&mut all, part, shard, &names).map_err(|e| e.at(path))?;
    }
    if weights.is_empty() {
        return Err(Error::new(Code::CHECKPOINT_CORRUPT, "its weight_map is empty").at(path));
    }
    Ok(Opened { contents: all, files, params: None })
}

/// Takes `names` from `part`; what the index does not know of is listed.
fn merge(all: &mut Contents, mut part: Contents, shard: &str, names: &[&str]) -> Result<()> {
    all.format = part.format;
    for &name in names {
        let tensor = match part.tensors.remove(name) {
            Some(tensor) => tensor,
            None if part.skipped.iter().any(|s| s.name == name) => continue,
            None => {
                let message = format!("says that `{name}` is in {shard}, which does not hold it");
                return Err(Error::new(Code::CHECKPOINT_CORRUPT, message));
            }
        };
        all.tensors.insert(name.to_owned(), tensor);
    }
    all.skipped.append(&mut part.skipped);
    let left = part.tensors.into_keys();
    all.skipped.extend(left.map(|name| Skipped { name, why: format!("in {shard} but not in the index") }));
    Ok(())
}

/// Makes sure that a name is that of a file in the same folder or in a folder below it.
pub(super) fn confined(shard: &str) -> Result<()> {
    let parts: Vec<Component<'_>> = Path::new(shard).components().collect();
    let plain = (1..=8).contains(&parts.len()) && parts.iter().all(|part| matches!(part, Component::Normal(_)));
    // `components` drops what it can do without, such as a `.` in the middle.
    if plain && !shard.contains(['\\', '\0']) && !shard.split('/').any(|part| part.is_empty() || part == ".") {
        return Ok(());
    }
    let shown = shown(shard);
    let message = format!("names the file `{shown}`, expected one in the same folder or below it");
    Err(Error::new(Code::CHECKPOINT_CORRUPT, message))
}
