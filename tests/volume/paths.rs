//! Pairs, folders, volumes of 4-D files and the field of view: what depends on more than one file's bytes.

use std::path::Path;

use brain_adapter::WarningCode;
use brain_adapter::volume::{self, Conformed, Grid, ReadOptions};
use brain_adapter::{Code, Error};
use support::nifti_writer::{Datatype, Scan, gzip};

const VOXELS: usize = 352;

fn scan() -> Vec<u8> {
    let values = (0..504).map(|i| f64::from(i * 31 % 97)).collect();
    let affine = [[-3.0, 0.0, 0.0, 9.0], [0.0, 2.0, 0.0, -7.0], [0.0, 0.0, 4.0, 1.0]];
    Scan { shape: [9, 8, 7], affine, datatype: Datatype::I16, big: false, version: 1, scaling: (0.0, 0.0), values }
        .bytes()
}

fn read(path: &Path, volume: Option<usize>) -> Result<Conformed, Error> {
    volume::read(path, &ReadOptions { grid: Grid::cube(16, 2.0), volume, ..ReadOptions::default() })
}

/// The single-file scan as header and image.
fn pair() -> (Vec<u8>, Vec<u8>) {
    let mut header = scan();
    let image = header.split_off(VOXELS);
    header[108..112].copy_from_slice(&0f32.to_le_bytes());
    header[344..348].copy_from_slice(b"ni1\0");
    (header, image)
}

#[test]
fn pairs_find_their_image() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.nii");
    std::fs::write(&whole, scan()).unwrap();
    let expected = read(&whole, None).unwrap().voxels;
    let (header, image) = pair();
    let (packed_header, packed_image) = (gzip(&header, 1), gzip(&image, 2));
    let pairs = [
        [("a.hdr", &header), ("a.img", &image)],
        [("b.v2.hdr.gz", &packed_header), ("b.v2.img.gz", &packed_image)],
        [("C.HDR", &header), ("C.IMG", &image)],
        [("d.nii", &header), ("d.img", &image)],
    ];
    for pair in pairs {
        for (name, bytes) in pair {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        let [(name, _), _] = pair;
        assert_eq!(read(&folder.path().join(name), None).unwrap().voxels, expected, "{name}");
    }
    std::fs::write(folder.path().join("alone.hdr"), &header).unwrap();
    assert_eq!(read(&folder.path().join("alone.hdr"), None).unwrap_err().code(), Code::NIFTI_PAIR);
    assert_eq!(volume::read_bytes(&header, &ReadOptions::default()).unwrap_err().code(), Code::NIFTI_PAIR);
    // the error is about the file that is at fault
    std::fs::write(folder.path().join("a.img"), &image[..100]).unwrap();
    let e = read(&folder.path().join("a.hdr"), None).unwrap_err();
    assert_eq!((e.code(), e.path()), (Code::NIFTI_TRUNCATED, Some(folder.path().join("a.img").as_path())));
}

#[test]
fn one_volume_of_several() {
    let single = scan();
    let options = |volume| ReadOptions { grid: Grid::cube(16, 2.0), volume, ..ReadOptions::default() };
    let mut bytes = single.clone();
    bytes[40..42].copy_from_slice(&4i16.to_le_bytes());
    bytes[48..50].copy_from_slice(&3i16.to_le_bytes());
    let other: Vec<u8> = single[VOXELS..].iter().map(|b| b ^ 1).collect();
    bytes.splice(VOXELS.., [other.clone(), single[VOXELS..].to_vec(), other].concat());
    let expected = volume::read_bytes(&single, &options(None)).unwrap().voxels;
    for file in [bytes.clone(), gzip(&bytes, 1)] {
        let got = volume::read_bytes(&file, &options(Some(1))).unwrap();
        assert!(got.warnings.iter().all(|w| w.code.is_quality()), "{:?}", got.warnings);
        assert_eq!((got.voxels == expected, got.source.volumes), (true, 3));
        let e = volume::read_bytes(&file, &options(None)).unwrap_err();
        assert_eq!(e.code(), Code::NIFTI_VOLUMES);
        assert!(e.message().contains("--volume") && e.message().contains('3'), "{e}");
        assert_eq!(volume::read_bytes(&file, &options(Some(3))).unwrap_err().code(), Code::NIFTI_VOLUMES);
    }
    // a later volume that is missing means a damaged file
    bytes.truncate(bytes.len() - 9);
    for file in [bytes.clone(), gzip(&bytes, 1)] {
        assert_eq!(volume::read_bytes(&file, &options(Some(1))).unwrap_err().code(), Code::NIFTI_TRUNCATED);
    }
    // a thousand million volumes claimed: not worth unpacking for
    bytes[40..42].copy_from_slice(&5i16.to_le_bytes());
    bytes[48..52].copy_from_slice(&[0xff, 0x7f, 0xff, 0x7f]);
    let e = volume::read_bytes(&gzip(&bytes, 1), &options(Some(1_000_000_000))).unwrap_err();
    assert_eq!(e.code(), Code::NIFTI_TOO_LARGE);
    assert_eq!(volume::read_bytes(&single, &options(Some(0))).unwrap().voxels, expected);
    assert_eq!(volume::read_bytes(&single, &options(Some(1))).unwrap_err().code(), Code::NIFTI_VOLUMES);
}

#[test]
fn a_damaged_container_explains_odd_voxels() {
    let values = (0..8).map(f64::from).collect();
    let affine = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]];
    let scan =
        Scan { shape: [2; 3], affine, datatype: Datatype::F32, big: false, version: 1, scaling: (0.0, 0.0), values };
    let mut bytes = scan.bytes();
    bytes[VOXELS..VOXELS + 4].copy_from_slice(&f32::MAX.to_le_bytes());
    let mut packed = gzip(&bytes, 1);
    let read = |bytes: &[u8]| volume::read_bytes(bytes, &ReadOptions::default()).unwrap_err().code();
    assert_eq!(read(&packed), Code::NIFTI_SCALING);
    let checksum = packed.len() - 8;
    packed[checksum] ^= 1;
    assert_eq!(read(&packed), Code::NIFTI_GZIP);
}

#[test]
fn a_cut_field_of_view_is_told_side_by_side() {
    let got =
        volume::read_bytes(&scan(), &ReadOptions { grid: Grid::cube(10, 2.0), ..ReadOptions::default() }).unwrap();
    let warning = got.warnings.iter().find(|w| w.code == WarningCode::FOV_CUT).unwrap();
    // 24 mm left–right about voxel 4 of 9, kept: 8 mm to the left and 10 to the right of it; 24 mm along S about 3 of 7
    assert!(warning.message.contains("left 4.0 mm, right 2.0 mm, inferior 4.0 mm, superior 2.0 mm"), "{warning:?}");
    let whole = volume::read_bytes(&scan(), &ReadOptions::default()).unwrap();
    assert!(whole.warnings.iter().all(|w| w.code != WarningCode::FOV_CUT), "{:?}", whole.warnings);
}

#[test]
fn impossible_grids_are_refused() {
    for grid in [Grid::cube(0, 1.0), Grid::cube(1 << 20, 1.0), Grid::cube(64, 0.0), Grid::cube(64, f64::NAN)] {
        let e = volume::read_bytes(&scan(), &ReadOptions { grid, ..ReadOptions::default() }).unwrap_err();
        assert_eq!(e.code(), Code::CONFIG_VALUE);
    }
}
