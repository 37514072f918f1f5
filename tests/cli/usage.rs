//! The commands as a user meets them: usage errors, results, warnings, exit codes, cohorts.

#![cfg(unix)]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use support::commands::{
    self, Done, ba_export, ba_infer, bare, command, copy_files, finish, report, save, scan, tensors, tiny_bundle,
    tiny_copy,
};

#[test]
fn wrong_usage_exits_with_2() {
    let scan = scan();
    let scan = scan.to_str().unwrap();
    let rows: &[(&str, &[&str])] = &[
        ("ba-infer", &[]),
        ("ba-infer", &["--surprise"]),
        ("ba-infer", &[scan, "--device", "tpu"]),
        ("ba-infer", &[scan, "--threads", "0"]),
        ("ba-infer", &[scan, "--threads", "-1"]),
        ("ba-infer", &[scan, "--threads", "1025"]),
        ("ba-infer", &[scan, "--volume", "-1"]),
        ("ba-infer", &[scan, "--orientation", "LRS"]),
        ("ba-infer", &[scan, "--list", "a.csv"]),
        ("ba-infer", &["--list", "a.csv", "--report", "r.txt"]),
        ("ba-infer", &["--list", "a.csv", "--save-tensors", "t.safetensors"]),
        ("ba-infer", &[scan, scan, "--save-tensors", "t.safetensors"]),
        ("ba-infer", &[scan, "-q", "-v"]),
        ("ba-infer", &[scan, "--report"]),
        ("ba-export", &["checkpoints"]),
        ("ba-export", &["--quantize", "int7"]),
        ("ba-export", &["-q", "-v"]),
        ("ba-export", &["--model", "a", "--model", "b"]),
    ];
    for (binary, args) in rows {
        let done = finish(bare(binary).args(*args));
        assert_eq!(done.code, Some(2), "{binary} {args:?}: {done:#?}");
        assert!(done.stdout.is_empty() && done.stderr.contains("--") && !done.stderr.contains("panicked"), "{done:#?}");
        // Programs get the same as JSON, with the same exit code and the same message for people.
        let json = finish(bare(binary).args(*args).arg("--json"));
        assert_eq!((json.code, json.stderr.lines().next()), (Some(2), done.stderr.lines().next()), "{json:#?}");
        let error = &json.json()["error"];
        let message = error["message"].as_str().unwrap();
        assert_eq!((&error["code"], &error["path"]), (&"usage".into(), &Value::Null), "{json:#?}");
        assert!(!message.is_empty() && !message.contains('\n') && !message.contains("Usage:"), "{message}");
    }
    // What follows `--` is a file, whatever its name.
    let done = finish(bare("ba-infer").args(["--surprise", "--", "--json"]));
    assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""), "{done:#?}");
}

#[test]
fn help_and_version() {
    for binary in ["ba-infer", "ba-export"] {
        let help = finish(bare(binary).arg("--help")).ok();
        assert!(help.stdout.contains("Examples:") && help.stdout.contains("Usage:") && help.stderr.is_empty());
        assert!(help.stdout.matches(&format!("  {binary}")).count() >= 3, "{}", help.stdout);
        let version = finish(bare(binary).arg("--version")).ok();
        assert_eq!(version.stdout, format!("{binary} {}\n", env!("CARGO_PKG_VERSION")));
    }
    assert!(finish(bare("ba-infer").arg("--help")).stdout.contains("Research use only"));
}

#[test]
fn errors_as_json() {
    let done =
        ba_infer(&[&"none.nii.gz", &"--json", &"--bundle", &tiny_bundle()]).fails_with_one_line("nifti.not_found");
    let error = &done.json()["error"];
    assert_eq!((&error["code"], &error["path"]), (&"nifti.not_found".into(), &"none.nii.gz".into()));
    assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()));
    assert_eq!(done.json().as_object().unwrap().len(), 1);
    let done = ba_export(&[&"--json", &"--model", &"/nonexistent"]).fails_with_one_line("checkpoint.not_found");
    assert_eq!(done.json()["error"]["path"], "/nonexistent/config.json");
    for format in ["fp16", "int8", "int4"] {
        let done = ba_export(&[&"--quantize", &format, &"--json", &"--model", &"/nonexistent"]);
        assert_eq!(
            done.fails_with_one_line("checkpoint.not_found").json()["error"]["path"],
            "/nonexistent/config.json"
        );
    }
}

