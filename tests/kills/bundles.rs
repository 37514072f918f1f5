//! Exports over an old bundle, trained weights applied, trainings: killed, alone and two at once.

use std::fs;
use std::path::Path;
use std::process::Command;

use brain_adapter::bundle::Bundle;
use brain_adapter::checkpoint::TrainingState;
use support::commands::{self, ba_train, command, manifest, names, save, tiny_model};
use support::fitting;
use support::trained::{Study, changed};

use super::harness::{Target, kill};

/// Nothing of unfinished writers is left next to a bundle or in it.
fn tidy(folder: &Path) {
    let left: Vec<String> =
        names(folder).into_iter().filter(|n| n.contains(".partial-") || n.contains(".writing-")).collect();
    assert!(left.is_empty(), "{}: {left:?}", folder.display());
}

/// The bundle there is whole, and of one of these precisions.
fn whole(bundle: &Path, precisions: &[&str]) {
    Bundle::open(bundle).unwrap_or_else(|e| panic!("{e}"));
    let found = manifest(bundle)["parts"]["vision"]["precision"].as_str().unwrap().to_owned();
    assert!(precisions.contains(&found.as_str()), "{found}");
}

fn exports(processes: usize, seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("onnx");
    let export = |precision: &str| {
        let mut command = command("ba-export");
        command.arg("--model").arg(tiny_model()).arg("--quiet").args(["--quantize", precision]).arg("-o").arg(&bundle);
        command
    };
    commands::finish(&mut export("none")).ok();
    let mut turn = 0;
    let mut next = || {
        turn += 1;
        export(["fp16", "none"][turn % 2])
    };
    let mut check = || whole(&bundle, &["fp32", "fp16"]);
    // Of two at once, one may find that the other writes there.
    kill(&mut Target { command: &mut next, check: &mut check, processes, ends: &[0, 1][..processes] }, seed);
    commands::finish(&mut export("fp16")).ok();
    whole(&bundle, &["fp16"]);
    tidy(dir.path());
    assert_eq!(names(dir.path()), ["onnx"]);
}

#[test]
fn an_export_over_an_old_bundle() {
    exports(1, 1);
}

#[test]
fn two_exports_of_one_bundle() {
    exports(2, 2);
}

/// Every version that is listed can be brought back.
fn versions(bundle: &Path) -> usize {
    let listed = ba_train(&[&"apply", &"--versions", &"--json", &"--bundle", &bundle]).ok().json();
    let listed = listed["versions"].as_array().unwrap();
    let store = bundle.with_extension("versions");
    for version in listed.iter().filter(|v| v["in_use"] != true) {
        let folder = store.join(format!("{:04}", version["version"].as_u64().unwrap()));
        Bundle::open(&folder).unwrap_or_else(|e| panic!("{version}: {e}"));
    }
    listed.len()
}

fn applied(processes: usize, seed: u64) {
    let study = Study::new("tiny", "tiny");
    let bundle = study.export("none", "onnx", &study.model);
    let mut turn = 0;
    let mut next = || {
        turn += 1;
        let trained = study.dir.path().join(format!("trained{turn}.safetensors"));
        save(&trained, changed("tiny", turn));
        let mut command: Command = command("ba-train");
        command.args(["apply", "--quiet", "--checkpoint"]).arg(trained).arg("--bundle").arg(&bundle);
        command
    };
    let mut before = 0;
    let mut check = || {
        whole(&bundle, &["fp32"]);
        let now = versions(&bundle);
        assert!(now >= before, "a version was lost: {before}, then {now}");
        before = now;
    };
    kill(&mut Target { command: &mut next, check: &mut check, processes, ends: &[0, 1][..processes] }, seed);
    study.apply(&bundle, &[]).ok();
    assert!(versions(&bundle) > 2);
    for folder in [study.dir.path(), &study.dir.path().join("onnx.versions"), &bundle] {
        tidy(folder);
    }
}

#[test]
fn trained_weights_applied() {
    applied(1, 3);
}

#[test]
fn two_that_apply_trained_weights() {
    applied(2, 4);
}

/// Two trainings into one folder: one trains, the other says that it is in use; the result is that of an unbroken one.
/// (One alone: `train`, fit_resume.)
#[test]
fn two_trainings_of_one_folder() {
    let study = fitting::Study::new("tlp");
    let args = ["--save-every", "0", "--epochs", "4", "--frozen-adapter"];
    study.fit("unbroken", &args).ok();
    let run = study.path("run");
    let mut next = || {
        let mut command = study.command("run", &args);
        command.arg("--resume");
        command
    };
    let mut check = || {
        for name in ["last", "best"].iter().filter(|name| run.join(name).exists()) {
            TrainingState::open(run.join(name)).unwrap();
        }
        let history = fs::read_to_string(run.join("history.jsonl")).unwrap_or_default();
        assert!(history.is_empty() || history.ends_with('\n'));
        // A training that ended would have nothing left to kill.
        if history.lines().count() == 4 {
            fs::remove_dir_all(&run).unwrap();
        }
    };
    kill(&mut Target { command: &mut next, check: &mut check, processes: 2, ends: &[0, 1] }, 5);
    let mut last = study.command("run", &args);
    commands::finish(last.arg("--resume")).ok();
    assert_eq!(study.results("run"), study.results("unbroken"));
    tidy(&run);
}
