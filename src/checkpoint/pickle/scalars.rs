//! The opcodes that read a value from the bytes: numbers, constants, strings.
//!
//! Flows in: an opcode and the bytes behind it. Flows out: a [`Node`], or nothing for other opcodes. Letters are those
//! of Python's `pickletools`.
//!
//! # Errors
//! `checkpoint.corrupt` for text that is no number, `checkpoint.truncated` for a value that the bytes do not hold.

use super::machine::Machine;
use super::reader::{long, quoted, unescape};
use super::{Node, corrupt};
use crate::error::Result;

impl Machine<'_> {
    /// Numbers and constants.
    pub(super) fn scalar(&mut self, op: u8) -> Result<Option<Node>> {
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
    pub(super) fn text(&mut self, op: u8) -> Result<Option<Node>> {
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
}

/// An integer, or an inert scalar when it does not fit 64 bits.
fn integer(value: Option<i64>) -> Node {
    value.map_or(Node::Scalar("a long integer"), Node::Int)
}
