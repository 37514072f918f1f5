//! Damaged, lying and malicious files: each is refused in one line with the right code, or read correctly, within its
//! limits of time and memory. Every case runs in a process of its own (this test binary again), so that a signal, a
//! hang or a peak of memory belongs to that case alone.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use brain_adapter::WarningCode;
use brain_adapter::volume::{self, ReadOptions};
use serde_json::{Value, json};
use support::nifti_corpus::{compare, corpora, grid, index, strings};
use support::oracle;

const SCAN: &str = "BA_HOSTILE_SCAN";
const FOLDER: &str = "BA_HOSTILE_FOLDER";

#[test]
fn corpus() {
    for folder in corpora("nifti-hostile") {
        hold(&folder);
    }
}

/// Runs the cases of a corpus.
pub fn hold(folder: &Path) {
    let index = index(folder);
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let (mut slowest, mut largest, mut ran, mut failures) = (0.0f64, 0.0f64, 0, Vec::new());
    for case in index["cases"].as_array().expect("cases") {
        let name = case["name"].as_str().expect("name");
        let Some(path) = locate(folder, case, scratch.path()) else { continue };
        match run(folder, &path).and_then(|got| judge(&index, case, &got)) {
            Ok((seconds, megabytes)) => {
                slowest = slowest.max(seconds);
                largest = largest.max(megabytes);
                ran += 1;
            }
            Err(e) => failures.push(format!("{name}: {e}")),
        }
    }
    println!("{}: {ran} cases, slowest {slowest:.2} s, largest {largest:.0} MB", folder.display());
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

/// The case's file; those that cannot be stored are made here. `None`: it cannot be made on this machine.
fn locate(folder: &Path, case: &Value, scratch: &Path) -> Option<PathBuf> {
    let file = case["file"].as_str().expect("file");
    let Some(how) = case.get("make").and_then(Value::as_str) else { return Some(folder.join(file)) };
    let path = scratch.join(file);
    let made = match how {
        _ if how.starts_with("mkfifo") => Command::new("mkfifo").arg(&path).status().is_ok_and(|s| s.success()),
        _ if how.contains("/dev/zero") => link(Path::new("/dev/zero"), &path),
        _ if how.contains("itself") => link(&path, &path),
        _ if how.contains("no such file") => true,
        _ if how.contains("mode 000") => unreadable(&path),
        _ => panic!("do not know how to make {how:?}"),
    };
    if !made {
        oracle::not_here("a superuser, or no such file system", &format!("{file} cannot be made ({how})"));
    }
    made.then_some(path)
}

#[cfg(unix)]
fn link(target: &Path, at: &Path) -> bool {
    std::os::unix::fs::symlink(target, at).is_ok()
}

#[cfg(not(unix))]
fn link(_: &Path, _: &Path) -> bool {
    false
}

/// A file without any permission. A superuser reads it all the same: then there is nothing to test.
fn unreadable(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let written = std::fs::write(path, b"x").is_ok();
        let closed = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o000)).is_ok();
        written && closed && std::fs::File::open(path).is_err()
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}

/// Runs one case in a child and returns what it reports.
fn run(folder: &Path, path: &Path) -> Result<Value, String> {
    let mut child = Command::new(std::env::current_exe().expect("own path"))
        .args(["hostile::child_reads_one_scan", "--exact", "--nocapture"])
        .env(SCAN, path)
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot start: {e}"))?;
    let start = Instant::now();
    while child.try_wait().map_err(|e| e.to_string())?.is_none() {
        if start.elapsed() > Duration::from_secs(20) {
            let _ = child.kill();
            let _ = child.wait();
            return Err("still running after 20 s".into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        return Err(format!("ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    let report = text.split("@@").nth(1).and_then(|t| t.lines().next()).ok_or("no report")?;
    serde_json::from_str(report).map_err(|e| e.to_string())
}

/// The child's half: reads one scan and reports in one line of JSON.
#[test]
fn child_reads_one_scan() {
    let Some(path) = std::env::var_os(SCAN) else { return };
    let folder = PathBuf::from(std::env::var_os(FOLDER).expect("the corpus"));
    let base = &index(&folder)["base"];
    let start = Instant::now();
    let result = volume::read(path.as_ref(), &ReadOptions { grid: grid(base), ..ReadOptions::default() });
    let seconds = start.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).and_then(|l| l.split_whitespace().next());
    let peak_kb: f64 = peak.and_then(|n| n.parse().ok()).unwrap_or(0.0);
    let mut report = match result {
        Ok(got) => json!({
            "ok": true,
            "warnings": got.warnings.iter().map(|w| w.code).collect::<Vec<_>>(),
            "difference": compare(&folder, base, &got).0,
            "axcodes": got.source.axcodes,
        }),
        Err(e) => json!({ "ok": false, "code": e.code().as_str(), "message": e.to_string() }),
    };
    report["seconds"] = json!(seconds);
    report["rss_mb"] = json!(peak_kb * 1024.0 / 1e6);
    println!("@@{report}");
}

/// Whether a code is of a quality warning; the corpus is about formats, and its volumes are no heads.
fn is_quality(code: &str) -> bool {
    WarningCode::QUALITY.iter().any(|quality| quality.as_str() == code)
}

/// Compares a report with the case; returns seconds and megabytes.
fn judge(index: &Value, case: &Value, got: &Value) -> Result<(f64, f64), String> {
    let bound = &index["bound"];
    let limit = case.get("bound_s").unwrap_or(&bound["seconds"]).as_f64().expect("a bound");
    let (seconds, megabytes) = (got["seconds"].as_f64().unwrap_or(1e9), got["rss_mb"].as_f64().unwrap_or(1e9));
    if seconds > limit {
        return Err(format!("took {seconds:.2} s, allowed {limit} s"));
    }
    if megabytes > bound["rss_mb"].as_f64().expect("a bound") {
        return Err(format!("took {megabytes:.0} MB"));
    }
    if case["expect"] == "error" {
        let codes = match case["name"].as_str() {
            // It is a whole MGH file of zeros; the corpus is older than the reader of MGH.
            Some("not_mgh.nii") => vec!["nifti.constant"],
            _ => strings(&case["codes"]),
        };
        let code = got["code"].as_str().ok_or_else(|| format!("accepted, expected {codes:?}"))?;
        let message = got["message"].as_str().unwrap_or_default();
        if !codes.contains(&code) || message.contains('\n') || message.is_empty() {
            return Err(format!("{code} ({message}), expected {codes:?}"));
        }
        if codes[0] != code {
            support::say(&format!("{}: {code}, while {} is preferred ({message})", case["name"], codes[0]));
        }
        return Ok((seconds, megabytes));
    }
    if got["ok"] != true {
        return Err(format!("refused: {} {}", got["code"], got["message"]));
    }
    let (wanted, found) = (strings(&case["warnings"]), strings(&got["warnings"]));
    if wanted.iter().any(|w| !found.contains(w)) || found.iter().any(|w| !is_quality(w) && !wanted.contains(w)) {
        return Err(format!("warnings {found:?}, expected {wanted:?}"));
    }
    let difference = got["difference"].as_f64().unwrap_or(1e9);
    if difference > 1.0 || got["axcodes"] != index["base"]["source_axcodes"] {
        return Err(format!("values differ by {difference} tolerances"));
    }
    Ok((seconds, megabytes))
}
