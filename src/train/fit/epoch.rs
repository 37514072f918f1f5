//! Epoch after epoch.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Instant;

use super::cases::Cases;
use super::features::{self, Reports};
use super::outputs::{self, EpochRecord};
use super::scans::{Scans, named};
use super::state::{BEST, LAST, State};
use super::{Plan, Summary, order};
use crate::error::{Code, Error, Result};
use crate::metrics::{Answer, Scores};
use crate::progress::Progress;
use crate::runtime::{Runtime, SessionOptions};
use crate::tensor::Tensor;
use crate::train::artifacts::Artifacts;
use crate::train::cohort::Subject;
use crate::train::engine::{Batch, Engine, Parameters, Step};
use crate::train::optimizer::{Optimizer, accumulate, finite};
use crate::train::tensors::stack;

/// A training with everything that it needs.
pub(super) struct Trainer<'a> {
    pub plan: &'a Plan,
    pub artifacts: &'a Artifacts,
    pub cases: &'a Cases,
    pub text: &'a Reports,
    pub engine: Engine,
    pub runtime: &'static Runtime,
    pub session: SessionOptions,
    pub output: PathBuf,
}

/// Where the model's picture of the scans comes from.
enum Sight {
    /// Features that were computed once, by scan.
    Features(BTreeMap<PathBuf, Tensor>),
    /// The scans themselves.
    Scans(Scans),
}

/// What a micro-batch brings: volumes, or features of the scans.
type Seen = Result<Tensor>;

