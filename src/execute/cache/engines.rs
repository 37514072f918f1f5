//! TensorRT's engines on disk: built once a bundle, GPU and version, found again by every later process.
//!
//! `engines/KEY/` in the cache folder that the user named; without one, no place would be expected by the user, so
//! every process builds its engines, and reports that. KEY is the SHA-256 of [`EngineKey`], which is stored as plain
//! text in the folder's `key.json`: where anything in it changes, another folder is made, and the old ones are
//! reported, to be removed by hand.
//!
//! `key.json` also has the hashes of the engines, which are compared before they are loaded: engines that were swapped
//! between two folders are built again. Which were compared before is remembered as for a bundle's weights
//! ([`VerifiedCache`]). The caches of timings and kernels next to them, which TensorRT updates, are not compared: they
//! change how long a build takes, not what is computed.
//!
//! A folder grows as `.building-KEY` and is renamed when it is complete; its `key.json` is written last. The building
//! process holds a lock on `KEY.lock`, which the system releases when the process dies: the next one clears what a
//! killed one left. A process that finds the lock held reports so and waits.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::bundle::{FileRecord, OpenFile, VerifiedCache, sha256_of};
use crate::error::{Error, Result};
use crate::files::{check_free_space, private, replace_private};
use crate::progress::Shared;
use crate::runtime::ProfiledInput;
use crate::tensor::hex;

/// The folder of engines in a cache.
const FOLDER: &str = "engines";

/// The file that says what a folder's engines are for.
const KEY_FILE: &str = "key.json";

/// Maximum size of a `key.json`.
const MAX_KEY_BYTES: u64 = 1 << 20;

/// Everything that engines depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EngineKey {
    /// Version of the folder's format.
    pub format: u32,
    /// [`crate::bundle::Bundle::model_sha256`].
    pub bundle: String,
    /// The graph's file in the bundle.
    pub graph: String,
    /// The first of its segments, and the one behind the last.
    pub segments: [usize; 2],
    /// The provider's name.
    pub provider: String,
    /// The GPU's name.
    pub gpu: String,
    /// The GPU's compute capability, such as `8.9`.
    pub compute_capability: String,
    /// TensorRT's libraries, with their versions.
    pub tensorrt: String,
    /// The driver's version.
    pub driver: String,
    /// ONNX Runtime's build.
    pub onnxruntime: String,
    /// The input sizes that engines are built for.
    pub inputs: Vec<ProfiledInput>,
}

impl EngineKey {
    /// The name of the folder for this key.
    fn name(&self) -> Result<String> {
        Ok(hex(&Sha256::digest(self.json()?)))
    }

    fn json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).map_err(|e| Error::io(KEY_FILE, "cannot write", e.into()))
    }

    /// Whether both are for the same graph on the same GPU, in whatever versions.
    fn same_place(&self, other: &Self) -> bool {
        let place = |key: &Self| [&key.bundle, &key.graph, &key.provider, &key.gpu].map(String::clone);
        place(self) == place(other) && self.segments == other.segments
    }
}

/// A `key.json`: what the engines are for, and which files they are.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contents {
    key: EngineKey,
    files: Vec<FileRecord>,
}

/// The graph that engines are built from.
pub(crate) struct EngineSource<'a> {
    /// The graph in words, for messages.
    pub what: &'a str,
    /// Bytes of its weights, which go into the engines.
    pub weights: u64,
    /// The context model that must lie next to them, to be loaded in place of the graph, where the provider needs one.
    pub context: Option<&'static str>,
}

/// The engines in a cache folder.
#[derive(Clone, Debug)]
pub(crate) struct EngineCache {
    cache: PathBuf,
    folder: PathBuf,
    progress: Shared,
}

impl EngineCache {
    /// The engines in a cache folder. Long work is reported to `progress`.
    pub fn new(cache: &Path, progress: Shared) -> Self {
        Self { cache: cache.to_path_buf(), folder: cache.join(FOLDER), progress }
    }

