//! The state dict in what `torch.save` wrote: wrappers opened, non-tensors listed, wrapper prefixes stripped.
//!
//! Flows in: a [`Pickle`], and the key of the state dict where the user chose one. Flows out: [`Found`]: name and
//! tensor description pairs, the entries passed over, and what to know of the choice. [`super::weight_sets`] chooses.
//!
//! # Errors
//! `checkpoint.format` when there is no state dict in it, or none under the key; `checkpoint.quantized` when its
//! tensors are quantized; `checkpoint.corrupt` when two tensors end up with one name.
//!
//! # Safety
//! No `unsafe` and no recursion beyond a few wrappers: walks carry a list of visited nodes.

use std::collections::{BTreeMap, HashSet};

use super::names::{MAX_NAME, shown, strip};
use super::pickle::{self, Foreign, Node, Pickle, Ref, TensorNode};
use super::weight_sets::{self, Choice, Sets, WRAPPER_DEPTH};
use super::{Skipped, listed};
use crate::error::{Code, Error, Result, Warning};

/// A state dict as a pickle describes it.
pub(super) struct Found {
    pub tensors: BTreeMap<String, TensorNode>,
    pub skipped: Vec<Skipped>,
    pub warnings: Vec<Warning>,
}

/// Finds the state dict in `pickle`: that at `key`, a path of keys with dots between them, or the usual one.
pub(super) fn find(pickle: &Pickle, key: Option<&str>) -> Result<Found> {
    let mut finder = Finder { pickle, sets: Sets::new(pickle), visited: HashSet::new(), foreign: BTreeMap::new() };
    let mut found = Found { tensors: BTreeMap::new(), skipped: Vec::new(), warnings: Vec::new() };
    let (mut at, mut path) = match key {
        Some(key) => (weight_sets::at_key(pickle, key)?, format!("{key}.")),
        None => (pickle.root, String::new()),
    };
    for depth in 0..=WRAPPER_DEPTH {
        let Node::Dict(entries) = pickle.get(at) else {
            let kind = pickle.get(at).kind();
            return Err(format(format!("holds {kind}, expected a state dict (a dict of names and tensors)")));
        };
        // Later entries replace earlier ones of the same name.
        let entries: BTreeMap<String, Ref> = entries.iter().map(|&(k, v)| (key_of(pickle, k), v)).collect();
        let mut choice = if depth < WRAPPER_DEPTH { finder.sets.choose(&entries, &path)? } else { Choice::here() };
        found.warnings.extend(choice.warning.take());
        for (name, &value) in entries.iter().filter(|(name, _)| choice.leaves(name)) {
            found.skipped.push(finder.skip(format!("{path}{name}"), value));
        }
        match choice.taken.as_slice() {
            [] => finder.collect(&entries, "", &path, &mut found)?,
            [only] => {
                at = entries[only];
                path = format!("{path}{only}.");
                continue;
            }
            several => finder.collect_all(&entries, several, &path, &mut found)?,
        }
        return if found.tensors.is_empty() { Err(finder.nothing(&entries)) } else { Ok(found) };
    }
    Err(format("holds wrappers in wrappers without end".into()))
}

fn format(message: String) -> Error {
    Error::new(Code::CHECKPOINT_FORMAT, message)
}

/// A dict key as a name; keys that are no strings get one that no tensor has.
fn key_of(pickle: &Pickle, at: Ref) -> String {
    match pickle.get(at) {
        // Copied only when short: thousands of entries may share one long string.
        Node::Str(text) if text.len() <= MAX_NAME => text.to_string(),
        Node::Str(text) => format!("[a string of {} bytes]", text.len()),
        Node::Int(i) => format!("[{i}]"),
        &Node::Named(_, name) => {
            format!("[{}]", pickle.text(name).unwrap_or_default().chars().take(80).collect::<String>())
        }
        other => format!("[{}]", other.kind()),
    }
}

struct Finder<'a> {
    pickle: &'a Pickle,
    sets: Sets<'a>,
    /// Nodes that were counted as part of a skipped entry.
    visited: HashSet<Ref>,
    /// How many entries of the state dict are of each kind that is not read.
    foreign: BTreeMap<Foreign, usize>,
}

