//! Versions of a bundle: kept whole, brought back byte for byte, and never half there, whoever is killed when.

#![cfg(unix)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use brain_adapter::bundle::{Bundle, Versions, sha256_of};
use brain_adapter::infer::{Mode, Options, Predictor};
use serde_json::Value;
use support::commands::{self, ba_train, command, copy_files, manifest, names, save, snapshot};
use support::trained::{Study, changed};

fn versions(bundle: &Path) -> Vec<Value> {
    let done = ba_train(&[&"apply", &"--versions", &"--json", &"--bundle", &bundle]).ok().json();
    done["versions"].as_array().unwrap().clone()
}

/// The numbers of all versions, and that of the one in use.
fn numbers(bundle: &Path) -> (Vec<u64>, Option<u64>) {
    let all = versions(bundle);
    let in_use: Vec<u64> = all.iter().filter(|v| v["in_use"] == true).map(|v| v["version"].as_u64().unwrap()).collect();
    assert!(in_use.len() <= 1, "{all:?}");
    (all.iter().map(|v| v["version"].as_u64().unwrap()).collect(), in_use.first().copied())
}

fn store(study: &Study) -> PathBuf {
    study.dir.path().join("onnx.versions")
}

#[test]
fn versions_go_on_and_back() {
    let study = Study::new("tiny", "tiny");
    let bundle = study.export("none", "onnx", &study.model);
    assert_eq!(numbers(&bundle), (vec![1], Some(1)));
    assert!(!store(&study).exists(), "listing makes nothing");
    ba_train(&[&"apply", &"--rollback", &"--bundle", &bundle]).fails("bundle.version").naming(&["--to"]);
    let mut snapshots = vec![snapshot(&bundle)];
    for seed in [1, 2] {
        save(&study.trained, changed("tiny", seed));
        study.apply(&bundle, &[]).ok();
        snapshots.push(snapshot(&bundle));
    }
    assert_eq!(numbers(&bundle), (vec![1, 2, 3], Some(3)));
    let parent = manifest(&bundle)["version"]["parent_sha256"].clone();
    assert_eq!(parent, sha256_of(&store(&study).join("0002/bundle.json")).unwrap());
    for (to, at) in [(None, 2), (None, 1), (Some(3), 3), (Some(1), 1), (Some(2), 2)] {
        let to = to.map_or("--rollback".to_owned(), |n: usize| format!("--to={n}"));
        ba_train(&[&"apply", &to, &"--bundle", &bundle]).ok();
        assert_eq!(snapshot(&bundle), snapshots[at - 1]);
        assert_eq!(numbers(&bundle), (vec![1, 2, 3], Some(at as u64)));
    }
    ba_train(&[&"apply", &"--to", &"7", &"--bundle", &bundle]).fails("bundle.version").naming(&["7", "1, 2, 3"]);
    // What is there already is used again, not made a second time: as after an interruption.
    study.apply(&bundle, &[]).ok();
    assert_eq!((numbers(&bundle), snapshot(&bundle)), ((vec![1, 2, 3], Some(3)), snapshots[2].clone()));
    // From version 2 on with other weights: the next number is 4, its parent is 2.
    ba_train(&[&"apply", &"--to", &"2", &"--bundle", &bundle]).ok();
    save(&study.trained, changed("tiny", 3));
    study.apply(&bundle, &[]).ok();
    assert_eq!(numbers(&bundle), (vec![1, 2, 3, 4], Some(4)));
    ba_train(&[&"apply", &"--rollback", &"--bundle", &bundle]).ok();
    assert_eq!(snapshot(&bundle), snapshots[1]);
    // The weights of the other graphs are on the disk once.
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    let all: Vec<u64> = (1..5).map(|n| inode(store(&study).join(format!("{n:04}/text.onnx")))).collect();
    assert!(all.iter().all(|i| *i == inode(bundle.join("text.onnx"))), "{all:?}");
    let text = ba_train(&[&"apply", &"--versions", &"--bundle", &bundle]).ok().stdout;
    for words in ["2 (in use)", "fp32", "trained.safetensors", &sha256_of(&bundle.join("bundle.json")).unwrap()[..12]] {
        assert!(text.contains(words), "{words}:\n{text}");
    }
}