#[test]
fn json_and_text_say_the_same_and_flags_have_no_order() {
    let dir = tempfile::tempdir().unwrap();
    let (scan, report, bundle) = (scan(), report(dir.path()), tiny_bundle());
    let one = ba_infer(&[&scan, &"--report", &report, &"--bundle", &bundle, &"--json"]).ok();
    let two = ba_infer(&[&"--json", &"--bundle", &bundle, &"--report", &report, &scan]).ok();
    assert_eq!(one.stdout.lines().count(), 1);
    assert_eq!(without_times(one.json()), without_times(two.json()));
    let json = one.json();
    let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
    let expected =
        "scan report label probabilities logits temperature similarity warnings quality timing_ms device bundle run"
            .split(' ')
            .collect::<Vec<_>>();
    assert_eq!(keys, expected);
    assert_eq!(json["device"], "cpu");
    let text = ba_infer(&[&scan, &"--report", &report, &"--bundle", &bundle]).ok().stdout;
    let label = json["label"].as_str().unwrap();
    assert!(text.lines().any(|l| l.starts_with("label ") && l.ends_with(label)), "{text}");
    assert!(
        text.contains("Research use only") && text.contains(" on CPU, fp32, bundle ") && !text.contains('\u{1b}'),
        "{text}"
    );
    assert_eq!(text.matches(&json["bundle"]["sha256"].as_str().unwrap()[..8]).count(), 1, "{text}");
    let more = ba_infer(&[&scan, &"--report", &report, &"--bundle", &bundle, &"-v"]).ok().stdout;
    for words in ["\ntime  ", "\ndevice      cpu\n", "\nmode  ", "\nmemory  "] {
        assert!(more.contains(words) && !text.contains(words), "{words}: {more}");
    }
    for class in ["CN", "MCI", "AD"] {
        let shown = format!("{class:<3}  {:.3}", json["probabilities"][class].as_f64().unwrap());
        assert!(text.contains(&shown), "{shown}: {text}");
    }
}

fn without_times(mut json: Value) -> Value {
    json.as_object_mut().unwrap().shift_remove("timing_ms").unwrap();
    for measured in ["memory_bytes", "started_ms", "wall_ms"] {
        json["run"].as_object_mut().unwrap().shift_remove(measured).unwrap();
    }
    json
}

#[test]
fn several_scans_with_a_bad_one() {
    let dir = tempfile::tempdir().unwrap();
    let (scan, report) = (scan(), report(dir.path()));
    let bad = dir.path().join("bad.nii");
    fs::write(&bad, "no scan").unwrap();
    let args: [&dyn AsRef<OsStr>; 7] = [&scan, &bad, &scan, &"--report", &report, &"--same-report", &"--bundle"];
    let run = |extra: &[&str]| finish(command("ba-infer").args(args).arg(tiny_bundle()).args(extra));
    let done = run(&["--json"]);
    assert_eq!(done.code, Some(1), "{done:#?}");
    let lines = done.json_lines();
    assert!(lines[0]["label"].is_string() && lines[2]["label"].is_string(), "{done:#?}");
    assert_eq!(lines[1]["scan"], bad.to_str().unwrap());
    assert!(lines[1]["error"]["code"].as_str().unwrap().starts_with("nifti."));
    assert_eq!((lines.len(), &lines[3]["error"]["code"]), (4, &"list.partial".into()));
    assert_eq!(done.stderr.lines().filter(|l| l.starts_with("error[")).count(), 2);
    let done = run(&[]);
    assert_eq!((done.code, done.stdout.matches("\nlabel ").count()), (Some(1), 2), "{done:#?}");
}

#[test]
fn names_that_are_odd_or_no_unicode() {
    let dir = tempfile::tempdir().unwrap();
    let report = report(dir.path());
    let names: [&[u8]; 6] = [
        "Kopf Müller 日本.nii.gz".as_bytes(),
        b"a b.nii.gz",
        b"new\nline.nii.gz",
        b"--json.nii.gz",
        b"q\"'.nii.gz",
        b"\xff\xfe.nii.gz",
    ];
    for name in names {
        let path = dir.path().join(OsStr::from_bytes(name));
        fs::copy(scan(), &path).unwrap();
        let shown = path.display().to_string();
        let done = ba_infer(&[&path, &"--report", &report, &"--bundle", &tiny_bundle(), &"--json"]).ok();
        assert_eq!(done.json()["scan"], shown.as_str());
        assert_eq!(done.stdout.lines().count(), 1);
        // A missing one of such a name, among several.
        let none = dir.path().join([b"none".as_slice(), name].concat().as_slice().to_str());
        let args: [&dyn AsRef<OsStr>; 5] = [&path, &none, &"--report", &report, &"--same-report"];
        let done = finish(command("ba-infer").args(args).arg("--bundle").arg(tiny_bundle()).arg("--json"));
        assert_eq!((done.code, done.json_lines().len()), (Some(1), 3), "{done:#?}");
        assert!(!done.stderr.contains("panicked"), "{done:#?}");
    }
}

