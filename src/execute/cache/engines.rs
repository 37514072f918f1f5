//! TensorRT's engines on disk: made once a bundle, card and version, found again by every later process.
//!
//! `engines/KEY/` in the folder that the user named as cache; without one there is no place that would be nobody's surprise, so
//! engines are then made anew by every process, and that is said. KEY is the SHA-256 of [`EngineKey`], which lies in clear in
//! the folder's `key.json`: where anything in it changes, another folder is made, and the old ones are named, to be removed by
//! hand.
//!
//! A folder grows as `.building-KEY` and is renamed when it is whole; its `key.json` is written last. Who builds holds a lock on
//! `KEY.lock`, which the system lets go when the process dies: the next one clears what a killed one left. Who finds the lock
//! held says so and waits.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::files::{check_room, replace};
use crate::progress::Tell;
use crate::runtime::ProfiledInput;
use crate::tensor::hex;

/// What says in a folder what its engines are for.
const KEY_FILE: &str = "key.json";

/// Largest `key.json` that is read.
const MAX_KEY_BYTES: u64 = 1 << 20;

/// Everything that engines depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EngineKey {
    /// Version of this meaning of the folder.
    pub format: u32,
    /// [`crate::bundle::Bundle::model_sha256`].
    pub bundle: String,
    /// The graph's file in the bundle.
    pub graph: String,
    /// The first of its segments, and the one behind the last.
    pub segments: [usize; 2],
    /// The provider's name.
    pub provider: String,
    /// The card's name.
    pub gpu: String,
    /// Its compute capability, such as `8.9`.
    pub compute_capability: String,
    /// TensorRT's libraries, with their versions.
    pub tensorrt: String,
    /// The driver's version.
    pub driver: String,
    /// ONNX Runtime's build.
    pub onnxruntime: String,
    /// The extents that engines are made for.
    pub inputs: Vec<ProfiledInput>,
}

impl EngineKey {
    /// The folder's name.
    fn name(&self) -> Result<String> {
        Ok(hex(&Sha256::digest(self.json()?)))
    }

    fn json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).map_err(|e| Error::io(KEY_FILE, "cannot write", e.into()))
    }

    /// Whether it is for the same graph on the same card, in whatever versions.
    fn same_place(&self, other: &Self) -> bool {
        let place = |key: &Self| [&key.bundle, &key.graph, &key.provider, &key.gpu].map(String::clone);
        place(self) == place(other) && self.segments == other.segments
    }
}

/// What engines are made of.
pub(crate) struct Made<'a> {
    /// The graph, in words.
    pub what: &'a str,
    /// Bytes of its weights, which go into the engines.
    pub weights: u64,
    /// The model that must lie beside them to be loaded in place of the graph, where the provider wants one.
    pub context: Option<&'static str>,
}

/// A folder of engines.
#[derive(Clone, Debug)]
pub(crate) struct Engines {
    folder: PathBuf,
    tell: Tell,
}

impl Engines {
    /// The engines in a cache folder. What takes long is told.
    pub fn new(cache: &Path, tell: Tell) -> Self {
        Self { folder: cache.join("engines"), tell }
    }

    /// The folder with the engines of this key. Where there is none, `build` is called with an empty folder to make them in; it
    /// must have closed all files when it returns. `made` says what they are of. None where nothing was made.
    ///
    /// # Errors
    /// `io` and `disk.full`, and those of `build`: then nothing is kept.
    pub fn folder(
        &self,
        key: &EngineKey,
        made: &Made<'_>,
        build: &mut dyn FnMut(&Path) -> Result<()>,
    ) -> Result<Option<PathBuf>> {
        let (name, what) = (key.name()?, made.what);
        let place = self.folder.join(&name);
        if finished(&place).as_ref() == Some(key) {
            return Ok(Some(place));
        }
        make(&self.folder)?;
        let _lock = self.lock(&self.folder.join(format!("{name}.lock")), what)?;
        // Another process may have made them meanwhile.
        if finished(&place).as_ref() == Some(key) {
            return Ok(Some(place));
        }
        let building = self.folder.join(format!(".building-{name}"));
        clear(&building)?;
        clear(&place)?;
        // TensorRT itself would only log that it could not write.
        check_room(&self.folder, made.weights.saturating_add(made.weights / 8), "TensorRT's engines")?;
        make(&building)?;
        self.tell.say(&format!(
            "building TensorRT engines for {what} on {}: the first run takes minutes, later ones do not{}",
            key.gpu,
            self.others(key, &name)
        ));
        match build(&building).and_then(|()| finish(&building, key, made.context)) {
            Ok(true) => {
                fs::rename(&building, &place).map_err(|e| Error::io(&place, "cannot put the engines into place", e))?;
                Ok(Some(place))
            }
            Ok(false) => {
                self.tell.say(&format!("TensorRT kept no engine for {what}: each process makes it anew"));
                clear(&building)?;
                Ok(None)
            }
            Err(e) => {
                let _ = fs::remove_dir_all(&building);
                Err(e)
            }
        }
    }

    /// Holds the lock, waiting for another process where that has it.
    fn lock(&self, path: &Path, what: &str) -> Result<File> {
        let failed = |e| Error::io(path, "cannot lock the engines", e);
        let file = File::options().create(true).truncate(false).write(true).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                self.tell.say(&format!("another process builds TensorRT engines for {what}: waiting for it"));
                file.lock().map_err(failed)?;
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        Ok(file)
    }

    /// What is said of older engines of the same graph on the same card.
    fn others(&self, key: &EngineKey, name: &str) -> String {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let same = |path: &PathBuf| !path.ends_with(name) && finished(path).is_some_and(|other| other.same_place(key));
        match entries.filter(same).count() {
            0 => String::new(),
            n => format!(
                " ({n} older folders of the same graph in {} serve other versions and can be removed)",
                self.folder.display()
            ),
        }
    }
}

/// The key of a folder that is whole.
fn finished(folder: &Path) -> Option<EngineKey> {
    let path = folder.join(KEY_FILE);
    let meta = fs::metadata(&path).ok().filter(|m| m.is_file() && m.len() <= MAX_KEY_BYTES)?;
    let bytes = fs::read(&path).ok().filter(|bytes| bytes.len() as u64 == meta.len())?;
    serde_json::from_slice(&bytes).ok()
}

/// Makes sure that what was built is on the disk, and says last what it is. False where nothing was built.
fn finish(folder: &Path, key: &EngineKey, context: Option<&str>) -> Result<bool> {
    let failed = |e| Error::io(folder, "cannot keep the engines", e);
    let mut files = 0;
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_file() {
            File::open(&path).and_then(|file| file.sync_all()).map_err(failed)?;
            files += 1;
        }
    }
    if files == 0 || context.is_some_and(|name| !folder.join(name).is_file()) {
        return Ok(false);
    }
    replace(&folder.join(KEY_FILE), &key.json()?).map(|()| true)
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, "cannot make the folder", e))
}

fn clear(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(folder, "cannot clear", e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "engines_tests.rs"]
mod tests;
