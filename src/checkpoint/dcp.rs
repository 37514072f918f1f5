//! torch.distributed.checkpoint (DCP): a folder of `.metadata` and `__RANK_N.distcp` files.
//!
//! `.metadata` is a pickle of `Metadata`: for each name the whole tensor's type and shape and the chunks that processes
//! held of it (`state_dict_metadata`), where each chunk lies (`storage_data`: file, offset, length), and which path of
//! keys a flattened name came from (`planner_data`). The bytes of a chunk are an archive of `torch.save` that holds one
//! tensor (torch/distributed/checkpoint/{metadata,filesystem}.py).
//!
//! Flows in: the metadata and a way to open the files that it names. Flows out: the state dict's tensors, each the view
//! of one chunk or put together of several (see `dcp_boxes`).
//!
//! # Errors
//! `checkpoint.not_found` for files that are gone; `checkpoint.truncated` for those that end too early;
//! `checkpoint.corrupt` for metadata that contradicts itself or a file; `checkpoint.format` for chunks that were
//! transformed; those of the pickle, with PyTorch's own converter as the way out.
//!
//! # Safety
//! No `unsafe`. The pickle is read symbolically, its classes are on a list of their own. A file is named by a path
//! inside the folder. Chunks in use take no more bytes than the files have, and lists that are shared in the pickle are
//! not walked more often than the pickle has objects.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::contents::{Contents, Opened};
use super::dcp_boxes::{Boxed, assemble};
use super::dcp_names::{Described, described, nested};
use super::index::confined;
use super::mapping::Mapping;
use super::names::shown;
use super::pickle::{self, Dialect, Element, Node, Pickle, Ref};
use super::torch_archive::Archive;
use super::{Format, Skipped, SourceFile, listed, state_dict};
use crate::error::{Code, Error, Result};
use crate::tensor::{DType, LazyTensor, show};

/// The name of the metadata.
pub(super) const METADATA: &str = ".metadata";
/// How the files end that hold the chunks.
pub(super) const ENDING: &str = ".distcp";

/// Opens a file of the folder by its name.
pub(super) type Open<'a> = dyn Fn(&str) -> Result<Arc<Mapping>> + 'a;

/// The command that makes one file of such a folder.
pub(super) fn converter(folder: &Path) -> String {
    let folder = folder.display();
    format!("python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} OUT.pt")
}

/// Reads the checkpoint of `folder`, whose files `open` opens; of several state dicts in it, that of `key`.
pub(super) fn read(folder: &Path, open: &Open<'_>, key: Option<&str>) -> Result<Opened> {
    let metadata = open(METADATA)?;
    let about = read_metadata(&metadata).map_err(|e| with_converter(e, folder).at(metadata.path()))?;
    let found = nested(&about.pickle, about.tensors, about.paths).and_then(|names| {
        let found = state_dict::find(&names, key)?;
        Ok((names, found))
    });
    let (names, found) = found.map_err(|e| e.at(metadata.path()))?;
    let mut contents = Contents::new(Format::Distributed);
    contents.skipped.extend(found.skipped);
    contents.warnings.extend(found.warnings);
    // The state dict's name, and the one that the metadata has.
    let wanted: Vec<(String, &str)> = found
        .tensors
        .into_iter()
        .map(|(name, node)| (name, names.text(node.storage.key).unwrap_or_default()))
        .collect();
    let mut reader = about.reader(folder, open).map_err(|e| e.at(metadata.path()))?;
    let shards = reader.open_files(&wanted)?;
    for (name, full) in wanted {
        let tensor = reader.tensor(full).map_err(|e| {
            let shown = shown(full);
            let error = Error::new(e.code(), format!("tensor `{shown}`: {}", e.message()));
            with_converter(error, folder).at(e.path().unwrap_or(metadata.path()))
        })?;
        match tensor {
            Ok(tensor) => drop(contents.tensors.insert(name, tensor)),
            Err(dtype) => contents.skipped.push(Skipped { name, why: format!("a tensor of type {dtype}") }),
        }
    }
    let mut files = vec![SourceFile::of(&metadata)];
    files.extend(shards.iter().map(|map| SourceFile::of(map)));
    Ok(Opened { contents, files, params: None })
}

/// The error with PyTorch's converter as the way out, where what is refused is no damage.
fn with_converter(error: Error, folder: &Path) -> Error {
    if ![Code::CHECKPOINT_UNSAFE_PICKLE, Code::CHECKPOINT_FORMAT].contains(&error.code()) {
        return error;
    }
    let what = error.message().split("; nothing was run").next().unwrap_or_default();
    let message =
        format!("{what}; it is part of a distributed checkpoint: if you trust it, convert it: {}", converter(folder));
    Error::new(error.code(), message)
}

