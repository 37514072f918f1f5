//! The files of a training next to its checkpoints: `history.jsonl`, `history.svg`, `embedding-NNN.svg`,
//! `adapter.safetensors`.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::Path;

use super::record::EpochRecord;
use super::state::BEST;
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::files::{remove_abandoned, replace};
use crate::metrics::tsne;
use crate::plot;
use crate::train::apply::save_state_dict;

const HISTORY: &str = "history.jsonl";
const HISTORY_PICTURE: &str = "history.svg";
const WEIGHTS: &str = "adapter.safetensors";

/// Locks the folder until the result is dropped, and removes the unfinished files of a killed training.
///
/// # Errors
/// `output.in_use` when another training holds the lock.
pub(super) fn lock(folder: &Path) -> Result<Option<File>> {
    // Not every system lets a folder be opened, or locked: then there is no such protection.
    let lock = File::open(folder).ok();
    if let Some(Err(TryLockError::WouldBlock)) = lock.as_ref().map(File::try_lock) {
        let message = "another ba-train fit is at work in this folder: wait until it is done, or choose another -o";
        return Err(Error::new(Code::OUTPUT_IN_USE, message).at(folder));
    }
    remove_abandoned(folder);
    Ok(lock)
}

/// A file in `folder` that a training would write over.
pub(super) fn existing(folder: &Path) -> Option<String> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let picture = |name: &str| name.starts_with("embedding-") && name.ends_with(".svg");
    let mut names = names.map(|name| name.to_string_lossy().into_owned());
    names.find(|name| [BEST, HISTORY, HISTORY_PICTURE, WEIGHTS].contains(&name.as_str()) || picture(name))
}

/// Writes `history.jsonl` and `history.svg`.
pub(super) fn write_history(folder: &Path, records: &[EpochRecord], title: &str) -> Result<()> {
    let mut lines = String::new();
    for record in records {
        lines += &serde_json::to_string(record).map_err(Error::internal)?;
        lines.push('\n');
    }
    replace(&folder.join(HISTORY), lines.as_bytes())?;
    let epoch = |r: &EpochRecord| plot::Epoch {
        epoch: r.epoch,
        train_loss: r.train_loss,
        validation_loss: Some(r.validation_loss),
        macro_f1: Some(r.macro_f1),
    };
    let epochs: Vec<plot::Epoch> = records.iter().map(epoch).collect();
    replace(&folder.join(HISTORY_PICTURE), plot::history(&epochs, title).as_bytes())
}

/// Writes `embedding-NNN.svg`: the fused embeddings of the validation cases, laid out by t-SNE. `classes` holds an
/// index into `labels` for each of `points`.
pub(super) fn write_embedding(
    folder: &Path,
    epoch: u32,
    points: &[Vec<f32>],
    classes: &[usize],
    labels: &[String],
    seed: u64,
) -> Result<()> {
    let layout = tsne(points, seed);
    let title = format!("Validation cases after epoch {epoch} (t-SNE of the fused embedding)");
    let svg = plot::embedding(&layout.points, classes, labels, &title);
    replace(&folder.join(format!("embedding-{epoch:03}.svg")), svg.as_bytes())
}

/// Writes `adapter.safetensors`: the weights of the checkpoint `best`, for PyTorch.
pub(super) fn write_weights(folder: &Path, best: &Path, config: &Config) -> Result<()> {
    save_state_dict(&folder.join(WEIGHTS), &Checkpoint::open(best)?, config, BTreeMap::new())
}
