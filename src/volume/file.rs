//! From a path (or bytes in memory) to a checked header and a stream that stands at the first wanted voxel.
//!
//! Paths are checked before they are opened: opening a named pipe would wait for ever, and a device never ends.
//! Single files, `.hdr`/`.img` pairs and gzip of either are detected by content. Extensions are never interpreted;
//! `vox_offset` alone says where the voxels are. Errors carry the path of the file they are about.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::header::{self, Header, MAX_OFFSET};
use super::mgh;
use super::sniff;
use super::stream::{Input, Stream, Tail};
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

/// Opens the scan at `path` and moves to its volume `volume` (0-based).
pub(super) fn open(path: &Path, volume: Option<usize>, warnings: &mut Vec<Warning>) -> Result<Scan<'static>> {
    let stream = open_stream(path)?;
    let (header, header_stream) = read_header(stream, warnings).map_err(|e| image_half(path, e).at(path))?;
    if !header.pair {
        return position(header, header_stream, volume, Some(path.to_owned())).map_err(|e| e.at(path));
    }
    let image = image_of(path)?;
    finish_header(header_stream, warnings).map_err(|e| e.at(path))?;
    let stream = open_stream(&image)?;
    position(header, stream, volume, Some(image.clone())).map_err(|e| e.at(image))
}

/// The files that the scan at `path` consists of: itself, or a `.hdr` and its `.img`.
pub(super) fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let (header, _) = read_header(open_stream(path)?, &mut Vec::new()).map_err(|e| image_half(path, e).at(path))?;
    let image = header.pair.then(|| image_of(path)).transpose()?;
    Ok(std::iter::once(path.to_owned()).chain(image).collect())
}

/// As [`open`], of a single-file scan in memory.
pub(super) fn open_bytes<'a>(bytes: &'a [u8], volume: Option<usize>, warnings: &mut Vec<Warning>) -> Result<Scan<'a>> {
    let stream = Stream::new(Input::Bytes(bytes), to_u64(bytes.len()))?;
    let (header, stream) = read_header(stream, warnings)?;
    if header.pair {
        return Err(Error::new(Code::NIFTI_PAIR, "the voxels are in a separate .img file: give a path, not bytes"));
    }
    position(header, stream, volume, None)
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

fn no_metadata(path: &Path, e: std::io::Error) -> Error {
    // lstat succeeds where a link leads nowhere or in a circle
    let link = std::fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink());
    match e.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory if !link => {
            Error::new(Code::NIFTI_NOT_FOUND, "no such file: check the path").at(path)
        }
        ErrorKind::PermissionDenied => Error::io(path, "cannot open the scan", e),
        _ if link => Error::new(Code::NIFTI_NOT_FOUND, format!("the link leads to no file: {e}")).at(path),
        _ => Error::io(path, "cannot open the scan", e),
    }
}

/// A folder is most often a DICOM series: a few of its files are checked.
fn folder(path: &Path) -> Error {
    let dicom = std::fs::read_dir(path).into_iter().flatten().flatten().take(16).any(|entry| {
        let mut start = Vec::new();
        entry.file_type().is_ok_and(|t| t.is_file())
            && File::open(entry.path()).is_ok_and(|f| f.take(132).read_to_end(&mut start).is_ok())
            && sniff::is_dicom(&start)
    });
    if dicom {
        let text = "a folder of DICOM files, expected NIfTI: convert the series first, for example with dcm2niix";
        return Error::new(Code::NIFTI_NOT_NIFTI, text).at(path);
    }
    Error::new(Code::NIFTI_NOT_A_FILE, "a folder, expected a scan file (.nii or .nii.gz)").at(path)
}

