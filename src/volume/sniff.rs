//! What a file is when it is not NIfTI, and the way out, for the message.
//!
//! In: its first bytes, unpacked, and its name where it has one. Out: a phrase for a person. Content comes first; a
//! name decides only where a format's files have no signature (raw voxels next to a header of their own).

use std::path::Path;

/// Bytes that tell most formats apart; a NIfTI-1 header's length.
pub(super) const WANTED: usize = 348;

/// Bytes that [`describe`] likes to see: an XML declaration, comments, the first elements of DICOM.
pub(super) const MORE: usize = 4096;

/// A file that git-annex left in place of its content.
pub(super) const ANNEX: &str = "a git-annex (DataLad) placeholder whose content was not fetched: run `datalad get` or \
                                `git annex get` on it";

const AFNI: &str = "an AFNI dataset (HEAD and BRIK): convert it with 3dAFNItoNIFTI";
const PAR_REC: &str = "Philips PAR/REC: convert it with dcm2niix";
const METAIMAGE: &str = "a MetaImage: convert it to NIfTI, for example with `c3d scan.mha -o scan.nii.gz`";
/// A ParaVision study.
pub(super) const BRUKER: &str = "Bruker ParaVision data: convert the study with brkraw or Bru2Nii";
const PICTURE: &str = "picture, not a volume: give the scan as NIfTI";

/// Signature at the start of the file, and what it means.
const SIGNATURES: &[(&[u8], &str)] = &[
    (b"\x1f\x8b", "a gzip file inside a gzip file: unpack it once"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"BZh", "a bzip2 file: unpack it first, with bunzip2"),
    (b"\xfd7zXZ\0", "an xz file: unpack it first, with unxz"),
    (b"7z\xbc\xaf", "a 7-Zip archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd file: unpack it first, with `zstd -d`"),
    (b"\x04\x22\x4d\x18", "an lz4 file: unpack it first, with `lz4 -d`"),
    (b"\x1f\x9d", "a file of Unix compress (.Z): unpack it first, with `gzip -d`"),
    (b"\x1f\xa0", "a file of an old Unix compress (LZH): unpack it first, with `gzip -d`"),
    (b"%PDF", "a PDF document"),
    (b"NRRD", "an NRRD volume: convert it to NIfTI, for example with `c3d scan.nrrd -o scan.nii.gz`"),
    (b"CDF\x01", "a MINC 1 volume (NetCDF): convert it with mnc2nii or mri_convert"),
    (b"CDF\x02", "a MINC 1 volume (NetCDF): convert it with mnc2nii or mri_convert"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (MINC 2, if its name ends in .mnc): convert it with mnc2nii or mri_convert"),
    (b"MATRIX7", "an ECAT 7 file (PET): convert it with mri_convert or ecat2nii"),
    (b"mrtrix image", "an MRtrix image: convert it with mrconvert"),
    (b"\xff\xff\xfe", "a FreeSurfer surface, not a volume: give the subject's mri/T1.mgz"),
    (b"MATLAB 5.0", "a MATLAB file: save the volume with niftiwrite"),
    (b"\x93NUMPY", "a NumPy array: save it as NIfTI with its affine, for example with nibabel"),
    (b"version https://git-lfs.github.com/", "a Git LFS pointer whose content was not fetched: run `git lfs pull`"),
    (b"version https://hawser.github.com/", "a Git LFS pointer whose content was not fetched: run `git lfs pull`"),
    (b"/annex/objects/", ANNEX),
    (b"# === DATA DESCRIPTION FILE", PAR_REC),
    (b"##TITLE=", BRUKER),
];

/// Signatures of pictures, and their names.
const PICTURES: &[(&[u8], &str)] =
    &[(b"\x89PNG", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"GIF8", "GIF"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF")];

/// Words of XML files, anywhere near the start.
const XML: &[(&[u8], &str)] = &[
    (b"<GIFTI", "GIFTI, a surface and not a volume: give the scan that it was made from"),
    (b"<PRIDE_V5", "Philips XML/REC: convert it with dcm2niix"),
    (b"<VTKFile", "a VTK file: convert the volume to NIfTI first"),
];

/// Endings of files without a signature, and what they are.
const NAMES: &[(&str, &str)] = &[
    (".brik", AFNI),
    (".head", AFNI),
    (".rec", PAR_REC),
    (".par", PAR_REC),
    (".mhd", METAIMAGE),
    (".mha", METAIMAGE),
    (".raw", "raw voxels without a header: give a NIfTI file that has one"),
    ("2dseq", BRUKER),
    (".vmr", "a BrainVoyager volume: save it as NIfTI in BrainVoyager"),
    (".v", "an ECAT file (PET): convert it with mri_convert or ecat2nii"),
    (".ima", "an old Siemens file: convert the series with dcm2niix"),
];

/// A phrase that completes "not NIfTI but …".
pub(super) fn describe(bytes: &[u8], name: Option<&Path>) -> String {
    if let Some(what) = known(bytes, name) {
        return what;
    }
    if super::header::kind([0, 1, 2, 3].map(|i| bytes.get(i).copied().unwrap_or(0))).is_some() {
        return "a damaged NIfTI header (its magic is missing): export the scan again".into();
    }
    if bytes.iter().all(|&b| b == 0) {
        return "a file of zeros: copy or export the scan again".into();
    }
    if is_text(bytes) {
        return "a text file: give the scan itself (.nii or .nii.gz)".into();
    }
    "a format not known here: convert the scan to NIfTI".into()
}

/// As [`describe`], of formats that are recognized.
fn known(bytes: &[u8], name: Option<&Path>) -> Option<String> {
    if is_dicom(bytes) {
        return Some("DICOM: convert the series to NIfTI first, for example with dcm2niix".into());
    }
    let starting = |(signature, what): &(&[u8], &'static str)| bytes.starts_with(signature).then_some(*what);
    if let Some(what) = SIGNATURES.iter().find_map(starting) {
        return Some(what.to_owned());
    }
    if let Some(kind) = PICTURES.iter().find_map(starting) {
        return Some(format!("a {kind} {PICTURE}"));
    }
    if is_tar(bytes) {
        return Some("a tar archive: unpack it first, with `tar -xf`".into());
    }
    text(bytes).or_else(|| by_name(name?)).map(str::to_owned)
}

/// Formats that begin with text, whose voxels may follow in the same file.
fn text(bytes: &[u8]) -> Option<&'static str> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let has = |word: &[u8]| bytes.windows(word.len()).any(|w| w.eq_ignore_ascii_case(word));
    if bytes.starts_with(b"<") {
        let xml = XML.iter().find(|(word, _)| has(word)).map(|(_, what)| *what);
        return Some(xml.unwrap_or("a web page or XML: the download failed? Fetch the scan again"));
    }
    let first = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
    if first.len() < 200 && has(b"!interfile") {
        return Some("Interfile (PET, SPECT): convert it to NIfTI, for example with ImageJ or (X)MedCon");
    }
    if key(first).eq_ignore_ascii_case(b"type") && has(b"-attribute") {
        return Some(AFNI);
    }
    if is_metaimage(bytes) {
        return Some(METAIMAGE);
    }
    if bytes.starts_with(b"# vtk DataFile") {
        return Some("a VTK file: convert the volume to NIfTI first");
    }
    (bytes.starts_with(b"{") && is_text(bytes))
        .then_some("a JSON file, such as the sidecar of a scan: give the .nii.gz next to it")
}

/// The key of a line `KEY = VALUE`, or nothing.
fn key(line: &[u8]) -> &[u8] {
    line.iter().position(|&b| b == b'=').map_or(&[][..], |end| line[..end].trim_ascii())
}

/// A MetaImage header may begin with any key, a comment among them.
fn is_metaimage(bytes: &[u8]) -> bool {
    const KEYS: [&[u8]; 9] = [
        b"ObjectType",
        b"NDims",
        b"DimSize",
        b"ElementType",
        b"ElementSpacing",
        b"ElementSize",
        b"ElementDataFile",
        b"TransformMatrix",
        b"BinaryDataByteOrderMSB",
    ];
    let lines = bytes.split(|&b| b == b'\n').take_while(|line| is_text(line));
    let known = lines.filter(|line| KEYS.iter().any(|known| key(line).eq_ignore_ascii_case(known))).count();
    known >= 2 || key(bytes.split(|&b| b == b'\n').next().unwrap_or_default()) == b"ObjectType"
}

fn by_name(name: &Path) -> Option<&'static str> {
    let name = name.file_name()?.to_string_lossy().to_ascii_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    NAMES.iter().find(|(end, _)| name.ends_with(end)).map(|(_, what)| *what)
}

fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b >= 0x80 || b.is_ascii_graphic() || b.is_ascii_whitespace())
}

