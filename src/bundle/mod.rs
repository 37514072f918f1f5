//! A bundle: the folder of ONNX graphs, tokenizer and `bundle.json` that `ba-export` writes and `ba-infer` runs.
//!
//! Layer 4. [`Staging`] writes one beside its place and installs it whole; [`Bundle::open`] checks every file's size
//! and SHA-256, and that no graph refers to a file outside the folder, before any other program sees them. [`Versions`] keeps
//! what a bundle was before.

mod file_hash;
mod install;
mod manifest;
mod quantization;
mod target;
mod temperature;
mod verified_cache;
mod verify;
mod versions;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub use file_hash::sha256_of;
pub(crate) use file_hash::size_and_sha256;
#[cfg(feature = "runtime")]
pub(crate) use install::Staged;
pub use install::Staging;
pub use manifest::{
    FORMAT, FileRecord, INTENDED_USE, MANIFEST, Manifest, Parity, PartRecord, Precision, Preprocessing, SourceRecord,
    TokenizerRecord, Tool, VersionRecord,
};
pub use quantization::{BlockRecord, Calibration, FirstTry, LayerRecord, Quantization};
pub use target::Target;
pub use temperature::{Temperature, set_temperature};
pub use verified_cache::{PendingEntry, VerifiedCache};
pub use versions::{Version, Versions};

use crate::error::{Code, Error, Result};
use crate::model::Part;

/// A bundle whose files are what `bundle.json` says.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The folder.
    pub dir: PathBuf,
    /// What `bundle.json` says.
    pub manifest: Manifest,
    /// SHA-256 of `bundle.json`, which names the hash of every other file: the identity of the whole.
    pub sha256: String,
    /// The same without the temperature ([`Manifest::model_sha256`]): what caches of features and weights depend on.
    pub model_sha256: String,
    /// The files with each graph's large weights, by part.
    beside: BTreeMap<String, BTreeSet<String>>,
}

impl Bundle {
    /// Opens the bundle in `dir` and verifies all of it.
    ///
    /// # Errors
    /// `bundle.not_found`, `bundle.manifest`, `bundle.path` or `bundle.checksum`, naming the file.
    pub fn open(dir: &Path) -> Result<Self> {
        let bundle = Self::open_quickly(dir)?;
        verify::files(dir, &bundle.manifest)?;
        Ok(bundle)
    }

    /// Opens the bundle in `dir` and verifies all but the hashes of large files, which hold nothing but weights: they remain
    /// to be verified ([`Self::large_files`], [`Self::verify`]) before anything that was computed with them is told.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_quickly(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        if !path.is_file() {
            let message = format!("there is no bundle here (no {MANIFEST}); make one with ba-export");
            return Err(Error::new(Code::BUNDLE_NOT_FOUND, message).at(dir));
        }
        let (manifest, sha256) = verify::manifest(&path)?;
        let beside = verify::small_files(dir, &manifest)?;
        let model_sha256 = manifest.model_sha256().map_err(|e| e.at(&path))?;
        Ok(Self { dir: dir.to_path_buf(), manifest, sha256, model_sha256, beside })
    }

    /// The files of a part that [`Self::open_quickly`] has not hashed.
    pub fn large_files(&self, part: Part) -> Vec<&FileRecord> {
        let graphs = self.manifest.parts.get(part.as_str()).into_iter().flat_map(PartRecord::graphs);
        let files = self.beside.get(part.as_str()).into_iter().flatten().chain(graphs);
        let record = |name: &String| self.manifest.files.iter().find(|file| file.name == *name);
        files.filter_map(record).filter(|file| file.bytes > verify::LARGE_BYTES).collect()
    }

    /// Reads a file and compares its hash with the recorded one.
    ///
    /// # Errors
    /// `bundle.checksum`, or `io`.
    pub fn verify(&self, file: &FileRecord) -> Result<()> {
        verify::hashed(&self.dir, file)
    }

    /// Makes sure that the folder still holds this bundle, and so did when files of it were opened before: another one takes its
    /// place in one step.
    ///
    /// # Errors
    /// `bundle.replaced`.
    pub fn still_here(&self) -> Result<()> {
        match verify::manifest_hash(&self.dir.join(MANIFEST)) {
            Ok(sha256) if sha256 == self.sha256 => Ok(()),
            _ => {
                let message = "the bundle was replaced while it was used: run this again";
                Err(Error::new(Code::BUNDLE_REPLACED, message).at(&self.dir))
            }
        }
    }

    /// The path of one of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}
