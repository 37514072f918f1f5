//! Files that are no text, by the bytes that they begin with: documents, archives, images, scans.
//!
//! Magic numbers are those of the formats' specifications (as in the `magic` files of file(1)). Nothing is unpacked
//! except the first bytes of a gzip member, to tell a scan from a compressed text.

use std::io::Read;

use super::Found;

const AS_TEXT: &str = "save it as plain text (UTF-8)";
const UNPACK: &str = "unpack it first";
const SWAPPED: &str = "were scan and report swapped? The report goes behind --report";
const IMAGE: &str = "the model reads the report's text, not a picture of it";
const PDF: Found = Found { what: "a PDF document", remedy: "extract its text, for example with `pdftotext FILE.pdf`" };
const GZIP: Found =
    Found { what: "gzip-compressed text or data", remedy: "unpack it first; in a shell, `--report <(zcat FILE.gz)`" };
const NIFTI: Found = Found { what: "a NIfTI scan", remedy: SWAPPED };
const DICOM: Found = Found { what: "a DICOM scan", remedy: SWAPPED };
const MGH: Found = Found { what: "a FreeSurfer MGH scan", remedy: SWAPPED };

/// Bytes at a place, what they mean, and what to do.
type Row = (usize, &'static [u8], &'static str, &'static str);

const MAGIC: &[Row] = &[
    (0, b"%!PS", "a PostScript document", AS_TEXT),
    (0, b"PK\x05\x06", "an empty zip archive", UNPACK),
    (0, b"PK\x07\x08", "a zip archive", UNPACK),
    (4, b"1AY&SY", "a bzip2-compressed file", UNPACK),
    (0, b"\xfd7zXZ\0", "an xz-compressed file", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd-compressed file", UNPACK),
    (0, b"\x1f\x9d", "a file compressed with compress(1)", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (0, b"\x89PNG\r\n", "a PNG image", IMAGE),
    (0, b"\xff\xd8\xff", "a JPEG image", IMAGE),
    (0, b"GIF87a", "a GIF image", IMAGE),
    (0, b"GIF89a", "a GIF image", IMAGE),
    (0, b"II*\0", "a TIFF image", IMAGE),
    (0, b"MM\0*", "a TIFF image", IMAGE),
    (8, b"WEBPVP8", "a WebP image", IMAGE),
    (4, b"ftypheic", "a HEIC image", IMAGE),
    (0, b"\0\0\0\x0cjP  \r\n", "a JPEG 2000 image", IMAGE),
    (0, b"\x89HDF\r\n", "an HDF5 or MINC file", SWAPPED),
    (0, b"\x93NUMPY", "a NumPy array", SWAPPED),
    (0, b"NRRD000", "an NRRD scan", SWAPPED),
    (0, b"ObjectType = Image", "a MetaImage scan", SWAPPED),
    (0, b"\x7fELF", "a program", AS_TEXT),
    (0, b"SQLite format 3\0", "an SQLite database", "export the report's text from it"),
];

/// Longest head of a file in which a PDF may begin (Adobe's readers accept that much before it).
const PDF_HEAD: usize = 1024;

/// What binary file these bytes are the beginning of; none where they may be text.
pub(super) fn recognize(bytes: &[u8]) -> Option<Found> {
    let head = bytes.get(..PDF_HEAD).unwrap_or(bytes);
    let version = |at: usize| head.get(at + 5).is_some_and(u8::is_ascii_digit);
    if find(head, b"%PDF-").is_some_and(version) {
        return Some(PDF);
    }
    if bytes.starts_with(b"PK\x03\x04") {
        return Some(in_zip(bytes));
    }
    if bytes.starts_with(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1") {
        return Some(in_ole(bytes));
    }
    if bytes.starts_with(b"\x1f\x8b") {
        return Some(in_gzip(bytes));
    }
    // A member's name is padded with NULs; words that end in `ustar` are Spanish.
    if bytes.get(257..262) == Some(b"ustar") && head.contains(&0) {
        return Some(Found { what: "a tar archive", remedy: UNPACK });
    }
    // Two letters alone begin many a text: `BMI 24`.
    if bytes.starts_with(b"BM") && bytes.get(6..10) == Some(&[0; 4]) {
        return Some(Found { what: "a BMP image", remedy: IMAGE });
    }
    let row = MAGIC.iter().find(|(at, magic, _, _)| bytes.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    row.map(|(_, _, what, remedy)| Found { what, remedy }).or_else(|| scan(bytes))
}

/// A scan's header: NIfTI-1, NIfTI-2 and Analyze begin with their header's size, in either byte order.
fn scan(bytes: &[u8]) -> Option<Found> {
    let size = bytes.first_chunk::<4>()?;
    let is = |n: u32| *size == n.to_le_bytes() || *size == n.to_be_bytes();
    if is(348) || is(540) {
        return Some(NIFTI);
    }
    if bytes.get(128..132) == Some(b"DICM") && bytes.iter().take(256).any(|b| *b == 0) {
        return Some(DICOM);
    }
    // Version 1, then four dimensions of which none is negative, all big-endian.
    let dims = bytes.get(4..20)?;
    let positive = dims.chunks_exact(4).all(|dim| dim.first().is_some_and(|b| *b < 0x80) && dim.iter().any(|b| *b > 0));
    (*size == 1u32.to_be_bytes() && positive).then_some(MGH)
}

/// A zip archive: Word and OpenDocument by the names of their members, which are not compressed.
fn in_zip(bytes: &[u8]) -> Found {
    let has = |name: &[u8]| find(bytes, name).is_some();
    let what = if has(b"word/") {
        "a Word document (.docx, a zip archive)"
    } else if has(b"opendocument.text") {
        "an OpenDocument text (.odt, a zip archive)"
    } else if has(b"opendocument") {
        "an OpenDocument file (a zip archive)"
    } else if has(b"[Content_Types].xml") {
        "a Word, Excel or PowerPoint document (a zip archive)"
    } else {
        return Found { what: "a zip archive", remedy: UNPACK };
    };
    Found { what, remedy: AS_TEXT }
}

/// An OLE2 file: old Word documents have a stream of that name.
fn in_ole(bytes: &[u8]) -> Found {
    let utf16 = |name: &str| name.bytes().flat_map(|b| [b, 0]).collect::<Vec<u8>>();
    let word = find(bytes, &utf16("WordDocument")).is_some();
    let what = if word {
        "an old Word document (.doc, OLE2)"
    } else {
        "an old Word, Excel or Outlook document (.doc, .xls, .msg; OLE2)"
    };
    Found { what, remedy: AS_TEXT }
}

/// A gzip file: a scan by what its first bytes unpack to.
fn in_gzip(bytes: &[u8]) -> Found {
    let mut head = Vec::new();
    // What cannot be unpacked is still gzip.
    let _ = flate2::read::GzDecoder::new(bytes).take(512).read_to_end(&mut head);
    match scan(&head) {
        Some(found) if found == NIFTI => Found { what: "a gzip-compressed NIfTI scan", remedy: SWAPPED },
        Some(found) if found == MGH => Found { what: "a gzip-compressed FreeSurfer scan (.mgz)", remedy: SWAPPED },
        Some(_) => Found { what: "a gzip-compressed DICOM scan", remedy: SWAPPED },
        None => GZIP,
    }
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_begin_like_files_are_texts() {
        let texts: [&[u8]; 9] = [
            b"BMI 24, MMSE 27/30",
            b"II* ventricle",
            b"PK, 74 years",
            b"MMSE 24",
            b"GIF89",
            b"BZ 101 mg/dl",
            b"PDF of the outside study was reviewed (%PDF-)",
            b"\\ 348",
            b"",
        ];
        for text in texts {
            assert_eq!(recognize(text), None, "{}", text.escape_ascii());
        }
        for (at, word) in [(257, "ustar"), (128, "DICM")] {
            assert_eq!(recognize(format!("{}{word} normal", "a".repeat(at)).as_bytes()), None);
            assert!(recognize(format!("{}\0{word}\0", "a".repeat(at - 1)).as_bytes()).is_some(), "{word}");
        }
        // Every beginning of a text is one.
        (0..20).for_each(|n| assert_eq!(recognize(&b"Rare: no 7z. MM 12 mm"[..n]), None));
    }

    #[test]
    fn scans_in_every_byte_order() {
        for (bytes, word) in [
            (348u32.to_le_bytes().to_vec(), "NIfTI"),
            (348u32.to_be_bytes().to_vec(), "NIfTI"),
            (540u32.to_le_bytes().to_vec(), "NIfTI"),
            ([&[0; 128][..], b"DICM\x02\0"].concat(), "DICOM"),
            ([1u32, 256, 256, 256, 1, 3].map(u32::to_be_bytes).concat(), "MGH"),
        ] {
            assert!(recognize(&bytes).unwrap().what.contains(word), "{bytes:?}");
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut packed, &bytes).unwrap();
            let found = recognize(&packed.finish().unwrap()).unwrap();
            assert!(found.what.contains("gzip") && found.what.contains("scan") && found.remedy == SWAPPED, "{found:?}");
        }
    }
}
