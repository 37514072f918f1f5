//! What is written can be read back, appears whole or not at all, and needs the right name.

use brain_adapter::volume::{self, Conformed, Grid, ReadOptions};
use support::nifti_writer::{Datatype, Scan};

fn conformed() -> Conformed {
    let shape = [9, 8, 7];
    let values = (0..504).map(|i| f64::from(i * 31 % 97) - 20.0).collect();
    let affine = [[-3.0, 0.0, 0.2, 9.0], [0.0, 0.1, 4.0, -7.0], [0.3, 2.5, 0.0, 1.0]];
    let scan = Scan { shape, affine, datatype: Datatype::I16, big: false, version: 1, scaling: (0.0, 0.0), values };
    let grid = Grid { shape: [12, 11, 10], voxel_mm: [2.0, 2.5, 3.0] };
    volume::read_bytes(&scan.bytes(), &ReadOptions { grid, ..ReadOptions::default() }).expect("a healthy scan")
}

#[test]
fn a_saved_volume_reads_back_unchanged() {
    let (conformed, folder) = (conformed(), tempfile::tempdir().unwrap());
    for name in ["con.formed.nii.gz", "plain.nii"] {
        let path = folder.path().join(name);
        std::fs::write(&path, b"an older file").unwrap();
        conformed.save(&path).unwrap();
        let back = volume::read(&path, &ReadOptions { grid: conformed.grid, ..ReadOptions::default() }).unwrap();
        // The file's f32 affine puts the grid 1e-7 off: values move by as little, and a border voxel may fall outside.
        let differ = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-3;
        let count = back.voxels.iter().zip(&conformed.voxels).filter(|pair| differ(*pair)).count();
        assert_eq!(count, 0, "voxels differ");
        assert_eq!((back.source.axcodes.as_str(), back.source.transform.as_str()), ("RAS", "sform"));
        assert_eq!((back.source.datatype.as_str(), back.source.gzip), ("float32", name.ends_with("gz")));
        // A small volume of arbitrary numbers: it raises quality warnings, and no others.
        assert!(back.warnings.iter().all(|w| w.code.is_quality()), "{:?}", back.warnings);
        let header = nifti::NiftiHeader::from_file(&path).unwrap();
        assert_eq!((header.sform_code, header.qform_code, header.xyzt_units), (2, 0, 2));
        for (a, b) in back.source.affine.iter().flatten().zip(conformed.affine.iter().flatten()) {
            assert!((a - b).abs() < 1e-5);
        }
    }
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(names.len(), 2, "temporary files are left: {names:?}");
}

#[test]
fn names_and_folders_are_checked() {
    let (conformed, folder) = (conformed(), tempfile::tempdir().unwrap());
    let e = conformed.save(&folder.path().join("scan.mgz")).unwrap_err();
    assert_eq!(e.code().as_str(), "config.value");
    let e = conformed.save(&folder.path().join("no/such/folder.nii.gz")).unwrap_err();
    assert_eq!(e.code().as_str(), "io");
    assert!(e.path().is_some_and(|p| p.ends_with("folder.nii.gz")), "{e}");
}

#[test]
fn the_preview_is_upright() {
    let (mut conformed, folder) = (conformed(), tempfile::tempdir().unwrap());
    let [ni, nj, nk] = conformed.grid.shape;
    // Bright: the most superior plane of the left half; everything else dark.
    conformed.voxels.iter_mut().enumerate().for_each(|(at, v)| {
        *v = if at / ni / nj == nk - 1 && at % ni < ni / 2 { 1.0 } else { 0.0 };
    });
    let path = folder.path().join("preview.png");
    conformed.save_preview(&path).unwrap();
    let picture = image::open(&path).unwrap().into_luma8();
    assert_eq!(picture.dimensions(), ((2 * ni + nj + 4) as u32, nj.max(nk) as u32));
    // the coronal panel: row 0 is superior (panels are centred: 10 rows of 11 start at 0), columns run from left
    let (left, right) = ((ni + 2) as u32, (2 * ni + 1) as u32);
    assert_eq!([picture.get_pixel(left, 0)[0], picture.get_pixel(right, 0)[0]], [255, 0]);
    assert_eq!(picture.get_pixel(left, 5)[0], 0);
    conformed.min = 0.0;
    conformed.max = 1.0;
    conformed.normalize(None).unwrap().save_preview(&path).unwrap();
}
