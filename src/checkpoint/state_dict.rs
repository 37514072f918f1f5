//! The state dict in what `torch.save` wrote: wrappers opened, non-tensors listed, wrapper prefixes stripped.
//!
//! Flows in: a [`Pickle`]. Flows out: [`Found`]: name and tensor description pairs, and the entries passed over.
//!
//! # Errors
//! `checkpoint.format` when there is no state dict in it; `checkpoint.corrupt` when two tensors end up with one name.
//!
//! # Safety
//! No `unsafe` and no recursion: walks carry a list of visited nodes.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::pickle::{Node, Pickle, Ref, TensorNode};
use super::{Skipped, pickle};
use crate::error::{Code, Error, Result};

/// Entries under which training scripts put the state dict, in the order in which they are looked for.
const WRAPPERS: &[&str] = &["state_dict", "model_state_dict", "model", "module"];
/// How many wrappers may lie in each other.
const WRAPPER_DEPTH: usize = 4;
/// Longest name of a tensor, in bytes.
const MAX_NAME: usize = 1024;

/// A state dict as a pickle describes it.
pub(super) struct Found {
    pub tensors: BTreeMap<String, TensorNode>,
    pub skipped: Vec<Skipped>,
}

/// Finds the state dict in `pickle`.
pub(super) fn find(pickle: &Pickle) -> Result<Found> {
    let mut finder = Finder { pickle, visited: HashSet::new(), holders: HashMap::new() };
    let mut found = Found { tensors: BTreeMap::new(), skipped: Vec::new() };
    let mut at = pickle.root;
    let mut path = String::new();
    for depth in 0..=WRAPPER_DEPTH {
        let Node::Dict(entries) = pickle.get(at) else {
            let kind = pickle.get(at).kind();
            return Err(format(format!("holds {kind}, expected a state dict (a dict of names and tensors)")));
        };
        // Later entries replace earlier ones of the same name.
        let entries: BTreeMap<String, Ref> = entries.iter().map(|&(k, v)| (finder.key(k), v)).collect();
        let inner = WRAPPERS.iter().find(|w| entries.get(**w).is_some_and(|&v| finder.holds_tensors(v, 1)));
        let Some(&wrapper) = inner.filter(|_| depth < WRAPPER_DEPTH) else {
            finder.collect(&entries, &path, &mut found)?;
            return if found.tensors.is_empty() { Err(nothing(&entries)) } else { Ok(found) };
        };
        for (name, &value) in entries.iter().filter(|(name, _)| *name != wrapper) {
            found.skipped.push(finder.skip(format!("{path}{name}"), value));
        }
        at = entries[wrapper];
        path = format!("{path}{wrapper}.");
    }
    Err(format("holds wrappers in wrappers without end".into()))
}

fn format(message: String) -> Error {
    Error::new(Code::CHECKPOINT_FORMAT, message)
}

fn nothing(entries: &BTreeMap<String, Ref>) -> Error {
    let names: Vec<&str> = entries.keys().map(String::as_str).collect();
    let names = super::listed(&names);
    format(format!("holds no tensors; its entries are {names}; save the state dict: torch.save(model.state_dict(), …)"))
}

struct Finder<'a> {
    pickle: &'a Pickle,
    /// Nodes that were counted as part of a skipped entry.
    visited: HashSet<Ref>,
    /// Dicts that were looked into for tensors, and whether there are any.
    holders: HashMap<Ref, bool>,
}

impl Finder<'_> {
    /// A dict key as a name; keys that are no strings get one that no tensor has.
    fn key(&self, at: Ref) -> String {
        match self.pickle.get(at) {
            // Copied only when short: thousands of entries may share one long string.
            Node::Str(text) if text.len() <= MAX_NAME => text.to_string(),
            Node::Str(text) => format!("[a string of {} bytes]", text.len()),
            Node::Int(i) => format!("[{i}]"),
            other => format!("[{}]", other.kind()),
        }
    }

    /// Whether a value is a dict with tensors in it, or in a wrapper in it. Each dict is looked into once.
    fn holds_tensors(&mut self, at: Ref, depth: usize) -> bool {
        let Node::Dict(entries) = self.pickle.get(at) else { return false };
        if let Some(&known) = self.holders.get(&at) {
            return known;
        }
        self.holders.insert(at, false);
        let holds = entries.iter().any(|&(k, v)| match self.pickle.get(v) {
            Node::Tensor(_) => true,
            Node::Dict(_) if depth < WRAPPER_DEPTH => {
                self.pickle.text(k).is_some_and(|k| WRAPPERS.contains(&k)) && self.holds_tensors(v, depth + 1)
            }
            _ => false,
        });
        self.holders.insert(at, holds);
        holds
    }

    fn collect(&mut self, entries: &BTreeMap<String, Ref>, path: &str, found: &mut Found) -> Result<()> {
        for (name, &value) in entries {
            let tensor = match self.pickle.get(value) {
                Node::Tensor(tensor) if name.len() <= MAX_NAME => **tensor,
                _ => {
                    let shown: String = name.chars().take(200).collect();
                    found.skipped.push(self.skip(format!("{path}{shown}"), value));
                    continue;
                }
            };
            if found.tensors.insert(name.clone(), tensor).is_some() {
                return Err(Error::new(Code::CHECKPOINT_CORRUPT, format!("two tensors are named `{name}`")));
            }
        }
        Ok(())
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
pub(super) fn read(bytes: &[u8]) -> Result<(Pickle, Found)> {
    let pickle = pickle::read(bytes)?;
    let found = find(&pickle)?;
    Ok((pickle, found))
}

/// A tensor's name without the prefixes that wrappers of modules add.
///
/// `module.` (`DataParallel` and its kin) is taken from the front, as often as it is there; the components
/// `_orig_mod` (`torch.compile`), `_fsdp_wrapped_module` and `_checkpoint_wrapped_module`, which no module is named by
/// hand, wherever they are.
pub(super) fn strip(name: &str) -> String {
    let machine_made = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
    let parts: Vec<&str> = name.split('.').collect();
    let last = parts.len() - 1;
    let kept = parts.iter().enumerate().filter(|(i, part)| *i == last || !machine_made.contains(part));
    let kept: Vec<&str> = kept.map(|(_, part)| *part).collect();
    let front = kept.iter().take(kept.len() - 1).take_while(|part| **part == "module").count();
    kept[front..].join(".")
}

#[cfg(test)]
mod tests {
    use super::strip;

    #[test]
    fn wrapper_prefixes_are_stripped() {
        for (name, want) in [
            ("adapter.reduce.conv.weight", "adapter.reduce.conv.weight"),
            ("module.a.b", "a.b"),
            ("_orig_mod.module.a.b", "a.b"),
            ("module._orig_mod.module.a", "a"),
            ("vision._orig_mod.norm.weight", "vision.norm.weight"),
            ("vision.module.norm", "vision.module.norm"),
            ("module", "module"),
            ("module.module", "module"),
            ("_orig_mod", "_orig_mod"),
            ("", ""),
        ] {
            assert_eq!(strip(name), want, "{name}");
        }
    }
}
