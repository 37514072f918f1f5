//! Lists of `ba-infer --list`: every dialect, volumes, bad rows, and the columns that travel into the results.

#![cfg(unix)]

use std::fs;
use std::path::Path;

use brain_adapter::cohort::{Row, read_list};
use serde_json::{Value, json};
use support::commands::{Done, command, finish, fixture, scan, tiny_bundle};
use support::fitting;
use support::oracle::run_python;

fn infer(list: &Path, args: &[&str]) -> Done {
    let mut command = command("ba-infer");
    command.arg("--list").arg(list).arg("--bundle").arg(tiny_bundle()).args(["--device", "cpu", "--threads", "1"]);
    finish(command.args(args).current_dir(list.parent().unwrap()))
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The records of a CSV, the header first.
fn records(path: &Path) -> Vec<Vec<String>> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_path(path).unwrap();
    reader.records().map(|record| record.unwrap().iter().map(str::to_owned).collect()).collect()
}

/// A folder with two scans, a report and a list.
fn cohort(list: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(scan(), dir.path().join("a.nii.gz")).unwrap();
    fs::copy(fixture("tiny-gqa-bf16-sharded/scan.nii.gz"), dir.path().join("b.nii.gz")).unwrap();
    fs::write(dir.path().join("r.txt"), "Memory complaints.").unwrap();
    fs::write(dir.path().join("list.csv"), list).unwrap();
    dir
}

/// Tables by Python's csv module in its dialects are read as its own reader reads them.
#[test]
fn tables_of_other_programs_are_read_as_they_mean_them() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    let args = [folder, "300", "11"];
    let Some(expected) = run_python("lists in all dialects", "tests/scripts/csv_dialects.py", args) else { return };
    let expected: Vec<Value> = serde_json::from_slice(&expected).unwrap();
    assert_eq!(expected.len(), 300);
    let row = |row: &Row| {
        let others: Vec<[&str; 2]> = row.others().map(|(name, cell)| [name, cell]).collect();
        json!({"scan": row.scan, "report": row.report, "others": others})
    };
    for table in expected {
        let path = dir.path().join(table["file"].as_str().unwrap());
        let list = read_list(&path).unwrap_or_else(|e| panic!("{}: {e}", table["how"]));
        assert!(list.bad.is_empty(), "{}: {:?}", table["how"], list.bad);
        assert_eq!(Value::from(list.rows.iter().map(row).collect::<Vec<_>>()), table["rows"], "{}", table["how"]);
    }
}

#[test]
fn bad_rows_are_named_and_the_others_are_answered() {
    let text = "scan;report\na.nii.gz;r.txt\n;r.txt\nb.nii.gz;r.txt;fine, no motion\n;\n.\\b.nii.gz;r.txt\nc\\d.nii;\na.nii.gz;N/A\n";
    let dir = cohort(text);
    let list = dir.path().join("list.csv");
    let done = infer(&list, &["-o", "out.csv"]);
    assert_eq!(done.code, Some(1), "{done:#?}");
    for said in [
        "line 3: error[list.invalid]: names no scan",
        "line 4: error[list.invalid]: has 3 cells and the header 2: is a semicolon too many",
        "line 7: error[nifti.not_found]",
        "which separates folders on Windows alone",
        "line 8: the report is n/a or the like: the scan alone is classified",
        "error[list.partial]",
        "3 of 6 rows failed",
    ] {
        assert!(done.stderr.contains(said), "{said}: {done:#?}");
    }
    let table = records(&dir.path().join("out.csv"));
    let named: Vec<_> = table[1..].iter().map(|row| (row[0].as_str(), row[1].as_str(), row[2].is_empty())).collect();
    let answered = [
        ("a.nii.gz", "r.txt", false),
        (".\\b.nii.gz", "r.txt", false),
        ("c\\d.nii", "", true),
        ("a.nii.gz", "", false),
    ];
    assert_eq!(named, answered);
    // The same in JSON, one object a row.
    let done = infer(&list, &["--json"]);
    let objects = done.json_lines();
    let code = |value: &Value| value["error"]["code"].as_str().unwrap_or("ok").to_owned();
    let codes: Vec<String> = objects.iter().map(code).collect();
    assert_eq!(codes, ["list.invalid", "list.invalid", "ok", "ok", "nifti.not_found", "ok", "list.partial"]);
    // Without any good row nothing is answered.
    fs::write(&list, "scan,report\n,r.txt\nn/a,r.txt\n").unwrap();
    let done = infer(&list, &["-o", "none.csv"]).fails_with_one_line("list.invalid");
    assert!(done.stderr.contains("lines 2, 3: names no scan"), "{done:#?}");
}

/// A 4-D scan of these 3-D ones (NIfTI-1, int16, one size).
fn four_dimensional(scans: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = scans[0].clone();
    bytes[40..42].copy_from_slice(&4i16.to_le_bytes());
    bytes[48..50].copy_from_slice(&i16::try_from(scans.len()).unwrap().to_le_bytes());
    scans[1..].iter().for_each(|scan| bytes.extend(&scan[352..]));
    bytes
}

