//! A checkpoint file in memory: mapped from disk, or bytes handed over; and ranges of it as tensor sources.
//!
//! Flows in: a path. Flows out: `&[u8]` and [`Mapped`] sources over byte ranges.
//!
//! # Safety
//! The one `unsafe` file of this module. Only regular files are mapped, read-only; small ones are read. As with every
//! mapping, a program that overwrites the file meanwhile changes weights under way, which [`Mapping::unchanged`] tells
//! afterwards, and one that truncates it makes the kernel end this program (SIGBUS), unless it handles that, as the
//! commands do. No memory of ours can be harmed, for every byte pattern is a valid `u8` and nothing is trusted twice:
//! what is checked (sizes, offsets) is copied out of the mapping first.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Code, Error, Result};
use crate::files::Identity;
use crate::files::mapped::{CHANGED, Kind, Registered};
use crate::tensor::{CHUNK_BYTES, Sink, Source};

/// Files of at most so many bytes are read instead of mapped: nothing can change them any more.
const SMALL_BYTES: u64 = 1 << 20;

/// Pages are given back after every so many bytes streamed.
const RELEASE_BYTES: usize = 16 * CHUNK_BYTES;

enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

/// A whole file's bytes and its name.
pub(super) struct Mapping {
    bytes: Bytes,
    path: PathBuf,
    /// What the file system reported when it was opened; none for bytes that were handed over.
    identity: Option<Identity>,
    _registered: Option<Registered>,
}

