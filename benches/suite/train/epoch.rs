//! `ba-train fit --frozen-adapter`: epochs of projections and classifier, on features that are there already.
//!
//! An epoch of the heads depends on the widths of their inputs alone, so the features come from a model that has those
//! of the full one and hardly anything else: tiny scans, one block of each transformer. Trained is by [`fit::run`]
//! itself, on a cache that a first run filled; what it tells of its progress says when an epoch's steps begin and end.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use brain_adapter::config::Config;
use brain_adapter::progress::Progress;
use brain_adapter::train::fit::{self, Plan, Schedule};
use nifti::writer::WriterOptions;
use rand::RngExt;
use serde_json::json;

use super::operations::{head_parameters, heads};
use super::{RATE, ba_train, median, prepare, rng, threads};
use crate::process::{Contender, Outcome, Run, progress, report as tell};
use crate::report::Bound::AtLeast;
use crate::report::Floor;
use crate::suite::{Suite, compare, export, row, succeed};

const OURS: &str = "ours, `ba-train fit --frozen-adapter`";
const TORCH: &str = "PyTorch, `AdamW`";
const TORCH_FUSED: &str = "PyTorch, `AdamW(fused=True)`";
const BATCH: usize = 8;
/// The first is warm-up.
const EPOCHS: usize = 5;
/// Different reports; many cases share one.
const REPORTS: usize = 16;

/// What ours reads.
struct Files {
    config: PathBuf,
    list: PathBuf,
    artifacts: PathBuf,
    bundle: PathBuf,
    cache: PathBuf,
    output: PathBuf,
}

pub fn run(suite: &mut Suite) -> Result<()> {
    let cases = if suite.options.small { [64, 16] } else { [1000, 250] };
    let files = Files::make(suite, cases)?;
    let config = Config::load(&files.config)?;
    let [training, validation] = cases;
    let of = format!("frozen adapter, {training} cases, batch {BATCH}");
    let (steps, whole) =
        (format!("{of}: steps of an epoch"), format!("{of}: whole epoch, {validation} validated, state written"));
    let rounds = suite.options.rounds;
    let torch = |fused: &'static str| {
        let (suite, files) = (&*suite, &files);
        move || theirs(suite, files, cases, fused)
    };
    let contenders = vec![
        Contender::new(OURS, rounds, || ours(suite, &files)),
        Contender::new(TORCH, rounds, torch("plain")),
        Contender::new(TORCH_FUSED, rounds, torch("fused")),
    ];
    let mut rows = compare(&steps, contenders);
    let wholes: Vec<_> = rows.iter().map(|figure| row(&whole, &figure.with, whole_of(&figure.outcome))).collect();
    let floor = floor(suite, &config, training);
    rows.iter_mut().for_each(|row| row.floor = floor);
    suite.report.extend(rows);
    suite.report.extend(wholes);
    let judged = if suite.options.small { Vec::new() } else { vec![steps, whole] };
    for what in judged {
        for theirs in [TORCH, TORCH_FUSED] {
            let found = suite.report.speedup(&what, OURS, theirs);
            suite.report.target(format!("{what}: ours against {theirs}"), found, AtLeast(1.0), "times as fast");
        }
    }
    let (v, t, d) = (config.vision.hidden, config.text.hidden, config.projection.dim);
    suite.report.notes.push(format!(
        "Frozen adapter: vision {v}, text {t}, projection {d}, {:.2} million parameters; features are in memory (ours: read from \
         its cache before the first epoch); the median of the epochs after a process's first, {} of {EPOCHS}, in the round with the \
         shortest steps. The floor is the longer of its products and of AdamW's memory: parameter, gradient and two moments read, \
         three of them written.",
        head_parameters(&config) / 1e6,
        EPOCHS - 1,
    ));
    Ok(())
}

/// The same run, by the seconds of whole epochs.
fn whole_of(outcome: &Outcome) -> Outcome {
    let run = outcome.clone()?;
    Ok(Run { seconds: run.number("whole").ok_or("told nothing of whole epochs")?, ..run })
}

/// An epoch's least: the products, or the memory that AdamW goes through.
fn floor(suite: &Suite, config: &Config, training: usize) -> Option<Floor> {
    let best = |what: &str| {
        let rates = suite.report.rates.iter().filter(|r| r.what == what).filter_map(|r| r.rate.as_ref().ok());
        rates.copied().reduce(f64::max).map(|rate| rate * 1e9)
    };
    let products = training as f64 * heads(config, false) / best("fp32 products")?;
    let moved = training.div_ceil(BATCH) as f64 * 7.0 * 4.0 * head_parameters(config);
    Some(Floor::Seconds(products.max(moved / best("memory")?)))
}

fn ours(suite: &Suite, files: &Files) -> Result<Command, String> {
    match std::fs::remove_dir_all(&files.output) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(format!("an old training stays: {e}")),
        _ => {}
    }
    let mut command = suite.child(&["train-epoch"])?;
    command.args([&files.list, &files.artifacts, &files.bundle, &files.cache, &files.output]);
    Ok(command)
}

