//! The stack machine: one function per family of opcodes.
//!
//! The opcodes and their arguments are those of Python's `pickletools`; letters in comments are theirs.

use std::cell::Cell;
use std::collections::HashMap;

use super::globals::{find_in, refused};
use super::reader::{Reader, long, quoted, unescape};
use super::{Dialect, MAX_NODES, Node, Pickle, Ref, corrupt};
use crate::error::Result;
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
    reader: Reader<'a>,
    pub(super) nodes: Vec<Node>,
    stack: Vec<Ref>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Ref>,
    /// Items copied from one list to another so far.
    pub(super) copied: Cell<usize>,
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

    /// Numbers and constants.
    fn scalar(&mut self, op: u8) -> Result<Option<Node>> {
        let reader = &mut self.reader;
        Ok(Some(match op {
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'K' => Node::Int(reader.u8()?.into()),
            b'M' => Node::Int(reader.u16()?.into()),
            b'J' => Node::Int(reader.i32()?.into()),
            0x8a => {
                let n = reader.u8()?.into();
                integer(long(reader.take(n)?))
            }
            0x8b => {
                let n = reader.len32()?;
                integer(long(reader.take(n)?))
            }
            // Protocol 0 writes bools as `I00` and `I01`.
            b'I' => match reader.line()? {
                "00" => Node::Bool(false),
                "01" => Node::Bool(true),
                line => Node::Int(line.trim().parse().map_err(|_| corrupt("an INT is not a number"))?),
            },
            b'L' => {
                let line = reader.line()?;
                let digits = line.strip_suffix('L').unwrap_or(line);
                if !digits.bytes().enumerate().all(|(i, b)| b.is_ascii_digit() || (i == 0 && b == b'-')) {
                    return Err(corrupt("a LONG is not a number"));
                }
                integer(digits.parse().ok())
            }
            b'F' => Node::Float(reader.line()?.trim().parse().map_err(|_| corrupt("a FLOAT is not a number"))?),
            b'G' => Node::Float(f64::from_be_bytes(reader.array()?)),
            _ => return Ok(None),
        }))
    }

    /// Strings and bytes. A Python 2 string that is not UTF-8 counts as bytes.
    fn text(&mut self, op: u8) -> Result<Option<Node>> {
        let reader = &mut self.reader;
        let len = match op {
            b'X' | b'B' | b'T' => reader.len32()?,
            0x8c | b'C' | b'U' => reader.u8()?.into(),
            0x8d | 0x8e | 0x96 => reader.len64()?,
            b'V' => {
                let text = unescape(reader.line()?, false).ok_or_else(|| corrupt("a UNICODE has a bad escape"))?;
                return Ok(Some(Node::Str(text.into())));
            }
            b'S' => {
                let text = quoted(reader.line()?.trim()).ok_or_else(|| corrupt("a STRING is not quoted"))?;
                return Ok(Some(Node::Str(text.into())));
            }
            _ => return Ok(None),
        };
        let bytes = reader.take(len)?;
        let text = std::str::from_utf8(bytes);
        Ok(Some(match (op, text) {
            (b'B' | b'C' | 0x8e | 0x96, _) | (b'T' | b'U', Err(_)) => Node::Scalar("bytes"),
            (_, Ok(text)) => Node::Str(text.into()),
            // Lone surrogates, which Python may write: no tensor's name has them.
            (_, Err(_)) => Node::Scalar("text that is not UTF-8"),
        }))
    }

    /// Tuples, lists, dicts and sets.
    fn container(&mut self, op: u8) -> Result<bool> {
        let node = match op {
            b')' => Node::Tuple(Vec::new()),
            b']' | 0x8f => Node::List(Vec::new()),
            b'}' => Node::Dict(Vec::new()),
            b't' => Node::Tuple(self.pop_mark()?),
            b'l' | 0x91 => Node::List(self.pop_mark()?),
            b'd' => Node::Dict(pairs(&self.pop_mark()?)?),
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
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[(key, value)])?;
                return Ok(true);
            }
            b'u' => {
                let entries = pairs(&self.pop_mark()?)?;
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
                self.push(Node::Global(find_in(self.dialect, module, name)?))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Node::Str(module), Node::Str(name)) = (self.get(module), self.get(name)) else {
                    return Err(corrupt("a STACK_GLOBAL is not named by strings"));
                };
                let global = find_in(self.dialect, module, name)?;
                self.push(Node::Global(global))?;
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
                if !matches!(self.get(object), Node::Dict(_) | Node::Object) {
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
            0x82 => return Err(refused(&format!("extension code {}", self.reader.u8()?))),
            0x83 => return Err(refused(&format!("extension code {}", self.reader.u16()?))),
            0x84 => return Err(refused(&format!("extension code {}", self.reader.i32()?))),
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(super) fn get(&self, at: Ref) -> &Node {
        &self.nodes[to_usize(at.0)]
    }

    /// Bytes read so far.
    pub(super) fn len_read(&self) -> usize {
        self.reader.at()
    }

    pub(super) fn push(&mut self, node: Node) -> Result<()> {
        if self.nodes.len() >= MAX_NODES {
            return Err(corrupt(format!("the pickle holds more than {MAX_NODES} objects")));
        }
        let at = Ref(u32::try_from(self.nodes.len()).expect("MAX_NODES is far below 2^32"));
        self.nodes.push(node);
        self.push_ref(at)
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
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<Ref>> {
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

/// An integer, or an inert scalar when it does not fit 64 bits.
fn integer(value: Option<i64>) -> Node {
    value.map_or(Node::Scalar("a long integer"), Node::Int)
}

fn pairs(items: &[Ref]) -> Result<Vec<(Ref, Ref)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(corrupt("a dict has a key without a value"));
    }
    Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
}