impl Trainer<'_> {
    /// Trains from `state` to the end.
    pub fn run(&mut self, mut state: State, progress: &mut dyn Progress) -> Result<Summary> {
        let sight = match self.plan.frozen_adapter {
            true => {
                let Self { plan, artifacts, cases, engine, runtime, .. } = self;
                Sight::Features(features::of_scans(
                    plan,
                    artifacts,
                    cases,
                    engine,
                    &state.parameters,
                    runtime,
                    progress,
                )?)
            }
            false => Sight::Scans(Scans::new(&self.artifacts.manifest.config)),
        };
        // It runs often, and what it takes is small: it may keep that.
        let session = SessionOptions { shrink: false, ..self.session };
        let mut optimizer = Optimizer::new(self.runtime, &session, &self.plan.adamw, &state.moments)?;
        while !state.at.finished {
            let outcome = self.epoch(&mut state, &mut optimizer, &sight, progress);
            let outcome = outcome.and_then(|()| {
                let before = state.at.clone();
                let outcome = self.finish_epoch(&mut state, &sight, progress);
                // An epoch is over once all of it is kept.
                outcome.inspect_err(|_| state.at = before)
            });
            if let Err(error) = outcome {
                // What was done so far is worth more than a second failure's message.
                let _ = state.write(&self.output.join(LAST));
                return Err(error);
            }
        }
        self.write_outputs(&state)?;
        outputs::weights(&self.output, &self.artifacts.manifest.config)?;
        let best = state.best().ok_or_else(|| Error::new(Code::TRAINING_DATA, "no epoch was run"))?;
        Ok(Summary {
            output: self.output.clone(),
            mode: self.artifacts.manifest.mode,
            cases: [self.cases.train.len(), self.cases.validation.len()],
            steps: state.step,
            best_epoch: best.epoch,
            best_macro_f1: best.macro_f1,
            stopped_early: state.at.epoch < self.plan.epochs,
            history: state.at.history.clone(),
            device: "cpu",
        })
    }

    /// The rest of the present epoch's steps.
    fn epoch(
        &mut self,
        state: &mut State,
        optimizer: &mut Optimizer,
        sight: &Sight,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let (plan, cases) = (self.plan, self.cases);
        let labels: Vec<usize> = cases.train.iter().map(|s| s.label).collect();
        let batches = order::batches(&labels, plan.balance, plan.batch, plan.seed, state.at.epoch);
        let total = i64::from(plan.epochs) * batches.len().div_ceil(plan.accumulate) as i64;
        let first = state.at.next;
        if state.at.epoch >= plan.epochs || first > batches.len() {
            let message = format!("there is no batch {} in epoch {}", first + 1, state.at.epoch + 1);
            return Err(Error::new(Code::TRAINING_RESUME, message).at(self.output.join(LAST)));
        }
        progress.step(&format!("epoch {} of {}", state.at.epoch + 1, plan.epochs), None);
        std::thread::scope(|scope| {
            // One micro-batch waits while another is computed.
            let (give, take) = mpsc::sync_channel::<Seen>(0);
            let ahead = &batches[first..];
            scope.spawn(move || {
                let seen = |batch: &Vec<usize>| sight.of(&batch.iter().map(|&i| &cases.train[i]).collect::<Vec<_>>());
                ahead.iter().map(seen).try_for_each(|seen| give.send(seen))
            });
            let mut written = Instant::now();
            for group in ahead.chunks(plan.accumulate) {
                let what = match state.at.seen {
                    0 => "batch".to_owned(),
                    seen => format!("batch (loss {:.4})", state.at.loss / seen as f64),
                };
                progress.item(&what, state.at.next, batches.len());
                let rate = plan.schedule.at(state.step + 1, total);
                self.step(state, optimizer, group, &take, rate)?;
                sight.tell(progress);
                if written.elapsed().as_secs_f64() >= plan.save_every {
                    state.write(&self.output.join(LAST))?;
                    written = Instant::now();
                }
            }
            Ok(())
        })
    }

    /// One step of the optimizer over some micro-batches. Where it fails, the state is that before it.
    fn step(
        &mut self,
        state: &mut State,
        optimizer: &mut Optimizer,
        group: &[Vec<usize>],
        take: &mpsc::Receiver<Seen>,
        rate: f32,
    ) -> Result<()> {
        let statistics = |p: &Parameters| {
            p.iter()
                .filter(|(n, _)| n.contains(".running_"))
                .map(|(n, t)| (n.clone(), t.clone()))
                .collect::<Parameters>()
        };
        let before = statistics(&state.parameters);
        let (mut sum, mut loss, mut seen) = (Parameters::new(), 0.0, 0);
        let mut run = || -> Result<()> {
            for batch in group {
                let cases: Vec<&Subject> = batch.iter().map(|&i| &self.cases.train[i]).collect();
                let gone = || Error::new(Code::IO, "reading scans stopped unexpectedly");
                let sight = take.recv().map_err(|_| gone())??;
                let step = self.there_and_back(&state.parameters, sight, &cases, 1.0 / group.len() as f32)?;
                self.check(state.step + 1, state.at.epoch + 1, &step, &cases)?;
                loss += f64::from(step.outcome.loss) * cases.len() as f64;
                seen += cases.len();
                state.parameters.extend(step.moved);
                accumulate(&mut sum, step.gradients);
            }
            optimizer.step(&mut state.parameters, &mut state.moments, &sum, state.step + 1, rate)
        };
        if let Err(error) = run() {
            state.parameters.extend(before);
            return Err(self.diverged(error));
        }
        (state.step, state.rate) = (state.step + 1, rate);
        let norms = if self.plan.frozen_adapter { 0 } else { group.len() as i64 };
        let counted = self.artifacts.manifest.statistics == crate::model::adapter::Statistics::Batch;
        state.counts.values_mut().for_each(|n| *n = n.saturating_add(if counted { norms } else { 0 }));
        state.at.loss += loss;
        state.at.seen += seen;
        state.at.next += group.len();
        Ok(())
    }

    fn there_and_back(
        &mut self,
        parameters: &Parameters,
        sight: Tensor,
        cases: &[&Subject],
        scale: f32,
    ) -> Result<Step> {
        let (text, labels) = (self.text_of(cases)?, labels(cases));
        if self.plan.frozen_adapter {
            return self.engine.head_step(parameters, &sight, text.as_ref(), &labels, scale);
        }
        self.engine.step(parameters, &Batch { volumes: sight, text, labels }, scale)
    }

    /// A loss, gradient or running statistic that is no number ends the training, before it spoils the parameters.
    fn check(&self, step: i64, epoch: u32, result: &Step, cases: &[&Subject]) -> Result<()> {
        let loss = result.outcome.loss;
        let broken = |all: &Parameters| all.iter().find(|(_, t)| !finite(t)).map(|(name, _)| name.clone());
        let what = if !loss.is_finite() {
            format!("the loss is {loss}")
        } else if let Some(name) = broken(&result.gradients) {
            format!("the gradient of `{name}` is not finite")
        } else if let Some(name) = broken(&result.moved) {
            format!("`{name}` becomes not finite")
        } else {
            return Ok(());
        };
        let files: Vec<String> = cases.iter().map(|s| s.scan.display().to_string()).collect();
        let message = format!("{what} in step {step} (epoch {epoch}); the batch: {}", files.join(", "));
        Err(Error::new(Code::TRAINING_DIVERGED, message))
    }

    /// Says where the last good parameters are.
    fn diverged(&self, error: Error) -> Error {
        if error.code() != Code::TRAINING_DIVERGED {
            return error;
        }
        let kept = self.output.join(LAST);
        let message = format!("{}; the parameters before it: {}", error.message(), kept.display());
        Error::new(Code::TRAINING_DIVERGED, message)
    }

    fn text_of(&self, cases: &[&Subject]) -> Result<Option<Tensor>> {
        if !self.artifacts.manifest.mode.reads_reports() {
            return Ok(None);
        }
        let missing = || Error::new(Code::TRAINING_DATA, "a report was not encoded");
        let rows = cases.iter().map(|s| self.text.get(s.report.as_ref()).cloned().ok_or_else(missing));
        stack(&rows.collect::<Result<Vec<_>>>()?).map(Some)
    }

    /// Judges the epoch on the validation cases and keeps what came of it.
    fn finish_epoch(&mut self, state: &mut State, sight: &Sight, progress: &mut dyn Progress) -> Result<()> {
        let (mut answers, mut points, mut loss) = (Vec::new(), Vec::new(), 0.0);
        let cases: Vec<&Subject> = self.cases.validation.iter().collect();
        let batches = cases.len().div_ceil(self.plan.batch);
        for (i, batch) in cases.chunks(self.plan.batch).enumerate() {
            progress.item("validation", i, batches);
            let seen = sight.of(batch)?;
            sight.tell(progress);
            let vision = match sight {
                Sight::Features(_) => seen,
                Sight::Scans(_) => self.engine.features(&state.parameters, &seen)?,
            };
            let text = self.text_of(batch)?;
            let outcome = self.engine.outcome(&state.parameters, &vision, text.as_ref(), &labels(batch))?;
            loss += f64::from(outcome.loss) * batch.len() as f64;
            for (row, case) in batch.iter().enumerate() {
                answers.push(Answer::at(case.label, row_of(&outcome.logits, row), 1.0));
                points.push([row_of(&outcome.v, row), outcome.t.as_ref().map_or(&[], |t| row_of(t, row))].concat());
            }
        }
        if !loss.is_finite() {
            let message = format!("the loss over the validation cases is {loss} after epoch {}", state.at.epoch + 1);
            return Err(self.diverged(Error::new(Code::TRAINING_DIVERGED, message)));
        }
        let classes = self.artifacts.manifest.config.labels.0.len();
        let scores = Scores::of(&answers, classes);
        let better = state.best().is_none_or(|best| scores.macro_f1 > best.macro_f1);
        let record = record(state, loss / cases.len() as f64, &scores, better);
        progress.line(&format!(
            "epoch {:>3}  loss {:.4}  validation {:.4}  macro-F1 {:.3}{}",
            record.epoch,
            record.train_loss,
            record.validation_loss,
            record.macro_f1,
            if better { "  *" } else { "" }
        ));
        if self.plan.embed.contains(&record.epoch) {
            let classes: Vec<usize> = cases.iter().map(|s| s.label).collect();
            let config = &self.artifacts.manifest.config;
            outputs::embedding(&self.output, record.epoch, &points, &classes, config, self.plan.seed)?;
        }
        let at = &mut state.at;
        at.history.push(record);
        (at.epoch, at.next, at.loss, at.seen) = (at.epoch + 1, 0, 0.0, 0);
        at.waited = if better { 0 } else { at.waited + 1 };
        at.finished = at.epoch >= self.plan.epochs || self.plan.patience.is_some_and(|most| at.waited >= most);
        if better {
            state.write(&self.output.join(BEST))?;
        }
        state.write(&self.output.join(LAST))?;
        self.write_outputs(state)
    }

    fn write_outputs(&self, state: &State) -> Result<()> {
        let title = format!("Fine-tuning, mode {}", self.artifacts.manifest.mode.name());
        outputs::history(&self.output, &state.at.history, &title)
    }
}

