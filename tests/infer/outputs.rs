//! Outputs: a file that is not ours is never written over without `--force`, whatever its name; files are as private
//! as the umask says; what files say is shown without steering the terminal.

#![cfg(unix)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use support::commands::{Done, command, finish, manifest, names, scan, tiny_bundle, tiny_copy, write_manifest};
use tempfile::TempDir;

/// A folder with a list of one scan.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(scan(), dir.path().join("s.nii.gz")).unwrap();
    fs::write(dir.path().join("list.csv"), "scan\ns.nii.gz\n").unwrap();
    dir
}

fn infer(dir: &Path, args: &[&str]) -> Command {
    let mut command = command("ba-infer");
    command.current_dir(dir).arg("--bundle").arg(tiny_bundle()).args(["--device", "cpu", "-q"]).args(args);
    command
}

fn run(dir: &Path, args: &[&str]) -> Done {
    finish(&mut infer(dir, args))
}

/// Flags and the names of what they write.
const OUTPUTS: [(&[&str], &str); 6] = [
    (&["s.nii.gz", "-o"], "o.jsonl"),
    (&["--list", "list.csv", "-o"], "l.jsonl"),
    (&["--list", "list.csv", "-o"], "t.csv"),
    (&["s.nii.gz", "--save-tensors"], "t.safetensors"),
    (&["s.nii.gz", "--save-conformed"], "c.nii.gz"),
    (&["s.nii.gz", "--save-preview"], "p.png"),
];

/// Files that somebody else made, of every kind that we write.
fn foreign() -> Vec<Vec<u8>> {
    let safetensors = |header: &str| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let mut png = std::io::Cursor::new(Vec::new());
    image::GrayImage::new(3, 3).write_to(&mut png, image::ImageFormat::Png).unwrap();
    vec![
        b"{\"subject\":1,\"mmse\":27}\n{\"subject\":2,\"mmse\":19}\n".to_vec(),
        b"{\"scan\":\"s.nii.gz\",\"label\":\"CN\",\"rater\":\"me\"}\n".to_vec(),
        b"scan,label,age\ns.nii.gz,CN,71\n".to_vec(),
        b"notes without an end".to_vec(),
        safetensors("{}"),
        safetensors("{\"__metadata__\":{\"made_by\":\"somebody\"}}"),
        fs::read(scan()).unwrap(),
        png.into_inner(),
        vec![0; 4096],
    ]
}

#[test]
fn files_of_others_stay() {
    let dir = folder();
    for (flags, name) in OUTPUTS {
        let path = dir.path().join(name);
        for bytes in foreign() {
            fs::write(&path, &bytes).unwrap();
            let done = run(dir.path(), &[flags, &[name]].concat());
            done.fails_with_one_line("output.exists").naming(&[name, "--force"]);
            assert!(fs::read(&path).unwrap() == bytes, "{name} was changed");
        }
        run(dir.path(), &[flags, &[name, "--force"]].concat()).ok();
        assert!(!foreign().contains(&fs::read(&path).unwrap()));
        // Ours by now; and an empty file is nobody's loss.
        run(dir.path(), &[flags, &[name]].concat()).ok();
        fs::write(&path, "").unwrap();
        run(dir.path(), &[flags, &[name]].concat()).ok();
        assert!(fs::metadata(&path).unwrap().len() > 0);
    }
    // A file of ours is none of another kind.
    run(dir.path(), &["s.nii.gz", "-o", "p.png"]).fails_with_one_line("output.exists");
}

#[test]
fn the_lines_next_to_a_table() {
    let dir = folder();
    for bytes in foreign() {
        fs::write(dir.path().join("notes.jsonl"), &bytes).unwrap();
        let done = run(dir.path(), &["--list", "list.csv", "-o", "notes.csv"]);
        done.fails_with_one_line("output.exists").naming(&["notes.jsonl"]);
        assert!(fs::read(dir.path().join("notes.jsonl")).unwrap() == bytes && !dir.path().join("notes.csv").exists());
    }
    assert!(names(dir.path()).iter().all(|name| !name.starts_with('.')), "{:?}", names(dir.path()));
}

#[test]
fn links_are_judged_by_where_they_lead() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    for (flags, name) in OUTPUTS {
        fs::write(at("theirs"), "precious").unwrap();
        symlink(at("theirs"), at(name)).unwrap();
        run(dir.path(), &[flags, &[name]].concat()).fails_with_one_line("output.exists");
        assert_eq!(fs::read(at("theirs")).unwrap(), b"precious");
        fs::remove_file(at("theirs")).unwrap();
        run(dir.path(), &[flags, &[name]].concat()).fails_with_one_line("output.exists").naming(&["no file"]);
        assert!(!at("theirs").exists());
        // To a file of ours: the link is replaced, not what it leads to.
        fs::remove_file(at(name)).unwrap();
        run(dir.path(), &[flags, &[name]].concat()).ok();
        fs::rename(at(name), at("ours")).unwrap();
        let before = fs::read(at("ours")).unwrap();
        symlink(at("ours"), at(name)).unwrap();
        run(dir.path(), &[flags, &[name]].concat()).ok();
        assert!(fs::symlink_metadata(at(name)).unwrap().is_file() && fs::read(at("ours")).unwrap() == before);
    }
}