/// POSIX and GNU archives have a magic; older ones only their first header's checksum.
fn is_tar(bytes: &[u8]) -> bool {
    if bytes.get(257..262) == Some(b"ustar") {
        return true;
    }
    let Some(header) = bytes.get(..512) else { return false };
    let digits = header[148..156].trim_ascii().split(|&b| b == 0).next().unwrap_or_default().trim_ascii();
    let Some(stored) = std::str::from_utf8(digits).ok().and_then(|d| u32::from_str_radix(d, 8).ok()) else {
        return false;
    };
    let sum = |range: std::ops::Range<usize>| header[range].iter().map(|&b| u32::from(b)).sum::<u32>();
    header[0] != 0 && stored == sum(0..148) + 8 * u32::from(b' ') + sum(156..512)
}

/// Whether the file is a DICOM object: the mark behind the preamble, or elements as written without one.
pub(super) fn is_dicom(bytes: &[u8]) -> bool {
    bytes.get(128..132) == Some(b"DICM") || elements(bytes, u16::from_le_bytes) || elements(bytes, u16::from_be_bytes)
}

/// Value representations of 16-bit length and of 32-bit length.
const SHORT: &[u8] = b"AEASATCSDADSDTFLFDISLOLTPNSHSLSSSTTMUIULUS";
const LONG: &[u8] = b"OBODOFOLOWSQUCUNURUT";

/// Whether the bytes are elements of group 2 (meta information) or 8 (identification), with or without a stated
/// type. Two in a row are wanted where the first does not state its type.
fn elements(bytes: &[u8], number: fn([u8; 2]) -> u16) -> bool {
    let at = |at: usize| bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map(number);
    let (Some(group @ (2 | 8)), Some(element)) = (at(0), at(2)) else { return false };
    let Some(kind) = bytes.get(4..6) else { return false };
    let is_one_of = |kinds: &[u8]| kinds.chunks(2).any(|k| k == kind);
    if is_one_of(SHORT) || (is_one_of(LONG) && at(6) == Some(0)) {
        return true;
    }
    // Implicit: a length of 32 bits, little-endian. Values have an even length.
    let (Some(length), Some(0), [8 | 2, 0, ..]) = (at(4), at(6), bytes) else { return false };
    let next = 8 + usize::from(length);
    let ascends = |(g, e): (u16, u16)| g >= group && g <= 0x7fe0 && (g > group || e > element);
    length % 2 == 0 && length <= 1024 && at(next).zip(at(next + 2)).is_none_or(ascends)
}

#[cfg(test)]
#[path = "sniff_tests.rs"]
mod tests;
