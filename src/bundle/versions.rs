//! The versions of a bundle: what it was before a trained adapter went into it, whole and ready to come back.
//!
//! Beside the bundle `onnx/` lies `onnx.versions/`, with a folder a version: `0001/`, `0002/`, … Each is a bundle of its own,
//! verified as any other. What versions share, above all the weights of vision transformer and language model, is on the disk
//! once: files are hard links to the same bytes (copies, where the file system has no hard links).
//!
//! ```text
//! onnx/             the bundle in use: the same files as one of the versions
//! onnx.versions/    0001/ 0002/ …    and `.lock`, held by who changes the bundle
//! ```
//!
//! The state is what lies there and nothing else: a version is in the store when its folder has its number, and it is in use
//! when its `bundle.json` is that of `onnx/`. Both appear by a rename of a whole folder (see [`Staging`]), in this order: the
//! bundle in use is kept ([`Versions::keep`]), a new one put into the store, then into use ([`Versions::use_version`]). So
//! whoever is killed leaves the old bundle or the new one in use, and no half version. A program that has the old files open
//! goes on with them: their bytes are never written to.
//!
//! `ba-export` knows nothing of versions: it replaces the bundle and leaves the store alone. What it exports is kept under the
//! next number when the bundle is changed again, and older versions can still come back. A bundle that was copied without
//! its store begins a new one. Folders of versions that are not wanted any more may be removed by hand.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::install::Staging;
use super::manifest::{MANIFEST, Manifest};
use super::{Bundle, verify};
use crate::error::{Code, Error, Result};

/// What the store's name has behind the bundle's.
const SUFFIX: &str = ".versions";

/// The file that is locked.
const LOCK: &str = ".lock";

/// The bundle's and its store's places.
#[derive(Clone, Debug)]
struct Places {
    bundle: PathBuf,
    store: PathBuf,
}

impl Places {
    /// A link to a bundle has its versions beside what it points to. The bundle itself need not be there.
    fn of(bundle: &Path) -> Result<Self> {
        let absolute = if bundle.exists() { fs::canonicalize(bundle) } else { std::path::absolute(bundle) };
        let absolute = absolute.map_err(|e| Error::io(bundle, "cannot find the folder", e))?;
        let Some(mut name) = absolute.file_name().map(ToOwned::to_owned) else {
            return Err(Error::new(Code::BUNDLE_NOT_FOUND, "a bundle is a folder with a name").at(bundle));
        };
        name.push(SUFFIX);
        Ok(Self { store: absolute.with_file_name(name), bundle: absolute })
    }

    fn version(&self, number: u32) -> PathBuf {
        self.store.join(format!("{number:04}"))
    }