/// An export knows nothing of versions: what it replaced can come back, and what it made is kept when that happens.
#[test]
fn an_export_between_loses_nothing() {
    let study = Study::new("tiny", "tiny");
    let bundle = study.export("none", "onnx", &study.model);
    study.apply(&bundle, &[]).ok();
    let second = snapshot(&bundle);
    fs::write(bundle.join("README.md"), "ours").unwrap();
    study.export("fp16", "onnx", &study.model);
    assert_eq!(numbers(&bundle), (vec![1, 2, 3], Some(3)));
    let exported = snapshot(&bundle);
    ba_train(&[&"apply", &"--rollback", &"--bundle", &bundle]).fails("bundle.version").naming(&["1, 2, 3"]);
    ba_train(&[&"apply", &"--to", &"2", &"--bundle", &bundle]).ok();
    assert_eq!(fs::read(bundle.join("README.md")).unwrap(), b"ours");
    fs::remove_file(bundle.join("README.md")).unwrap();
    assert_eq!(snapshot(&bundle), second);
    ba_train(&[&"apply", &"--to", &"3", &"--bundle", &bundle]).ok();
    assert_eq!(snapshot(&bundle), exported.into_iter().filter(|(n, _)| n != "README.md").collect::<Vec<_>>());
    // A bundle that went away comes back; one that was copied without its store begins a new one with its own number.
    ba_train(&[&"apply", &"--to", &"2", &"--bundle", &bundle]).ok();
    fs::remove_dir_all(&bundle).unwrap();
    assert_eq!(numbers(&bundle), (vec![1, 2, 3], None));
    ba_train(&[&"apply", &"--to", &"2", &"--bundle", &bundle]).ok();
    assert_eq!(snapshot(&bundle), second);
    let copy = study.dir.path().join("copy");
    fs::create_dir(&copy).unwrap();
    copy_files(&bundle, &copy);
    study.apply(&copy, &[]).ok();
    assert_eq!(numbers(&copy), (vec![2, 3], Some(3)));
}

#[test]
fn a_link_stays_a_link_and_damage_does_not_come_back() {
    let study = Study::new("tiny", "tiny");
    let bundle = study.export("none", "real", &study.model);
    let link = study.dir.path().join("onnx");
    std::os::unix::fs::symlink("real", &link).unwrap();
    study.apply(&link, &[]).ok();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(numbers(&bundle), (vec![1, 2], Some(2)));
    let now = snapshot(&bundle);
    let first = study.dir.path().join("real.versions/0001/adapter.onnx");
    let mut bytes = fs::read(&first).unwrap();
    bytes[100] ^= 1;
    fs::write(&first, bytes).unwrap();
    ba_train(&[&"apply", &"--rollback", &"--bundle", &link]).fails("bundle.checksum").naming(&["adapter.onnx"]);
    assert_eq!(snapshot(&bundle), now);
    // A version that cannot be read is listed as such, and no obstacle.
    fs::write(first.with_file_name("bundle.json"), "{").unwrap();
    let all = versions(&link);
    assert_eq!((all[0]["error"]["code"].as_str(), all[1]["in_use"].as_bool()), (Some("bundle.manifest"), Some(true)));
    ba_train(&[&"apply", &"--versions", &"--bundle", &link]).ok();
    study.apply(&link, &[]).ok();
    assert_eq!(numbers(&bundle), (vec![1, 2, 3], Some(3)));
}

#[test]
fn two_at_once_are_refused() {
    let study = Study::new("tiny", "tiny");
    let bundle = study.export("none", "onnx", &study.model);
    let before = snapshot(&bundle);
    let held = Versions::lock(&bundle).unwrap();
    study.apply(&bundle, &[]).fails("bundle.busy");
    ba_train(&[&"apply", &"--rollback", &"--bundle", &bundle]).fails("bundle.busy");
    assert_eq!((numbers(&bundle), snapshot(&bundle)), ((vec![1], Some(1)), before));
    drop(held);
    study.apply(&bundle, &[]).ok();
}

/// A process that has its graphs loaded continues with the old bundle; one that would open files of the new one fails
/// instead of computing with parts of both.
#[test]
fn who_uses_the_bundle_meanwhile_never_mixes() {
    let study = Study::new("tiny", "tiny");
    let bundle = study.export("none", "onnx", &study.model);
    let open = |mode: Mode| {
        let options = Options { mode: Some(mode), library: Some(commands::library()), ..Options::default() };
        Predictor::open(&bundle, options).unwrap()
    };
    let ask = |predictor: &Predictor| {
        let report = predictor.encode_report("Memory complaints. MMSE 24.")?;
        let scan = predictor.reader().read(&commands::scan())?;
        predictor.predict(scan, Some(&report)).map(|p| (p.logits, p.bundle.sha256))
    };
    let (mut resident, mut one_shot, mut unused) = (open(Mode::Resident), open(Mode::OneShot), open(Mode::Resident));
    let before = ask(&mut resident).unwrap();
    assert_eq!(ask(&mut one_shot).unwrap().1, before.1);
    study.apply(&bundle, &[]).ok();
    assert_eq!(ask(&mut resident).unwrap(), before);
    for late in [&mut one_shot, &mut unused] {
        assert_eq!(ask(late).unwrap_err().code().as_str(), "bundle.replaced");
    }
    let after = ask(&mut open(Mode::OneShot)).unwrap();
    assert!(after.1 != before.1 && after.0 != before.0);
    // Back again, it is the old bundle.
    ba_train(&[&"apply", &"--rollback", &"--bundle", &bundle]).ok();
    assert_eq!(ask(&mut one_shot).unwrap().1, before.1);
}

