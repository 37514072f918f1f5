//! Counts what a graph's file would become in memory, before it is decoded.
//!
//! A field takes two bytes in a file and up to 200 in memory. The walk knows the messages of `proto` alone: what it
//! does not know, the decoder skips.

/// The messages in which others lie.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Training,
    Function,
    Graph,
    Node,
    Attribute,
    Tensor,
    SparseTensor,
    Value,
    Type,
    Sequence,
    TensorType,
    Shape,
}

use Message::{
    Attribute, Function, Graph, Model, Node, Sequence, Shape, SparseTensor, Tensor, TensorType, Training, Type, Value,
};

/// How deep messages may lie in each other: as deep as `prost` reads them.
const MAX_DEPTH: usize = 100;

/// The number of fields of a model and of everything in it; none where they are malformed, too deep, or groups, which
/// ONNX has not.
pub(super) fn count(model: &[u8]) -> Option<usize> {
    fields(Model, model, MAX_DEPTH)
}

fn fields(message: Message, mut bytes: &[u8], depth: usize) -> Option<usize> {
    let mut count = 0usize;
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        count = count.checked_add(1)?;
        let length = match key & 7 {
            0 => {
                varint(&mut bytes)?;
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (field, rest) = bytes.split_at_checked(length)?;
        bytes = rest;
        if let Some(inner) = child(message, key >> 3).filter(|_| key & 7 == 2) {
            count = count.checked_add(fields(inner, field, depth.checked_sub(1)?)?)?;
        }
    }
    Some(count)
}

/// The message in a field; none of a field that holds a number or a text.
fn child(message: Message, field: u64) -> Option<Message> {
    Some(match (message, field) {
        (Model, 7) | (Training, 1 | 2) | (Attribute, 6 | 11) => Graph,
        (Model, 20) => Training,
        (Model, 25) => Function,
        (Function, 7) | (Graph, 1) => Node,
        (Function, 11) | (Node, 5) => Attribute,
        (Graph, 5) | (Attribute, 5 | 10) | (SparseTensor, 1 | 2) => Tensor,
        (Graph, 15) | (Attribute, 22 | 23) => SparseTensor,
        (Graph, 11..=13) => Value,
        (Value, 2) | (Sequence, 1) => Type,
        (Type, 1) => TensorType,
        (Type, 4) => Sequence,
        (TensorType, 2) => Shape,
        _ => return None,
    })
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let (mut value, mut shift) = (0u64, 0u32);
    loop {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_wherever_they_lie() {
        // A model with a graph of three empty nodes, one of them with a name.
        let graph = [[0x0a, 0].as_slice(), &[0x0a, 0], &[0x0a, 3, 0x1a, 1, b'n']].concat();
        let model = [[0x08, 9, 0x3a, u8::try_from(graph.len()).unwrap()].as_slice(), &graph].concat();
        assert_eq!(count(&model), Some(6));
        assert_eq!(count(&model[..model.len() - 1]), None);
        assert_eq!(count(&[0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), None);
        // A graph in an attribute in a graph: counted down to the depth that is read.
        let attribute = |graph: &[u8]| {
            let wrap = |tag: u8, inner: &[u8]| [&[tag, u8::try_from(inner.len()).unwrap()], inner].concat();
            wrap(0x3a, &wrap(0x0a, &wrap(0x2a, &wrap(0x32, graph))))
        };
        assert_eq!(count(&attribute(&[0x0a, 0])), Some(5));
        assert_eq!(fields(Model, &attribute(&[0x0a, 0]), 3), None);
    }
}
