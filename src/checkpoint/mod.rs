//! Checkpoint files, from whoever wrote them, as names and lazy tensors.
//!
//! Layer 2. Flows in: a file or folder: safetensors (single or sharded), `torch.save` archives (zip, or the format of
//! before 1.6), `torch.export` archives, Meta's `consolidated.NN.pth`, ONNX Runtime's training checkpoints. Flows out:
//! a [`Checkpoint`], which maps names to [`LazyTensor`]s of any shape (row-major, little-endian, in the file's dtype)
//! over memory-mapped files; it also says which files it read and which entries it passed over. [`Requirements`]
//! compares it with what a model wants, and [`write_safetensors`] writes tensors back. A [`TrainingState`] is all of a
//! training checkpoint, read and written.
//!
//! What a file is, its first bytes decide, never its name. Prefixes that wrappers of modules add (`module.`,
//! `_orig_mod.`) are gone from the names; those of models stay, for [`Checkpoint::under`] to pick.
//!
//! # Errors
//! All codes begin with `checkpoint.`, but for `io`. Every error names the file.
//!
//! # Safety
//! Files are untrusted. Pickles are interpreted symbolically against an allow-list, and nothing of theirs is run
//! (see the `pickle` module). Sizes are compared with the file before anything is allocated; memory is proportional to
//! the headers, not to what they claim. `unsafe` is in `mapping` alone.
//!
//! ```
//! use brain_adapter::checkpoint::{Checkpoint, write_safetensors};
//! use brain_adapter::tensor::LazyTensor;
//!
//! let dir = tempfile::tempdir().unwrap();
//! let path = dir.path().join("adapter.safetensors");
//! let scale = LazyTensor::from_f32(&[1], &[2.5]);
//! write_safetensors(&path, [("logit_scale".to_owned(), scale)], &Default::default())?;
//!
//! let checkpoint = Checkpoint::open(&path)?; // any supported layout: its bytes decide
//! assert_eq!(checkpoint.get("logit_scale").unwrap().to_f32()?, [2.5]);
//! # Ok::<(), brain_adapter::Error>(())
//! ```

#![cfg_attr(not(test), deny(clippy::as_conversions))]

mod alias;
mod contents;
mod dcp;
mod dcp_boxes;
mod dcp_names;
mod detect;
mod folder;
mod index;
mod lora;
mod mapping;
mod meta;
mod meta_params;
mod names;
mod ort_training;
mod parametrized;
mod pickle;
mod pt2;
mod quantized;
mod requirements;
mod restore;
mod safetensors;
mod selection;
mod state_dict;
mod strided;
mod torch_archive;
mod torch_legacy;
mod torch_zip;
mod weight_sets;
mod write;
mod zero;
mod zero_lines;
mod zip_records;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

pub use meta_params::MetaParams;
pub use ort_training::{Moments, OptimizerState, Properties, TrainingState};
pub use requirements::{Picked, Requirements};
pub use safetensors::safetensors_offsets;
pub use selection::Selection;
pub use write::{has_maker, maker_metadata, write_safetensors};

pub(crate) use folder::looks_like_checkpoint;
#[cfg(feature = "runtime")]
pub(crate) use folder::snapshot;
pub(crate) use names::listed;

use contents::{Contents, Opened};
use mapping::Mapping;

use crate::error::{Code, Error, Result, Warning};
use crate::files::Identity;
use crate::tensor::LazyTensor;
use crate::tensor::number::to_u64;

/// A checkpoint format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// safetensors.
    Safetensors,
    /// `torch.save` since PyTorch 1.6: a zip archive.
    TorchZip,
    /// `torch.save` before PyTorch 1.6: pickles one after the other.
    TorchLegacy,
    /// `torch.export.save`: a `.pt2` archive.
    TorchExport,
    /// torch.distributed.checkpoint: a folder of `.metadata` and `*.distcp`.
    Distributed,
    /// DeepSpeed's ZeRO: a folder of `*_model_states.pt` and `*_optim_states.pt`.
    Zero,
    /// Meta's LLaMA layout: `consolidated.NN.pth` and `params.json`.
    Meta,
    /// ONNX Runtime's training checkpoint; see [`TrainingState`].
    OrtTraining,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::TorchZip => "PyTorch archive",
            Self::TorchLegacy => "PyTorch file of before 1.6",
            Self::TorchExport => "PyTorch export archive",
            Self::Distributed => "PyTorch distributed checkpoint",
            Self::Zero => "DeepSpeed ZeRO checkpoint",
            Self::Meta => "Meta LLaMA slices",
            Self::OrtTraining => "ONNX Runtime training checkpoint",
        })
    }
}

