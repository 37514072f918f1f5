//! DeepSpeed's checkpoints of ZeRO: a folder of `*_model_states.pt` and `*_optim_states.pt`, one of each for a rank.
//!
//! Flows in: the folder's names and a way to open its files. Flows out: the float32 weights that the optimizer keeps,
//! put together as DeepSpeed's own `deepspeed/utils/zero_to_fp32.py` does, with the buffers and the frozen parameters
//! of the model states and the names of shared parameters.
//!
//! - Stage 3: each parameter of `n` elements is cut into `ceil(n / ranks)` elements a rank; a rank's cuts lie one after
//!   the other in its `fp32_flat_groups`, padding included. Frozen parameters are cut alike, in the model states.
//! - Stages 1 and 2: the ranks' `single_partition_of_fp32_groups`, joined, hold a group's parameters one after the
//!   other.
//!
//! # Errors
//! `checkpoint.not_found` and `.corrupt` for files of other ranks that are gone; `checkpoint.format` for tensor or
//! expert parallelism; `checkpoint.corrupt` for shapes and groups that disagree; those of the pickle. The way out is
//! the script.
//!
//! # Safety
//! No `unsafe`. Pickles are read symbolically, with three of DeepSpeed's classes on the list. A parameter's elements
//! are counted against the groups before a view is made.

use std::path::Path;
use std::sync::Arc;

use super::contents::{Contents, Opened};
use super::mapping::Mapping;
use super::pickle::{Dialect, Node, Pickle, Ref};
use super::torch_archive::{Archive, Line};
use super::zero_lines::{Lines, whole};
use super::{Format, Skipped, SourceFile};
use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::tensor::{DType, LazyTensor, numel, show};

/// How the files end that hold a rank's part of the model and of the optimizer's state.
pub(super) const MODEL: &str = "_model_states.pt";
/// See [`MODEL`].
pub(super) const OPTIMIZER: &str = "_optim_states.pt";

/// Opens a file of the folder by its name.
pub(super) type Open<'a> = dyn Fn(&str) -> Result<Arc<Mapping>> + 'a;

/// Reads the checkpoint of `folder`, which has files of these names.
pub(super) fn read(folder: &Path, names: &[String], open: &Open<'_>) -> Result<Opened> {
    read_ranks(folder, names, open).map_err(|e| {
        if ![Code::CHECKPOINT_UNSAFE_PICKLE, Code::CHECKPOINT_FORMAT].contains(&e.code()) {
            return e;
        }
        let what = e.message().split("; nothing was run").next().unwrap_or_default();
        let message = format!(
            "{what}; it is part of a DeepSpeed checkpoint: convert it with the zero_to_fp32.py that DeepSpeed put next to \
             it: python zero_to_fp32.py FOLDER OUT"
        );
        Error::new(e.code(), message).at(e.path().unwrap_or(folder))
    })
}

fn read_ranks(folder: &Path, names: &[String], open: &Open<'_>) -> Result<Opened> {
    let (models, optimizers) = (of_ranks(names, MODEL), of_ranks(names, OPTIMIZER));
    let parallel = |name: &&&String| name.contains("expert") || !name.contains("mp_rank_00");
    if let Some(other) = models.iter().chain(&optimizers).find(parallel) {
        let message = format!("{other} is of a model with tensor or expert parallelism, which is not read");
        return Err(Error::new(Code::CHECKPOINT_FORMAT, message).at(folder));
    }
    let mut files = Vec::new();
    let mut opened = |names: &[&String]| -> Result<Vec<Archive>> {
        names
            .iter()
            .map(|name| {
                let map = open(name)?;
                files.push(SourceFile::of(&map));
                Archive::open(&map, 0..map.bytes().len(), Dialect::Zero).map_err(|e| e.at(map.path()))
            })
            .collect()
    };
    let (models, optimizers) = (opened(&models)?, opened(&optimizers)?);
    let ranks = Ranks::new(&models, &optimizers).map_err(|e| e.at(folder))?;
    let mut contents = Contents::new(Format::Zero);
    ranks.fill(&mut contents).map_err(|e| e.at(folder))?;
    let message = format!(
        "float32 weights are read from the optimizer's states of {} ranks (ZeRO stage {}), as zero_to_fp32.py does",
        optimizers.len(),
        ranks.stage
    );
    contents.warnings.push(Warning::new(WarningCode::CHECKPOINT_CHOICE, message));
    Ok(Opened { contents, files, params: None })
}

