//! SHA-256 of files.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::tensor::hex;

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

/// SHA-256 of a file, in lower-case hexadecimal; reads a megabyte at a time.
///
/// # Errors
/// `io` when the file cannot be read.
pub fn sha256_of(path: &Path) -> Result<String> {
    hash_file(path, &AtomicBool::new(false)).map(|(_, sha256)| sha256)
}

/// Size in bytes and SHA-256 of a file, as [`sha256_of`]. Setting `stop` from another thread ends the reading early;
/// the result is then that of the part that was read.
///
/// # Errors
/// `io` when the file cannot be read.
pub(crate) fn hash_file(path: &Path, stop: &AtomicBool) -> Result<(u64, String)> {
    let file = File::open(path).map_err(|e| Error::io(path, "cannot open the file", e))?;
    hash(file, stop, &mut |_| ()).map_err(|e| Error::io(path, "cannot read the file", e))
}

/// Size in bytes and SHA-256 of an open file, from its beginning, whatever else reads it; `sink` gets the bytes too.
///
/// # Errors
/// Those of the system.
pub(super) fn hash_open(file: &File, sink: &mut dyn FnMut(&[u8])) -> std::io::Result<(u64, String)> {
    hash(FromStart { file, at: 0 }, &AtomicBool::new(false), sink)
}

fn hash(mut from: impl Read, stop: &AtomicBool, sink: &mut dyn FnMut(&[u8])) -> std::io::Result<(u64, String)> {
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; CHUNK]);
    while !stop.load(Ordering::Relaxed) {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                hash.update(&buffer[..n]);
                sink(&buffer[..n]);
                bytes += n as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok((bytes, hex(&hash.finalize())))
}

/// Reads a file without the position that all its readers share.
struct FromStart<'a> {
    file: &'a File,
    at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        #[cfg(unix)]
        let n = std::os::unix::fs::FileExt::read_at(self.file, buffer, self.at)?;
        #[cfg(windows)]
        let n = std::os::windows::fs::FileExt::seek_read(self.file, buffer, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_files_shorter_and_longer_than_a_chunk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for bytes in [0, 3, CHUNK, CHUNK + 1] {
            let content = vec![7; bytes];
            std::fs::write(&path, &content).unwrap();
            let expected = (bytes as u64, hex(&Sha256::digest(&content)));
            assert_eq!(hash_file(&path, &AtomicBool::new(false)).unwrap(), expected);
            assert_eq!(sha256_of(&path).unwrap(), expected.1);
        }
        assert_eq!(hash_file(&path, &AtomicBool::new(true)).unwrap().0, 0);
        assert_eq!(sha256_of(dir.path()).unwrap_err().code(), crate::Code::IO);
    }
}
