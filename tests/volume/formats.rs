//! Units, Analyze 7.5, stated orientations and named halves of pairs, against what nibabel reads from the same files.

use std::path::Path;

use brain_adapter::volume::{self, Conformed, Grid, ReadOptions};
use brain_adapter::{Code, Error, WarningCode};
use serde_json::Value;
use support::nifti_writer::{Datatype, Scan, gzip};
use support::oracle;

const GRID: Grid = Grid { shape: [40, 36, 44], voxel_mm: [2.0, 2.5, 1.9] };

fn stated(codes: &str) -> ReadOptions {
    ReadOptions { grid: GRID, orientation: Some(codes.parse().unwrap()), ..ReadOptions::default() }
}

fn plain() -> ReadOptions {
    ReadOptions { grid: GRID, ..ReadOptions::default() }
}

fn worst(a: &Conformed, b: &Conformed) -> f32 {
    let differences = a.voxels.iter().zip(&b.voxels).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, f32::max) / (b.max - b.min)
}

#[test]
fn nibabel_reads_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let Some(index) = oracle::run_python("formats of scans", "tests/scripts/nibabel_formats.py", [folder.path()])
    else {
        return;
    };
    let cases: Vec<Value> = serde_json::from_slice(&index).unwrap();
    assert_eq!(cases.len(), 12 + 30 + 3);
    for case in &cases {
        let path = |key: &str| folder.path().join(case[key].as_str().unwrap());
        let file = path("file");
        let options = case["orientation"].as_str().map_or(plain(), stated);
        let got = volume::read(&file, &options).unwrap_or_else(|e| panic!("{case}: {e}"));
        let expected = volume::read(&path("reference"), &plain()).unwrap();
        let difference = worst(&got, &expected);
        assert!(difference < 1e-4, "{case}: differs by {difference} of the range");
        assert_eq!(
            (&got.source.axcodes, got.source.shape),
            (&expected.source.axcodes, expected.source.shape),
            "{case}"
        );
        assert_eq!(got.source.units, case["units"].as_str(), "{case}");
        let affines = got.source.affine.as_flattened().iter().zip(expected.source.affine.as_flattened());
        assert!(affines.clone().all(|(a, b)| (a - b).abs() < 1e-4), "{case}: {:?}", affines.collect::<Vec<_>>());
        match case["orientation"].as_str() {
            Some(codes) => assert_eq!((got.source.axcodes.as_str(), got.source.transform.as_str()), (codes, "stated")),
            None => assert_ne!(got.source.transform, "stated"),
        }
        let guessed = got.warnings.iter().any(|w| w.code == WarningCode::NO_ORIENTATION);
        assert_eq!(guessed, got.source.transform == "none", "{case}: {:?}", got.warnings);
        if file.to_string_lossy().contains("analyze") {
            assert_eq!(got.source.format, "Analyze 7.5");
            let e = volume::read(&file, &plain()).unwrap_err();
            assert_eq!(e.code(), Code::NIFTI_NOT_NIFTI);
            assert!(e.message().contains("--orientation"), "{e}");
            // Header first, whichever half was given.
            let files = volume::files(&file).unwrap();
            let names: Vec<_> = files.iter().map(|f| f.to_string_lossy().to_lowercase()).collect();
            assert!(matches!(names.as_slice(), [h, i] if h.contains(".hdr") && i.contains(".img")), "{names:?}");
        }
    }
}

fn scan(affine: [[f64; 4]; 3]) -> Vec<u8> {
    let values = (0..30 * 31 * 32).map(|i| f64::from(i * 31 % 97)).collect();
    Scan { shape: [30, 31, 32], affine, datatype: Datatype::I16, big: false, version: 1, scaling: (0.0, 0.0), values }
        .bytes()
}

const DIAGONAL: [[f64; 4]; 3] = [[-3.0, 0.0, 0.0, 9.0], [0.0, 2.0, 0.0, -7.0], [0.0, 0.0, 4.0, 1.0]];

#[test]
fn a_stated_orientation_overrules_no_other() {
    let bytes = scan(DIAGONAL);
    let own = volume::read_bytes(&bytes, &plain()).unwrap();
    let same = volume::read_bytes(&bytes, &stated("LAS")).unwrap();
    assert_eq!((same.voxels == own.voxels, same.source.transform.as_str()), (true, "sform"));
    let e = volume::read_bytes(&bytes, &stated("RAS")).unwrap_err();
    assert_eq!(e.code(), Code::NIFTI_ORIENTATION);
    assert!(e.message().contains("LAS") && e.message().contains("RAS"), "{e}");
}

