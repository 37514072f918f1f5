//! Hashes large files of the bundle in the background; no result leaves the program before their checksums match.
//!
//! A graph's operators are verified before it is loaded; its weights are numbers, which can make a result wrong but
//! nothing else. So a graph may run while its weights are still hashed on another thread, and [`Verification::wait`]
//! comes before every result. With one thread there is no background: files are hashed first.
//!
//! What was verified must also be what runs: [`SourceFiles`] are checked when a graph is loaded and after it has run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::bundle::{Bundle, OpenFile, VerifiedCache, unchanged_while};
use crate::error::{Code, Error, Result};
use crate::model::Part;
use crate::onnx::external_files_in;
use crate::threads;

/// The files that a graph's sessions are loaded from.
#[derive(Clone, Default)]
pub(super) struct SourceFiles {
    /// The bundle that they are part of; none for copies in a cache.
    bundle: Option<Arc<Bundle>>,
    files: Vec<Arc<OpenFile>>,
}

/// A graph's files in memory.
pub(super) struct ReadGraph {
    /// The ONNX model.
    pub graph: Vec<u8>,
    /// The files of its weights by name.
    pub weights: Vec<(String, Arc<[u8]>)>,
}

impl SourceFiles {
    /// The files of a part's graphs.
    pub fn of_part(bundle: &Arc<Bundle>, part: Part) -> Self {
        Self { bundle: Some(Arc::clone(bundle)), files: bundle.open_files(part) }
    }

    /// Copies in a cache.
    pub fn in_cache(files: Vec<Arc<OpenFile>>) -> Self {
        Self { bundle: None, files }
    }

    /// Runs `load`, which opens the files by their names, and makes sure that it opened what was verified.
    ///
    /// # Errors
    /// `bundle.changed`, `bundle.replaced`, and those of `load`.
    pub fn while_loading<T>(&self, load: impl FnOnce() -> Result<T>) -> Result<T> {
        unchanged_while(&self.files, load).map_err(|e| match &self.bundle {
            // Another bundle in its place is a clearer reason than another file.
            Some(bundle) if e.code() == Code::BUNDLE_CHANGED => bundle.still_here().err().unwrap_or(e),
            _ => e,
        })
    }

    /// The graph at `path`, one of the files, and the files of its weights by name: read, and compared with their
    /// hashes.
    ///
    /// # Errors
    /// `bundle.changed`; `onnx.invalid`; `io`.
    pub fn read(&self, path: &Path) -> Result<ReadGraph> {
        let missing = || Error::internal(format!("{}: not among the graph's files", path.display()));
        let file = |name: &str| self.files.iter().find(|file| file.record().name == name).ok_or_else(missing);
        let graph = file(&path.file_name().unwrap_or_default().to_string_lossy())?.read_graph()?;
        let names = external_files_in(&graph).map_err(|e| e.at(path))?;
        let weights = names.into_iter().map(|name| {
            let bytes = file(&name)?.read_shared()?;
            Ok((name, bytes))
        });
        Ok(ReadGraph { graph, weights: weights.collect::<Result<_>>()? })
    }

    /// Makes sure that what was loaded is what was verified: after each run, since weights are read from mapped files.
    ///
    /// # Errors
    /// `bundle.changed`; `io`.
    pub fn check(&self) -> Result<()> {
        self.files.iter().try_for_each(|file| file.check())
    }
}

/// The state of the large files.
pub(crate) struct Verification {
    bundle: Arc<Bundle>,
    cache: Option<PathBuf>,
    in_background: bool,
    running: BTreeMap<String, JoinHandle<Result<()>>>,
    hashed: usize,
    /// Files whose checksum matches, hashed now or before.
    verified: BTreeSet<String>,
    /// Those that were hashed now and are not in the cache.
    fresh: Vec<Arc<OpenFile>>,
}

impl Verification {
    /// Nothing is verified yet. `cache` remembers verified files across processes; `in_background` allows threads.
    pub fn new(bundle: &Arc<Bundle>, cache: Option<PathBuf>, in_background: bool) -> Self {
        Self {
            bundle: Arc::clone(bundle),
            cache,
            in_background,
            running: BTreeMap::new(),
            hashed: 0,
            verified: BTreeSet::new(),
            fresh: Vec::new(),
        }
    }

    /// Starts to verify the large files of a part, unless they were verified before.
    ///
    /// # Errors
    /// `bundle.checksum` where files are hashed at once; `cache.unsafe`; `threads.unavailable`.
    pub fn start(&mut self, part: Part) -> Result<()> {
        let bundle = Arc::clone(&self.bundle);
        for file in bundle.large_files(part) {
            if self.verified.contains(&file.name) || self.running.contains_key(&file.name) {
                continue;
            }
            let open = Arc::clone(bundle.open_file(&file.name)?);
            if let Some(cache) = &self.cache
                && VerifiedCache::load(cache, &bundle.model_sha256)?.is_verified(&open)
            {
                open.set_verified();
                self.verified.insert(file.name.clone());
            } else if self.in_background {
                self.running.insert(file.name.clone(), threads::spawn("hash", move || open.verify())?);
            } else {
                open.verify()?;
                self.matched(&open);
            }
        }
        Ok(())
    }

    /// Waits until the part's files are verified.
    ///
    /// # Errors
    /// `bundle.checksum`, naming the file; `bundle.changed` when one was written to since it was opened.
    pub fn wait(&mut self, part: Part) -> Result<()> {
        let bundle = Arc::clone(&self.bundle);
        for file in bundle.large_files(part) {
            if let Some(handle) = self.running.remove(&file.name) {
                let outcome = handle.join();
                outcome
                    .unwrap_or_else(|_| Err(Error::internal(format!("{}: the hashing thread panicked", file.name))))?;
                self.matched(bundle.open_file(&file.name)?);
            }
        }
        bundle.open_files(part).iter().try_for_each(|file| file.check())?;
        self.remember()
    }

    fn matched(&mut self, file: &Arc<OpenFile>) {
        self.hashed += 1;
        self.verified.insert(file.record().name.clone());
        self.fresh.push(Arc::clone(file));
    }

    /// Records in the cache which files were hashed and match.
    fn remember(&mut self) -> Result<()> {
        let fresh = std::mem::take(&mut self.fresh);
        match &self.cache {
            Some(cache) if !fresh.is_empty() => VerifiedCache::load(cache, &self.bundle.model_sha256)?.record(&fresh),
            _ => Ok(()),
        }
    }

    /// How large weights were verified, for the result. `prepacked`: prepacked copies of the cache were used.
    pub fn how(&self, prepacked: bool) -> &'static str {
        match (self.hashed, self.verified.is_empty(), prepacked) {
            (0, true, true) => "unchanged since laid out",
            (0, false, _) => "unchanged since hashed",
            _ => "hashed",
        }
    }
}
