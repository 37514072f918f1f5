//! Which files are mapped, or may be mapped by ONNX Runtime: so that a program can tell what a bus error is about.
//!
//! Reading a mapped page that lies behind the end of its file is a bus error (SIGBUS), which ends a process. The
//! library installs no handler, since handlers are the program's; the commands do (`cli::bus_error`), and ask here
//! whether the file under the address is one of ours.
//!
//! Names are kept as hashes in a fixed table of atomics: looking one up allocates nothing and waits for nobody.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Code;

/// The most files at a time; further ones are not known here, so that their bus error ends the program.
const SLOTS: usize = 1024;

/// Hashes of names, the kind in the lowest bit; 0 in a free slot.
static TABLE: [AtomicU64; SLOTS] = [const { AtomicU64::new(0) }; SLOTS];

/// What a mapped file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file of a bundle, or a copy of one in a cache.
    Bundle,
    /// A checkpoint.
    Checkpoint,
}

impl Kind {
    /// The code of an error that says the file was changed.
    pub fn changed(self) -> Code {
        match self {
            Self::Bundle => Code::BUNDLE_CHANGED,
            Self::Checkpoint => Code::CHECKPOINT_CHANGED,
        }
    }
}

/// What the error of a file says that was changed while it was in use.
pub const CHANGED: &str = "the file was changed while it was in use: run the command again once it stays as it is";

/// A file that is known here until this is dropped.
#[derive(Debug)]
pub struct Registered(Option<u64>);

impl Registered {
    /// Makes the file at `path` known.
    pub fn new(path: &Path, kind: Kind) -> Self {
        let Ok(path) = path.canonicalize() else { return Self(None) };
        // As the system writes it in `/proc/self/maps`, where a line break is the one character that is escaped.
        let name = path.as_os_str().as_encoded_bytes().split(|b| *b == b'\n').collect::<Vec<_>>().join(&b"\\012"[..]);
        let entry = entry(&name, kind);
        let free = |slot: &&AtomicU64| slot.compare_exchange(0, entry, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        Self(TABLE.iter().find(free).map(|_| entry))
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let Some(entry) = self.0 else { return };
        // One slot of those with this name: the file may be open twice.
        let own = |slot: &&AtomicU64| slot.compare_exchange(entry, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let _ = TABLE.iter().find(own);
    }
}

/// What the file of this absolute name is, if it is known.
pub fn kind_of(path: &[u8]) -> Option<Kind> {
    let known = |kind: &Kind| TABLE.iter().any(|slot| slot.load(Ordering::Acquire) == entry(path, *kind));
    [Kind::Bundle, Kind::Checkpoint].into_iter().find(known)
}

/// FNV-1a, with the kind in the lowest bit and never 0.
fn entry(path: &[u8], kind: Kind) -> u64 {
    let hash = path.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    let kind = u64::from(kind == Kind::Checkpoint);
    ((hash | 2) & !1) | kind
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_while_it_is_registered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("w.data");
        std::fs::write(&path, "abc").unwrap();
        let name = path.as_os_str().as_encoded_bytes();
        let (one, two) = (Registered::new(&path, Kind::Bundle), Registered::new(&path, Kind::Bundle));
        assert_eq!((kind_of(name), kind_of(&name[1..])), (Some(Kind::Bundle), None));
        drop(one);
        assert_eq!(kind_of(name), Some(Kind::Bundle));
        drop(two);
        assert_eq!(kind_of(name), None);
        let _checkpoint = Registered::new(&path, Kind::Checkpoint);
        assert_eq!(kind_of(name), Some(Kind::Checkpoint));
        assert!(Registered::new(&dir.path().join("none"), Kind::Bundle).0.is_none());
    }
}
