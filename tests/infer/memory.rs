//! The memory of `ba-infer`: planned, limited and refused; and its cache between runs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use brain_adapter::bundle::{Precision, Target};
use serde_json::Value;
use support::commands::{self, Done, bare, command, copy_files, finish, report, scan, tiny_bundle, tiny_copy};
use support::large;

/// A run on the large bundle.
fn run(bundle: &Path, report: &Path, more: &[&str]) -> Done {
    finish(
        command("ba-infer")
            .arg(scan())
            .arg("--report")
            .arg(report)
            .arg("--bundle")
            .arg(bundle)
            .arg("--json")
            .args(more),
    )
}

/// A report of some hundred words.
fn long_report(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("long.txt");
    let text = fs::read_to_string(report(dir)).unwrap();
    fs::write(&path, text.repeat(400 / text.split_whitespace().count().max(1) + 1)).unwrap();
    path
}

fn groups(json: &Value, part: &str) -> u64 {
    let stages = json["run"]["stages"].as_array().unwrap();
    stages.iter().find(|s| s["part"] == part).unwrap()["groups"].as_u64().unwrap()
}

fn bytes(json: &Value, what: &str) -> u64 {
    json["run"]["memory_bytes"][what].as_u64().unwrap()
}

/// Under a limit graphs are run in groups: the same answer bit for bit, within the limit and the plan.
#[test]
fn a_limit_changes_memory_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    /// The limits, in percent of the memory that is planned without one.
    struct Limits {
        precision: Precision,
        percents: [u64; 2],
    }
    let cases = [
        Limits { precision: Precision::Fp32, percents: [80, 60] },
        Limits { precision: Precision::Int8, percents: [80, 70] },
    ];
    for Limits { precision, percents } in cases {
        let bundle = large::bundle(precision);
        for report in [report(dir.path()), long_report(dir.path())] {
            let whole = run(&bundle, &report, &[]).ok().json();
            assert_eq!(groups(&whole, "text"), 1);
            for percent in percents {
                let limit = (bytes(&whole, "planned") * percent / 100) >> 20;
                let limited = run(&bundle, &report, &["--max-memory", &format!("{limit}M")]).ok().json();
                assert!(groups(&limited, "text") > 1, "{precision} {limit}: {limited}");
                for same in ["label", "logits", "probabilities", "similarity"] {
                    assert_eq!(limited[same], whole[same], "{precision} {limit} {same}");
                }
                assert_eq!(bytes(&limited, "limit"), limit << 20);
                #[cfg(target_os = "linux")]
                {
                    let (planned, peak) = (bytes(&limited, "planned"), bytes(&limited, "peak"));
                    assert!(planned <= limit << 20 && peak <= planned, "{precision} {limit}: {peak} of {planned}");
                    assert!(peak < bytes(&whole, "peak"));
                }
            }
        }
    }
}

