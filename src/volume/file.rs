//! From a path (or bytes in memory) to a checked header and a stream that stands at the first wanted voxel.
//!
//! Paths are checked before they are opened: opening a named pipe would wait for ever, and a device never ends.
//! Single files, `.hdr`/`.img` pairs (NIfTI and Analyze 7.5, either half given) and gzip or zstd of either are detected
//! by content. Extensions are never interpreted; `vox_offset` alone says where the voxels are. Errors carry the path of
//! the file they are about.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::folder::{folder, no_metadata};
use super::halves::{header_of, image_alone, image_of, is_image};
use super::header::{self, Header, Layout, MAX_OFFSET};
use super::peek::Input;
use super::stream::{Stream, Tail};
use super::{ReadOptions, mgh, sniff};
use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::tensor::number::to_u64;

/// Bytes unpacked at most to reach a later volume: four times the longest functional runs in use.
const MAX_SKIP: u64 = 16 << 30;

/// A scan ready to stream.
pub(super) struct Scan<'a> {
    pub header: Header,
    /// Stands at the first voxel of the chosen volume.
    pub stream: Stream<'a>,
    /// The file the voxels are in, if it is a file.
    pub path: Option<PathBuf>,
    /// Bytes of further volumes after the chosen one.
    pub following: u64,
}

/// The header of a scan, and where it was.
struct Opened {
    header: Header,
    /// Stands behind the header.
    stream: Stream<'static>,
    /// The file of the header.
    path: PathBuf,
    /// The file of the voxels, where it was given in place of the header.
    image: Option<PathBuf>,
}

/// Opens the scan at `path` and moves to its volume `options.volume`.
pub(super) fn open(path: &Path, options: &ReadOptions, warnings: &mut Vec<Warning>) -> Result<Scan<'static>> {
    let Opened { header, stream, path, image } = open_header(path, warnings)?;
    require_orientation(&header, options).map_err(|e| e.at(&path))?;
    if !header.pair {
        return position(header, stream, options.volume, Some(path.clone())).map_err(|e| e.at(path));
    }
    let image = image.map_or_else(|| image_of(&path), Ok)?;
    finish_header(stream, warnings).map_err(|e| e.at(path))?;
    let stream = open_stream(&image)?;
    position(header, stream, options.volume, Some(image.clone())).map_err(|e| e.at(image))
}

/// Checks the header as [`open`] does, and that the chosen volume and the voxels' file exist.
pub(super) fn check(path: &Path, options: &ReadOptions) -> Result<()> {
    let Opened { header, path, image, .. } = open_header(path, &mut Vec::new())?;
    let chosen = require_orientation(&header, options).and_then(|()| choose(&header, options.volume));
    chosen.map_err(|e| e.at(&path))?;
    if header.pair && image.is_none() { image_of(&path).map(drop) } else { Ok(()) }
}

/// The files that the scan at `path` consists of: itself, or a `.hdr` and its `.img`, in this order.
pub(super) fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let Opened { header, path, image, .. } = open_header(path, &mut Vec::new())?;
    let image = header.pair.then(|| image.map_or_else(|| image_of(&path), Ok)).transpose()?;
    Ok(std::iter::once(path).chain(image).collect())
}

/// As [`open`], of a single-file scan in memory.
pub(super) fn open_bytes<'a>(bytes: &'a [u8], options: &ReadOptions, warnings: &mut Vec<Warning>) -> Result<Scan<'a>> {
    let stream = Stream::new(Input::Bytes(bytes), to_u64(bytes.len()))?;
    let (header, stream) = read_header(stream, None, warnings)?;
    require_orientation(&header, options)?;
    if header.pair {
        return Err(Error::new(Code::NIFTI_PAIR, "the voxels are in a separate .img file: give a path, not bytes"));
    }
    position(header, stream, options.volume, None)
}

