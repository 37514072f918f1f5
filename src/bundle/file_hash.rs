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
    let mut file = File::open(path).map_err(|e| Error::io(path, "cannot open the file", e))?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; CHUNK]);
    while !stop.load(Ordering::Relaxed) {
        match file.read(&mut buffer).map_err(|e| Error::io(path, "cannot read the file", e))? {
            0 => break,
            n => {
                hash.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
    Ok((bytes, hex(&hash.finalize())))
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
