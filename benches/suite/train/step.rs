//! One step of the mode `tlp`: there, loss, back, AdamW. Both sides read the same weights and the same case, and their
//! losses are compared: all rows do the same.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use brain_adapter::checkpoint::Checkpoint;
use brain_adapter::config::{AdapterKind, Config};
use brain_adapter::model::keys;
use brain_adapter::tensor::LazyTensor;

use super::operations::{self, of_step};
use super::{RATE, noise, prepare, rng, save, threads};
use crate::convert::enough_memory;
use crate::floors;
use crate::process::{Contender, Outcome};
use crate::report::Bound::{AtLeast, AtMost};
use crate::report::{Figure, Floor, Report};
use crate::suite::{Suite, compare};

const OURS: &str = "ours, `--activations recompute`";
const OURS_SAVE: &str = "ours, `--activations save`";
const TORCH: &str = "PyTorch sdpa, `torch.utils.checkpoint` a block";
const TORCH_SAVE: &str = "PyTorch sdpa, all kept";
const TORCH_EAGER: &str = "PyTorch, all kept, attention as MONAI writes it";
/// Steps of a round; the first one loads and allocates, and doesn't count.
pub const STEPS: usize = 3;
/// How far losses may be apart, of themselves: float32 in another order, and AdamW, whose first steps are as large for
/// the smallest gradients.
const LOSS_TOLERANCE: f64 = 1e-4;

/// What all rows read.
struct Files {
    config: PathBuf,
    adapter: PathBuf,
    vision: PathBuf,
    artifacts: PathBuf,
    case: PathBuf,
}

pub fn run(suite: &mut Suite, kind: AdapterKind) -> Result<()> {
    let files = Files::make(suite, kind)?;
    let config = Config::load(&files.config)?;
    let what = format!(
        "training step, {} adapter, {}³ voxels, {} tokens",
        if kind == AdapterKind::Bottleneck2d { "2-D" } else { "3-D" },
        config.volume.size,
        config.run_grid().iter().product::<usize>() + 1
    );
    let rounds = suite.options.rounds;
    let mut contenders: Vec<Contender> = [(OURS, "recompute"), (OURS_SAVE, "save")]
        .map(|(name, activations)| Contender::new(name, rounds, || ours(suite, &files, activations)))
        .into();
    for (name, rounds, attention, activations) in [
        (TORCH, rounds, "sdpa", "recompute"),
        (TORCH_SAVE, rounds, "sdpa", "save"),
        // Slow, large, and far from the others: once is enough.
        (TORCH_EAGER, 1, "eager", "save"),
    ] {
        let (suite, files, held) = (&*suite, &files, if attention == "eager" { scores(&config) } else { 0.0 });
        contenders.push(Contender::new(name, rounds, move || {
            enough_memory(held)?;
            theirs(suite, files, attention, activations)
        }));
    }
    contenders.extend(floors::again(suite));
    let mut rows = compare(&what, contenders);
    floors::absorb(suite, &mut rows);
    let counted = of_step(&config);
    for row in &mut rows {
        row.floor = Some(Floor::Products([counted.least, 0.0]));
    }
    same_losses(&mut rows);
    suite.report.extend(rows);
    // A tiny model is there to show that everything runs.
    if !suite.options.small {
        ratios(&mut suite.report, &what);
    }
    suite.report.notes.push(note(&what, &counted));
    Ok(())
}

fn ours(suite: &Suite, files: &Files, activations: &str) -> Result<Command, String> {
    let mut command = suite.child(&["train-step"])?;
    command.args([&files.artifacts, &files.case]).arg(activations);
    Ok(command)
}

fn theirs(suite: &Suite, files: &Files, attention: &str, activations: &str) -> Result<Command, String> {
    let mut command = suite.peer("torch_train.py", &["step"])?;
    command.args([&files.config, &files.adapter, &files.vision, &files.case]).args([attention, activations]);
    command.args([STEPS.to_string(), threads().to_string(), RATE.to_string()]);
    Ok(command)
}

/// Bytes of the attention's weights of all blocks, and of one more that is made.
fn scores(config: &Config) -> f64 {
    let tokens = config.run_grid().iter().product::<usize>() as f64 + 1.0;
    4.0 * (config.vision.layers as f64 + 1.0) * config.vision.heads as f64 * tokens * tokens
}