/// Reads the header of the scan at `path`: from that file, or from the one beside it where `path` is an `.img` that
/// holds no NIfTI header itself. (Voxels may begin like an Analyze header.)
fn open_header(path: &Path, warnings: &mut Vec<Warning>) -> Result<Opened> {
    let stream = open_stream(path)?;
    let mut own = Vec::new();
    let read = read_header(stream, Some(path), &mut own).map_err(|e| e.at(path));
    if is_image(path) && read.as_ref().map_or(true, |(header, _)| header.analyze) {
        if let Some(beside) = header_of(path) {
            let (header, stream) =
                read_header(open_stream(&beside)?, Some(&beside), warnings).map_err(|e| e.at(&beside))?;
            if !header.pair {
                let text = "this file next to the .img is a whole scan and not the header of one: give it instead";
                return Err(Error::new(Code::NIFTI_PAIR, text).at(beside));
            }
            return Ok(Opened { header, stream, path: beside, image: Some(path.to_owned()) });
        }
        return Err(read.err().filter(|e| e.code() != Code::NIFTI_NOT_NIFTI).unwrap_or_else(|| image_alone(path)));
    }
    let (header, stream) = read?;
    warnings.append(&mut own);
    Ok(Opened { header, stream, path: path.to_owned(), image: None })
}

/// Analyze files say nothing of orientation: left and right would be a guess.
fn require_orientation(header: &Header, options: &ReadOptions) -> Result<()> {
    if !header.analyze || options.orientation.is_some() {
        return Ok(());
    }
    let text = "not NIfTI but Analyze 7.5 (or NIfTI that lost its magic), which holds no orientation: if you know the \
                directions that its axes run towards, give ba-infer --orientation, such as LAS (left, anterior, \
                superior; RAS if left and right are not swapped); else convert the scan again from its DICOM files";
    Err(Error::new(Code::NIFTI_NOT_NIFTI, text))
}

fn open_stream(path: &Path) -> Result<Stream<'static>> {
    let metadata = std::fs::metadata(path).map_err(|e| no_metadata(path, e))?;
    if metadata.is_dir() {
        return Err(folder(path));
    }
    if !metadata.is_file() {
        return Err(Error::new(Code::NIFTI_NOT_A_FILE, "a device, pipe or socket, expected a scan file").at(path));
    }
    let file = File::open(path).map_err(|e| Error::io(path, "cannot open the scan", e))?;
    Stream::new(Input::File(file), metadata.len()).map_err(|e| e.at(path))
}

/// Reads and checks the header, and walks the extensions of a single file.
fn read_header<'a>(
    mut stream: Stream<'a>,
    name: Option<&Path>,
    warnings: &mut Vec<Warning>,
) -> Result<(Header, Stream<'a>)> {
    let mut bytes = [0; 540];
    let mut count = stream.read(&mut bytes[..mgh::SIZE])?;
    if count == 0 {
        return Err(Error::new(Code::NIFTI_EMPTY, "the packed file holds no data: copy or export the scan again"));
    }
    if mgh::recognized(&bytes[..count]) && !sniff::is_dicom(&bytes[..count]) {
        let header = bytes[..count].first_chunk().ok_or_else(|| truncated(count, mgh::SIZE))?;
        return Ok((mgh::parse(header)?, stream));
    }
    // The voxels of a short MGH file begin within what tells other formats apart.
    if count == mgh::SIZE {
        count += stream.read(&mut bytes[count..sniff::WANTED])?;
    }
    let [a, b, c, d] = match &bytes[..count] {
        [a, b, c, d, ..] => [*a, *b, *c, *d],
        _ => return Err(truncated(count, sniff::WANTED)),
    };
    let Some((size, big)) = header::kind([a, b, c, d]) else {
        return Err(foreign(&bytes[..count], stream, name));
    };
    let mut have = count;
    if size > have && have == sniff::WANTED {
        have += stream.read(&mut bytes[have..size])?;
    }
    if have < size {
        return Err(truncated(have, size));
    }
    let bytes = &bytes[..size];
    let Some(layout) = header::layout(bytes) else { return Err(foreign(bytes, stream, name)) };
    let header = match Header::parse(bytes, big, layout) {
        Err(e) if layout == Layout::Analyze => {
            let text = format!("not NIfTI (no magic), nor a sound Analyze 7.5 header: {}", e.message());
            return Err(Error::new(Code::NIFTI_NOT_NIFTI, text));
        }
        parsed => parsed?,
    };
    let bits = header.datatype.size() * 8;
    if usize::try_from(header.bitpix) != Ok(bits) {
        let text =
            format!("bitpix is {}, but {} has {bits} bits; bitpix is ignored", header.bitpix, header.datatype.name());
        warnings.push(Warning::new(WarningCode::BITPIX, text));
    }
    if layout == Layout::Single && !extensions_are_sound(&mut stream, &header)? {
        warnings.push(Warning::new(
            WarningCode::EXTENSION,
            format!("the header's extensions contradict vox_offset {}; they are skipped unread", header.offset),
        ));
    }
    Ok((header, stream))
}

