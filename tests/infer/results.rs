//! Results of `--list -o`: an answer belongs to the scan and the report that were read, to one list and to one writer.

#![cfg(unix)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use brain_adapter::Code;
use brain_adapter::infer::{Options, Predictor};
use serde_json::Value;
use support::commands::{Done, command, finish, fixture, names, scan, tiny_bundle};
use tempfile::TempDir;

const REPORTS: [&str; 3] =
    ["Memory complaints for two years.", "No complaints, MMSE 30.", "Severe memory loss, MMSE 8."];

fn other_scan() -> PathBuf {
    fixture("tiny-gqa-bf16-sharded/scan.nii.gz")
}

/// A folder with a list of the same relative names in each: `sub-01.nii.gz` with `r.txt`, and by itself.
fn cohort(dir: &Path, scan: &Path, report: &str) {
    fs::create_dir_all(dir).unwrap();
    fs::copy(scan, dir.join("sub-01.nii.gz")).unwrap();
    fs::write(dir.join("r.txt"), report).unwrap();
    fs::write(dir.join("c.csv"), "scan,report\nsub-01.nii.gz,r.txt\nsub-01.nii.gz,\n").unwrap();
}

fn infer(list: &Path, args: &[&dyn AsRef<std::ffi::OsStr>]) -> Command {
    let mut command = command("ba-infer");
    command.arg("--list").arg(list).arg("--bundle").arg(tiny_bundle()).args(["--device", "cpu", "--threads", "1"]);
    command.args(args.iter().map(|a| a.as_ref()));
    command
}

fn run(list: &Path, output: &Path) -> Done {
    finish(&mut infer(list, &[&"-o", &output])).ok()
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Logits of one list's lines, by report.
fn logits(path: &Path, list: &Path) -> BTreeMap<Option<String>, String> {
    let list = list.canonicalize().unwrap();
    let own = lines(path).into_iter().filter(|line| line["list"].as_str() == list.to_str());
    let entries: Vec<_> = own.map(|l| (l["report"].as_str().map(str::to_owned), l["logits"].to_string())).collect();
    let found: BTreeMap<_, _> = entries.iter().cloned().collect();
    assert_eq!(found.len(), entries.len(), "a row has two lines: {entries:?}");
    found
}

/// What the list's rows are without any results file.
fn fresh(list: &Path) -> BTreeMap<Option<String>, String> {
    let done = finish(&mut infer(list, &[&"--json"])).ok();
    let answers = done.json_lines();
    assert!(answers.iter().all(|line| line.get("key").is_none() && line.get("list").is_none()));
    answers.iter().map(|l| (l["report"].as_str().map(str::to_owned), l["logits"].to_string())).collect()
}

#[test]
fn two_lists_with_the_same_relative_names() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["A", "B"].map(|name| dir.path().join(name));
    cohort(&a, &scan(), REPORTS[0]);
    cohort(&b, &other_scan(), REPORTS[1]);
    let lists = [a.join("c.csv"), b.join("c.csv")];
    let expected = lists.each_ref().map(|list| fresh(list));
    assert!(expected[0].iter().zip(&expected[1]).all(|(a, b)| a != b));
    for (order, output) in [([0, 1, 0], "o.jsonl"), ([1, 0, 1], "p.csv")] {
        let out = dir.path().join(output);
        let json = out.with_extension("jsonl");
        for (turn, i) in order.into_iter().enumerate() {
            let done = run(&lists[i], &out);
            assert_eq!(done.stderr.contains("skipped 2 rows with a result"), turn == 2, "{done:#?}");
            assert_eq!(logits(&json, &lists[i]), expected[i]);
            assert_eq!(lines(&json).len(), if turn == 0 { 2 } else { 4 });
        }
        if output.ends_with("csv") {
            // The last list's rows come last and as it names them; those of the other can be told apart.
            let alone = dir.path().join("alone.csv");
            run(&lists[order[2]], &alone);
            let [table, alone] = [&out, &alone].map(|path| fs::read_to_string(path).unwrap());
            let rows: Vec<&str> = table.lines().collect();
            assert_eq!((rows.len(), &rows[3..]), (5, &alone.lines().collect::<Vec<_>>()[1..]));
            let folder = lists[order[1]].canonicalize().unwrap();
            let folder = folder.parent().unwrap().display().to_string();
            assert!(rows[1].starts_with(&format!("{folder}/sub-01.nii.gz,{folder}/r.txt,")), "{table}");
        }
    }
}