/// Rows whose losses are not those of the first did something else.
fn same_losses(rows: &mut [Figure]) {
    let losses = |outcome: &Outcome| -> Option<Vec<f64>> {
        outcome.as_ref().ok()?.told["losses"].as_array()?.iter().map(serde_json::Value::as_f64).collect()
    };
    let Some(expected) = rows.first().and_then(|row| losses(&row.outcome)) else { return };
    for row in rows.iter_mut().filter(|row| row.outcome.is_ok()) {
        let found = losses(&row.outcome).unwrap_or_default();
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= LOSS_TOLERANCE * b.abs().max(1.0);
        if found.len() != expected.len() || !found.iter().zip(&expected).all(near) {
            row.outcome = Err(format!("not the same step: losses {found:?}, ours {expected:?}"));
        }
    }
}

/// Each way against PyTorch's same way. What was aimed at: no slower, no larger.
fn ratios(report: &mut Report, what: &str) {
    for (ours, theirs) in [(OURS, TORCH), (OURS_SAVE, TORCH_SAVE)] {
        let speed = report.speedup(what, ours, theirs);
        let of = |memory: &dyn Fn(&str) -> Option<f64>| Some(memory(ours)? / memory(theirs)?);
        let peak = of(&|with| report.peak_mb(what, with));
        let anonymous = of(&|with| report.anon_mb(what, with));
        let name = format!("{what}: {ours} against {theirs}");
        report.target(name.clone(), speed, AtLeast(1.0), "times as fast");
        report.target(format!("{name}: peak"), peak, AtMost(0.5), "times theirs");
        report.target(format!("{name}: anonymous"), anonymous, AtMost(1.0), "times theirs");
    }
}

fn note(what: &str, counted: &operations::Step) -> String {
    let operations::Step { least, scores, blocks } = counted;
    let g = |operations: f64| format!("{:.*} GFLOP", if operations < 1e10 { 2 } else { 0 }, operations / 1e9);
    format!(
        "A {what}: the mode `tlp`, one case, there and back and AdamW; the median of the {} steps after a process's first, in the \
         best round. All rows read the same weights (mapped) and case, and their losses agree to {LOSS_TOLERANCE}. The floor of all \
         rows is {}, from shapes alone (benches/suite/train/operations.rs). Beyond it, scores of attention computed again are {} \
         (all rows but the one that keeps them) and blocks computed again at most {}; PyTorch's last block computes all tokens.",
        STEPS - 1,
        g(*least),
        g(*scores),
        g(*blocks),
    )
}

impl Files {
    fn make(suite: &Suite, kind: AdapterKind) -> Result<Self> {
        let small = suite.options.small;
        let folder = suite.path(&format!("train-{kind:?}"));
        std::fs::create_dir_all(&folder)?;
        let checkpoint = if small { suite.synthesize("tiny")? } else { suite.checkpoint(None)? };
        let mut files = Self {
            config: checkpoint.join("config.json"),
            adapter: checkpoint.join("adapter.safetensors"),
            vision: checkpoint.join("m3d"),
            artifacts: folder.join("artifacts"),
            case: folder.join("case.safetensors"),
        };
        let mut config = Config::load(&files.config)?;
        if kind == AdapterKind::Bottleneck3d {
            config.adapter.kind = kind;
            files.adapt(&config, &folder)?;
        }
        let (size, mut rng) = (config.volume.size, rng(5));
        let case = [
            ("volumes", noise(&[1, size, size, size], 1.0, &mut rng)),
            ("text", noise(&[1, config.text.hidden], 1.0, &mut rng)),
            ("labels", LazyTensor::from_i64(&[1], &[1])),
        ];
        save(&files.case, case.map(|(name, tensor)| (name.to_owned(), tensor)))?;
        prepare(&files.config, &files.adapter, &files.vision, &files.artifacts)?;
        Ok(files)
    }

    /// Another adapter before the same transformer, with the same heads.
    fn adapt(&mut self, config: &Config, folder: &Path) -> Result<()> {
        let heads = Checkpoint::open(&self.adapter)?;
        let mut tensors: Vec<(String, LazyTensor)> = heads
            .iter()
            .filter(|(name, _)| !name.starts_with("adapter."))
            .map(|(name, tensor)| (name.to_owned(), tensor.clone()))
            .collect();
        let mut rng = rng(6);
        for (name, shape) in keys::adapter(config) {
            let inputs = shape.iter().skip(1).product::<usize>() as f32;
            let ones = shape.len() == 1 && (name.ends_with(".weight") || name.ends_with(".running_var"));
            let tensor = match ones {
                true => LazyTensor::from_f32(&shape, &vec![1.0; shape[0]]),
                false => noise(&shape, (3.0 / inputs).sqrt(), &mut rng),
            };
            tensors.push((name, tensor));
        }
        (self.config, self.adapter) = (folder.join("config.json"), folder.join("adapter.safetensors"));
        save(&self.adapter, tensors)?;
        std::fs::write(&self.config, serde_json::to_vec_pretty(config)?)?;
        Ok(())
    }
}