    /// The folder with the engines of this key. Where there is none, `build` is called with an empty folder to build
    /// them in; it must have closed all files when it returns. `source` says what they are built from. None where
    /// nothing was kept.
    ///
    /// # Errors
    /// `cache.unsafe`; `io` and `disk.full`, and those of `build`: then nothing is kept.
    pub fn folder(
        &self,
        key: &EngineKey,
        source: &EngineSource<'_>,
        build: &mut dyn FnMut(&Path) -> Result<()>,
    ) -> Result<Option<PathBuf>> {
        let (name, what) = (key.name()?, source.what);
        private::folder_in(&self.cache, FOLDER)?;
        let place = self.folder.join(&name);
        if self.holds(&place, key, &name)? {
            return Ok(Some(place));
        }
        let _lock = self.lock(&self.folder.join(format!("{name}.lock")), what)?;
        // Another process may have built them in the meantime.
        if self.holds(&place, key, &name)? {
            return Ok(Some(place));
        }
        let building = self.folder.join(format!(".building-{name}"));
        clear(&building)?;
        clear(&place)?;
        // TensorRT itself would only log that it could not write.
        check_free_space(&self.folder, source.weights.saturating_add(source.weights / 8), "TensorRT's engines")?;
        private::folder_in(&self.cache, FOLDER)?;
        fs::create_dir(&building).map_err(|e| Error::io(&building, "cannot make the folder", e))?;
        private::own_folder(&building)?;
        self.progress.note(&format!(
            "building TensorRT engines for {what} on {}: the first run takes minutes, later ones do not{}",
            key.gpu,
            self.others(key, &name)
        ));
        match build(&building).and_then(|()| finish(&building, key, source.context)) {
            Ok(true) => {
                fs::rename(&building, &place).map_err(|e| Error::io(&place, "cannot put the engines into place", e))?;
                Ok(Some(place))
            }
            Ok(false) => {
                self.progress.note(&format!("TensorRT kept no engine for {what}: every process builds it again"));
                clear(&building)?;
                Ok(None)
            }
            Err(e) => {
                let _ = fs::remove_dir_all(&building);
                Err(e)
            }
        }
    }

    /// Whether the folder holds the engines of this key, as they were built.
    fn holds(&self, place: &Path, key: &EngineKey, name: &str) -> Result<bool> {
        let Some(contents) = contents(place).filter(|contents| contents.key == *key) else { return Ok(false) };
        private::own_folder(place)?;
        let open = contents.files.iter().map(|record| OpenFile::open(place, record).map(Arc::new));
        let Ok(files) = open.collect::<Result<Vec<_>>>() else { return Ok(false) };
        let mut known = VerifiedCache::load(&self.cache, name)?;
        let sound = |file: &Arc<OpenFile>| known.is_verified(file) || file.verify().is_ok();
        let sound = files.iter().all(sound);
        if sound {
            known.record(&files)?;
        }
        Ok(sound)
    }

    /// Takes the lock, waiting while another process has it.
    fn lock(&self, path: &Path, what: &str) -> Result<File> {
        let failed = |e| Error::io(path, "cannot lock the engines", e);
        let file = File::options().create(true).truncate(false).write(true).open(path).map_err(failed)?;
        private::close_file(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                self.progress.note(&format!("another process builds TensorRT engines for {what}: waiting for it"));
                file.lock().map_err(failed)?;
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        Ok(file)
    }

    /// A note on older engines of the same graph on the same GPU.
    fn others(&self, key: &EngineKey, name: &str) -> String {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let same =
            |path: &PathBuf| !path.ends_with(name) && contents(path).is_some_and(|other| other.key.same_place(key));
        match entries.filter(same).count() {
            0 => String::new(),
            n => format!(
                " ({n} older folders of the same graph in {} serve other versions and can be removed)",
                self.folder.display()
            ),
        }
    }
}

/// The `key.json` of a complete folder.
fn contents(folder: &Path) -> Option<Contents> {
    parse(&private::read(&folder.join(KEY_FILE), MAX_KEY_BYTES)?)
}

/// A `key.json` in its bytes.
pub(super) fn parse(bytes: &[u8]) -> Option<Contents> {
    serde_json::from_slice(bytes).ok()
}

/// Makes sure that the engines are on the disk, then writes their key and hashes. False where nothing was built.
fn finish(folder: &Path, key: &EngineKey, context: Option<&str>) -> Result<bool> {
    let failed = |e| Error::io(folder, "cannot keep the engines", e);
    let (mut any, mut files) = (false, Vec::new());
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if !path.is_file() {
            continue;
        }
        private::close_file(&path)?;
        let file = File::open(&path).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        any = true;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension().is_some_and(|e| e == "engine") || context == Some(&name) {
            let bytes = file.metadata().map_err(failed)?.len();
            files.push(FileRecord { name, bytes, sha256: sha256_of(&path)? });
        }
    }
    if !any || context.is_some_and(|name| !folder.join(name).is_file()) {
        return Ok(false);
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let path = folder.join(KEY_FILE);
    let contents = Contents { key: key.clone(), files };
    let json = serde_json::to_vec_pretty(&contents).map_err(|e| Error::io(&path, "cannot write", e.into()))?;
    replace_private(&path, &json).map(|()| true)
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
