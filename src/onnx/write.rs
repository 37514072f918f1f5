//! Streams a graph's weights and then its messages to disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use prost::Message;
use sha2::{Digest, Sha256};

use super::proto::{EXTERNAL, StringStringEntryProto, TensorProto};
use super::{ALIGNMENT, EXTERNAL_BYTES, encode};
use crate::error::{Code, Error, Result};
use crate::graph::{Graph, Value};
use crate::tensor::LazyTensor;

/// Protobuf's own limit of a message.
const MAX_MESSAGE_BYTES: usize = i32::MAX as usize;

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its name inside the folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, in lower-case hexadecimal.
    pub sha256: String,
}

/// Where the large weights of a graph lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// The data file, by its name inside the folder.
    pub file: String,
    /// Each weight's first byte, by name.
    pub offsets: BTreeMap<String, u64>,
}

/// Writes `graph` as `STEM.onnx` (and `STEM.onnx.data`) into `dir`. `progress` is told the bytes of each chunk.
///
/// # Errors
/// When a weight cannot be read, or a file not written; `onnx.invalid` when the graph itself is too large for one
/// message.
pub fn write(graph: &Graph, dir: &Path, stem: &str, progress: &mut dyn FnMut(u64)) -> Result<Vec<Written>> {
    write_placed(graph, dir, stem, progress).map(|(written, _)| written)
}

/// Writes a part of a graph as `STEM.onnx` into the folder where the whole was written: its large weights are those of the
/// whole's data file.
///
/// # Errors
/// As [`write()`]; `onnx.invalid` when a large weight is not in the data file.
pub fn write_part_of(graph: &Graph, dir: &Path, stem: &str, whole: &Placed) -> Result<()> {
    let initializers = initializers(graph, &mut |value, _| {
        let offset = whole.offsets.get(&value.name).copied().ok_or_else(|| {
            Error::new(Code::ONNX_INVALID, format!("weight `{}` is not in `{}`", value.name, whole.file))
        })?;
        Ok((whole.file.clone(), offset))
    })?;
    let mut file = HashedFile::create(dir, &format!("{stem}.onnx"))?;
    file.write(&encode::model(graph, initializers).encode_to_vec())?;
    file.finish().map(drop)
}

/// As [`write()`]; also tells where the large weights lie.
///
/// # Errors
/// As [`write()`].
pub fn write_placed(
    graph: &Graph,
    dir: &Path,
    stem: &str,
    progress: &mut dyn FnMut(u64),
) -> Result<(Vec<Written>, Placed)> {
    let name = format!("{stem}.onnx");
    let data_name = format!("{name}.data");
    let mut data: Option<HashedFile> = None;
    let mut placed = Placed { file: data_name.clone(), offsets: BTreeMap::new() };
    let initializers = initializers(graph, &mut |value, tensor| {
        if data.is_none() {
            data = Some(HashedFile::create(dir, &data_name)?);
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
    let model = encode::model(graph, initializers);
    if model.encoded_len() > MAX_MESSAGE_BYTES {
        let message = format!("graph `{}` takes {} bytes: too many for one message", graph.name, model.encoded_len());
        return Err(Error::new(Code::ONNX_INVALID, message));
    }
    let mut file = HashedFile::create(dir, &name)?;
    file.write(&model.encode_to_vec())?;
    let mut written = vec![file.finish()?];
    if let Some(data) = data {
        written.push(data.finish()?);
    }
    Ok((written, placed))
}

/// Says in which file a large weight lies, and where.
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
    let raw_data = Some(tensor.bytes()?.into_owned());
    Ok(TensorProto { raw_data, ..header(value, tensor) })
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
        data_type: Some(encode::data_type(tensor.dtype())),
        name: Some(value.name.clone()),
        ..Default::default()
    }
}

/// A file being written, with its length and hash so far.
struct HashedFile {
    name: String,
    path: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
    hash: Sha256,
}

impl HashedFile {
    fn create(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name);
        let file = File::create(&path).map_err(|e| Error::io(&path, "cannot create the file", e))?;
        let file = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { name: name.to_owned(), path, file, bytes: 0, hash: Sha256::new() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.path, "cannot write", e))?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Zeros up to the next multiple of [`ALIGNMENT`], which is returned.
    fn align(&mut self) -> Result<u64> {
        let gap = self.bytes.next_multiple_of(ALIGNMENT) - self.bytes;
        self.write(&[0; ALIGNMENT as usize][..gap as usize])?;
        Ok(self.bytes)
    }

    fn finish(mut self) -> Result<Written> {
        self.file.flush().map_err(|e| Error::io(&self.path, "cannot write", e))?;
        Ok(Written { name: self.name, bytes: self.bytes, sha256: crate::tensor::hex(&self.hash.finalize()) })
    }
}
