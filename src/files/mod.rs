//! Files that appear complete: written under a temporary name next to their place, then renamed. Layer 1.

mod identity;
mod live;
mod lock;
pub mod mapped;
pub mod private;
mod temporary;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use live::Entry;
pub(crate) use live::undisturbed;
pub use live::{Halted, halt};
pub use lock::Lock;
pub(crate) use lock::{copy_regular, open_regular};
use tempfile::NamedTempFile;
pub use temporary::{TemporaryFolder, remove_abandoned};

pub use identity::{Identity, SETTLED};

use crate::error::{Code, Error, Result};

/// Serializes a path as text; bytes that are not Unicode are replaced, not refused.
pub(crate) fn path_as_text<S: serde::Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// A temporary file that replaces another when it is complete. If it is dropped before [`Pending::put`], it is deleted
/// and the old file stays.
///
/// Its file is locked while it is written. A temporary file that nobody has locked was left by a killed program, and is
/// removed when the next one writes into the same folder.
pub struct Pending {
    temporary: NamedTempFile<File>,
    path: PathBuf,
    entry: Entry,
}

impl Pending {
    /// An empty file next to `path`. Its temporary name ends in `suffix`, for writers that go by names.
    ///
    /// # Errors
    /// `io` when it cannot be created.
    pub fn next_to(path: &Path, suffix: &str) -> Result<Self> {
        // A temporary file is private by default; this one becomes an ordinary file (less the umask).
        Self::with_mode(path, suffix, 0o666)
    }

    fn with_mode(path: &Path, suffix: &str, mode: u32) -> Result<Self> {
        // `parent` of a bare name is the empty path.
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        temporary::remove_abandoned_once(folder);
        let made = temporary::file(folder, suffix, mode).map_err(|e| Error::io(path, "cannot write", e));
        let (temporary, entry) = made?;
        Ok(Self { temporary, path: path.to_owned(), entry })
    }

    /// The temporary file, open for writing.
    pub fn file(&self) -> &File {
        self.temporary.as_file()
    }

    /// The temporary file's path, for writers that open files themselves.
    pub fn temporary(&self) -> &Path {
        self.temporary.path()
    }

    /// Synchronizes the file to the disk and renames it to its final name.
    ///
    /// # Errors
    /// `io` or `disk.full`; the old file then stays.
    pub fn put(self) -> Result<()> {
        let Self { temporary, path, entry } = self;
        temporary.as_file().sync_all().map_err(|e| Error::io(&path, "cannot write", e))?;
        let renamed = undisturbed(|| temporary.persist(&path));
        drop(entry);
        renamed.map(drop).map_err(|e| Error::io(&path, "cannot rename the complete file", e.error))
    }
}

/// Writes `bytes` to `path`, completely or not at all.
///
/// # Errors
/// `io` or `disk.full`.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    write(Pending::next_to(path, "")?, bytes)
}

/// As [`replace`], for the current user alone to read (mode 0600).
///
/// # Errors
/// `io` or `disk.full`.
pub fn replace_private(path: &Path, bytes: &[u8]) -> Result<()> {
    write(Pending::with_mode(path, "", 0o600)?, bytes)
}

fn write(pending: Pending, bytes: &[u8]) -> Result<()> {
    pending.file().write_all(bytes).map_err(|e| Error::io(&pending.path, "cannot write", e))?;
    pending.put()
}

/// Checks that `need` bytes of `what` fit on the disk that holds `folder`.
///
/// # Errors
/// `disk.full`; `io` when the file system does not report its free space.
pub fn check_free_space(folder: &Path, need: u64, what: &str) -> Result<()> {
    match free(folder)? {
        Some(free) if need > free => {
            let message =
                format!("{what} needs {need} bytes, {free} are free: free some space, or choose another disk");
            Err(Error::new(Code::DISK_FULL, message).at(folder))
        }
        _ => Ok(()),
    }
}

/// Free bytes for the current user; none where the system cannot report them.
#[cfg(unix)]
fn free(folder: &Path) -> Result<Option<u64>> {
    let stat =
        rustix::fs::statvfs(folder).map_err(|e| Error::io(folder, "cannot determine the free space", e.into()))?;
    Ok(Some(stat.f_bavail.saturating_mul(stat.f_frsize)))
}

#[cfg(not(unix))]
fn free(_: &Path) -> Result<Option<u64>> {
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        check_free_space(folder, 0, "nothing").unwrap();
        if cfg!(unix) {
            assert_eq!(check_free_space(folder, u64::MAX, "all").unwrap_err().code(), Code::DISK_FULL);
        }
    }

    #[test]
    fn a_dropped_file_leaves_the_old_one_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        replace(&path, b"old").unwrap();
        let pending = Pending::next_to(&path, ".json").unwrap();
        pending.file().write_all(b"half").unwrap();
        drop(pending);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(replace(&dir.path().join("none/a"), b"").is_err());
    }
}
