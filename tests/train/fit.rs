//! `ba-train fit`: the same bytes from the same seed, what `--resume` refuses, and what is left after a failure.

#![cfg(unix)]

use std::fs;
use std::path::Path;

use brain_adapter::checkpoint::{Checkpoint, TrainingState};
use brain_adapter::files::Lock;
use brain_adapter::tensor::LazyTensor;
use serde_json::Value;
use support::commands::{
    self, ba_export, ba_infer, ba_train, command, finish, names, report, tiny_bundle, tiny_copy, tiny_model,
};
use support::fitting::{RESULTS, Study, limited, rows, well_formed, write_rows};

/// Every tensor of a checkpoint by name.
fn all(state: &TrainingState) -> std::collections::BTreeMap<String, LazyTensor> {
    state.trainable.iter().chain(&state.frozen).map(|(name, t)| (name.clone(), t.clone())).collect()
}

fn last(study: &Study, run: &str) -> TrainingState {
    TrainingState::open(study.path(run).join("last")).unwrap()
}

fn all_finite(state: &TrainingState) -> bool {
    let finite = |t: &LazyTensor| t.to_f32().unwrap().iter().all(|x| x.is_finite());
    let moments = state.optimizer.iter().flat_map(|o| o.moments.values().flat_map(|m| [&m.first, &m.second]));
    all(state).values().all(finite) && moments.into_iter().all(finite)
}

#[test]
fn a_seed_decides_every_byte() {
    let study = Study::new("tlp");
    let args = ["--epochs", "3", "--accumulate", "2", "--balance", "sampling", "--warmup", "0.2"];
    for run in ["one", "two"] {
        study.fit(run, &args).ok();
    }
    study.fit("other", &[args.as_slice(), &["--seed", "1"]].concat()).ok();
    // Resuming a finished training changes nothing.
    study.fit("two", &[args.as_slice(), &["--resume"]].concat()).ok();
    assert_eq!(study.results("one"), study.results("two"));
    for ((name, one), other) in RESULTS.iter().zip(study.results("one")).zip(study.results("other")) {
        assert_ne!(one, other, "{name}");
    }
}

#[test]
fn a_training_resumes_only_with_its_own_settings() {
    let study = Study::new("tlp");
    let args = ["--epochs", "2"];
    study.fit("run", &args).ok();
    let before = study.results("run");
    study.fit("run", &args).fails_with_one_line("output.exists").naming(&["--resume"]);
    let changed: [(&[&str], &str); 11] = [
        (&["--lr", "1e-3"], "cannot resume with other settings: --lr was 0.002, now 0.001"),
        (&["--warmup", "0.5"], "--warmup was 0.05, now 0.5"),
        (&["--schedule", "constant"], "--schedule was cosine, now constant"),
        (&["--seed", "7"], "--seed was 0, now 7"),
        (&["--epochs", "3"], "--epochs was 2, now 3"),
        (&["--threads", "2"], "--threads was 1, now 2"),
        (&["--batch", "3"], "--batch was 2, now 3"),
        (&["--accumulate", "2"], "--accumulate was 1, now 2"),
        (&["--clip", "1"], "--clip was none, now 1"),
        (&["--patience", "1"], "--patience was none, now 1"),
        (&["--balance", "weights"], "--balance was none, now weights"),
    ];
    for (flags, named) in changed {
        // A flag given twice is refused: those of the study are left out where the test has its own.
        let mut command = command("ba-train");
        command.args(["fit", "--resume"]).arg("--data").arg(&study.data).arg("--artifacts").arg(&study.artifacts);
        command.arg("--bundle").arg(tiny_bundle()).arg("-o").arg(study.path("run")).args(flags);
        for (flag, value) in [("--threads", "1"), ("--batch", "2"), ("--lr", "2e-3"), ("--epochs", "2")] {
            if !flags.contains(&flag) {
                command.args([flag, value]);
            }
        }
        finish(&mut command).fails("training.resume").naming(&[named]);
    }
    // The same list by another name is the same list.
    let mut command = command("ba-train");
    command.args(["fit", "--resume", "--data", "cohort.csv", "--artifacts", "training", "-o", "run", "--bundle"]);
    command.arg(tiny_bundle()).args(["--threads", "1", "--batch", "2", "--lr", "2e-3", "--epochs", "2"]);
    finish(command.current_dir(study.dir.path())).ok();
    let mut other = rows();
    other[3] = other[3].replace("CN", "AD");
    write_rows(&study.data, &other);
    study
        .fit("run", &[args.as_slice(), &["--resume"]].concat())
        .fails("training.resume")
        .naming(&["the cohort (--data) changed"]);
    assert_eq!(study.results("run"), before);
}

