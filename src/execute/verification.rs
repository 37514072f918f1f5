//! Hashes large files of the bundle beside the work, and lets no answer out before they are found right.
//!
//! A graph's operators are verified before it is loaded; its weights are numbers, which can make a result wrong but nothing
//! else. So a graph may run while its weights are still hashed on another thread. [`Verification::wait`] stands before
//! everything that leaves the predictor. With one thread there is nothing beside: files are hashed first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::bundle::{Bundle, PendingEntry, VerifiedCache};
use crate::error::{Code, Error, Result};
use crate::model::Part;

/// What is known of the large files.
pub(crate) struct Verification {
    bundle: Arc<Bundle>,
    cache: Option<PathBuf>,
    beside: bool,
    running: BTreeMap<String, JoinHandle<Result<()>>>,
    candidates: BTreeMap<String, PendingEntry>,
    hashed: usize,
    /// Files that are right, hashed now or before.
    right: BTreeSet<String>,
}

impl Verification {
    /// Nothing is verified yet. `cache` remembers across processes; `beside` allows a thread of its own.
    pub fn new(bundle: &Arc<Bundle>, cache: Option<PathBuf>, beside: bool) -> Self {
        Self {
            bundle: Arc::clone(bundle),
            cache,
            beside,
            running: BTreeMap::new(),
            candidates: BTreeMap::new(),
            hashed: 0,
            right: BTreeSet::new(),
        }
    }

    /// Begins with the large files of a part, unless they are known to be right.
    ///
    /// # Errors
    /// `bundle.checksum` where files are hashed at once.
    pub fn start(&mut self, part: Part) -> Result<()> {
        let bundle = Arc::clone(&self.bundle);
        for file in bundle.large_files(part) {
            if self.right.contains(&file.name) || self.running.contains_key(&file.name) {
                continue;
            }
            let path = bundle.file(&file.name);
            if let Some(cache) = &self.cache {
                if VerifiedCache::load(cache, &bundle.model_sha256).is_verified(&path, file) {
                    self.right.insert(file.name.clone());
                    continue;
                }
                self.candidates.insert(file.name.clone(), VerifiedCache::pending(&path, file));
            }
            if self.beside {
                let (bundle, file) = (Arc::clone(&bundle), file.clone());
                self.running.insert(file.name.clone(), std::thread::spawn(move || bundle.verify(&file)));
            } else {
                bundle.verify(file)?;
                self.found_right(file.name.clone());
            }
        }
        Ok(())
    }

    /// Waits until the part's files are verified.
    ///
    /// # Errors
    /// `bundle.checksum`, naming the file.
    pub fn wait(&mut self, part: Part) -> Result<()> {
        let bundle = Arc::clone(&self.bundle);
        for file in bundle.large_files(part) {
            if let Some(handle) = self.running.remove(&file.name) {
                let outcome = handle.join();
                outcome.unwrap_or_else(|_| {
                    Err(Error::new(Code::BUNDLE_CHECKSUM, "the file could not be verified").at(bundle.file(&file.name)))
                })?;
                self.found_right(file.name.clone());
            }
        }
        self.remember()
    }

    fn found_right(&mut self, name: String) {
        self.hashed += 1;
        self.right.insert(name);
    }

    /// Writes down what was hashed and is right.
    fn remember(&mut self) -> Result<()> {
        let Some(cache) = &self.cache else { return Ok(()) };
        let right: Vec<String> = self.candidates.keys().filter(|name| self.right.contains(*name)).cloned().collect();
        if right.is_empty() {
            return Ok(());
        }
        let candidates = right.iter().filter_map(|name| self.candidates.remove(name)).collect();
        VerifiedCache::load(cache, &self.bundle.model_sha256).record(candidates)
    }

    /// How large weights were verified, in a word for the results. `laid_out`: copies of the cache stood for some.
    pub fn how(&self, laid_out: bool) -> &'static str {
        match (self.hashed, self.right.is_empty(), laid_out) {
            (0, true, true) => "unchanged since laid out",
            (0, false, _) => "unchanged since hashed",
            _ => "hashed",
        }
    }
}