#[test]
fn scans_and_reports_that_were_replaced() {
    let dir = tempfile::tempdir().unwrap();
    cohort(dir.path(), &scan(), REPORTS[0]);
    let (list, out) = (dir.path().join("c.csv"), dir.path().join("o.jsonl"));
    let mut known = Vec::new();
    let mut again = |skipped: usize| {
        let done = run(&list, &out);
        let word = if skipped == 1 { "row" } else { "rows" };
        assert_eq!(done.stderr.contains(&format!("skipped {skipped} {word} with a result")), skipped > 0, "{done:#?}");
        let found = logits(&out, &list);
        assert_eq!(found, fresh(&list));
        assert!(!known.contains(&found));
        known.push(found);
    };
    again(0);
    fs::write(dir.path().join("r.txt"), REPORTS[1]).unwrap();
    again(1);
    fs::copy(other_scan(), dir.path().join("sub-01.nii.gz")).unwrap();
    again(0);
    // Also under the old times, and when another file gets the name.
    let times = fs::metadata(dir.path().join("r.txt")).unwrap().modified().unwrap();
    fs::write(dir.path().join("new.txt"), REPORTS[2]).unwrap();
    fs::File::options().append(true).open(dir.path().join("new.txt")).unwrap().set_modified(times).unwrap();
    fs::rename(dir.path().join("new.txt"), dir.path().join("r.txt")).unwrap();
    again(1);
    // A row that had no report gets one, and another loses its.
    fs::write(&list, "scan,report\nsub-01.nii.gz,r2.txt\n./sub-01.nii.gz,r.txt\n").unwrap();
    fs::write(dir.path().join("r2.txt"), REPORTS[0]).unwrap();
    let done = run(&list, &out);
    assert!(!done.stderr.contains("skipped"), "{done:#?}");
    fs::write(&list, "scan,report\nsub-01.nii.gz,\n./sub-01.nii.gz,r.txt\n").unwrap();
    let done = run(&list, &out);
    assert!(done.stderr.contains("skipped 2 rows"), "{done:#?}");
}

/// A scan as a pair of files.
fn pair(dir: &Path) {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(fs::File::open(scan()).unwrap()).read_to_end(&mut bytes).unwrap();
    let offset = f32::from_le_bytes(bytes[108..112].try_into().unwrap()) as usize;
    let mut header = bytes[..348].to_vec();
    header[108..112].copy_from_slice(&0f32.to_le_bytes());
    header[344..348].copy_from_slice(b"ni1\0");
    fs::write(dir.join("p.hdr"), header).unwrap();
    fs::write(dir.join("p.img"), &bytes[offset..]).unwrap();
}

#[test]
fn pairs_whose_voxels_were_replaced() {
    let dir = tempfile::tempdir().unwrap();
    pair(dir.path());
    let (list, out) = (dir.path().join("c.csv"), dir.path().join("o.jsonl"));
    fs::write(&list, "scan\np.hdr\n").unwrap();
    run(&list, &out);
    assert!(run(&list, &out).stderr.contains("skipped 1 row"));
    let before = logits(&out, &list);
    let image = dir.path().join("p.img");
    let mut voxels = fs::read(&image).unwrap();
    let half = voxels.len() / 2;
    voxels[half..].reverse();
    fs::write(&image, voxels).unwrap();
    let done = run(&list, &out);
    assert!(!done.stderr.contains("skipped"), "{done:#?}");
    assert_ne!(logits(&out, &list), before);
    assert_eq!(logits(&out, &list), fresh(&list));
}

#[test]
fn lists_that_were_moved() {
    let dir = tempfile::tempdir().unwrap();
    let [old, new, out] = ["old", "new", "o.csv"].map(|name| dir.path().join(name));
    cohort(&old, &scan(), REPORTS[0]);
    run(&old.join("c.csv"), &out);
    fs::rename(&old, &new).unwrap();
    let done = run(&new.join("c.csv"), &out);
    assert!(done.stderr.contains("skipped 2 rows"), "{done:#?}");
    let json = out.with_extension("jsonl");
    assert_eq!((lines(&json).len(), fs::read_to_string(&out).unwrap().lines().count()), (2, 3));
    assert_eq!(logits(&json, &new.join("c.csv")), fresh(&new.join("c.csv")));
    // Moved, and something else inside.
    fs::rename(&new, &old).unwrap();
    cohort(&old, &other_scan(), REPORTS[1]);
    let done = run(&old.join("c.csv"), &out);
    assert!(!done.stderr.contains("skipped"), "{done:#?}");
    assert_eq!(logits(&json, &old.join("c.csv")), fresh(&old.join("c.csv")));
}

