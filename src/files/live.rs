//! The temporary files and folders that this process has now. A program that a signal ends ([`halt`]) removes them
//! before it ends; the library itself handles no signal.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

struct Live {
    next: u64,
    paths: BTreeMap<u64, (PathBuf, Kind)>,
}

/// Tries to remove a folder, and the time between two.
const ATTEMPTS: usize = 50;
const PAUSE: Duration = Duration::from_millis(5);

/// When something temporary is removed by [`halt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// At once.
    Unfinished,
    /// At the very end: another program may begin as soon as it is gone.
    Lock,
}

static LIVE: Mutex<Live> = Mutex::new(Live { next: 0, paths: BTreeMap::new() });

fn live() -> MutexGuard<'static, Live> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something temporary; it is no longer this process's when this is dropped.
#[derive(Debug)]
pub(super) struct Entry(u64);

impl Entry {
    /// Makes something temporary and registers it, in one step: [`halt`] finds it, or it is never made.
    pub(super) fn make<T>(kind: Kind, make: impl FnOnce() -> io::Result<(T, PathBuf)>) -> io::Result<(T, Self)> {
        let mut live = live();
        let (made, path) = make()?;
        let id = live.next;
        live.next += 1;
        live.paths.insert(id, (path, kind));
        Ok((made, Self(id)))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        live().paths.remove(&self.0);
    }
}

/// Does what puts files into place while no [`halt`] removes them: `work` is done as a whole, or never begun.
pub(crate) fn undisturbed<T>(work: impl FnOnce() -> T) -> T {
    let _live = live();
    work()
}

/// From [`halt`] on: nothing temporary is made, and nothing is put into place. Who tries waits for the end.
pub struct Halted(MutexGuard<'static, Live>);

/// Removes the temporary files and folders of this process, all but locks, and keeps every thread from making others
/// and from putting files into place. For a program that is about to end: threads that try wait from now on.
pub fn halt() -> Halted {
    let live = live();
    remove(&live, Kind::Unfinished);
    Halted(live)
}

impl Halted {
    /// Removes the locks. The process must end right after: other programs may write from now on.
    pub fn release(self) {
        remove(&self.0, Kind::Lock);
        std::mem::forget(self);
    }
}

/// Small things first: time is short. What cannot be removed stays for the next start.
fn remove(live: &Live, kind: Kind) {
    let paths = || live.paths.values().filter(|(_, of)| *of == kind).map(|(path, _)| path);
    let is_folder = |path: &&PathBuf| path_kind(path).is_some_and(|kind| kind.is_dir());
    for file in paths().filter(|path| !is_folder(path)) {
        let _ = std::fs::remove_file(file);
    }
    for folder in paths().filter(is_folder) {
        // Other threads still write: a file that is made in between keeps the folder.
        for _ in 0..ATTEMPTS {
            if std::fs::remove_dir_all(folder).is_ok() || path_kind(folder).is_none() {
                break;
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn path_kind(path: &Path) -> Option<std::fs::FileType> {
    std::fs::symlink_metadata(path).ok().map(|meta| meta.file_type())
}