#[test]
fn wrong_usage() {
    for args in [&["--rollback", "--versions"] as &[&str], &["--to", "0"], &["--rollback", "--checkpoint", "x"]] {
        let done = commands::finish(command("ba-train").arg("apply").args(args));
        assert_eq!(done.code, Some(2), "{done:#?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("onnx");
    for flag in ["--rollback", "--versions"] {
        ba_train(&[&"apply", &flag, &"--bundle", &nowhere]).fails("bundle.not_found");
    }
    assert!(names(dir.path()).is_empty());
}

/// `kill -9` at many moments of applying and of rolling back: the bundle is an old or a new one and whole, so is every
/// version, and the next run goes through.
#[test]
fn killed_at_any_moment() {
    const ROUNDS: u32 = 16;
    let study = Study::new("tiny", "tiny");
    let bundle = study.export("int8", "onnx", &study.model);
    let pristine = study.copy(&bundle, "pristine");
    let run = |args: &[&str]| {
        let mut run = command("ba-train");
        run.arg("apply").args(args).arg("--bundle").arg(&bundle).stdout(Stdio::null()).stderr(Stdio::null());
        run
    };
    let (trained, calibration) = (study.trained.to_str().unwrap(), study.calibration.to_str().unwrap());
    let apply = ["--checkpoint", trained, "--calibration", calibration];
    let started = std::time::Instant::now();
    assert!(run(&apply).status().unwrap().success());
    let whole = started.elapsed();
    let started = std::time::Instant::now();
    assert!(run(&["--rollback"]).status().unwrap().success());
    let back = started.elapsed();
    let identity = |dir: &Path| sha256_of(&dir.join("bundle.json")).unwrap();
    let (old, new) = (identity(&bundle), identity(&store(&study).join("0002")));
    let (mut interrupted, mut outcomes) = (0, std::collections::BTreeMap::new());
    for round in 0..ROUNDS {
        // From a fresh bundle without versions every other time.
        if round % 2 == 0 {
            [bundle.clone(), store(&study)].iter().for_each(|p| fs::remove_dir_all(p).unwrap());
            fs::create_dir(&bundle).unwrap();
            copy_files(&pristine, &bundle);
        }
        let backwards = round % 4 == 1 && identity(&bundle) != old;
        let (args, time): (&[&str], _) = if backwards { (&["--rollback"], back) } else { (&apply, whole) };
        let mut child = run(args).spawn().unwrap();
        // Most of what changes something happens at the end.
        std::thread::sleep(time.mul_f64(1.1 * (f64::from(round) / f64::from(ROUNDS)).sqrt()));
        child.kill().unwrap();
        interrupted += u32::from(!child.wait().unwrap().success());
        let found = Bundle::open(&bundle).unwrap().sha256;
        let (all, in_use) = numbers(&bundle);
        for name in names(&store(&study)).iter().filter(|n| !n.starts_with('.')) {
            Bundle::open(&store(&study).join(name)).unwrap();
        }
        *outcomes.entry((found == old, all.len())).or_insert(0) += 1;
        assert!(in_use.is_some());
        if round % 2 == 0 {
            assert!(found == old || found == new);
            assert!(run(&apply).status().unwrap().success());
            // What the killed run left is used or removed.
            let left = names(study.dir.path());
            assert!(!left.iter().any(|n| n.starts_with(".onnx")), "{left:?}");
            if found == old {
                assert_eq!((identity(&bundle), numbers(&bundle).0), (new.clone(), vec![1, 2]));
            }
            assert!(!names(&store(&study)).iter().any(|n| n.contains("partial")));
        }
    }
    eprintln!("{interrupted} of {ROUNDS} interrupted; (old in use, versions): {outcomes:?}");
    assert!(interrupted > 5, "only {interrupted} runs were interrupted");
}