/// A file that a checkpoint was read from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// What the file system reported of it when it was opened.
    identity: Option<Identity>,
}

impl SourceFile {
    fn of(map: &Mapping) -> Self {
        Self { path: map.path().to_owned(), size: to_u64(map.bytes().len()), identity: map.identity().cloned() }
    }

    /// The file at `path`, to be watched as those of a checkpoint are.
    ///
    /// # Errors
    /// `checkpoint.not_found`, `io`.
    pub fn at(path: &Path) -> Result<Self> {
        let identity = Identity::at(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::new(Code::CHECKPOINT_NOT_FOUND, "no such file").at(path),
            _ => Error::io(path, "cannot open the file", e),
        })?;
        Ok(Self { path: path.to_owned(), size: identity.bytes, identity: Some(identity) })
    }

    /// Makes sure that the file was not written to and not replaced since it was opened: what was read of it is then
    /// one state of it.
    ///
    /// # Errors
    /// `checkpoint.changed`.
    pub fn unchanged(&self) -> Result<()> {
        self.identity.as_ref().map_or(Ok(()), |identity| mapping::unchanged(&self.path, identity))
    }
}

/// An entry of a checkpoint that is not among its tensors.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// Why it was passed over, in a few words.
    pub why: String,
}

/// An opened checkpoint: names and lazy tensors.
#[derive(Clone)]
pub struct Checkpoint {
    path: PathBuf,
    chosen: Option<String>,
    files: Vec<SourceFile>,
    params: Option<MetaParams>,
    contents: Contents,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {} tensors)", self.path.display(), self.contents.format, self.len())
    }
}

