//! Seconds and peak memory of the full-size model's export, adapter and vision pass.
//!
//! ```text
//! cargo bench --bench stages [-- adapter | vision]
//! BA_PYTHON=/path/to/python cargo bench --bench stages        # beside PyTorch, runs interleaved
//! ```
//!
//! The model has the paper's sizes (256³ voxels, 64 slices, 4097 tokens of 768, 12 layers) and seeded random weights,
//! different in every layer: ONNX Runtime stores equal weights once, which would flatter it. Every run is a process
//! of its own; seconds are those of the work alone (without start and loading), the best of the runs; peak memory is the
//! whole process's.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod support;

use std::path::Path;
use std::process::Command;

use brain_adapter::export::{self, Plan, Sources};
use brain_adapter::progress::Silent;
use support::{best, checkpoint, measure, peak_kib, run};

const RUNS: usize = 2;
const CHILD: &str = "BA_BENCH_STAGE";

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    if let Some(stage) = std::env::var_os(CHILD) {
        let path = std::env::args().nth(1).expect("the child's folder");
        return child(&stage.to_string_lossy(), Path::new(&path));
    }
    checkpoint(&folder.path().join("checkpoints"));
    println!("{:<10} {:>24} {:>24} {:>24}", "stage", "brain_adapter", "PyTorch sdpa", "PyTorch as MONAI");
    let chosen: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    // The export makes the graphs that the others run.
    for stage in ["export", "adapter", "vision"]
        .into_iter()
        .filter(|s| *s == "export" || chosen.is_empty() || chosen.iter().any(|c| c == s))
    {
        let (mut ours, mut sdpa, mut eager) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..RUNS {
            let mut command = Command::new(std::env::current_exe().expect("own path"));
            ours.extend(measure(command.env(CHILD, stage).arg(folder.path())));
            let Some(python) = std::env::var_os("BA_PYTHON").filter(|_| stage != "export") else { continue };
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/torch_stages.py");
            sdpa.extend(measure(Command::new(&python).arg(&script).args([stage, "sdpa"])));
            // Slow, and far from the others: once is enough.
            if stage == "vision" && round == 0 {
                eager.extend(measure(Command::new(&python).arg(&script).args([stage, "eager"])));
            }
        }
        println!("{stage:<10} {:>24} {:>24} {:>24}", best(&ours), best(&sdpa), best(&eager));
    }
}

fn child(stage: &str, folder: &Path) {
    let output = folder.join("bundle");
    let seconds = match stage {
        "export" => {
            let plan = Plan::new(Sources::in_folder(&folder.join("checkpoints")).expect("a model folder"), output);
            export::run(&plan, &mut Silent).expect("exports").seconds
        }
        "adapter" => run(&output.join("adapter.onnx"), ("volume", &[1, 256, 256, 256]), "adapter"),
        _ => run(&output.join("vision.onnx"), ("adapter", &[1, 64, 256, 256]), "vision"),
    };
    println!("{seconds} {}", peak_kib());
}
