//! Under which common prefix a checkpoint has a model's tensors.
//!
//! Flows in: a checkpoint, the names that the model requires, the prefixes that are known. Flows out: a view of the
//! tensors under one prefix, named without it.
//!
//! Whoever holds a model as an attribute puts the attribute's name in front (`self.net = …` in a LightningModule makes
//! `net.`), and so does whoever holds that. The prefix is the one under which all required names are. Where several
//! are, a known one is taken and a warning names the others; without a known one the user chooses. Where none is, it
//! is the one that most of them are under, and what is missing there is for the caller to report.
//!
//! # Errors
//! `checkpoint.tensors` when several prefixes hold the whole model and none of them is known.

use std::collections::{BTreeMap, HashSet};

use crate::checkpoint::{Checkpoint, listed};
use crate::error::{Code, Error, Result, Warning, WarningCode};

/// How many attributes may lie in each other; hostile names have more dots.
const DEPTH: usize = 8;

/// The tensors under one prefix.
pub(super) struct Under {
    /// Without the prefix.
    pub view: Checkpoint,
    /// With a dot at its end, or empty.
    pub prefix: String,
    /// How many of the required names are there.
    pub held: usize,
    /// Other prefixes that hold the whole model.
    pub copies: Vec<String>,
}

impl Under {
    /// The warning that the model is there several times.
    pub fn warning(&self, what: &str, choose: &str) -> Option<Warning> {
        let copies = quoted(&self.copies);
        let taken = if self.prefix.is_empty() { "without a prefix".into() } else { format!("under `{}`", self.prefix) };
        let message = format!("{what}: the tensors {taken} were taken; they are there also under {copies}: {choose}");
        (!self.copies.is_empty()).then(|| Warning::new(WarningCode::CHECKPOINT_CHOICE, message))
    }
}

/// Finds the prefix of `required` in `checkpoint`. `known` prefixes come first; `choose` says how a user chooses
/// another.
pub(super) fn find(checkpoint: &Checkpoint, required: &[&str], known: &[&str], choose: &str) -> Result<Under> {
    let wanted: HashSet<&str> = required.iter().copied().collect();
    let mut counts: BTreeMap<&str, usize> = known.iter().map(|prefix| (*prefix, 0)).collect();
    for name in checkpoint.names() {
        let ends = name.match_indices('.').map(|(at, _)| at + 1).take(DEPTH);
        for at in std::iter::once(0).chain(ends).filter(|&at| wanted.contains(&name[at..])) {
            *counts.entry(&name[..at]).or_default() += 1;
        }
    }
    let rank = |prefix: &str| known.iter().position(|k| *k == prefix).unwrap_or(known.len());
    let mut whole: Vec<&str> = counts.iter().filter(|(_, n)| **n == wanted.len()).map(|(prefix, _)| *prefix).collect();
    whole.sort_by_key(|prefix| rank(prefix));
    if let [first, _, ..] = whole.as_slice()
        && rank(first) == known.len()
    {
        let names = quoted(&whole.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>());
        let example = if choose.contains("--prefix") { format!(", such as --prefix {first}") } else { String::new() };
        let message = format!("the model's {} tensors are there under {names} each: {choose}{example}", wanted.len());
        return Err(Error::new(Code::CHECKPOINT_TENSORS, message).at(checkpoint.path()));
    }
    let best = counts.iter().max_by_key(|(prefix, n)| (**n, std::cmp::Reverse(rank(prefix))));
    let prefix = whole.first().copied().or(best.map(|(prefix, _)| *prefix)).unwrap_or_default();
    let held = counts.get(prefix).copied().unwrap_or_default();
    // Where nothing fits, all names are to be seen in the message.
    let prefix = if held == 0 { "" } else { prefix };
    let copies = whole.iter().filter(|p| **p != prefix).map(|p| (*p).to_owned()).collect();
    Ok(Under { view: checkpoint.under(prefix), prefix: prefix.to_owned(), held, copies })
}

/// Names in quotes, in one line.
pub(super) fn quoted(names: &[String]) -> String {
    listed(&names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>())
}
