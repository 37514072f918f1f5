//! Locks, and files that are opened without following a link or waiting for a pipe.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::live::{Entry, Kind};
use crate::error::{Code, Error, Result};

/// Opens an existing file for reading. None if it is a link or no regular file: a link leads elsewhere, and opening a
/// pipe would wait for ever.
pub(crate) fn open_regular(path: &Path) -> io::Result<Option<File>> {
    open_without_following(path, Access::Read)
}

/// Opens an existing file in order to lock it: some network file systems lock only what is open for writing.
#[cfg(unix)]
pub(super) fn open_to_lock(path: &Path) -> io::Result<Option<File>> {
    open_without_following(path, Access::Write)
}

/// What a file is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    /// At its start; nothing is truncated.
    #[cfg(unix)]
    Write,
    /// Made if it is missing, for the user alone.
    Append,
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

#[cfg(unix)]
fn open_without_following(path: &Path, access: Access) -> io::Result<Option<File>> {
    use rustix::fs::{Mode, OFlags};
    let always = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let access = match access {
        Access::Read => OFlags::RDONLY,
        Access::Write => OFlags::WRONLY,
        Access::Append => OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE,
    };
    match rustix::fs::open(path, always | access, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(Some(File::from(file)).filter(|file| file.metadata().is_ok_and(|meta| meta.is_file()))),
        // A link; a pipe that nobody reads, or a socket; a folder.
        Err(rustix::io::Errno::LOOP | rustix::io::Errno::NXIO | rustix::io::Errno::ISDIR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(not(unix))]
fn open_without_following(path: &Path, access: Access) -> io::Result<Option<File>> {
    let append = access == Access::Append;
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
    temporary: Option<(PathBuf, Entry)>,
}

impl Lock {
    /// Locks the file at `path`, which is made if it is missing, and stays. None if another program holds it.
    ///
    /// # Errors
    /// `output.exists` when there is a link, a pipe or a folder; `io`.
    pub fn try_new(path: &Path) -> Result<Option<Self>> {
        let opened =
            open_without_following(path, Access::Append).map_err(|e| Error::io(path, "cannot open the lock", e))?;
        let Some(file) = opened else {
            let message = "a lock of this name is needed, and something else is there: move it away";
            return Err(Error::new(Code::OUTPUT_EXISTS, message).at(path));
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file, temporary: None })),
            Err(TryLockError::WouldBlock) => Ok(None),
            // A file system without locks, as some of clusters are: there is no protection.
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {
                Ok(Some(Self { file, temporary: None }))
            }
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
                let made = Entry::make(Kind::Lock, || Ok(((), path.to_owned())));
                let ((), entry) = made.map_err(|e| Error::io(path, "cannot lock the file", e))?;
                lock.temporary = Some((path.to_owned(), entry));
                return Ok(Some(lock));
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is held: nobody else can hold this file, and who opened it finds that it is gone.
        if let Some((path, _entry)) = self.temporary.take() {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Locks a file that was just made; whether it is still at its path.
pub(super) fn hold(file: &File, path: &Path) -> bool {
    // Locks are mandatory elsewhere: writers that open the file by its name could not write.
    if !cfg!(unix) {
        return true;
    }
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => false,
        // Where the file system has no locks, nobody can take it away either.
        Ok(()) | Err(TryLockError::Error(_)) => same_file(file, path),
    }
}

#[cfg(unix)]
pub(super) fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let there = std::fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()));
    there.is_ok_and(|there| file.metadata().is_ok_and(|meta| (meta.dev(), meta.ino()) == there))
}

/// An open file cannot be deleted there.
#[cfg(not(unix))]
pub(super) fn same_file(_: &File, _: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
