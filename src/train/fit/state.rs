//! The state of a training between two steps, and the checkpoint that holds it.
//!
//! The file is a training checkpoint (`ODTC`) that ONNX Runtime's own training runtime reads too: parameters, moments
//! and step are where it expects them. The position within the epochs, the history and the settings are a property, as
//! JSON.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::record::EpochRecord;
use super::settings::differences;
use crate::checkpoint::{Moments, OptimizerState, TrainingState};
use crate::error::{Code, Error, Result};
use crate::tensor::{DType, LazyTensor, Tensor};
use crate::train::optimizer::{self, Moments as BothMoments};
use crate::train::staged_model::Parameters;

/// File name of the state after the last saved step.
pub(super) const LAST: &str = "last";
/// File name of the state after the best epoch.
pub(super) const BEST: &str = "best";
/// Name of the property with [`Position`].
const PROPERTY: &str = "brain-adapter.fit";
/// Suffix of the counter of a batch norm.
const COUNT: &str = ".num_batches_tracked";

/// The state of a training between two steps of the optimizer.
pub(super) struct State {
    /// Every float parameter of adapter and heads, running statistics among them.
    pub parameters: Parameters,
    /// The number of batches that each batch norm was trained on.
    pub counts: BTreeMap<String, i64>,
    /// Both moments of each trained parameter.
    pub moments: BothMoments,
    /// Steps of the optimizer so far.
    pub step: i64,
    /// The learning rate of the last step.
    pub rate: f32,
    /// The position within the epochs, history and settings.
    pub position: Position,
}

/// The position of a training within its epochs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Position {
    /// Completed epochs.
    pub epoch: u32,
    /// Completed micro-batches of the current epoch.
    #[serde(rename = "next")]
    pub next_batch: usize,
    /// Sum of the losses of the current epoch's micro-batches, each times its number of cases.
    #[serde(rename = "loss")]
    pub loss_sum: f64,
    /// Cases in that sum.
    #[serde(rename = "seen")]
    pub cases: usize,
    /// Epochs since the best macro-F1.
    #[serde(rename = "waited")]
    pub since_best: u32,
    /// Whether the training is over.
    pub finished: bool,
    /// The completed epochs.
    pub history: Vec<EpochRecord>,
    /// Everything that the numbers depend on ([`settings`](super::settings::settings)).
    #[serde(rename = "facts")]
    pub settings: BTreeMap<String, String>,
}

impl Position {
    /// Completes the current epoch. The training is over after `epochs`, or when `patience` epochs in a row were not
    /// the best.
    pub fn finish_epoch(&mut self, record: EpochRecord, epochs: u32, patience: Option<u32>) {
        self.since_best = if record.best { 0 } else { self.since_best + 1 };
        self.history.push(record);
        self.epoch += 1;
        (self.next_batch, self.loss_sum, self.cases) = (0, 0.0, 0);
        self.finished = self.epoch >= epochs || patience.is_some_and(|limit| self.since_best >= limit);
    }
}

/// The state of an earlier training in `output`, if there is one, for `resume`.
pub(super) fn earlier(output: &Path, resume: bool) -> Result<Option<PathBuf>> {
    let path = output.join(LAST);
    match (path.is_file(), resume) {
        (true, true) => Ok(Some(path)),
        (true, false) => {
            let message = "the folder already holds a training: continue it with --resume, or choose another -o";
            Err(Error::new(Code::OUTPUT_EXISTS, message).at(output))
        }
        // The earlier training was killed before its first save.
        (false, _) => Ok(None),
    }
}

/// Whether a training wrote this checkpoint.
pub(super) fn is_training(path: &Path) -> bool {
    TrainingState::open(path).is_ok_and(|file| file.properties.strings.contains_key(PROPERTY))
}

impl State {
    /// The state before the first step, from prepared parameters.
    pub fn new(
        prepared: &TrainingState,
        settings: BTreeMap<String, String>,
        trained: &dyn Fn(&str) -> bool,
    ) -> Result<Self> {
        let mut state = Self::read(prepared, trained)?;
        state.position.settings = settings;
        Ok(state)
    }