#[test]
fn two_outputs_of_one_name() {
    let dir = folder();
    let done = run(dir.path(), &["s.nii.gz", "--save-tensors", "x.nii", "--save-conformed", "x.nii"]);
    done.fails_with_one_line("output.exists").naming(&["two outputs"]);
}

#[test]
fn outputs_follow_the_umask() {
    let dir = folder();
    for (mask, mode) in [("027", 0o640), ("022", 0o644), ("077", 0o600)] {
        for (flags, name) in OUTPUTS {
            let _ = fs::remove_file(dir.path().join(name));
            let program = infer(dir.path(), &[]);
            let mut shell = Command::new("sh");
            shell.args(["-c", "umask $0; exec \"$@\"", mask]).arg(program.get_program()).args(program.get_args());
            shell.args(flags).arg(name).current_dir(dir.path()).env("ORT_DYLIB_PATH", support::commands::library());
            finish(&mut shell).ok();
            let found = fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "{name}, umask {mask}");
        }
    }
}

const LABELS: [&str; 3] = ["CN\nlabel       AD\n  AD   1.000", "\u{1b}[2K\rMCI\u{202e}", "=1+1"];

/// A bundle with hostile labels.
fn hostile_bundle() -> TempDir {
    let dir = tiny_copy();
    let mut changed = manifest(dir.path());
    changed["labels"] = LABELS.to_vec().into();
    changed["config"]["labels"] = LABELS.to_vec().into();
    write_manifest(dir.path(), &changed);
    dir
}

fn tame(text: &str) {
    let steers = |c: char| (c.is_control() && c != '\n') || "\u{202e}\u{2028}".contains(c);
    assert!(!text.contains(steers), "{text:?}");
}

#[test]
fn labels_and_names_forge_nothing() {
    let dir = folder();
    let bundle = hostile_bundle();
    let name = "a\nlabel       AD\u{1b}[1A\u{202e}.nii.gz";
    fs::copy(scan(), dir.path().join(name)).unwrap();
    fs::write(dir.path().join("list.csv"), format!("scan\n\"{name}\"\n\"none{name}\"\n")).unwrap();
    let mut outputs: Vec<Done> = Vec::new();
    for args in [&[name][..], &[name, "-v"], &["--list", "list.csv"], &[name, "none\n\u{1b}[31m.nii"]] {
        let mut command = command("ba-infer");
        command.current_dir(dir.path()).arg("--bundle").arg(bundle.path()).args(["--device", "cpu"]).args(args);
        outputs.push(finish(&mut command));
    }
    for done in &outputs {
        tame(&done.stdout.replace('\t', " "));
        tame(&done.stderr);
        assert!(done.stdout.lines().filter(|line| line.starts_with("label ")).count() <= 1, "{done:#?}");
        assert!(done.stdout.contains(r"a\nlabel       AD\u001b[1A\u202e.nii.gz"), "{done:#?}");
    }
    assert_eq!(outputs[2].stdout.lines().count(), 1, "{outputs:#?}");
    assert!(outputs[2].stderr.contains(r"nonea\nlabel"), "{outputs:#?}");
    assert!(outputs[3].stderr.contains(r"none\n\u001b[31m.nii"), "{outputs:#?}");
    // JSON has the names and labels as they are.
    let mut command = command("ba-infer");
    command.current_dir(dir.path()).arg("--bundle").arg(bundle.path()).args(["--json", name]);
    let answer = finish(&mut command).ok().json();
    assert!(LABELS.contains(&answer["label"].as_str().unwrap()) && answer["scan"] == name);
}

#[test]
fn tables_run_nothing() {
    let dir = folder();
    let scans = ["=cmd|'C'!A0.nii", "+1.nii", "-2.nii", "@SUM(A1).nii", "s.nii.gz"];
    scans.iter().for_each(|name| {
        fs::copy(scan(), dir.path().join(name)).unwrap();
    });
    fs::write(dir.path().join("-r.txt"), "Memory complaints.").unwrap();
    let rows: String = scans.iter().map(|name| format!("\"{name}\",-r.txt\n")).collect();
    fs::write(dir.path().join("list.csv"), format!("scan,report\n{rows}")).unwrap();
    let bundle = hostile_bundle();
    let mut command = command("ba-infer");
    command.current_dir(dir.path()).args(["--list", "list.csv", "-o", "t.csv", "-q", "--bundle"]).arg(bundle.path());
    finish(&mut command).ok();
    let mut reader = csv::Reader::from_path(dir.path().join("t.csv")).unwrap();
    let header = reader.headers().unwrap().clone();
    let records: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert_eq!(records.len(), scans.len());
    for cell in records.iter().chain([&header]).flatten() {
        let number = cell.parse::<f64>().is_ok();
        assert!(number || !cell.starts_with(['=', '+', '-', '@', '\t', '\r']), "{cell}");
    }
    assert_eq!((&records[0][0], &records[0][1]), ("'=cmd|'C'!A0.nii", "'-r.txt"));
    let similarity = records.iter().map(|record| record[6].parse::<f64>().unwrap());
    assert!(similarity.into_iter().all(|value| value.abs() <= 1.0));
    // The lines next to it have the names as they are.
    assert!(fs::read_to_string(dir.path().join("t.jsonl")).unwrap().contains("{\"scan\":\"=cmd|'C'!A0.nii\","));
}
