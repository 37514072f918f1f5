//! FreeSurfer's MGH header (`.mgh`; gzip: `.mgz`, `.mgh.gz`): 284 bytes, big-endian, then voxels, then a footer.
//!
//! In: a file's first bytes. Out: a [`Header`] as of a NIfTI file, with the voxel-to-world matrix (mm, RAS+) in its
//! field `mgh`. Errors: `nifti.dims`, `nifti.too_large`, `nifti.datatype`, `nifti.affine`.
//!
//! MGH has no magic, so two of three must hold ([`recognized`]). The footer (repetition time, flip angle, echo and
//! inversion time, field of view, then tags: commands, a colour table, a record of about 44 KB for each frame) may be
//! missing, cut or long; it is never interpreted.
//!
//! Sources: `mghRead` and `mghWrite` in FreeSurfer's `utils/mriio.cpp`, `MGHArrayIO` in its Python library surfa (the
//! types 2 and 6), and nibabel's `MGHHeader`, whose matrix this is (nibabel rounds its origin to f32).

use super::datatype::Datatype;
use super::dims;
use super::header::{Header, Placement};
use super::units::Units;
use crate::error::{Code, Error, Result};
use crate::tensor::number::{Widen, to_f64, to_u64};

/// Bytes before the first voxel.
pub(super) const SIZE: usize = 284;

/// Footer bytes read to reach a gzip checksum: commands and colour tables, and for each frame FreeSurfer's record.
const FOOTER: u64 = 16 << 20;
const FOOTER_FRAME: u64 = 64 << 10;
/// No scan has a longer one: that of 3,840 frames.
const MAX_FOOTER: u64 = 256 << 20;

/// Largest size that speaks for MGH: a surface of sixteen million vertices.
const PLAUSIBLE: i32 = 1 << 24;
/// Highest code of a voxel type (`MRI_USHRT`).
const LAST_TYPE: i32 = 10;

/// Whether a file that begins with `bytes` is MGH: the version is 1 (newer FreeSurfer stores an intent of 16 bits above
/// it, such as 1 for labels), and the sizes or the voxel type are possible.
pub(super) fn recognized(bytes: &[u8]) -> bool {
    let [0, _, _, 1, rest @ ..] = bytes else { return false };
    let fields = rest.as_chunks::<4>().0;
    let [sizes @ .., kind] = fields.first_chunk::<5>().map_or([-1; 5], |f| f.map(i32::from_be_bytes));
    sizes.iter().all(|n| (1..=PLAUSIBLE).contains(n)) || (0..=LAST_TYPE).contains(&kind)
}

/// Reads and checks a header.
pub(super) fn parse(bytes: &[u8; SIZE]) -> Result<Header> {
    let dim = [4, 8, 12, 16].map(|at| i64::from(i32::from_be_bytes(field(bytes, at))));
    let (shape, volumes) = dimensions(dim)?;
    let datatype = datatype(i32::from_be_bytes(field(bytes, 20)))?;
    // FreeSurfer writes 1, or -1 for a volume without an orientation, and reads as its default what is not positive.
    // (nibabel takes -1 for an orientation too.)
    let stated = i16::from_be_bytes(field(bytes, 28)) > 0;
    let affine = if stated { stated_affine(bytes, &shape)? } else { default_affine(&shape) };
    Ok(Header {
        version: 1,
        analyze: false,
        units: Units::Millimetre,
        big: true,
        pair: false,
        shape,
        volumes,
        datatype,
        bitpix: 0,
        offset: to_u64(SIZE),
        scaling: None,
        intent_code: intent_code(i32::from_be_bytes(field(bytes, 0)) >> 8),
        sform_code: 0,
        qform_code: 0,
        pixdim: [1.0; 4],
        quaternion: [0.0; 3],
        quaternion_offset: [0.0; 3],
        sform: [[0.0; 4]; 3],
        mgh: Some(Placement { affine, stated }),
        footer: footer(volumes),
    })
}

/// NIfTI's code of FreeSurfer's intent (`MGZ_INTENT_*`), where it is no image.
fn intent_code(intent: i32) -> i32 {
    match intent {
        1 => 1002,
        2 => 2005,
        3 | 4 => 1006,
        _ => 0,
    }
}

/// The shape and the number of frames, by NIfTI's rules.
fn dimensions(dim: [i64; 4]) -> Result<([usize; 3], u64)> {
    let [x, y, z, frames] = dim;
    if [x, y, z].iter().filter(|&&n| n == 1).count() == 2 {
        let text = format!(
            "the MGH header says {x} × {y} × {z} voxels: these are values on a surface (an overlay), expected a 3-D scan"
        );
        return Err(Error::new(Code::NIFTI_DIMS, text));
    }
    let count = if frames == 1 { 3 } else { 4 };
    let checked = dims::dimensions(&[count, x, y, z, frames, 1, 1, 1]);
    checked.map_err(|e| Error::new(e.code(), format!("this is an MGH file, and {}", e.message())))
}

/// Bytes after the voxels that are a footer, however odd, in a file of so many frames.
fn footer(frames: u64) -> u64 {
    frames.saturating_mul(FOOTER_FRAME).saturating_add(FOOTER).min(MAX_FOOTER)
}