/// Files that are not a state to resume from.
#[test]
fn states_of_others_are_refused() {
    let study = Study::new("mri");
    let args = ["--epochs", "1", "--resume"];
    study.fit("run", &args).ok();
    let path = study.path("run").join("last");
    let whole = fs::read(&path).unwrap();
    let state = TrainingState::open(&path).unwrap();
    let position: Value = serde_json::from_str(&state.properties.strings["brain-adapter.fit"]).unwrap();
    let with = |changes: &[(&str, Value)]| {
        let (mut state, mut position) = (state.clone(), position.clone());
        for (name, value) in changes {
            position[*name] = value.clone();
        }
        state.properties.strings.insert("brain-adapter.fit".into(), position.to_string());
        state
    };
    let refused = |state: &TrainingState, why: &str| {
        state.write(&path).unwrap();
        study.fit("run", &args).fails("training.resume").naming(&["last", why]);
    };
    refused(&TrainingState { properties: Default::default(), ..state.clone() }, "not written by ba-train fit");
    refused(&with(&[("epoch", 3.into())]), "contradicts");
    refused(&with(&[("waited", 9.into())]), "contradicts");
    refused(&with(&[("seen", i64::MAX.into())]), "contradicts");
    refused(&with(&[("next", (-1).into())]), "cannot be resumed");
    refused(
        &with(&[
            ("epoch", 0.into()),
            ("history", Value::Array(vec![])),
            ("finished", false.into()),
            ("next", 99.into()),
        ]),
        "no batch 100",
    );
    refused(&with(&[("surprise", 1.into())]), "surprise");
    let mut step = state.clone();
    step.optimizer.as_mut().unwrap().step = i64::MAX;
    refused(&step, "contradicts");
    let mut short = state.clone();
    short.frozen.remove("adapter.block.bn1.running_mean").or_else(|| short.frozen.pop_first().map(|(_, t)| t)).unwrap();
    refused(&short, "its tensors are not those");
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    study.fit("run", &args).fails("checkpoint.truncated").naming(&["last"]);
    fs::write(&path, &whole).unwrap();
    study.fit("run", &args).ok();
}

#[test]
fn a_scan_that_cannot_be_read_costs_no_step() {
    for (broken, kept) in [("s4.nii", None), ("s11.nii", Some(5))] {
        let study = Study::new("tlp");
        let args = ["--epochs", "2", "--save-every", "1e9"];
        study.fit("unbroken", &args).ok();
        let good = fs::read(study.path(broken)).unwrap();
        fs::write(study.path(broken), &good[..good.len() / 2]).unwrap();
        let done = study.fit("run", &args);
        assert_eq!(done.code, Some(1), "{done:#?}");
        assert!(done.stderr.contains(broken) && done.stderr.contains("error["), "{done:#?}");
        // A validation case is read after an epoch's five steps; a training case somewhere within them.
        let steps = last(&study, "run").optimizer.unwrap().step;
        assert!(kept.map_or(steps < 5, |kept| steps == kept), "{steps}");
        fs::write(study.path(broken), good).unwrap();
        study.fit("run", &[args.as_slice(), &["--resume"]].concat()).ok();
        assert_eq!(study.results("run"), study.results("unbroken"));
    }
}

