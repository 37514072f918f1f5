//! Files that appear complete: written under a temporary name next to their place, then renamed. Layer 1.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Code, Error, Result};

/// Serializes a path as text; bytes that are not Unicode are replaced, not refused.
pub(crate) fn path_as_text<S: serde::Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// What files of ours begin their maker's name with, whatever the version.
pub(crate) const MAKER: &str = "Brain-Adapter";

/// The maker's name in files that others read too, by which they are recognized as ours.
pub(crate) const MADE_BY: &str = concat!("Brain-Adapter ", env!("CARGO_PKG_VERSION"));

/// Prefix of temporary names.
pub(crate) const UNFINISHED: &str = ".writing-";

/// A temporary file that replaces another when it is complete. If it is dropped before [`Pending::put`], it is deleted
/// and the old file stays.
pub struct Pending {
    temporary: NamedTempFile<File>,
    path: PathBuf,
}

impl Pending {
    /// An empty file next to `path`. Its temporary name ends in `suffix`, for writers that go by names.
    ///
    /// # Errors
    /// `io` when it cannot be created.
    pub fn next_to(path: &Path, suffix: &str) -> Result<Self> {
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
        let failed = |e| Error::io(&self.path, "cannot write", e);
        self.temporary.as_file().sync_all().map_err(failed)?;
        self.temporary
            .persist(&self.path)
            .map(drop)
            .map_err(|e| Error::io(&self.path, "cannot rename the complete file", e.error))
    }
}

/// Opens an existing file for reading. None if it is a link or no regular file: a link leads elsewhere, and opening a
/// pipe would wait for ever.
pub(crate) fn open_regular(path: &Path) -> io::Result<Option<File>> {
    open_without_following(path, false)
}

/// Copies a regular file to a new one.
pub(crate) fn copy_regular(from: &Path, to: &Path) -> io::Result<()> {
    let Some(mut source) = open_regular(from)? else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a link, or not a file"));
    };
    let mut copy = File::options().write(true).create_new(true).open(to)?;
    io::copy(&mut source, &mut copy)?;
    copy.set_permissions(source.metadata()?.permissions())
}

/// Opens a file, to read it or to append to it (then it is made if it is missing, for the user alone).
#[cfg(unix)]
fn open_without_following(path: &Path, append: bool) -> io::Result<Option<File>> {
    use rustix::fs::{Mode, OFlags};
    let always = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let access = if append { OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE } else { OFlags::RDONLY };
    match rustix::fs::open(path, always | access, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(Some(File::from(file)).filter(|file| file.metadata().is_ok_and(|meta| meta.is_file()))),
        // A link; a pipe that nobody reads, or a socket; a folder.
        Err(rustix::io::Errno::LOOP | rustix::io::Errno::NXIO | rustix::io::Errno::ISDIR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(not(unix))]
fn open_without_following(path: &Path, append: bool) -> io::Result<Option<File>> {
    if std::fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_file()) {
        return Ok(None);
    }
    File::options().read(!append).append(append).create(append).open(path).map(Some)
}

/// An advisory lock: a file that one program at a time holds, until it is dropped or the program ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
    /// Where the file is to be deleted at the end.
    temporary: Option<PathBuf>,
}

impl Lock {
    /// Locks the file at `path`, which is made if it is missing, and stays. None if another program holds it.
    ///
    /// # Errors
    /// `output.exists` when there is a link, a pipe or a folder; `io`.
    pub fn try_new(path: &Path) -> Result<Option<Self>> {
        let opened = open_without_following(path, true).map_err(|e| Error::io(path, "cannot open the lock", e))?;
        let Some(file) = opened else {
            let message = "a lock of this name is needed, and something else is there: move it away";
            return Err(Error::new(Code::OUTPUT_EXISTS, message).at(path));
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file, temporary: None })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(Error::io(path, "cannot lock the file", e)),
        }
    }

    /// As [`Self::try_new`]; the file is deleted when the lock is dropped.
    ///
    /// # Errors
    /// As [`Self::try_new`].
    pub fn try_temporary(path: &Path) -> Result<Option<Self>> {
        loop {
            let Some(mut lock) = Self::try_new(path)? else { return Ok(None) };
            // Whoever held it may have deleted it since it was opened: then it locks nothing.
            if same_file(&lock.file, path) {
                lock.temporary = Some(path.to_owned());
                return Ok(Some(lock));
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is held: nobody else can hold this file, and who opened it finds that it is gone.
        if let Some(path) = self.temporary.take() {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(unix)]
fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let there = std::fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()));
    there.is_ok_and(|there| file.metadata().is_ok_and(|meta| (meta.dev(), meta.ino()) == there))
}

/// An open file cannot be deleted there.
#[cfg(not(unix))]
fn same_file(_: &File, _: &Path) -> bool {
    true
}

/// Writes `bytes` to `path`, completely or not at all.
///
/// # Errors
/// `io` or `disk.full`.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let pending = Pending::next_to(path, "")?;
    pending.file().write_all(bytes).map_err(|e| Error::io(path, "cannot write", e))?;
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
    fn one_lock_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".out.lock");
        let held = Lock::try_temporary(&path).unwrap().unwrap();
        assert!(Lock::try_temporary(&path).unwrap().is_none() && Lock::try_new(&path).unwrap().is_none());
        drop(held);
        assert!(!path.exists());
        let held = Lock::try_new(&path).unwrap().unwrap();
        drop(held);
        assert!(path.exists() && Lock::try_temporary(&path).unwrap().is_some());
    }

    /// Many that take turns: never two at once, and none fails.
    #[test]
    fn locks_that_are_deleted_exclude_each_other() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".out.lock");
        let (inside, turns) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        if let Some(_held) = Lock::try_temporary(&path).unwrap() {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            turns.fetch_add(1, Ordering::SeqCst);
                            inside.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert!(turns.load(Ordering::SeqCst) >= 4);
        assert!(!path.exists());
    }

    #[cfg(unix)]
    #[test]
    fn links_and_pipes_are_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("victim"), b"precious").unwrap();
        std::os::unix::fs::symlink(at("victim"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("none"), at("dangling")).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap();
        assert!(made.success());
        for name in ["link", "dangling", "folder", "pipe"] {
            assert_eq!(Lock::try_new(&at(name)).unwrap_err().code(), Code::OUTPUT_EXISTS, "{name}");
            assert!(copy_regular(&at(name), &at("copy")).is_err(), "{name}");
            assert!(!matches!(open_regular(&at(name)), Ok(Some(_))), "{name}");
        }
        assert!(!at("none").exists() && !at("copy").exists());
        assert_eq!(std::fs::read(at("victim")).unwrap(), b"precious");
        copy_regular(&at("victim"), &at("copy")).unwrap();
        // An existing file is never written over.
        copy_regular(&at("victim"), &at("victim")).unwrap_err();
        assert_eq!(std::fs::read(at("victim")).unwrap(), b"precious");
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
