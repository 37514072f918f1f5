//! The versions of a bundle: what it was before a trained adapter was applied, complete and ready to be restored.
//!
//! Next to the bundle `onnx/` lies `onnx.versions/`, with one folder per version: `0001/`, `0002/`, … Each is a
//! complete bundle, verified as any other. What versions share, above all the weights of vision transformer and
//! language model, is stored once: files are hard links to the same bytes (copies if the file system has no hard
//! links).
//!
//! ```text
//! onnx/             the bundle in use: the same files as one of the versions
//! onnx.versions/    0001/ 0002/ …    and `.lock`, held by the program that changes the bundle
//! ```
//!
//! The folders are the only state: a version is stored when its numbered folder exists, and it is in use when its
//! `bundle.json` equals that of `onnx/`. Both happen by the rename of a complete folder (see [`Staging`]), in this
//! order: the bundle in use is stored ([`Versions::keep`]), then a new one is stored, then it is put into use
//! ([`Versions::use_version`]). A program that is killed in between leaves the old bundle or the new one in use, and no
//! partial version. A program that has the old files open continues with them: their bytes are never modified.
//!
//! `ba-export` ignores versions: it replaces the bundle and leaves the store alone. The exported bundle is stored under
//! the next number when the bundle is changed again, and older versions can still be restored. A bundle that was copied
//! without its store starts a new one. Folders of versions that are no longer needed may be deleted by hand.

use std::fs;
use std::path::{Path, PathBuf};

use super::install::Staging;
use super::manifest::{MANIFEST, Manifest};
use super::temperature::Temperature;
use super::{Bundle, verify};
use crate::error::{Code, Error, Result};
use crate::files::{Lock, remove_abandoned, replace};

/// Suffix of the store's folder name after the bundle's.
const SUFFIX: &str = ".versions";

/// The file that is locked.
const LOCK: &str = ".lock";

/// Where the bundle and its store are.
#[derive(Clone, Debug)]
struct Paths {
    bundle: PathBuf,
    store: PathBuf,
}

impl Paths {
    /// The store of a link to a bundle lies next to the link's target. The bundle itself need not exist.
    fn of(bundle: &Path) -> Result<Self> {
        let absolute = if bundle.exists() { fs::canonicalize(bundle) } else { std::path::absolute(bundle) };
        let absolute = absolute.map_err(|e| Error::io(bundle, "cannot find the folder", e))?;
        let Some(mut name) = absolute.file_name().map(ToOwned::to_owned) else {
            return Err(Error::new(Code::BUNDLE_NOT_FOUND, "the path of a bundle must end in a folder name").at(bundle));
        };
        name.push(SUFFIX);
        Ok(Self { store: absolute.with_file_name(name), bundle: absolute })
    }

    fn version(&self, number: u32) -> PathBuf {
        self.store.join(format!("{number:04}"))
    }

    /// The stored numbers, ascending.
    fn numbers(&self) -> Result<Vec<u32>> {
        own_folder(&self.store)?;
        let entries = match fs::read_dir(&self.store) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(&self.store, "cannot read the versions", e)),
        };
        let mut numbers = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(&self.store, "cannot read the versions", e))?;
            // Only names that this module writes: `0002`, not `2`.
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(number) = number.filter(|n| *n > 0 && self.version(*n) == entry.path()) else { continue };
            own_folder(&entry.path())?;
            numbers.push(number);
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

/// Refuses a link, a file or a pipe where a folder of the store is expected: a link would lead out of it. Nothing there
/// is fine.
fn own_folder(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => {
            let message = "this must be a folder, and is a link or a file: move it away";
            Err(Error::new(Code::BUNDLE_PATH, message).at(path))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(path, "cannot open the folder", e)),
    }
}

/// One version of a bundle.
#[derive(Debug)]
pub struct Version {
    /// Its number, from 1.
    pub number: u32,
    /// Its folder: in the store, or the bundle itself if it is in use and not stored.
    pub dir: PathBuf,
    /// Whether it is the version in use.
    pub in_use: bool,
    /// Its manifest and the SHA-256 of `bundle.json`, or why that cannot be read. No other file was read.
    pub content: Result<(Manifest, String)>,
}