#[test]
fn rows_name_volumes() {
    let dir = cohort("");
    let volumes = [1, 2, 3].map(|seed| fitting::scan(seed, seed as usize % 3).bytes());
    fs::write(dir.path().join("all.nii"), four_dimensional(&volumes)).unwrap();
    for (i, bytes) in volumes.iter().enumerate() {
        fs::write(dir.path().join(format!("v{i}.nii")), bytes).unwrap();
    }
    let list = dir.path().join("list.csv");
    let text =
        "scan,volume,series\nall.nii,2,\nall.nii,0.0,n/a\nall.nii,n/a,\nv2.nii,,\nv0.nii,,\nv1.nii,,\nall.nii,3,\n";
    fs::write(&list, text).unwrap();
    let cache = ["-o", "out.jsonl", "--cache", "cache"];
    let done = infer(&list, &cache);
    assert!(done.code == Some(1) && done.stderr.contains("2 of 7 rows failed"), "{done:#?}");
    let made = lines(&dir.path().join("out.jsonl"));
    let of = |scan: &str, volume: Value| {
        let line = made.iter().find(|line| line["scan"] == scan && line["volume"] == volume).unwrap();
        (line["logits"].to_string(), line["error"]["code"].clone())
    };
    assert_eq!(of("all.nii", json!(2)), of("v2.nii", Value::Null));
    assert_eq!(of("all.nii", json!(0)), of("v0.nii", Value::Null));
    assert_ne!(of("v0.nii", Value::Null).0, of("v2.nii", Value::Null).0);
    assert_eq!(of("all.nii", Value::Null).1, "nifti.volumes");
    assert_eq!(of("all.nii", json!(3)).1, "nifti.volumes");
    // --volume is for rows that name none; what has its answer keeps it, for 3-D scans have a volume 0 alone.
    let done = infer(&list, &[&cache[..], &["--volume", "1"]].concat());
    assert!(done.code == Some(1) && done.stderr.contains("skipped 2 rows with a result"), "{done:#?}");
    let again = lines(&dir.path().join("out.jsonl"));
    let found = again.iter().find(|line| line["scan"] == "all.nii" && line["volume"].is_null()).unwrap();
    assert_eq!(found["logits"].to_string(), of("v1.nii", Value::Null).0);
    // The columns are in the table too.
    fs::write(&list, "scan,volume,series\nall.nii,2,\nall.nii,0.0,n/a\n").unwrap();
    infer(&list, &["-o", "t.csv"]).ok();
    let table = records(&dir.path().join("t.csv"));
    let last = |row: &Vec<String>| row[row.len() - 2..].to_vec();
    assert_eq!(table.iter().map(last).collect::<Vec<_>>(), [["volume", "series"], ["2", ""], ["0.0", "n/a"]]);
    fs::write(&list, "scan,series\na.nii.gz,\nb.nii.gz,301\n").unwrap();
    let done = infer(&list, &[]);
    assert!(done.stderr.contains("line 3: error[list.invalid]: the series is `301`"), "{done:#?}");
}

#[test]
fn other_columns_travel_into_the_results() {
    let dir =
        cohort("age,scan,label,report,warnings,=x,\n71,a.nii.gz,AD,r.txt,w,=1+1,\n-3.5,b.nii.gz,CN,,\"x,y\",+1-2,\n");
    let (list, table) = (dir.path().join("list.csv"), dir.path().join("out.csv"));
    infer(&list, &["-o", "out.csv"]).ok();
    let rows = records(&table);
    let own = rows[0].iter().position(|name| name == "error").unwrap() + 1;
    let others = |rows: &[Vec<String>]| rows.iter().map(|row| row[own..].to_vec()).collect::<Vec<_>>();
    let first =
        [["age", "list_label", "list_warnings", "'=x"], ["71", "AD", "w", "'=1+1"], ["-3.5", "CN", "x,y", "'+1-2"]];
    assert_eq!(others(&rows), first);
    let made = lines(&dir.path().join("out.jsonl"));
    assert_eq!(made[0]["columns"], json!({"age": "71", "label": "AD", "warnings": "w", "=x": "=1+1"}));
    // Other cells, another column, another order: no row is computed again, and the list as it is now counts.
    fs::write(&list, "scan,report,sex,age\nb.nii.gz,,f,70\na.nii.gz,r.txt,m,71\n").unwrap();
    let done = infer(&list, &["-o", "out.csv"]).ok();
    assert!(done.stderr.contains("skipped 2 rows with a result"), "{done:#?}");
    assert_eq!(others(&records(&table)), [["sex", "age"], ["f", "70"], ["m", "71"]]);
    let again = lines(&dir.path().join("out.jsonl"));
    let of = |scan: &str, lines: &[Value]| lines.iter().find(|line| line["scan"] == scan).unwrap().clone();
    for name in ["a.nii.gz", "b.nii.gz"] {
        let (mut now, mut before) = (of(name, &again), of(name, &made));
        assert_ne!(now["columns"].take(), before["columns"].take());
        assert_eq!(now.to_string(), before.to_string());
    }
    // Another list's columns stand after these.
    fs::write(dir.path().join("other.csv"), "scan\tmmse\tage\na.nii.gz\t24\t9\n").unwrap();
    infer(&dir.path().join("other.csv"), &["-o", "out.csv"]).ok();
    let both = others(&records(&table));
    assert_eq!(both, [["mmse", "age", "sex"], ["", "71", "m"], ["", "70", "f"], ["24", "9", ""]]);
    // A list without other columns has lines without them.
    fs::write(&list, "scan,report\na.nii.gz,r.txt\n").unwrap();
    infer(&list, &["-o", "out.csv"]).ok();
    assert!(of("a.nii.gz", &lines(&dir.path().join("out.jsonl"))).get("columns").is_none());
    // A column that somebody added is theirs.
    let noted: Vec<String> = fs::read_to_string(&table).unwrap().lines().map(|line| format!("{line},mine")).collect();
    fs::write(&table, noted.join("\n")).unwrap();
    infer(&list, &["-o", "out.csv"]).fails_with_one_line("output.exists").naming(&["out.csv"]);
    assert_eq!(fs::read_to_string(&table).unwrap(), noted.join("\n"));
}
