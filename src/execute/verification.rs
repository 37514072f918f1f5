//! Hashes large files of the bundle in the background; no result leaves the program before their checksums match.
//!
//! A graph's operators are verified before it is loaded; its weights are numbers, which can make a result wrong but
//! nothing else. So a graph may run while its weights are still hashed on another thread, and [`Verification::wait`]
//! comes before every result. With one thread there is no background: files are hashed first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::bundle::{Bundle, PendingEntry, VerifiedCache};
use crate::error::{Error, Result};
use crate::model::Part;

/// The state of the large files.
pub(crate) struct Verification {
    bundle: Arc<Bundle>,
    cache: Option<PathBuf>,
    in_background: bool,
    running: BTreeMap<String, JoinHandle<Result<()>>>,
    pending: BTreeMap<String, PendingEntry>,
    hashed: usize,
    /// Files whose checksum matches, hashed now or before.
    verified: BTreeSet<String>,
}

impl Verification {
    /// Nothing is verified yet. `cache` remembers verified files across processes; `in_background` allows threads.
    pub fn new(bundle: &Arc<Bundle>, cache: Option<PathBuf>, in_background: bool) -> Self {
        Self {
            bundle: Arc::clone(bundle),
            cache,
            in_background,
            running: BTreeMap::new(),
            pending: BTreeMap::new(),
            hashed: 0,
            verified: BTreeSet::new(),
        }
    }

    /// Starts to verify the large files of a part, unless they were verified before.
    ///
    /// # Errors
    /// `bundle.checksum` where files are hashed at once.
    pub fn start(&mut self, part: Part) -> Result<()> {
        let bundle = Arc::clone(&self.bundle);
        for file in bundle.large_files(part) {
            if self.verified.contains(&file.name) || self.running.contains_key(&file.name) {
                continue;
            }
            let path = bundle.file(&file.name)?;
            if let Some(cache) = &self.cache {
                if VerifiedCache::load(cache, &bundle.model_sha256).is_verified(&path, file) {
                    self.verified.insert(file.name.clone());
                    continue;
                }
                self.pending.insert(file.name.clone(), VerifiedCache::pending(&path, file));
            }
            if self.in_background {
                let (bundle, file) = (Arc::clone(&bundle), file.clone());
                self.running.insert(file.name.clone(), std::thread::spawn(move || bundle.verify(&file)));
            } else {
                bundle.verify(file)?;
                self.matched(file.name.clone());
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
                outcome
                    .unwrap_or_else(|_| Err(Error::internal(format!("{}: the hashing thread panicked", file.name))))?;
                self.matched(file.name.clone());
            }
        }
        self.remember()
    }

    fn matched(&mut self, name: String) {
        self.hashed += 1;
        self.verified.insert(name);
    }

    /// Records in the cache which files were hashed and match.
    fn remember(&mut self) -> Result<()> {
        let Some(cache) = &self.cache else { return Ok(()) };
        let matched: Vec<String> = self.pending.keys().filter(|name| self.verified.contains(*name)).cloned().collect();
        if matched.is_empty() {
            return Ok(());
        }
        let entries = matched.iter().filter_map(|name| self.pending.remove(name)).collect();
        VerifiedCache::load(cache, &self.bundle.model_sha256).record(entries)
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