/// The parsed metadata.
struct Metadata {
    pickle: Pickle,
    /// Entries of `state_dict_metadata`, `planner_data` and `storage_data`.
    tensors: Ref,
    paths: Option<Ref>,
    storage: Ref,
}

fn read_metadata(map: &Arc<Mapping>) -> Result<Metadata> {
    let pickle = pickle::read_as(Dialect::Distributed, map.bytes())?;
    let dict = |name: &str| {
        let at = pickle.attribute(pickle.root, name)?;
        matches!(pickle.get(at), Node::Dict(_)).then_some(at)
    };
    let (Some(tensors), Some(storage)) = (dict("state_dict_metadata"), dict("storage_data")) else {
        return Err(corrupt("is no metadata of a distributed checkpoint: tensors or their places are missing"));
    };
    let paths = dict("planner_data");
    Ok(Metadata { tensors, paths, storage, pickle })
}

/// A chunk's offsets and sizes on each axis, and where it lies.
type Chunk<'a> = (Vec<usize>, Vec<usize>, Place<'a>);

/// Where a chunk lies.
#[derive(Clone, Copy)]
struct Place<'a> {
    file: &'a str,
    offset: usize,
    length: usize,
    transformed: bool,
}

impl Metadata {
    /// Tensors by name and chunks by name and offsets.
    fn reader<'a>(&'a self, folder: &'a Path, open: &'a Open<'a>) -> Result<Reader<'a>> {
        let pickle = &self.pickle;
        let entries = |at: Ref| if let Node::Dict(entries) = pickle.get(at) { entries.as_slice() } else { &[] };
        let tensors = entries(self.tensors).iter().filter_map(|&(name, at)| Some((pickle.text(name)?, at))).collect();
        let mut places = HashMap::new();
        for &(index, info) in entries(self.storage) {
            let name = pickle.attribute(index, "fqn").and_then(|at| pickle.text(at));
            let name = name.ok_or_else(|| corrupt("a chunk's index has no name"))?;
            let offsets = pickle.attribute(index, "offset").and_then(|at| pickle.sizes(at)).unwrap_or_default();
            let number = |name: &str| match pickle.attribute(info, name).map(|at| pickle.get(at)) {
                Some(&Node::Int(n)) => usize::try_from(n).ok(),
                _ => None,
            };
            let file = pickle.attribute(info, "relative_path").and_then(|at| pickle.text(at));
            let (Some(file), Some(offset), Some(length)) = (file, number("offset"), number("length")) else {
                return Err(corrupt("a chunk's place is not a file, an offset and a length"));
            };
            let transforms = pickle.attribute(info, "transform_descriptors").map(|at| pickle.get(at));
            let transformed = matches!(transforms, Some(Node::List(t) | Node::Tuple(t)) if !t.is_empty());
            places.insert((name, offsets), Place { file, offset, length, transformed });
        }
        let left = pickle.nodes().len();
        Ok(Reader { pickle, tensors, places, folder, open, maps: BTreeMap::new(), left, bytes: 0, held: 0 })
    }
}

struct Reader<'a> {
    pickle: &'a Pickle,
    tensors: HashMap<&'a str, Ref>,
    places: HashMap<(&'a str, Vec<usize>), Place<'a>>,
    folder: &'a Path,
    open: &'a Open<'a>,
    maps: BTreeMap<&'a str, Arc<Mapping>>,
    /// Chunks that may still be looked at: as many as the pickle has objects.
    left: usize,
    /// Bytes that the chunks so far take up in their files.
    bytes: usize,
    /// Bytes of all files.
    held: usize,
}