trait ToStr {
    fn to_str(&self) -> &OsStr;
}

impl ToStr for [u8] {
    fn to_str(&self) -> &OsStr {
        OsStr::from_bytes(self)
    }
}

#[test]
fn reports_of_every_kind() {
    let dir = tempfile::tempdir().unwrap();
    let rows: [(&str, &[u8], &str); 5] = [
        ("latin1.txt", b"Ged\xe4chtnisst\xf6rung", "report.encoding"),
        ("utf16.txt", b"\xff\xfeM\0I", "report.encoding"),
        ("empty.txt", b"", "report.empty"),
        ("blank.txt", b" \n\t", "report.empty"),
        ("binary.txt", &[0x1f, 0x8b, 8, 0, 0xff], "report.format"),
    ];
    for (name, bytes, code) in rows {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        ba_infer(&[&scan(), &"--report", &path, &"--bundle", &tiny_bundle()]).fails_with_one_line(code).naming(&[name]);
    }
    for missing in [dir.path().join("none.txt"), dir.path().to_path_buf()] {
        ba_infer(&[&scan(), &"--report", &missing, &"--bundle", &tiny_bundle()])
            .fails_with_one_line("report.not_found");
    }
    let input = dir.path().join("stdin.txt");
    fs::write(&input, "Memory complaints for two years. MMSE 24.\n").unwrap();
    let run = |report: &Path, stdin: Stdio| {
        let mut command = command("ba-infer");
        finish(
            command
                .arg(scan())
                .arg("--report")
                .arg(report)
                .arg("--bundle")
                .arg(tiny_bundle())
                .arg("--json")
                .stdin(stdin),
        )
    };
    let piped = run(Path::new("-"), File::open(&input).unwrap().into()).ok().json();
    let named = run(&input, Stdio::null()).ok().json();
    assert_eq!(piped["logits"], named["logits"]);
    run(Path::new("-"), Stdio::null()).fails_with_one_line("report.empty");
}

#[test]
fn a_long_report_warns_and_quiet_says_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("long.txt");
    fs::write(&long, "hippocampal atrophy ".repeat(400)).unwrap();
    let args: [&dyn AsRef<OsStr>; 6] = [&scan(), &"--report", &long, &"--bundle", &tiny_bundle(), &"--json"];
    let done = ba_infer(&args).ok();
    let warnings = done.json()["warnings"].clone();
    assert!(warnings.as_array().unwrap().iter().any(|w| w["code"] == "report_truncated"), "{warnings}");
    assert!(done.stderr.contains("warning[report_truncated]") && done.stderr.contains("512"), "{done:#?}");
    let quiet = finish(command("ba-infer").args(args).arg("-q")).ok();
    assert_eq!((quiet.stderr.as_str(), without_times(quiet.json())), ("", without_times(done.json())));
    let text = finish(command("ba-infer").args(&args[..5]).arg("--quiet")).ok();
    assert!(text.stderr.is_empty() && text.stdout.contains("report_truncated"));
}

/// A bundle whose checkpoint has no image-only classifier.
fn without_image_head(dir: &Path) -> std::path::PathBuf {
    let model = dir.join("model");
    commands::write_model(&model, "tiny", "tiny");
    let mut heads = tensors("tiny", "heads/");
    heads.retain(|(name, _)| !name.starts_with("image_classifier"));
    save(&model.join("adapter.safetensors"), heads);
    ba_export(&[&"--model", &model, &"-o", &dir.join("onnx")]).ok();
    dir.join("onnx")
}

#[test]
fn no_report() {
    let done = ba_infer(&[&scan(), &"--bundle", &tiny_bundle(), &"--json"]).ok().json();
    assert!(done["report"].is_null() && done["similarity"].is_null() && done["label"].is_string());
    let dir = tempfile::tempdir().unwrap();
    let bundle = without_image_head(dir.path());
    // Before anything is read: the scan does not even exist.
    ba_infer(&[&"none.nii", &"--bundle", &bundle]).fails_with_one_line("bundle.no_image_head").naming(&["--report"]);
    let report = report(dir.path());
    ba_infer(&[&scan(), &"--bundle", &bundle, &"--report", &report]).ok();
}

