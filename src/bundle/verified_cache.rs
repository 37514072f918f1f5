//! Which large files of a bundle were verified before, and have not been touched since.
//!
//! Hashing seven gigabytes takes seconds at each start. Where a user names a cache folder, `verified/HASH.json` in it (HASH
//! is the bundle's) remembers for each file that was hashed what the file system says of it: length, times of last
//! change of contents and of status, inode and device. While all of that is the same the file counts as verified.
//! Writing to a file changes these times, and the time of status cannot be set back; what changes bits without the
//! file system's knowledge (a failing disk) is not seen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::manifest::FileRecord;
use crate::files::replace;

/// Largest record that is read.
const MAX_BYTES: u64 = 1 << 20;

/// A file that changed less than this before it was hashed is not remembered: within a file system's tick of time it could
/// change again unseen.
const SETTLED: Duration = Duration::from_secs(2);

/// What the file system says of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    sha256: String,
    path: PathBuf,
    bytes: u64,
    /// Nanoseconds since 1970 of the last change of contents.
    modified: u128,
    /// The same of contents or status, where the system has it.
    changed: i128,
    inode: u64,
    device: u64,
}

impl Identity {
    fn of(path: &Path, record: &FileRecord) -> Option<Self> {
        let path = path.canonicalize().ok()?;
        let meta = std::fs::metadata(&path).ok()?;
        let modified = meta.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_nanos();
        #[cfg(unix)]
        let (changed, inode, device) = {
            use std::os::unix::fs::MetadataExt;
            (i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec()), meta.ino(), meta.dev())
        };
        #[cfg(not(unix))]
        let (changed, inode, device) = (0, 0, 0);
        Some(Self { sha256: record.sha256.clone(), path, bytes: meta.len(), modified, changed, inode, device })
    }

    fn settled(&self, now: SystemTime) -> bool {
        let Ok(now) = now.duration_since(SystemTime::UNIX_EPOCH) else { return false };
        let last = self.modified.max(u128::try_from(self.changed).unwrap_or(0));
        last + SETTLED.as_nanos() <= now.as_nanos()
    }
}

/// A file on its way to be remembered: what was known of it before it was hashed.
pub struct PendingEntry {
    name: String,
    path: PathBuf,
    record: FileRecord,
    before: Option<Identity>,
}

/// The memory of one bundle.
pub struct VerifiedCache {
    place: PathBuf,
    files: BTreeMap<String, Identity>,
}

impl VerifiedCache {
    /// What `cache` remembers of the bundle with this hash. An unreadable record is none.
    pub fn load(cache: &Path, bundle: &str) -> Self {
        let place = cache.join("verified").join(format!("{bundle}.json"));
        let read = || {
            let meta = std::fs::metadata(&place).ok().filter(|m| m.is_file() && m.len() <= MAX_BYTES);
            serde_json::from_slice(&std::fs::read(meta.map(|_| &place)?).ok()?).ok()
        };
        Self { files: read().unwrap_or_default(), place }
    }

    /// Whether the file at `path` was verified and has not been touched since.
    pub fn is_verified(&self, path: &Path, record: &FileRecord) -> bool {
        let known = self.files.get(&record.name).filter(|known| known.sha256 == record.sha256);
        known.is_some() && known == Identity::of(path, record).as_ref()
    }

    /// To be called before a file is hashed.
    pub fn candidate(path: &Path, record: &FileRecord) -> PendingEntry {
        let before = Identity::of(path, record).filter(|i| i.settled(SystemTime::now()));
        PendingEntry { name: record.name.clone(), path: path.to_path_buf(), record: record.clone(), before }
    }

    /// Remembers files that were hashed and found right, if they are what they were before.
    ///
    /// # Errors
    /// `io` or `disk.full` when the record cannot be written.
    pub fn remember(&mut self, hashed: Vec<PendingEntry>) -> crate::Result<()> {
        let before = self.files.clone();
        for file in hashed {
            if let Some(identity) = file.before.filter(|i| Identity::of(&file.path, &file.record).as_ref() == Some(i)) {
                self.files.insert(file.name, identity);
            }
        }
        if self.files == before {
            return Ok(());
        }
        let failed = |e| crate::Error::io(&self.place, "cannot write", e);
        if let Some(folder) = self.place.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let json = serde_json::to_vec_pretty(&self.files).map_err(|e| failed(e.into()))?;
        replace(&self.place, &json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touched_files_are_not_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.data");
        let record = FileRecord { name: "w.data".into(), bytes: 3, sha256: "ab".into() };
        std::fs::write(&path, "abc").unwrap();
        // Just written: too fresh to be remembered.
        let mut memory = VerifiedCache::load(dir.path(), "b");
        memory.remember(vec![VerifiedCache::candidate(&path, &record)]).unwrap();
        assert!(!memory.is_verified(&path, &record));

        std::thread::sleep(SETTLED + Duration::from_millis(200));
        let candidate = VerifiedCache::candidate(&path, &record);
        memory.remember(vec![candidate]).unwrap();
        let memory = VerifiedCache::load(dir.path(), "b");
        assert!(memory.is_verified(&path, &record));
        assert!(!VerifiedCache::load(dir.path(), "c").is_verified(&path, &record));
        assert!(!memory.is_verified(&path, &FileRecord { sha256: "cd".into(), ..record.clone() }));

        // Other bytes with the old length and the old time of modification.
        let old = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::fs::write(&path, "abd").unwrap();
        std::fs::File::options().append(true).open(&path).unwrap().set_modified(old).unwrap();
        assert!(!memory.is_verified(&path, &record));

        std::fs::write(dir.path().join("verified/b.json"), "{").unwrap();
        assert!(!VerifiedCache::load(dir.path(), "b").is_verified(&path, &record));
    }
}