impl Finder<'_> {
    /// The tensors of the dicts `keys`, each behind its key.
    fn collect_all(
        &mut self,
        entries: &BTreeMap<String, Ref>,
        keys: &[String],
        path: &str,
        found: &mut Found,
    ) -> Result<()> {
        for key in keys {
            let Node::Dict(inner) = self.pickle.get(self.sets.innermost(entries[key])) else { continue };
            let inner: BTreeMap<String, Ref> = inner.iter().map(|&(k, v)| (key_of(self.pickle, k), v)).collect();
            self.collect(&inner, &format!("{key}."), path, found)?;
        }
        Ok(())
    }

    fn collect(&mut self, entries: &BTreeMap<String, Ref>, before: &str, path: &str, found: &mut Found) -> Result<()> {
        for (name, &value) in entries {
            let shown = shown(name);
            let tensor = match self.pickle.get(value) {
                Node::Tensor(tensor) if name.len() <= MAX_NAME => **tensor,
                &Node::Foreign(foreign) => {
                    *self.foreign.entry(foreign).or_default() += 1;
                    let why = format!("{}; {}", foreign.kind(), foreign.advice());
                    // Under its own name, so that whoever wants the tensor can say why it is not there.
                    found.skipped.push(Skipped { name: strip(&format!("{before}{shown}")), why });
                    continue;
                }
                _ => {
                    if self.holds_quantized(value) {
                        *self.foreign.entry(Foreign::Quantized).or_default() += 1;
                    }
                    found.skipped.push(self.skip(format!("{path}{before}{shown}"), value));
                    continue;
                }
            };
            if found.tensors.insert(format!("{before}{name}"), tensor).is_some() {
                return Err(Error::new(Code::CHECKPOINT_CORRUPT, format!("two tensors are named `{before}{name}`")));
            }
        }
        match self.foreign.get(&Foreign::Quantized) {
            None => Ok(()),
            Some(count) => {
                let noun = if *count == 1 { "tensor" } else { "tensors" };
                let message = format!(
                    "holds {count} {noun} quantized by torch (torch.ao.quantization), expected floats: save the model \
                     before it is quantized, or its tensors as tensor.dequantize()"
                );
                Err(Error::new(Code::CHECKPOINT_QUANTIZED, message))
            }
        }
    }

    /// Whether an entry is that of a packed layer of torch.ao: a tuple of a quantized weight and its bias.
    fn holds_quantized(&self, at: Ref) -> bool {
        let Node::Tuple(items) = self.pickle.get(at) else { return false };
        items.iter().take(4).any(|&item| *self.pickle.get(item) == Node::Foreign(Foreign::Quantized))
    }

    /// The error for a state dict without a single tensor.
    fn nothing(&self, entries: &BTreeMap<String, Ref>) -> Error {
        if let Some((foreign, &count)) = self.foreign.iter().max_by_key(|(_, count)| **count) {
            return foreign.refusal(count);
        }
        let names: Vec<&str> = entries.keys().map(String::as_str).collect();
        let names = listed(&names);
        format(format!(
            "holds no tensors; its entries are {names}; save the state dict: torch.save(model.state_dict(), …)"
        ))
    }

    fn skip(&mut self, name: String, value: Ref) -> Skipped {
        let kind = self.pickle.get(value).kind();
        let why = match self.count(value) {
            0 => format!("{kind}, not a tensor"),
            _ if matches!(self.pickle.get(value), Node::Tensor(_)) => "a tensor outside the state dict".into(),
            1 => format!("{kind} with 1 tensor"),
            n => format!("{kind} with {n} tensors"),
        };
        Skipped { name, why }
    }

    /// Tensors in a value, those not counted before.
    fn count(&mut self, value: Ref) -> usize {
        let (mut open, mut tensors) = (vec![value], 0);
        while let Some(at) = open.pop() {
            if !self.visited.insert(at) {
                continue;
            }
            match self.pickle.get(at) {
                Node::Tensor(_) => tensors += 1,
                Node::Tuple(items) | Node::List(items) => open.extend(items),
                Node::Dict(entries) => open.extend(entries.iter().map(|&(_, v)| v)),
                _ => {}
            }
        }
        tensors
    }
}

/// Reads the pickle at the start of `bytes` and finds the state dict in it.
pub(super) fn read(bytes: &[u8], key: Option<&str>) -> Result<(Pickle, Found)> {
    let pickle = pickle::read(bytes)?;
    let found = find(&pickle, key)?;
    Ok((pickle, found))
}
