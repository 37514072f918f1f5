//! Which of the dicts in a file is the model's state dict.
//!
//! Flows in: a dict of the pickle. Flows out: a [`Choice`]: the dict itself, one of its entries, or several that are
//! parts of one model; and a warning where it was not the only one, or not under a usual name.
//!
//! The usual names come first. Then any other dict that holds tensors is one, but for those of optimizers, schedulers,
//! metrics and the like. Of several, one whose names are those of another is a second set of the same weights (EMA,
//! SWA): it is named in the warning, and where none is under a usual name, the user chooses.
//!
//! # Errors
//! `checkpoint.format` when several sets of the same weights are there and none is the usual one, or when there is none
//! at the key that the user chose.
//!
//! # Safety
//! No `unsafe`. Each dict is looked into once, however many entries refer to it; recursion ends after a few wrappers.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::listed;
use super::names::{MAX_NAME, shown, strip};
use super::pickle::{Node, Pickle, Ref};
use crate::error::{Code, Error, Result, Warning, WarningCode};

/// Entries under which training scripts put the state dict, in the order in which they are looked for.
const WRAPPERS: &[&str] = &["state_dict", "model_state_dict", "model", "module"];
/// How many wrappers may lie in each other.
pub(super) const WRAPPER_DEPTH: usize = 4;
/// Longest key of a wrapper, in bytes: it becomes part of every name.
const MAX_KEY: usize = 64;
/// Parts of keys whose tensors are no weights.
const NO_WEIGHTS: &[&str] = &[
    "optim",
    "sched",
    "callback",
    "loop",
    "scaler",
    "hparam",
    "hyper",
    "metric",
    "rng",
    "random",
    "history",
    "criterion",
    "loss",
    "config",
];
/// Parts of keys of a second set of the weights: averages of several steps.
const AVERAGES: &[&str] = &["ema", "swa", "avg", "average", "teacher", "shadow", "best"];

/// What a value holds, in the order in which it is preferred.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Holds {
    Nothing,
    /// Tensors without axes: counters and metrics.
    Scalars,
    /// numpy arrays.
    Arrays,
    Weights,
}

/// Where the state dict is.
pub(super) struct Choice {
    /// The keys of the entries that hold it; none where it is the dict itself.
    pub taken: Vec<String>,
    pub warning: Option<Warning>,
}

impl Choice {
    pub fn here() -> Self {
        Self { taken: Vec::new(), warning: None }
    }

    /// Whether an entry is passed over.
    pub fn leaves(&self, key: &str) -> bool {
        !self.taken.is_empty() && !self.taken.iter().any(|taken| taken == key)
    }
}

/// The dicts of a pickle, and what is known of them.
pub(super) struct Sets<'a> {
    pickle: &'a Pickle,
    known: HashMap<Ref, Holds>,
}

impl<'a> Sets<'a> {
    pub fn new(pickle: &'a Pickle) -> Self {
        Self { pickle, known: HashMap::new() }
    }

    /// Chooses among `entries`, which lie at `path` (empty, or with a dot at its end).
    pub fn choose(&mut self, entries: &BTreeMap<String, Ref>, path: &str) -> Result<Choice> {
        let usual = WRAPPERS.iter().find(|w| entries.get(**w).is_some_and(|&v| self.holds(v, 1) > Holds::Nothing));
        if let Some(&usual) = usual {
            let others = self.same_weights(entries, Some(usual));
            let warning = (!others.is_empty()).then(|| several(path, usual, &others));
            return Ok(Choice { taken: vec![usual.to_owned()], warning });
        }
        let direct = entries.values().map(|&v| self.of(v)).max().unwrap_or(Holds::Nothing);
        let candidates = self.candidates(entries);
        if candidates.is_empty() || direct == Holds::Weights {
            let others = if direct == Holds::Weights { self.same_weights(entries, None) } else { Vec::new() };
            let warning = (!others.is_empty()).then(|| several(path, "", &others));
            return Ok(Choice { taken: Vec::new(), warning });
        }
        let plain: Vec<&String> = candidates.iter().filter(|key| !is_average(key)).collect();
        let only = match (candidates.as_slice(), plain.as_slice()) {
            ([only], _) => only,
            (_, [only]) => *only,
            _ => return self.join(entries, candidates, path),
        };
        let others = self.same_weights(entries, Some(only));
        let warning = if others.is_empty() { of_entry(path, only) } else { several(path, only, &others) };
        Ok(Choice { taken: vec![only.clone()], warning: Some(warning) })
    }

