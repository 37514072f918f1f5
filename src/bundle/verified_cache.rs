//! Which large files of a bundle were verified before and have not been modified since.
//!
//! Hashing seven gigabytes takes seconds at each start. In a cache folder that the user names, `verified/HASH.json`
//! (HASH is the bundle's) records for each verified file what the file system reports of it: size, times of the last
//! change of contents and of status, inode and device. While all of these are the same, the file counts as verified.
//! Writing to a file changes these times, and the time of status cannot be set back; changes below the file system (a
//! failing disk) go unnoticed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::records::FileRecord;
use crate::files::replace;

/// Maximum size of a record file.
const MAX_BYTES: u64 = 1 << 20;

/// A file that changed less than this before it was hashed is not recorded: within one tick of the file system's clock
/// it could change again unnoticed.
const SETTLED: Duration = Duration::from_secs(2);

/// What the file system reports of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    sha256: String,
    path: PathBuf,
    bytes: u64,
    /// Last change of contents, in nanoseconds since 1970.
    modified: u128,
    /// Last change of contents or status, in nanoseconds since 1970; 0 if the system does not record it.
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

    fn is_settled(&self, now: SystemTime) -> bool {
        let Ok(now) = now.duration_since(SystemTime::UNIX_EPOCH) else { return false };
        let last = self.modified.max(u128::try_from(self.changed).unwrap_or(0));
        last + SETTLED.as_nanos() <= now.as_nanos()
    }
}

/// A file that is being verified: its identity before it was hashed.
pub struct PendingEntry {
    name: String,
    path: PathBuf,
    record: FileRecord,
    before: Option<Identity>,
}

/// The verified files of one bundle.
pub struct VerifiedCache {
    path: PathBuf,
    files: BTreeMap<String, Identity>,
}

impl VerifiedCache {
    /// Reads the record of the bundle with this hash from a cache folder. An unreadable record counts as empty.
    pub fn load(cache: &Path, bundle: &str) -> Self {
        let path = cache.join("verified").join(format!("{bundle}.json"));
        let read = || {
            let meta = std::fs::metadata(&path).ok().filter(|m| m.is_file() && m.len() <= MAX_BYTES);
            serde_json::from_slice(&std::fs::read(meta.map(|_| &path)?).ok()?).ok()
        };
        Self { files: read().unwrap_or_default(), path }
    }

    /// Whether the file at `path` was verified and has not been modified since.
    pub fn is_verified(&self, path: &Path, record: &FileRecord) -> bool {
        let known = self.files.get(&record.name).filter(|known| known.sha256 == record.sha256);
        known.is_some() && known == Identity::of(path, record).as_ref()
    }

    /// The entry of a file that is about to be hashed.
    pub fn pending(path: &Path, record: &FileRecord) -> PendingEntry {
        let before = Identity::of(path, record).filter(|i| i.is_settled(SystemTime::now()));
        PendingEntry { name: record.name.clone(), path: path.to_path_buf(), record: record.clone(), before }
    }

    /// Records files whose hash was right, unless they changed while they were hashed.
    ///
    /// # Errors
    /// `io` or `disk.full` when the record cannot be written.
    pub fn record(&mut self, verified: Vec<PendingEntry>) -> crate::Result<()> {
        let before = self.files.clone();
        for file in verified {
            if let Some(identity) = file.before.filter(|i| Identity::of(&file.path, &file.record).as_ref() == Some(i)) {
                self.files.insert(file.name, identity);
            }
        }
        if self.files == before {
            return Ok(());
        }
        let failed = |e| crate::Error::io(&self.path, "cannot write", e);
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let json = serde_json::to_vec_pretty(&self.files).map_err(|e| failed(e.into()))?;
        replace(&self.path, &json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modified_files_are_not_verified() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.data");
        let record = FileRecord { name: "w.data".into(), bytes: 3, sha256: "ab".into() };
        std::fs::write(&path, "abc").unwrap();
        // Just written: too recent to be recorded.
        let mut cache = VerifiedCache::load(dir.path(), "b");
        cache.record(vec![VerifiedCache::pending(&path, &record)]).unwrap();
        assert!(!cache.is_verified(&path, &record));

        std::thread::sleep(SETTLED + Duration::from_millis(200));
        let pending = VerifiedCache::pending(&path, &record);
        cache.record(vec![pending]).unwrap();
        let cache = VerifiedCache::load(dir.path(), "b");
        assert!(cache.is_verified(&path, &record));
        assert!(!VerifiedCache::load(dir.path(), "c").is_verified(&path, &record));
        assert!(!cache.is_verified(&path, &FileRecord { sha256: "cd".into(), ..record.clone() }));

        // Other bytes with the old length and the old time of modification.
        let old = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::fs::write(&path, "abd").unwrap();
        std::fs::File::options().append(true).open(&path).unwrap().set_modified(old).unwrap();
        assert!(!cache.is_verified(&path, &record));

        std::fs::write(dir.path().join("verified/b.json"), "{").unwrap();
        assert!(!VerifiedCache::load(dir.path(), "b").is_verified(&path, &record));
    }
}