impl Checkpoint {
    /// Opens the checkpoint at `path`: a file, or a folder that holds one.
    ///
    /// # Errors
    /// `checkpoint.not_found`, `.format` (not a checkpoint, or a folder with several), `.truncated`, `.corrupt`,
    /// `.unsafe-pickle`, `.quantized`, `.lora`; `io`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &Selection::default())
    }

    /// Opens the checkpoint at `path`, of whose tensors `selection` means some: those of one state dict among several,
    /// and of these the ones whose names begin with a prefix, which is taken off.
    ///
    /// # Errors
    /// As [`Self::open`]; `checkpoint.format` and `.tensors` when there is no such state dict or prefix, with what
    /// there is.
    pub fn open_with(path: impl AsRef<Path>, selection: &Selection) -> Result<Self> {
        let (path, key) = (folder::snapshot(path.as_ref())?, selection.key.as_deref());
        let (opened, chosen) = if path.is_dir() {
            let (opened, chosen) = folder::open(&path, key)?;
            (opened, Some(chosen))
        } else {
            (open_file_at(&path, key)?, None)
        };
        let folder = if chosen.is_some() { Some(path.as_path()) } else { path.parent() };
        let found = Self::finish(&path, opened, chosen, folder)?;
        selection.prefix.as_ref().map_or(Ok(found.clone()), |prefix| selection::with_prefix(&found, prefix))
    }

    /// Reads a single-file checkpoint from memory; `name` stands in for its path.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_bytes(bytes: Vec<u8>, name: &str) -> Result<Self> {
        let path = Path::new(name);
        if bytes.is_empty() {
            return Err(Error::new(Code::CHECKPOINT_TRUNCATED, "is empty (0 bytes)").at(path));
        }
        let contents = detect::read(&Mapping::owned(bytes, path)).map_err(|e| e.at(path))?;
        Self::finish(path, Opened { contents, files: Vec::new(), params: None }, None, None)
    }

    /// Reads a checkpoint of several files from memory (DCP or ZeRO); `name` stands in for its folder.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_files(files: BTreeMap<String, Vec<u8>>, name: &str) -> Result<Self> {
        let folder = Path::new(name);
        let names: Vec<String> = files.keys().cloned().collect();
        let mapped = |(name, bytes): (String, Vec<u8>)| (name.clone(), Mapping::owned(bytes, &folder.join(name)));
        let maps: BTreeMap<String, _> = files.into_iter().map(mapped).collect();
        let open = |name: &str| {
            let missing = || Error::new(Code::CHECKPOINT_NOT_FOUND, "there is no such file").at(folder.join(name));
            maps.get(name).cloned().ok_or_else(missing)
        };
        let opened = if maps.contains_key(dcp::METADATA) {
            dcp::read(folder, &open, None)?
        } else {
            zero::read(folder, &names, &open)?
        };
        Self::finish(folder, Opened { files: Vec::new(), ..opened }, None, None)
    }

    fn finish(path: &Path, opened: Opened, chosen: Option<String>, folder: Option<&Path>) -> Result<Self> {
        // Its tensors are converted on all cores.
        crate::threads::start_pool(None)?;
        let Opened { contents, mut files, params } = opened;
        let contents = contents.stripped().and_then(parametrized::folded).map_err(|e| e.at(path))?;
        let contents = restore::weights(contents, folder, &mut files).map_err(|e| e.at(path))?;
        Ok(Self { path: path.to_owned(), chosen, files, params, contents })
    }

    /// The path that was opened; of a repository in the Hugging Face cache, its snapshot.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which of a folder's files was taken, when a folder was opened.
    pub fn chosen(&self) -> Option<&str> {
        self.chosen.as_deref()
    }

    /// The format, detected from the content.
    pub fn format(&self) -> Format {
        self.contents.format
    }

    /// The files that were read: index and parameters first, then the weights in order.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// Makes sure that no file was written to or replaced since it was opened. Tensors are read from the files when
    /// they are used: whoever made something of them asks this at the end, before it counts.
    ///
    /// # Errors
    /// `checkpoint.changed`, naming the file.
    pub fn unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(SourceFile::unchanged)
    }

    /// Meta's `params.json`, when the checkpoint has that layout.
    pub fn meta_params(&self) -> Option<&MetaParams> {
        self.params.as_ref()
    }

    /// The `__metadata__` of a safetensors file; empty for others.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.contents.metadata
    }

    /// Entries that are not among the tensors: other values, other dtypes, other prefixes.
    pub fn skipped(&self) -> &[Skipped] {
        &self.contents.skipped
    }

    /// What to know of the checkpoint: which of several sets of weights it is, what was merged or made floats.
    pub fn warnings(&self) -> &[Warning] {
        &self.contents.warnings
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.contents.tensors.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.contents.tensors.is_empty()
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&LazyTensor> {
        self.contents.tensors.get(name)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Names and tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &LazyTensor)> {
        self.contents.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.contents.tensors.keys().map(String::as_str)
    }

    /// The first of `prefixes` under which there is a tensor `key`; the empty prefix is allowed.
    pub fn find_prefix<'a>(&self, prefixes: &[&'a str], key: &str) -> Option<&'a str> {
        prefixes.iter().copied().find(|prefix| self.contains(&format!("{prefix}{key}")))
    }

    /// A view of the tensors whose names begin with `prefix`, named without it. The others are listed as skipped, so
    /// that nothing is lost silently; the files stay mapped once, however many views there are.
    #[must_use]
    pub fn under(&self, prefix: &str) -> Self {
        let mut view = self.clone();
        let (tensors, skipped) = (&mut view.contents.tensors, &mut view.contents.skipped);
        tensors.clear();
        for entry in skipped.iter_mut() {
            if let Some(rest) = entry.name.strip_prefix(prefix).filter(|rest| !rest.is_empty()) {
                entry.name = rest.to_owned();
            }
        }
        for (name, tensor) in &self.contents.tensors {
            match name.strip_prefix(prefix) {
                Some(rest) if !rest.is_empty() => drop(tensors.insert(rest.to_owned(), tensor.clone())),
                _ => skipped.push(Skipped { name: name.clone(), why: format!("outside `{prefix}`") }),
            }
        }
        view
    }

    /// A view of the tensors whose names `keep` accepts; the others are listed as skipped.
    #[must_use]
    pub fn subset(&self, keep: impl Fn(&str) -> bool) -> Self {
        let mut view = self.clone();
        let left_out = |name: &&String| !keep(name);
        for name in self.contents.tensors.keys().filter(left_out) {
            view.contents.tensors.remove(name);
            view.contents.skipped.push(Skipped { name: name.clone(), why: "left out".into() });
        }
        view
    }
}

/// Opens a single file: a checkpoint, or the index of a sharded one.
fn open_file_at(path: &Path, key: Option<&str>) -> Result<Opened> {
    folder::refuse_part(path)?;
    let map = Mapping::open(path)?;
    if detect::is_json(map.bytes()) {
        let opened = index::read(path)?;
        let contents = opened.contents.without_key(key).map_err(|e| e.at(path))?;
        return Ok(Opened { contents, ..opened });
    }
    let contents = detect::read_at(&map, key).map_err(|e| e.at(path))?;
    Ok(Opened { contents, files: vec![SourceFile::of(&map)], params: None })
}