/// The names that end so, by the numbers in them.
fn of_ranks<'a>(names: &'a [String], ending: &str) -> Vec<&'a String> {
    let key = |name: &&String| -> Vec<(u128, String)> {
        let mut parts = Vec::new();
        let mut rest = name.as_str();
        while !rest.is_empty() {
            let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let digits = rest[text..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |n| text + n);
            // Text first, then the number that follows it.
            parts.push((0, rest[..text].to_owned()));
            parts.push((rest[text..digits].parse().unwrap_or(u128::MAX), String::new()));
            rest = &rest[digits..];
        }
        parts
    };
    let mut found: Vec<&String> = names.iter().filter(|name| name.ends_with(ending)).collect();
    found.sort_by_cached_key(key);
    found
}

/// Names and shapes of the parameters of a group, in order.
type Shapes = Vec<(String, Vec<usize>)>;

/// The states of all ranks.
struct Ranks<'a> {
    models: &'a [Archive],
    stage: i64,
    /// The groups of each rank.
    groups: Vec<Vec<Line>>,
    /// Elements of padding after each parameter of each group, where the optimizer aligned them.
    paddings: Option<Vec<Vec<usize>>>,
}

impl<'a> Ranks<'a> {
    fn new(models: &'a [Archive], optimizers: &[Archive]) -> Result<Self> {
        let (Some(first), Some(_)) = (optimizers.first(), models.first()) else {
            return Err(corrupt(format!("holds no *{MODEL} next to its *{OPTIMIZER}, or the other way round")));
        };
        let state = optimizer(first)?;
        let &Node::Int(stage) = value(&first.pickle, state, "zero_stage")? else {
            return Err(corrupt("its optimizer's states name no stage of ZeRO; give the *_model_states.pt itself"));
        };
        let ranks = match value(&first.pickle, state, "partition_count")? {
            &Node::Int(n) => usize::try_from(n).ok(),
            Node::List(_) => first
                .pickle
                .entry_ref(state, "partition_count")
                .and_then(|at| sizes(&first.pickle, at)?.into_iter().max()),
            _ => None,
        };
        if ranks != Some(optimizers.len()) {
            let (found, ranks) = (optimizers.len(), ranks.map_or_else(|| "?".to_owned(), |n| n.to_string()));
            return Err(corrupt(format!("holds {found} files *{OPTIMIZER}, its {ranks} ranks saved one each")));
        }
        if stage == 3 && models.len() != optimizers.len() {
            let (found, ranks) = (models.len(), optimizers.len());
            return Err(corrupt(format!("holds {found} files *{MODEL}, its {ranks} ranks saved one each")));
        }
        let key = if stage == 3 { "fp32_flat_groups" } else { "single_partition_of_fp32_groups" };
        let groups = |archive: &Archive| -> Result<Vec<Line>> {
            let pickle = &archive.pickle;
            let Node::List(groups) = value(pickle, optimizer(archive)?, key)? else {
                return Err(corrupt(format!("its `{key}` is no list")));
            };
            let lines = groups.iter().map(|&group| archive.line(group));
            lines.collect::<Result<_>>().map_err(|e| e.at(archive.map().path()))
        };
        let paddings = match first.pickle.entry_ref(state, "param_alignment_paddings") {
            Some(at) if !matches!(first.pickle.get(at), Node::None) => Some(lists(&first.pickle, at)?),
            _ => None,
        };
        let groups = optimizers.iter().map(groups).collect::<Result<_>>()?;
        Ok(Self { models, stage, groups, paddings })
    }

    /// Buffers, frozen and trained parameters, and the names of those that are shared, in this order.
    fn fill(&self, contents: &mut Contents) -> Result<()> {
        self.buffers(contents)?;
        self.frozen(contents)?;
        let shapes = self.shapes()?;
        let tensors = if self.stage == 3 { self.partitioned(shapes)? } else { self.joined(shapes)? };
        contents.tensors.extend(tensors);
        let pickle = &self.models[0].pickle;
        if let Some(Node::Dict(shared)) = pickle.entry(pickle.root, "shared_params") {
            for &(name, of) in shared {
                let (Some(name), Some(of)) = (pickle.text(name), pickle.text(of)) else { continue };
                if let Some(tensor) = contents.tensors.get(of).cloned() {
                    contents.tensors.insert(name.to_owned(), tensor);
                }
            }
        }
        Ok(())
    }

