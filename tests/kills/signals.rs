//! Ctrl-C and SIGTERM: an end within a second with the shell's code, no temporary files, and what can be resumed is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::commands::{self, command, names, report, scan, tiny_bundle, tiny_model};
use support::fitting;
use support::trained::{Study, changed};

/// How long the end may take. The machine may be busy; the promise is a second.
const LIMIT: Duration = Duration::from_secs(5);
const SIGNALS: [(&str, i32); 3] = [("INT", 130), ("TERM", 143), ("HUP", 129)];

fn start(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Sends a signal; the exit code and how long the end took.
fn send(mut child: Child, signal: &str) -> (Option<i32>, Duration) {
    let started = Instant::now();
    Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status().unwrap();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return (status.code(), started.elapsed());
        }
        assert!(started.elapsed() < Duration::from_secs(60), "it does not end");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Temporary names anywhere below a folder.
fn unfinished(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in names(folder) {
        let path = folder.join(&name);
        if [".writing-", ".partial-", ".making-", ".building-"].iter().any(|part| name.contains(part)) {
            found.push(path);
        } else if path.is_dir() && !path.is_symlink() {
            found.extend(unfinished(&path));
        }
    }
    found
}

/// Interrupts a command at moments all over its run; at least two thirds of them must come before it ends.
fn interrupt(what: &str, folder: &Path, make: &mut dyn FnMut() -> Command) {
    let started = Instant::now();
    assert!(start(&mut make()).wait().unwrap().success(), "{what}");
    let whole = started.elapsed();
    let (mut interrupted, rounds) = (0, 9);
    for round in 0..rounds {
        let (signal, code) = SIGNALS[round % SIGNALS.len()];
        let child = start(&mut make());
        // Handling begins a few milliseconds after the start.
        std::thread::sleep(Duration::from_millis(25) + whole.mul_f64(0.85 * round as f64 / rounds as f64));
        let (found, took) = send(child, signal);
        assert!(found == Some(code) || found == Some(0), "{what}, SIG{signal}: {found:?}");
        assert!(took < LIMIT, "{what}, SIG{signal}: {took:?}");
        interrupted += usize::from(found == Some(code));
        let left = unfinished(folder);
        assert!(left.is_empty(), "{what}, SIG{signal}: {left:?}");
    }
    println!("{what}: interrupted {interrupted} of {rounds} times, a whole run takes {whole:.0?}");
    assert!(interrupted >= rounds / 2, "{what}: only {interrupted} of {rounds} signals came in time");
}

#[test]
fn exports_and_trained_weights() {
    let study = Study::new("tiny", "tiny");
    let bundle = study.export("none", "onnx", &study.model);
    let folder = study.dir.path().to_path_buf();
    let mut turn = 0;
    interrupt("export", &folder, &mut || {
        let mut command = command("ba-export");
        command.arg("--model").arg(tiny_model()).args(["-q", "--quantize", "fp16", "-o"]).arg(&bundle);
        command
    });
    interrupt("apply", &folder, &mut || {
        turn += 1;
        commands::save(&study.trained, changed("tiny", turn));
        let mut command = command("ba-train");
        command.args(["apply", "-q", "--checkpoint"]).arg(&study.trained).arg("--bundle").arg(&bundle);
        command
    });
    interrupt("prepare", &folder, &mut || {
        let mut command = command("ba-train");
        command.args(["prepare", "-q", "--model"]).arg(tiny_model()).arg("-o").arg(folder.join("training"));
        command
    });
    brain_adapter::bundle::Bundle::open(&bundle).unwrap();
}

#[test]
fn inference_and_lists() {
    let dir = tempfile::tempdir().unwrap();
    let text = report(dir.path());
    let mut rows = "scan,report\n".to_owned();
    for i in 0..12 {
        fs::copy(scan(), dir.path().join(format!("s{i}.nii.gz"))).unwrap();
        rows += &format!("s{i}.nii.gz,report.txt\n");
    }
    fs::write(dir.path().join("l.csv"), rows).unwrap();
    let at = |name: &str| dir.path().join(name);
    interrupt("infer", dir.path(), &mut || {
        let mut command = command("ba-infer");
        command.arg(scan()).arg("--report").arg(&text).arg("-q").arg("--bundle").arg(tiny_bundle());
        command.arg("--save-preview").arg(at("p.png")).arg("--save-tensors").arg(at("t.safetensors"));
        command
    });
    let list = |output: &str| {
        let mut command = command("ba-infer");
        command.arg("--list").arg(at("l.csv")).arg("-o").arg(at(output)).arg("-q").arg("--bundle").arg(tiny_bundle());
        command
    };
    commands::finish(&mut list("whole.csv")).ok();
    interrupt("list", dir.path(), &mut || {
        let _ = fs::remove_file(at("o.jsonl"));
        list("o.csv")
    });
    // Interrupted and called again: every row once, as in a run without interruption.
    let _ = fs::remove_file(at("o.jsonl"));
    for wait in [60, 120, 180] {
        let child = start(&mut list("o.csv"));
        std::thread::sleep(Duration::from_millis(wait));
        send(child, "INT");
    }
    commands::finish(&mut list("o.csv")).ok();
    let [mut whole, mut resumed] = ["whole.csv", "o.csv"].map(|name| fs::read_to_string(at(name)).unwrap());
    for text in [&mut whole, &mut resumed] {
        assert_eq!(text.lines().count(), 13);
    }
    assert_eq!(whole, resumed);
}

#[test]
fn trainings() {
    let study = fitting::Study::new("tlp");
    let args = ["--save-every", "0", "--epochs", "6", "--frozen-adapter"];
    study.fit("unbroken", &args).ok();
    let mut turn = 0;
    interrupt("fit", study.dir.path(), &mut || {
        turn += 1;
        study.command(&format!("run{turn}"), &args)
    });
    // Interrupted three times, and then to its end.
    for wait in [150, 250, 350] {
        let child = start(study.command("run", &args).arg("--resume"));
        std::thread::sleep(Duration::from_millis(wait));
        send(child, "TERM");
    }
    commands::finish(study.command("run", &args).arg("--resume")).ok();
    assert_eq!(study.results("run"), study.results("unbroken"));
}

/// What a person sees.
#[test]
fn one_line() {
    let study = fitting::Study::new("tlp");
    for more in [&[] as &[&str], &["--json"]] {
        let mut command = study.command("run", &["--epochs", "2000", "--frozen-adapter", "-q", "--resume"]);
        let child = command.args(more).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = child.unwrap();
        std::thread::sleep(Duration::from_millis(400));
        Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
        let done = child.wait_with_output().unwrap();
        assert_eq!(done.status.code(), Some(130), "{done:?}");
        let text = String::from_utf8(done.stderr).unwrap();
        assert_eq!(text.lines().last(), Some("interrupted"), "{text}");
        assert!(done.stdout.is_empty(), "{more:?}");
    }
}
