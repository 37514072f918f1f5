//! What calling an allowed global means: plain values, made here.

use super::globals::refused_subclass;
use super::machine::Machine;
use super::{Foreign, Global, MAX_AXES, Node, Ref, Storage, TensorNode, corrupt, sizes};
use crate::error::Result;

/// Longest storage key, in bytes: they are numbers, and compared often.
const MAX_KEY: usize = 64;

impl Machine<'_> {
    /// `callable(*args)`, pushed on the stack.
    ///
    /// # Errors
    /// `checkpoint.corrupt` when the callable is none or the arguments are not what PyTorch writes.
    pub(super) fn reduce(&mut self, callable: Ref, args: Ref) -> Result<()> {
        let &Node::Global(global) = self.get(callable) else {
            return Err(corrupt(format!("the pickle calls {}", self.get(callable).kind())));
        };
        let Node::Tuple(args) = self.get(args) else {
            return Err(corrupt(format!("the pickle calls with {} for arguments", self.get(args).kind())));
        };
        let node = match global {
            Global::RebuildTensor(version) => self.tensor(version, args)?,
            Global::RebuildParameter => {
                let tensor = self.tensor_at(args.first())?;
                return self.push_ref(tensor);
            }
            Global::DeviceTensor => match self.tensor_at(args.first()) {
                Ok(tensor) => return self.push_ref(tensor),
                Err(_) => Node::Foreign(Foreign::Device),
            },
            Global::RebuildFromType => {
                let &[function, _class, inner, _state] = args.as_slice() else {
                    return Err(corrupt("_rebuild_from_type_v2 takes four arguments"));
                };
                // Not itself: nesting would be recursion.
                if !matches!(self.get(function), Node::Global(global) if rebuilds(*global)) {
                    return Err(corrupt("_rebuild_from_type_v2 of something other than a tensor"));
                }
                return self.reduce(function, inner);
            }
            // OrderedDict(items) is written by Python 2 alone, as a list of pairs.
            Global::Dict => Node::Dict(self.initial_entries(args)?),
            Global::Sequence => Node::List(self.initial_items(args)?),
            Global::Scalar(kind) => Node::Scalar(kind),
            Global::Foreign(foreign) => Node::Foreign(foreign),
            Global::Wrapper => return Err(refused_subclass("torch._utils", "_rebuild_wrapper_subclass")),
            Global::Inert => Node::Object,
            Global::Record => Node::Record(None),
            Global::Value => {
                let value = args.first().copied().ok_or_else(|| corrupt("an enumeration is made from no value"))?;
                return self.push_ref(value);
            }
            Global::Element(_) => return Err(corrupt("the pickle calls a storage class or dtype")),
        };
        self.push(node)
    }

    /// The storage that a persistent id describes: `("storage", class, key, location, numel[, view])`.
    ///
    /// # Errors
    /// `checkpoint.corrupt` when it is not of this form.
    pub(super) fn persistent(&self, id: Ref) -> Result<Node> {
        let bad = || corrupt("a persistent id is not that of a storage");
        let Node::Tuple(id) = self.get(id) else { return Err(bad()) };
        let (&[tag, class, key, _location, numel], rest) = id.split_first_chunk::<5>().ok_or_else(bad)?;
        let (Node::Str(tag), &Node::Global(Global::Element(element)), Node::Str(key_text), &Node::Int(numel)) =
            (self.get(tag), self.get(class), self.get(key), self.get(numel))
        else {
            return Err(bad());
        };
        let numel = usize::try_from(numel).map_err(|_| bad())?;
        if key_text.len() > MAX_KEY {
            return Err(bad());
        }
        let part = match rest.first().map(|&view| self.get(view)) {
            None | Some(Node::None) => None,
            Some(Node::Tuple(view)) => Some(self.storage_part(view).ok_or_else(bad)?),
            Some(_) => return Err(bad()),
        };
        if &**tag != "storage" {
            return Err(bad());
        }
        Ok(Node::Storage(Box::new(Storage { key, element, numel, part })))
    }

    /// `(key, offset, size)` of the legacy format.
    fn storage_part(&self, view: &[Ref]) -> Option<(usize, usize)> {
        let &[_key, offset, size] = view else { return None };
        Some((self.size(offset)?, self.size(size)?))
    }

    fn size(&self, at: Ref) -> Option<usize> {
        if let &Node::Int(i) = self.get(at) { usize::try_from(i).ok() } else { None }
    }

    /// `_rebuild_tensor(storage, offset, size, stride, …)`; version 3 adds a dtype as seventh argument.
    fn tensor(&self, version: u8, args: &[Ref]) -> Result<Node> {
        let bad = |what: &str| corrupt(format!("a tensor's {what} is not what PyTorch writes"));
        let (&[storage, offset, shape, strides], _) =
            args.split_first_chunk::<4>().ok_or_else(|| bad("description"))?;
        let Node::Storage(storage) = self.get(storage) else { return Err(bad("storage")) };
        let element = match (version, args.get(6).map(|&a| self.get(a))) {
            (3, Some(&Node::Global(Global::Element(Some(element))))) => element,
            (3, _) => return Err(bad("dtype")),
            _ => storage.element.ok_or_else(|| bad("dtype"))?,
        };
        let offset = self.size(offset).ok_or_else(|| bad("offset"))?;
        // Versions 2 and 3 may end in a dict that says which bits of a lazy view are set.
        let bits = args.get(if version == 3 { 7 } else { 6 }).map(|&a| self.get(a));
        if version > 1 && matches!(bits, Some(Node::Dict(entries)) if !entries.is_empty()) {
            return Ok(Node::Foreign(Foreign::Unresolved));
        }
        let axes = |at: Ref| sizes(&self.nodes, at).map(|s| s.len());
        match (axes(shape), axes(strides)) {
            (Some(a), Some(b)) if a == b => {}
            _ => return Err(corrupt(format!("a tensor's shape and strides are not up to {MAX_AXES} sizes each"))),
        }
        Ok(Node::Tensor(Box::new(TensorNode { storage: **storage, element, offset, shape, strides })))
    }

    /// The tensor of a parameter, which may be of a kind that is not read.
    fn tensor_at(&self, at: Option<&Ref>) -> Result<Ref> {
        match at {
            Some(&at) if matches!(self.get(at), Node::Tensor(_) | Node::Foreign(_)) => Ok(at),
            _ => Err(corrupt("a parameter is made from something other than a tensor")),
        }
    }

    /// Entries of a dict that is made from a list of pairs, or none (`defaultdict` has a factory there instead).
    fn initial_entries(&self, args: &[Ref]) -> Result<Vec<(Ref, Ref)>> {
        let Some(Node::List(items) | Node::Tuple(items)) = args.first().map(|&a| self.get(a)) else {
            return match args.first().map(|&a| self.get(a)) {
                // A Counter is made from a dict.
                Some(Node::Dict(entries)) => {
                    self.count_copies(entries.len())?;
                    Ok(entries.clone())
                }
                _ => Ok(Vec::new()),
            };
        };
        self.count_copies(items.len())?;
        let pair = |&at: &Ref| match self.get(at) {
            Node::List(pair) | Node::Tuple(pair) => <[Ref; 2]>::try_from(pair.as_slice()).ok().map(|[k, v]| (k, v)),
            _ => None,
        };
        items
            .iter()
            .map(pair)
            .collect::<Option<_>>()
            .ok_or_else(|| corrupt("a dict is made from items that are no pairs"))
    }

    fn initial_items(&self, args: &[Ref]) -> Result<Vec<Ref>> {
        match args.first().map(|&a| self.get(a)) {
            None => Ok(Vec::new()),
            Some(Node::List(items) | Node::Tuple(items)) => {
                self.count_copies(items.len())?;
                Ok(items.clone())
            }
            Some(other) => Err(corrupt(format!("a sequence is made from {}", other.kind()))),
        }
    }

    /// Counts what is copied: honest files copy no more items than they have bytes, while a long memoised list, copied
    /// again and again by a few bytes each, would grow quadratically.
    fn count_copies(&self, items: usize) -> Result<()> {
        let copied = self.copied.get().saturating_add(items);
        self.copied.set(copied);
        if copied > self.len_read() {
            return Err(corrupt("the pickle copies a long list again and again"));
        }
        Ok(())
    }
}

/// Whether a function makes a tensor by itself, as `_rebuild_from_type_v2` expects of its first argument.
fn rebuilds(global: Global) -> bool {
    matches!(global, Global::RebuildTensor(_) | Global::RebuildParameter | Global::Foreign(_) | Global::DeviceTensor)
}
