//! Files that this program wrote, recognized by their content: no other is ever written over.
//!
//! A volume has the maker's name in the NIfTI header's `descrip`, a preview in a PNG text chunk `Software`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

use crate::error::{Error, Result};
use crate::files::{MADE_BY, MAKER};
use crate::tensor::number::to_u64;

/// What is read of a file: enough for a header, also compressed.
const START: u64 = 64 << 10;

/// Bytes of a NIfTI-1 header, and where its `descrip` stands.
const HEADER: usize = 348;
const DESCRIPTION: usize = 148;

/// First bytes of a PNG file, and where its first chunk after the picture's size begins.
const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
const SECOND_CHUNK: usize = 33;

/// Type and keyword of the chunk.
const TEXT: &[u8] = b"tEXt";
const KEYWORD: &[u8] = b"Software\0";

/// Whether the file at `path` is a volume that [`Conformed::save`](super::Conformed::save) wrote.
///
/// # Errors
/// `io`.
pub fn is_saved_volume(path: &Path) -> Result<bool> {
    let start = start(path)?;
    let mut header = Vec::new();
    // A damaged container holds no header of ours.
    let unpacked = match start.starts_with(b"\x1f\x8b") {
        true => GzDecoder::new(start.as_slice()).take(to_u64(HEADER)).read_to_end(&mut header).is_ok(),
        false => start.as_slice().take(to_u64(HEADER)).read_to_end(&mut header).is_ok(),
    };
    let size = 348i32.to_le_bytes();
    let big = 348i32.to_be_bytes();
    let nifti = header.len() == HEADER && (header.starts_with(&size) || header.starts_with(&big));
    let description = header.get(DESCRIPTION..).unwrap_or_default();
    Ok(unpacked && nifti && description.starts_with(MAKER.as_bytes()))
}

/// Whether the file at `path` is a picture that [`Conformed::save_preview`](super::Conformed::save_preview) wrote.
///
/// # Errors
/// `io`.
pub fn is_saved_preview(path: &Path) -> Result<bool> {
    let start = start(path)?;
    let chunk = start.get(SECOND_CHUNK..).unwrap_or_default();
    let text = [TEXT, KEYWORD, MAKER.as_bytes()].concat();
    // After the chunk's length.
    Ok(start.starts_with(SIGNATURE) && chunk.get(4..).is_some_and(|chunk| chunk.starts_with(&text)))
}

fn start(path: &Path) -> Result<Vec<u8>> {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(START).read_to_end(&mut start));
    read.map_err(|e| Error::io(path, "cannot read the output", e))?;
    Ok(start)
}

/// A PNG file with the maker's name, right after the picture's size.
pub(super) fn with_maker(png: &[u8]) -> Vec<u8> {
    let data = [TEXT, KEYWORD, MADE_BY.as_bytes()].concat();
    let length = u32::try_from(data.len() - TEXT.len()).unwrap_or_default();
    let (before, after) = png.split_at(SECOND_CHUNK.min(png.len()));
    [before, &length.to_be_bytes(), &data, &crc32fast::hash(&data).to_be_bytes(), after].concat()
}