    /// The keys of the dicts that hold the most of what may be weights.
    fn candidates(&mut self, entries: &BTreeMap<String, Ref>) -> Vec<String> {
        let mut best = (Holds::Nothing, Vec::new());
        for (key, &value) in entries.iter().filter(|(key, _)| may_hold_weights(key)) {
            let holds = self.holds(value, 1);
            if holds > best.0 {
                best = (holds, Vec::new());
            }
            if holds == best.0 && holds > Holds::Nothing {
                best.1.push(key.clone());
            }
        }
        best.1
    }

    /// Several dicts under names of their own: the parts of one model, unless they are the same part twice.
    fn join(&self, entries: &BTreeMap<String, Ref>, keys: Vec<String>, path: &str) -> Result<Choice> {
        let mut seen = HashSet::new();
        for key in &keys {
            let names = self.names(self.innermost(entries[key]));
            if !names.is_empty() && 2 * names.iter().filter(|name| seen.contains(*name)).count() >= names.len() {
                let all: Vec<String> = keys.iter().map(|key| format!("`{path}{key}`")).collect();
                let message = format!("holds several sets of weights: {}: choose one with --key", listed(&all));
                return Err(Error::new(Code::CHECKPOINT_FORMAT, message));
            }
            seen.extend(names);
        }
        let all: Vec<String> = keys.iter().map(|key| format!("`{path}{key}`")).collect();
        let message = format!(
            "its entries {} were read as the parts of one model, each key in front of its names; --key takes one alone",
            listed(&all)
        );
        Ok(Choice { taken: keys, warning: Some(Warning::new(WarningCode::CHECKPOINT_CHOICE, message)) })
    }

    /// The keys of other dicts whose names are those of the dict at `chosen`, or of `entries` itself.
    fn same_weights(&mut self, entries: &BTreeMap<String, Ref>, chosen: Option<&str>) -> Vec<String> {
        let (mine, taken) = match chosen.map(|key| self.innermost(entries[key])) {
            Some(at) => (self.names(at), Some(at)),
            None => {
                let own = entries.iter().filter(|(_, v)| self.of(**v) > Holds::Nothing).map(|(name, _)| strip(name));
                (own.collect(), None)
            }
        };
        let short: HashSet<&str> = mine.iter().filter_map(|name| name.split_once('.')).map(|(_, rest)| rest).collect();
        let mut seen: HashSet<Ref> = taken.into_iter().collect();
        let mut others = Vec::new();
        for (key, &value) in entries {
            if Some(key.as_str()) == chosen || !may_hold_weights(key) || self.holds(value, 1) < Holds::Weights {
                continue;
            }
            let at = self.innermost(value);
            if !seen.insert(at) {
                continue;
            }
            let theirs = self.names(at);
            let rest = |name: &str| name.split_once('.').map_or(String::new(), |(_, rest)| rest.to_owned());
            let same = theirs.iter().filter(|name| mine.contains(*name)).count();
            let deeper = theirs.iter().filter(|name| mine.contains(&rest(name))).count();
            let higher = theirs.iter().filter(|name| short.contains(name.as_str())).count();
            if 2 * same.max(deeper).max(higher) >= theirs.len().min(mine.len()).max(1) {
                others.push(key.clone());
            }
        }
        others
    }

    /// The names of a dict's tensors, without the prefixes of wrapper modules.
    fn names(&self, at: Ref) -> HashSet<String> {
        let Node::Dict(entries) = self.pickle.get(at) else { return HashSet::new() };
        let tensors = entries.iter().filter(|(_, v)| self.of(*v) > Holds::Nothing);
        let texts = tensors.filter_map(|&(k, _)| self.pickle.text(k)).filter(|text| text.len() <= MAX_NAME);
        texts.map(strip).collect()
    }

    /// The dict in a dict that holds nothing but one dict of weights, and so on.
    pub fn innermost(&self, mut at: Ref) -> Ref {
        for _ in 0..WRAPPER_DEPTH {
            let Node::Dict(entries) = self.pickle.get(at) else { break };
            if entries.iter().any(|&(_, v)| self.of(v) == Holds::Weights) {
                break;
            }
            let holder = |&(k, v): &(Ref, Ref)| {
                let key = self.pickle.text(k).filter(|key| may_hold_weights(key))?;
                (self.known.get(&v).copied() > Some(Holds::Scalars)).then_some((WRAPPERS.contains(&key), v))
            };
            let holders: Vec<(bool, Ref)> = entries.iter().filter_map(holder).collect();
            match (holders.iter().find(|(usual, _)| *usual), holders.as_slice()) {
                (Some(&(_, inner)), _) | (None, &[(_, inner)]) => at = inner,
                _ => break,
            }
        }
        at
    }

