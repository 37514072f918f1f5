//! `ba-infer --list`: every row answered once, whatever happens in between.

#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use support::commands::{Done, command, finish, scan, tiny_bundle};

/// A cohort of `rows`, with a scan `s.nii.gz` and a report `r.txt` next to it.
fn cohort(rows: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(scan(), dir.path().join("s.nii.gz")).unwrap();
    fs::write(dir.path().join("r.txt"), "Memory complaints.").unwrap();
    fs::write(dir.path().join("bad.nii"), "no scan").unwrap();
    fs::write(dir.path().join("list.csv"), rows).unwrap();
    dir
}

/// Runs the list from another folder: paths are relative to the list.
fn run(dir: &Path, args: &[&str]) -> Done {
    let mut command = command("ba-infer");
    command.arg("--list").arg(dir.join("list.csv")).arg("--bundle").arg(tiny_bundle()).args(args);
    finish(command.current_dir(dir))
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

const ROWS: &str = "id,scan,report\n1,s.nii.gz,r.txt\n2,bad.nii,r.txt\n3,s.nii.gz,\n4,none.nii,\n5,./s.nii.gz,none.txt\n6,./s.nii.gz,r.txt\n";

#[test]
fn bad_rows_are_reported_and_the_rest_go_on() {
    let dir = cohort(ROWS);
    let done = run(dir.path(), &["-o", "out.jsonl"]);
    assert_eq!(done.code, Some(1), "{done:#?}");
    let rows = lines(&dir.path().join("out.jsonl"));
    let found: Vec<String> =
        rows.iter().map(|r| r["error"]["code"].as_str().map_or_else(|| "ok".to_owned(), str::to_owned)).collect();
    assert_eq!((found.len(), found[0].as_str(), found[2].as_str(), found[5].as_str()), (6, "ok", "ok", "ok"));
    assert!(found[1].starts_with("nifti.") && found[3] == "nifti.not_found" && found[4] == "report.not_found");
    assert_eq!((rows[0]["scan"].as_str(), rows[0]["report"].as_str()), (Some("s.nii.gz"), Some("r.txt")));
    assert!(rows[2]["report"].is_null() && rows[2]["similarity"].is_null());
    for line in 3..=6 {
        assert_eq!(done.stderr.contains(&format!("line {line}: error[")), [3, 5, 6].contains(&line), "{done:#?}");
    }
    assert!(done.stderr.lines().last().unwrap().starts_with("error[list.partial]"), "{done:#?}");
    assert!(done.stdout.is_empty());
}

#[test]
fn it_goes_on_where_it_stopped() {
    let dir = cohort("scan,report\ns.nii.gz,r.txt\n./s.nii.gz,\n././s.nii.gz,r.txt\n");
    let out = dir.path().join("out.jsonl");
    run(dir.path(), &["-o", "out.jsonl"]).ok();
    let all = lines(&out);
    let text = fs::read_to_string(&out).unwrap();
    // Lines lost, a line cut in the middle: made again; the others stay as they are.
    let second = text.find('\n').unwrap() + 1;
    for kept in [0, second, second + 20, text.len() - 1] {
        fs::write(&out, &text[..kept]).unwrap();
        let done = run(dir.path(), &["-o", "out.jsonl"]).ok();
        let again = lines(&out);
        assert_eq!(again.len(), 3, "{done:#?}");
        for (a, b) in all.iter().zip(&again) {
            assert_eq!((&a["scan"], &a["logits"]), (&b["scan"], &b["logits"]));
        }
        assert!(fs::read_to_string(&out).unwrap().starts_with(&text[..kept.min(second)]));
    }
    let done = run(dir.path(), &["-o", "out.jsonl"]).ok();
    assert!(done.stderr.contains("skipped 3 rows with a result"), "{done:#?}");
}

#[test]
fn killed_and_called_again() {
    let rows: String = (0..12).map(|i| format!("{}s.nii.gz,r.txt\n", "./".repeat(i))).collect();
    let dir = cohort(&format!("scan,report\n{rows}"));
    let out = dir.path().join("out.jsonl");
    let mut interrupted = 0;
    for round in 0..8 {
        let mut command = command("ba-infer");
        command.arg("--list").arg(dir.path().join("list.csv")).arg("--bundle").arg(tiny_bundle()).arg("-o").arg(&out);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(30 + 25 * round));
        child.kill().unwrap();
        interrupted += u32::from(!child.wait().unwrap().success());
        let text = fs::read_to_string(&out).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|l| l.ends_with('\n'));
        assert!(whole.into_iter().all(|l| serde_json::from_str::<Value>(l).is_ok()), "{text}");
    }
    assert!(interrupted > 0);
    run(dir.path(), &["-o", "out.jsonl"]).ok();
    let scans: std::collections::BTreeSet<String> = lines(&out).iter().map(|l| l["scan"].to_string()).collect();
    assert_eq!((scans.len(), lines(&out).len()), (12, 12));
}

