//! What a training leaves beside its checkpoints: `history.jsonl`, `history.svg`, `embedding-NNN.svg`, `adapter.safetensors`.

use std::fs::{File, TryLockError};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::state::BEST;
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::files::{UNFINISHED, replace};
use crate::metrics::tsne;
use crate::train::apply::save_state_dict;
use crate::train::picture;

/// An epoch as `history.jsonl` has it. There is no time in it: a training that was interrupted has the same history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochRecord {
    /// Which, from 1.
    pub epoch: u32,
    /// Steps of the optimizer so far.
    pub steps: i64,
    /// The learning rate of the last of them.
    pub learning_rate: f32,
    /// Mean loss over the training cases, each as it was when it was seen.
    pub train_loss: f64,
    /// Mean loss over the validation cases, with running statistics.
    pub validation_loss: f64,
    /// Share of validation cases that were classified rightly.
    pub accuracy: f64,
    /// Macro-F1 on the validation cases.
    pub macro_f1: f64,
    /// Whether its macro-F1 is the best so far.
    pub best: bool,
}

/// Makes sure that nobody else trains in the folder until the result is dropped, and removes what a killed training was writing.
///
/// # Errors
/// `output.exists` when somebody else is at it.
pub(super) fn lock(folder: &Path) -> Result<Option<File>> {
    // Not every system lets a folder be opened, or locked: then there is no such protection.
    let lock = File::open(folder).ok();
    if let Some(Err(TryLockError::WouldBlock)) = lock.as_ref().map(File::try_lock) {
        let message = "another ba-train fit is at work in this folder: wait until it is done, or choose another -o";
        return Err(Error::new(Code::OUTPUT_EXISTS, message).at(folder));
    }
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let unfinished = entry.file_name().to_string_lossy().starts_with(UNFINISHED);
        if unfinished && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            // One that stays does no harm.
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(lock)
}

/// Writes the history and its picture.
pub(super) fn history(folder: &Path, records: &[EpochRecord], title: &str) -> Result<()> {
    let mut lines = String::new();
    for record in records {
        lines += &serde_json::to_string(record).map_err(|e| Error::new(Code::IO, e.to_string()))?;
        lines.push('\n');
    }
    replace(&folder.join("history.jsonl"), lines.as_bytes())?;
    let epoch = |r: &EpochRecord| picture::Epoch {
        epoch: r.epoch,
        train_loss: r.train_loss,
        validation_loss: Some(r.validation_loss),
        macro_f1: Some(r.macro_f1),
    };
    let epochs: Vec<picture::Epoch> = records.iter().map(epoch).collect();
    replace(&folder.join("history.svg"), picture::history(&epochs, title).as_bytes())
}

/// Draws the fused embeddings of the validation cases.
pub(super) fn embedding(
    folder: &Path,
    epoch: u32,
    points: &[Vec<f32>],
    classes: &[usize],
    config: &Config,
    seed: u64,
) -> Result<()> {
    let layout = tsne(points, seed);
    let title = format!("Validation cases after epoch {epoch} (t-SNE of the fused embedding)");
    let svg = picture::embedding(&layout.points, classes, &config.labels.0, &title);
    replace(&folder.join(format!("embedding-{epoch:03}.svg")), svg.as_bytes())
}

/// Writes the best epoch's weights for PyTorch.
pub(super) fn weights(folder: &Path, config: &Config) -> Result<()> {
    save_state_dict(&folder.join("adapter.safetensors"), &Checkpoint::open(folder.join(BEST))?, config)
}
