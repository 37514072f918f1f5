//! Pickles, interpreted symbolically: nothing of what they ask for is ever run.
//!
//! Flows in: the bytes of a pickle (protocols 0 to 5). Flows out: a [`Pickle`], an arena of plain [`Node`]s (numbers,
//! strings, tuples, lists, dicts, tensors as descriptions) with one root.
//!
//! # Errors
//! `checkpoint.unsafe-pickle` names the first global that is not on the allow-list of [`globals`], wherever it is and
//! whether or not it would be needed; only a class may be named as data, as [`globals::may_be_named`] says.
//! `checkpoint.format` and `.quantized` for tensors that are split over processes or packed by a library;
//! `checkpoint.truncated` and `checkpoint.corrupt` for what is not a pickle.
//!
//! # Safety
//! No `unsafe`, and no recursion: nodes refer to each other by index, so that deep or cyclic structures cost nothing to
//! walk past and nothing to drop. Every opcode makes at most one node and moves what it takes from the stack, so that
//! memory and time are linear in the bytes read, which [`MAX_BYTES`] and [`MAX_NODES`] bound.

mod build;
mod foreign;
mod globals;
mod inert;
mod machine;
mod reader;
mod scalars;

pub(super) use foreign::Foreign;
pub(super) use machine::{read, read_as};

use crate::error::{Code, Error};
use crate::tensor::DType;
use crate::tensor::number::to_usize;

/// Bytes of the longest pickle that is read. That of a 7B model with its optimizer has about a million.
pub(super) const MAX_BYTES: usize = 64 << 20;
/// Most objects in one pickle.
const MAX_NODES: usize = 4 << 20;

/// Whose pickle it is, and so which classes it may mention besides those of a state dict.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Dialect {
    /// A state dict, or what training scripts save with one.
    StateDict,
    /// The `.metadata` of torch.distributed.checkpoint.
    Distributed,
    /// DeepSpeed's states of a model and of its optimizer.
    Zero,
}

/// A node's place in [`Pickle`]'s arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ref(u32);

/// Most axes of a tensor. PyTorch allows 64, no weight has more than 6.
const MAX_AXES: usize = 16;

/// A storage as a persistent id describes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Storage {
    /// Name of the storage's record: a [`Node::Str`].
    pub key: Ref,
    /// `None` for an untyped storage, whose length counts bytes.
    pub element: Option<Element>,
    /// Length in elements.
    pub numel: usize,
    /// Offset and length in elements, when it is part of another storage (legacy format only).
    pub part: Option<(usize, usize)>,
}

/// An element type that PyTorch knows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Element {
    /// One that this crate reads.
    Known(DType),
    /// Another one (complex, quantised, 8-bit float): its PyTorch name and bytes per element.
    Other(&'static str, usize),
}

impl Element {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::Known(dtype) => dtype.size(),
            Self::Other(_, size) => size,
        }
    }
}

/// A tensor as its rebuild function describes it; offset and strides in elements.
///
/// Shape and strides stay references (checked: at most [`MAX_AXES`] non-negative integers), so that thousands of
/// tensors that share one large tuple cost no more than the tuple.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct TensorNode {
    pub storage: Storage,
    pub element: Element,
    pub offset: usize,
    pub shape: Ref,
    pub strides: Ref,
}

/// A value on the allow-list that is no data: a function or class by name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Global {
    /// `torch._utils._rebuild_tensor`, `_v2`, `_v3`.
    RebuildTensor(u8),
    /// `torch._utils._rebuild_parameter` and `_rebuild_parameter_with_state`.
    RebuildParameter,
    /// `torch._tensor._rebuild_from_type_v2`.
    RebuildFromType,
    /// `collections.OrderedDict`, `defaultdict`, `Counter`, `dict`.
    Dict,
    /// `list`, `set`, `frozenset`, `tuple`, `torch.Size`: made from one sequence.
    Sequence,
    /// Makes a scalar of this kind: `_codecs.encode`, `bytearray`, `bytes`, numpy's scalars.
    Scalar(&'static str),
    /// Makes a tensor or an array of a kind that is not read.
    Foreign(Foreign),
    /// `torch._utils._rebuild_device_tensor_from_cpu_tensor`: the tensor that it is given, on another device.
    DeviceTensor,
    /// `torch._utils._rebuild_wrapper_subclass`: a tensor that is made of others by its class.
    Wrapper,
    /// `torch.FloatStorage` and its kin, and `torch.float32` and its kin; `None` is the untyped storage.
    Element(Option<Element>),
    /// A class whose instances are kept as inert objects.
    Inert,
    /// A class whose instances are kept with their state.
    Record,
    /// An enumeration: its instances are their values.
    Value,
}