#[test]
fn as_csv() {
    let dir = cohort(ROWS);
    assert_eq!(run(dir.path(), &["-o", "out.csv", "-q"]).code, Some(1));
    let mut reader = csv::Reader::from_path(dir.path().join("out.csv")).unwrap();
    let header: Vec<String> = reader.headers().unwrap().iter().map(str::to_owned).collect();
    assert_eq!(header, ["scan", "report", "label", "p_CN", "p_MCI", "p_AD", "similarity", "warnings", "error", "id"]);
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 6);
    let sum: f64 = (3..6).map(|i| rows[0][i].parse::<f64>().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-9 && rows[0][8].is_empty());
    assert!(rows[3][2].is_empty() && &rows[3][8] == "nifti.not_found");
    // The failed rows alone are tried again.
    let done = run(dir.path(), &["-o", "out.csv"]);
    assert!(done.stderr.contains("skipped 3 rows with a result"), "{done:#?}");
}

#[test]
fn lists_that_cannot_be_read() {
    let rows = [
        ("", "scan"),
        ("id,report\n1,r.txt\n", "scan"),
        ("scan,report\n,r.txt\n", "line 2"),
        ("scan,report\ns.nii.gz\n", "line"),
        ("scan,report\n\"s.nii.gz,r.txt\n", "line"),
        ("scan\n\u{0}\u{ff}\u{fe}", ""),
    ];
    for (text, word) in rows {
        let dir = cohort(text);
        let done = run(dir.path(), &["-o", "out.jsonl"]);
        // An odd name of a scan is a row that fails, a list without sense a list that does.
        assert_eq!(done.code, Some(1), "{text:?}: {done:#?}");
        assert!(done.stderr.contains("error[list.") && done.stderr.contains(word), "{text:?}: {done:#?}");
        assert!(!done.stderr.contains("panicked"), "{done:#?}");
    }
    let dir = cohort("scan\nb\u{e4}d.nii\n");
    fs::write(dir.path().join("list.csv"), b"scan\nb\xe4d.nii\n").unwrap();
    run(dir.path(), &[]).fails("list.invalid").naming(&["list.csv"]);
    let gone = command("ba-infer").arg("--list").arg("none.csv").arg("--bundle").arg(tiny_bundle()).spawn().unwrap();
    assert_eq!(gone.wait_with_output().unwrap().status.code(), Some(1));
}

/// The list itself, other people's files and devices are no place for results.
#[test]
fn results_never_replace_what_is_not_theirs() {
    let dir = cohort(ROWS);
    run(dir.path(), &["-o", "list.csv"]).fails_with_one_line("output.exists").naming(&["list.csv"]);
    assert_eq!(fs::read_to_string(dir.path().join("list.csv")).unwrap(), ROWS);
    fs::write(dir.path().join("notes.jsonl"), "not ours\n").unwrap();
    for target in ["notes.jsonl", "notes.csv"] {
        run(dir.path(), &["-o", target]).fails_with_one_line("output.exists").naming(&["notes.jsonl"]);
    }
    assert_eq!(fs::read_to_string(dir.path().join("notes.jsonl")).unwrap(), "not ours\n");
    fs::create_dir(dir.path().join("folder")).unwrap();
    run(dir.path(), &["-o", "folder"]).fails_with_one_line("output.exists");
    run(dir.path(), &["-o", "none/out.jsonl"]).fails_with_one_line("io");
}

#[test]
fn without_an_output_file() {
    let dir = cohort("scan,report\ns.nii.gz,r.txt\nbad.nii,\n");
    let done = run(dir.path(), &["--json"]);
    let rows = done.json_lines();
    assert_eq!((done.code, rows.len()), (Some(1), 3), "{done:#?}");
    assert!(rows[0]["label"].is_string() && rows[1]["error"]["code"].is_string());
    let text = run(dir.path(), &[]);
    assert_eq!((text.code, text.stdout.lines().count()), (Some(1), 1), "{text:#?}");
}
