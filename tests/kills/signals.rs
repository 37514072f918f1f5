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

/// Waits until the process handles signals: what comes before ends it as the system does.
fn handles_signals(child: &Child) {
    let started = Instant::now();
    let caught = || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim().to_owned();
        u64::from_str_radix(&mask, 16).unwrap() >> 14 & 1 == 1
    };
    while !caught() && started.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(1));
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

/// Interrupts a command at moments all over its run; at least half of them must come before it ends.
fn interrupt(what: &str, folder: &Path, make: &mut dyn FnMut() -> Command) {
    let started = Instant::now();
    assert!(start(&mut make()).wait().unwrap().success(), "{what}");
    let whole = started.elapsed();
    let (mut interrupted, rounds) = (0, 9);
    for round in 0..rounds {
        let (signal, code) = SIGNALS[round % SIGNALS.len()];
        let child = start(&mut make());
        handles_signals(&child);
        std::thread::sleep(whole.mul_f64(0.85 * round as f64 / rounds as f64));
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

/// While scans and reports are run for statistics, parts of the graphs lie in temporary folders too.
#[test]
fn exports_that_calibrate() {
    let dir = tempfile::tempdir().unwrap();
    let (calibration, place) = (dir.path().join("calibration"), dir.path().join("place"));
    fs::create_dir(&calibration).unwrap();
    fs::create_dir(&place).unwrap();
    fs::copy(scan(), calibration.join("a.nii.gz")).unwrap();
    report(&calibration);
    interrupt("calibrating export", &place, &mut || {
        let mut command = command("ba-export");
        command.args(["-q", "--quantize", "int8", "--model"]).arg(tiny_model());
        command.arg("--calibration").arg(&calibration).arg("-o").arg(place.join("bundle"));
        command
    });
    assert!(names(&place).iter().all(|name| name == "bundle"), "{:?}", names(&place));
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
        handles_signals(&child);
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
        handles_signals(&child);
        std::thread::sleep(Duration::from_millis(wait));
        send(child, "TERM");
    }
    commands::finish(study.command("run", &args).arg("--resume")).ok();
    assert_eq!(study.results("run"), study.results("unbroken"));
}

/// A training that nobody waits for.
fn endless(study: &fitting::Study) -> Command {
    study.command("run", &["--epochs", "2000", "--frozen-adapter", "-q", "--resume"])
}

/// What a person sees, and a program.
#[test]
fn one_line() {
    let study = fitting::Study::new("tlp");
    for more in [&[] as &[&str], &["--json"]] {
        let mut command = endless(&study);
        let child = command.args(more).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = child.unwrap();
        handles_signals(&child);
        std::thread::sleep(Duration::from_millis(400));
        Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
        let done = child.wait_with_output().unwrap();
        assert_eq!(done.status.code(), Some(130), "{done:?}");
        let text = String::from_utf8(done.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with("error[interrupted]: interrupted by SIGINT (Ctrl-C)"), "{text}");
        if more.is_empty() {
            assert!(done.stdout.is_empty());
        } else {
            let json: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
            assert_eq!(json["error"]["code"], "interrupted");
        }
    }
}

/// `timeout` sends a signal twice: to the process, and to its group.
#[test]
fn a_signal_that_comes_twice() {
    let study = fitting::Study::new("tlp");
    for _ in 0..5 {
        let mut child = start(&mut endless(&study));
        handles_signals(&child);
        std::thread::sleep(Duration::from_millis(300));
        let (pid, twice) = (child.id(), "kill -TERM $1; kill -TERM $1; true");
        Command::new("sh").args(["-c", twice, "sh", &pid.to_string()]).stderr(Stdio::null()).status().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(143));
        assert_eq!(names(&study.path("run")).iter().filter(|name| name.starts_with('.')).count(), 0);
    }
}

/// `nohup`, and jobs that a script starts in the background: what they ignore stays ignored.
#[test]
fn ignored_signals_stay_ignored() {
    let study = fitting::Study::new("tlp");
    let fit = endless(&study);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP INT; exec \"$@\"", "sh"]).arg(fit.get_program()).args(fit.get_args());
    shell.envs(fit.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = start(&mut shell);
    handles_signals(&child);
    let pid = child.id().to_string();
    for signal in ["-HUP", "-INT"] {
        Command::new("kill").args([signal, &pid]).status().unwrap();
    }
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none());
    assert_eq!(send(child, "TERM").0, Some(143));
}

/// What `kill -9` left is removed by the next command that writes there, and nothing else.
#[test]
fn what_killed_programs_left() {
    let study = Study::new("tiny", "tiny");
    let bundle = study.export("none", "onnx", &study.model);
    let root = study.dir.path();
    study.apply(&bundle, &[]).ok();
    let store = root.join("onnx.versions");
    let mine = [".writing-thesis", ".onnx.partial-backup", ".onnx.partial-thesis1234"];
    for folder in [root, &store] {
        for name in mine {
            fs::write(folder.join(name), "precious").unwrap();
        }
        for name in [".onnx.partial-ba-0123456789", ".0007.partial-ba-abcdefghij"] {
            fs::create_dir(folder.join(name)).unwrap();
            fs::write(folder.join(name).join("text.onnx.data"), "half").unwrap();
        }
        fs::create_dir(folder.join(".onnx.partial-old")).unwrap();
        fs::write(folder.join(".writing-ba-0123456789.png"), "half").unwrap();
    }
    commands::ba_train(&[&"apply", &"--rollback", &"--bundle", &bundle]).ok();
    for folder in [root, &store] {
        let left: Vec<String> = names(folder).into_iter().filter(|name| name.contains("-ba-")).collect();
        assert!(left.is_empty(), "{}: {left:?}", folder.display());
        assert!(folder.join(".onnx.partial-old").is_dir());
        mine.iter().for_each(|name| assert_eq!(fs::read(folder.join(name)).unwrap(), b"precious"));
    }
}