    fn buffers(&self, contents: &mut Contents) -> Result<()> {
        let (model, pickle) = (&self.models[0], &self.models[0].pickle);
        let Node::List(names) = value(pickle, pickle.root, "buffer_names")? else {
            return Err(corrupt("its `buffer_names` is no list"));
        };
        let names: std::collections::HashSet<&str> = names.iter().filter_map(|&name| pickle.text(name)).collect();
        let Node::Dict(module) = value(pickle, pickle.root, "module")? else {
            return Err(corrupt("its `module` is no state dict"));
        };
        for &(name, at) in module {
            let Some(name) = pickle.text(name).filter(|name| names.contains(name)) else { continue };
            match model.tensor(at)? {
                Ok(tensor) if tensor.dtype().is_float() => {
                    contents.tensors.insert(name.to_owned(), tensor.cast(DType::F32));
                }
                Ok(tensor) => drop(contents.tensors.insert(name.to_owned(), tensor)),
                Err(dtype) => {
                    contents.skipped.push(Skipped { name: name.to_owned(), why: format!("a tensor of type {dtype}") });
                }
            }
        }
        Ok(())
    }

    /// Parameters that were not trained: whole in stages 1 and 2, a piece a rank in stage 3.
    fn frozen(&self, contents: &mut Contents) -> Result<()> {
        let pickle = &self.models[0].pickle;
        let Some(shapes @ Node::Dict(_)) = pickle.entry(pickle.root, "frozen_param_shapes") else { return Ok(()) };
        let ranks = if self.stage == 3 { self.models } else { &self.models[..1] };
        // Each rank's pieces by name, once: a dict is searched from its end.
        let pieces: Vec<std::collections::HashMap<&str, Ref>> = ranks.iter().map(fragments).collect();
        for (name, shape) in named_shapes(pickle, shapes)? {
            let elements = elements(&name, &shape)?;
            let mut lines: Vec<Line> = Vec::new();
            for (rank, pieces) in ranks.iter().zip(&pieces) {
                let piece =
                    pieces.get(name.as_str()).ok_or_else(|| corrupt(format!("`{name}` has no piece of a rank")))?;
                if self.stage != 3 {
                    match rank.tensor(*piece)? {
                        Ok(tensor) => drop(contents.tensors.insert(name.clone(), tensor)),
                        Err(dtype) => return Err(corrupt(format!("`{name}` is of type {dtype}"))),
                    }
                    continue;
                }
                lines.push(rank.line(*piece)?);
            }
            if self.stage == 3 {
                let parts = Lines::new(&lines).take(0, elements).map_err(|e| about(&name, e))?;
                contents.tensors.insert(name.clone(), whole(parts, &shape).map_err(|e| about(&name, e))?);
            }
        }
        Ok(())
    }

    /// Names and shapes of the trained parameters, by group.
    fn shapes(&self) -> Result<Vec<Shapes>> {
        let pickle = &self.models[0].pickle;
        let Node::List(groups) = value(pickle, pickle.root, "param_shapes")? else {
            return Err(corrupt("its `param_shapes` is no list"));
        };
        groups.iter().map(|&group| named_shapes(pickle, pickle.get(group))).collect()
    }

    /// Stage 3: a piece of each rank, and padding at the end of the last.
    fn partitioned(&self, shapes: Vec<Shapes>) -> Result<Vec<(String, LazyTensor)>> {
        let lines: Vec<Lines<'_>> = self.groups.iter().map(Lines::new).collect();
        let (ranks, mut at, mut tensors) = (lines.len(), 0usize, Vec::new());
        for (name, shape) in shapes.into_iter().flatten() {
            let elements = elements(&name, &shape)?;
            let piece = elements.div_ceil(ranks);
            let (mut left, mut parts) = (elements, Vec::new());
            for rank in &lines {
                let now = piece.min(left);
                parts.extend(rank.take(at, now).map_err(|e| about(&name, e))?);
                left -= now;
            }
            tensors.push((name.clone(), whole(parts, &shape).map_err(|e| about(&name, e))?));
            at = at.checked_add(piece).ok_or_else(|| corrupt("its shapes overflow"))?;
        }
        for (rank, held) in lines.iter().map(|lines| lines.len).enumerate() {
            if held != at {
                return Err(corrupt(format!(
                    "rank {rank} holds {held} elements, the shapes of the parameters need {at}"
                )));
            }
        }
        Ok(tensors)
    }

