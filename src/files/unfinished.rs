//! Temporary files and folders: which this process is writing, and which a killed one has left.
//!
//! A program that is told to end (Ctrl-C) has no time to unwind its threads; it calls [`remove_all`] and exits. The
//! register is a list of paths behind a mutex, which is also held while a complete file or folder gets its name: a
//! signal comes before or after that, never in between. A program that is killed leaves its files; the next one that
//! writes into the same folder removes them ([`remove_abandoned`]).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Prefix of temporary names; [`RANDOM`] letters and digits follow, then perhaps a suffix that begins with a dot.
pub(super) const PREFIX: &str = ".writing-";
/// Number of random characters in a temporary name.
pub(super) const RANDOM: usize = 6;

/// What this process is writing.
static REGISTER: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn register() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    // The set is whole at every moment at which a thread can panic.
    REGISTER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The registration of a temporary file or folder, until it is dropped. It removes nothing.
pub(crate) struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    /// Registers a file or folder that exists.
    pub fn new(path: &Path) -> Self {
        // The working folder of the process may change.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        register().insert(path.clone());
        Self { path }
    }

    /// Runs `rename`, which gives the complete file or folder its name: [`remove_all`] waits for it.
    pub fn complete<T>(&self, rename: impl FnOnce() -> T) -> T {
        let _held = register();
        rename()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        register().remove(&self.path);
    }
}

/// Removes all that this process is writing, and keeps the register locked for ever: no other thread can begin or
/// complete a file after this. For a process that is about to end at once.
pub fn remove_all() {
    let held = register();
    for path in &*held {
        // A thread may still write into a folder while it is removed.
        for _ in 0..3 {
            let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            if removed.is_ok() {
                break;
            }
        }
    }
    std::mem::forget(held);
}

/// As [`remove_abandoned`], once for each folder in the life of a process.
pub(super) fn remove_abandoned_once(folder: &Path) {
    static DONE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let first = |path| DONE.lock().unwrap_or_else(PoisonError::into_inner).insert(path);
    if std::path::absolute(folder).is_ok_and(first) {
        remove_abandoned(folder);
    }
}

/// Removes the temporary files that killed programs have left in `folder`. One that cannot be removed does no harm.
pub(crate) fn remove_abandoned(folder: &Path) {
    // Elsewhere a file that is written is not locked: its writer opens it a second time.
    if !cfg!(unix) {
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(is_temporary);
        if !ours || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        // Whoever writes it holds its lock.
        let abandoned = File::options().write(true).open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if abandoned {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether a name is one of this module's.
fn is_temporary(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let (random, suffix) = rest.split_at_checked(RANDOM).unwrap_or(("", rest));
    let plain = !random.is_empty() && random.bytes().all(|b| b.is_ascii_alphanumeric());
    plain && (suffix.is_empty() || suffix.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Pending, replace};

    #[test]
    fn what_killed_programs_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in [".writing-abc123", ".writing-Zz09xy.nii.gz"] {
            fs::write(at(name), "half").unwrap();
        }
        let others =
            [".writing-notes-on-my-thesis", ".writing-abc12", ".writing-abc1234", "writing-abc123", ".writing-"];
        others.iter().for_each(|name| fs::write(at(name), "thesis").unwrap());
        fs::create_dir(at(".writing-folder")).unwrap();
        let writing = Pending::next_to(&at("a"), ".png").unwrap();
        assert!(!at(".writing-abc123").exists() && !at(".writing-Zz09xy.nii.gz").exists());
        // One that is written now stays.
        replace(&at("b"), b"b").unwrap();
        writing.put().unwrap();
        assert!(at("a").exists() && at("b").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), others.len() + 3);
    }

    #[test]
    fn many_writers_at_once() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let folder = dir.path();
                scope.spawn(move || {
                    for i in 0..100 {
                        let path = folder.join(format!("{thread}-{}", i % 3));
                        remove_abandoned(folder);
                        replace(&path, format!("{i}").as_bytes()).unwrap();
                        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{i}"));
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 12);
    }
}
