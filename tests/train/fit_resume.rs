//! `ba-train fit`, killed at random moments: what it left is whole at each of them, and `--resume` ends with the bytes
//! of an unbroken training.

#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use brain_adapter::checkpoint::TrainingState;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use support::commands;
use support::fitting::{RESULTS, Study};

/// Every file that there is opens and is finite; gives the number of steps that are kept.
fn check_files(run: &Path) -> i64 {
    let mut steps = 0;
    for name in ["last", "best"] {
        let path = run.join(name);
        if path.exists() {
            let state = TrainingState::open(&path).unwrap();
            let numbers = |t: &brain_adapter::tensor::LazyTensor| t.to_f32().unwrap();
            assert!(state.trainable.values().flat_map(numbers).all(f32::is_finite));
            steps = steps.max(state.optimizer.unwrap().step);
        }
    }
    if let Ok(text) = fs::read_to_string(run.join("history.jsonl")) {
        assert!(text.is_empty() || text.ends_with('\n'));
        for line in text.lines() {
            let _: brain_adapter::train::fit::EpochRecord = serde_json::from_str(line).unwrap();
        }
    }
    steps
}

/// When the last checkpoint was written.
fn written(run: &Path) -> Option<SystemTime> {
    fs::metadata(run.join("last")).and_then(|meta| meta.modified()).ok()
}

/// Kills a training `kills` times, in as many trainings as that needs, and compares each one's end with an unbroken
/// one's.
fn killed(args: &[&str], kills: usize, seed: u64) {
    let study = Study::new("tlp");
    let started = Instant::now();
    study.fit("unbroken", args).ok();
    let whole = started.elapsed();
    let expected = study.results("unbroken");
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let (mut done, mut within, mut trainings) = (0, 0, 0);
    while done < kills {
        trainings += 1;
        let name = format!("run{trainings}");
        let mut before = 0;
        loop {
            let mut command = study.command(&name, args);
            let mut child = command.arg("--resume").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            // Every second kill at any time; the others soon after a checkpoint was written, or while one is.
            let random = done % 2 == 0;
            let pause = whole.mul_f64(rng.random_range(0.0..if random { 0.9 } else { 0.1 }));
            let (started, mut since) = (Instant::now(), random.then(Instant::now));
            let kept = written(&study.path(&name));
            let mut status = child.try_wait().unwrap();
            while status.is_none() && (done >= kills || since.is_none_or(|at| at.elapsed() < pause)) {
                assert!(started.elapsed() < Duration::from_secs(60), "the training hangs");
                std::thread::sleep(Duration::from_millis(1));
                if since.is_none() && written(&study.path(&name)) != kept {
                    since = Some(Instant::now());
                }
                status = child.try_wait().unwrap();
            }
            if let Some(status) = status {
                assert!(status.success(), "{status}");
                break;
            }
            child.kill().unwrap();
            if child.wait().unwrap().success() {
                break;
            }
            done += 1;
            let steps = check_files(&study.path(&name));
            assert!(steps >= before, "steps were lost: {before}, then {steps}");
            within += usize::from(steps > 0);
            before = steps;
        }
        for ((file, found), expected) in RESULTS.iter().zip(study.results(&name)).zip(&expected) {
            assert_eq!(&found, expected, "{name}/{file} after {done} kills");
        }
        // What killed writers left is gone.
        assert!(commands::names(&study.path(&name)).iter().all(|n| !n.starts_with('.')));
    }
    println!("{args:?}: {done} kills, {within} of them after a first step, {trainings} trainings");
    assert!(within > kills / 4, "{within} of {done} kills came after the first step was kept: too few");
}

#[test]
fn killed_while_the_whole_model_is_trained() {
    let args = ["--save-every", "0", "--epochs", "8", "--accumulate", "2", "--patience", "6", "--balance", "sampling"];
    killed(&args, 24, 1);
}

#[test]
fn killed_while_the_heads_are_trained() {
    let args = ["--save-every", "0", "--epochs", "40", "--accumulate", "2", "--frozen-adapter", "--clip", "1"];
    killed(&args, 24, 2);
}

/// Nothing is kept within an epoch: what it had done is done again.
#[test]
fn killed_where_epochs_alone_are_kept() {
    killed(&["--save-every", "1e9", "--epochs", "6", "--balance", "weights", "--embed", "2"], 10, 3);
}
