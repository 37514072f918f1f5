//! One training, and its evaluation on the test split.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use brain_adapter::bundle::sha256_of;
use brain_adapter::error::Warning;
use brain_adapter::export::{self, Sources};
use brain_adapter::files::replace;
use brain_adapter::infer;
use brain_adapter::model::Mode;
use brain_adapter::progress::Progress;
use brain_adapter::train::{Activations, eval, fit};
use serde::{Deserialize, Serialize};

use super::Args;

/// One training.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// Index of the cohort.
    pub cohort: usize,
    pub seed: u64,
    pub mode: Mode,
}

/// The result of a training; `answers.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Index of the cohort.
    pub cohort: usize,
    pub seed: u64,
    pub mode: Mode,
    /// What the numbers depend on: an outcome of other settings is not reused.
    pub settings: String,
    /// Number of training, validation and test cases.
    pub cases: [usize; 3],
    /// The epoch that was evaluated, and its macro-F1 on the validation split.
    pub best_epoch: u32,
    pub validation_macro_f1: f64,
    /// Metrics on the test split.
    pub macro_f1: f64,
    pub accuracy: f64,
    pub macro_auc: Option<f64>,
    pub labels: Vec<String>,
    /// The subjects of the test split with true and predicted class, in the list's order.
    pub answers: Vec<TestRow>,
    /// Wall time of training and evaluation in seconds; after an interruption, since it was resumed.
    pub seconds: f64,
}

/// A subject of the test split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TestRow {
    pub subject: String,
    pub truth: usize,
    pub predicted: usize,
}

impl Trial {
    pub fn name(&self) -> String {
        format!("cohort-{}/seed-{}/{}", self.cohort + 1, self.seed, self.mode.name())
    }

    /// Trains and evaluates, or reads an earlier result.
    pub fn run(&self, args: &Args) -> Result<Outcome> {
        let folder = args.output.join(self.name());
        let saved = folder.join("answers.json");
        let settings = self.settings(args)?;
        if let Ok(json) = std::fs::read(&saved) {
            let outcome: Outcome = serde_json::from_slice(&json).with_context(|| saved.display().to_string())?;
            ensure!(
                outcome.settings == settings,
                "{} has other settings ({}): choose another -o, or remove it",
                saved.display(),
                outcome.settings
            );
            return Ok(outcome);
        }
        let start = Instant::now();
        let mut progress = StderrProgress::new(&self.name());
        let summary = fit::run(&self.fit_plan(args, &folder), &mut progress)?;
        let evaluation = self.evaluate(args, &folder, &mut progress)?;
        ensure!(
            evaluation.failures.is_empty(),
            "{} rows of the test split have no prediction",
            evaluation.failures.len()
        );
        let index = |label: &String| evaluation.labels.iter().position(|l| l == label).unwrap_or(usize::MAX);
        let row = |row: &eval::RowResult| TestRow {
            subject: row.subject.clone(),
            truth: row.truth,
            predicted: index(&row.label),
        };
        let outcome = Outcome {
            cohort: self.cohort,
            seed: self.seed,
            mode: self.mode,
            settings,
            cases: [summary.cases[0], summary.cases[1], evaluation.rows.len()],
            best_epoch: summary.best_epoch,
            validation_macro_f1: summary.best_macro_f1,
            macro_f1: evaluation.scores.macro_f1,
            accuracy: evaluation.scores.accuracy,
            macro_auc: evaluation.scores.macro_auc,
            answers: evaluation.rows.iter().map(row).collect(),
            labels: evaluation.labels,
            seconds: start.elapsed().as_secs_f64(),
        };
        progress.line(&format!("test macro-F1 {:.3} ({:.0} s)", outcome.macro_f1, outcome.seconds));
        replace(&saved, &serde_json::to_vec(&outcome)?)?;
        Ok(outcome)
    }

    fn settings(&self, args: &Args) -> Result<String> {
        let cohort = sha256_of(&args.cohort[self.cohort])?;
        let config = sha256_of(&args.model.join("config.json"))?;
        let (epochs, lr, batch, threads) = (args.epochs, args.lr, args.batch, args.threads);
        Ok(format!(
            "list {cohort:.12}, config {config:.12}, epochs {epochs}, lr {lr}, batch {batch}, threads {threads:?}"
        ))
    }

    fn fit_plan(&self, args: &Args, folder: &Path) -> fit::Plan {
        let plan = fit::Plan::new(&args.cohort[self.cohort]);
        fit::Plan {
            artifacts: args.output.join("artifacts").join(self.mode.name()),
            bundle: args.output.join("bundle"),
            output: Some(folder.to_path_buf()),
            epochs: args.epochs,
            batch: args.batch,
            schedule: fit::Schedule { rate: args.lr, ..plan.schedule },
            seed: self.seed,
            activations: Activations::Save,
            resume: true,
            embed: args.embed.clone(),
            cache: Some(args.output.join("cache")),
            threads: args.threads,
            library: args.ort_lib.clone(),
            ..plan
        }
    }

    /// Exports the trained adapter and heads as a bundle and evaluates it on the test split: without reports for `mri`,
    /// which trains the image-only classifier.
    fn evaluate(&self, args: &Args, folder: &Path, progress: &mut StderrProgress) -> Result<eval::Evaluation> {
        let bundle = folder.join("bundle");
        let sources = Sources { adapter: folder.join("adapter.safetensors"), ..Sources::in_folder(&args.model)? };
        export::run(&export::Plan { library: args.ort_lib.clone(), ..export::Plan::new(sources, &bundle) }, progress)?;
        let plan = eval::Plan::new(&args.cohort[self.cohort], &bundle);
        let test = eval::EvalSplit::from_name("test");
        ensure!(test.is_some(), "there is no split `test`");
        let options = infer::Options {
            threads: args.threads,
            library: args.ort_lib.clone(),
            cache: Some(args.output.join("cache")),
            ..plan.options.clone()
        };
        let plan = eval::Plan { split: test, draws: 0, image_only: !self.mode.reads_reports(), options, ..plan };
        Ok(eval::run(&plan, progress)?)
    }
}

/// Prints lines and warnings on stderr, each with the name of its training.
pub struct StderrProgress(String);

impl StderrProgress {
    pub fn new(name: &str) -> Self {
        Self(name.to_owned())
    }
}

impl Progress for StderrProgress {
    fn line(&mut self, text: &str) {
        eprintln!("{}: {text}", self.0);
    }

    fn warn(&mut self, warning: &Warning) {
        eprintln!("{}: warning: {}", self.0, warning.message);
    }
}
