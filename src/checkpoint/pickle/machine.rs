//! The stack machine: one function per family of opcodes.
//!
//! The opcodes and their arguments are those of Python's `pickletools`; letters in comments are theirs.

use std::cell::Cell;
use std::collections::HashMap;

use super::globals::{find_in, may_be_named, refused, refused_code, refused_subclass};
use super::reader::Reader;
use super::{Dialect, Global, MAX_NODES, Node, Pickle, Ref, corrupt};
use crate::error::{Code, Result};
use crate::tensor::number::to_usize;

/// Interprets the pickle at the start of `bytes`; what follows its STOP opcode is not read.
///
/// # Errors
/// As the module says.
pub(in crate::checkpoint) fn read(bytes: &[u8]) -> Result<Pickle> {
    read_as(Dialect::StateDict, bytes)
}

/// As [`read`], for a pickle that may also mention the classes of `dialect`.
///
/// # Errors
/// As the module says.
pub(in crate::checkpoint) fn read_as(dialect: Dialect, bytes: &[u8]) -> Result<Pickle> {
    let mut machine = Machine {
        dialect,
        reader: Reader::new(bytes),
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copied: Cell::new(0),
        wrappers: false,
    };
    loop {
        let op = machine.reader.u8()?;
        if op == b'.' {
            let root = machine.pop()?;
            return Ok(Pickle { nodes: machine.nodes, root, len: machine.reader.at() });
        }
        machine.step(op)?;
    }
}

/// The state of the interpreter.
pub(super) struct Machine<'a> {
    dialect: Dialect,
    pub(super) reader: Reader<'a>,
    pub(super) nodes: Vec<Node>,
    stack: Vec<Ref>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Ref>,
    /// Items copied from one list to another so far.
    pub(super) copied: Cell<usize>,
    /// Whether tensors that are made of others were mentioned: the next class is theirs.
    wrappers: bool,
}

