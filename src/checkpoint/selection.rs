//! Which of a file's tensors a user means.
//!
//! Flows in: an opened checkpoint and the start of names that the user gave. Flows out: a view of the tensors under it.
//!
//! # Errors
//! `checkpoint.tensors` when no name begins so, with the first parts of the names that there are.

use std::collections::BTreeMap;

use super::names::{shown, strip};
use super::{Checkpoint, listed};
use crate::error::{Code, Error, Result};

/// Which of a file's tensors are meant; by default those of the usual state dict, under whatever prefix they all have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The entry of a `torch.save` file that is the state dict, such as `state_dict_ema`; keys of entries in entries
    /// have dots between them.
    pub key: Option<String>,
    /// The start of the names that are meant, such as `ema_model.`; it is taken off. The dot at its end may be missing.
    pub prefix: Option<String>,
}

/// The tensors whose names begin with `prefix`, named without it.
pub(super) fn with_prefix(checkpoint: &Checkpoint, prefix: &str) -> Result<Checkpoint> {
    let dotted = if prefix.is_empty() || prefix.ends_with('.') { prefix.to_owned() } else { format!("{prefix}.") };
    // Names have lost what wrapper modules added; the prefix may have it still.
    let short = strip(&format!("{dotted}x"));
    let short = short.strip_suffix('x').unwrap_or_default();
    let found = [dotted.as_str(), short].into_iter().find(|p| checkpoint.names().any(|name| name.starts_with(p)));
    if let Some(found) = found {
        return Ok(checkpoint.under(found));
    }
    let shown = shown(prefix);
    let message =
        format!("no tensor's name begins with `{shown}` (--prefix); the names begin with {}", beginnings(checkpoint));
    Err(Error::new(Code::CHECKPOINT_TENSORS, message).at(checkpoint.path()))
}

/// The first parts of a checkpoint's names, each with how many tensors are under it.
fn beginnings(checkpoint: &Checkpoint) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in checkpoint.names() {
        let first = name.split_inclusive('.').next().unwrap_or(name);
        *counts.entry(first).or_default() += 1;
    }
    let rows: Vec<String> = counts.iter().map(|(first, count)| format!("`{first}` ({count})")).collect();
    listed(&rows)
}