/// Whole, resident, few threads: the plan holds for all of them.
#[cfg(target_os = "linux")]
#[test]
fn plans_hold() {
    let dir = tempfile::tempdir().unwrap();
    let report = long_report(dir.path());
    let forms = [Precision::Fp32, Precision::Fp16, Precision::Int8, Precision::Int4].map(|p| (p, Target::Cpu));
    for (precision, target) in forms.into_iter().chain([(Precision::Int8, Target::Cuda)]) {
        let bundle = large::bundle_for(precision, target);
        for more in [&["--mode", "one-shot"][..], &["--mode", "resident"], &["--threads", "1"]] {
            let json = run(&bundle, &report, more).ok().json();
            let (planned, peak) = (bytes(&json, "planned"), bytes(&json, "peak"));
            assert!(peak <= planned, "{precision} for {target} {more:?}: {peak} of {planned}");
            // A plan of ten times what is needed would hold as well, and refuse what fits.
            assert!(planned * 2 <= 3 * peak, "{precision} for {target} {more:?}: {peak} of {planned}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_run() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, report) = (large::bundle(Precision::Fp32), report(dir.path()));
    let done = run(&bundle, &report, &["--max-memory", "60M"]).fails_with_one_line("memory.limit");
    done.naming(&["MB at least", "--max-memory"]);
    // Resident was asked for: it is not made one-shot behind the user's back.
    run(&bundle, &report, &["--max-memory", "300M", "--mode", "resident"]).fails_with_one_line("memory.limit");
    let done = run(&bundle, &report, &["--max-memory", "300M"]).ok();
    assert_eq!(done.json()["run"]["stages"][2]["mode"], "one-shot");
    for size in ["", "G", "-1", "0", "4X", "nanG", "1e30T"] {
        assert_eq!(run(&bundle, &report, &["--max-memory", size]).code, Some(2), "{size}");
    }
}

/// What the tokenizer takes for a report is not planned: a run that goes beyond its limit by it says so, once.
#[cfg(target_os = "linux")]
#[test]
fn a_limit_that_was_exceeded_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.txt");
    let limit = |json: &Value| (bytes(json, "limit"), bytes(json, "peak"));
    let warned = |json: &Value| {
        let warnings = json["warnings"].as_array().unwrap().iter();
        warnings.filter(|w| w["code"] == "memory_exceeded").cloned().collect::<Vec<_>>()
    };
    fs::write(&report, "a few words").unwrap();
    let small = run(tiny_bundle(), &report, &["--max-memory", "4G"]).ok().json();
    assert!(warned(&small).is_empty());
    assert_eq!(small["run"]["memory_bytes"]["limited_by"], "--max-memory");
    // A list, whose reports are not read before it is planned.
    fs::write(&report, "a few words ".repeat(80_000)).unwrap();
    let list = dir.path().join("list.csv");
    let rows: Vec<String> = (0..2)
        .map(|i| {
            fs::copy(scan(), dir.path().join(format!("{i}.nii.gz"))).unwrap();
            format!("{i}.nii.gz,report.txt\n")
        })
        .collect();
    fs::write(&list, format!("scan,report\n{}", rows.concat())).unwrap();
    let most = format!("{}K", (bytes(&small, "planned") >> 10) + (16 << 10));
    let mut infer = command("ba-infer");
    infer.arg("--list").arg(&list).arg("--bundle").arg(tiny_bundle()).args(["--json", "--max-memory", &most]);
    let done = finish(&mut infer).ok();
    let lines: Vec<Value> = done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (limit, peak) = limit(&lines[1]);
    assert!(peak > limit, "{peak} of {limit}");
    let [warning] = &lines.iter().flat_map(&warned).collect::<Vec<_>>()[..] else { panic!("{lines:#?}") };
    let message = warning["message"].as_str().unwrap();
    for bytes in [lines[0]["run"]["memory_bytes"]["peak"].as_u64().unwrap().div_ceil(1_000_000), limit / 1_000_000] {
        assert!(message.contains(&format!("{bytes} MB")), "{message}");
    }
}

/// A shell that limits its memory and becomes `ba-infer`.
#[cfg(target_os = "linux")]
fn limited(ulimit: &str, bundle: &Path, report: &Path, more: &[&str]) -> Done {
    let infer = bare("ba-infer");
    let mut shell = Command::new("sh");
    // glibc reserves 64 MB of address space a thread, used or not.
    shell.env("ORT_DYLIB_PATH", commands::library()).env("MALLOC_ARENA_MAX", "1");
    shell.arg("-c").arg(format!("ulimit {ulimit} || exit 9; exec \"$@\"")).arg("sh").arg(infer.get_program());
    finish(
        shell
            .arg(scan())
            .arg("--report")
            .arg(report)
            .arg("--bundle")
            .arg(bundle)
            .args(["--json", "--threads", "2"])
            .args(more),
    )
}

/// Under limits of the operating system which the weights as a whole would break, mapped or not: they are found without
/// being named.
#[cfg(target_os = "linux")]
#[test]
fn limits_of_the_system_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, report) = (large::bundle(Precision::Fp32), report(dir.path()));
    let whole = run(&bundle, &report, &[]).ok().json();
    // What the weights alone take, and 40 MB of address space for the libraries' code.
    for (kind, code) in [("-d", 0), ("-v", 40 << 10)] {
        let ulimit = format!("{kind} {}", large::SINGLE / 1024 + code);
        let found = limited(&ulimit, &bundle, &report, &[]).ok().json();
        assert!(groups(&found, "text") > 1, "{ulimit}: {found}");
        assert_eq!(found["logits"], whole["logits"], "{ulimit}");
        // The limit does bite: with a larger `--max-memory`, the run fails (with an error, not a crash).
        let more = limited(&ulimit, &bundle, &report, &["--max-memory", "8G"]);
        more.fails_with_one_line("runtime.model");
        limited(&ulimit, &bundle, &report, &["--mode", "resident"]).fails_with_one_line("memory.limit");
    }
}