/// Reads and checks the header, and walks the extensions of a single file.
fn read_header<'a>(mut stream: Stream<'a>, warnings: &mut Vec<Warning>) -> Result<(Header, Stream<'a>)> {
    let mut bytes = [0; 540];
    let mut count = stream.read(&mut bytes[..mgh::SIZE])?;
    if count == 0 {
        return Err(Error::new(Code::NIFTI_EMPTY, "the gzip file holds no data: copy or export the scan again"));
    }
    let truncated = |count: usize, size: usize| {
        Error::new(
            Code::NIFTI_TRUNCATED,
            format!("ends after {count} bytes, within the header of {size}: the file is incomplete"),
        )
    };
    if mgh::recognized(&bytes[..count]) && !sniff::is_dicom(&bytes[..count]) {
        let header = bytes[..count].first_chunk().ok_or_else(|| truncated(count, mgh::SIZE))?;
        return Ok((mgh::parse(header)?, stream));
    }
    // The voxels of a short MGH file begin within what tells other formats apart.
    if count == mgh::SIZE {
        count += stream.read(&mut bytes[count..sniff::WANTED])?;
    }
    let start = &bytes[..count];
    let [a, b, c, d] = match start {
        [a, b, c, d, ..] => [*a, *b, *c, *d],
        _ => return Err(truncated(count, sniff::WANTED)),
    };
    let not_nifti =
        |start: &[u8]| Error::new(Code::NIFTI_NOT_NIFTI, format!("not NIfTI but {}", sniff::describe(start)));
    let Some((size, big)) = header::kind([a, b, c, d]) else { return Err(not_nifti(start)) };
    let mut have = count;
    if size > have && have == sniff::WANTED {
        have += stream.read(&mut bytes[have..size])?;
    }
    if have < size {
        return Err(truncated(have, size));
    }
    let bytes = &bytes[..size];
    let Some(pair) = header::is_pair(bytes) else { return Err(not_nifti(bytes)) };
    let header = Header::parse(bytes, big, pair)?;
    let bits = header.datatype.size() * 8;
    if usize::try_from(header.bitpix) != Ok(bits) {
        let text =
            format!("bitpix is {}, but {} has {bits} bits; bitpix is ignored", header.bitpix, header.datatype.name());
        warnings.push(Warning::new(WarningCode::BITPIX, text));
    }
    if !header.pair && !extensions_are_sound(&mut stream, &header)? {
        warnings.push(Warning::new(
            WarningCode::EXTENSION,
            format!("the header's extensions contradict vox_offset {}; they are skipped unread", header.offset),
        ));
    }
    Ok((header, stream))
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

/// Explains the refusal of an `.img` file given in place of its `.hdr`.
fn image_half(path: &Path, e: Error) -> Error {
    let name = path.as_os_str().to_string_lossy().to_ascii_lowercase();
    if e.code() == Code::NIFTI_NOT_NIFTI && (name.ends_with(".img") || name.ends_with(".img.gz")) {
        return Error::new(Code::NIFTI_NOT_NIFTI, "an .img file holds only voxels: give the .hdr file next to it");
    }
    e
}

/// Reads the rest of a `.hdr` file, which holds only extensions, so that a gzip checksum is verified.
fn finish_header(mut stream: Stream<'_>, warnings: &mut Vec<Warning>) -> Result<()> {
    if stream.is_gzip() {
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

/// The `.img` that belongs to a `.hdr`.
fn image_of(path: &Path) -> Result<PathBuf> {
    let mut stem = PathBuf::from(path.file_name().unwrap_or_default());
    for ends in [&["gz"][..], &["hdr", "nii"]] {
        if stem.extension().is_some_and(|e| ends.iter().any(|end| e.eq_ignore_ascii_case(end))) {
            stem.set_extension("");
        }
    }
    let beside = |end: &str| {
        let mut name = stem.clone().into_os_string();
        name.push(end);
        path.with_file_name(name)
    };
    let found = [".img", ".img.gz", ".IMG", ".IMG.GZ"].into_iter().map(beside);
    let mut found = found.filter(|image| std::fs::metadata(image).is_ok_and(|m| !m.is_dir()));
    found.next().ok_or_else(|| {
        let stem = stem.display();
        let text =
            format!("the header says that the voxels are in {stem}.img or {stem}.img.gz next to it; neither exists");
        Error::new(Code::NIFTI_PAIR, text).at(path)
    })
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
    if stream.is_gzip() && start > MAX_SKIP {
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
    if header.shape.iter().any(|&n| n < 2) {
        let text = format!("each volume has {shape} voxels: a 3-D scan needs at least 2 along each axis");
        return Err(Error::new(Code::NIFTI_DIMS, text));
    }
    Ok(chosen)
}
