//! The files of a training next to its checkpoints: `history.jsonl`, `history.svg`, `embedding-NNN.svg`,
//! `adapter.safetensors`.

use std::fs;
use std::path::Path;

use super::record::EpochRecord;
use super::state::{self, BEST};
use crate::checkpoint::Checkpoint;
use crate::config::{Config, read_small};
use crate::error::{Code, Error, Result};
use crate::files::{Lock, remove_abandoned, replace};
use crate::metrics::tsne;
use crate::plot;
use crate::train::apply::{is_state_dict, save_state_dict};

/// File names.
const HISTORY: &str = "history.jsonl";
const HISTORY_PLOT: &str = "history.svg";
const WEIGHTS: &str = "adapter.safetensors";
/// File name of an embedding, before and after the epoch's number.
const EMBEDDING: [&str; 2] = ["embedding-", ".svg"];
/// What the titles of both plots hold.
const HISTORY_TITLE: &str = "Fine-tuning, mode ";
const EMBEDDING_TITLE: &str = "(t-SNE of the fused embedding)";

/// Locks the folder until the result is dropped, and removes what a killed training left unfinished.
///
/// # Errors
/// `output.in_use` when another training holds the lock; `output.exists` when something else has its name; `io`.
pub(super) fn lock(folder: &Path) -> Result<Lock> {
    let Some(lock) = Lock::try_temporary(&folder.join(".lock"))? else {
        let message = "another ba-train fit is at work in this folder: wait until it is done, or choose another -o";
        return Err(Error::new(Code::OUTPUT_IN_USE, message).at(folder));
    };
    remove_abandoned(folder);
    Ok(lock)
}

/// Refuses a folder that holds a file of a training's name which no training wrote.
///
/// # Errors
/// `output.exists`; `io` when the folder cannot be read.
pub(super) fn check_foreign(folder: &Path) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(folder, "cannot use the output folder", e)),
    };
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let Some(is_ours) = name.to_str().and_then(recogniser) else { continue };
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) || !is_ours(&path) {
            let message = "ba-train fit writes a file of this name, and did not write this one: move it away, choose \
                           another -o, or replace it with --force";
            return Err(Error::new(Code::OUTPUT_EXISTS, message).at(path));
        }
    }
    Ok(())
}

/// What recognises a file of a training by its content; none for other names. The state itself is checked when a
/// training resumes.
fn recogniser(name: &str) -> Option<fn(&Path) -> bool> {
    let epoch = name.strip_prefix(EMBEDDING[0]).and_then(|rest| rest.strip_suffix(EMBEDDING[1]));
    match name {
        BEST => Some(state::is_training),
        HISTORY => Some(is_history),
        HISTORY_PLOT => Some(|path| is_plot(path, HISTORY_TITLE)),
        WEIGHTS => Some(is_state_dict),
        _ if epoch.is_some_and(|n| n.len() >= 3 && n.bytes().all(|b| b.is_ascii_digit())) => {
            Some(|path| is_plot(path, EMBEDDING_TITLE))
        }
        _ => None,
    }
}

fn is_history(path: &Path) -> bool {
    let text = read_small(path).unwrap_or_default();
    !text.is_empty() && text.lines().all(|line| serde_json::from_str::<EpochRecord>(line).is_ok())
}

fn is_plot(path: &Path, title: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.starts_with("<svg") && text.contains(title))
}

/// Writes `history.jsonl` and `history.svg`; `mode` is the training's.
pub(super) fn write_history(folder: &Path, records: &[EpochRecord], mode: &str) -> Result<()> {
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
    replace(&folder.join(HISTORY_PLOT), plot::history(&epochs, &format!("{HISTORY_TITLE}{mode}")).as_bytes())
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
    let title = format!("Validation cases after epoch {epoch} {EMBEDDING_TITLE}");
    let svg = plot::embedding(&layout.points, classes, labels, &title);
    replace(&folder.join(format!("{}{epoch:03}{}", EMBEDDING[0], EMBEDDING[1])), svg.as_bytes())
}

/// Writes `adapter.safetensors`: the weights of the checkpoint `best`, for PyTorch.
pub(super) fn write_weights(folder: &Path, best: &Path, config: &Config) -> Result<()> {
    save_state_dict(&folder.join(WEIGHTS), &Checkpoint::open(best)?, config)
}
