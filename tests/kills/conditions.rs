//! Machines without means: a full disk, folders that one may not write to, no more file descriptors, nobody who reads.
//! One clear line each, and what was there stays.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::commands::{Done, command, copy_files, finish, names, report, scan, snapshot, tiny_bundle, tiny_model};
use support::oracle::not_here;
use support::trained::{Study, changed};
use support::{commands, fitting};
use tempfile::TempDir;

/// A small file system of its own.
struct Disk {
    dir: TempDir,
}

impl Disk {
    /// Of so many MiB; none where one may not mount.
    fn new(mib: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(dir.path()).stderr(Stdio::null());
        let mounted = mount.status().is_ok_and(|status| status.success());
        if !mounted {
            not_here("no right to mount a file system", "a full disk");
        }
        mounted.then_some(Self { dir })
    }

    /// Fills it until so many bytes are free, a multiple of a page.
    fn leave(&self, bytes: u64) {
        let mut filler = fs::File::create(self.dir.path().join("filler")).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
        let full = filler.metadata().unwrap().len();
        filler.set_len(full.saturating_sub(bytes)).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

/// It worked, or failed with `disk.full` alone; whether it worked.
fn done_or_full(done: Done, what: &str) -> bool {
    if done.code == Some(0) {
        return true;
    }
    assert!(done.stderr.contains("error[disk.full]"), "{what}: {done:#?}");
    done.fails("disk.full");
    false
}

/// Bytes that are left free; some commands have enough with some of them.
const FREE: [u64; 4] = [0, 8 << 10, 120 << 10, 700 << 10];

#[test]
fn exports_and_trained_weights_on_a_full_disk() {
    let Some(disk) = Disk::new(3) else { return };
    let study = Study::new("tiny", "tiny");
    let exported = study.export("none", "exported", &study.model);
    let bundle = disk.dir.path().join("onnx");
    fs::create_dir(&bundle).unwrap();
    copy_files(&exported, &bundle);
    let before = snapshot(&bundle);
    let mut full = 0;
    for free in FREE {
        disk.leave(free);
        let mut export = command("ba-export");
        export.arg("--model").arg(tiny_model()).args(["--quantize", "fp16", "-q", "-o"]).arg(&bundle);
        let mut apply = command("ba-train");
        commands::save(&study.trained, changed("tiny", 7));
        apply.args(["apply", "-q", "--checkpoint"]).arg(&study.trained).arg("--bundle").arg(&bundle);
        for (what, mut command) in [("export", export), ("apply", apply)] {
            if done_or_full(finish(&mut command), what) {
                let _ = fs::remove_dir_all(disk.dir.path().join("onnx.versions"));
                fs::remove_dir_all(&bundle).unwrap();
                fs::create_dir(&bundle).unwrap();
                copy_files(&exported, &bundle);
            } else {
                full += 1;
            }
            assert_eq!(snapshot(&bundle), before, "{what} with {free} bytes free");
            let left =
                names(disk.dir.path()).into_iter().filter(|n| n.contains(".partial-") || n.contains(".writing-"));
            assert_eq!(left.count(), 0, "{what}: {:?}", names(disk.dir.path()));
        }
    }
    assert!(full >= 4, "the disk was full only {full} times");
}

#[test]
fn results_on_a_full_disk() {
    let Some(disk) = Disk::new(3) else { return };
    let folder = disk.dir.path();
    let here = tempfile::tempdir().unwrap();
    let text = report(here.path());
    fs::write(here.path().join("l.csv"), format!("scan,report\n{},{}\n", scan().display(), text.display())).unwrap();
    let infer = |args: &[&str], output: &str| {
        let mut command = command("ba-infer");
        command.arg("--bundle").arg(tiny_bundle()).arg("-q").args(args).arg(folder.join(output));
        command
    };
    let (scan, list) = (scan().display().to_string(), here.path().join("l.csv").display().to_string());
    let outputs: [(&[&str], &str); 7] = [
        (&[&scan, "--report", text.to_str().unwrap(), "-o"], "one.jsonl"),
        (&["--list", &list, "-o"], "list.csv"),
        (&[&scan, "--report", text.to_str().unwrap(), "--save-tensors"], "t.safetensors"),
        (&[&scan, "--report", text.to_str().unwrap(), "--save-conformed"], "c.nii.gz"),
        (&[&scan, "--report", text.to_str().unwrap(), "--save-conformed"], "c.nii"),
        (&[&scan, "--report", text.to_str().unwrap(), "--save-preview"], "p.png"),
        (&[&scan, "--report", text.to_str().unwrap(), "--cache"], "cache"),
    ];
    for (args, output) in outputs {
        disk.leave(1 << 20);
        finish(&mut infer(args, output)).ok();
        let path = folder.join(output);
        let before = path.is_file().then(|| fs::read(&path).unwrap());
        let mut full = 0;
        for free in FREE {
            if path.is_dir() {
                fs::remove_dir_all(&path).unwrap();
            }
            disk.leave(free);
            full += u32::from(!done_or_full(finish(&mut infer(args, output)), output));
            if let Some(before) = &before {
                // Results carry times; what is there is complete, the old file or a new one.
                let now = fs::read(&path).unwrap();
                assert!(now.len().abs_diff(before.len()) < 64, "{output}: {} bytes, then {}", before.len(), now.len());
            }
        }
        assert!(full > 0, "{output}: the disk was never full");
        println!("{output}: {full} of {} calls found the disk full", FREE.len());
        fs::remove_file(folder.join("filler")).unwrap();
        let left: Vec<String> = names(folder).into_iter().filter(|n| n.starts_with(".writing-")).collect();
        assert!(left.is_empty(), "{output}: {left:?}");
    }
}

#[test]
fn training_on_a_full_disk() {
    let Some(disk) = Disk::new(3) else { return };
    let study = fitting::Study::new("tlp");
    let run = disk.dir.path().join("run");
    let args = ["--epochs", "3", "--frozen-adapter", "--save-every", "0", "--resume"];
    let fit = || study.command(run.to_str().unwrap(), &args);
    let mut full = 0;
    for free in FREE {
        disk.leave(free);
        full += u32::from(!done_or_full(finish(&mut fit()), "fit"));
    }
    assert!(full > 0);
    fs::remove_file(disk.dir.path().join("filler")).unwrap();
    finish(&mut fit()).ok();
    study.fit("unbroken", &args[..5]).ok();
    let mine = fitting::RESULTS.map(|name| fs::read(run.join(name)).unwrap());
    assert_eq!(mine.to_vec(), study.results("unbroken"));
    for mode in ["tlp", "mri"] {
        disk.leave(4 << 10);
        let mut prepare = command("ba-train");
        prepare.args(["prepare", "-q", "--mode", mode, "--model"]).arg(tiny_model());
        prepare.arg("-o").arg(disk.dir.path().join(mode));
        assert!(!done_or_full(finish(&mut prepare), "prepare"));
    }
}

/// The command as another user, who may write nowhere but in `/tmp`; none where one may not change the user or the user
/// cannot reach the programs.
fn as_another(command: &Command) -> Option<Command> {
    let user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let mut probe = Command::new("setpriv");
    probe.args(user).arg(command.get_program()).arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    if !probe.status().is_ok_and(|status| status.success()) {
        not_here("no other user to be", "folders that one may not write to");
        return None;
    }
    let mut other = Command::new("setpriv");
    other.args(user).arg(command.get_program()).args(command.get_args());
    other.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    other.stdin(Stdio::null());
    Some(other)
}

fn readable(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            readable(&path);
        } else {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        }
    }
}