fn truncated(count: usize, size: usize) -> Error {
    let text = format!("ends after {count} bytes, within the header of {size}: the file is incomplete");
    Error::new(Code::NIFTI_TRUNCATED, text)
}

/// The error for a file of another format, of which `start` was read from `stream`.
fn foreign(start: &[u8], mut stream: Stream<'_>, name: Option<&Path>) -> Error {
    let mut bytes = vec![0; sniff::MORE];
    bytes[..start.len()].copy_from_slice(start);
    // Damage further on changes nothing of what the file is.
    let more = stream.read(&mut bytes[start.len()..]).unwrap_or(0);
    bytes.truncate(start.len() + more);
    Error::new(Code::NIFTI_NOT_NIFTI, format!("not NIfTI but {}", sniff::describe(&bytes, name)))
}

/// Follows the chain of extensions by their sizes alone. Whatever it says, the voxels are at `vox_offset`.
fn extensions_are_sound(stream: &mut Stream<'_>, header: &Header) -> Result<bool> {
    // A file that ends here is reported when its voxels are missing.
    let mut extender = [0; 4];
    stream.read(&mut extender)?;
    if extender[0] == 0 {
        return Ok(true);
    }
    while stream.position() + 8 <= header.offset {
        let mut head = [0; 8];
        if stream.read(&mut head)? < head.len() {
            return Ok(true);
        }
        let [a, b, c, d, ..] = head;
        let size = if header.big { i32::from_be_bytes([a, b, c, d]) } else { i32::from_le_bytes([a, b, c, d]) };
        let room = header.offset - (stream.position() - 8);
        match u64::try_from(size) {
            Ok(size) if size >= 16 && size % 16 == 0 && size <= room => {
                stream.skip(size - 8)?;
            }
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// Reads the rest of a `.hdr` file, which holds only extensions, so that a checksum is verified.
fn finish_header(mut stream: Stream<'_>, warnings: &mut Vec<Warning>) -> Result<()> {
    if stream.container().is_some() {
        stream.skip(MAX_OFFSET)?;
        if stream.finish()? != Tail::Clean {
            warnings.push(Warning::new(
                WarningCode::TRAILING_DATA,
                "bytes follow the header in the .hdr file; they are ignored",
            ));
        }
    }
    Ok(())
}

/// Moves `stream` to the first voxel of the chosen volume.
fn position<'a>(
    header: Header,
    mut stream: Stream<'a>,
    volume: Option<usize>,
    path: Option<PathBuf>,
) -> Result<Scan<'a>> {
    let chosen = choose(&header, volume)?;
    let bytes = header.volume_bytes();
    let total = header.offset + bytes * header.volumes;
    if let Some(length) = stream.length().filter(|&length| length < total) {
        return Err(Error::new(
            Code::NIFTI_TRUNCATED,
            format!("ends after {length} of {total} bytes: the file is incomplete, copy or export it again"),
        ));
    }
    let start = header.offset + bytes * chosen;
    if stream.container().is_some() && start > MAX_SKIP {
        let text =
            format!("volume {chosen} begins after {start} bytes, at most {MAX_SKIP} are unpacked: extract it first");
        return Err(Error::new(Code::NIFTI_TOO_LARGE, text));
    }
    // The walk over the extensions never passes the data offset by more than the extender.
    let skip = start.saturating_sub(stream.position());
    let skipped = stream.skip(skip)?;
    if skipped < skip {
        return Err(Error::new(
            Code::NIFTI_TRUNCATED,
            format!(
                "ends after {} of {total} bytes, before the first voxel: the file is incomplete",
                stream.position()
            ),
        ));
    }
    let following = bytes * (header.volumes - 1 - chosen);
    Ok(Scan { header, stream, path, following })
}

fn choose(header: &Header, volume: Option<usize>) -> Result<u64> {
    let [a, b, c] = header.shape;
    let count = header.volumes;
    let shape = format!("{a} × {b} × {c}");
    let error = |text: String| Error::new(Code::NIFTI_VOLUMES, text);
    let chosen = match volume {
        None if count == 1 => 0,
        None => {
            let text = format!(
                "holds {count} volumes of {shape} voxels: choose one with --volume N, N from 0 to {}",
                count - 1
            );
            return Err(error(text));
        }
        Some(n) => to_u64(n),
    };
    if chosen >= count {
        return Err(error(format!("has no volume {chosen}: it holds {count}, numbered from 0")));
    }
    Ok(chosen)
}
