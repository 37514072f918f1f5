//! Bundles and versions that were tampered with: no command changes a file that is not the bundle's, follows a link out
//! of it, or waits for a pipe.

#![cfg(unix)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::commands::{
    Done, copy_files, finish_within, manifest, names, scan, snapshot, tiny_bundle, write_manifest,
};
use support::trained::Study;

const PRECIOUS: &str = "three years of a thesis";

/// A bundle `onnx` with one stored version, trained weights, and victims in and around it.
struct Scene {
    study: Study,
    bundle: PathBuf,
    version: PathBuf,
    victims: Vec<PathBuf>,
}

impl Scene {
    fn new() -> Self {
        let study = Study::new("tiny", "tiny");
        let root = study.dir.path().to_path_buf();
        let (bundle, version) = (root.join("onnx"), root.join("onnx.versions/0001"));
        for folder in [&bundle, &version] {
            fs::create_dir_all(folder).unwrap();
            copy_files(tiny_bundle(), folder);
        }
        let victims = vec![root.join("victim.txt"), root.join("onnx.versions/victim.txt"), root.join("sub/victim.txt")];
        fs::create_dir(root.join("sub")).unwrap();
        victims.iter().for_each(|victim| fs::write(victim, PRECIOUS).unwrap());
        Self { study, bundle, version, victims }
    }

    /// Every command that writes a bundle or its versions.
    fn commands(&self) -> Vec<(&'static str, Done)> {
        let run = |program: &str, args: &[&str], more: &[&Path]| {
            let mut command = support::commands::command(program);
            command.current_dir(self.study.dir.path()).args(args).args(more);
            finish_within(&mut command, 60)
        };
        let trained = self.study.trained.as_path();
        // Before the bundle is replaced.
        vec![
            ("infer", run("ba-infer", &["-q", "--bundle", "onnx"], &[&scan()])),
            ("versions", run("ba-train", &["apply", "-q", "--versions"], &[])),
            ("to", run("ba-train", &["apply", "-q", "--to", "1"], &[])),
            ("rollback", run("ba-train", &["apply", "-q", "--rollback"], &[])),
            ("apply", run("ba-train", &["apply", "-q", "--checkpoint"], &[trained])),
            ("export", run("ba-export", &["-q", "--model", "model", "-o", "onnx"], &[])),
        ]
    }

    /// The victims are what they were.
    fn unharmed(&self, what: &str) {
        for victim in &self.victims {
            assert_eq!(fs::read_to_string(victim).unwrap(), PRECIOUS, "{what}: {}", victim.display());
        }
    }
}

/// Ends with 0, or 1 and one line: nothing else.
fn ends_well(what: &str, done: &Done) {
    assert!(matches!(done.code, Some(0 | 1)), "{what}: {done:#?}");
    assert!(!done.stderr.contains("panicked"), "{what}: {done:#?}");
}

fn add(folder: &Path, edit: &dyn Fn(&mut Value)) {
    let mut changed = manifest(folder);
    edit(&mut changed);
    write_manifest(folder, &changed);
}

/// The name of another file where the manifest lists files, or names a graph or the tokenizer; in the bundle in use, in
/// the stored version, in both, in this format and in another.
#[test]
fn names_that_lead_out_of_the_bundle() {
    let record = |name: &str| json!({"name": name, "bytes": PRECIOUS.len(), "sha256": "00"});
    let places = ["bundle", "version", "both"];
    for (i, shape) in ["absolute", "../victim.txt", "../sub/victim.txt", "x/../../victim.txt"].iter().enumerate() {
        for (j, place) in places.iter().enumerate() {
            let scene = Scene::new();
            let absolute = scene.victims[0].display().to_string();
            let name = if *shape == "absolute" { absolute.as_str() } else { shape };
            let edit = |m: &mut Value| {
                m["files"].as_array_mut().unwrap().push(record(name));
                match (i + j) % 3 {
                    0 => m["format"] = 1.into(),
                    1 => m["tokenizer"]["file"] = name.into(),
                    _ => {}
                }
            };
            for folder in [&scene.bundle, &scene.version] {
                let mine = if *folder == scene.bundle { "bundle" } else { "version" };
                if *place == "both" || *place == mine {
                    add(folder, &edit);
                }
            }
            for (command, done) in scene.commands() {
                let what = format!("{name} in {place}, {command}");
                ends_well(&what, &done);
                scene.unharmed(&what);
            }
        }
    }
}

/// Links and pipes where the tool writes or reads: as files of the bundle, as the lock, as the store, as a version.
#[test]
fn links_and_pipes_in_every_place() {
    let places = [
        "onnx/adapter.onnx",
        "onnx/bundle.json",
        "onnx.versions/.lock",
        "onnx.versions/0001/adapter.onnx",
        "onnx.versions/0001/bundle.json",
        "onnx.versions/0001",
        "onnx.versions",
    ];
    for place in places {
        for kind in ["link", "pipe"] {
            let scene = Scene::new();
            let path = scene.study.dir.path().join(place);
            let elsewhere = scene.study.dir.path().join("elsewhere");
            if path.exists() {
                fs::rename(&path, &elsewhere).unwrap();
            } else {
                fs::write(&elsewhere, PRECIOUS).unwrap();
            }
            match kind {
                "link" => symlink(&elsewhere, &path).unwrap(),
                _ => assert!(Command::new("mkfifo").arg(&path).status().unwrap().success()),
            }
            let before = everything(&elsewhere);
            for (command, done) in scene.commands() {
                let what = format!("a {kind} at {place}, {command}");
                ends_well(&what, &done);
                assert_eq!(everything(&elsewhere), before, "{what}");
                if place != "onnx.versions" {
                    scene.unharmed(&what);
                }
                // A damaged bundle may be replaced as a whole; nothing may go through the link or wait for the pipe.
                let refused = match place {
                    "onnx/adapter.onnx" | "onnx/bundle.json" => command == "infer",
                    "onnx.versions/.lock" => ["to", "rollback", "apply"].contains(&command),
                    "onnx.versions/0001" | "onnx.versions" => !["infer", "export"].contains(&command),
                    _ => command == "to",
                };
                if refused {
                    assert_eq!(done.code, Some(1), "{what}: {done:#?}");
                }
            }
        }
    }
}

/// All names and bytes below a file or folder.
fn everything(path: &Path) -> Vec<(String, Vec<u8>)> {
    if path.is_file() {
        return vec![(String::new(), fs::read(path).unwrap())];
    }
    let inner = names(path).into_iter().filter(|name| path.join(name).is_dir());
    let inner = inner.flat_map(|name| snapshot(&path.join(name)));
    inner.chain(snapshot(path)).collect()
}
