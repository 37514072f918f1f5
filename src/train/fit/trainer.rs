//! The training loop: epochs, micro-batches, steps of the optimizer.

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Instant;

use super::cases::Cases;
use super::features::{self, ReportFeatures};
use super::images::{ImageBatch, ImageSource};
use super::outputs;
use super::record::{EpochRecord, Validation};
use super::scans::Scans;
use super::state::{BEST, LAST, State};
use super::{Plan, Summary, order};
use crate::cohort::Case;
use crate::error::{Code, Error, Result};
use crate::metrics::{LabelledPrediction, Scores};
use crate::model::adapter::Statistics;
use crate::progress::Progress;
use crate::runtime::{Runtime, SessionOptions};
use crate::tensor::Tensor;
use crate::threads;
use crate::train::artifacts::Artifacts;
use crate::train::optimizer::{Optimizer, accumulate, finite};
use crate::train::staged_model::{Batch, Parameters, StagedModel, StepOutput};
use crate::train::tensors::stack;

/// A training with everything that it needs.
pub(super) struct Trainer<'a> {
    pub plan: &'a Plan,
    pub artifacts: &'a Artifacts,
    pub cases: &'a Cases,
    pub text: &'a ReportFeatures,
    pub model: StagedModel,
    pub runtime: &'static Runtime,
    pub session: SessionOptions,
    pub output: PathBuf,
}

