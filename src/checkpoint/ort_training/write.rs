//! Training checkpoints, written.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::layout::{Field, Laid, Layout, Link};
use super::{OptimizerState, Properties, TrainingState, VERSION};
use crate::error::{Code, Error, Result};
use crate::files::Pending;
use crate::tensor::number::to_u64;
use crate::tensor::{CHUNK_BYTES, LazyTensor};

/// What FlatBuffers' verifiers accept.
const MAX_BYTES: u32 = i32::MAX.unsigned_abs();

/// The name that Microsoft's runtime gives its one group.
const GROUP: &str = "group0";

pub(super) fn write(state: &TrainingState, path: &Path) -> Result<u64> {
    let Laid { head, tensors } = layout(state).finish(MAX_BYTES).map_err(|bytes| {
        let message =
            format!("a training checkpoint of {bytes} bytes, expected at most {MAX_BYTES}: train less of the model");
        Error::new(Code::CHECKPOINT_FORMAT, message).at(path)
    })?;
    let failed = |e| Error::io(path, "cannot write the file", e);
    let pending = Pending::next_to(path, "")?;
    let mut out = BufWriter::with_capacity(CHUNK_BYTES, pending.file());
    let mut written = to_u64(head.len());
    out.write_all(&head).map_err(failed)?;
    for (before, name, tensor) in tensors {
        out.write_all(&before).map_err(failed)?;
        written += to_u64(before.len() + tensor.byte_len());
        tensor.stream(&mut |chunk| out.write_all(chunk).map_err(failed)).map_err(|e| match e.code() {
            Code::IO | Code::DISK_FULL => e,
            code => Error::new(code, format!("tensor `{name}`: {}", e.message())).caused_by(e).at(path),
        })?;
    }
    out.flush().map_err(failed)?;
    drop(out);
    pending.put()?;
    Ok(written)
}

/// The tables of the schema, depth first.
fn layout(state: &TrainingState) -> Layout<'_> {
    let (mut file, root) = Layout::new(b"ODTC");
    let (version, bagged) = (Field::I32(VERSION), state.properties != Properties::default());
    let (module, groups, properties) = if bagged {
        let [module, groups, properties] = file.table(root, &[version, Field::Link, Field::Link, Field::Link]);
        (module, groups, Some(properties))
    } else {
        let [module, groups] = file.table(root, &[version, Field::Link, Field::Link]);
        (module, groups, None)
    };
    let [trainable, frozen] = file.table(module, &[Field::Link, Field::Link]);
    tensors(&mut file, trainable, state.trainable.iter().map(|(name, t)| (name.as_str(), t)));
    tensors(&mut file, frozen, state.frozen.iter().map(|(name, t)| (name.as_str(), t)));
    let links = file.links(groups, usize::from(state.optimizer.is_some()));
    links.into_iter().zip(&state.optimizer).for_each(|(link, optimizer)| group(&mut file, link, optimizer));
    if let Some(link) = properties {
        bag(&mut file, link, &state.properties);
    }
    file
}

fn tensors<'a>(file: &mut Layout<'a>, from: Link, all: impl ExactSizeIterator<Item = (&'a str, &'a LazyTensor)>) {
    let links = file.links(from, all.len());
    for (link, (name, tensor)) in links.into_iter().zip(all) {
        let fields = [Field::Link, Field::None, Field::Link, Field::I32(tensor.dtype().onnx()), Field::Link];
        let [text, dims, values] = file.table(link, &fields);
        file.text(text, name);
        // No dimension of a tensor in memory exceeds `isize`, except next to a dimension of 0.
        file.longs(dims, tensor.shape().iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)));
        file.tensor(values, name, tensor);
    }
}

fn group<'a>(file: &mut Layout<'a>, from: Link, optimizer: &'a OptimizerState) {
    let fields = [Field::Link, Field::I64(optimizer.step), Field::F32(optimizer.learning_rate), Field::Link];
    let [name, states] = file.table(from, &fields);
    file.text(name, GROUP);
    let links = file.links(states, optimizer.moments.len());
    for (link, (parameter, moments)) in links.into_iter().zip(&optimizer.moments) {
        let [name, both] = file.table(link, &[Field::Link, Field::Link]);
        file.text(name, parameter);
        tensors(file, both, [("momentum0", &moments.first), ("momentum1", &moments.second)].into_iter());
    }
}

fn bag(file: &mut Layout<'_>, from: Link, properties: &Properties) {
    let [ints, floats, strings] = file.table(from, &[Field::Link, Field::Link, Field::Link]);
    numbers(file, ints, &properties.ints, |v| Field::I64(*v));
    numbers(file, floats, &properties.floats, |v| Field::F32(*v));
    let links = file.links(strings, properties.strings.len());
    for (link, (name, value)) in links.into_iter().zip(&properties.strings) {
        let [text, content] = file.table(link, &[Field::Link, Field::Link]);
        file.text(text, name);
        file.text(content, value);
    }
}

fn numbers<T>(file: &mut Layout<'_>, from: Link, all: &BTreeMap<String, T>, field: impl Fn(&T) -> Field) {
    let links = file.links(from, all.len());
    for (link, (name, value)) in links.into_iter().zip(all) {
        let [text] = file.table(link, &[Field::Link, field(value)]);
        file.text(text, name);
    }
}
