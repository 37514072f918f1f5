//! How a bundle gets into its place: whole or not at all, other files kept, and the same bytes every time.

#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use brain_adapter::bundle::{Bundle, sha256_of};
use brain_adapter::tensor::LazyTensor;
use support::commands::{self, ba_export, command, finish, names, snapshot, tiny_bundle, tiny_model};

fn export_to(target: &Path, extra: &[&str]) -> commands::Done {
    finish(command("ba-export").arg("--model").arg(tiny_model()).arg("-o").arg(target).args(extra))
}

#[test]
fn an_old_bundle_is_replaced_and_a_readme_stays() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("onnx");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("README.md"), "ours").unwrap();
    fs::write(target.join(".gitignore"), "*").unwrap();
    export_to(&target, &[]).ok();
    let first = snapshot(&target);
    assert_eq!(fs::read(target.join("README.md")).unwrap(), b"ours");
    // A part of the old bundle that the new one lacks goes away; damage does not matter.
    fs::write(target.join("adapter.onnx"), b"damaged").unwrap();
    export_to(&target, &[]).ok();
    assert_eq!(snapshot(&target), first);
    Bundle::open(&target).unwrap();
    assert_eq!(names(dir.path()), ["onnx"]);
}

#[test]
fn foreign_files_need_force_and_stay() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("onnx");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("thesis.txt"), "years of work").unwrap();
    export_to(&target, &[]).fails_with_one_line("output.exists").naming(&["thesis.txt", "--force"]);
    assert_eq!(names(&target), ["thesis.txt"]);
    export_to(&target, &["--force"]).ok();
    Bundle::open(&target).unwrap();
    assert_eq!(fs::read(target.join("thesis.txt")).unwrap(), b"years of work");
    // Next to a bundle, other files are no obstacle, and stay again.
    export_to(&target, &[]).ok();
    assert_eq!(fs::read(target.join("thesis.txt")).unwrap(), b"years of work");
}

/// Files of the names that a bundle has, without a bundle: with `--force` the new ones must win, or the bundle is
/// broken.
#[test]
fn forced_over_files_of_the_bundles_own_names() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("onnx");
    fs::create_dir(&target).unwrap();
    for name in ["adapter.onnx", "bundle.json", "tokenizer.json"] {
        fs::write(target.join(name), "something else").unwrap();
    }
    export_to(&target, &[]).fails("output.exists");
    export_to(&target, &["--force"]).ok();
    Bundle::open(&target).unwrap();
}

/// "Export it again" is the advice for a bundle of another format version: so that must work.
#[test]
fn a_bundle_of_another_format_is_replaced() {
    for change in ["format", "unknown field"] {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("onnx");
        export_to(&target, &[]).ok();
        let mut manifest = commands::manifest(&target);
        match change {
            "format" => manifest["format"] = 999.into(),
            _ => manifest["surprise"] = 1.into(),
        }
        fs::write(target.join("old.onnx.data"), "a part that the new format has no more").unwrap();
        let old = serde_json::json!({"name": "old.onnx.data", "bytes": 1, "sha256": "0"});
        manifest["files"].as_array_mut().unwrap().push(old);
        commands::write_manifest(&target, &manifest);
        Bundle::open(&target).unwrap_err();
        export_to(&target, &[]).ok();
        Bundle::open(&target).unwrap();
        assert!(!target.join("old.onnx.data").exists());
    }
}

#[test]
fn folders_links_and_pipes_in_the_output_are_refused() {
    type Make = fn(&Path);
    let make: [(&str, Make); 4] = [
        ("sub", |p| fs::create_dir(p).unwrap()),
        ("README", |p| std::os::unix::fs::symlink("/etc/hostname", p).unwrap()),
        ("README.md", pipe),
        ("bundle.json", pipe),
    ];
    for (name, make) in make {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("onnx");
        fs::create_dir(&target).unwrap();
        make(&target.join(name));
        for extra in [&[] as &[&str], &["--force"]] {
            export_to(&target, extra).fails_with_one_line("output.exists").naming(&[name]);
        }
        assert_eq!((names(dir.path()), fs::read_dir(&target).unwrap().count()), (vec!["onnx".to_owned()], 1));
    }
}

fn pipe(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn places_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "mine").unwrap();
    for target in [file.clone(), file.join("onnx"), "/proc/onnx".into(), "/dev/null".into()] {
        export_to(&target, &[]).fails_with_one_line("io");
    }
    assert_eq!((fs::read(&file).unwrap(), names(dir.path())), (b"mine".to_vec(), vec!["file".to_owned()]));
    // `..` and a link that leads nowhere have no place to put a bundle either.
    fs::create_dir(dir.path().join("sub")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
    for target in [dir.path().join("sub/.."), dir.path().join("link")] {
        let done = export_to(&target, &[]);
        assert_eq!(done.code, Some(1), "{done:#?}");
        assert_eq!(names(dir.path()), ["file", "link", "sub"], "{}", target.display());
    }
}

#[test]
fn missing_folders_above_are_made_and_names_may_be_anything() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a/b/onnx", "Köln α/mit Leerzeichen", "new\nline", "trailing/", "-dash"] {
        let target = dir.path().join(name);
        export_to(&target, &[]).ok();
        Bundle::open(&target).unwrap();
    }
    // Relative paths, from another folder.
    finish(command("ba-export").current_dir(dir.path()).arg("--model").arg(tiny_model()).args(["-o", "here"])).ok();
    Bundle::open(&dir.path().join("here")).unwrap();
    assert!(!names(dir.path()).iter().any(|n| n.contains("partial")));
}