impl Trainer<'_> {
    /// Trains from `state` to the end.
    pub fn run(&mut self, mut state: State, progress: &mut dyn Progress) -> Result<Summary> {
        let images = self.images(&state.parameters, progress)?;
        // The optimizer's session runs often and its arena is small: it keeps its memory.
        let session = SessionOptions { shrink: false, ..self.session };
        let mut optimizer = Optimizer::new(self.runtime, &session, &self.plan.adamw, &state.moments)?;
        while !state.position.finished {
            let outcome = self.train_epoch(&mut state, &mut optimizer, &images, progress);
            let outcome = outcome.and_then(|()| {
                let before = state.position.clone();
                let outcome = self.finish_epoch(&mut state, &images, progress);
                // An epoch is over only when all its files are written.
                outcome.inspect_err(|_| state.position = before)
            });
            // All scans were read once in the first epoch: one warning a class, not one a scan.
            images.report_warnings(progress);
            if let Err(error) = outcome {
                // The steps so far are worth more than the message of a second failure.
                let _ = state.write(&self.output.join(LAST));
                return Err(error);
            }
        }
        self.write_history(&state)?;
        outputs::write_weights(&self.output, &self.output.join(BEST), &self.artifacts.manifest.config)?;
        let best = state.best().ok_or_else(|| Error::internal("the training has no best epoch"))?;
        Ok(Summary {
            output: self.output.clone(),
            mode: self.artifacts.manifest.mode,
            cases: [self.cases.train.len(), self.cases.validation.len()],
            steps: state.step,
            best_epoch: best.epoch,
            best_macro_f1: best.macro_f1,
            stopped_early: state.position.epoch < self.plan.epochs,
            history: state.position.history.clone(),
            device: "cpu",
        })
    }

    /// With a frozen adapter, the vision features of all scans, computed now or cached; else the scans.
    fn images(&mut self, parameters: &Parameters, progress: &mut dyn Progress) -> Result<ImageSource> {
        let Self { plan, artifacts, cases, model, runtime, .. } = self;
        let scans = Scans::new(&artifacts.manifest.config, plan.strict_quality);
        if !plan.frozen_adapter {
            return Ok(ImageSource::Scans(scans));
        }
        let store = features::store(plan, artifacts, runtime)?;
        features::of_scans(&store, &scans, cases, model, parameters, progress).map(ImageSource::Features)
    }

    /// The remaining steps of the current epoch.
    fn train_epoch(
        &mut self,
        state: &mut State,
        optimizer: &mut Optimizer,
        images: &ImageSource,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let (plan, cases) = (self.plan, self.cases);
        let labels: Vec<usize> = cases.train.iter().map(|c| c.label).collect();
        let batches = order::batches(&labels, plan.balance, plan.batch, plan.seed, state.position.epoch);
        let total = i64::from(plan.epochs) * batches.len().div_ceil(plan.accumulate) as i64;
        let first = state.position.next_batch;
        if state.position.epoch >= plan.epochs || first > batches.len() {
            let message = format!("there is no batch {} in epoch {}", first + 1, state.position.epoch + 1);
            return Err(Error::new(Code::TRAINING_RESUME, message).at(self.output.join(LAST)));
        }
        progress.step(&format!("epoch {} of {}", state.position.epoch + 1, plan.epochs), None);
        std::thread::scope(|scope| {
            // One micro-batch waits while another is computed.
            let (sender, receiver) = mpsc::sync_channel::<Result<ImageBatch>>(0);
            let remaining = &batches[first..];
            threads::spawn_scoped(scope, "read", move || {
                let read =
                    |batch: &Vec<usize>| images.batch(&batch.iter().map(|&i| &cases.train[i]).collect::<Vec<_>>());
                remaining.iter().map(read).try_for_each(|images| sender.send(images))
            })?;
            let mut saved = Instant::now();
            for group in remaining.chunks(plan.accumulate) {
                let what = match state.position.cases {
                    0 => "batch".to_owned(),
                    cases => format!("batch (loss {:.4})", state.position.loss_sum / cases as f64),
                };
                progress.item(&what, state.position.next_batch, batches.len());
                let rate = plan.schedule.at(state.step + 1, total);
                self.optimizer_step(state, optimizer, group, &receiver, rate)?;
                if saved.elapsed().as_secs_f64() >= plan.save_every {
                    state.write(&self.output.join(LAST))?;
                    saved = Instant::now();
                }
            }
            Ok(())
        })
    }

    /// One step of the optimizer over a group of micro-batches. On an error the state is that before the step.
    fn optimizer_step(
        &mut self,
        state: &mut State,
        optimizer: &mut Optimizer,
        group: &[Vec<usize>],
        images: &mpsc::Receiver<Result<ImageBatch>>,
        rate: f32,
    ) -> Result<()> {
        let before = running_stats(&state.parameters);
        let (mut sum, mut loss, mut count) = (Parameters::new(), 0.0, 0);
        let mut run = || -> Result<()> {
            for batch in group {
                let cases: Vec<&Case> = batch.iter().map(|&i| &self.cases.train[i]).collect();
                let stopped = |_| Error::internal("the thread that reads scans stopped");
                let images = images.recv().map_err(stopped)??;
                let output = self.forward_backward(&state.parameters, images, &cases, 1.0 / group.len() as f32)?;
                check_finite(state.step + 1, state.position.epoch + 1, &output, &cases)?;
                loss += f64::from(output.heads.loss) * cases.len() as f64;
                count += cases.len();
                state.parameters.extend(output.running_stats);
                accumulate(&mut sum, output.gradients);
            }
            optimizer.step(&mut state.parameters, &mut state.moments, &sum, state.step + 1, rate)
        };
        if let Err(error) = run() {
            state.parameters.extend(before);
            return Err(self.name_last_good(error));
        }
        (state.step, state.rate) = (state.step + 1, rate);
        // Batch norms in batch mode count forward passes, one a micro-batch.
        let counted = !self.plan.frozen_adapter && self.artifacts.manifest.statistics == Statistics::Batch;
        let passes = if counted { group.len() as i64 } else { 0 };
        state.counts.values_mut().for_each(|n| *n = n.saturating_add(passes));
        state.position.loss_sum += loss;
        state.position.cases += count;
        state.position.next_batch += group.len();
        Ok(())
    }

    /// Forward and backward pass of a micro-batch, with the gradients of `scale · loss`.
    fn forward_backward(
        &mut self,
        parameters: &Parameters,
        images: ImageBatch,
        cases: &[&Case],
        scale: f32,
    ) -> Result<StepOutput> {
        let (text, labels) = (self.text_batch(cases)?, labels(cases));
        if self.plan.frozen_adapter {
            return self.model.forward_backward_heads(parameters, &images, text.as_ref(), &labels, scale);
        }
        self.model.forward_backward(parameters, &Batch { volumes: images, text, labels }, scale)
    }

    /// The features of the cases' reports, f32 `[batch, text.hidden]`; none in a mode that reads no reports.
    fn text_batch(&self, cases: &[&Case]) -> Result<Option<Tensor>> {
        if !self.artifacts.manifest.mode.reads_reports() {
            return Ok(None);
        }
        let missing = || Error::internal("a report has no features");
        let rows = cases.iter().map(|c| self.text.get(c.report.as_ref()).cloned().ok_or_else(missing));
        stack(&rows.collect::<Result<Vec<_>>>()?).map(Some)
    }

    /// Evaluates the validation cases.
    fn validate(&mut self, state: &State, images: &ImageSource, progress: &mut dyn Progress) -> Result<Validation> {
        let (mut predictions, mut embeddings, mut loss) = (Vec::new(), Vec::new(), 0.0);
        let cases: Vec<&Case> = self.cases.validation.iter().collect();
        let batches = cases.len().div_ceil(self.plan.batch);
        for (i, batch) in cases.chunks(self.plan.batch).enumerate() {
            progress.item("validation", i, batches);
            let of_batch = images.batch(batch)?;
            let vision = match images {
                ImageSource::Features(_) => of_batch,
                ImageSource::Scans(_) => self.model.features(&state.parameters, &of_batch)?,
            };
            let text = self.text_batch(batch)?;
            let output = self.model.evaluate_heads(&state.parameters, &vision, text.as_ref(), &labels(batch))?;
            loss += f64::from(output.loss) * batch.len() as f64;
            for (row, case) in batch.iter().enumerate() {
                predictions.push(LabelledPrediction::from_logits(case.label, row_of(&output.logits, row), 1.0));
                let t = output.t.as_ref().map_or(&[][..], |t| row_of(t, row));
                embeddings.push([row_of(&output.v, row), t].concat());
            }
        }
        if !loss.is_finite() {
            let message =
                format!("the loss over the validation cases is {loss} after epoch {}", state.position.epoch + 1);
            return Err(self.name_last_good(Error::new(Code::TRAINING_DIVERGED, message)));
        }
        let scores = Scores::of(&predictions, self.artifacts.manifest.config.labels.0.len());
        Ok(Validation { loss: loss / cases.len() as f64, scores, embeddings })
    }

    /// Validates the epoch, records its metrics and writes the checkpoints.
    fn finish_epoch(&mut self, state: &mut State, images: &ImageSource, progress: &mut dyn Progress) -> Result<()> {
        let validation = self.validate(state, images, progress)?;
        let better = state.best().is_none_or(|best| validation.scores.macro_f1 > best.macro_f1);
        let record = record(state, &validation, better);
        progress.line(&format!(
            "epoch {:>3}  loss {:.4}  validation {:.4}  macro-F1 {:.3}{}",
            record.epoch,
            record.train_loss,
            record.validation_loss,
            record.macro_f1,
            if better { "  *" } else { "" }
        ));
        if self.plan.embed.contains(&record.epoch) {
            let classes: Vec<usize> = self.cases.validation.iter().map(|c| c.label).collect();
            let labels = &self.artifacts.manifest.config.labels.0;
            let points = &validation.embeddings;
            outputs::write_embedding(&self.output, record.epoch, points, &classes, labels, self.plan.seed)?;
        }
        state.position.finish_epoch(record, self.plan.epochs, self.plan.patience);
        if better {
            state.write(&self.output.join(BEST))?;
        }
        state.write(&self.output.join(LAST))?;
        self.write_history(state)
    }

    fn write_history(&self, state: &State) -> Result<()> {
        outputs::write_history(&self.output, &state.position.history, self.artifacts.manifest.mode.name())
    }

    /// Adds to a divergence where the last finite parameters are.
    fn name_last_good(&self, error: Error) -> Error {
        if error.code() != Code::TRAINING_DIVERGED {
            return error;
        }
        let last = self.output.join(LAST);
        let message = format!("{}; the parameters before it: {}", error.message(), last.display());
        Error::new(Code::TRAINING_DIVERGED, message)
    }
}

