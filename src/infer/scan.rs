//! Reads scans, on another thread where wanted.
//!
//! A [`ScanReader`] needs nothing of the runtime. [`read_ahead`] reads the next scan while the last one is computed: at
//! most two are in memory.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Instant, SystemTime};

use sha2::{Digest, Sha256};

use crate::bundle::sha256_of;
use crate::error::{Code, Error, Result};
use crate::execute::cache::features::{Features, Store};
use crate::execute::milliseconds;
use crate::files::Identity;
use crate::tensor::hex;
use crate::threads;
use crate::volume::{self, Conformed, ReadOptions, Volume};

/// A scan on the model's grid, or its features from the cache.
pub struct Scan {
    /// The scan's file.
    pub path: PathBuf,
    /// Milliseconds that reading took.
    pub milliseconds: f64,
    /// SHA-256 over the SHA-256 of its files (of a pair both), of the bytes that were read; where the reader identifies
    /// scans.
    pub sha256: Option<String>,
    pub(super) content: Content,
    /// The key under which its features may be stored.
    pub(super) key: Option<String>,
}

/// What is known of a scan.
pub(super) enum Content {
    /// Its voxels on the model's grid, in its own intensities.
    Voxels(Box<Conformed>),
    /// The same, normalized for the model.
    Volume(Box<Volume>),
    /// Its features from the cache.
    Features(Box<Features>),
}

impl Scan {
    /// Its voxels on the model's grid, in its own intensities; none where the options did not ask for them.
    pub fn conformed(&self) -> Option<&Conformed> {
        match &self.content {
            Content::Voxels(conformed) => Some(conformed),
            Content::Volume(_) | Content::Features(_) => None,
        }
    }
}

/// Reads scans onto the model's grid, or finds their features in the cache.
#[derive(Clone, Debug)]
pub struct ScanReader {
    pub(super) options: ReadOptions,
    pub(super) store: Option<Store>,
    /// Whether a scan is read even when its features are in the cache, and its own intensities are kept.
    pub(super) keep_voxels: bool,
    /// Percentiles that intensities are clipped to.
    pub(super) clip: Option<[f64; 2]>,
    /// Whether the files are hashed.
    pub(super) identify: bool,
}

impl ScanReader {
    /// Whether the scan's features are in the cache, so that it will not be read. False when the scan cannot be found.
    pub fn is_cached(&self, path: &Path) -> bool {
        let Some(store) = self.store.as_ref().filter(|_| !self.keep_voxels) else { return false };
        let key = volume::files(path).and_then(|files| store.scan_key(&files, &self.options));
        key.is_ok_and(|key| store.get(&key).is_some())
    }

    /// A reader of that volume of 4-D scans; without one it stays as it is.
    #[must_use]
    pub fn of_volume(&self, volume: Option<usize>) -> Self {
        let mut reader = self.clone();
        reader.options.volume = volume.or(reader.options.volume);
        reader
    }

    /// A reader that hashes the files of each scan too ([`Scan::sha256`]).
    #[must_use]
    pub fn identifying(self) -> Self {
        Self { identify: true, ..self }
    }

    /// The hash that [`Scan::sha256`] has; voxels are not read.
    ///
    /// # Errors
    /// `nifti.*` or `io`.
    pub fn sha256_of(&self, path: &Path) -> Result<String> {
        hash(&volume::files(path)?)
    }

    /// Checks the header of a scan, as reading it does first.
    ///
    /// # Errors
    /// `nifti.*` or `io`.
    pub fn check(&self, path: &Path) -> Result<()> {
        volume::check(path, &self.options)
    }

    /// Reads a scan.
    ///
    /// # Errors
    /// `nifti.*` or `io`.
    pub fn read(&self, path: &Path) -> Result<Scan> {
        let started = Instant::now();
        let files = volume::files(path)?;
        let (before, opened) = (identities(&files)?, SystemTime::now());
        let hashes = || {
            let sha256 = self.identify.then(|| hash(&files)).transpose()?;
            let key = self.store.as_ref().map(|store| store.scan_key(&files, &self.options)).transpose()?;
            Ok::<_, Error>((sha256, key))
        };
        let (sha256, key) = hashes()?;
        let known = self.store.as_ref().zip(key.as_ref()).filter(|_| !self.keep_voxels);
        let (content, used) = match known.and_then(|(store, key)| store.get(key)) {
            Some(features) => (Content::Features(Box::new(features)), None),
            None => (self.content(path)?, key.clone()),
        };
        // What was hashed and what was read must be the same, whatever others do to the files meanwhile.
        let after = identities(&files)?;
        let same = before.iter().zip(&after).all(|(before, after)| before.same_contents(after));
        // Where times cannot settle it, the contents do.
        let certain = after == before && before.iter().all(|identity| identity.is_settled(opened));
        if !same || (!certain && hashes()? != (sha256.clone(), key)) {
            let message = "the file changed while it was read: wait until it is complete, then run the same again";
            return Err(Error::new(Code::NIFTI_CHANGED, message).at(path));
        }
        Ok(Scan { path: path.to_path_buf(), milliseconds: milliseconds(started), sha256, content, key: used })
    }