impl Version {
    /// The SHA-256 of its `bundle.json`, if that can be read.
    pub fn sha256(&self) -> Option<&str> {
        self.content.as_ref().ok().map(|(_, sha256)| sha256.as_str())
    }
}

/// Exclusive access to the versions of one bundle, until it is dropped.
pub struct Versions {
    paths: Paths,
    _lock: Lock,
}

impl Versions {
    /// All versions by number, including the one in use even if it is not stored yet.
    ///
    /// # Errors
    /// `bundle.not_found` when there is neither a bundle nor a store; `io`.
    pub fn list(bundle: &Path) -> Result<Vec<Version>> {
        list(&Paths::of(bundle)?, bundle)
    }

    /// Locks the bundle's versions against changes by other programs.
    ///
    /// # Errors
    /// `bundle.busy` when another program holds the lock; `bundle.path` when the store is a link; `output.exists` when
    /// the lock is a link or a pipe; `io`.
    pub fn lock(bundle: &Path) -> Result<Self> {
        let paths = Paths::of(bundle)?;
        own_folder(&paths.store)?;
        fs::create_dir_all(&paths.store).map_err(|e| Error::io(&paths.store, "cannot make the folder", e))?;
        let Some(lock) = Lock::try_new(&paths.store.join(LOCK))? else {
            let message = "another program is changing this bundle: wait until it has finished";
            return Err(Error::new(Code::BUNDLE_BUSY, message).at(bundle));
        };
        remove_abandoned(&paths.store);
        Ok(Self { paths, _lock: lock })
    }

    /// All versions, as [`Self::list`].
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn all(&self) -> Result<Vec<Version>> {
        list(&self.paths, &self.paths.bundle)
    }

    /// A folder for the version of a number, which is stored once it is installed.
    ///
    /// # Errors
    /// As [`Staging::new`].
    pub fn stage(&self, number: u32) -> Result<Staging> {
        let version = self.paths.version(number);
        own_folder(&version)?;
        Staging::new(&version, false)
    }