fn theirs(suite: &Suite, files: &Files, cases: [usize; 2], fused: &str) -> Result<Command, String> {
    let mut command = suite.peer("torch_train.py", &["epoch"])?;
    command.arg(&files.config).args([cases[0], cases[1], BATCH, EPOCHS, threads()].map(|n| n.to_string()));
    command.args([RATE.to_string().as_str(), fused]);
    Ok(command)
}

impl Files {
    fn make(suite: &Suite, cases: [usize; 2]) -> Result<Self> {
        let checkpoint = suite.synthesize(if suite.options.small { "tiny" } else { "heads" })?;
        let folder = suite.path("train-heads");
        let files = Self {
            config: checkpoint.join("config.json"),
            list: folder.join("cohort.csv"),
            artifacts: folder.join("artifacts"),
            bundle: folder.join("bundle"),
            cache: folder.join("cache"),
            output: folder.join("run"),
        };
        let nothing = folder.join("nothing");
        std::fs::create_dir_all(&nothing)?;
        prepare(&files.config, &checkpoint.join("adapter.safetensors"), &checkpoint.join("m3d"), &files.artifacts)?;
        succeed(&mut export(&checkpoint, "fp32", &nothing, &files.bundle))?;
        write_cohort(&folder, &Config::load(&files.config)?, cases)?;
        progress("filling the cache of features");
        let mut fill = ba_train(&["fit", "--frozen-adapter", "--epochs", "1"]);
        for (flag, path) in [
            ("--data", &files.list),
            ("--artifacts", &files.artifacts),
            ("--bundle", &files.bundle),
            ("--cache", &files.cache),
            ("--output", &files.output),
        ] {
            fill.arg(flag).arg(path);
        }
        succeed(&mut fill)?;
        Ok(files)
    }
}

/// A list with its scans (noise on the model's own grid) and reports.
fn write_cohort(folder: &Path, config: &Config, [training, validation]: [usize; 2]) -> Result<()> {
    let mut rng = rng(7);
    for report in 0..REPORTS {
        std::fs::write(folder.join(format!("{report}.txt")), format!("Findings: {report}, within the normal range."))?;
    }
    let size = config.volume.size;
    let mm = config.volume.voxel_mm as f32;
    let header = nifti::NiftiHeader {
        pixdim: [1.0, mm, mm, mm, 0.0, 0.0, 0.0, 0.0],
        xyzt_units: 2,
        qform_code: 0,
        sform_code: 1,
        srow_x: [mm, 0.0, 0.0, 0.0],
        srow_y: [0.0, mm, 0.0, 0.0],
        srow_z: [0.0, 0.0, mm, 0.0],
        ..Default::default()
    };
    let mut list = String::from("scan,report,label,split\n");
    for case in 0..training + validation {
        let voxels = ndarray::Array3::from_shape_simple_fn([size; 3], || rng.random_range(0..1000i16));
        let scan = format!("sub-{case:04}.nii");
        let writer = WriterOptions::new(folder.join(&scan)).reference_header(&header);
        writer.write_nifti(&voxels).context("a scan cannot be written")?;
        let label = &config.labels.0[case % config.labels.0.len()];
        let split = if case < training { "train" } else { "validation" };
        list += &format!("{scan},{}.txt,{label},{split}\n", case % REPORTS);
    }
    std::fs::write(folder.join("cohort.csv"), list)?;
    Ok(())
}

/// Trains, and reports the seconds of an epoch.
pub fn child(paths: &[&str]) -> Result<()> {
    let [list, artifacts, bundle, cache, output] = paths else { anyhow::bail!("five paths are needed") };
    let plan = Plan {
        artifacts: artifacts.into(),
        bundle: bundle.into(),
        cache: Some(cache.into()),
        output: Some(output.into()),
        epochs: u32::try_from(EPOCHS)?,
        batch: BATCH,
        schedule: Schedule { rate: RATE, warmup: 0.0, cosine: false },
        frozen_adapter: true,
        threads: Some(threads()),
        ..Plan::new(list)
    };
    let mut watch = Watch::default();
    fit::run(&plan, &mut watch)?;
    watch.next();
    ensure!(watch.steps.len() == EPOCHS && watch.whole.len() == EPOCHS, "the trainer's progress is not understood");
    tell(median(&watch.steps[1..])?, &json!({"whole": median(&watch.whole[1..])?}));
    Ok(())
}

/// Hears when epochs begin, and when their steps are done.
#[derive(Default)]
struct Watch {
    begun: Option<Instant>,
    /// Seconds of each epoch's steps.
    steps: Vec<f64>,
    /// Seconds of each whole epoch.
    whole: Vec<f64>,
}

impl Watch {
    /// An epoch is over.
    fn next(&mut self) {
        self.whole.extend(self.begun.take().map(|begun| begun.elapsed().as_secs_f64()));
    }
}

impl Progress for Watch {
    fn step(&mut self, what: &str, _: Option<u64>) {
        self.next();
        self.begun = what.starts_with("epoch ").then(Instant::now);
    }

    fn item(&mut self, what: &str, index: usize, _: usize) {
        if what == "validation" && index == 0 {
            self.steps.extend(self.begun.map(|begun| begun.elapsed().as_secs_f64()));
        }
    }
}
