//! MGH files against nibabel's `MGHImage`: types, orientations, frames, intents, footers, compression. What nibabel
//! read is conformed by the same code from a NIfTI-2 file of float64; that code has its own oracle (`corpus`).

use std::path::Path;

use brain_adapter::volume::{self, Conformed, Grid, ReadOptions};
use brain_adapter::{Code, WarningCode};
use serde_json::Value;
use support::mgh_writer::Mgh;
use support::nifti_corpus::numbers;
use support::nifti_writer::{Datatype, Scan, gzip};
use support::oracle;

const CASES: usize = 210;

/// What is odd about a file; other warnings are about the image.
const ODDITIES: [WarningCode; 6] = [
    WarningCode::NO_ORIENTATION,
    WarningCode::XFORM_CODE,
    WarningCode::BITPIX,
    WarningCode::EXTENSION,
    WarningCode::TRAILING_DATA,
    WarningCode::NONFINITE,
];

fn oddities(got: &Conformed) -> Vec<WarningCode> {
    got.warnings.iter().map(|w| w.code).filter(|code| ODDITIES.contains(code)).collect()
}

#[test]
fn as_nibabel_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [folder.path().display().to_string(), CASES.to_string()];
    let printed = oracle::run_python("MGH files against nibabel", "tests/scripts/mgh_cases.py", arguments);
    let Some(printed) = printed else { return };
    let cases: Vec<Value> = serde_json::from_slice(&printed).unwrap();
    assert_eq!(cases.len(), CASES);
    let mut worst = 0f64;
    for case in &cases {
        worst = worst.max(check(folder.path(), case).unwrap_or_else(|e| panic!("{case}: {e}")));
    }
    println!("{CASES} files, worst difference {worst:.2e} of the range");
}

/// Reads every frame; returns the largest difference from the reference, as a fraction of its range.
fn check(folder: &Path, case: &Value) -> Result<f64, String> {
    let path = folder.join(case["file"].as_str().unwrap());
    let frames = case["references"].as_array().unwrap();
    let mut worst = 0f64;
    for (frame, reference) in frames.iter().enumerate() {
        let volume = (frames.len() > 1).then_some(frame);
        let options = ReadOptions {
            grid: Grid { shape: [21, 24, 19], voxel_mm: [1.3, 1.0, 1.7] },
            volume,
            ..ReadOptions::default()
        };
        let got = volume::read(&path, &options).map_err(|e| e.to_string())?;
        let reference = folder.join(reference.as_str().unwrap());
        let want = volume::read(&reference, &ReadOptions { volume: None, ..options }).map_err(|e| e.to_string())?;
        let range = f64::from(want.max) - f64::from(want.min);
        for (a, b) in got.voxels.iter().zip(&want.voxels) {
            worst = worst.max((f64::from(*a) - f64::from(*b)).abs() / range);
        }
        let source = &got.source;
        let same = [
            (source.format == "MGH", "format"),
            (source.gzip == case["gzip"].as_bool().unwrap(), "gzip"),
            (source.datatype == case["datatype"].as_str().unwrap(), "datatype"),
            (source.axcodes == case["axcodes"].as_str().unwrap(), "axcodes"),
            (source.shape.iter().zip(numbers(&case["shape"])).all(|(a, b)| *a as f64 == b), "shape"),
            (source.volumes == frames.len() as u64, "volumes"),
            (got.nonfinite == want.nonfinite, "nonfinite"),
            (source.transform == if case["stated"] == true { "mgh" } else { "none" }, "transform"),
        ];
        if let Some((_, what)) = same.iter().find(|(same, _)| !same) {
            return Err(format!("{what}: {source:?}"));
        }
        for (row, want) in source.affine.iter().zip(case["affine"].as_array().unwrap()) {
            // nibabel rounds the origin to f32
            if row.iter().zip(numbers(want)).any(|(a, b)| (a - b).abs() > 2e-5) {
                return Err(format!("affine: {source:?}"));
            }
        }
        let nonfinite = (got.nonfinite > 0).then_some(WarningCode::NONFINITE);
        let orientation = (case["stated"] == false).then_some(WarningCode::NO_ORIENTATION);
        if oddities(&got) != orientation.into_iter().chain(nonfinite).collect::<Vec<_>>() {
            return Err(format!("warnings: {:?}", got.warnings));
        }
        if got.source.volumes > 1 {
            let e = volume::read(&path, &ReadOptions { volume: None, ..options }).expect_err("no frame chosen");
            assert_eq!(e.code(), Code::NIFTI_VOLUMES);
        }
    }
    if worst > 1e-4 { Err(format!("differs by {worst} of the range")) } else { Ok(worst) }
}

