//! Training on a cohort: the work of `ba-train fit`.
//!
//! ```text
//! cohort.csv ─ cases (train, validation)
//! reports ── the bundle's language model, once each, cached ─ text features ┐
//! scans ──── a thread reads ahead ─ volumes ────────────────────────────────┼─ engine ─ gradients ─ optimizer ─ parameters
//!      └──── with a frozen adapter: vision features, once each, cached ─────┘                        │
//!                      last (everything that is needed to go on), best, history ◄────────────────────┘
//! ```
//!
//! **Deterministic.** The order of cases comes from seed and epoch alone; the same seed, thread count and ONNX Runtime give the
//! same bits. **Resumable.** `last` is written whole, at the end of each epoch and between, always between two steps of the
//! optimizer; whatever was done after it is done again to the same numbers. A failure (an unreadable scan, a full disk) keeps the
//! steps taken so far where that is possible.

mod cases;
mod epoch;
mod features;
mod order;
mod outputs;
mod scans;
mod schedule;
mod state;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::artifacts::Artifacts;
use super::engine::Engine;
use super::graphs::{Activations, Graphs, Options};
use crate::config::AdamW;
use crate::error::{Code, Error, Result};
use crate::model::Mode;
use crate::progress::Progress;
use crate::runtime::{CPU, Runtime, SessionOptions};
use cases::Cases;
use epoch::Trainer;
pub use outputs::EpochRecord;
pub use schedule::Schedule;
use state::State;

/// What is done about classes of different size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Balance {
    /// Nothing.
    #[default]
    None,
    /// The classification loss is weighted by `n / (classes · n_class)`.
    Weights,
    /// Cases of smaller classes are seen several times an epoch.
    Sampling,
}

/// What to train on, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The labelled list.
    pub data: PathBuf,
    /// The folder that `prepare` wrote.
    pub artifacts: PathBuf,
    /// The bundle whose language model encodes the reports; not needed by the mode `mri`.
    pub bundle: PathBuf,
    /// Where checkpoints, history and pictures go; by default `run` inside the artifacts.
    pub output: Option<PathBuf>,
    /// Most epochs.
    pub epochs: u32,
    /// Cases a micro-batch: what batch norm and the contrastive loss see at once.
    pub batch: usize,
    /// Micro-batches a step of the optimizer.
    pub accumulate: usize,
    /// How the learning rate goes.
    pub schedule: Schedule,
    /// The optimizer's constants.
    pub adamw: AdamW,
    /// What decides the order of cases, and the split of a list that has none.
    pub seed: u64,
    /// Epochs without a better macro-F1 after which training ends; none: never.
    pub patience: Option<u32>,
    /// Whether projections and classifier alone are trained, on features that are computed once.
    pub frozen_adapter: bool,
    /// What is done about classes of different size.
    pub balance: Balance,
    /// What is kept for the way back.
    pub activations: Activations,
    /// Whether an interrupted training goes on.
    pub resume: bool,
    /// Most seconds between two writes of `last` within an epoch.
    pub save_every: f64,
    /// Epochs after which the validation cases' embedding is drawn.
    pub embed: Vec<u32>,
    /// A folder for features; by default `cache` inside the output.
    pub cache: Option<PathBuf>,
    /// Threads within an operator, by default one a core.
    pub threads: Option<usize>,
    /// ONNX Runtime's library, where it is not to be searched for.
    pub library: Option<PathBuf>,
}

impl Plan {
    /// The plan that the command's defaults make.
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
            save_every: 60.0,
            embed: Vec::new(),
            cache: None,
            threads: None,
            library: None,
        }
    }

    fn output(&self) -> PathBuf {
        self.output.clone().unwrap_or_else(|| self.artifacts.join("run"))
    }
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Where everything lies.
    pub output: PathBuf,
    /// What was trained.
    pub mode: Mode,
    /// Cases trained on and validated on.
    pub cases: [usize; 2],
    /// Steps of the optimizer.
    pub steps: i64,
    /// Every epoch.
    pub history: Vec<EpochRecord>,
    /// The epoch of the best macro-F1.
    pub best_epoch: u32,
    /// The best macro-F1 on the validation cases.
    pub best_macro_f1: f64,
    /// Whether training ended before its last epoch.
    pub stopped_early: bool,
    /// The device that computed.
    pub device: &'static str,
}