/// The running statistics among the parameters.
fn running_stats(parameters: &Parameters) -> Parameters {
    let stats = parameters.iter().filter(|(name, _)| name.contains(".running_"));
    stats.map(|(name, tensor)| (name.clone(), tensor.clone())).collect()
}

/// Refuses a loss, gradient or running statistic that is not finite, before it reaches the parameters.
fn check_finite(step: i64, epoch: u32, output: &StepOutput, cases: &[&Case]) -> Result<()> {
    let loss = output.heads.loss;
    let broken = |all: &Parameters| all.iter().find(|(_, t)| !finite(t)).map(|(name, _)| name.clone());
    let what = if !loss.is_finite() {
        format!("the loss is {loss}")
    } else if let Some(name) = broken(&output.gradients) {
        format!("the gradient of `{name}` is not finite")
    } else if let Some(name) = broken(&output.running_stats) {
        format!("`{name}` becomes not finite")
    } else {
        return Ok(());
    };
    let files: Vec<String> = cases.iter().map(|c| c.scan.display().to_string()).collect();
    let message = format!("{what} in step {step} (epoch {epoch}); the batch: {}", files.join(", "));
    Err(Error::new(Code::TRAINING_DIVERGED, message))
}

fn labels(cases: &[&Case]) -> Tensor {
    let labels: Vec<i64> = cases.iter().map(|c| c.label as i64).collect();
    Tensor::I64(ndarray::ArrayD::from_shape_vec(vec![labels.len()], labels).unwrap_or_default())
}

/// A row of a float32 tensor `[rows, n]`.
fn row_of(tensor: &Tensor, row: usize) -> &[f32] {
    let width = tensor.shape().get(1).copied().unwrap_or(0);
    tensor.as_f32().and_then(|values| values.get(row * width..(row + 1) * width)).unwrap_or_default()
}

fn record(state: &State, validation: &Validation, best: bool) -> EpochRecord {
    EpochRecord {
        epoch: state.position.epoch + 1,
        steps: state.step,
        learning_rate: state.rate,
        train_loss: state.position.loss_sum / state.position.cases.max(1) as f64,
        validation_loss: validation.loss,
        accuracy: validation.scores.accuracy,
        macro_f1: validation.scores.macro_f1,
        best,
    }
}