impl Mapping {
    /// Maps the regular file at `path`.
    ///
    /// # Errors
    /// `checkpoint.not_found`; `checkpoint.format` when it is no regular file; `checkpoint.truncated` when it is
    /// empty; `io` when it cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        // Before opening: opening a pipe would wait for a writer.
        let about = std::fs::metadata(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => not_found(path).caused_by(e),
            _ => Error::io(path, "cannot open the checkpoint", e),
        })?;
        if !about.is_file() {
            let what = if about.is_dir() { "a folder" } else { "a device, pipe or socket" };
            let message = format!("is {what}, expected a regular file");
            return Err(Error::new(Code::CHECKPOINT_FORMAT, message).at(path));
        }
        if about.len() == 0 {
            let message = "is empty (0 bytes): copy or download the checkpoint again";
            return Err(Error::new(Code::CHECKPOINT_TRUNCATED, message).at(path));
        }
        let file = File::open(path).map_err(|e| Error::io(path, "cannot open the checkpoint", e))?;
        let about = file.metadata().map_err(|e| Error::io(path, "cannot open the checkpoint", e))?;
        let identity = Identity::of(&about);
        if about.len() <= SMALL_BYTES {
            let mut bytes = Vec::new();
            // Not more than it had: it may be growing.
            let read = (&file).take(about.len()).read_to_end(&mut bytes);
            read.map_err(|e| Error::io(path, "cannot read the checkpoint", e))?;
            let copy =
                Self { bytes: Bytes::Owned(bytes), path: path.to_owned(), identity: Some(identity), _registered: None };
            copy.unchanged()?;
            return Ok(Arc::new(copy));
        }
        // SAFETY: a read-only mapping of a regular file, of which only bytes are ever read; see the module's
        // section on safety for what another process can do to it.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "cannot map the checkpoint", e))?;
        let registered = Some(Registered::new(path, Kind::Checkpoint));
        let (path, identity) = (path.to_owned(), Some(identity));
        Ok(Arc::new(Self { bytes: Bytes::Mapped(map), path, identity, _registered: registered }))
    }

    /// Bytes in memory, as if they were the file `path`.
    pub fn owned(bytes: Vec<u8>, path: &Path) -> Arc<Self> {
        Arc::new(Self { bytes: Bytes::Owned(bytes), path: path.to_owned(), identity: None, _registered: None })
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }

    /// What the file system reported of the file when it was opened; none for bytes that were handed over.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Makes sure that the file was not written to and not replaced since it was opened.
    ///
    /// # Errors
    /// `checkpoint.changed`.
    pub fn unchanged(&self) -> Result<()> {
        self.identity.as_ref().map_or(Ok(()), |identity| unchanged(&self.path, identity))
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the pages of a range back to the system; they are read from the file again when they are needed.
    fn release(&self, range: &Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = &self.bytes
            && range.end <= map.len()
            && range.len() >= CHUNK_BYTES
        {
            // SAFETY: on a shared read-only file mapping DONTNEED drops page-table entries and nothing else: the
            // addresses stay mapped, and reading them again gives the file's bytes again, so that slices borrowed
            // elsewhere stay valid. The range lies inside the mapping (checked above).
            let hint =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
            // It is a hint: refused, it costs memory and nothing else.
            drop(hint);
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

/// The error for a path where nothing is, or a link whose target is gone.
pub(super) fn not_found(path: &Path) -> Error {
    let Ok(target) = std::fs::read_link(path) else {
        return Error::new(Code::CHECKPOINT_NOT_FOUND, "there is no such file or folder").at(path);
    };
    let target = target.display();
    let message = format!("is a link that leads nowhere (to {target}): download or copy the file itself again");
    Error::new(Code::CHECKPOINT_NOT_FOUND, message).at(path)
}

/// Makes sure that the file at `path` is as it was when it had this identity.
///
/// # Errors
/// `checkpoint.changed`.
pub(super) fn unchanged(path: &Path, identity: &Identity) -> Result<()> {
    match Identity::at(path) {
        Ok(now) if now == *identity => Ok(()),
        _ => Err(Error::new(Kind::Checkpoint.changed(), CHANGED).at(path)),
    }
}

/// A range of a [`Mapping`] as the bytes of a tensor, row-major and little-endian.
pub(super) struct Mapped {
    map: Arc<Mapping>,
    range: Range<usize>,
}

impl Mapped {
    /// The range `range` of `map`, or `None` when it does not lie inside.
    pub fn new(map: &Arc<Mapping>, range: Range<usize>) -> Option<Self> {
        map.bytes().get(range.clone())?;
        Some(Self { map: Arc::clone(map), range })
    }

    /// The bytes of the range.
    pub fn bytes(&self) -> &[u8] {
        &self.map.bytes()[self.range.clone()]
    }
}

impl Source for Mapped {
    fn stream(&self, sink: &mut Sink<'_>) -> Result<()> {
        let mut at = self.range.start;
        for part in self.bytes().chunks(RELEASE_BYTES) {
            part.chunks(CHUNK_BYTES).try_for_each(&mut *sink)?;
            self.map.release(&(at..at + part.len()));
            at += part.len();
        }
        Ok(())
    }

    fn contiguous(&self) -> Option<&[u8]> {
        Some(self.bytes())
    }

    fn release(&self) {
        self.map.release(&self.range);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn released_pages_read_the_same_again() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let data: Vec<u8> = (0..40 * CHUNK_BYTES).map(|i| (i / 7) as u8).collect();
        file.write_all(&data).unwrap();
        let map = Mapping::open(file.path()).unwrap();
        let range = Mapped::new(&map, 5..data.len() - 3).unwrap();
        let held = range.contiguous().unwrap();
        for _ in 0..2 {
            let mut seen = Vec::new();
            range
                .stream(&mut |c| {
                    seen.extend_from_slice(c);
                    Ok(())
                })
                .unwrap();
            assert!(seen == data[5..data.len() - 3] && held == seen);
        }
        range.release();
        assert!(held == &data[5..data.len() - 3]);
        assert!(Mapped::new(&map, 0..data.len() + 1).is_none());
    }

    #[test]
    fn only_regular_files_are_mapped() {
        let code = |p: &str| Mapping::open(Path::new(p)).map(|_| ()).unwrap_err().code();
        assert_eq!(code("/"), Code::CHECKPOINT_FORMAT);
        assert_eq!(code("/no/such/file"), Code::CHECKPOINT_NOT_FOUND);
        #[cfg(unix)]
        assert_eq!(code("/dev/zero"), Code::CHECKPOINT_FORMAT);
    }
}