/// Weights are hashed while they are run; a wrong one lets no answer out, at whatever place it is.
#[test]
fn wrong_weights_give_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let report = report(dir.path());
    let bundle = dir.path().join("bundle");
    fs::create_dir(&bundle).unwrap();
    copy_files(&large::bundle(Precision::Int8), &bundle);
    let weights = bundle.join("text.onnx.data");
    let good = fs::read(&weights).unwrap();
    assert!(good.len() > 32 << 20, "small files are hashed before anything is run");
    let (cache, output) = (dir.path().join("cache"), dir.path().join("out.jsonl"));
    let cache = ["--cache", cache.to_str().unwrap(), "-o", output.to_str().unwrap()];
    for place in [0, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[place] ^= 1;
        fs::write(&weights, &bad).unwrap();
        for more in [&[][..], &["--threads", "1"], &cache] {
            let done = run(&bundle, &report, more).fails_with_one_line("bundle.checksum").naming(&["text.onnx.data"]);
            assert!(!done.stdout.contains("label"), "{done:#?}");
        }
        assert!(!output.exists());
    }
    // The image alone needs none of it.
    finish(command("ba-infer").arg(scan()).arg("--bundle").arg(&bundle)).ok();
    fs::write(&weights, &good).unwrap();
    run(&bundle, &report, &cache).ok();
}

/// What was verified is remembered in the cache, until the file is touched.
#[test]
fn verified_once_until_touched() {
    let dir = tempfile::tempdir().unwrap();
    // A copy: other tests run on the shared one, which must not be touched under them.
    let bundle = dir.path().join("bundle");
    fs::create_dir(&bundle).unwrap();
    copy_files(&large::bundle(Precision::Int8), &bundle);
    let cache = dir.path().join("cache");
    // Another report each time, so that the language model runs.
    let verified = |text: &str| {
        let report = dir.path().join("r.txt");
        fs::write(&report, text).unwrap();
        let json = run(&bundle, &report, &["--cache", cache.to_str().unwrap()]).ok().json();
        json["run"]["weights"].as_str().unwrap().to_owned()
    };
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(verified("one"), "hashed");
    assert_eq!(verified("two"), "unchanged since hashed");
    let weights = bundle.join("text.onnx.data");
    let now = std::time::SystemTime::now() - Duration::from_secs(100);
    fs::File::options().append(true).open(&weights).unwrap().set_modified(now).unwrap();
    assert_eq!(verified("three"), "hashed");
}

