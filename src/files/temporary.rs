//! Temporary files and folders: how they are named, how they are locked, and how those that killed programs left are
//! removed.
//!
//! Each one is locked by the program that writes it, for as long as it has its temporary name. So a name of this
//! module's pattern whose lock is free belongs to nobody any more. Only the exact pattern is ever removed, a prefix
//! followed by ten random characters: a file that somebody calls `.writing-thesis` is not.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::{NamedTempFile, TempDir};

use super::live::{Entry, Kind};
#[cfg(unix)]
use super::lock::open_to_lock;
use super::lock::{hold, same_file};
use crate::error::{Error, Result};

/// What the names of temporary files begin with.
const FILE: &str = ".writing-ba-";
/// What follows the name of the finished folder in those of temporary folders, after a dot.
const FOLDER: &str = ".partial-ba-";
/// Random letters and digits after these.
const RANDOM: usize = 10;
/// Suffix of a folder's name before it is locked.
const UNLOCKED: &str = ".new";
/// Tries to make something that a program that cleans up removes before it is locked.
const ATTEMPTS: usize = 16;

/// A new, locked file in `folder`, for its owner as `mode` says (less the umask).
pub(super) fn file(folder: &Path, suffix: &str, mode: u32) -> io::Result<(NamedTempFile<File>, Entry)> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(FILE).rand_bytes(RANDOM).suffix(suffix);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(mode));
    }
    #[cfg(not(unix))]
    let _ = mode;
    Entry::make(Kind::Unfinished, || {
        for _ in 0..ATTEMPTS {
            let made = builder.tempfile_in(folder)?;
            // Another program may take it for an abandoned one before it is locked.
            if hold(made.as_file(), made.path()) {
                let path = made.path().to_owned();
                return Ok((made, path));
            }
        }
        Err(io::ErrorKind::Other.into())
    })
}

/// A temporary folder next to its final place, private to the program that writes it; deleted when it is dropped.
#[derive(Debug)]
pub struct TemporaryFolder {
    path: PathBuf,
    _entry: Entry,
    /// Held while the folder is in use, which distinguishes it from one that a killed program left.
    _lock: Option<File>,
}

