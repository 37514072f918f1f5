//! What is not read is named for what it is, with the way out.

use std::path::Path;

use brain_adapter::volume::{self, ReadOptions};
use brain_adapter::{Code, Error};
use support::nifti_writer::{Datatype, Scan, gzip};

fn read(path: &Path) -> Error {
    volume::read(path, &ReadOptions::default()).unwrap_err()
}

fn read_bytes(bytes: &[u8]) -> Error {
    volume::read_bytes(bytes, &ReadOptions::default()).unwrap_err()
}

/// (0008,0008) in explicit form, without a preamble.
const DICOM: &[u8] = b"\x08\0\x08\0CS\x08\0ORIGINAL\x08\0\x16\0UI\x04\x001.2\0";

#[test]
fn folders_are_searched_within_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let e = read(folder.path());
    assert!(e.code() == Code::NIFTI_NOT_A_FILE && e.message().contains(".nii.gz"), "{e}");
    // patient / study / series / images: four levels down
    let series = folder.path().join("P1/S1/SE1/IMG");
    std::fs::create_dir_all(&series).unwrap();
    std::fs::write(folder.path().join("P1/readme.txt"), "notes").unwrap();
    std::fs::write(series.join("IM1"), DICOM).unwrap();
    let e = read(folder.path());
    assert!(
        e.code() == Code::NIFTI_NOT_NIFTI && e.message().contains("DICOM") && e.message().contains("dcm2niix"),
        "{e}"
    );
    // With a scan in it, that is what to give.
    std::fs::create_dir(folder.path().join("anat")).unwrap();
    std::fs::write(folder.path().join("anat/t1.nii.gz"), "").unwrap();
    let e = read(folder.path());
    assert_eq!(e.code(), Code::NIFTI_NOT_A_FILE);
    assert!(e.message().contains("t1.nii.gz") && e.message().contains("DICOM"), "{e}");
    let bruker = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(bruker.path().join("5/pdata/1")).unwrap();
    std::fs::write(bruker.path().join("5/pdata/1/2dseq"), [1; 100]).unwrap();
    let e = read(bruker.path());
    assert!(e.code() == Code::NIFTI_NOT_NIFTI && e.message().contains("Bruker"), "{e}");
    // Deeper than any export, and more files than are looked at: an answer all the same.
    let deep = tempfile::tempdir().unwrap();
    let bottom = deep.path().join("a/b/c/d/e/f/g");
    std::fs::create_dir_all(&bottom).unwrap();
    std::fs::write(bottom.join("IM1"), DICOM).unwrap();
    for i in 0..3000 {
        std::fs::write(deep.path().join(format!("{i}.txt")), "x").unwrap();
    }
    assert_eq!(read(deep.path()).code(), Code::NIFTI_NOT_A_FILE);
}

#[test]
#[cfg(unix)]
fn links_to_content_that_was_not_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("sub-01_T1w.nii.gz");
    std::os::unix::fs::symlink("../.git/annex/objects/Xk/3w/MD5E-s9--0a.nii.gz/MD5E-s9--0a.nii.gz", &link).unwrap();
    let e = read(&link);
    assert!(e.code() == Code::NIFTI_NOT_FOUND && e.message().contains("datalad get"), "{e}");
    // A folder of them is no endless walk either.
    std::os::unix::fs::symlink(".", folder.path().join("self")).unwrap();
    assert_eq!(read(folder.path()).code(), Code::NIFTI_NOT_A_FILE);
}

#[test]
fn formats_inside_gzip_and_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut tar = vec![0; 1024];
    tar[..6].copy_from_slice(b"IM0001");
    tar[257..263].copy_from_slice(b"ustar ");
    for (name, bytes, word) in [
        ("series.tar", tar.clone(), "tar"),
        ("series.tar.gz", gzip(&tar, 1), "tar"),
        ("IM7", DICOM.to_vec(), "DICOM"),
        ("IM7.gz", gzip(DICOM, 1), "DICOM"),
        ("anat+orig.BRIK.gz", gzip(&[0; 5000], 1), "3dAFNItoNIFTI"),
        ("brain.rec", vec![7; 5000], "PAR/REC"),
        ("t.nii.gz", b"/annex/objects/MD5E-s4--77.nii.gz\n".to_vec(), "git annex get"),
        ("brain.surf.gii", [b"<?xml version=\"1.0\"?>\n", vec![b' '; 900].as_slice(), b"<GIFTI>"].concat(), "GIFTI"),
        ("p.mhd", b"; x\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_FLOAT\n".to_vec(), "MetaImage"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let e = read(&path);
        assert!(e.code() == Code::NIFTI_NOT_NIFTI && e.message().contains(word), "{name}: {e}");
        assert!(!e.to_string().contains('\n'));
    }
}

fn header(version: u8) -> Vec<u8> {
    let affine = [[3.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]];
    let values = (0..60).map(f64::from).collect();
    Scan { shape: [5, 4, 3], affine, datatype: Datatype::I16, big: false, version, scaling: (0.0, 0.0), values }.bytes()
}

#[test]
fn surfaces_in_a_nifti_header() {
    // .dscalar.nii: 1 × 1 × 1 × 1 × maps × vertices, with its intent or without
    for intent in [3006i32, 0] {
        let mut bytes = header(2);
        bytes[504..508].copy_from_slice(&intent.to_le_bytes());
        for (i, n) in [6i64, 1, 1, 1, 1, 2, 30].iter().enumerate() {
            bytes[16 + 8 * i..24 + 8 * i].copy_from_slice(&n.to_le_bytes());
        }
        let e = read_bytes(&bytes);
        assert!(e.code() == Code::NIFTI_NOT_NIFTI && e.message().contains("CIFTI"), "{e}");
        assert!(!e.message().contains("--volume"), "{e}");
    }
}

#[test]
fn thin_volumes_are_not_told_to_choose_one() {
    for (dim, word) in [
        ([4i16, 5, 4, 1, 3], "fourth dimension"),
        ([4, 1, 5, 4, 3], "one voxel thin"),
        ([4, 5, 1, 4, 3], "one voxel thin"),
        ([4, 1, 1, 4, 15], "not a volume"),
        ([3, 5, 12, 1, 1], "single slice"),
        ([2, 5, 12, 1, 1], "single slice"),
    ] {
        let mut bytes = header(1);
        for (i, n) in dim.iter().enumerate() {
            bytes[40 + 2 * i..42 + 2 * i].copy_from_slice(&n.to_le_bytes());
        }
        for volume in [None, Some(1)] {
            let e = volume::read_bytes(&bytes, &ReadOptions { volume, ..ReadOptions::default() }).unwrap_err();
            assert_eq!(e.code(), Code::NIFTI_DIMS);
            assert!(e.message().contains(word) && !e.message().contains("--volume"), "{dim:?}: {e}");
        }
    }
}

#[test]
fn dicom_with_its_preamble_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut dicom = vec![0; 128];
    dicom.extend(b"DICM\x02\0\0\0UL\x04\0");
    let file = folder.path().join("IM000001");
    std::fs::write(&file, dicom).unwrap();
    for path in [folder.path(), &file] {
        let e = read(path);
        assert!(e.code() == Code::NIFTI_NOT_NIFTI && e.message().contains("DICOM"), "{e}");
    }
}