/// Repacked weights are mapped from the cache: the resident answer, in hardly any private memory; a touched copy is not
/// used.
#[test]
fn weights_are_laid_out_once() {
    let dir = tempfile::tempdir().unwrap();
    let (bundle, report) = (large::bundle(Precision::Int8), report(dir.path()));
    let cache = dir.path().join("cache");
    let resident = run(&bundle, &report, &["--mode", "resident"]).ok().json();
    let laid_out = || {
        let json = run(&bundle, &report, &["--mode", "resident", "--prepacked", "--cache", cache.to_str().unwrap()])
            .ok()
            .json();
        // The next run is to compute, not to remember.
        fs::remove_dir_all(cache.join("features")).unwrap();
        assert_eq!(json["logits"], resident["logits"]);
        assert_eq!(json["run"]["stages"][2]["prepacked"], true);
        json["timing_ms"].get("prepack").is_some()
    };
    assert!(laid_out());
    assert!(!laid_out());
    let copy = fs::read_dir(cache.join("prepacked")).unwrap().map(|e| e.unwrap().path()).next().unwrap();
    assert_eq!(commands::names(&copy), ["text.onnx", "text.onnx.data"]);
    let data = copy.join("text.onnx.data");
    let mut bytes = fs::read(&data).unwrap();
    assert!(bytes.len() as u64 > large::SINGLE / 4);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    fs::write(&data, &bytes).unwrap();
    assert!(laid_out());
    assert_eq!(fs::read_dir(cache.join("prepacked")).unwrap().count(), 1);
    // Only with a cache.
    assert_eq!(run(&bundle, &report, &["--prepacked"]).code, Some(2));
}

/// Features come from the cache: the same answer, without the scan being read.
#[test]
fn features_are_computed_once() {
    let dir = tempfile::tempdir().unwrap();
    let (scan_file, report) = (dir.path().join("scan.nii.gz"), report(dir.path()));
    fs::copy(scan(), &scan_file).unwrap();
    let cache = dir.path().join("cache");
    let infer = |bundle: &Path, scan: &Path, more: &[&str]| {
        let mut infer = command("ba-infer");
        infer.arg(scan).arg("--bundle").arg(bundle).arg("--json").arg("--cache").arg(&cache).args(more);
        finish(&mut infer)
    };
    let with = ["--report", report.to_str().unwrap()];
    let from_cache = |done: &Done| done.json()["run"]["from_cache"].clone();
    let first = infer(tiny_bundle(), &scan_file, &with).ok();
    assert_eq!(from_cache(&first), serde_json::json!([]));
    let second = infer(tiny_bundle(), &scan_file, &with).ok();
    assert_eq!(from_cache(&second), serde_json::json!(["vision", "text"]));
    for same in ["label", "logits", "probabilities", "similarity", "warnings"] {
        assert_eq!(first.json()[same], second.json()[same], "{same}");
    }
    for stage in ["adapter", "vision", "text"] {
        assert!(second.json()["timing_ms"].get(stage).is_none(), "{stage}");
    }
    // The same content under another name.
    let renamed = dir.path().join("other.nii.gz");
    fs::rename(&scan_file, &renamed).unwrap();
    assert_eq!(from_cache(&infer(tiny_bundle(), &renamed, &[]).ok()), serde_json::json!(["vision"]));
    // Another bundle, with other bytes in its manifest.
    let other = tiny_copy();
    let mut manifest = commands::manifest(other.path());
    manifest["intended_use"] = "tests".into();
    commands::write_manifest(other.path(), &manifest);
    assert_eq!(from_cache(&infer(other.path(), &renamed, &with).ok()), serde_json::json!([]));
    // Other contents.
    let mut bytes = fs::read(&renamed).unwrap();
    bytes.truncate(bytes.len() / 2);
    fs::write(&renamed, &bytes).unwrap();
    infer(tiny_bundle(), &renamed, &with).fails("nifti.truncated");
    // Pictures and tensors want the scan itself.
    fs::copy(scan(), &renamed).unwrap();
    let (picture, tensors) = (dir.path().join("p.png"), dir.path().join("t.safetensors"));
    infer(tiny_bundle(), &renamed, &["--save-preview", picture.to_str().unwrap()]).ok();
    infer(tiny_bundle(), &renamed, &["--save-tensors", tensors.to_str().unwrap()]).ok();
    assert!(picture.exists() && tensors.exists());
    // Damaged files are computed again.
    for entry in fs::read_dir(cache.join("features")).unwrap() {
        fs::write(entry.unwrap().path(), "{\"shape\":[1,2],\"values\":[0,0]}").unwrap();
    }
    let again = infer(tiny_bundle(), &renamed, &with).ok();
    assert_eq!((from_cache(&again), &again.json()["logits"]), (serde_json::json!([]), &first.json()["logits"]));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(cache.join("features")).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
