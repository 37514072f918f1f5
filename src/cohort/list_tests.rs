//! Tests of lists for prediction: what is read, and what is wrong with single rows.

use super::*;

fn list(text: impl AsRef<[u8]>) -> Result<List> {
    parse_list(text.as_ref(), Path::new("folder/cohort.csv"))
}

/// Scans, reports and lines.
fn rows(list: &List) -> Vec<(&str, Option<&str>, u64)> {
    list.rows.iter().map(|row| (row.scan.as_str(), row.report.as_deref(), row.line)).collect()
}

#[test]
fn paths_are_relative_to_the_list() {
    let read = list("\u{feff}id, scan ,report\n1,a.nii,r.txt\n2,\"b,1.nii\",\n").unwrap();
    assert_eq!(read.rows.len(), 2);
    assert_eq!(read.rows[0].report_path().unwrap(), Path::new("folder/r.txt"));
    assert_eq!(rows(&read)[1], ("b,1.nii", None, 3));
    // Lines are those that an editor shows: CR LF, empty lines, line breaks in cells, CR alone.
    let lines = |text: &str| list(text).unwrap().rows.iter().map(|row| row.line).collect::<Vec<_>>();
    assert_eq!(lines("scan,note\r\na,\r\n\r\nb,\"1\r\n2\"\r\nc,\r\n"), [2, 4, 6]);
    assert_eq!(lines("scan,note\ra,\r\rb,1\rc,"), [2, 4, 5]);
    assert_eq!(lines("sep=,\r\nscan,note\r\na,\r\n"), [3]);
    assert_eq!(lines("\n,,\nscan,note\na,\n"), [4]);
    let code = |text: String| list(text).unwrap_err();
    assert!(code("scan,note\r\nb\r\n".into()).message().contains("line 2: has 1 cells and the header 2"));
    assert_eq!(code("id,report\n1,r.txt\n".into()).code(), Code::LIST_INVALID);
    let long = format!("scan,report\na.nii,{}\n", "r".repeat(MAX_NAME + 1));
    assert!(code(long).message().contains("line 2: a name of 32769 bytes"));
    let long = format!("scan,x\na.nii,{}\n", "r".repeat(MAX_OTHERS));
    assert!(code(long).message().contains("line 2: its other columns have 262145 bytes"));
    assert!(code("scan,report\n,r.txt\n".into()).message().contains("line 2"));
}

#[test]
fn dialects_give_the_same_rows() {
    let wanted = [("a 1.nii", Some("r;1.txt"), 2), ("b.nii", None, 3)];
    let by = |d: char| format!("age{d}Scan {d} REPORT\n71,5{d}a 1.nii{d}\"r;1.txt\"\n\"70,25\"{d}b.nii{d}n/a\n");
    for text in [by(';'), by('\t'), by('|'), by(',').replace("71,5", "\"71,5\"")] {
        assert_eq!(rows(&list(&text).unwrap()), wanted, "{text}");
        for end in ["\r\n", "\r"] {
            assert_eq!(rows(&list(text.replace('\n', end)).unwrap()), wanted, "{text}");
        }
        for unit in [u16::to_le_bytes, u16::to_be_bytes] {
            let utf16 = |text: &str| text.encode_utf16().flat_map(unit).collect::<Vec<u8>>();
            assert_eq!(rows(&list(utf16(&text)).unwrap()), wanted, "{text}");
            assert_eq!(rows(&list(utf16(&format!("\u{feff}{text}"))).unwrap()), wanted, "{text}");
        }
    }
    let odd = by(';').replace(';', "#").replace("r#1", "r;1");
    let text = format!("SEP=#\r\n{odd}");
    assert_eq!(rows(&list(text).unwrap())[1], ("b.nii", None, 4));
    assert_eq!(rows(&list(format!("\"sep=;\"\n{}", by(';'))).unwrap()).len(), 2);
    assert_eq!(rows(&list("sep=,,,\nscan,report,\na.nii,,\n").unwrap()), [("a.nii", None, 3)]);
    // One column has no delimiter; a `;` belongs to the name.
    assert_eq!(rows(&list("scan\na;1.nii\n").unwrap()), [("a;1.nii", None, 2)]);
}