/// A limit on the size of files stands for a full disk: writing fails in the middle.
#[test]
fn what_scans_and_reports_warn_of_is_told_once_each() {
    let study = Study::new("tlp");
    // No orientation stored, and more tokens than the language model reads.
    fs::copy(support::package("tests/data/nifti/xf_neither.nii.gz"), study.path("bare.nii.gz")).unwrap();
    fs::write(study.path("r0.txt"), "memory ".repeat(2000)).unwrap();
    let mut changed = rows();
    changed[1] = changed[1].replace("s1.nii", "bare.nii.gz");
    write_rows(&study.data, &changed);
    for (run, args) in
        [("trained", &[][..]), ("frozen", &["--frozen-adapter"]), ("frozen", &["--frozen-adapter", "--resume"])]
    {
        let done = study.fit(run, &[&["--epochs", "2", "--json"], args].concat()).ok();
        let warnings = done.json()["warnings"].clone();
        for (code, file) in [("no_orientation", "bare.nii.gz: "), ("report_truncated", "r0.txt: ")] {
            let told = |line: &&str| line.starts_with(&format!("warning[{code}]")) && line.contains(file);
            assert_eq!(done.stderr.lines().filter(told).count(), 1, "{run} {file}{}", done.stderr);
            let same = warnings.as_array().unwrap().iter().filter(|w| w["code"] == code);
            assert_eq!(same.filter(|w| w["message"].as_str().unwrap().contains(file)).count(), 1, "{warnings}");
        }
    }
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint_whole() {
    let study = Study::new("tlp");
    let args = ["--epochs", "4", "--save-every", "0"];
    study.fit("unbroken", &args).ok();
    let half = fs::metadata(study.path("unbroken/last")).unwrap().len() / 2;
    let none = limited(&study.command("run", &args), half).fails("io").naming(&["last"]);
    assert!(!study.path("run/last").exists(), "{none:#?}");
    study.fit("run", &[args.as_slice(), &["--resume"]].concat()).ok();
    assert_eq!(study.results("run"), study.results("unbroken"));
    // An old checkpoint, of the first epoch's end, stays as it was.
    fs::remove_dir_all(study.path("run")).unwrap();
    let broken = fs::read(study.path("s12.nii")).unwrap();
    fs::write(study.path("s12.nii"), b"").unwrap();
    assert_eq!(study.fit("run", &args).code, Some(1));
    fs::write(study.path("s12.nii"), broken).unwrap();
    let before = fs::read(study.path("run/last")).unwrap();
    assert_eq!(last(&study, "run").optimizer.unwrap().step, 5);
    let resume = [args.as_slice(), &["--resume"]].concat();
    limited(&study.command("run", &resume), half).fails("io").naming(&["run/"]);
    assert_eq!(fs::read(study.path("run/last")).unwrap(), before);
    assert!(names(&study.path("run")).iter().all(|n| !n.starts_with('.')), "{:?}", names(&study.path("run")));
    study.fit("run", &resume).ok();
    assert_eq!(study.results("run"), study.results("unbroken"));
}

#[test]
fn two_trainings_do_not_share_a_folder() {
    let study = Study::new("mri");
    fs::create_dir(study.path("run")).unwrap();
    let held = Lock::try_temporary(&study.path("run/.lock")).unwrap().unwrap();
    study.fit("run", &["--epochs", "1", "--resume"]).fails_with_one_line("output.in_use").naming(&["at work"]);
    drop(held);
    study.fit("run", &["--epochs", "1"]).ok();
}

#[test]
fn a_training_that_diverges_ends_before_it_spoils_anything() {
    for (mode, frozen) in [("tlp", false), ("mri", false), ("tlp", true)] {
        let study = Study::new(mode);
        let mut command = command("ba-train");
        command.args(["fit", "--lr", "1e30", "--warmup", "0", "--batch", "2", "--threads", "1", "--save-every", "0"]);
        command.arg("--data").arg(&study.data).arg("--artifacts").arg(&study.artifacts);
        command.arg("--bundle").arg(tiny_bundle()).arg("-o").arg(study.path("run"));
        command.args(frozen.then_some("--frozen-adapter"));
        let done = finish(&mut command).fails("training.diverged").naming(&["step ", "run/last"]);
        assert!(done.stderr.contains(".nii") || done.stderr.contains("optimizer"), "{done:#?}");
        assert!(all_finite(&last(&study, "run")), "{mode}");
    }
}

#[test]
fn cohorts_that_cannot_be_trained_on() {
    let study = Study::new("tlp");
    let refused = |rows: &[String], words: &[&str]| {
        write_rows(&study.data, rows);
        study.fit("run", &["--epochs", "1"]).fails("training.data").naming(words);
        assert!(!study.path("run").exists());
    };
    let mut missing = rows();
    missing[4] = missing[4].replace("r4.txt", "");
    refused(&missing, &["line 6", "no report", "mri"]);
    let without = |word: &str| rows().into_iter().filter(|row| !row.contains(word)).collect::<Vec<_>>();
    refused(&without("AD,train"), &["AD"]);
    refused(&without("validation"), &["validation"]);
    // The image alone needs no report.
    let mri = Study::new("mri");
    write_rows(&mri.data, &missing);
    mri.fit("run", &["--epochs", "1"]).ok();
}

#[test]
fn bundles_and_folders_that_do_not_fit() {
    let study = Study::new("tlp");
    let bundle = tiny_copy();
    let mut manifest = commands::manifest(bundle.path());
    manifest["config"]["text"]["max_tokens"] = 77.into();
    commands::write_manifest(bundle.path(), &manifest);
    let fit = |bundle: &Path, output: &Path, args: &[&str]| {
        let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> =
            vec![&"fit", &"--data", &study.data, &"--artifacts", &study.artifacts];
        all.extend([&"--bundle" as &dyn AsRef<std::ffi::OsStr>, &bundle, &"-o", &output]);
        all.extend(args.iter().map(|a| a as &dyn AsRef<std::ffi::OsStr>));
        ba_train(&all)
    };
    let done = fit(bundle.path(), &study.path("run"), &[]);
    assert_eq!(done.code, Some(1), "{done:#?}");
    assert!(done.stderr.contains("error[config.contradiction]") || done.stderr.contains("error[bundle."), "{done:#?}");
    fs::write(study.path("file"), "").unwrap();
    fit(tiny_bundle(), &study.path("file"), &[]).fails("io").naming(&["file"]);
    fit(tiny_bundle(), &study.path("file/run"), &[]).fails("io").naming(&["file"]);
    for flags in [
        ["--lr", "0"],
        ["--lr", "nan"],
        ["--warmup", "1"],
        ["--save-every", "nan"],
        ["--save-every=-1", "-q"],
        ["--weight-decay=-1", "-q"],
    ] {
        fit(tiny_bundle(), &study.path("run"), &flags).fails("config.value");
    }
}

#[test]
fn what_is_done_about_uneven_classes_changes_the_result() {
    let study = Study::new("mri");
    for how in ["none", "weights", "sampling"] {
        study.fit(how, &["--epochs", "1", "--balance", how]).ok();
    }
    let steps = |run: &str| last(&study, run).optimizer.unwrap().step;
    // 9 cases; evened out, 3 classes of 5.
    assert_eq!(["none", "weights", "sampling"].map(steps), [5, 5, 8]);
    assert_ne!(study.results("none"), study.results("weights"));
}

#[test]
fn results_go_into_bundles_and_back() {
    let study = Study::new("tlp");
    let done = study.fit("run", &["--epochs", "2", "--embed", "1", "--json", "-v"]).ok();
    let summary = done.json();
    assert_eq!(summary["history"].as_array().unwrap().len(), 2);
    assert!(done.stderr.contains("epoch") && done.stderr.contains("macro-F1"), "{done:#?}");
    for name in ["history.svg", "embedding-001.svg"] {
        let text = fs::read_to_string(study.path("run").join(name)).unwrap();
        well_formed(name, &text);
    }
    assert!(!study.path("run/embedding-002.svg").exists());
    let signature = |path: &Path| {
        let file = Checkpoint::open(path).unwrap();
        file.iter().map(|(name, t)| (name.to_owned(), t.dtype(), t.shape().to_vec())).collect::<Vec<_>>()
    };
    let trained = study.path("run/adapter.safetensors");
    let sorted = |mut all: Vec<_>| {
        all.sort_by(|a: &(String, _, _), b| a.0.cmp(&b.0));
        all
    };
    assert_eq!(sorted(signature(&trained)), sorted(signature(&tiny_model().join("adapter.safetensors"))));
    let (exported, applied) = (study.path("onnx"), tiny_copy());
    ba_export(&[&"--model", &tiny_model(), &"--adapter", &trained, &"-o", &exported]).ok();
    ba_train(&[&"apply", &"--checkpoint", &study.path("run/best"), &"--bundle", &applied.path()]).ok();
    let report = report(study.dir.path());
    let answer = |bundle: &Path| {
        let scan = study.path("s0.nii");
        let done = ba_infer(&[&scan, &"--bundle", &bundle, &"--report", &report, &"--json", &"--threads", &"1"]).ok();
        done.json()["logits"].clone()
    };
    assert_eq!(answer(&exported), answer(applied.path()));
    assert_ne!(answer(&exported), answer(tiny_bundle()));
}
