//! Files at hand, and single rules with numbers that stand just on either side of a threshold.

use std::sync::LazyLock;

use brain_adapter::volume::{self, Grid, ReadOptions};
use brain_adapter::{Code, Warning, WarningCode};
use support::drafts::{Draft, grid};
use support::package;
use support::phantom::{product, rotation};

use super::{codes, read};

/// The template and the scans made from it, on the model's own grid and on the demo's.
#[test]
fn templates_are_silent() {
    let options = |grid| ReadOptions { grid, ..ReadOptions::default() };
    let template = package("examples/demo/mni152_t1.nii.gz");
    for grid in [Grid::default(), Grid::cube(64, 4.0)] {
        let got = volume::read(&template, &options(grid)).unwrap();
        assert_eq!(codes(&got.warnings), [""; 0], "{:?}", got.quality);
        assert_eq!((got.quality.extent_mm, got.quality.max), ([197.0, 233.0, 189.0], 255.0));
    }
    for entry in std::fs::read_dir(package("examples/demo/calibration")).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().ends_with(".nii.gz") {
            let got = volume::read(&path, &options(Grid::cube(64, 4.0))).unwrap();
            assert_eq!(codes(&got.warnings), [""; 0], "{}: {:?}", path.display(), got.quality);
        }
    }
}

/// The first healthy scan of a whole head in plain integers.
fn first() -> Draft {
    static FIRST: LazyLock<Draft> = LazyLock::new(|| {
        let mut drafts = (0..100).map(Draft::healthy);
        drafts.find(|d| d.what.contains("Whole") && d.what.ends_with("I16 full false")).expect("one of the first")
    });
    Draft::clone(&FIRST)
}

/// The same voxels with axes along the world's, at another spacing and without a qform.
fn plain(spacing: f64) -> Draft {
    let mut draft = first();
    draft.frame.axes = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    draft.frame.spacing = [spacing; 3];
    draft.qform = None;
    draft
}

#[test]
fn identity_is_a_lost_header_and_a_millimetre_scan_is_not() {
    let draft = plain(1.0);
    let eye = |x: f64| [[1.0, 0.0, 0.0, x], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]];
    let lost = |affine| {
        let got = read(&draft.bytes_with(affine), grid());
        codes(&got.warnings).contains(&"no_orientation")
    };
    assert!(lost(eye(0.0)) && lost(eye(-0.0)));
    assert!(!lost(eye(-90.0)) && !lost(eye(0.5)) && !lost(draft.frame.affine()));
}

#[test]
fn transforms_just_on_either_side() {
    let conflict = |degrees: f64, factor: f64| {
        let mut draft = plain(3.0);
        let turn = rotation(2, degrees.to_radians());
        draft.qform = Some((product(&turn, &draft.frame.axes), [3.0, 3.0 * factor, 3.0]));
        let got = read(&draft.bytes(), grid());
        codes(&got.warnings).contains(&"xform_conflict")
    };
    for (degrees, factor, expected) in [
        (0.0, 1.0, false),
        (4.8, 1.0, false),
        (5.2, 1.0, true),
        (0.0, 1.018, false),
        (0.0, 1.023, true),
        (0.0, 0.97, true),
    ] {
        assert_eq!(conflict(degrees, factor), expected, "{degrees} degrees, {factor}");
    }
    let oblique = |degrees: f64| {
        let mut draft = plain(3.0);
        draft.frame.axes = rotation(0, degrees.to_radians());
        let got = read(&draft.bytes(), grid());
        (got.quality.rotation_degrees, codes(&got.warnings).contains(&"oblique"))
    };
    assert_eq!([oblique(19.8).1, oblique(20.2).1], [false, true]);
    assert!((oblique(12.5).0 - 12.5).abs() < 0.01);
}

#[test]
fn resolution_is_judged_by_the_grid() {
    let coarse = |mm: f64, grid: f64| {
        let got = read(&plain(mm).bytes(), Grid::cube(64, grid));
        codes(&got.warnings).contains(&"resolution")
    };
    // A grid of 1 mm: 1.5 times; of 2.5 mm: 3 mm; of 4 mm: 1.5 times.
    let cases = [
        (1.2, 1.0, false),
        (1.5, 1.0, false),
        (1.6, 1.0, true),
        (5.0, 1.0, true),
        (3.0, 2.5, false),
        (3.1, 2.5, true),
        (4.0, 4.0, false),
        (6.0, 4.0, false),
        (6.2, 4.0, true),
    ];
    for (mm, grid, expected) in cases {
        assert_eq!(coarse(mm, grid), expected, "{mm} mm on {grid} mm");
    }
}

/// Clipping by percentiles mends what outliers do: then there is nothing to warn of.
#[test]
fn a_clip_settles_the_range() {
    let mut draft = first();
    (draft.datatype, draft.values[1000]) = (support::nifti_writer::Datatype::F32, 1e6);
    let bytes = draft.bytes();
    let left = |clip| codes(&read(&bytes, grid()).normalize(clip).unwrap().warnings);
    assert_eq!(left(None), ["intensity_range"]);
    assert_eq!(left(Some([0.0, 100.0])), ["intensity_range"]);
    assert_eq!(left(Some([0.1, 99.9])), [""; 0]);
}

#[test]
fn a_refused_warning_keeps_its_code() {
    let [cut, other] = [WarningCode::FOV_CUT, WarningCode::BITPIX].map(|code| Warning::new(code, "what"));
    assert!(Warning::refuse_quality(std::slice::from_ref(&other)).is_ok());
    let e = Warning::refuse_quality(&[other, cut]).unwrap_err();
    assert_eq!((e.code().as_str(), e.code()), ("fov_cut", Code::from(WarningCode::FOV_CUT)));
    assert!(e.message().starts_with("what; refused"), "{e}");
}
