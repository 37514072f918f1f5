//! Streams a graph's weights and then its messages to disk.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message;

use super::file::{Keep, OutFile, Written};
use super::proto::{EXTERNAL, StringStringEntryProto, TensorProto};
use super::{EXTERNAL_BYTES, encode, model};
use crate::error::{Code, Error, Result};
use crate::graph::{Graph, Value};
use crate::tensor::LazyTensor;

/// Protobuf's own limit of a message.
const MAX_MESSAGE_BYTES: usize = i32::MAX as usize;

/// Where the large weights of a graph lie in its data file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataLayout {
    /// The data file, by its name inside the folder.
    pub file: String,
    /// Each weight's first byte, by name.
    pub offsets: BTreeMap<String, u64>,
}

/// Writes `graph` as `STEM.onnx` (and `STEM.onnx.data`) into `dir`, and returns once the bytes are on the disk.
/// `progress` gets the number of bytes of each chunk.
///
/// # Errors
/// When a weight cannot be read, or a file not written; `onnx.invalid` when the graph itself is too large for one
/// message.
///
/// ```
/// use brain_adapter::graph::{Builder, Dim};
/// use brain_adapter::tensor::DType;
///
/// let mut g = Builder::new("double");
/// let x = g.input("x", DType::F32, &[Dim::BATCH]);
/// let y = g.add(x, x)?;
/// g.output("y", y)?;
/// let dir = tempfile::tempdir()?;
/// let files = brain_adapter::onnx::write(&g.finish()?, dir.path(), "double", &mut |_| {})?;
/// assert_eq!(files[0].name, "double.onnx");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write(graph: &Graph, dir: &Path, stem: &str, progress: &mut dyn FnMut(u64)) -> Result<Vec<Written>> {
    write_with_layout(graph, dir, stem, progress).map(|(written, _)| written)
}

/// Writes a part of a graph as `STEM.onnx` into the folder where the whole was written: its large weights are those of
/// the whole's data file.
///
/// # Errors
/// As [`write()`]; `onnx.invalid` when a large weight is not in the data file.
pub fn write_part_of(graph: &Graph, dir: &Path, stem: &str, whole: &DataLayout) -> Result<()> {
    write_over(graph, dir, stem, whole, Keep::Awhile).map(drop)
}

/// Writes another form of a graph as `STEM.onnx` into the folder where the first was written, to stay: its large
/// weights are those of the first's data file.
///
/// # Errors
/// As [`write_part_of`].
pub fn write_companion(graph: &Graph, dir: &Path, stem: &str, first: &DataLayout) -> Result<Written> {
    write_over(graph, dir, stem, first, Keep::ForGood)
}

fn write_over(graph: &Graph, dir: &Path, stem: &str, whole: &DataLayout, keep: Keep) -> Result<Written> {
    let initializers = initializers(graph, &mut |value, _| {
        let offset = whole.offsets.get(&value.name).copied().ok_or_else(|| {
            Error::new(Code::ONNX_INVALID, format!("weight `{}` is not in `{}`", value.name, whole.file))
        })?;
        Ok((whole.file.clone(), offset))
    })?;
    let mut file = OutFile::create(dir, &format!("{stem}.onnx"), keep)?;
    file.write(&model::of(graph, initializers)?.encode_to_vec())?;
    file.finish()
}

/// The graph as the bytes of a file, with all weights in it.
///
/// # Errors
/// When a weight cannot be read; `onnx.invalid` when it is too large for one message.
pub fn to_bytes(graph: &Graph) -> Result<Vec<u8>> {
    let weights = graph.initializers().into_iter().map(|id| graph.value(id));
    let weights = weights.filter_map(|value| value.init.as_ref().map(|tensor| inline(value, tensor)));
    let message = model::of(graph, weights.collect::<Result<_>>()?)?;
    match message.encoded_len() {
        n if n > MAX_MESSAGE_BYTES => Err(too_large(graph, n)),
        _ => Ok(message.encode_to_vec()),
    }
}