impl TemporaryFolder {
    /// A new folder in `parent`, for the final name `name`. What killed programs left in `parent` is removed.
    ///
    /// # Errors
    /// `io`, `disk.full`.
    pub fn new(parent: &Path, name: &str) -> Result<Self> {
        remove_abandoned(parent);
        let made = Entry::make(Kind::Unfinished, || {
            let (path, lock) = locked_folder(parent, &format!(".{name}{FOLDER}"))?;
            Ok(((path.clone(), lock), path))
        });
        let ((path, lock), entry) = made.map_err(|e| Error::io(parent, "cannot create a temporary folder", e))?;
        Ok(Self { path, _entry: entry, _lock: lock })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // Once it is in its final place it is gone (or is the old folder). A failure cannot be reported from here.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Creates a folder with this prefix and locks it. It gets its name only once it is locked: a program that sees the
/// name and obtains the lock knows that the creator is gone.
fn locked_folder(parent: &Path, prefix: &str) -> io::Result<(PathBuf, Option<File>)> {
    let mut outcome = Err(io::ErrorKind::NotFound.into());
    for _ in 0..ATTEMPTS {
        let mut builder = tempfile::Builder::new();
        let made: TempDir = builder.prefix(prefix).rand_bytes(RANDOM).suffix(UNLOCKED).tempdir_in(parent)?;
        let lock = File::open(made.path()).ok().filter(|f| f.try_lock().is_ok());
        let folder = made.path().with_extension("");
        // Another program may have deleted the empty folder as an abandoned one.
        outcome = fs::rename(made.path(), &folder);
        if outcome.is_ok() {
            // It has another name now: there is nothing left under the old one.
            return Ok((folder, lock));
        }
    }
    Err(outcome.err().unwrap_or_else(|| io::ErrorKind::Other.into()))
}

/// As [`remove_abandoned`], the first time that this process writes into `folder`.
pub(super) fn remove_abandoned_once(folder: &Path) {
    static SEEN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    if SEEN.lock().unwrap_or_else(PoisonError::into_inner).insert(absolute) {
        remove_abandoned(folder);
    }
}

/// Deletes what killed programs left in a folder: temporary files, and unfinished folders, which can have tens of
/// gigabytes that the next export needs. What another program holds stays, and so does all that is not of this
/// module's names. A failure is ignored.
pub fn remove_abandoned(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        // Not that of a link's target.
        let (Some(name), Ok(kind)) = (name.to_str(), entry.file_type()) else { continue };
        if kind.is_file() && is_file(name) {
            remove_file(&path);
        } else if kind.is_dir() && name.strip_suffix(UNLOCKED).is_some_and(is_folder) {
            // Nothing is written under this name: only an empty folder is deleted, and its creator makes another.
            let _ = fs::remove_dir(&path);
        } else if kind.is_dir()
            && is_folder(name)
            && let Ok(opened) = File::open(&path)
            && opened.try_lock().is_ok()
            && same_file(&opened, &path)
        {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

#[cfg(unix)]
fn remove_file(path: &Path) {
    if let Ok(Some(file)) = open_to_lock(path)
        && file.try_lock().is_ok()
        && same_file(&file, path)
    {
        let _ = fs::remove_file(path);
    }
}

/// Nothing tells an abandoned file from another program's there.
#[cfg(not(unix))]
fn remove_file(_: &Path) {}

/// Whether a name is one of [`file`]'s.
fn is_file(name: &str) -> bool {
    let Some((random, suffix)) = name.strip_prefix(FILE).and_then(|rest| rest.split_at_checked(RANDOM)) else {
        return false;
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '.';
    is_random(random) && (suffix.is_empty() || suffix.starts_with('.') && suffix.chars().all(plain))
}

/// Whether a name is that of a [`TemporaryFolder`].
fn is_folder(name: &str) -> bool {
    let parts = name.strip_prefix('.').and_then(|rest| rest.rsplit_once(FOLDER));
    parts.is_some_and(|(name, random)| !name.is_empty() && random.len() == RANDOM && is_random(random))
}

fn is_random(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric())
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    #[test]
    fn what_nobody_holds_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let folder = |name: &str, file: bool| {
            fs::create_dir(at(name)).unwrap();
            if file {
                fs::write(at(name).join("text.onnx.data"), b"half").unwrap();
            }
            File::open(at(name)).unwrap()
        };
        folder(".onnx.partial-ba-0123456789", true);
        folder(".0002.partial-ba-AbCdEfGhIj", true);
        folder(".onnx.partial-ba-012345678a.new", false);
        folder(".full.partial-ba-0123456789.new", true);
        let held = folder(".held.partial-ba-0123456789", true);
        held.try_lock().unwrap();
        for name in [".writing-ba-0123456789", ".writing-ba-0123456789.nii.gz"] {
            fs::write(at(name), b"half").unwrap();
        }
        let mine = [
            ".onnx.partial-thesis",
            ".writing-ba-01234",
            ".writing-ba-0123456789-2",
            ".writing-ba-0123456789~",
            ".writing-thesis",
            ".onnx.partial-ba-0123456789.tar",
            "writing-ba-0123456789",
        ];
        mine.iter().for_each(|name| fs::write(at(name), b"precious").unwrap());
        fs::write(at("victim"), b"precious").unwrap();
        std::os::unix::fs::symlink(at("victim"), at(".writing-ba-aaaaaaaaaa")).unwrap();
        folder("elsewhere", true);
        std::os::unix::fs::symlink(at("elsewhere"), at(".link.partial-ba-0123456789")).unwrap();
        let (pending, _entry) = super::file(dir.path(), ".json", 0o600).unwrap();
        let held_file = pending.path().file_name().unwrap().to_str().unwrap().to_owned();
        remove_abandoned(dir.path());
        let mut left: Vec<String> = mine.map(str::to_owned).to_vec();
        left.extend(["victim", ".writing-ba-aaaaaaaaaa", "elsewhere", ".link.partial-ba-0123456789"].map(String::from));
        left.extend([".full.partial-ba-0123456789.new", ".held.partial-ba-0123456789"].map(String::from));
        left.push(held_file);
        left.sort();
        assert_eq!(names(dir.path()), left);
        assert_eq!(fs::read(at("elsewhere").join("text.onnx.data")).unwrap(), b"half");
    }

    /// Writers and cleaners at once: no file is removed under its writer.
    #[test]
    fn nobody_loses_a_file_that_is_being_written() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for i in 0..4 {
                let dir = dir.path();
                scope.spawn(move || {
                    for round in 0..100 {
                        let path = dir.join(format!("{i}.json"));
                        crate::files::replace(&path, format!("{round}").as_bytes()).unwrap();
                        remove_abandoned(dir);
                        assert_eq!(fs::read_to_string(path).unwrap(), round.to_string());
                    }
                });
            }
        });
        assert_eq!(names(dir.path()), ["0.json", "1.json", "2.json", "3.json"]);
    }
}
