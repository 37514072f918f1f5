//! Which build of ONNX Runtime a file is: its SHA-256 against those of the pinned version's published builds.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::PINNED_VERSION;
use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::tensor::hex;

/// SHA-256, file, package and platform of the libraries in the pinned version's wheels; `scripts/pin.py` writes it.
const PINNED: &str = include_str!("pinned.txt");
/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

/// A library of ONNX Runtime, as it was before it was loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LibraryFile {
    /// Its absolute path.
    pub path: PathBuf,
    /// Its SHA-256, in lower-case hexadecimal.
    pub sha256: String,
    /// Whether it is one of the published builds of [`PINNED_VERSION`].
    pub pinned: bool,
}

impl LibraryFile {
    /// Hashes a library.
    ///
    /// # Errors
    /// `runtime.missing` when it cannot be read.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let sha256 = sha256_of(path).map_err(|e| {
            Error::new(Code::RUNTIME_MISSING, format!("cannot read ONNX Runtime's library: {e}")).at(path).caused_by(e)
        })?;
        let pinned = is_pinned(&sha256);
        Ok(Self { path: path.to_path_buf(), sha256, pinned })
    }

    /// The warning about a library that is none of the pinned builds.
    pub fn warning(&self) -> Option<Warning> {
        let message = || {
            format!(
                "not a published build of ONNX Runtime {PINNED_VERSION} (SHA-256 {}): use it only if you trust who \
                 made it",
                self.sha256
            )
        };
        (!self.pinned).then(|| Warning::new(WarningCode::RUNTIME_UNPINNED, message()).at(&self.path))
    }
}

/// Whether a hash is that of a pinned build, of any platform.
fn is_pinned(sha256: &str) -> bool {
    PINNED.lines().filter(|line| !line.starts_with('#')).any(|line| line.split(' ').next() == Some(sha256))
}

/// SHA-256 of a file. `bundle` has one too, which a module of the same layer must not use.
fn sha256_of(path: &Path) -> std::io::Result<String> {
    let (mut file, mut hash, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; CHUNK]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_of_the_pinned_version() {
        let header = PINNED.lines().next().unwrap();
        assert!(header.ends_with(&format!("ONNX Runtime {PINNED_VERSION}")), "run scripts/pin.py: {header}");
        let rows: Vec<Vec<&str>> = PINNED.lines().skip(2).map(|line| line.split(' ').collect()).collect();
        assert!(rows.iter().all(|row| row.len() == 4 && row[0].len() == 64 && is_pinned(row[0])));
        for platform in ["manylinux_2_28_x86_64", "manylinux_2_28_aarch64", "macosx_14_0_arm64", "win_amd64"] {
            assert!(rows.iter().any(|row| row[3] == platform && row[1].contains("onnxruntime.")), "{platform}");
        }
        let requirements = include_str!("../../scripts/onnxruntime-requirements.txt");
        assert!(requirements.contains(&format!("\nonnxruntime=={PINNED_VERSION} ")), "run scripts/pin.py");
    }

    #[test]
    fn another_file_is_named_in_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libonnxruntime.so");
        std::fs::write(&path, b"abc").unwrap();
        let file = LibraryFile::read(&path).unwrap();
        assert_eq!(file.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let warning = file.warning().unwrap();
        assert_eq!(warning.code, WarningCode::RUNTIME_UNPINNED);
        assert!(warning.message.starts_with(&path.display().to_string()) && warning.message.contains("ba7816bf"));
        assert_eq!(LibraryFile { pinned: true, ..file }.warning(), None);
        assert!(!is_pinned("") && !is_pinned("#"));
        assert_eq!(LibraryFile::read(&dir.path().join("none")).unwrap_err().code(), Code::RUNTIME_MISSING);
    }
}
