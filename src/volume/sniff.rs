//! What a file is when it is not NIfTI, for the message. In: its first bytes. Out: a phrase for a person.

/// Bytes that [`describe`] likes to see.
pub(super) const WANTED: usize = 348;

/// Signature at the start of the file, and what it means.
const SIGNATURES: &[(&[u8], &str)] = &[
    (b"\x1f\x8b", "a gzip file inside a gzip file: unpack it once"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"BZh", "a bzip2 file: unpack it first"),
    (b"\xfd7zXZ\0", "an xz file: unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd file: unpack it first"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF", "a PDF document"),
    (b"NRRD", "an NRRD volume: convert it to NIfTI first"),
    (b"ObjectType", "a MetaImage header: convert it to NIfTI first"),
    (b"\x0eMINC", "a MINC volume: convert it to NIfTI first"),
    (b"\x89HDF", "an HDF5 file (perhaps MINC 2): convert it to NIfTI first"),
    (b"\x93NUMPY", "a NumPy array"),
];

/// Whether the file is a DICOM object: the mark behind the preamble, or a first element as written without one.
pub(super) fn is_dicom(bytes: &[u8]) -> bool {
    bytes.get(128..132) == Some(b"DICM") || matches!(bytes, [8, 0, 0 | 1 | 5 | 8, 0, _, _, _, _, ..])
}

/// A phrase that completes "this is …".
pub(super) fn describe(bytes: &[u8]) -> String {
    if is_dicom(bytes) {
        return "DICOM: convert the series to NIfTI first, for example with dcm2niix".into();
    }
    if let Some((_, what)) = SIGNATURES.iter().find(|(signature, _)| bytes.starts_with(signature)) {
        return (*what).to_owned();
    }
    if super::header::kind([0, 1, 2, 3].map(|i| bytes.get(i).copied().unwrap_or(0))).is_some() {
        return "an Analyze 7.5 header or a damaged NIfTI header (no NIfTI magic): Analyze files hold no orientation, \
                convert the scan again from its DICOM files"
            .into();
    }
    if bytes.iter().all(|&b| b == 0) {
        return "a file of zeros: copy or export the scan again".into();
    }
    if bytes.iter().all(|&b| b >= 0x80 || b.is_ascii_graphic() || b.is_ascii_whitespace()) {
        let html = bytes.trim_ascii_start().starts_with(b"<");
        return if html { "a web page or XML: the download failed?" } else { "a text file" }.into();
    }
    "not a format known here".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_it_sees() {
        let mut dicom = vec![0; 128];
        dicom.extend(b"DICM");
        for (bytes, word) in [
            (dicom.as_slice(), "DICOM"),
            (b"\x89PNG\r\n", "PNG"),
            (b"\n<!DOCTYPE html>", "web page"),
            (b"login required", "text"),
            (&[0; 100], "zeros"),
            (&348i32.to_le_bytes(), "Analyze"),
            (&[3, 1, 4, 1, 5], "not a format"),
        ] {
            assert!(describe(bytes).contains(word), "{}", describe(bytes));
        }
    }
}
