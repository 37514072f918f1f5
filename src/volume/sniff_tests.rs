use super::*;

fn explicit(group: [u8; 2], kind: &[u8; 2]) -> Vec<u8> {
    [&group[..], &[0, 0], kind, &[4, 0, 1, 2, 3, 4]].concat()
}

/// A header of an archive, without the magic of POSIX.
fn tar() -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..7].copy_from_slice(b"IM/0001");
    header[100..107].copy_from_slice(b"0000644");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[test]
fn names_what_it_sees() {
    let mut dicom = vec![0; 128];
    dicom.extend(b"DICM");
    let mut posix = vec![b'x'; 300];
    posix[257..262].copy_from_slice(b"ustar");
    // (0008,0016) of 6 bytes, then (0008,0018)
    let implicit = [&[8, 0, 0x16, 0, 6, 0, 0, 0][..], b"1.2.3\0", &[8, 0, 0x18, 0, 2, 0, 0, 0, b'1', 0]].concat();
    for (bytes, word) in [
        (dicom.as_slice(), "DICOM"),
        (&explicit([2, 0], b"UL"), "DICOM"),
        (&explicit([8, 0], b"CS"), "DICOM"),
        (&explicit([0, 8], b"UI"), "DICOM"),
        (&implicit, "DICOM"),
        (b"\x89PNG\r\n", "PNG"),
        (b"\n<!DOCTYPE html>", "web page"),
        (b"\xef\xbb\xbf<?xml?>\n<!-- by us -->\n<GIFTI Version=\"1.0\">", "surface"),
        (b"<PRIDE_V5>", "Philips"),
        (b"login required", "text"),
        (b"{\"EchoTime\": 0.003}", "sidecar"),
        (&[0; 100], "zeros"),
        (&348i32.to_le_bytes(), "damaged NIfTI"),
        (&[3, 1, 4, 1, 5], "not known"),
        (&posix, "tar -xf"),
        (&tar(), "tar -xf"),
        (b"\x1f\x9d\x90\x5c", "compress"),
        (b"BZh91AY&SY", "bunzip2"),
        (b"\x28\xb5\x2f\xfd\x24", "zstd -d"),
        (b"NRRD0005\n", "NRRD"),
        (b"CDF\x01\0", "MINC 1"),
        (b"\x89HDF\r\n\x1a\n", "MINC 2"),
        (b"MATRIX72v", "ECAT"),
        (b"mrtrix image\ndim: 2,2,2\n", "mrconvert"),
        (b"!INTERFILE :=\n", "Interfile"),
        (b"; made by us\n!INTERFILE :=\n", "Interfile"),
        (b"/annex/objects/SHA256E-s12--ab.nii.gz\n", "datalad get"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"\ntype = string-attribute\nname = TYPESTRING\n", "AFNI"),
        (b"\n\ntype  = integer-attribute\n", "AFNI"),
        (b"NDims = 3\nDimSize = 4 4 4\n\xff\0\x01", "MetaImage"),
        (b"Comment = hello\nNDims = 3\nObjectType = Image\nElementDataFile = LOCAL\n\0\0\x01", "MetaImage"),
        (b"ObjectType = Image\n", "MetaImage"),
        (b"# === DATA DESCRIPTION FILE ====", "PAR/REC"),
        (b"##TITLE=Parameter List, ParaVision 6.0.1\n", "Bruker"),
        (b"II*\0\x08", "TIFF"),
    ] {
        assert!(describe(bytes, None).contains(word), "{word}: {}", describe(bytes, None));
    }
}

#[test]
fn raw_voxels_go_by_their_name() {
    for (name, word) in [
        ("anat+orig.BRIK", "AFNI"),
        ("anat+tlrc.BRIK.gz", "AFNI"),
        ("scan.REC", "PAR/REC"),
        ("2dseq", "Bruker"),
        ("scan.nii", "not known"),
    ] {
        assert!(describe(&[3, 1, 4, 1, 5], Some(name.as_ref())).contains(word), "{name}");
    }
    // What is in the file comes first.
    assert!(describe(b"NRRD0004\n", Some("a.rec".as_ref())).contains("NRRD"));
}

#[test]
fn what_only_resembles_dicom_or_an_archive_is_not() {
    let mut wrong = tar();
    wrong[0] ^= 1;
    for bytes in [
        wrong.as_slice(),
        &[8, 0, 0, 0, 3, 0, 0, 0, 1, 2, 3],
        &[8, 0, 9, 0, 2, 0, 0, 0, 1, 2, 8, 0, 5, 0],
        &[8, 0, 9, 0, 0, 0, 1, 0],
        &[2, 0],
        &[9, 0, 0, 0, b'U', b'L', 4, 0],
    ] {
        let what = describe(bytes, None);
        assert!(!what.contains("DICOM") && !what.contains("tar"), "{what}");
    }
}
