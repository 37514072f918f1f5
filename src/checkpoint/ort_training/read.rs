//! Training checkpoints, read.
//!
//! Numbers of fields are the positions in `ort_training_checkpoint.fbs` and, for `Tensor`, `ort.fbs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::flatbuffer::{Buffer, Table};
use super::{Moments, OptimizerState, Properties, TrainingState, VERSION, corrupt};
use crate::checkpoint::contents::Contents;
use crate::checkpoint::mapping::{Mapped, Mapping};
use crate::checkpoint::{Format, Skipped};
use crate::error::{Code, Error, Result};
use crate::tensor::{DType, LazyTensor, numel, show};

/// Whether the file has the format's identifier.
pub(in crate::checkpoint) fn is_ort_training(bytes: &[u8]) -> bool {
    bytes.get(4..8) == Some(b"ODTC")
}

/// The parameters, trainable and frozen; the rest is passed over.
pub(in crate::checkpoint) fn read(map: &Arc<Mapping>) -> Result<Contents> {
    let TrainingState { trainable, frozen, optimizer, properties } = state(map)?;
    let mut contents = Contents::new(Format::OrtTraining);
    contents.tensors = trainable.into_iter().chain(frozen).collect();
    let mut skip = |name: &str, why: &str| contents.skipped.push(Skipped { name: name.into(), why: why.into() });
    if optimizer.is_some() {
        skip("optimizer_groups", "the optimizer's state");
    }
    let Properties { ints, floats, strings } = &properties;
    ints.keys().chain(floats.keys()).chain(strings.keys()).for_each(|name| skip(name, "a property"));
    Ok(contents)
}

/// Everything in the file.
pub(super) fn state(map: &Arc<Mapping>) -> Result<TrainingState> {
    let bytes = map.bytes();
    if !is_ort_training(bytes) {
        let message = "is no training checkpoint of ONNX Runtime: expected `ODTC` at byte 4";
        return Err(Error::new(Code::CHECKPOINT_FORMAT, message));
    }
    let buffer = Buffer::new(bytes);
    let root = buffer.root()?;
    let version = root.i32(0)?;
    if version != VERSION {
        return Err(refused(format!("has version {version} of the training checkpoint's format, expected {VERSION}")));
    }
    let module = root.table(1)?.ok_or_else(|| corrupt("has no module state".to_owned()))?;
    if module.bool(2)? {
        return Err(refused("is a nominal checkpoint, without values: the full `checkpoint` is needed".to_owned()));
    }
    if module.bool(3)? {
        let message = "keeps its tensors in another file, expected one that holds them: save it without external data";
        return Err(refused(message.to_owned()));
    }
    let state = TrainingState {
        trainable: tensors(map, &module, 0)?,
        frozen: tensors(map, &module, 1)?,
        optimizer: optimizer(map, &root)?,
        properties: properties(&root)?,
    };
    state.check()?;
    Ok(state)
}

fn tensors(map: &Arc<Mapping>, module: &Table<'_>, field: usize) -> Result<BTreeMap<String, LazyTensor>> {
    named(module, field, |table, name| tensor(map, table, name))
}

/// What the tables of a vector hold, each by the name in its field 0.
fn named<T>(
    owner: &Table<'_>,
    field: usize,
    mut read: impl FnMut(&Table<'_>, &str) -> Result<T>,
) -> Result<BTreeMap<String, T>> {
    let mut all = BTreeMap::new();
    for table in owner.tables(field)? {
        let table = table?;
        let name = table.text(0)?.ok_or_else(|| corrupt("an entry has no name".to_owned()))?;
        if all.contains_key(name) {
            return Err(corrupt(format!("two entries are named `{}`", short(name))));
        }
        all.insert(name.to_owned(), read(&table, name)?);
    }
    Ok(all)
}

fn tensor(map: &Arc<Mapping>, table: &Table<'_>, name: &str) -> Result<LazyTensor> {
    let bad = |what: String| corrupt(format!("tensor `{}` {what}", short(name)));
    let dims = table.longs(2)?.ok_or_else(|| bad("has no shape".to_owned()))?;
    let shape = dims.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|e| bad("has a negative extent".to_owned()).caused_by(e))?;
    let code = table.i32(3)?;
    let dtype = DType::from_onnx(code).ok_or_else(|| bad(format!("is of ONNX's type {code}, which is not read")))?;
    let range = table.vector(4, 1)?.ok_or_else(|| bad("has no values".to_owned()))?;
    let expected = numel(&shape).and_then(|n| n.checked_mul(dtype.size()));
    if expected != Some(range.len()) {
        let shape = if shape.len() > 16 { format!("of {} axes", shape.len()) } else { show(&shape) };
        return Err(bad(format!("is {dtype} {shape} and has {} bytes", range.len())));
    }
    let source = Mapped::new(map, range).ok_or_else(|| bad("lies outside the file".to_owned()))?;
    Ok(LazyTensor::new(dtype, shape, Arc::new(source)))
}

fn optimizer(map: &Arc<Mapping>, root: &Table<'_>) -> Result<Option<OptimizerState>> {
    let mut groups = root.tables(2)?;
    let Some(group) = groups.next().transpose()? else { return Ok(None) };
    if groups.next().is_some() {
        return Err(refused("has more than one optimizer group, expected one".to_owned()));
    }
    let moments = named(&group, 3, |table, name| {
        let mut both = tensors(map, table, 1)?;
        match (both.remove("momentum0"), both.remove("momentum1")) {
            (Some(first), Some(second)) if both.is_empty() => Ok(Moments { first, second }),
            _ => {
                let message = "is not that of AdamW, expected momentum0 and momentum1";
                Err(refused(format!("the optimizer's state of `{}` {message}", short(name))))
            }
        }
    })?;
    Ok(Some(OptimizerState { step: group.i64(1)?, learning_rate: group.f32(2)?, moments }))
}

fn properties(root: &Table<'_>) -> Result<Properties> {
    let Some(bag) = root.table(3)? else { return Ok(Properties::default()) };
    let text = |table: &Table<'_>, name: &str| {
        let value = table.text(1)?.ok_or_else(|| corrupt(format!("property `{}` has no value", short(name))))?;
        Ok(value.to_owned())
    };
    Ok(Properties {
        ints: named(&bag, 0, |table, _| table.i64(1))?,
        floats: named(&bag, 1, |table, _| table.f32(1))?,
        strings: named(&bag, 2, text)?,
    })
}

/// A name as messages show it.
fn short(name: &str) -> String {
    name.chars().take(200).collect()
}

fn refused(message: String) -> Error {
    Error::new(Code::CHECKPOINT_FORMAT, message)
}