impl<'a> Reader<'a> {
    fn described(&self, name: &str) -> Result<Described<'a>> {
        let at = self.tensors.get(name).copied().ok_or_else(|| corrupt("is not in the metadata"))?;
        described(self.pickle, at)?.ok_or_else(|| corrupt("is no tensor in the metadata"))
    }

    /// The offsets, sizes and places of a tensor's chunks.
    fn chunks(&mut self, name: &'a str, tensor: &Described<'a>) -> Result<Vec<Chunk<'a>>> {
        self.left = self.left.checked_sub(tensor.chunks.len()).ok_or_else(|| corrupt("names its chunks too often"))?;
        let axes = |chunk: Ref, name: &str| {
            let sizes = self.pickle.attribute(chunk, name).and_then(|at| self.pickle.sizes(at));
            sizes.filter(|sizes| sizes.len() == tensor.shape.len())
        };
        let mut chunks = Vec::new();
        for &chunk in tensor.chunks {
            let (Some(offsets), Some(sizes)) = (axes(chunk, "offsets"), axes(chunk, "sizes")) else {
                return Err(corrupt("a chunk's offsets and sizes are not as many as the tensor has axes"));
            };
            // Some ranks hold nothing of a tensor with fewer rows than ranks; of those no bytes may be stored.
            if sizes.contains(&0) {
                continue;
            }
            let place = self.places.get(&(name, offsets.clone())).copied();
            let place = place.or_else(|| self.places.get(&(name, Vec::new())).copied());
            let place = place.ok_or_else(|| corrupt(format!("its chunk at {} lies nowhere", show(&offsets))))?;
            chunks.push((offsets, sizes, place));
        }
        Ok(chunks)
    }

    /// Opens all files that the tensors lie in.
    fn open_files(&mut self, wanted: &[(String, &str)]) -> Result<Vec<Arc<Mapping>>> {
        let mut files = BTreeSet::new();
        let folder = self.folder;
        for (_, name) in wanted {
            let at = |e: Error| e.at(folder.join(METADATA));
            let Some((&name, _)) = self.tensors.get_key_value(*name) else { continue };
            let tensor = self.described(name).map_err(at)?;
            for (_, _, place) in self.chunks(name, &tensor).map_err(at)? {
                if files.insert(place.file) {
                    confined(place.file).map_err(at)?;
                }
            }
        }
        // Each list was walked once; it may be once more.
        self.left = self.pickle.nodes().len();
        let mut missing = Vec::new();
        for &file in &files {
            match (self.open)(file) {
                Ok(map) => drop(self.maps.insert(file, map)),
                Err(e) if e.code() == Code::CHECKPOINT_NOT_FOUND => missing.push(file),
                Err(e) => return Err(e),
            }
        }
        self.held = self.maps.values().fold(0usize, |sum, map| sum.saturating_add(map.bytes().len()));
        if missing.is_empty() {
            return Ok(self.maps.values().cloned().collect());
        }
        let (n, of, names) = (missing.len(), files.len(), listed(&missing));
        let message = format!(
            "{n} of the {of} files of this distributed checkpoint are missing: {names}; copy those of all processes \
             into one folder"
        );
        Err(Error::new(Code::CHECKPOINT_NOT_FOUND, message).at(self.folder))
    }

    /// The whole tensor; the inner error is the name of a dtype that is not read.
    fn tensor(&mut self, name: &str) -> Result<Result<LazyTensor, &'static str>> {
        let Some((&name, _)) = self.tensors.get_key_value(name) else { return Err(corrupt("is not in the metadata")) };
        let tensor = self.described(name)?;
        let dtype = match tensor.element {
            Element::Known(dtype) => dtype,
            Element::Other(name, _) => return Ok(Err(name)),
        };
        let mut boxes = Vec::new();
        for (offsets, sizes, place) in self.chunks(name, &tensor)? {
            let map = self.maps.get(place.file).cloned().ok_or_else(|| corrupt("its file was not opened"))?;
            let tensor = self.chunk(&map, place, dtype, &sizes).map_err(|e| e.at(map.path()))?;
            boxes.push(Boxed { offsets, tensor });
        }
        assemble(dtype, &tensor.shape, boxes).map(Ok)
    }

    fn chunk(&mut self, map: &Arc<Mapping>, place: Place<'_>, dtype: DType, sizes: &[usize]) -> Result<LazyTensor> {
        if place.transformed {
            let message = "a chunk was compressed or encrypted when it was saved, which is not read";
            return Err(Error::new(Code::CHECKPOINT_FORMAT, message));
        }
        let (have, from) = (map.bytes().len(), place.offset);
        let end = from.checked_add(place.length).filter(|&end| end <= have).ok_or_else(|| {
            let length = place.length;
            let message =
                format!("has {have} bytes, its metadata expects a chunk of {length} at {from}: copy it again");
            Error::new(Code::CHECKPOINT_TRUNCATED, message)
        })?;
        self.bytes = self.bytes.saturating_add(place.length);
        if self.bytes > self.held {
            return Err(corrupt("its chunks lie on each other: they claim more bytes than the files have"));
        }
        let archive = Archive::open(map, from..end, Dialect::StateDict)?;
        let tensor =
            archive.tensor(archive.pickle.root)?.map_err(|name| corrupt(format!("a chunk is of type {name}")))?;
        // What is saved is never expanded (stride 0): the bytes of a chunk are in its archive.
        if tensor.shape() != sizes || tensor.dtype() != dtype || tensor.byte_len() > place.length {
            let expected = format!("{dtype}{}", show(sizes));
            return Err(corrupt(format!("a chunk at byte {from} holds {tensor:?}, its metadata expects {expected}")));
        }
        Ok(tensor)
    }
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(Code::CHECKPOINT_CORRUPT, message)
}