    /// The numbers in the store, in order.
    fn numbers(&self) -> Result<Vec<u32>> {
        let entries = match fs::read_dir(&self.store) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(&self.store, "cannot read the versions", e)),
        };
        let mut numbers = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(&self.store, "cannot read the versions", e))?;
            // Only names that this module gives: `0002`, not `2`.
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            numbers.extend(number.filter(|n| *n > 0 && self.version(*n) == entry.path()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

/// One version.
#[derive(Debug)]
pub struct Version {
    /// Its number.
    pub number: u32,
    /// Its folder: in the store, or the bundle in use where that is not in the store.
    pub dir: PathBuf,
    /// Whether it is the one in use.
    pub in_use: bool,
    /// What its `bundle.json` says and that file's SHA-256, or why it cannot be read. Nothing else of it was looked at.
    pub content: Result<(Manifest, String)>,
}

impl Version {
    /// The SHA-256 of its `bundle.json`, where that can be read.
    pub fn sha256(&self) -> Option<&str> {
        self.content.as_ref().ok().map(|(_, sha256)| sha256.as_str())
    }
}

/// The versions of one bundle, while nobody else may change them.
pub struct Versions {
    places: Places,
    _lock: File,
}

impl Versions {
    /// All versions by number, the one in use among them, also where it is not in the store yet.
    ///
    /// # Errors
    /// `bundle.not_found` when there is neither a bundle nor a store; `io`.
    pub fn list(bundle: &Path) -> Result<Vec<Version>> {
        list(&Places::of(bundle)?, bundle)
    }

    /// The versions of the bundle, to be changed. Nobody else can until it is dropped.
    ///
    /// # Errors
    /// `bundle.busy` when somebody else is at it; `io`.
    pub fn lock(bundle: &Path) -> Result<Self> {
        let places = Places::of(bundle)?;
        fs::create_dir_all(&places.store).map_err(|e| Error::io(&places.store, "cannot make the folder", e))?;
        let path = places.store.join(LOCK);
        let lock = File::options().create(true).append(true).open(&path);
        let lock = lock.map_err(|e| Error::io(&path, "cannot open the file", e))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { places, _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                let message = "another program is changing this bundle: wait until it is done";
                Err(Error::new(Code::BUNDLE_BUSY, message).at(bundle))
            }
            Err(TryLockError::Error(e)) => Err(Error::io(&path, "cannot lock the file", e)),
        }
    }

    /// All versions, as [`Self::list`].
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn all(&self) -> Result<Vec<Version>> {
        list(&self.places, &self.places.bundle)
    }

    /// A folder for a version of that number, which appears in the store once it is installed.
    ///
    /// # Errors
    /// As [`Staging::new`].
    pub fn stage(&self, number: u32) -> Result<Staging> {
        Staging::new(&self.places.version(number), false)
    }

    /// The version with that content, but for its number, if it is in the store: what an interrupted run made.
    ///
    /// # Errors
    /// `io` when the store cannot be read.
    pub fn find(&self, manifest: &Manifest) -> Result<Option<u32>> {
        for number in self.places.numbers()? {
            let version = manifest.version.clone().map(|v| super::VersionRecord { number, ..v });
            let numbered = Manifest { version, ..manifest.clone() }.to_bytes()?;
            // Their bytes: numbers that were read from text may differ in the last bit.
            let path = self.places.version(number).join(MANIFEST);
            if verify::manifest_bytes(&path).is_ok_and(|bytes| bytes == numbered) {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// Makes sure that the bundle in use is in the store; gives its number. Where there is no bundle nothing is kept.
    ///
    /// # Errors
    /// `bundle.*` when it is damaged; `io`, `disk.full`.
    pub fn keep(&self) -> Result<Option<u32>> {
        let all = self.all()?;
        let Some(version) = all.iter().find(|v| v.in_use) else { return Ok(None) };
        if version.dir == self.places.bundle {
            let (manifest, _) = verify::manifest(&version.dir.join(MANIFEST))?;
            self.copy(&version.dir, &manifest, self.stage(version.number)?)?;
        }
        Ok(Some(version.number))
    }

    /// Verifies all files of a version of the store.
    ///
    /// # Errors
    /// `bundle.version` when there is none of that number; `bundle.*` when it is damaged.
    pub fn verify(&self, number: u32) -> Result<()> {
        Bundle::open(&self.folder(number)?).map(drop)
    }

    /// Puts a version of the store into use, in one step. Its large files are to be verified before ([`Self::verify`], or because
    /// they were just written or hashed): of these only the sizes are looked at.
    ///
    /// # Errors
    /// `bundle.version` when there is none of that number; `bundle.*` when it is damaged; `io`, `disk.full`.
    pub fn use_version(&self, number: u32) -> Result<()> {
        let dir = self.folder(number)?;
        let (manifest, _) = verify::manifest(&dir.join(MANIFEST))?;
        self.copy(&dir, &manifest, Staging::new(&self.places.bundle, false)?)
    }

    /// The folder of a version that is in the store.
    fn folder(&self, number: u32) -> Result<PathBuf> {
        let dir = self.places.version(number);
        if dir.is_dir() {
            return Ok(dir);
        }
        let numbers: Vec<String> = self.places.numbers()?.iter().map(u32::to_string).collect();
        let kept = if numbers.is_empty() { "none".to_owned() } else { numbers.join(", ") };
        let message = format!("there is no version {number} of this bundle; kept are: {kept}");
        Err(Error::new(Code::BUNDLE_VERSION, message).at(&self.places.bundle))
    }

    /// Installs the bundle in `dir` once more.
    fn copy(&self, dir: &Path, manifest: &Manifest, staging: Staging) -> Result<()> {
        let files = manifest.files.iter().map(|f| f.name.as_str());
        files.chain([MANIFEST]).try_for_each(|name| staging.take_over(dir, name))?;
        staging.install_as_it_is()
    }
}

fn list(places: &Places, bundle: &Path) -> Result<Vec<Version>> {
    let path = places.bundle.join(MANIFEST);
    let current = path.is_file().then(|| verify::manifest(&path));
    let current_hash = current.as_ref().and_then(|c| c.as_ref().ok()).map(|(_, sha256)| sha256.clone());
    let mut all: Vec<Version> = Vec::new();
    for number in places.numbers()? {
        let dir = places.version(number);
        let content = verify::manifest(&dir.join(MANIFEST));
        let in_use = current_hash.is_some() && content.as_ref().ok().map(|(_, sha256)| sha256) == current_hash.as_ref();
        all.push(Version { number, dir, in_use, content });
    }
    match current {
        Some(content) if !all.iter().any(|v| v.in_use) => {
            let last = all.last().map_or(0, |v| v.number);
            // A bundle that was copied without its store goes on with its own number.
            let own = content.as_ref().ok().and_then(|(m, _)| m.version.as_ref()).map_or(0, |v| v.number);
            let number = own.max(last.saturating_add(1));
            all.push(Version { number, dir: places.bundle.clone(), in_use: true, content });
        }
        None if all.is_empty() => {
            let message = format!("there is no bundle here (no {MANIFEST}); make one with ba-export");
            return Err(Error::new(Code::BUNDLE_NOT_FOUND, message).at(bundle));
        }
        _ => {}
    }
    Ok(all)
}
