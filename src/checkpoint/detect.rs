//! Detects a file's format from its first bytes, never from its name.
//!
//! Flows in: the mapped file. Flows out: its tensors, from the reader that its content asks for, or an error
//! (`checkpoint.format`) that says what the file is instead.
//!
//! # Safety
//! No `unsafe`; only prefixes are read.

use std::sync::Arc;

use super::mapping::Mapping;
use super::zip_records::records;
use super::{Contents, ort_training, safetensors, torch_legacy, torch_zip};
use crate::error::{Code, Error, Result};

/// Things that are met in place of a checkpoint: their first bytes, what they are, what to do.
const OTHERS: &[(&[u8], &str)] = &[
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"GGUF", "a GGUF file (llama.cpp): use the Hugging Face or Meta checkpoint that it was made from"),
    (b"\x89HDF\r\n", "an HDF5 file (Keras?)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "gzip-compressed: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed: unpack it first"),
    (b"\xfd7zXZ", "xz-compressed: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program"),
    (b"\x89PNG", "an image"),
    (b"ORTM", "an ONNX Runtime model: the PyTorch checkpoint is needed"),
];

/// Reads a single-file checkpoint.
pub(super) fn read(map: &Arc<Mapping>) -> Result<Contents> {
    read_at(map, None)
}

/// Reads a single-file checkpoint: the state dict under `key`, where one is given.
pub(super) fn read_at(map: &Arc<Mapping>, key: Option<&str>) -> Result<Contents> {
    let bytes = map.bytes();
    // First: bytes 8 and on are offsets, which can look like another format's mark.
    if ort_training::is_ort_training(bytes) {
        return ort_training::read(map).and_then(|contents| contents.without_key(key));
    }
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
        return torch_zip::read(map, key);
    }
    if torch_legacy::is_legacy(bytes) {
        return torch_legacy::read(map, key);
    }
    if safetensors::is_safetensors(bytes) {
        return safetensors::read(map).and_then(|contents| contents.without_key(key));
    }
    if let [0x80, 0..=5, ..] = bytes {
        return Err(torch_legacy::refuse_bare_pickle(bytes));
    }
    Err(refuse(bytes))
}

/// Whether the file is of a format that holds weights, by its first bytes and, of a zip archive, its directory.
pub(super) fn holds_weights(map: &Arc<Mapping>) -> bool {
    let bytes = map.bytes();
    if bytes.starts_with(b"PK\x03\x04") {
        return records(map).is_ok_and(|all| all.keys().any(|name| name.ends_with("/data.pkl")));
    }
    torch_legacy::is_legacy(bytes) || safetensors::is_whole(bytes)
}

/// Whether the file begins with a JSON object.
pub(super) fn is_json(bytes: &[u8]) -> bool {
    let other = safetensors::is_safetensors(bytes) || ort_training::is_ort_training(bytes);
    !other && bytes.trim_ascii_start().starts_with(b"{")
}

/// The error that says what a file is which is no checkpoint.
fn refuse(bytes: &[u8]) -> Error {
    let what = OTHERS.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, what)| *what);
    let start = &bytes[..bytes.len().min(512)];
    let lower = start.to_ascii_lowercase();
    let text = std::str::from_utf8(start).is_ok() || start.is_ascii();
    let holds = |needle: &[u8]| lower.windows(needle.len()).any(|w| w == needle);
    let what = match what {
        Some(what) => what,
        None if lower.trim_ascii_start().starts_with(b"<") && (holds(b"<html") || holds(b"<!doctype")) => {
            "an HTML page: the download got a web page instead of the file"
        }
        None if is_onnx(bytes) => "an ONNX model: the PyTorch checkpoint is needed",
        None if bytes.get(257..262) == Some(b"ustar") => {
            "a tar archive (PyTorch before 0.1.10 wrote such): unpack it, or load and save it with a newer PyTorch"
        }
        None if bytes.len() < 16 => {
            let message = format!("ends after {} bytes: too short for any checkpoint", bytes.len());
            return Error::new(Code::CHECKPOINT_TRUNCATED, message);
        }
        None if bytes.iter().all(|&b| b == 0) => "zeros only: the copy or download did not finish",
        None if text && !start.contains(&0) => "plain text",
        None => "of no known format",
    };
    Error::new(Code::CHECKPOINT_FORMAT, format!("is {what}; expected safetensors, or a file written by torch.save"))
}

/// Whether the file begins like an ONNX `ModelProto`: field 1 (`ir_version`, a small number), then a plausible field.
fn is_onnx(bytes: &[u8]) -> bool {
    matches!(bytes, [0x08, 1..=32, 0x12 | 0x1a | 0x22 | 0x2a | 0x32 | 0x3a | 0x42, ..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn other_things_are_named() {
        for (bytes, code, words) in [
            (&b"<!DOCTYPE html><html><body>404"[..], Code::CHECKPOINT_FORMAT, "HTML"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:", Code::CHECKPOINT_FORMAT, "Git LFS"),
            (b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0", Code::CHECKPOINT_FORMAT, "GGUF"),
            (b"\x08\x08\x12\x07pytorch\x1a\x052.15:", Code::CHECKPOINT_FORMAT, "ONNX"),
            (b"learning rate: 0.001, epochs: 30\n", Code::CHECKPOINT_FORMAT, "plain text"),
            (b"\x08\0\0", Code::CHECKPOINT_TRUNCATED, "3 bytes"),
            (&[0; 64], Code::CHECKPOINT_FORMAT, "zeros"),
            (b"\xff\xfe\xfd\xfc\xff\xfe\xfd\xfc\xff\xfe\xfd\xfc\xff\xfe\xfd\xfc", Code::CHECKPOINT_FORMAT, "no known"),
            (b"\x80\x02}q\0.", Code::CHECKPOINT_FORMAT, "plain pickle"),
            (b"\x80\x02cposix\nsystem\nq\0.", Code::CHECKPOINT_UNSAFE_PICKLE, "posix.system"),
        ] {
            let error = read(&Mapping::owned(bytes.to_vec(), Path::new("m"))).map(|_| ()).unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            assert!(error.message().contains(words), "{error}");
        }
    }
}
