//! FlatBuffers, written from front to back: tables, texts and vectors in memory, tensors' bytes behind them.
//!
//! Every distance but that to a vtable leads forward, so that what it leads to can always be put at the end. A table
//! starts at a multiple of 8 bytes, with its vtable right in front of it, the elements of a vector at multiples of
//! their size.

use crate::tensor::LazyTensor;
use crate::tensor::number::to_u64;

/// Tensors start at multiples of this many bytes.
const ALIGNMENT: usize = 16;

/// A field of a table.
#[derive(Clone, Copy)]
pub(super) enum Field {
    /// Left out.
    None,
    I32(i32),
    I64(i64),
    F32(f32),
    /// What a later call puts at the end.
    Link,
}

/// Where a distance is to be written once it is known.
#[derive(Clone, Copy)]
pub(super) struct Link(usize);

/// A file under way.
pub(super) struct Layout<'a> {
    bytes: Vec<u8>,
    /// Distances: where each stands, where it leads.
    links: Vec<(usize, usize)>,
    tensors: Vec<(Link, &'a str, &'a LazyTensor)>,
}

/// A file's tables and, behind them, its tensors.
pub(super) struct Laid<'a> {
    /// Everything in front of the first tensor.
    pub head: Vec<u8>,
    /// Each tensor, and the bytes in front of it: padding and its length.
    pub tensors: Vec<(Vec<u8>, &'a str, &'a LazyTensor)>,
}

impl<'a> Layout<'a> {
    /// A file that holds its identifier so far, and where to link its root.
    pub fn new(identifier: &[u8; 4]) -> (Self, Link) {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(identifier);
        (Self { bytes, links: Vec::new(), tensors: Vec::new() }, Link(0))
    }

    /// Puts a table at the end; gives the links among its fields, in their order.
    pub fn table<const N: usize>(&mut self, from: Link, fields: &[Field]) -> [Link; N] {
        let mut body = vec![0; 4];
        let mut offsets = Vec::with_capacity(fields.len());
        let mut links = Vec::with_capacity(N);
        for field in fields {
            let value = match field {
                Field::None => Vec::new(),
                Field::I32(v) => v.to_le_bytes().to_vec(),
                Field::I64(v) => v.to_le_bytes().to_vec(),
                Field::F32(v) => v.to_le_bytes().to_vec(),
                Field::Link => vec![0; 4],
            };
            body.resize(body.len().next_multiple_of(value.len().max(1)), 0);
            offsets.push(if value.is_empty() { 0 } else { body.len() });
            if matches!(field, Field::Link) {
                links.push(body.len());
            }
            body.extend_from_slice(&value);
        }
        let vtable_len = 4 + 2 * offsets.len();
        let at = (self.bytes.len() + vtable_len).next_multiple_of(8);
        self.bytes.resize(at - vtable_len, 0);
        for entry in [vtable_len, body.len()].into_iter().chain(offsets) {
            let entry = u16::try_from(entry).expect("tables of this schema have tens of bytes");
            self.bytes.extend_from_slice(&entry.to_le_bytes());
        }
        let back = i32::try_from(vtable_len).expect("vtables of this schema have tens of bytes");
        body[..4].copy_from_slice(&back.to_le_bytes());
        self.bytes.extend_from_slice(&body);
        self.links.push((from.0, at));
        let links: Vec<Link> = links.into_iter().map(|offset| Link(at + offset)).collect();
        links.try_into().unwrap_or_else(|_| unreachable!("callers expect as many links as they ask for"))
    }

    /// Puts a text at the end.
    pub fn text(&mut self, from: Link, text: &str) {
        self.vector(from, text.len(), 1);
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
    }

    /// Puts integers at the end.
    pub fn longs(&mut self, from: Link, values: impl ExactSizeIterator<Item = i64>) {
        self.vector(from, values.len(), 8);
        values.for_each(|v| self.bytes.extend_from_slice(&v.to_le_bytes()));
    }

    /// Puts a vector of that many links at the end.
    pub fn links(&mut self, from: Link, count: usize) -> Vec<Link> {
        self.vector(from, count, 4);
        let start = self.bytes.len();
        self.bytes.resize(start + 4 * count, 0);
        (0..count).map(|i| Link(start + 4 * i)).collect()
    }

    /// Leaves a tensor's bytes for behind the tables. `name` is for errors.
    pub fn tensor(&mut self, from: Link, name: &'a str, tensor: &'a LazyTensor) {
        self.tensors.push((from, name, tensor));
    }

    /// The length of a vector whose elements of `size` bytes come next.
    fn vector(&mut self, from: Link, count: usize, size: usize) {
        let elements = (self.bytes.len() + 4).next_multiple_of(size.max(4));
        self.bytes.resize(elements - 4, 0);
        self.links.push((from.0, elements - 4));
        self.bytes.extend_from_slice(&length(count));
    }

    /// The finished layout, unless it takes more than `most` bytes, a 32-bit number: then the number it takes.
    pub fn finish(mut self, most: u32) -> Result<Laid<'a>, u64> {
        let mut end = self.bytes.len();
        let mut tensors = Vec::with_capacity(self.tensors.len());
        let mut total = to_u64(end);
        for (from, name, tensor) in self.tensors {
            total = total.saturating_add(to_u64(tensor.byte_len() + ALIGNMENT + 4));
            if total > u64::from(most) {
                continue;
            }
            let start = (end + 4).next_multiple_of(ALIGNMENT);
            let mut before = vec![0; start - 4 - end];
            before.extend_from_slice(&length(tensor.byte_len()));
            self.links.push((from.0, start - 4));
            end = start + tensor.byte_len();
            tensors.push((before, name, tensor));
        }
        if total > u64::from(most) {
            return Err(total);
        }
        for (at, to) in self.links {
            self.bytes[at..at + 4].copy_from_slice(&length(to - at));
        }
        Ok(Laid { head: self.bytes, tensors })
    }
}

/// A length or a distance. Those that do not fit stand in files that [`Layout::finish`] refuses.
fn length(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::TrainingState;
    use super::*;

    /// Properties that all have one text of a thousand bytes as their value.
    fn shared(properties: usize) -> Vec<u8> {
        let (mut file, root) = Layout::new(b"ODTC");
        let [module, bag] = file.table(root, &[Field::I32(2), Field::Link, Field::None, Field::Link]);
        let [] = file.table(module, &[]);
        let [strings] = file.table(bag, &[Field::None, Field::None, Field::Link]);
        let links = file.links(strings, properties);
        let mut values = Vec::new();
        for (i, link) in links.into_iter().enumerate() {
            let [name, value] = file.table(link, &[Field::Link, Field::Link]);
            file.text(name, &format!("{i}"));
            values.push(value);
        }
        file.text(values[0], &"x".repeat(1000));
        let at = file.links.last().unwrap().1;
        file.links.extend(values[1..].iter().map(|value| (value.0, at)));
        file.finish(u32::MAX).map_err(|_| ()).unwrap().head
    }

    #[test]
    fn bytes_may_be_shared_and_not_multiplied() {
        assert_eq!(TrainingState::from_bytes(shared(2), "c").unwrap().properties.strings["1"].len(), 1000);
        let bytes = shared(500);
        assert!(bytes.len() < 30_000);
        let error = TrainingState::from_bytes(bytes, "c").unwrap_err();
        assert_eq!(error.path(), Some(Path::new("c")));
        assert!(error.message().contains("over and over"), "{error}");
    }
}