/// Results of the first version have no keys: they are not taken over.
#[test]
fn lines_without_keys() {
    let dir = tempfile::tempdir().unwrap();
    cohort(dir.path(), &scan(), REPORTS[0]);
    let (list, out) = (dir.path().join("c.csv"), dir.path().join("o.jsonl"));
    run(&list, &out);
    let mut stripped = lines(&out);
    for line in &mut stripped {
        let line = line.as_object_mut().unwrap();
        line.remove("key").unwrap();
        line.remove("list").unwrap();
        line["label"] = "forged".into();
    }
    let text: String = stripped.iter().map(|line| format!("{line}\n")).collect();
    fs::write(&out, text).unwrap();
    let done = run(&list, &out);
    assert!(!done.stderr.contains("skipped"), "{done:#?}");
    assert!(lines(&out).len() == 2 && lines(&out).iter().all(|line| line["label"] != "forged"));
}

fn many(rows: usize) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    cohort(dir.path(), &scan(), REPORTS[0]);
    let rows: String = (0..rows).map(|i| format!("{}sub-01.nii.gz,r.txt\n", "./".repeat(i))).collect();
    fs::write(dir.path().join("c.csv"), format!("scan,report\n{rows}")).unwrap();
    dir
}

fn wait_for(what: impl Fn() -> bool) {
    let started = Instant::now();
    while !what() {
        assert!(started.elapsed() < Duration::from_secs(100), "it never happened");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn one_writer_at_a_time() {
    let dir = many(100);
    let (list, out) = (dir.path().join("c.csv"), dir.path().join("o.csv"));
    let lock = dir.path().join(".o.jsonl.lock");
    let mut first = infer(&list, &[&"-o", &out, &"-q"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for(|| lock.exists());
    // Before the bundle is opened: there is none where this one looks.
    for output in ["o.csv", "o.jsonl"] {
        let mut second = command("ba-infer");
        second.arg("--list").arg(&list).args(["--bundle", "/nonexistent", "-o"]).arg(dir.path().join(output));
        finish(&mut second).fails_with_one_line("output.in_use").naming(&["o.jsonl"]);
    }
    assert!(first.wait().unwrap().success());
    assert_eq!(fs::read_to_string(&out).unwrap().lines().count(), 101);
    assert!(run(&list, &out).stderr.contains("skipped 100 rows"));
    let left: Vec<String> = names(dir.path()).into_iter().filter(|name| name.starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");
    // A lock that a killed run left is none; a link or a pipe in its place is an error, and followed by nobody.
    fs::write(&lock, "").unwrap();
    run(&list, &out);
    std::os::unix::fs::symlink(dir.path().join("victim"), &lock).unwrap();
    finish(&mut infer(&list, &[&"-o", &out])).fails_with_one_line("output.exists").naming(&[".o.jsonl.lock"]);
    assert!(!dir.path().join("victim").exists());
}

/// Rows that somebody takes out of the file while it is written are missing at the end, and that is an error.
#[test]
fn rows_that_are_lost_meanwhile() {
    let dir = many(100);
    let (list, out) = (dir.path().join("c.csv"), dir.path().join("o.jsonl"));
    let stderr = fs::File::create(dir.path().join("stderr")).unwrap();
    let mut child = infer(&list, &[&"-o", &out, &"-q"]).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
    wait_for(|| fs::metadata(&out).is_ok_and(|meta| meta.len() > 0));
    fs::rename(&out, dir.path().join("taken.jsonl")).unwrap();
    fs::write(&out, "").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let said = fs::read_to_string(dir.path().join("stderr")).unwrap();
    assert!(said.starts_with("error[list.partial]: ") && said.lines().count() == 1, "{said}");
    assert!(said.contains("of 100 rows of the list (the first on line 2) are missing"), "{said}");
}

/// What changes while it is read is no answer.
#[test]
fn scans_that_change_while_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.nii.gz");
    fs::copy(scan(), &path).unwrap();
    let predictor = Predictor::open(tiny_bundle(), Options::default()).unwrap();
    let reader = predictor.reader().identifying();
    let still = reader.read(&path).unwrap();
    assert_eq!(still.sha256.unwrap(), reader.sha256_of(&path).unwrap());
    let bytes = fs::read(&path).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let changed = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                use std::os::unix::fs::FileExt;
                fs::File::options().write(true).open(&path).unwrap().write_all_at(&bytes[..1], 0).unwrap();
            }
        });
        let found: Vec<_> = (0..200).map(|_| reader.read(&path).err().map(|e| e.code())).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        found
    });
    assert!(changed.iter().flatten().all(|code| *code == Code::NIFTI_CHANGED), "{changed:?}");
    assert!(changed.iter().any(Option::is_some));
    reader.read(&path).unwrap();
}
