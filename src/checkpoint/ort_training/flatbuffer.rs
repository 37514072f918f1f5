//! FlatBuffers, read with checks: as much of the encoding as one schema needs.
//!
//! A table begins with the signed distance back to its vtable, which lists where the table's fields lie; strings,
//! vectors and inner tables are reached by unsigned distances forward (<https://flatbuffers.dev/internals/>). Alignment
//! is not insisted on: bytes are copied out.

use std::cell::Cell;
use std::ops::Range;

use super::corrupt;
use crate::error::{Code, Error, Result};

/// A file, and how many of its bytes may still be read.
pub(super) struct Buffer<'a> {
    bytes: &'a [u8],
    budget: Cell<usize>,
}

/// A table of the file.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    buffer: &'a Buffer<'a>,
    /// Where the table lies.
    range: (usize, usize),
    /// Where its vtable lies.
    vtable: (usize, usize),
}

impl<'a> Buffer<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, budget: Cell::new(bytes.len().saturating_mul(2)) }
    }

    /// The outermost table.
    pub fn root(&'a self) -> Result<Table<'a>> {
        self.table(self.follow(0)?)
    }

    fn range(&self, at: usize, len: usize) -> Result<&'a [u8]> {
        let part = at.checked_add(len).and_then(|end| self.bytes.get(at..end));
        part.ok_or_else(|| {
            let message = format!("ends after {} bytes, before what it points at: copy it again", self.bytes.len());
            Error::new(Code::CHECKPOINT_TRUNCATED, message)
        })
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.range(at, N)?);
        Ok(array)
    }

    fn u16(&self, at: usize) -> Result<usize> {
        Ok(u16::from_le_bytes(self.array(at)?).into())
    }

    fn u32(&self, at: usize) -> Result<usize> {
        let value = u32::from_le_bytes(self.array(at)?);
        usize::try_from(value).map_err(|_| corrupt(format!("claims {value} bytes")))
    }

    /// Where the distance at `at` leads.
    fn follow(&self, at: usize) -> Result<usize> {
        let distance = self.u32(at)?;
        at.checked_add(distance)
            .filter(|_| distance > 0)
            .ok_or_else(|| corrupt(format!("the offset at byte {at} leads nowhere")))
    }

    fn table(&'a self, at: usize) -> Result<Table<'a>> {
        let back = i32::from_le_bytes(self.array(at)?);
        let vtable = isize::try_from(back).ok().and_then(|back| at.checked_add_signed(back.checked_neg()?));
        let vtable = vtable.ok_or_else(|| corrupt(format!("the table at byte {at} has no vtable")))?;
        let (vtable_len, len) = (self.u16(vtable)?, self.u16(vtable.saturating_add(2))?);
        if vtable_len < 4 || vtable_len % 2 != 0 || len < 4 {
            return Err(corrupt(format!("the table at byte {at} has a damaged vtable")));
        }
        self.range(vtable, vtable_len)?;
        self.range(at, len)?;
        self.spend(len)?;
        Ok(Table { buffer: self, range: (at, at + len), vtable: (vtable, vtable + vtable_len) })
    }

    /// Counts bytes that are read. Without a limit, a few of them could be read as a thousand objects.
    fn spend(&self, bytes: usize) -> Result<()> {
        match self.budget.get().checked_sub(bytes) {
            Some(left) => {
                self.budget.set(left);
                Ok(())
            }
            None => Err(corrupt("points at the same bytes over and over".to_owned())),
        }
    }
}

impl<'a> Table<'a> {
    /// Where the field of that number lies, unless it is left out.
    fn field(&self, number: usize) -> Result<Option<usize>> {
        let entry = self.vtable.0 + 4 + 2 * number;
        if entry + 2 > self.vtable.1 {
            return Ok(None);
        }
        match self.buffer.u16(entry)? {
            0 => Ok(None),
            offset => Ok(Some(self.range.0 + offset)),
        }
    }

    /// A number's bytes; zeros, the schema's default, when it is left out.
    fn scalar<const N: usize>(&self, number: usize) -> Result<[u8; N]> {
        match self.field(number)? {
            None => Ok([0; N]),
            Some(at) if at + N <= self.range.1 => self.buffer.array(at),
            Some(_) => Err(corrupt(format!("field {number} lies outside the table at byte {}", self.range.0))),
        }
    }

    pub fn bool(&self, number: usize) -> Result<bool> {
        Ok(self.scalar::<1>(number)? != [0])
    }

    pub fn i32(&self, number: usize) -> Result<i32> {
        self.scalar(number).map(i32::from_le_bytes)
    }

    pub fn i64(&self, number: usize) -> Result<i64> {
        self.scalar(number).map(i64::from_le_bytes)
    }

    pub fn f32(&self, number: usize) -> Result<f32> {
        self.scalar(number).map(f32::from_le_bytes)
    }

    /// The table that a field leads to.
    pub fn table(&self, number: usize) -> Result<Option<Table<'a>>> {
        let Some(at) = self.field(number)? else { return Ok(None) };
        self.buffer.table(self.buffer.follow(at)?).map(Some)
    }

    /// Where the elements lie of the vector that a field leads to, each of `size` bytes.
    pub fn vector(&self, number: usize, size: usize) -> Result<Option<Range<usize>>> {
        let Some(at) = self.field(number)? else { return Ok(None) };
        let at = self.buffer.follow(at)?;
        let len = self
            .buffer
            .u32(at)?
            .checked_mul(size)
            .ok_or_else(|| corrupt(format!("the vector at byte {at} is too long")))?;
        self.buffer.range(at + 4, len)?;
        self.buffer.spend(len)?;
        Ok(Some(at + 4..at + 4 + len))
    }

    /// The tables of a vector; none when it is left out.
    pub fn tables(&self, number: usize) -> Result<impl Iterator<Item = Result<Table<'a>>> + use<'a>> {
        let elements = self.vector(number, 4)?.unwrap_or_default();
        let buffer = self.buffer;
        Ok(elements.step_by(4).map(move |at| buffer.table(buffer.follow(at)?)))
    }

    /// The integers of a vector.
    pub fn longs(&self, number: usize) -> Result<Option<Vec<i64>>> {
        let Some(elements) = self.vector(number, 8)? else { return Ok(None) };
        let all = elements.step_by(8).map(|at| self.buffer.array(at).map(i64::from_le_bytes));
        all.collect::<Result<_>>().map(Some)
    }

    /// The text of a field.
    pub fn text(&self, number: usize) -> Result<Option<&'a str>> {
        let Some(range) = self.vector(number, 1)? else { return Ok(None) };
        let bytes = self.buffer.range(range.start, range.len())?;
        let text = std::str::from_utf8(bytes);
        text.map(Some).map_err(|e| corrupt(format!("the text at byte {} is not UTF-8", range.start)).caused_by(e))
    }
}