impl Sight {
    /// Tells what reading scans warned of; features were told when they were made.
    fn tell(&self, progress: &mut dyn Progress) {
        if let Self::Scans(scans) = self {
            scans.take_warnings().iter().for_each(|(path, warning)| progress.warn(&named(path, warning)));
        }
    }

    /// Volumes or features of some cases, one behind the other.
    fn of(&self, cases: &[&Subject]) -> Seen {
        match self {
            Self::Scans(scans) => scans.batch(&cases.iter().map(|s| s.scan.as_path()).collect::<Vec<&Path>>()),
            Self::Features(features) => {
                let missing = || Error::new(Code::TRAINING_DATA, "a scan's features were not computed");
                let rows = cases.iter().map(|s| features.get(&s.scan).cloned().ok_or_else(missing));
                stack(&rows.collect::<Result<Vec<_>>>()?)
            }
        }
    }
}

fn labels(cases: &[&Subject]) -> Tensor {
    let labels: Vec<i64> = cases.iter().map(|s| s.label as i64).collect();
    Tensor::I64(ndarray::ArrayD::from_shape_vec(vec![labels.len()], labels).unwrap_or_default())
}

fn row_of(tensor: &Tensor, row: usize) -> &[f32] {
    let width = tensor.shape().get(1).copied().unwrap_or(0);
    tensor.as_f32().and_then(|values| values.get(row * width..(row + 1) * width)).unwrap_or_default()
}

fn record(state: &State, validation_loss: f64, scores: &Scores, best: bool) -> EpochRecord {
    EpochRecord {
        epoch: state.at.epoch + 1,
        steps: state.step,
        learning_rate: state.rate,
        train_loss: state.at.loss / state.at.seen.max(1) as f64,
        validation_loss,
        accuracy: scores.accuracy,
        macro_f1: scores.macro_f1,
        best,
    }
}
