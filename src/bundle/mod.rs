//! A bundle: the folder of ONNX graphs, tokenizer and `bundle.json` that `ba-export` writes and `ba-infer` runs.
//!
//! Layer 4. [`Staging`] writes one next to its place and installs it atomically; [`Bundle::open`] checks every file's
//! size and SHA-256, and that no graph refers to a file outside the folder, before any other code reads them.
//! [`Versions`] stores what a bundle was before it was changed.
//!
//! ```no_run
//! use brain_adapter::bundle::Bundle;
//! use brain_adapter::model::Part;
//!
//! let bundle = Bundle::open("onnx".as_ref())?;
//! let text = bundle.manifest.part(Part::Text);
//! println!("{}: {} weights in {}", text.file, text.parameters, text.precision);
//! # Ok::<(), brain_adapter::Error>(())
//! ```

mod file_hash;
mod install;
mod manifest;
mod names;
mod open_file;
mod providers;
mod quantization;
mod records;
mod target;
mod temperature;
#[cfg(feature = "runtime")]
mod verified_cache;
mod verify;
mod versions;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use file_hash::hash_file;
pub use file_hash::sha256_of;
#[cfg(feature = "runtime")]
pub(crate) use install::Staged;
pub use install::Staging;
pub use manifest::{FORMAT, INTENDED_USE, MANIFEST, Manifest};
pub(crate) use open_file::OpenFile;
#[cfg(feature = "runtime")]
pub(crate) use open_file::unchanged_while;
pub use quantization::{BlockRecord, Calibration, FirstTry, LayerRecord, Quantization};
pub use records::{
    FileRecord, Parity, PartRecord, Precision, Preprocessing, SourceRecord, TokenizerRecord, Tool, VersionRecord,
};
pub use target::Target;
pub use temperature::Temperature;
#[cfg(feature = "runtime")]
pub(crate) use verified_cache::{VerifiedCache, parse as parse_verified};
pub use versions::{Version, Versions, set_temperature};

use crate::error::{Code, Error, Result};
use crate::model::{Part, PartMap};

/// A bundle whose files are those that `bundle.json` records.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The folder.
    pub dir: PathBuf,
    /// Content of `bundle.json`.
    pub manifest: Manifest,
    /// SHA-256 of `bundle.json`, which records the hash of every other file: the identity of the bundle.
    pub sha256: String,
    /// The same without the temperature ([`Manifest::model_sha256`]): the key of caches of features and weights.
    pub model_sha256: String,
    /// Names of the external data files of each part's graphs, which hold its large weights.
    data_files: PartMap<BTreeSet<String>>,
    /// The files of graphs and tokenizer, held open since before they were verified.
    files: BTreeMap<String, Arc<OpenFile>>,
}

impl Bundle {
    /// Opens the bundle in `dir` and verifies all of it.
    ///
    /// # Errors
    /// `bundle.not_found`, `bundle.manifest`, `bundle.path`, `bundle.checksum`, `graph.unknown_op` or `onnx.invalid`,
    /// naming the file.
    pub fn open(dir: &Path) -> Result<Self> {
        let bundle = Self::open_quickly(dir)?;
        verify::all_files(dir, &bundle.manifest, &bundle.files)?;
        Ok(bundle)
    }

    /// Opens the bundle in `dir` and verifies everything except the hashes of large files, which only hold weights:
    /// these must be verified ([`Self::large_files`], [`Self::verify`]) before any result that was computed with them
    /// is returned.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_quickly(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        if !path.is_file() {
            return Err(Error::new(Code::BUNDLE_NOT_FOUND, no_bundle()).at(dir));
        }
        let (manifest, sha256) = verify::read_manifest(&path)?;
        let (data_files, files) = verify::small_files(dir, &manifest)?;
        let model_sha256 = manifest.model_sha256().map_err(|e| e.at(&path))?;
        Ok(Self { dir: dir.to_path_buf(), manifest, sha256, model_sha256, data_files, files })
    }

    /// The files of a part whose hash [`Self::open_quickly`] has not verified.
    pub fn large_files(&self, part: Part) -> Vec<&FileRecord> {
        let files = self.data_files[part].iter().chain(self.manifest.part(part).graphs());
        let record = |name: &String| self.manifest.files.iter().find(|file| file.name == *name);
        files.filter_map(record).filter(|file| file.bytes > verify::LARGE_BYTES).collect()
    }

    /// Hashes a file and compares the hash with the recorded one.
    ///
    /// # Errors
    /// `bundle.checksum`, `bundle.changed`, or `io`.
    pub fn verify(&self, file: &FileRecord) -> Result<()> {
        match self.files.get(&file.name) {
            Some(open) => open.verify(),
            None => OpenFile::open(&self.dir, file)?.verify(),
        }
    }

    /// The open files that a part's graphs consist of, in all their forms.
    #[cfg(feature = "runtime")]
    pub(crate) fn open_files(&self, part: Part) -> Vec<Arc<OpenFile>> {
        let names = self.data_files[part].iter().chain(self.manifest.part(part).graphs());
        names.filter_map(|name| self.files.get(name)).cloned().collect()
    }

    /// The open file of this name.
    ///
    /// # Errors
    /// `internal` for one that no graph consists of.
    pub(crate) fn open_file(&self, name: &str) -> Result<&Arc<OpenFile>> {
        self.files.get(name).ok_or_else(|| Error::internal(format!("the bundle's file `{name}` is not open")))
    }

    /// Makes sure that graphs, weights and tokenizer are those that were verified, under their names too.
    ///
    /// # Errors
    /// `bundle.changed`, `bundle.replaced`; `io`.
    pub fn unchanged(&self) -> Result<()> {
        self.still_here()?;
        self.files.values().try_for_each(|file| file.check_name().map(drop))
    }

    /// The bytes of a graph or of the tokenizer, as they were verified.
    ///
    /// # Errors
    /// `bundle.changed`, `onnx.invalid` for a graph that is too large, or `io`.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        self.open_file(name)?.read_graph()
    }

    /// Checks that the folder still holds this bundle. Bundles are replaced atomically: files that were opened before
    /// this call are then this bundle's too.
    ///
    /// # Errors
    /// `bundle.replaced`.
    pub fn still_here(&self) -> Result<()> {
        match verify::manifest_hash(&self.dir.join(MANIFEST)) {
            Ok(sha256) if sha256 == self.sha256 => Ok(()),
            _ => {
                let message = "the bundle was replaced while it was in use: run the command again";
                Err(Error::new(Code::BUNDLE_REPLACED, message).at(&self.dir))
            }
        }
    }

    /// The path of a file of the bundle.
    ///
    /// # Errors
    /// `bundle.path` when `name` is not a plain file name.
    pub fn file(&self, name: &str) -> Result<PathBuf> {
        names::join(&self.dir, name)
    }
}

fn no_bundle() -> String {
    format!("there is no bundle here ({MANIFEST} is missing): check the path, or export a bundle with ba-export")
}
