//! `ba-train fit`: training on a cohort.
//!
//! ```text
//! cohort.csv ─ cases (train, validation)
//! reports ── the bundle's language model, once each, cached ─ features ┐
//! scans ──── a thread reads ahead ─ volumes ───────────────────────────┼─ model ─ gradients ─ optimizer ─ parameters
//!      └──── with a frozen adapter: features, once each, cached ───────┘                        │
//!                       last (the whole state), best, history ◄─────────────────────────────────┘
//! ```
//!
//! **Deterministic.** The order of cases depends on seed and epoch alone; the same seed, thread count and ONNX Runtime
//! give the same bits. **Resumable.** `last` is written atomically, at the end of each epoch and in between, always
//! between two steps of the optimizer; `--resume` repeats later steps with bit-identical results. On a failure (an
//! unreadable scan, a full disk) the steps so far are saved if possible.

mod cases;
mod features;
mod images;
mod order;
mod outputs;
mod record;
mod scans;
mod schedule;
mod settings;
mod state;
mod trainer;

use std::path::PathBuf;

use serde::Serialize;

use super::artifacts::Artifacts;
use super::graphs::{Activations, GraphOptions, TrainingGraphs};
use super::staged_model::StagedModel;
use crate::config::AdamW;
use crate::error::{Code, Error, Result};
use crate::model::Mode;
use crate::progress::Progress;
use crate::runtime::{CPU, Runtime, SessionOptions};
pub use record::EpochRecord;
pub use schedule::Schedule;
use state::State;
use trainer::Trainer;

/// How classes of different size are balanced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Balance {
    /// Not at all.
    #[default]
    None,
    /// The classification loss weights each class by `n / (classes · n_class)`.
    Weights,
    /// Cases of smaller classes are repeated within an epoch (oversampling).
    Sampling,
}

/// The settings of `ba-train fit`.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The labelled list.
    pub data: PathBuf,
    /// The folder of training artifacts, from `ba-train prepare`.
    pub artifacts: PathBuf,
    /// The bundle whose language model encodes the reports; not needed by the mode `mri`.
    pub bundle: PathBuf,
    /// The folder of checkpoints, history and pictures; by default `run` inside the artifacts.
    pub output: Option<PathBuf>,
    /// Maximum number of epochs.
    pub epochs: u32,
    /// Cases a micro-batch, over which batch norm normalises and the contrastive loss compares.
    pub batch: usize,
    /// Micro-batches whose gradients are averaged for one step of the optimizer.
    pub accumulate: usize,
    /// The learning rate over the training.
    pub schedule: Schedule,
    /// The optimizer's hyperparameters.
    pub adamw: AdamW,
    /// Seed of the order of cases, and of the split of a list that has none.
    pub seed: u64,
    /// Training ends after so many epochs without a better macro-F1; none: it never ends early.
    pub patience: Option<u32>,
    /// Whether only projections and classifier are trained, on vision features that are computed once.
    pub frozen_adapter: bool,
    /// How classes of different size are balanced.
    pub balance: Balance,
    /// Which activations are saved for the backward pass.
    pub activations: Activations,
    /// Whether to continue an interrupted training.
    pub resume: bool,
    /// Whether files of the output's names that no training wrote are replaced.
    pub force: bool,
    /// Maximum seconds between two writes of `last` within an epoch.
    pub save_every: f64,
    /// Epochs (from 1) after which the embedding of the validation cases is drawn.
    pub embed: Vec<u32>,
    /// The folder of cached features; by default `cache` inside the output.
    pub cache: Option<PathBuf>,
    /// Whether a scan that carries a quality warning is an error, with the warning's code.
    pub strict_quality: bool,
    /// Threads within an operator; by default one a core.
    pub threads: Option<usize>,
    /// Path of the ONNX Runtime library; by default it is searched for.
    pub library: Option<PathBuf>,
}

impl Plan {
    /// The defaults of the command.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            artifacts: "training".into(),
            bundle: "onnx".into(),
            output: None,
            epochs: 20,
            batch: 8,
            accumulate: 1,
            schedule: Schedule { rate: 1e-4, warmup: 0.05, cosine: true },
            adamw: AdamW::default(),
            seed: 0,
            patience: None,
            frozen_adapter: false,
            balance: Balance::None,
            activations: Activations::Recompute,
            resume: false,
            force: false,
            save_every: 60.0,
            embed: Vec::new(),
            cache: None,
            strict_quality: false,
            threads: None,
            library: None,
        }
    }

    fn output(&self) -> PathBuf {
        self.output.clone().unwrap_or_else(|| self.artifacts.join("run"))
    }
}