/// The graph's file as [`write()`] makes it, for planning with weights of a size that nobody wants to write.
#[cfg(test)]
pub(crate) fn without_data(graph: &Graph) -> Result<Vec<u8>> {
    let initializers = initializers(graph, &mut |_, _| Ok(("none.data".to_owned(), 0)))?;
    Ok(model::of(graph, initializers)?.encode_to_vec())
}

/// As [`write()`], for a graph that is run here and removed again: nothing is hashed, nor made sure to be on the disk.
///
/// # Errors
/// As [`write()`].
pub fn write_scratch(graph: &Graph, dir: &Path, stem: &str) -> Result<()> {
    write_files(graph, dir, stem, Keep::Awhile, &mut |_| {}).map(drop)
}

/// As [`write()`]; also returns where the large weights lie.
///
/// # Errors
/// As [`write()`].
pub fn write_with_layout(
    graph: &Graph,
    dir: &Path,
    stem: &str,
    progress: &mut dyn FnMut(u64),
) -> Result<(Vec<Written>, DataLayout)> {
    write_files(graph, dir, stem, Keep::ForGood, progress)
}

fn write_files(
    graph: &Graph,
    dir: &Path,
    stem: &str,
    keep: Keep,
    progress: &mut dyn FnMut(u64),
) -> Result<(Vec<Written>, DataLayout)> {
    let name = format!("{stem}.onnx");
    let data_name = format!("{name}.data");
    let mut data: Option<OutFile> = None;
    let mut placed = DataLayout { file: data_name.clone(), offsets: BTreeMap::new() };
    let initializers = initializers(graph, &mut |value, tensor| {
        if data.is_none() {
            data = Some(OutFile::create(dir, &data_name, keep)?);
        }
        let file = data.as_mut().expect("made above");
        let offset = file.align()?;
        placed.offsets.insert(value.name.clone(), offset);
        tensor.stream(&mut |chunk| {
            progress(chunk.len() as u64);
            file.write(chunk)
        })?;
        Ok((data_name.clone(), offset))
    })?;
    let message = model::of(graph, initializers)?;
    if message.encoded_len() > MAX_MESSAGE_BYTES {
        return Err(too_large(graph, message.encoded_len()));
    }
    let mut file = OutFile::create(dir, &name, keep)?;
    file.write(&message.encode_to_vec())?;
    let mut written = vec![file.finish()?];
    if let Some(data) = data {
        written.push(data.finish()?);
    }
    Ok((written, placed))
}

fn too_large(graph: &Graph, bytes: usize) -> Error {
    let message = format!("graph `{}` takes {bytes} bytes: too many for one message", graph.name);
    Error::new(Code::ONNX_INVALID, message)
}

/// Gives the file in which a large weight lies, and its first byte there.
type Place<'a> = dyn FnMut(&Value, &LazyTensor) -> Result<(String, u64)> + 'a;

/// The messages of a graph's weights.
fn initializers(graph: &Graph, place: &mut Place<'_>) -> Result<Vec<TensorProto>> {
    let message = |id| {
        let value: &Value = graph.value(id);
        let tensor = value.init.as_ref()?;
        Some(if tensor.byte_len() < EXTERNAL_BYTES {
            inline(value, tensor)
        } else {
            place(value, tensor).map(|(file, offset)| external(value, tensor, &file, offset))
        })
    };
    graph.initializers().into_iter().filter_map(message).collect()
}

fn inline(value: &Value, tensor: &LazyTensor) -> Result<TensorProto> {
    Ok(encode::tensor_message(value.name.clone(), tensor, tensor.bytes()?.into_owned()))
}

fn external(value: &Value, tensor: &LazyTensor, file: &str, offset: u64) -> TensorProto {
    let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
    let external_data = vec![
        entry("location", file.to_owned()),
        entry("offset", offset.to_string()),
        entry("length", tensor.byte_len().to_string()),
    ];
    TensorProto { external_data, data_location: Some(EXTERNAL), ..header(value, tensor) }
}

fn header(value: &Value, tensor: &LazyTensor) -> TensorProto {
    TensorProto {
        dims: tensor.shape().iter().map(|&d| d as i64).collect(),
        data_type: Some(tensor.dtype().onnx()),
        name: Some(value.name.clone()),
        ..Default::default()
    }
}