#[test]
fn folders_that_one_may_not_write_to() {
    let study = Study::new("tiny", "tiny");
    let bundle = study.export("none", "onnx", &study.model);
    let folder = study.dir.path().to_path_buf();
    fs::copy(scan(), folder.join("s.nii.gz")).unwrap();
    fs::write(folder.join("l.csv"), "scan,report\ns.nii.gz,report.txt\n").unwrap();
    fs::write(folder.join("old.jsonl"), "").unwrap();
    readable(&folder);
    let before = names(&folder);
    let make = |program: &str, args: &[&str]| {
        let mut command = command(program);
        command.args(args).current_dir(&folder);
        command
    };
    let calls = [
        make("ba-export", &["--model", "model", "-q", "-o", "new"]),
        make("ba-export", &["--model", "model", "-q", "-o", "onnx"]),
        make("ba-infer", &["s.nii.gz", "--report", "report.txt", "-q", "-o", "r.jsonl"]),
        make("ba-infer", &["s.nii.gz", "--report", "report.txt", "-q", "--save-preview", "p.png"]),
        make("ba-infer", &["s.nii.gz", "--report", "report.txt", "-q", "--cache", "cache"]),
        make("ba-infer", &["--list", "l.csv", "-q", "-o", "r.csv"]),
        make("ba-train", &["apply", "-q", "--checkpoint", "trained.safetensors"]),
        make("ba-train", &["prepare", "-q", "--model", "model", "-o", "training"]),
    ];
    let whole = snapshot(&bundle);
    for call in &calls {
        let Some(mut other) = as_another(call) else { return };
        let done = finish(other.current_dir(&folder)).fails("io");
        assert_eq!(done.stderr.lines().count(), 1, "{call:?}: {done:#?}");
        assert_eq!(names(&folder), before, "{call:?}");
        assert_eq!(snapshot(&bundle), whole);
    }
    // What is read alone works.
    let Some(mut other) = as_another(&make("ba-infer", &["s.nii.gz", "--report", "report.txt", "-q"])) else { return };
    finish(other.current_dir(&folder)).ok();
}

