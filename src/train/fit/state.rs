//! Everything that a training needs to go on, and the file that holds it.
//!
//! The file is a training checkpoint (`ODTC`) that ONNX Runtime's own training runtime reads too: parameters, moments and step
//! stand where it looks for them. Where the training stands within its epochs, its history and what it depends on are a property,
//! as JSON.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::outputs::EpochRecord;
use crate::checkpoint::{Moments, OptimizerState, TrainingState};
use crate::error::{Code, Error, Result};
use crate::tensor::{DType, LazyTensor, Tensor};
use crate::train::engine::Parameters;
use crate::train::optimizer::{self, Moments as Both};

/// The state after the last step that was kept.
pub(super) const LAST: &str = "last";
/// The parameters of the best epoch.
pub(super) const BEST: &str = "best";
/// The property's name.
const PROPERTY: &str = "brain-adapter.fit";
/// The last part of the name of a batch norm's counter.
const COUNT: &str = ".num_batches_tracked";

/// A training under way, between two steps of the optimizer.
pub(super) struct State {
    /// Every float parameter of adapter and heads, running statistics among them.
    pub parameters: Parameters,
    /// How many batches each batch norm has seen.
    pub counts: BTreeMap<String, i64>,
    /// Both moments of each trained parameter.
    pub moments: Both,
    /// Steps of the optimizer so far.
    pub step: i64,
    /// The learning rate of the last of them.
    pub rate: f32,
    /// Where it stands.
    pub at: Position,
}

/// Where a training stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Position {
    /// Epochs that are over.
    pub epoch: u32,
    /// Micro-batches of the present epoch that are over.
    pub next: usize,
    /// Sum of the present epoch's losses, each weighted by its cases.
    pub loss: f64,
    /// Cases in that sum.
    pub seen: usize,
    /// Epochs without a better macro-F1.
    pub waited: u32,
    /// Whether nothing is left to do.
    pub finished: bool,
    /// The epochs that are over.
    pub history: Vec<EpochRecord>,
    /// Everything that the numbers depend on.
    pub facts: BTreeMap<String, String>,
}

/// The file of an earlier training in `output`, where there is one and it is to go on.
pub(super) fn earlier(output: &Path, resume: bool) -> Result<Option<PathBuf>> {
    let path = output.join(LAST);
    match (path.is_file(), resume) {
        (true, true) => Ok(Some(path)),
        (true, false) => {
            let message = "the folder holds a training already: go on with --resume, or choose another -o";
            Err(Error::new(Code::OUTPUT_EXISTS, message).at(output))
        }
        // Killed before anything was kept.
        (false, _) => Ok(None),
    }
}

impl State {
    /// The beginning, from prepared parameters.
    pub fn begin(
        prepared: &TrainingState,
        facts: BTreeMap<String, String>,
        trained: &dyn Fn(&str) -> bool,
    ) -> Result<Self> {
        let mut state = Self::read(prepared, trained)?;
        state.at.facts = facts;
        Ok(state)
    }

    /// The state in a file.
    ///
    /// # Errors
    /// `training.resume` when it is of another training, naming what differs.
    pub fn resume(
        path: &Path,
        prepared: &TrainingState,
        facts: BTreeMap<String, String>,
        trained: &dyn Fn(&str) -> bool,
    ) -> Result<Self> {
        let refuse = |message: String| Error::new(Code::TRAINING_RESUME, message).at(path);
        let file = TrainingState::open(path)?;
        let text = file.properties.strings.get(PROPERTY);
        let text = text.ok_or_else(|| refuse("the checkpoint was not written by ba-train fit".into()))?;
        let at: Position = serde_json::from_str(text).map_err(|e| refuse(format!("cannot be gone on with: {e}")))?;
        let differing: Vec<String> = facts
            .iter()
            .filter(|(name, value)| at.facts.get(*name) != Some(value))
            .map(|(name, value)| {
                let before = at.facts.get(name).map_or("unknown", String::as_str);
                format!("{name} was {before}, is {value}")
            })
            .collect();
        if !differing.is_empty() {
            return Err(refuse(format!(
                "the numbers would not be those of an unbroken training: {}",
                differing.join("; ")
            )));
        }
        let tensors = |s: &TrainingState| -> BTreeMap<String, Vec<usize>> {
            s.trainable.iter().chain(&s.frozen).map(|(name, t)| (name.clone(), t.shape().to_vec())).collect()
        };
        let moments = file.optimizer.as_ref().map(|o| &o.moments);
        let moved = |name: &String| moments.is_some_and(|m| m.contains_key(name)) == trained(name);
        let (found, expected) = (tensors(&file), tensors(prepared));
        if found != expected || !found.keys().all(moved) {
            return Err(refuse("its tensors are not those of the training artifacts".into()));
        }
        let mut state = Self::read(&file, trained)?;
        state.at = at;
        // Counters that no training reaches would only overflow.
        const MOST: i64 = 1 << 48;
        let counted = (0..MOST).contains(&state.step) && (state.at.seen as u64) < MOST as u64;
        if !counted || state.at.waited > state.at.epoch || state.at.epoch as usize != state.at.history.len() {
            return Err(refuse("it contradicts itself on where the training stands".into()));
        }
        Ok(state)
    }

    fn read(file: &TrainingState, trained: &dyn Fn(&str) -> bool) -> Result<Self> {
        let (mut parameters, mut counts, mut known) = (Parameters::new(), BTreeMap::new(), Both::new());
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
        let at = Position {
            epoch: 0,
            next: 0,
            loss: 0.0,
            seen: 0,
            waited: 0,
            finished: false,
            history: Vec::new(),
            facts: BTreeMap::new(),
        };
        Ok(Self { parameters, counts, moments, step, rate, at })
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
        let text = serde_json::to_string(&self.at).map_err(|e| Error::new(Code::IO, e.to_string()).at(path))?;
        file.properties.strings.insert(PROPERTY.into(), text);
        file.write(path).map(drop)
    }

    /// The record of the best epoch so far.
    pub fn best(&self) -> Option<&EpochRecord> {
        self.at.history.iter().rfind(|record| record.best)
    }
}

fn lazy(tensor: &Tensor) -> LazyTensor {
    LazyTensor::from_f32(tensor.shape(), tensor.as_f32().unwrap_or_default())
}

/// The number that a tensor without axes holds.
fn integer(tensor: &LazyTensor) -> Result<Option<i64>> {
    let bytes = tensor.cast(DType::I64).bytes()?.into_owned();
    Ok(bytes.first_chunk::<8>().map(|b| i64::from_le_bytes(*b)))
}