    /// The state in a file, to continue from.
    ///
    /// # Errors
    /// `training.resume` when the file is of another training, naming the settings that differ.
    pub fn resume(
        path: &Path,
        prepared: &TrainingState,
        settings: BTreeMap<String, String>,
        trained: &dyn Fn(&str) -> bool,
    ) -> Result<Self> {
        let refuse = |message: String| Error::new(Code::TRAINING_RESUME, message).at(path);
        let file = TrainingState::open(path)?;
        let text = file.properties.strings.get(PROPERTY);
        let text = text.ok_or_else(|| refuse("the checkpoint was not written by ba-train fit".into()))?;
        let position: Position = serde_json::from_str(text).map_err(|e| refuse(format!("cannot be resumed: {e}")))?;
        let differing = differences(&position.settings, &settings);
        if !differing.is_empty() {
            return Err(refuse(format!("cannot resume with other settings: {}", differing.join("; "))));
        }
        let tensors = |s: &TrainingState| -> BTreeMap<String, Vec<usize>> {
            s.trainable.iter().chain(&s.frozen).map(|(name, t)| (name.clone(), t.shape().to_vec())).collect()
        };
        let moments = file.optimizer.as_ref().map(|o| &o.moments);
        let has_moments = |name: &String| moments.is_some_and(|m| m.contains_key(name)) == trained(name);
        let (found, expected) = (tensors(&file), tensors(prepared));
        if found != expected || !found.keys().all(has_moments) {
            return Err(refuse("its tensors are not those of the training artifacts".into()));
        }
        let mut state = Self::read(&file, trained)?;
        state.position = position;
        // No training reaches larger counters: they could only overflow.
        const LIMIT: i64 = 1 << 48;
        let counted = (0..LIMIT).contains(&state.step) && (state.position.cases as u64) < LIMIT as u64;
        if !counted
            || state.position.since_best > state.position.epoch
            || state.position.epoch as usize != state.position.history.len()
        {
            return Err(refuse("it contradicts itself on the position of the training".into()));
        }
        Ok(state)
    }

    fn read(file: &TrainingState, trained: &dyn Fn(&str) -> bool) -> Result<Self> {
        let (mut parameters, mut counts, mut known) = (Parameters::new(), BTreeMap::new(), BothMoments::new());
        let broken = |name: &str| Error::new(Code::CHECKPOINT_CORRUPT, format!("`{name}` does not fill its shape"));
        for (name, tensor) in file.trainable.iter().chain(&file.frozen) {
            if name.ends_with(COUNT) {
                counts.insert(name.clone(), integer(tensor)?.ok_or_else(|| broken(name))?);
                continue;
            }
            let dense = |t: &LazyTensor| Tensor::f32(t.shape(), t.to_f32()?).ok_or_else(|| broken(name));
            if let Some(m) = file.optimizer.as_ref().and_then(|o| o.moments.get(name)) {
                known.insert(name.clone(), [dense(&m.first)?, dense(&m.second)?]);
            }
            parameters.insert(name.clone(), dense(tensor)?);
        }
        let mut moments = optimizer::moments(&parameters, trained);
        moments.extend(known.into_iter().filter(|(name, _)| trained(name)));
        let (step, rate) = file.optimizer.as_ref().map_or((0, 0.0), |o| (o.step, o.learning_rate));
        Ok(Self { parameters, counts, moments, step, rate, position: Position::default() })
    }

    /// Writes the state, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut file = TrainingState::default();
        for (name, tensor) in &self.parameters {
            let side = if self.moments.contains_key(name) { &mut file.trainable } else { &mut file.frozen };
            side.insert(name.clone(), lazy(tensor));
        }
        file.frozen.extend(self.counts.iter().map(|(name, &n)| (name.clone(), LazyTensor::from_i64(&[], &[n]))));
        let pair = |(name, [first, second]): (&String, &[Tensor; 2])| {
            (name.clone(), Moments { first: lazy(first), second: lazy(second) })
        };
        let moments = self.moments.iter().map(pair).collect();
        file.optimizer = Some(OptimizerState { step: self.step, learning_rate: self.rate, moments });
        let text = serde_json::to_string(&self.position).map_err(Error::internal)?;
        file.properties.strings.insert(PROPERTY.into(), text);
        file.write(path).map(drop)
    }

    /// The record of the best epoch so far.
    pub fn best(&self) -> Option<&EpochRecord> {
        self.position.history.iter().rfind(|record| record.best)
    }
}

fn lazy(tensor: &Tensor) -> LazyTensor {
    LazyTensor::from_f32(tensor.shape(), tensor.as_f32().unwrap_or_default())
}

/// The value of an integer tensor of rank 0; none when the tensor is empty.
fn integer(tensor: &LazyTensor) -> Result<Option<i64>> {
    let bytes = tensor.cast(DType::I64).bytes()?.into_owned();
    Ok(bytes.first_chunk::<8>().map(|b| i64::from_le_bytes(*b)))
}