    /// The stored version with this content except for its number, which an interrupted run may have left.
    ///
    /// # Errors
    /// `io` when the store cannot be read.
    pub fn find(&self, manifest: &Manifest) -> Result<Option<u32>> {
        for number in self.paths.numbers()? {
            let version = manifest.version.clone().map(|v| super::VersionRecord { number, ..v });
            let numbered = Manifest { version, ..manifest.clone() }.to_bytes()?;
            // Bytes are compared: numbers parsed from text may differ in the last bit.
            let path = self.paths.version(number).join(MANIFEST);
            if verify::manifest_bytes(&path).is_ok_and(|bytes| bytes == numbered) {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// Stores the bundle in use unless it is stored already; returns its number, or none if there is no bundle.
    ///
    /// # Errors
    /// `bundle.*` when it is damaged; `io`, `disk.full`.
    pub fn keep(&self) -> Result<Option<u32>> {
        let all = self.all()?;
        let Some(version) = all.iter().find(|v| v.in_use) else { return Ok(None) };
        if version.dir == self.paths.bundle {
            let (manifest, _) = verify::read_manifest(&version.dir.join(MANIFEST))?;
            self.copy(&version.dir, &manifest, self.stage(version.number)?)?;
        }
        Ok(Some(version.number))
    }

    /// Verifies all files of a stored version.
    ///
    /// # Errors
    /// `bundle.version` when there is no version of this number; `bundle.*` when it is damaged.
    pub fn verify(&self, number: u32) -> Result<()> {
        Bundle::open(&self.folder(number)?).map(drop)
    }

    /// Puts a stored version into use, atomically. Its large files must have been verified before (by [`Self::verify`],
    /// or because they were just written or hashed): only their sizes are checked here.
    ///
    /// # Errors
    /// `bundle.version` when there is no version of this number; `bundle.*` when it is damaged; `io`, `disk.full`.
    pub fn use_version(&self, number: u32) -> Result<()> {
        let dir = self.folder(number)?;
        let (manifest, _) = verify::read_manifest(&dir.join(MANIFEST))?;
        self.copy(&dir, &manifest, Staging::new(&self.paths.bundle, false)?)
    }

    /// The folder of a stored version.
    fn folder(&self, number: u32) -> Result<PathBuf> {
        let dir = self.paths.version(number);
        own_folder(&dir)?;
        if dir.is_dir() {
            return Ok(dir);
        }
        let numbers: Vec<String> = self.paths.numbers()?.iter().map(u32::to_string).collect();
        let stored = if numbers.is_empty() { "none".to_owned() } else { numbers.join(", ") };
        let message = format!("there is no version {number} of this bundle; stored: {stored}");
        Err(Error::new(Code::BUNDLE_VERSION, message).at(&self.paths.bundle))
    }

    /// Installs a copy of the bundle in `dir`.
    fn copy(&self, dir: &Path, manifest: &Manifest, staging: Staging) -> Result<()> {
        let files = manifest.files.iter().map(|f| f.name.as_str());
        files.chain([MANIFEST]).try_for_each(|name| staging.take_over(dir, name))?;
        staging.install_as_it_is()
    }
}

fn list(paths: &Paths, bundle: &Path) -> Result<Vec<Version>> {
    let path = paths.bundle.join(MANIFEST);
    let current = path.is_file().then(|| verify::read_manifest(&path));
    let current_hash = current.as_ref().and_then(|c| c.as_ref().ok()).map(|(_, sha256)| sha256.clone());
    let mut all: Vec<Version> = Vec::new();
    for number in paths.numbers()? {
        let dir = paths.version(number);
        let content = verify::read_manifest(&dir.join(MANIFEST));
        let in_use = current_hash.is_some() && content.as_ref().ok().map(|(_, sha256)| sha256) == current_hash.as_ref();
        all.push(Version { number, dir, in_use, content });
    }
    match current {
        Some(content) if !all.iter().any(|v| v.in_use) => {
            let last = all.last().map_or(0, |v| v.number);
            // A bundle that was copied without its store keeps its own number.
            let own = content.as_ref().ok().and_then(|(m, _)| m.version.as_ref()).map_or(0, |v| v.number);
            let number = own.max(last.saturating_add(1));
            all.push(Version { number, dir: paths.bundle.clone(), in_use: true, content });
        }
        None if all.is_empty() => {
            let message = super::no_bundle();
            return Err(Error::new(Code::BUNDLE_NOT_FOUND, message).at(bundle));
        }
        _ => {}
    }
    Ok(all)
}

/// Replaces the `bundle.json` of the bundle in `dir` by one with these temperatures, atomically; returns its new
/// SHA-256. The bundle must still be the one with the hash `expected`. Stored versions ([`Versions`]) stay as they are.
///
/// # Errors
/// `bundle.manifest` when a temperature is out of range or the bundle has been replaced; `bundle.busy` when another
/// program is changing it; `io` or `disk.full`. The old `bundle.json` then stays.
pub fn set_temperature(dir: &Path, expected: &str, temperature: Temperature) -> Result<String> {
    let _lock = Versions::lock(dir)?;
    let path = dir.join(MANIFEST);
    let invalid = |message: String| Error::new(Code::BUNDLE_MANIFEST, message).at(&path);
    let (manifest, found) = verify::read_manifest(&path)?;
    if found != expected {
        return Err(invalid(
            "the bundle was replaced in the meantime, and the temperature was fitted to the old one: fit it again"
                .into(),
        ));
    }
    temperature.check(manifest.image_head).map_err(invalid)?;
    let manifest = Manifest { temperature, ..manifest };
    let json = manifest.to_bytes().map_err(|e| e.at(&path))?;
    replace(&path, &json)?;
    verify::read_manifest(&path).map(|(_, sha256)| sha256)
}
