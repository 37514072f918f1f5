//! zstd: files that `zstd` and `pzstd` 1.5 wrote, and damage to them.

use brain_adapter::volume::{self, Grid, ReadOptions};
use brain_adapter::{Code, Error, WarningCode};
use support::package;

fn read(bytes: &[u8]) -> Result<volume::Conformed, Error> {
    let grid = Grid { shape: [30, 28, 32], voxel_mm: [4.1, 5.3, 4.9] };
    volume::read_bytes(bytes, &ReadOptions { grid, ..ReadOptions::default() })
}

fn stored(name: &str) -> Vec<u8> {
    std::fs::read(package("tests/data/zstd").join(name)).unwrap()
}

const FILES: [&str; 5] =
    ["level3.nii.zst", "level19_long.nii.zst", "no_check.nii.zst", "frames.nii.zst", "pzstd.nii.zst"];

#[test]
fn frames_of_every_kind() {
    let expected = read(&stored("scan.nii")).unwrap();
    for name in FILES {
        let bytes = stored(name);
        let got = read(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((got.voxels == expected.voxels, got.source.gzip), (true, false), "{name}");
        assert_eq!(got.warnings, expected.warnings, "{name}");
        // What follows: padding is fine, other bytes are ignored with a warning.
        assert_eq!(read(&[bytes.as_slice(), &[0; 512]].concat()).unwrap().warnings, expected.warnings, "{name}");
        let got = read(&[bytes.as_slice(), b"\0more"].concat()).unwrap();
        let more: Vec<_> = got.warnings.iter().filter(|w| !expected.warnings.contains(w)).collect();
        assert!(matches!(more.as_slice(), [w] if w.code == WarningCode::TRAILING_DATA), "{:?}", got.warnings);
    }
    let path = package("tests/data/zstd").join("level3.nii.zst");
    assert_eq!(volume::files(&path).unwrap(), [path]);
}

#[test]
fn truncation_and_damage() {
    for name in FILES {
        let bytes = stored(name);
        for cut in [20, 200, bytes.len() / 2, bytes.len() - 1] {
            let e = read(&bytes[..cut]).unwrap_err();
            assert_eq!(e.code(), Code::NIFTI_TRUNCATED, "{name} cut to {cut}: {e}");
        }
        // The last four bytes are the checksum, where there is one.
        let mut wrong = bytes.clone();
        *wrong.last_mut().unwrap() ^= 1;
        match name {
            "no_check.nii.zst" => {}
            _ => assert_eq!(read(&wrong).unwrap_err().code(), Code::NIFTI_GZIP, "{name}"),
        }
        let mut wrong = bytes.clone();
        let middle = bytes.len() / 2;
        wrong[middle..middle + 200].fill(0xff);
        let e = read(&wrong).unwrap_err();
        assert!(!e.to_string().contains('\n') && e.to_string().contains("zstd"), "{name}: {e}");
    }
}

/// Little-endian bytes of a frame whose window is `1 << log`, with one raw last block of `content`.
fn frame(log: u8, content: &[u8]) -> Vec<u8> {
    let size = (content.len() as u32) << 3 | 1;
    [&[0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3], &size.to_le_bytes()[..3], content].concat()
}

#[test]
fn windows_are_bounded() {
    let scan = stored("scan.nii");
    assert!(read(&frame(27, &scan)).is_ok());
    for log in [28, 31, 41] {
        let e = read(&frame(log, &scan)).unwrap_err();
        assert!(e.code() == Code::NIFTI_NOT_NIFTI && e.message().contains("zstd"), "{e}");
    }
}

#[test]
fn what_cannot_be_unpacked_at_all_is_no_scan() {
    // A compressed block of nothing but zeros.
    let block = (60u32 << 3 | 2 << 1).to_le_bytes();
    let bytes = [&[0x28, 0xb5, 0x2f, 0xfd, 4, 0], &block[..3], &[0; 90]].concat();
    let e = read(&bytes).unwrap_err();
    assert!(e.code() == Code::NIFTI_NOT_NIFTI && e.message().contains("zstd"), "{e}");
    let e = read(&frame(20, b"what is in it is text, and no scan")).unwrap_err();
    assert!(e.code() == Code::NIFTI_NOT_NIFTI && e.message().contains("text"), "{e}");
    assert_eq!(read(&frame(20, b"")).unwrap_err().code(), Code::NIFTI_EMPTY);
    let empties = frame(10, b"").repeat(5000);
    assert_eq!(read(&empties).unwrap_err().code(), Code::NIFTI_GZIP);
}