#[test]
fn a_failing_export_leaves_the_old_bundle_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("onnx");
    export_to(&target, &[]).ok();
    let before = snapshot(&target);
    let calibration = dir.path().join("calibration");
    fs::create_dir(&calibration).unwrap();
    fs::write(calibration.join("a.nii"), "no scan").unwrap();
    let done = ba_export(&[&"--model", &tiny_model(), &"-o", &target, &"--calibration", &calibration]);
    done.fails_with_one_line("calibration.input").naming(&["a.nii", "nifti."]);
    assert_eq!(snapshot(&target), before);
    assert_eq!(names(dir.path()), ["calibration", "onnx"]);
}

#[test]
fn exporting_twice_gives_the_same_bytes() {
    let expected = sha256_of(&tiny_bundle().join("bundle.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (i, (threads, rayon)) in [("1", "1"), ("2", "7"), ("5", "2")].into_iter().enumerate() {
        let target = dir.path().join(format!("onnx{i}"));
        let mut run = command("ba-export");
        run.env("RAYON_NUM_THREADS", rayon).args(["--threads", threads]);
        finish(run.arg("--model").arg(tiny_model()).arg("-o").arg(&target)).ok();
        assert_eq!(sha256_of(&target.join("bundle.json")).unwrap(), expected);
        assert_eq!(snapshot(&target), snapshot(tiny_bundle()));
    }
}

/// The SentencePiece model is converted by way of hash maps: nothing of their order may show.
#[test]
fn a_converted_tokenizer_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    commands::write_model(&model, "tiny", "tiny");
    fs::remove_file(model.join("llama/tokenizer.json")).unwrap();
    fs::copy(support::package("tests/data/tokenizer/tokenizer.model"), model.join("llama/tokenizer.model")).unwrap();
    let mut hashes = Vec::new();
    for i in 0..4 {
        let target = dir.path().join(format!("onnx{i}"));
        ba_export(&[&"--model", &model, &"-o", &target]).ok();
        hashes.push(sha256_of(&target.join("bundle.json")).unwrap());
    }
    assert!(hashes.iter().all(|h| *h == hashes[0]), "{hashes:?}");
}

/// The tiny model with an embedding table of many rows, so that writing takes a while.
fn large_model(folder: &Path) {
    const ROWS: usize = 150_000;
    commands::write_model(folder, "tiny", "tiny");
    let mut text = commands::tensors("tiny", "llama/");
    let (_, table) = text.iter_mut().find(|(name, _)| name.ends_with("embed_tokens.weight")).unwrap();
    let values: Vec<f32> = (0..ROWS * 64).map(|i| (i % 977) as f32 / 977.0).collect();
    *table = LazyTensor::from_f32(&[ROWS, 64], &values);
    commands::save(&folder.join("llama/model.safetensors"), text);
    let path = folder.join("llama/config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["vocab_size"] = ROWS.into();
    fs::write(path, config.to_string()).unwrap();
}

/// `kill -9` at many moments: the old bundle verifies, or the new one does; what is left over is named as such, and the
/// next export removes it at once.
#[test]
fn killed_at_any_moment() {
    for extra in [&[] as &[&str], &["--quantize", "int8"]] {
        killed_while_exporting(extra);
    }
}

fn killed_while_exporting(extra: &[&str]) {
    const ROUNDS: u32 = 20;
    let dir = tempfile::tempdir().unwrap();
    let (model, work) = (dir.path().join("model"), dir.path().join("work"));
    let target = work.join("onnx");
    large_model(&model);
    let run = || {
        let mut run = command("ba-export");
        // Without calibration inputs: from a folder that has none.
        run.current_dir(dir.path()).arg("--model").arg(&model).arg("-o").arg(&target).args(extra);
        run.stdout(Stdio::null()).stderr(Stdio::null());
        run
    };
    let started = std::time::Instant::now();
    assert!(run().status().unwrap().success());
    let whole = started.elapsed();
    let good = sha256_of(&target.join("bundle.json")).unwrap();
    let (mut interrupted, mut leftovers) = (0, 0);
    for round in 0..ROUNDS {
        let with_old = round % 2 == 0;
        if !with_old {
            fs::remove_dir_all(&target).ok();
        }
        let mut child = run().spawn().unwrap();
        std::thread::sleep(whole.min(Duration::from_secs(5)) * (round + 1) / ROUNDS);
        child.kill().unwrap();
        interrupted += u32::from(!child.wait().unwrap().success());
        if with_old || target.exists() {
            assert_eq!(Bundle::open(&target).unwrap().sha256, good);
        }
        for name in names(&work).iter().filter(|n| *n != "onnx") {
            assert!(name.starts_with(".onnx.partial-"), "{name}");
            leftovers += 1;
        }
        assert!(run().status().unwrap().success());
        assert_eq!(
            (names(&work), sha256_of(&target.join("bundle.json")).unwrap()),
            (vec!["onnx".to_owned()], good.clone())
        );
    }
    assert!(interrupted > 6 && leftovers > 3, "{interrupted} runs interrupted, {leftovers} while writing: too few");
}