    /// What a value is by itself.
    fn of(&self, at: Ref) -> Holds {
        match self.pickle.get(at) {
            Node::Tensor(tensor) => match self.pickle.get(tensor.shape) {
                Node::Tuple(axes) | Node::List(axes) if axes.is_empty() => Holds::Scalars,
                _ => Holds::Weights,
            },
            Node::Foreign(super::pickle::Foreign::Array) => Holds::Arrays,
            Node::Foreign(_) => Holds::Weights,
            _ => Holds::Nothing,
        }
    }

    /// What a dict holds, itself or in a dict in it. Each dict is looked into once.
    fn holds(&mut self, at: Ref, depth: usize) -> Holds {
        let Node::Dict(entries) = self.pickle.get(at) else { return Holds::Nothing };
        if let Some(&known) = self.known.get(&at) {
            return known;
        }
        self.known.insert(at, Holds::Nothing);
        let mut most = Holds::Nothing;
        for &(key, value) in entries {
            let inner = match self.pickle.get(value) {
                Node::Dict(_) if depth < WRAPPER_DEPTH && self.pickle.text(key).is_some_and(may_hold_weights) => {
                    self.holds(value, depth + 1)
                }
                _ => self.of(value),
            };
            most = most.max(inner);
            if most == Holds::Weights {
                break;
            }
        }
        self.known.insert(at, most);
        most
    }
}

/// Whether a dict under this key may be a state dict.
fn may_hold_weights(key: &str) -> bool {
    if key.is_empty() || key.len() > MAX_KEY {
        return false;
    }
    let lower = key.to_ascii_lowercase();
    !NO_WEIGHTS.iter().any(|part| lower.contains(part))
}

/// Whether a key says that the weights are an average or another choice among several.
fn is_average(key: &str) -> bool {
    let lower = key.to_ascii_lowercase();
    lower.split(|c: char| !c.is_ascii_alphanumeric()).any(|part| AVERAGES.contains(&part))
}

fn several(path: &str, taken: &str, others: &[String]) -> Warning {
    let taken =
        if taken.is_empty() { "the tensors outside any entry were".into() } else { format!("`{path}{taken}` was") };
    let names: Vec<String> = others.iter().map(|other| format!("`{path}{other}`")).collect();
    let (names, first) = (listed(&names), others.first().map_or("", String::as_str));
    let message =
        format!("it holds several sets of weights: {taken} taken, {names} not; --key {path}{first} takes the other");
    Warning::new(WarningCode::CHECKPOINT_CHOICE, message)
}

fn of_entry(path: &str, taken: &str) -> Warning {
    Warning::new(WarningCode::CHECKPOINT_CHOICE, format!("the weights are those of its entry `{path}{taken}`"))
}

/// The dict at a path of keys with dots between them.
///
/// # Errors
/// `checkpoint.format`, naming the entries that there are.
pub(super) fn at_key(pickle: &Pickle, key: &str) -> Result<Ref> {
    let (mut at, mut rest) = (pickle.root, key);
    loop {
        let Node::Dict(entries) = pickle.get(at) else { return Err(no_entry(pickle, at, rest)) };
        let texts = entries.iter().rev().filter_map(|&(k, v)| Some((pickle.text(k)?, v)));
        // A key may have dots of its own: the longest one that fits.
        let fits = |text: &&str| rest.strip_prefix(*text).is_some_and(|r| r.is_empty() || r.starts_with('.'));
        let Some((text, value)) = texts.filter(|(text, _)| fits(text)).max_by_key(|(text, _)| text.len()) else {
            return Err(no_entry(pickle, at, rest));
        };
        (at, rest) = (value, rest[text.len()..].trim_start_matches('.'));
        if rest.is_empty() {
            break;
        }
    }
    if matches!(pickle.get(at), Node::Dict(_)) {
        return Ok(at);
    }
    let message = format!("its entry `{key}` (--key) is {}, expected a dict of tensors", pickle.get(at).kind());
    Err(Error::new(Code::CHECKPOINT_FORMAT, message))
}

fn no_entry(pickle: &Pickle, at: Ref, key: &str) -> Error {
    let shown = shown(key);
    let Node::Dict(entries) = pickle.get(at) else {
        let message = format!("has no entry `{shown}` (--key): what holds it is {}", pickle.get(at).kind());
        return Error::new(Code::CHECKPOINT_FORMAT, message);
    };
    let dicts = entries.iter().filter(|(_, v)| matches!(pickle.get(*v), Node::Dict(_)));
    let mut names: Vec<&str> = dicts.filter_map(|&(k, _)| pickle.text(k)).collect();
    names.dedup();
    let there = if names.is_empty() {
        "it is one dict of tensors: leave --key out".to_owned()
    } else {
        format!("its dicts are {}", listed(&names))
    };
    Error::new(Code::CHECKPOINT_FORMAT, format!("has no entry `{shown}` (--key); {there}"))
}
