//! What a predictor leaves behind. One test, in a process of its own: it counts the process's threads.

#![cfg(target_os = "linux")]

use std::path::Path;

use brain_adapter::infer::{Mode, Options, Prediction, Predictor};
use support::commands;
use support::process::alone;

fn options() -> Options {
    Options { as_on_gpu: true, library: Some(commands::library()), ..Options::default() }
}

fn answer(predictor: &Predictor, scan: &Path) -> brain_adapter::Result<Prediction> {
    let reader = predictor.reader();
    predictor.predict_with_report("Memory complaints for two years. MMSE 24.", &mut None, || reader.read(scan))
}

/// Threads of this process, and of what it has loaded.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// A dropped predictor ends all its sessions and their threads, whatever it was doing: what is left when the process
/// ends would be torn down in the wrong order.
#[test]
fn nothing_runs_when_a_predictor_is_gone() {
    alone(module_path!(), "nothing_runs_when_a_predictor_is_gone", predict_and_go);
}

fn predict_and_go() {
    // What is started once a process and stays is there by then.
    let predictor = Predictor::open(commands::tiny_bundle(), options()).unwrap();
    answer(&predictor, &commands::scan()).unwrap();
    drop(predictor);
    std::thread::sleep(std::time::Duration::from_millis(500));
    let before = threads();
    for mode in [Mode::Resident, Mode::OneShot] {
        for work in 0..4 {
            let options = Options { mode: Some(mode), ..options() };
            let predictor = Predictor::open(commands::tiny_bundle(), options).unwrap();
            if work > 0 {
                predictor.preload().unwrap();
            }
            match work {
                2 => drop(answer(&predictor, &commands::scan()).unwrap()),
                3 => drop(answer(&predictor, Path::new("none.nii")).unwrap_err()),
                _ => {}
            }
            drop(predictor);
            // A joined thread's entry goes a moment later.
            let mut rounds = 0;
            while threads() > before && rounds < 400 {
                std::thread::sleep(std::time::Duration::from_millis(5));
                rounds += 1;
            }
            assert!(threads() <= before, "{mode} {work}: {} threads, {before} before", threads());
        }
    }
}