#[test]
fn outputs_that_must_not_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let mine = dir.path().join("mine.nii.gz");
    fs::copy(scan(), &mine).unwrap();
    let report = report(dir.path());
    let bundle = tiny_bundle();
    let run =
        |flag: &str, target: &Path| ba_infer(&[&mine, &"--report", &report, &"--bundle", &bundle, &flag, &target]);
    for flag in ["-o", "--save-tensors", "--save-conformed"] {
        run(flag, &mine).fails_with_one_line("output.exists").naming(&["mine.nii.gz"]);
        run(flag, dir.path()).fails_with_one_line("output.exists");
        // A device file must stay one.
        let pipe = dir.path().join(format!("pipe{flag}.nii"));
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        run(flag, &pipe).fails_with_one_line("output.exists");
        run(flag, &dir.path().join("none/out.nii")).fails_with_one_line("io").naming(&["none/out.nii"]);
    }
    run("-o", &report).fails_with_one_line("output.exists");
    assert_eq!(fs::read(&mine).unwrap(), fs::read(scan()).unwrap());
    run("--save-conformed", &dir.path().join("c.txt")).fails("config.value");
    let leftovers = commands::names(dir.path());
    assert!(leftovers.iter().all(|n| n.starts_with("pipe") || ["mine.nii.gz", "report.txt"].contains(&n.as_str())));
    for (flag, name) in [("--save-preview", "p.png"), ("--save-conformed", "c.nii.gz"), ("-o", "o.json")] {
        run(flag, &dir.path().join(name)).ok();
        assert!(dir.path().join(name).metadata().unwrap().len() > 100);
    }
}

#[test]
fn a_reader_that_goes_away() {
    let dir = tempfile::tempdir().unwrap();
    let report = report(dir.path());
    let script = "\"$0\" \"$@\" | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}";
    for (binary, args) in [("ba-infer", vec!["--help"]), ("ba-infer", vec!["--json"]), ("ba-infer", vec![])] {
        let mut shell = Command::new("bash");
        shell.arg("-c").arg(script).arg(binary_path(binary)).args(&args).arg(scan()).arg(scan()).arg(scan());
        shell
            .arg("--report")
            .arg(&report)
            .arg("--same-report")
            .arg("--bundle")
            .arg(tiny_bundle())
            .env("ORT_DYLIB_PATH", commands::library());
        let done = finish(&mut shell);
        assert_eq!(done.code, Some(0), "{done:#?}");
        assert!(!done.stderr.contains("panicked") && !done.stderr.contains("error"), "{done:#?}");
    }
    // A full device is an error, and said.
    let mut shell = Command::new("bash");
    shell.arg("-c").arg("\"$0\" \"$@\" > /dev/full").arg(binary_path("ba-infer")).arg(scan()).arg("--json");
    shell.arg("--bundle").arg(tiny_bundle()).env("ORT_DYLIB_PATH", commands::library());
    finish(&mut shell).fails("disk.full");
}

fn binary_path(name: &str) -> std::path::PathBuf {
    bare(name).get_program().into()
}

#[test]
fn relative_paths_and_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("onnx");
    fs::create_dir(&bundle).unwrap();
    copy_files(tiny_bundle(), &bundle);
    fs::copy(scan(), dir.path().join("s.nii.gz")).unwrap();
    report(dir.path());
    let run = |args: &[&str]| finish(command("ba-infer").current_dir(dir.path()).args(args));
    run(&["s.nii.gz"]).ok();
    run(&["./s.nii.gz", "--report", "report.txt", "--bundle", "onnx/", "-o", "out.jsonl"]).ok();
    run(&["../x/../none.nii", "--bundle", "./onnx/../onnx"]).fails("nifti.not_found");
    assert_eq!(fs::read_to_string(dir.path().join("out.jsonl")).unwrap().lines().count(), 1);
    assert!(tiny_copy().path().is_dir());
}

#[test]
fn bundles_that_are_not_there() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for path in [Path::new("/nonexistent"), file.path(), Path::new("/")] {
        let done: Done = ba_infer(&[&scan(), &"--bundle", &path]);
        done.fails_with_one_line("bundle.not_found").naming(&["ba-export"]);
    }
}