/// The command with so many file descriptors, three of which are open already.
fn with_descriptors(command: &Command, n: usize) -> Command {
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n \"$0\" || exit 9; exec \"$@\"", &n.to_string()]);
    limited.arg(command.get_program()).args(command.get_args());
    limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    limited
}

#[test]
fn no_more_file_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let text = report(dir.path());
    fs::write(dir.path().join("l.csv"), format!("scan,report\n{},{}\n", scan().display(), text.display())).unwrap();
    let study = fitting::Study::new("tlp");
    let mut infer = command("ba-infer");
    infer.arg(scan()).arg("--report").arg(&text).arg("--bundle").arg(tiny_bundle()).arg("-q");
    let mut list = command("ba-infer");
    list.arg("--list").arg(dir.path().join("l.csv")).arg("--bundle").arg(tiny_bundle()).arg("-q");
    list.arg("-o").arg(dir.path().join("o.csv")).arg("--cache").arg(dir.path().join("cache"));
    let mut export = command("ba-export");
    export.arg("--model").arg(tiny_model()).arg("-q").arg("-o").arg(dir.path().join("onnx"));
    let fit = study.command("run", &["--epochs", "1", "--frozen-adapter", "-q"]);
    for (what, call) in [("infer", infer), ("list", list), ("export", export), ("fit", fit)] {
        let (mut failed, mut worked) = (0, 0);
        for n in (4..=24).chain([28, 32, 40, 64, 256]) {
            let done = finish(&mut with_descriptors(&call, n));
            if done.code == Some(0) {
                worked += 1;
                continue;
            }
            // Before `main` the loader may find that it cannot open the C library.
            if done.code == Some(127) && n < 6 {
                continue;
            }
            failed += 1;
            assert_eq!(done.code, Some(1), "{what}, {n} descriptors: {done:#?}");
            let errors = done.stderr.lines().filter(|line| line.starts_with("error[")).count();
            assert!(errors == 1 && !done.stderr.contains("panicked"), "{what}, {n} descriptors: {done:#?}");
        }
        println!("{what}: {failed} limits were too low, {worked} enough");
        assert!(failed > 0 && worked > 0, "{what}: {failed}, {worked}");
    }
    assert_eq!(names(dir.path()).iter().filter(|n| n.starts_with(".writing-")).count(), 0);
}

/// Whoever read the output is gone: a line and a code that scripts notice, or an end without noise, but no panic.
#[test]
fn nobody_reads() {
    let dir = tempfile::tempdir().unwrap();
    let text = report(dir.path());
    let scan: PathBuf = scan();
    for shell in ["exec \"$@\" >&-", "\"$@\" | true; exit ${PIPESTATUS[0]}", "exec \"$@\" >&- 2>&-"] {
        for more in [&[] as &[&str], &["--json"]] {
            let infer = command("ba-infer");
            let mut call = Command::new("bash");
            call.args(["-c", shell, "bash"]).arg(infer.get_program()).arg(&scan).arg("--report").arg(&text);
            call.arg("--bundle").arg(tiny_bundle()).args(more);
            call.envs(infer.get_envs().filter_map(|(name, value)| Some((name, value?))));
            let done = finish(&mut call);
            assert!(matches!(done.code, Some(0 | 1)), "{shell}: {done:#?}");
            assert!(!done.stderr.contains("panicked"), "{shell}: {done:#?}");
        }
    }
}