    /// Stages 1 and 2: the ranks' parts of a group in one line.
    fn joined(&self, shapes: Vec<Shapes>) -> Result<Vec<(String, LazyTensor)>> {
        let mut tensors = Vec::new();
        let mut ranks: Vec<_> = self.groups.iter().map(|groups| groups.iter()).collect();
        if self.groups.iter().any(|groups| groups.len() != shapes.len()) {
            let (n, groups) = (shapes.len(), self.groups[0].len());
            return Err(corrupt(format!("its ranks hold {groups} groups, its parameters are in {n}")));
        }
        for (number, shapes) in shapes.into_iter().enumerate() {
            let lines = Lines::new(ranks.iter_mut().filter_map(Iterator::next));
            let paddings = self.paddings.as_ref().map(|all| all.get(number).map_or(&[][..], Vec::as_slice));
            if paddings.is_some_and(|p| p.len() != shapes.len()) {
                return Err(corrupt(format!("group {number} has not one padding for each of its parameters")));
            }
            let mut at = 0usize;
            for (i, (name, shape)) in shapes.into_iter().enumerate() {
                let elements = elements(&name, &shape)?;
                let parts = lines.take(at, elements).map_err(|e| about(&name, e))?;
                tensors.push((name.clone(), whole(parts, &shape).map_err(|e| about(&name, e))?));
                let padding = paddings.map_or(0, |p| p[i]);
                let next = at.checked_add(elements).and_then(|at| at.checked_add(padding));
                at = next.ok_or_else(|| corrupt("its shapes overflow"))?;
            }
            let held = lines.len;
            // Groups are padded to twice the number of ranks.
            let align = |n: usize| n.div_ceil(2 * self.groups.len());
            if align(at) != align(held) {
                let what = format!("group {number} holds {held} elements");
                return Err(corrupt(format!("{what}, the shapes of its parameters need {at}")));
            }
        }
        Ok(tensors)
    }
}

/// `optimizer_state_dict` of a rank.
fn optimizer(archive: &Archive) -> Result<Ref> {
    let pickle = &archive.pickle;
    let found = pickle.entry_ref(pickle.root, "optimizer_state_dict");
    found.ok_or_else(|| corrupt("holds no `optimizer_state_dict`").at(archive.map().path()))
}

/// `frozen_param_fragments` of a rank by name.
fn fragments(archive: &Archive) -> std::collections::HashMap<&str, Ref> {
    let pickle = &archive.pickle;
    let Some(Node::Dict(entries)) = pickle.entry(pickle.root, "frozen_param_fragments") else {
        return Default::default();
    };
    entries.iter().filter_map(|&(name, at)| Some((pickle.text(name)?, at))).collect()
}

fn value<'a>(pickle: &'a Pickle, dict: Ref, key: &str) -> Result<&'a Node> {
    pickle.entry(dict, key).ok_or_else(|| corrupt(format!("holds no `{key}`: it is no checkpoint of ZeRO")))
}

/// The numbers of a list, however long.
fn sizes(pickle: &Pickle, at: Ref) -> Option<Vec<usize>> {
    let (Node::List(items) | Node::Tuple(items)) = pickle.get(at) else { return None };
    let number = |&at: &Ref| if let &Node::Int(n) = pickle.get(at) { usize::try_from(n).ok() } else { None };
    items.iter().map(number).collect()
}

fn lists(pickle: &Pickle, at: Ref) -> Result<Vec<Vec<usize>>> {
    let bad = || corrupt("its paddings are no lists of numbers");
    let Node::List(items) = pickle.get(at) else { return Err(bad()) };
    let mut left = pickle.nodes().len();
    let mut list = |&at: &Ref| {
        let sizes = sizes(pickle, at)?;
        // One long list may be named often.
        left = left.checked_sub(sizes.len())?;
        Some(sizes)
    };
    items.iter().map(&mut list).collect::<Option<_>>().ok_or_else(bad)
}

/// Names and shapes of a dict.
fn named_shapes(pickle: &Pickle, dict: &Node) -> Result<Shapes> {
    let bad = || corrupt("its shapes are no dict of names and sizes");
    let Node::Dict(entries) = dict else { return Err(bad()) };
    let shape = |&(name, at): &(Ref, Ref)| {
        let name = pickle.text(name).filter(|name| name.len() <= 1024)?;
        Some((name.to_owned(), pickle.sizes(at)?))
    };
    entries.iter().map(shape).collect::<Option<_>>().ok_or_else(bad)
}

fn elements(name: &str, shape: &[usize]) -> Result<usize> {
    let fits = numel(shape).filter(|n| n.checked_mul(8).is_some());
    fits.ok_or_else(|| corrupt(format!("the shape {} of `{name}` overflows", show(shape))))
}

fn about(name: &str, error: Error) -> Error {
    Error::new(error.code(), format!("parameter `{name}`: {}", error.message()))
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(Code::CHECKPOINT_CORRUPT, message)
}
