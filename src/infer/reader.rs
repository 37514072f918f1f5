//! Reads scans beside the model's work.
//!
//! A [`ScanReader`] needs nothing of the runtime and may be used on another thread. [`ahead`] reads the next scan while
//! the last one is computed: at most two are in memory.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Instant, SystemTime};

use crate::error::{Code, Error, Result};
use crate::execute::cache::features::{Features, Store};
use crate::execute::milliseconds;
use crate::volume::{self, Conformed, ReadOptions, Volume};

/// A scan as it was read.
pub struct Scan {
    /// Its file.
    pub path: PathBuf,
    /// Milliseconds that reading took.
    pub milliseconds: f64,
    pub(super) content: Content,
    /// The key under which its features may be stored.
    pub(super) key: Option<String>,
}

/// What is known of a scan.
pub(super) enum Content {
    /// Its voxels on the model's grid, in its own intensities.
    Voxels(Box<Conformed>),
    /// The same as the model takes them.
    Volume(Box<Volume>),
    /// What the model made of it before.
    Features(Features),
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
    /// Whether a scan is read also when its features are known, and its own intensities are kept.
    pub(super) voxels: bool,
    /// Percentiles that intensities are clipped to.
    pub(super) clip: Option<[f64; 2]>,
}

impl ScanReader {
    /// Whether the scan's features are in the cache, so that it will not be read. What is wrong with it, reading says.
    pub fn knows(&self, path: &Path) -> bool {
        let Some(store) = self.store.as_ref().filter(|_| !self.voxels) else { return false };
        let key = volume::files(path).and_then(|files| store.scan_key(&files, self.options.volume));
        key.is_ok_and(|key| store.get(&key).is_some())
    }

    /// Reads a scan.
    ///
    /// # Errors
    /// `nifti.*` or `io`.
    pub fn read(&self, path: &Path) -> Result<Scan> {
        let started = Instant::now();
        let scan = |content, key| {
            let milliseconds = milliseconds(started);
            Scan { path: path.to_path_buf(), milliseconds, content, key }
        };
        let Some(store) = &self.store else {
            return Ok(scan(self.content(path)?, None));
        };
        let files = volume::files(path)?;
        let before = changed(&files);
        let key = store.scan_key(&files, self.options.volume)?;
        if let Some(features) = store.get(&key).filter(|_| !self.voxels) {
            return Ok(scan(Content::Features(features), None));
        }
        let content = self.content(path)?;
        // Had the file changed between hashing and reading, its features would be stored as another's.
        let same = changed(&files) == before && before.is_some();
        Ok(scan(content, same.then_some(key)))
    }

    fn content(&self, path: &Path) -> Result<Content> {
        let conformed = volume::read(path, &self.options)?;
        if self.voxels {
            return Ok(Content::Voxels(Box::new(conformed)));
        }
        Ok(Content::Volume(Box::new(conformed.normalize(self.clip).map_err(|e| e.at(path))?)))
    }
}

/// Lengths and times of files.
fn changed(files: &[PathBuf]) -> Option<Vec<(u64, SystemTime)>> {
    let look = |path: &PathBuf| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.len(), meta.modified().ok()?))
    };
    files.iter().map(look).collect()
}

/// Reads the scans at `paths` one after the other on another thread and hands each to `each` on this one. Reading stays one
/// scan ahead. With `beside` false each is read when it is its turn, on this thread.
///
/// # Errors
/// The first of `each`; what reading fails with is handed to it.
pub fn ahead<'p>(
    reader: &ScanReader,
    paths: impl Iterator<Item = &'p Path> + Send,
    beside: bool,
    each: &mut dyn FnMut(Reading<'_>) -> Result<()>,
) -> Result<()> {
    if !beside {
        let mut paths = paths;
        return paths.try_for_each(|path| each(Reading { source: Some(Source::Here(reader, path)) }));
    }
    std::thread::scope(|scope| {
        // Nothing is queued: a scan that was read waits in the thread's hands until it is taken.
        let (give, take) = mpsc::sync_channel(0);
        let (begin, begun) = mpsc::channel::<()>();
        let thread = scope.spawn(move || {
            for path in paths {
                if begin.send(()).is_err() || give.send(reader.read(path)).is_err() {
                    break;
                }
            }
        });
        // One message a path, before it is read: so that `each` can do other work while the scan is read.
        let outcome = begun.iter().try_for_each(|()| each(Reading { source: Some(Source::Elsewhere(&take)) }));
        drop((take, begun));
        match thread.join() {
            Err(_) if outcome.is_ok() => Err(Error::new(Code::IO, STOPPED)),
            _ => outcome,
        }
    })
}

/// Said when the reading thread is gone.
const STOPPED: &str = "reading scans stopped unexpectedly";

/// A scan that is being read.
pub struct Reading<'a> {
    source: Option<Source<'a>>,
}

enum Source<'a> {
    Here(&'a ScanReader, &'a Path),
    Elsewhere(&'a mpsc::Receiver<Result<Scan>>),
}

impl Reading<'_> {
    /// Waits for the scan.
    ///
    /// # Errors
    /// Those of [`ScanReader::read`].
    pub fn finish(mut self) -> Result<Scan> {
        let gone = || Error::new(Code::IO, STOPPED);
        match self.source.take() {
            Some(Source::Here(reader, path)) => reader.read(path),
            Some(Source::Elsewhere(take)) => take.recv().unwrap_or_else(|_| Err(gone())),
            None => Err(gone()),
        }
    }
}

impl Drop for Reading<'_> {
    /// A scan that nobody wants any more is taken all the same: the thread would wait with it for ever.
    fn drop(&mut self) {
        if let Some(Source::Elsewhere(take)) = self.source.take() {
            let _ = take.recv();
        }
    }
}
