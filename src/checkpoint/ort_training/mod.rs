//! ONNX Runtime's training checkpoints: parameters, AdamW's state and properties in one FlatBuffers file.
//!
//! Flows in and out: the file `checkpoint` of a folder of training artifacts, as onnxruntime-training 1.19.2 reads and
//! writes it (`onnxruntime/core/flatbuffers/schema/ort_training_checkpoint.fbs`, identifier `ODTC` at byte 4, version
//! 2), and a [`TrainingState`]. Opened as a [`super::Checkpoint`], such a file gives its parameters, trainable and
//! frozen, by name.
//!
//! Both ways are written here by hand, `flatbuffer` (reading) and `layout` (writing), and not with the `flatbuffers`
//! crate: its verifier needs generated code, without which it reads untrusted bytes through `unsafe` functions; its
//! builder makes a file from back to front in memory, where ours streams the tensors, aligned, behind the tables.
//!
//! # Errors
//! `checkpoint.format` for what the format has and this reader does not: other versions, nominal checkpoints (without
//! values), external data, other optimizers. `checkpoint.truncated` when the file ends before what it points at,
//! `checkpoint.corrupt` for every other contradiction.
//!
//! # Safety
//! No `unsafe`. Every offset is compared with the file before it is followed, and what is read, all together, may not
//! exceed twice the file: objects may be shared, as writers do with strings, but not multiplied.

mod flatbuffer;
mod layout;
mod read;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

pub(super) use read::{is_ort_training, read};

use super::mapping::Mapping;
use crate::error::{Code, Error, Result};
use crate::tensor::{DType, LazyTensor, show};

/// The one version of the format that there is a reader for.
const VERSION: i32 = 2;

/// What a training checkpoint holds. Tensors are row-major; a read one is a view of the mapped file.
#[derive(Clone, Debug, Default)]
pub struct TrainingState {
    /// Parameters that are trained, by their PyTorch state-dict keys.
    pub trainable: BTreeMap<String, LazyTensor>,
    /// Parameters and buffers (running statistics) that no gradient reaches.
    pub frozen: BTreeMap<String, LazyTensor>,
    /// The optimizer's state, unless training is to start from the beginning.
    pub optimizer: Option<OptimizerState>,
    /// Named values besides the parameters.
    pub properties: Properties,
}

/// AdamW's state.
#[derive(Clone, Debug)]
pub struct OptimizerState {
    /// Steps taken so far.
    pub step: i64,
    /// The learning rate at the start (`initial_learning_rate`). Microsoft's runtime does not restore it.
    pub learning_rate: f32,
    /// Both moments of each trainable parameter, of all of them.
    pub moments: BTreeMap<String, Moments>,
}

/// The running averages of one parameter's gradient, float32 of the parameter's shape.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Of the gradient (`momentum0`).
    pub first: LazyTensor,
    /// Of its square (`momentum1`).
    pub second: LazyTensor,
}

/// Named values of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Properties {
    /// Whole numbers.
    pub ints: BTreeMap<String, i64>,
    /// Single-precision numbers.
    pub floats: BTreeMap<String, f32>,
    /// Text.
    pub strings: BTreeMap<String, String>,
}

impl TrainingState {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// `checkpoint.not_found`, `.format`, `.truncated`, `.corrupt`; `io`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        read::state(&Mapping::open(path)?).map_err(|e| e.at(path))
    }

    /// Reads a checkpoint from memory; `name` stands in for its path.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_bytes(bytes: Vec<u8>, name: &str) -> Result<Self> {
        let path = Path::new(name);
        read::state(&Mapping::owned(bytes, path)).map_err(|e| e.at(path))
    }

    /// Writes the file completely or not at all, and returns its size in bytes. Tables and vectors are sorted by name,
    /// tensors start at multiples of 16 bytes, and the bytes depend on nothing but the state.
    ///
    /// # Errors
    /// `checkpoint.corrupt` when the state contradicts itself: a name on both sides, moments that are missing, spare or
    /// of another shape; `checkpoint.format` when the file would exceed the format's 2 GiB; `io` and `disk.full`; what
    /// the tensors' sources fail with, naming the tensor.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<u64> {
        let path = path.as_ref();
        self.check().map_err(|e| e.at(path))?;
        write::write(self, path)
    }

    /// What must hold for Microsoft's runtime to take the state.
    fn check(&self) -> Result<()> {
        if let Some(name) = self.trainable.keys().find(|name| self.frozen.contains_key(*name)) {
            return Err(corrupt(format!("parameter `{name}` is both trainable and frozen")));
        }
        let Some(optimizer) = &self.optimizer else { return Ok(()) };
        if optimizer.step < 0 {
            return Err(corrupt(format!("the optimizer has taken {} steps", optimizer.step)));
        }
        if let Some(name) = self.trainable.keys().find(|name| !optimizer.moments.contains_key(*name)) {
            return Err(corrupt(format!("the optimizer's state lacks trainable parameter `{name}`: all or none")));
        }
        for (name, moments) in &optimizer.moments {
            let Some(parameter) = self.trainable.get(name) else {
                return Err(corrupt(format!("the optimizer has state for `{name}`, which is not trainable")));
            };
            for found in [&moments.first, &moments.second] {
                if found.dtype() != DType::F32 || found.shape() != parameter.shape() {
                    let expected = show(parameter.shape());
                    return Err(corrupt(format!("a moment of `{name}` is {found:?}, expected float32{expected}")));
                }
            }
        }
        Ok(())
    }
}

fn corrupt(message: String) -> Error {
    Error::new(Code::CHECKPOINT_CORRUPT, message)
}