/// Trains.
///
/// # Errors
/// `training.artifacts`, `training.data`, `training.diverged`, `training.resume`; `output.exists` when the output holds another
/// training and `resume` is off; those of reading lists, scans and reports, of the bundle and the runtime; `io`, `disk.full`.
pub fn run(plan: &Plan, progress: &mut dyn Progress) -> Result<Summary> {
    check(plan)?;
    progress.step("checking the training artifacts", None);
    let artifacts = Artifacts::open(&plan.artifacts)?;
    let manifest = &artifacts.manifest;
    let (prepared, frozen) = (artifacts.state()?, artifacts.frozen()?);
    let cases = cases::choose(plan, &manifest.config, manifest.mode, progress)?;
    let output = plan.output();
    state::earlier(&output, plan.resume)?;
    std::fs::create_dir_all(&output).map_err(|e| Error::io(&output, "cannot make the folder", e))?;
    let _lock = outputs::lock(&output)?;
    let earlier = state::earlier(&output, plan.resume)?;
    let runtime = Runtime::load(plan.library.as_deref())?;
    let device = CPU.name();
    let text = match manifest.mode.reads_reports() {
        true => features::of_reports(plan, &manifest.config, &cases, progress)?,
        false => features::Reports::default(),
    };
    let class_weights = (plan.balance == Balance::Weights).then(|| cases.weights(manifest.config.labels.0.len()));
    let options =
        Options { mode: manifest.mode, statistics: manifest.statistics, activations: plan.activations, class_weights };
    let trained = |name: &str| manifest.mode.trains(name) && !(plan.frozen_adapter && name.starts_with("adapter."));
    let graphs = Graphs::new(&manifest.config, &options, &trained)?;
    let session = session_options(plan, &manifest.config);
    let engine = Engine::new(runtime, session, &graphs, frozen);
    let facts = facts(plan, &artifacts, &cases, &text.bundle, runtime.build);
    let state = match earlier {
        Some(path) => State::resume(&path, &prepared, facts, &trained)?,
        None => State::begin(&prepared, facts, &trained)?,
    };
    let mut trainer =
        Trainer { plan, artifacts: &artifacts, cases: &cases, text: &text, engine, runtime, session, output };
    let mut summary = trainer.run(state, progress)?;
    summary.device = device;
    Ok(summary)
}

fn check(plan: &Plan) -> Result<()> {
    let refuse = |message: &str| Err(Error::new(Code::CONFIG_VALUE, message));
    if plan.epochs == 0 || plan.batch == 0 || plan.accumulate == 0 {
        return refuse("epochs, batch and accumulate are at least 1");
    }
    if plan.save_every.is_nan() || plan.save_every < 0.0 {
        return refuse("the seconds between two writes of the last checkpoint are 0 or more");
    }
    plan.schedule.validate()?;
    plan.adamw.validate()
}

/// Sessions of large models give their memory back after each run: each would keep its own peak.
fn session_options(plan: &Plan, config: &crate::config::Config) -> SessionOptions {
    const LARGE: usize = 1 << 18;
    let tokens: usize = config.run_grid().iter().product();
    let shrink = tokens * config.vision.hidden > LARGE;
    SessionOptions { threads: plan.threads, shrink, ..SessionOptions::default() }
}

/// Everything that the numbers depend on, by name: a training goes on only where all of it is the same.
fn facts(plan: &Plan, artifacts: &Artifacts, cases: &Cases, bundle: &str, build: &str) -> BTreeMap<String, String> {
    let facts: [(&str, String); 16] = [
        ("tool", env!("CARGO_PKG_VERSION").into()),
        ("artifacts", artifacts.sha256.clone()),
        ("cohort", cases.sha256()),
        ("bundle", bundle.into()),
        ("epochs", plan.epochs.to_string()),
        ("batch", plan.batch.to_string()),
        ("accumulate", plan.accumulate.to_string()),
        ("schedule", format!("{:?}", plan.schedule)),
        ("adamw", format!("{:?}", plan.adamw)),
        ("seed", plan.seed.to_string()),
        ("patience", format!("{:?}", plan.patience)),
        ("frozen-adapter", plan.frozen_adapter.to_string()),
        ("balance", format!("{:?}", plan.balance)),
        ("activations", format!("{:?}", plan.activations)),
        ("threads", threads(plan).to_string()),
        ("onnxruntime", build.into()),
    ];
    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Threads within an operator. Their number decides how sums are grouped, and so the last bits.
fn threads(plan: &Plan) -> usize {
    plan.threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1)
}