    fn content(&self, path: &Path) -> Result<Content> {
        let conformed = volume::read(path, &self.options)?;
        if self.keep_voxels {
            return Ok(Content::Voxels(Box::new(conformed)));
        }
        Ok(Content::Volume(Box::new(conformed.normalize(self.clip).map_err(|e| e.at(path))?)))
    }
}

/// One hash of the files of a scan. Their hashes are all of one length: no two lists of files run together.
fn hash(files: &[PathBuf]) -> Result<String> {
    let mut all = Sha256::new();
    for path in files {
        all.update(sha256_of(path)?);
    }
    Ok(hex(&all.finalize()))
}

/// What the file system reports of the files of a scan.
fn identities(files: &[PathBuf]) -> Result<Vec<Identity>> {
    files.iter().map(|path| Identity::at(path).map_err(|e| Error::io(path, "cannot open the scan", e))).collect()
}

/// Reads the scans at `paths`, each with its volume if it names one ([`ScanReader::of_volume`]), one after the other on
/// another thread and hands each to `each` on this one. Reading stays one scan ahead. Without `in_background` each is
/// read when it is its turn, on this thread.
///
/// # Errors
/// The first of `each`; what reading fails with is handed to it. `threads.unavailable`.
pub fn read_ahead<'p>(
    reader: &ScanReader,
    paths: impl Iterator<Item = (&'p Path, Option<usize>)> + Send,
    in_background: bool,
    each: &mut dyn FnMut(PendingScan<'_>) -> Result<()>,
) -> Result<()> {
    if !in_background {
        let mut paths = paths;
        return paths.try_for_each(|(path, volume)| {
            each(PendingScan { source: Some(Source::Here(reader.of_volume(volume), path)) })
        });
    }
    std::thread::scope(|scope| {
        // Nothing is queued: a scan that was read stays with the thread until it is received.
        let (sender, receiver) = mpsc::sync_channel(0);
        let (begin, begun) = mpsc::channel::<()>();
        let thread = threads::spawn_scoped(scope, "read", move || {
            for (path, volume) in paths {
                if begin.send(()).is_err() || sender.send(reader.of_volume(volume).read(path)).is_err() {
                    break;
                }
            }
        })?;
        // One message a path, before it is read: so that `each` can do other work while the scan is read.
        let outcome = begun.iter().try_for_each(|()| each(PendingScan { source: Some(Source::Thread(&receiver)) }));
        drop((receiver, begun));
        match thread.join() {
            Err(_) if outcome.is_ok() => Err(gone()),
            _ => outcome,
        }
    })
}

/// The reading thread ended without a scan.
fn gone() -> Error {
    Error::internal("the thread that reads scans panicked")
}

/// A scan that is being read.
pub struct PendingScan<'a> {
    source: Option<Source<'a>>,
}

enum Source<'a> {
    Here(ScanReader, &'a Path),
    Thread(&'a mpsc::Receiver<Result<Scan>>),
}

impl PendingScan<'_> {
    /// Waits for the scan.
    ///
    /// # Errors
    /// Those of [`ScanReader::read`].
    pub fn finish(mut self) -> Result<Scan> {
        match self.source.take() {
            Some(Source::Here(reader, path)) => reader.read(path),
            Some(Source::Thread(receiver)) => receiver.recv().unwrap_or_else(|_| Err(gone())),
            None => Err(gone()),
        }
    }
}

impl Drop for PendingScan<'_> {
    /// Receives a scan that is no longer wanted: the thread would wait with it for ever.
    fn drop(&mut self) {
        if let Some(Source::Thread(receiver)) = self.source.take() {
            let _ = receiver.recv();
        }
    }
}
