//! What a bundle is good for: which graphs suit which execution provider.
//!
//! Floats suit all. Integers are made for one kind of device: each has fast kernels for another form, and runs the others'
//! slowly or not at all.
//!
//! | form of int8, int4 | CPU | CUDA | TensorRT |
//! |---|---|---|---|
//! | `cpu`: products of bytes, one scale a token (`MatMulIntegerToFloat`, int4 in `MatMulNBits` of float32) | yes | no kernels | refused: zero points other than 0 |
//! | `cuda`: weights alone, in blocks (`MatMulNBits` of float16) | yes, slowly | yes | unknown operator |
//! | `tensorrt`: symmetric quantize-dequantize pairs, static scales | yes, slowly | kernels of floats only | yes |
//!
//! ONNX Runtime's CUDA provider runs the pairs of the last row as they stand, each in a kernel of its own and the product in
//! floats: right, and slower than fp16. So it is not offered.

use serde::{Deserialize, Serialize};

use super::manifest::{Manifest, PartRecord, Precision};
use crate::model::Part;

/// The kind of device that integer weights and arithmetic are made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Processors.
    #[default]
    Cpu,
    /// NVIDIA GPUs, by ONNX Runtime's CUDA provider.
    Cuda,
    /// NVIDIA GPUs, by TensorRT or TensorRT for RTX.
    TensorRt,
}

impl Target {
    /// The name that files and commands use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
        }
    }

    pub(super) fn is_cpu(&self) -> bool {
        *self == Self::Cpu
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The graph that is written in ONNX Runtime's own operators where it is not for TensorRT: it has a companion, or cannot go there.
const OWN_OPERATORS: Part = Part::Vision;

impl PartRecord {
    /// Its graph's files: the one that every bundle has, and the one for TensorRT.
    pub fn graphs(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.file).chain(&self.tensorrt)
    }
}

impl Manifest {
    /// Whether the bundle was made for an execution provider: `cpu`, `cuda`, `tensorrt` or `tensorrt-rtx`.
    ///
    /// # Errors
    /// One line that says why not and what to do: the text of a `device.precision`.
    pub fn suits(&self, provider: &str) -> Result<(), String> {
        let integers = self.parts.values().map(|part| part.precision);
        let integers = integers.filter(|p| matches!(p, Precision::Int8 | Precision::Int4)).max_by_key(|p| p.name());
        let wanted = match provider {
            "cpu" => return Ok(()),
            "cuda" => Target::Cuda,
            "tensorrt" | "tensorrt-rtx" => Target::TensorRt,
            other => {
                return Err(format!("there is no provider `{other}`: there are cpu, cuda, tensorrt and tensorrt-rtx"));
            }
        };
        match integers {
            Some(_) if self.target == wanted => Ok(()),
            Some(precision) => Err(format!(
                "the bundle is {precision} for {}, which {provider} has no kernels for: export it anew with \
                 `ba-export --quantize int8 --target {wanted}`, or with `--quantize fp16` for all devices",
                self.target
            )),
            None if wanted == Target::TensorRt && !self.has_companion() => Err(format!(
                "the bundle has no `{OWN_OPERATORS}` graph in operators that {provider} takes: it is from an older \
                 version; export it anew"
            )),
            None => Ok(()),
        }
    }

    /// The file of a part's graph for an execution provider that the bundle suits; none where it does not.
    pub fn graph(&self, part: Part, provider: &str) -> Option<&str> {
        let record = self.parts.get(part.as_str()).filter(|_| self.suits(provider).is_ok())?;
        let companion = record.tensorrt.as_ref().filter(|_| provider.starts_with("tensorrt"));
        Some(companion.unwrap_or(&record.file))
    }

    fn has_companion(&self) -> bool {
        self.target == Target::TensorRt
            || self.parts.get(OWN_OPERATORS.as_str()).is_some_and(|part| part.tensorrt.is_some())
    }
}
