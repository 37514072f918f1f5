//! Files that appear complete: written under a temporary name next to their place, then renamed. Layer 1.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Code, Error, Result};

/// Serializes a path as text; bytes that are not Unicode are replaced, not refused.
pub(crate) fn path_as_text<S: serde::Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// How temporary names begin.
pub(crate) const UNFINISHED: &str = ".writing-";

/// A file on its way to its place. Dropped before [`Pending::put`], it goes away and what was there stays.
pub struct Pending {
    temporary: NamedTempFile<File>,
    path: PathBuf,
}

impl Pending {
    /// An empty file next to `path`. Its temporary name ends in `suffix`, for writers that go by names.
    ///
    /// # Errors
    /// `io` when it cannot be made.
    pub fn beside(path: &Path, suffix: &str) -> Result<Self> {
        // `parent` of a bare name is the empty path.
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(UNFINISHED).suffix(suffix);
        #[cfg(unix)]
        {
            // A temporary file is private by default; this one becomes an ordinary file (less the umask).
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let temporary = builder.tempfile_in(folder).map_err(|e| Error::io(path, "cannot write", e))?;
        Ok(Self { temporary, path: path.to_owned() })
    }

    /// The open file.
    pub fn file(&self) -> &File {
        self.temporary.as_file()
    }

    /// The temporary name, for writers that open files themselves.
    pub fn temporary(&self) -> &Path {
        self.temporary.path()
    }

    /// Puts the file into its place, once its bytes are on the disk.
    ///
    /// # Errors
    /// `io` or `disk.full`; what was there before then stays.
    pub fn put(self) -> Result<()> {
        let failed = |e| Error::io(&self.path, "cannot write", e);
        self.temporary.as_file().sync_all().map_err(failed)?;
        self.temporary
            .persist(&self.path)
            .map(drop)
            .map_err(|e| Error::io(&self.path, "cannot put into place", e.error))
    }
}

/// Writes `bytes` to `path`, completely or not at all.
///
/// # Errors
/// `io` or `disk.full`.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let pending = Pending::beside(path, "")?;
    pending.file().write_all(bytes).map_err(|e| Error::io(path, "cannot write", e))?;
    pending.put()
}

/// Refuses what would not fit on the disk that holds `folder`: `need` bytes of `what`.
///
/// # Errors
/// `disk.full`; `io` when the file system does not say.
pub fn check_room(folder: &Path, need: u64, what: &str) -> Result<()> {
    match free(folder)? {
        Some(free) if need > free => {
            let message = format!("{what} needs {need} bytes and {free} are free: free some, or choose another place");
            Err(Error::new(Code::DISK_FULL, message).at(folder))
        }
        _ => Ok(()),
    }
}

/// Free bytes for the user at hand; nothing where that cannot be asked.
#[cfg(unix)]
fn free(folder: &Path) -> Result<Option<u64>> {
    let stat = rustix::fs::statvfs(folder).map_err(|e| Error::io(folder, "cannot ask for the free space", e.into()))?;
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
        check_room(folder, 0, "nothing").unwrap();
        if cfg!(unix) {
            assert_eq!(check_room(folder, u64::MAX, "all").unwrap_err().code(), Code::DISK_FULL);
        }
    }

    #[test]
    fn a_dropped_file_leaves_the_old_one_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        replace(&path, b"old").unwrap();
        let pending = Pending::beside(&path, ".json").unwrap();
        pending.file().write_all(b"half").unwrap();
        drop(pending);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(replace(&dir.path().join("none/a"), b"").is_err());
    }
}
