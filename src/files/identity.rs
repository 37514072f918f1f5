//! What the file system reports of a file, to notice that it was changed.
//!
//! Writing to a file changes its size or its times; replacing it changes its inode. The time of status cannot be set
//! back by a program, so that other contents under the old time of modification are noticed too. Three things are not:
//! a write within one tick of the file system's clock after the last one ([`Identity::is_settled`]), writes through a
//! mapping that was written to before (until the system writes these pages back), and changes below the file system.

use std::fs::Metadata;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// Within one tick of the file system's clock a file can change twice under one time. Ticks are 1 to 10 ms on the usual
/// file systems, and up to 2 s on others (FAT).
pub const SETTLED: Duration = Duration::from_secs(2);

/// Size, times and place of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Size in bytes.
    pub bytes: u64,
    /// Last change of contents, in nanoseconds since 1970; 0 if the system does not record it.
    modified: i128,
    /// Last change of contents or status, in nanoseconds since 1970; 0 if the system does not record it.
    changed: i128,
    inode: u64,
    device: u64,
}

impl Identity {
    /// The identity that `meta` describes.
    pub fn of(meta: &Metadata) -> Self {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
            Self {
                bytes: meta.len(),
                modified: nanoseconds(meta.mtime(), meta.mtime_nsec()),
                changed: nanoseconds(meta.ctime(), meta.ctime_nsec()),
                inode: meta.ino(),
                device: meta.dev(),
            }
        }
        #[cfg(not(unix))]
        {
            let since = meta.modified().ok().and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok());
            let modified = since.map_or(0, |d| i128::try_from(d.as_nanos()).unwrap_or(0));
            Self { bytes: meta.len(), modified, changed: 0, inode: 0, device: 0 }
        }
    }

    /// The identity of the file at `path`, links followed.
    ///
    /// # Errors
    /// Those of the system.
    pub fn at(path: &Path) -> std::io::Result<Self> {
        std::fs::metadata(path).map(|meta| Self::of(&meta))
    }

    /// Whether `other` is the same file with the same contents as far as size and time of modification tell: only its
    /// status may have changed, as by `chmod`, a hard link or a new name.
    pub fn same_contents(&self, other: &Self) -> bool {
        self.same_file(other) && (self.bytes, self.modified) == (other.bytes, other.modified)
    }

    /// Whether `other` is the same file, in whatever state.
    pub fn same_file(&self, other: &Self) -> bool {
        (self.inode, self.device) == (other.inode, other.device)
    }

    /// Whether the last change lies so far before `now` that another one would have another time.
    pub fn is_settled(&self, now: SystemTime) -> bool {
        let Ok(now) = now.duration_since(SystemTime::UNIX_EPOCH) else { return false };
        let last = if self.changed == 0 { self.modified } else { self.changed };
        u128::try_from(last).is_ok_and(|last| last.saturating_add(SETTLED.as_nanos()) <= now.as_nanos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn changes_of_contents_status_and_place_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "abc").unwrap();
        let first = Identity::at(&path).unwrap();
        assert!(!first.is_settled(SystemTime::now()) && first.is_settled(SystemTime::now() + SETTLED));
        std::thread::sleep(Duration::from_millis(30));
        std::fs::hard_link(&path, dir.path().join("g")).unwrap();
        let linked = Identity::at(&path).unwrap();
        assert!(linked != first && linked.same_contents(&first));
        // Other bytes, under the old time of modification.
        let old = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::thread::sleep(Duration::from_millis(30));
        std::fs::write(&path, "abd").unwrap();
        let written = Identity::at(&path).unwrap();
        assert!(written.same_file(&first) && !written.same_contents(&first));
        std::fs::File::options().append(true).open(&path).unwrap().set_modified(old).unwrap();
        assert_ne!(Identity::at(&path).unwrap(), linked);
        std::fs::write(dir.path().join("h"), "abc").unwrap();
        std::fs::rename(dir.path().join("h"), &path).unwrap();
        assert!(!Identity::at(&path).unwrap().same_file(&first));
    }
}