/// The result of [`run`].
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The folder of checkpoints, history and pictures.
    pub output: PathBuf,
    /// Which parameters were trained, by which loss.
    pub mode: Mode,
    /// Number of training and of validation cases.
    pub cases: [usize; 2],
    /// Steps of the optimizer.
    pub steps: i64,
    /// The metrics of every epoch.
    pub history: Vec<EpochRecord>,
    /// The epoch of the best macro-F1.
    pub best_epoch: u32,
    /// The best macro-F1 on the validation cases.
    pub best_macro_f1: f64,
    /// Whether training ended before the maximum number of epochs.
    pub stopped_early: bool,
    /// The device that was used: `cpu`.
    pub device: &'static str,
}

/// Trains, and writes checkpoints, history and the trained weights.
///
/// # Errors
/// `training.artifacts`, `training.data`, `training.diverged`, `training.resume`; `output.exists` when the output holds
/// another training and `resume` is off, or (without `force`) files of others; `output.in_use` when another training
/// runs there; those of reading lists, scans and reports, of the bundle and the runtime;
/// `io`, `disk.full`.
pub fn run(plan: &Plan, progress: &mut dyn Progress) -> Result<Summary> {
    check(plan)?;
    progress.step("checking the training artifacts", None);
    let artifacts = Artifacts::open(&plan.artifacts)?;
    let manifest = &artifacts.manifest;
    let (prepared, frozen) = (artifacts.state()?, artifacts.frozen()?);
    let cases = cases::read(plan, &manifest.config, manifest.mode, progress)?;
    let output = plan.output();
    state::earlier(&output, plan.resume)?;
    if !plan.force {
        outputs::check_foreign(&output)?;
    }
    std::fs::create_dir_all(&output).map_err(|e| Error::io(&output, "cannot make the folder", e))?;
    let _lock = outputs::lock(&output)?;
    let earlier = state::earlier(&output, plan.resume)?;
    let runtime = Runtime::load(plan.library.as_deref())?;
    let device = CPU.name();
    let text = match manifest.mode.reads_reports() {
        true => features::of_reports(plan, &manifest.config, &cases, progress)?,
        false => features::ReportFeatures::default(),
    };
    let class_weights = (plan.balance == Balance::Weights).then(|| cases.weights(manifest.config.labels.0.len()));
    let options = GraphOptions {
        mode: manifest.mode,
        statistics: manifest.statistics,
        activations: plan.activations,
        class_weights,
    };
    let trained = |name: &str| manifest.mode.trains(name) && !(plan.frozen_adapter && name.starts_with("adapter."));
    let graphs = TrainingGraphs::new(&manifest.config, &options, &trained)?;
    let session = session_options(plan, &manifest.config);
    let model = StagedModel::new(runtime, session, &graphs, frozen);
    let settings = settings::settings(plan, &artifacts, &cases, &text.bundle, runtime.build);
    let state = match earlier {
        Some(path) => State::resume(&path, &prepared, settings, &trained)?,
        None => State::new(&prepared, settings, &trained)?,
    };
    // After all refusals, whose line is to stand alone.
    cases.warnings.iter().for_each(|warning| progress.warn(warning));
    let mut trainer =
        Trainer { plan, artifacts: &artifacts, cases: &cases, text: &text, model, runtime, session, output };
    let mut summary = trainer.run(state, progress)?;
    summary.device = device;
    Ok(summary)
}

fn check(plan: &Plan) -> Result<()> {
    let refuse = |message: &str| Err(Error::new(Code::CONFIG_VALUE, message));
    if plan.epochs == 0 || plan.batch == 0 || plan.accumulate == 0 {
        return refuse("epochs, batch and accumulate must be at least 1");
    }
    if plan.save_every.is_nan() || plan.save_every < 0.0 {
        return refuse("the seconds between two checkpoints must be 0 or more");
    }
    plan.schedule.validate()?;
    plan.adamw.validate()
}

/// Sessions of large models release their memory after each run: otherwise each would keep its own peak.
fn session_options(plan: &Plan, config: &crate::config::Config) -> SessionOptions {
    const LARGE: usize = 1 << 18;
    let tokens: usize = config.run_grid().iter().product();
    let shrink = tokens * config.vision.hidden > LARGE;
    SessionOptions { threads: plan.threads, shrink, ..SessionOptions::default() }
}

/// Threads within an operator. Their number decides how sums are grouped, and so the last bits of results.
fn threads(plan: &Plan) -> usize {
    plan.threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1)
}
