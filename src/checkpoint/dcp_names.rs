//! The names of a distributed checkpoint, as the dicts that were flattened when it was saved.
//!
//! Flows in: entries of `state_dict_metadata` (flattened names) and of `planner_data` (a path of keys for each). Flows
//! out: a [`Pickle`] of nested dicts with the tensors' descriptions, so that the state dict is found in it as in a file
//! of `torch.save`. A description's storage key is the flattened name; it has no storage.
//!
//! # Errors
//! `checkpoint.corrupt` when a path leads through a tensor.
//!
//! # Safety
//! No `unsafe`, no recursion; a path has at most [`MAX_DEPTH`] keys.

use std::collections::HashMap;

use super::pickle::{Element, Global, Node, Pickle, Ref, Storage, TensorNode};
use crate::error::{Code, Error, Result};

/// Most dicts and lists in each other; optimizers have five.
const MAX_DEPTH: usize = 16;
/// Longest name, in bytes.
const MAX_NAME: usize = 1024;

/// A tensor and a list of its chunks as the metadata has them.
pub(super) struct Described<'a> {
    pub element: Element,
    pub shape: Vec<usize>,
    pub chunks: &'a [Ref],
}

/// What an entry of `state_dict_metadata` says of a tensor; none for other objects (`BytesStorageMetadata`).
pub(super) fn described(pickle: &Pickle, at: Ref) -> Result<Option<Described<'_>>> {
    let Some(properties) = pickle.attribute(at, "properties") else { return Ok(None) };
    let bad = |what: &str| corrupt(format!("a tensor's {what} is not what PyTorch writes"));
    let &Node::Record(Some(state)) = pickle.get(properties) else { return Err(bad("properties")) };
    let Node::Tuple(state) = pickle.get(state) else { return Err(bad("properties")) };
    let element = match state.first().map(|&dtype| pickle.get(dtype)) {
        Some(&Node::Global(Global::Element(Some(element)))) => element,
        _ => return Err(bad("dtype")),
    };
    let shape = pickle.attribute(at, "size").and_then(|at| pickle.sizes(at)).ok_or_else(|| bad("size"))?;
    let chunks = pickle.attribute(at, "chunks").map(|at| pickle.get(at));
    let Some(Node::List(chunks) | Node::Tuple(chunks)) = chunks else { return Err(bad("list of chunks")) };
    Ok(Some(Described { element, shape, chunks }))
}

/// The nested dicts of `tensors` (an entry of the metadata each) by `paths`, where a name has one.
pub(super) fn nested(pickle: &Pickle, tensors: Ref, paths: Option<Ref>) -> Result<Pickle> {
    let entries = |at: Ref| if let Node::Dict(entries) = pickle.get(at) { entries.as_slice() } else { &[] };
    let paths: HashMap<&str, Ref> =
        paths.into_iter().flat_map(entries).filter_map(|&(name, path)| Some((pickle.text(name)?, path))).collect();
    let mut tree = Tree { made: Pickle::of_dict(), dicts: HashMap::new() };
    for &(name, at) in entries(tensors) {
        let name = pickle.text(name).filter(|name| name.len() <= MAX_NAME);
        let name = name.ok_or_else(|| corrupt("a name is no text, or too long"))?;
        let path = paths.get(name).and_then(|&path| keys(pickle, path)).unwrap_or_else(|| vec![name.to_owned()]);
        let leaf = match described(pickle, at)? {
            Some(tensor) => tree.tensor(name, tensor.element, &tensor.shape)?,
            None => tree.store(Node::Scalar("bytes"))?,
        };
        tree.insert(&path, leaf)?;
    }
    let mut made = tree.made;
    // The convention of PyTorch's own tutorial: all of an application's state under one key.
    if let (Some(&app), Node::Dict(entries)) = (tree.dicts.get(&(made.root, "app".to_owned())), made.get(made.root))
        && entries.len() == 1
    {
        made.root = app;
    }
    Ok(made)
}

/// The keys of a path; indices of lists become `[0]`.
fn keys(pickle: &Pickle, path: Ref) -> Option<Vec<String>> {
    let (Node::Tuple(keys) | Node::List(keys)) = pickle.get(path) else { return None };
    let key = |&at: &Ref| match pickle.get(at) {
        Node::Str(text) if text.len() <= MAX_NAME => Some(text.to_string()),
        Node::Int(i) => Some(format!("[{i}]")),
        _ => None,
    };
    (1..=MAX_DEPTH).contains(&keys.len()).then(|| keys.iter().map(key).collect())?
}

struct Tree {
    made: Pickle,
    dicts: HashMap<(Ref, String), Ref>,
}

impl Tree {
    fn store(&mut self, node: Node) -> Result<Ref> {
        self.made.store(node).ok_or_else(|| corrupt("there are too many names"))
    }

    fn tensor(&mut self, name: &str, element: Element, shape: &[usize]) -> Result<Ref> {
        let key = self.store(Node::Str(name.into()))?;
        let sizes: Option<Vec<i64>> = shape.iter().map(|&n| i64::try_from(n).ok()).collect();
        let mut refs = Vec::with_capacity(shape.len());
        for n in sizes.ok_or_else(|| corrupt("a shape overflows"))? {
            refs.push(self.store(Node::Int(n))?);
        }
        let shape = self.store(Node::Tuple(refs))?;
        let storage = Storage { key, element: Some(element), numel: 0, part: None };
        self.store(Node::Tensor(Box::new(TensorNode { storage, element, offset: 0, shape, strides: shape })))
    }

    fn insert(&mut self, path: &[String], leaf: Ref) -> Result<()> {
        let Some((last, folders)) = path.split_last() else { return Err(corrupt("a name has an empty path")) };
        let mut at = self.made.root;
        for key in folders {
            at = match self.dicts.get(&(at, key.clone())) {
                Some(&inner) => inner,
                None => {
                    let inner = self.store(Node::Dict(Vec::new()))?;
                    self.named(at, key, inner)?;
                    inner
                }
            };
            if !matches!(self.made.get(at), Node::Dict(_)) {
                return Err(corrupt("the path of a name leads through a tensor"));
            }
        }
        if self.dicts.contains_key(&(at, last.clone())) {
            return Err(corrupt("two names have the same path"));
        }
        self.named(at, last, leaf)
    }

    fn named(&mut self, dict: Ref, key: &str, value: Ref) -> Result<()> {
        let name = self.store(Node::Str(key.into()))?;
        self.made.insert(dict, name, value);
        self.dicts.insert((dict, key.to_owned()), value);
        Ok(())
    }
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(Code::CHECKPOINT_CORRUPT, message)
}