impl Machine<'_> {
    fn step(&mut self, op: u8) -> Result<()> {
        if let Some(node) = self.scalar(op)? {
            return self.push(node);
        }
        if let Some(node) = self.text(op)? {
            return self.push(node);
        }
        if self.container(op)? || self.memory(op)? || self.call(op)? {
            return Ok(());
        }
        let at = self.reader.at() - 1;
        Err(corrupt(format!("byte {at} of the pickle, 0x{op:02x}, is no opcode that a checkpoint uses")))
    }

    /// Tuples, lists, dicts and sets.
    fn container(&mut self, op: u8) -> Result<bool> {
        let node = match op {
            b')' => Node::Tuple(Vec::new()),
            b']' | 0x8f => Node::List(Vec::new()),
            b'}' => Node::Dict(Vec::new()),
            b't' => Node::Tuple(self.pop_mark()?),
            b'l' | 0x91 => Node::List(self.pop_mark()?),
            b'd' => Node::Dict(pairs(&self.pop_mark_with_names()?)?),
            0x85..=0x87 => {
                let mut items = Vec::with_capacity(3);
                for _ in 0x85..=op {
                    items.push(self.pop()?);
                }
                items.reverse();
                Node::Tuple(items)
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(&[item])?;
                return Ok(true);
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend(&items)?;
                return Ok(true);
            }
            b's' => {
                let (value, key) = (self.pop_with_names()?, self.pop_with_names()?);
                self.set_items(&[(key, value)])?;
                return Ok(true);
            }
            b'u' => {
                let entries = pairs(&self.pop_mark_with_names()?)?;
                self.set_items(&entries)?;
                return Ok(true);
            }
            _ => return Ok(false),
        };
        self.push(node)?;
        Ok(true)
    }

    /// Stack, marks, memo and framing.
    fn memory(&mut self, op: u8) -> Result<bool> {
        match op {
            b'(' => self.marks.push(self.stack.len()),
            b'0' if self.stack.len() == self.floor() => drop(self.pop_mark()?),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.push_ref(top)?;
            }
            b'p' => {
                let index = self.index_line()?;
                self.remember(index)?;
            }
            b'q' => {
                let index = self.reader.u8()?.into();
                self.remember(index)?;
            }
            b'r' => {
                let index = self.reader.u32()?;
                self.remember(index)?;
            }
            0x94 => {
                let index = u32::try_from(self.memo.len()).map_err(|_| corrupt("the memo is too long"))?;
                self.remember(index)?;
            }
            b'g' => {
                let index = self.index_line()?;
                self.recall(index)?;
            }
            b'h' => {
                let index = self.reader.u8()?.into();
                self.recall(index)?;
            }
            b'j' => {
                let index = self.reader.u32()?;
                self.recall(index)?;
            }
            0x80 => {
                let protocol = self.reader.u8()?;
                if protocol > 5 {
                    return Err(corrupt(format!("pickle protocol {protocol}, expected 0 to 5")));
                }
            }
            // A frame is a hint for reading ahead; its content is read like any other.
            0x95 => drop(self.reader.len64()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Globals, and what is made from them.
    fn call(&mut self, op: u8) -> Result<bool> {
        match op {
            b'c' => {
                let (module, name) = (self.reader.line()?, self.reader.line()?);
                let global = self.global(module, name, None)?;
                self.push(global)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Node::Str(module_text), Node::Str(name_text)) = (self.get(module), self.get(name)) else {
                    return Err(corrupt("a STACK_GLOBAL is not named by strings"));
                };
                let (module_text, name_text) = (cut(module_text).to_owned(), cut(name_text).to_owned());
                let global = self.global(&module_text, &name_text, Some((module, name)))?;
                self.push(global)?;
            }
            b'R' | 0x81 => {
                let (args, callable) = (self.pop()?, self.pop()?);
                self.reduce(callable, args)?;
            }
            0x92 => {
                let (_keywords, args, callable) = (self.pop()?, self.pop()?, self.pop()?);
                self.reduce(callable, args)?;
            }
            b'b' => {
                let state = self.pop()?;
                let object = self.top()?;
                if let Node::Record(slot) = &mut self.nodes[to_usize(object.0)] {
                    *slot = Some(state);
                    return Ok(true);
                }
                if !matches!(self.get(object), Node::Dict(_) | Node::Object | Node::Foreign(_)) {
                    let kind = self.get(object).kind();
                    return Err(corrupt(format!("the pickle sets the state of {kind}")));
                }
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.persistent(id)?;
                self.push(storage)?;
            }
            b'i' => {
                let (module, name) = (self.reader.line()?, self.reader.line()?);
                find_in(self.dialect, module, name)?;
                return Err(corrupt("an INST opcode, which PyTorch never writes"));
            }
            b'o' => return Err(corrupt("an OBJ opcode, which PyTorch never writes")),
            b'P' => {
                return Err(corrupt(
                    "a textual persistent id (protocol 0), which PyTorch itself cannot load: save it with protocol 2",
                ));
            }
            // Codes of the registry `copyreg.add_extension`: they could name anything.
            0x82 => return Err(refused_code(self.reader.u8()?.into())),
            0x83 => return Err(refused_code(self.reader.u16()?.into())),
            0x84 => return Err(refused_code(self.reader.i32()?.into())),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What a name means: a function or class of the list, or a class as data; `names` are its nodes, where it has
    /// some.
    fn global(&mut self, module: &str, name: &str, names: Option<(Ref, Ref)>) -> Result<Node> {
        match find_in(self.dialect, module, name) {
            Ok(global) => {
                self.wrappers |= global == Global::Wrapper;
                Ok(Node::Global(global))
            }
            Err(error)
                if self.dialect == Dialect::StateDict
                    && error.code() == Code::CHECKPOINT_UNSAFE_PICKLE
                    && may_be_named(module, name) =>
            {
                let (module, name) = match names {
                    Some(names) => names,
                    None => (self.store(Node::Str(module.into()))?, self.store(Node::Str(name.into()))?),
                };
                Ok(Node::Named(module, name))
            }
            Err(error) => Err(error),
        }
    }

    /// Refuses a class that is only named where it would be more than a key or value of a dict.
    fn is_data(&self, at: Ref) -> Result<()> {
        let &Node::Named(module, name) = self.get(at) else { return Ok(()) };
        let text = |at: Ref| if let Node::Str(text) = self.get(at) { cut(text) } else { "" };
        Err(if self.wrappers { refused_subclass } else { refused }(text(module), text(name)))
    }

    pub(super) fn get(&self, at: Ref) -> &Node {
        &self.nodes[to_usize(at.0)]
    }

    /// Bytes read so far.
    pub(super) fn len_read(&self) -> usize {
        self.reader.at()
    }

    pub(super) fn push(&mut self, node: Node) -> Result<()> {
        let at = self.store(node)?;
        self.push_ref(at)
    }

    fn store(&mut self, node: Node) -> Result<Ref> {
        if self.nodes.len() >= MAX_NODES {
            return Err(corrupt(format!("the pickle holds more than {MAX_NODES} objects")));
        }
        let at = Ref(u32::try_from(self.nodes.len()).expect("MAX_NODES is far below 2^32"));
        self.nodes.push(node);
        Ok(at)
    }

    pub(super) fn push_ref(&mut self, at: Ref) -> Result<()> {
        if self.stack.len() >= 4 * MAX_NODES {
            return Err(corrupt("the pickle's stack grows without end"));
        }
        self.stack.push(at);
        Ok(())
    }

    /// Height below which the innermost mark forbids to pop.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Ref> {
        let above = self.stack.get(self.floor()..).unwrap_or(&[]);
        above.last().copied().ok_or_else(|| corrupt("the pickle takes from an empty stack"))
    }

    fn pop(&mut self) -> Result<Ref> {
        let top = self.pop_with_names()?;
        self.is_data(top)?;
        Ok(top)
    }

    /// As [`Self::pop`], for the key or value of a dict.
    fn pop_with_names(&mut self) -> Result<Ref> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<Ref>> {
        let items = self.pop_mark_with_names()?;
        items.iter().try_for_each(|&item| self.is_data(item))?;
        Ok(items)
    }

    /// As [`Self::pop_mark`], for the keys and values of a dict.
    fn pop_mark_with_names(&mut self) -> Result<Vec<Ref>> {
        let mark = self.marks.pop().ok_or_else(|| corrupt("the pickle closes a mark that it did not open"))?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn index_line(&mut self) -> Result<u32> {
        self.reader.line()?.trim().parse().map_err(|_| corrupt("a memo index is not a number"))
    }

    fn remember(&mut self, index: u32) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(index, top);
        if self.memo.len() > MAX_NODES {
            return Err(corrupt(format!("the pickle remembers more than {MAX_NODES} objects")));
        }
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<()> {
        let found = self.memo.get(&index).copied();
        self.push_ref(found.ok_or_else(|| corrupt(format!("memo entry {index} is used before it is made")))?)
    }

    fn extend(&mut self, items: &[Ref]) -> Result<()> {
        let at = self.top()?;
        match &mut self.nodes[to_usize(at.0)] {
            Node::List(list) => list.extend_from_slice(items),
            Node::Object => {}
            other => return Err(corrupt(format!("the pickle appends to {}", other.kind()))),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[(Ref, Ref)]) -> Result<()> {
        let at = self.top()?;
        match &mut self.nodes[to_usize(at.0)] {
            Node::Dict(entries) => entries.extend_from_slice(items),
            Node::Object => {}
            other => return Err(corrupt(format!("the pickle sets entries of {}", other.kind()))),
        }
        Ok(())
    }
}

/// A name's first bytes: no module's or class's is longer, and a pickle may name a long one often.
fn cut(text: &str) -> &str {
    const LONGEST: usize = 400;
    let end = (0..=LONGEST.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    &text[..end]
}

fn pairs(items: &[Ref]) -> Result<Vec<(Ref, Ref)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(corrupt("a dict has a key without a value"));
    }
    Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
}