/// A value in the arena.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Box<str>),
    /// Bytes, long integers and other scalars that no tensor needs; their kind.
    Scalar(&'static str),
    Tuple(Vec<Ref>),
    List(Vec<Ref>),
    /// Entries in order; a later one with the same key replaces an earlier one.
    Dict(Vec<(Ref, Ref)>),
    Global(Global),
    /// A class by module and name ([`Node::Str`]s) that is a key or value of a dict, and nothing else.
    Named(Ref, Ref),
    Storage(Box<Storage>),
    Tensor(Box<TensorNode>),
    /// A tensor or array of a kind that is not read.
    Foreign(Foreign),
    /// An instance of an inert class.
    Object,
    /// An instance with its state, once that is set.
    Record(Option<Ref>),
}

impl Node {
    /// The kind of value in a few words.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a bool",
            Self::Int(_) => "an int",
            Self::Float(_) => "a float",
            Self::Str(_) => "a string",
            Self::Scalar(kind) => kind,
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dict",
            Self::Global(_) => "a function or class",
            Self::Named(..) => "a class",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
            Self::Foreign(foreign) => foreign.kind(),
            Self::Object | Self::Record(_) => "an object",
        }
    }
}

/// An interpreted pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    nodes: Vec<Node>,
    /// What the pickle evaluates to.
    pub root: Ref,
    /// Bytes that it took.
    pub len: usize,
}

impl Pickle {
    /// An empty dict, to be filled with what was not pickled as it is read.
    pub fn of_dict() -> Self {
        Self { nodes: vec![Node::Dict(Vec::new())], root: Ref(0), len: 0 }
    }

    /// Adds a node; `None` when there are too many.
    pub fn store(&mut self, node: Node) -> Option<Ref> {
        let at = u32::try_from(self.nodes.len()).ok().map(Ref)?;
        self.nodes.push(node);
        Some(at)
    }

    /// Adds an entry to a dict; nothing where `dict` is none.
    pub fn insert(&mut self, dict: Ref, key: Ref, value: Ref) {
        if let Node::Dict(entries) = &mut self.nodes[to_usize(dict.0)] {
            entries.push((key, value));
        }
    }

    /// The node at `at`.
    pub fn get(&self, at: Ref) -> &Node {
        &self.nodes[to_usize(at.0)]
    }

    /// A tuple or list of non-negative integers: a shape or strides.
    pub fn sizes(&self, at: Ref) -> Option<Vec<usize>> {
        sizes(&self.nodes, at)
    }

    /// The text of a string node.
    pub fn text(&self, at: Ref) -> Option<&str> {
        if let Node::Str(text) = self.get(at) { Some(text) } else { None }
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The value of a dict's string key, the last one where it is repeated.
    pub fn entry(&self, dict: Ref, key: &str) -> Option<&Node> {
        self.entry_ref(dict, key).map(|value| self.get(value))
    }

    /// As [`Self::entry`], where the value is.
    pub fn entry_ref(&self, dict: Ref, key: &str) -> Option<Ref> {
        let Node::Dict(entries) = self.get(dict) else { return None };
        let found = entries.iter().rev().find(|(k, _)| matches!(self.get(*k), Node::Str(s) if &**s == key));
        found.map(|&(_, value)| value)
    }

    /// The value of an attribute of a [`Node::Record`]. Classes have few: a long state is not searched.
    pub fn attribute(&self, record: Ref, name: &str) -> Option<Ref> {
        let &Node::Record(Some(state)) = self.get(record) else { return None };
        let Node::Dict(entries) = self.get(state) else { return None };
        let found = entries.iter().take(MAX_AXES).rev().find(|&&(key, _)| self.text(key) == Some(name));
        found.map(|&(_, value)| value)
    }
}

fn sizes(nodes: &[Node], at: Ref) -> Option<Vec<usize>> {
    let (Node::Tuple(items) | Node::List(items)) = &nodes[to_usize(at.0)] else { return None };
    let size = |r: &Ref| if let Node::Int(i) = nodes[to_usize(r.0)] { usize::try_from(i).ok() } else { None };
    (items.len() <= MAX_AXES).then(|| items.iter().map(size).collect())?
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(Code::CHECKPOINT_CORRUPT, message)
}