#[test]
fn what_is_no_list_is_refused_in_one_line() {
    let wrong: Vec<(&[u8], &str)> = vec![
        (b"", "no column `scan`"),
        (b"a,scan,b;scan;c\n1,2,3\n", "both by comma and by semicolon"),
        (b"sep=\nscan\na\n", "names no delimiter"),
        (b"sep=;x\nscan\na\n", "names no delimiter"),
        (b"path;report\na;b\n", "no column `scan`; it has path, report"),
        (b"Scan,SCAN\na,b\n", "2 columns `scan`"),
        (b"PK\x03\x04rest", "workbook"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\xff\xfes\0c\0a\0n\0\n", "UTF-16"),
        (b"\xff\xfes\0c\0a\0n\0\n\0\x00\xd8", "UTF-16"),
        (b"scan,report\na.nii,r.txt\n\"b.nii,s.txt\nc.nii,\n", "line 3: a quote is opened"),
        (b"scan,report\na.nii,\"r.txt\nc.nii,\n", "line 2: a quote is opened"),
        (b"scan,report\n,\n,r\n,s\n", "lines 3, 4: names no scan"),
        (b"sc\xe4n,report\n", "line 1: is not UTF-8"),
    ];
    for (bytes, expected) in wrong {
        let e = list(bytes).unwrap_err();
        assert!(e.code() == Code::LIST_INVALID && e.message().contains(expected), "{expected}: {e}");
        assert_eq!(e.to_string().lines().count(), 1, "{e}");
    }
}

#[test]
fn a_bad_row_does_not_end_the_list() {
    let text = b"scan,report,volume,series,\na,r,0,\n,r,0,,\nb,r,1,,,,\nc,r,1,,,x\nd,r,x,,\ne,r,,9,\nf,r\n\xe4,r,,,\n,,,,\ng,n/a,2.0,n/a,\nN/A,,,,\n";
    let read = list(text).unwrap();
    assert_eq!(rows(&read), [("a", Some("r"), 2), ("b", Some("r"), 4), ("g", None, 11)]);
    assert_eq!(read.rows.iter().map(|row| row.volume).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
    let wrong = [
        (3, "names no scan"),
        (5, "has 6 cells and the header 5: is a comma too many"),
        (6, "the volume is `x`"),
        (7, "series of DICOM are not read yet"),
        (8, "has 2 cells and the header 5: is a comma or a quote missing?"),
        (9, "is not UTF-8"),
        (12, "names no scan"),
    ];
    assert_eq!(read.bad.len(), wrong.len());
    for (bad, (line, what)) in read.bad.iter().zip(wrong) {
        assert!(bad.line == line && bad.error.message().contains(what), "{line}: {}", bad.error);
        assert!(bad.error.message().starts_with(&format!("line {line}: ")));
    }
    assert!(read.notes[0].starts_with("line 11: the report is n/a"), "{:?}", read.notes);
    // A header without rows is an empty list.
    assert!(list("scan\n,\n").unwrap().rows.is_empty());
}

#[test]
fn other_columns_come_along() {
    let read = list(",scan,Age,,report,age,Age,\n1,a.nii,71,,r.txt,x,=1,\n2,b.nii,,,,y,,\n").unwrap();
    assert_eq!(*read.columns, ["column_1", "Age", "age", "Age_2"].map(str::to_owned));
    let first: Vec<_> = read.rows[0].others().collect();
    assert_eq!(first, [("column_1", "1"), ("Age", "71"), ("age", "x"), ("Age_2", "=1")]);
    assert!(list("scan,Report_Path\na,b\n").unwrap().notes[0].contains("`Report_Path`, name it `report`"));
    // A name as documented comes before a variant of it.
    assert_eq!(rows(&list("Scan,scan\nx,a.nii\n").unwrap()), [("a.nii", None, 2)]);
}