/// Without Python: every type as the same scan in a NIfTI file.
#[test]
fn every_type_is_read_as_in_a_nifti_file() {
    let types = [
        (0, Datatype::U8),
        (1, Datatype::I32),
        (2, Datatype::I64),
        (3, Datatype::F32),
        (4, Datatype::I16),
        (6, Datatype::F32),
        (10, Datatype::U16),
    ];
    for (kind, datatype) in types {
        let shape = [9, 8, 7];
        let file = Mgh { kind, footer: Mgh::usual_footer(), ..Mgh::coronal(shape, 2.0) };
        let affine = [[-2.0, 0.0, 0.0, 9.5], [0.0, 0.0, 2.0, -17.0], [0.0, -2.0, 0.0, 16.0]];
        let values = file.values.clone();
        let twin = Scan { shape, affine, datatype, big: false, version: 1, scaling: (0.0, 0.0), values };
        let options = ReadOptions { grid: Grid::cube(16, 1.5), ..ReadOptions::default() };
        let want = volume::read_bytes(&twin.bytes(), &options).unwrap();
        for bytes in [file.bytes(), gzip(&file.bytes(), 1)] {
            let got = volume::read_bytes(&bytes, &options).unwrap();
            assert_eq!((&got.voxels, got.affine), (&want.voxels, want.affine), "type {kind}");
            assert_eq!((got.source.affine, &got.source.axcodes), (want.source.affine, &want.source.axcodes));
            assert_eq!((oddities(&got), oddities(&want)), (vec![], vec![]), "a footer is no surplus");
        }
    }
}

#[test]
fn an_assumed_orientation_is_said() {
    for flag in [0, -1, i16::MIN] {
        let file = Mgh { flag, ..Mgh::coronal([12, 10, 8], 3.0) };
        let got = volume::read_bytes(&file.bytes(), &ReadOptions::default()).unwrap();
        assert_eq!((got.source.axcodes.as_str(), got.source.spacing_mm), ("LIA", [1.0; 3]));
        assert_eq!(got.source.affine[0][3], 6.0, "centred");
        let warning = got.warnings.iter().find(|w| w.code == WarningCode::NO_ORIENTATION).unwrap();
        assert!(["MGH", "1 mm", "left, inferior, anterior"].iter().all(|w| warning.message.contains(w)), "{warning:?}");
    }
}

/// Whatever its name: the scan is one file, and what is saved of it reads as it was.
#[test]
fn one_file_that_is_saved_as_nifti() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("T1.img");
    std::fs::write(&path, gzip(&Mgh::coronal([12, 10, 8], 3.0).bytes(), 1)).unwrap();
    assert_eq!(volume::files(&path).unwrap(), std::slice::from_ref(&path));
    let options = ReadOptions { grid: Grid::cube(20, 2.0), ..ReadOptions::default() };
    let got = volume::read(&path, &options).unwrap();
    let saved = folder.path().join("saved.nii.gz");
    got.save(&saved).unwrap();
    let again = volume::read(&saved, &options).unwrap();
    assert_eq!((&again.voxels, again.affine), (&got.voxels, got.affine));
}