#[test]
fn units_that_make_no_head_are_refused() {
    for (scale, units, word) in [
        (1.0, 1, "metres"),      // mm that are called metres
        (1.0, 3, "micrometres"), // and micrometres
        (55.0 / 3.0, 3, "micrometres"),
        (0.05, 1, "metres"),
    ] {
        let mut bytes = scan(DIAGONAL.map(|row| row.map(|v| v * scale)));
        bytes[123] = units + 8;
        let e = volume::read_bytes(&bytes, &plain()).unwrap_err();
        assert_eq!(e.code(), Code::NIFTI_AFFINE);
        assert!(e.message().contains("xyzt_units") && e.message().contains(word), "{e}");
        // A transform that is not in use is not looked at, and unknown units are millimetres.
        bytes[123] = 0;
        assert!(volume::read_bytes(&bytes, &plain()).is_ok_and(|c| c.source.units.is_none()));
    }
}

/// A header and its image, written under two names.
fn write_pair(folder: &Path, header: &str, image: &str) -> Vec<u8> {
    let mut bytes = scan(DIAGONAL);
    let voxels = bytes.split_off(352);
    bytes[108..112].copy_from_slice(&0f32.to_le_bytes());
    bytes[344..348].copy_from_slice(b"ni1\0");
    std::fs::write(folder.join(header), &bytes).unwrap();
    std::fs::write(folder.join(image), if image.ends_with("gz") { gzip(&voxels, 1) } else { voxels.clone() }).unwrap();
    voxels
}

#[test]
fn either_half_of_a_pair_may_be_given() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let read = |name: &str| volume::read(&at(name), &plain());
    let expected = volume::read_bytes(&scan(DIAGONAL), &plain()).unwrap().voxels;
    for (header, image) in [("a.hdr", "a.img"), ("b.hdr", "b.img.gz"), ("C.HDR", "C.IMG"), ("d.1.hdr", "d.1.img.gz")] {
        write_pair(folder.path(), header, image);
        assert_eq!(read(image).unwrap().voxels, expected, "{image}");
        assert_eq!(volume::files(&at(image)).unwrap(), [at(header), at(image)]);
        assert_eq!(volume::files(&at(header)).unwrap(), [at(header), at(image)]);
    }
    // Of two images the one that was given is read.
    let mut voxels = write_pair(folder.path(), "e.hdr", "e.img");
    voxels.reverse();
    std::fs::write(at("e.img.gz"), gzip(&voxels, 1)).unwrap();
    assert_eq!(read("e.hdr").unwrap().voxels, expected);
    assert_ne!(read("e.img.gz").unwrap().voxels, expected);
    assert_eq!(volume::files(&at("e.img.gz")).unwrap(), [at("e.hdr"), at("e.img.gz")]);
    // Voxels that begin like a header; a whole scan under the name of an image.
    voxels[..4].copy_from_slice(&348i32.to_le_bytes());
    std::fs::write(at("e.img"), &voxels).unwrap();
    assert_eq!(volume::read(&at("e.img"), &stated("LAS")).unwrap().source.format, "NIfTI-1");
    std::fs::write(at("whole.img"), scan(DIAGONAL)).unwrap();
    assert_eq!(read("whole.img").unwrap().voxels, expected);
}

#[test]
fn an_image_without_its_header_is_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let error = |name: &str| -> Error { volume::read(&at(name), &plain()).unwrap_err() };
    let voxels = write_pair(folder.path(), "gone.hdr", "gone.img");
    std::fs::remove_file(at("gone.hdr")).unwrap();
    let e = error("gone.img");
    assert!(e.code() == Code::NIFTI_NOT_NIFTI && e.message().contains("gone.hdr"), "{e}");
    assert_eq!(volume::files(&at("gone.img")).unwrap_err().code(), Code::NIFTI_NOT_NIFTI);
    // What lies next to it is a whole scan, or no header at all.
    std::fs::write(at("gone.hdr"), scan(DIAGONAL)).unwrap();
    let e = error("gone.img");
    assert_eq!((e.code(), e.path()), (Code::NIFTI_PAIR, Some(at("gone.hdr").as_path())));
    std::fs::write(at("gone.hdr"), &voxels).unwrap();
    assert_eq!(error("gone.img").path(), Some(at("gone.hdr").as_path()));
    // A damaged image is the image's fault.
    write_pair(folder.path(), "cut.hdr", "cut.img");
    std::fs::write(at("cut.img"), &voxels[..1000]).unwrap();
    let e = error("cut.img");
    assert_eq!((e.code(), e.path()), (Code::NIFTI_TRUNCATED, Some(at("cut.img").as_path())));
}