fn field<const N: usize>(bytes: &[u8; SIZE], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

fn datatype(code: i32) -> Result<Datatype> {
    let name = match code {
        0 => return Ok(Datatype::U8),
        1 => return Ok(Datatype::I32),
        2 => return Ok(Datatype::I64),
        // A tensor is nine frames of its components.
        3 | 6 => return Ok(Datatype::F32),
        4 => return Ok(Datatype::I16),
        10 => return Ok(Datatype::U16),
        5 => "binary (1 bit)",
        7 => "complex64",
        8 => "complex128",
        9 => "RGB colour",
        _ => "not a type of MGH",
    };
    let text = format!("MGH voxel type {code} ({name}) is not supported: save the scan with mri_convert -odt float");
    Err(Error::new(Code::NIFTI_DATATYPE, text))
}

/// Columns of the matrix are direction cosines times voxel sizes; `c_ras` is the world position of index `dim / 2`,
/// not rounded. Products are rounded to f32 as nibabel's are, so that both give one grid.
fn stated_affine(bytes: &[u8; SIZE], dim: &[usize; 3]) -> Result<[[f64; 4]; 4]> {
    let number = |i: usize| f32::from_be_bytes(field(bytes, 30 + 4 * i));
    let delta: [f32; 3] = std::array::from_fn(number);
    if delta.iter().any(|mm| mm.is_nan() || *mm <= 0.0) {
        let [x, y, z] = delta;
        let text =
            format!("the MGH header says voxels of {x} × {y} × {z} mm, expected positive sizes: the header is damaged");
        return Err(Error::new(Code::NIFTI_AFFINE, text));
    }
    let linear = std::array::from_fn(|r| std::array::from_fn(|c| (number(3 + 3 * c + r) * delta[c]).widen()));
    Ok(centred(linear, std::array::from_fn(|r| number(12 + r).widen()), dim))
}

/// Coronal slices of 1 mm voxels about the origin: axes towards left, inferior, anterior.
fn default_affine(dim: &[usize; 3]) -> [[f64; 4]; 4] {
    centred([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]], [0.0; 3], dim)
}

fn centred(linear: [[f64; 3]; 3], centre: [f64; 3], dim: &[usize; 3]) -> [[f64; 4]; 4] {
    let mut affine = [[0.0, 0.0, 0.0, 1.0]; 4];
    for ((row, m), centre) in affine.iter_mut().zip(linear).zip(centre) {
        let half: f64 = m.iter().zip(dim).map(|(m, &n)| m * to_f64(n)).sum::<f64>() / 2.0;
        *row = [m[0], m[1], m[2], centre - half];
    }
    affine
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(words: [i32; 6]) -> [u8; SIZE] {
        let mut header = [0; SIZE];
        for (place, word) in header.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *place = word.to_be_bytes();
        }
        header
    }

    #[test]
    fn two_of_three_make_it_mgh() {
        for (words, expected) in [
            ([1, 256, 256, 256, 1, 0], true),
            ([0x0003_0001, 163_842, 1, 1, 1, 3], true),
            ([1, 256, -1, 0, 1, 3], true),
            ([1, 256, 256, 256, 1, 77], true),
            ([1, 256, 0, 256, 1, 77], false),
            ([2, 256, 256, 256, 1, 0], false),
            ([0x0100_0001, 256, 256, 256, 1, 0], false),
            // a folder's settings on macOS, an H.264 stream
            ([1, 0x4275_6431, 0x1000, 0x800, 0x1000, 0x100c], false),
            ([1, 0x6742_c01e, 0x2500_1c5a, 0x0800_0003, 0x80, 0x1e_4785], false),
        ] {
            assert_eq!(recognized(&header(words)), expected, "{words:?}");
            assert!(!recognized(&header(words)[..23]));
        }
    }

    #[test]
    fn what_is_wrong_is_said_of_mgh() {
        for (words, code, word) in [
            ([1, 9, 0, 7, 1, 0], Code::NIFTI_DIMS, "positive"),
            ([1, 163_842, 1, 1, 1, 3], Code::NIFTI_DIMS, "surface"),
            ([1, 9, 56, 1, 1, 3], Code::NIFTI_DIMS, "at least 2"),
            ([1, 4000, 4000, 4000, 1, 3], Code::NIFTI_TOO_LARGE, "at most"),
            ([1, 9, 8, 7, 1, 9], Code::NIFTI_DATATYPE, "RGB"),
        ] {
            let e = parse(&header(words)).unwrap_err();
            assert_eq!(e.code(), code, "{e}");
            assert!(e.message().contains("MGH") && e.message().contains(word), "{e}");
        }
    }

    #[test]
    fn intents_that_are_no_image_are_nifti_intents() {
        for (version, code) in [(1, 0), (0x101, 1002), (0x201, 2005), (0x301, 1006), (0x401, 1006), (0xff_ff01, 0)] {
            assert_eq!(parse(&header([version, 4, 5, 6, 1, 3])).unwrap().intent_code, code, "{version:#x}");
        }
    }

    #[test]
    fn a_footer_of_any_scan_is_short_enough() {
        // FreeSurfer's record of a frame: ten times its own size in memory.
        assert!(footer(1) > 16 << 20 && footer(1000) > 1000 * 45_000 && footer(u64::MAX) == MAX_FOOTER);
    }

    #[test]
    fn the_matrix_is_about_the_middle() {
        let mut bytes = header([1, 4, 5, 6, 1, 3]);
        let numbers = [2.0f32, 3.0, 1.5, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0, -1.0, 0.0, 0.0, 10.0, 20.0, 30.0];
        bytes[29] = 1;
        for (place, number) in bytes[30..90].as_chunks_mut::<4>().0.iter_mut().zip(numbers) {
            *place = number.to_be_bytes();
        }
        let placement = parse(&bytes).unwrap().mgh.unwrap();
        assert!(placement.stated);
        let rows = [[0.0, 0.0, -1.5, 14.5], [2.0, 0.0, 0.0, 16.0], [0.0, -3.0, 0.0, 37.5], [0.0, 0.0, 0.0, 1.0]];
        assert_eq!(placement.affine, rows);
    }
}
