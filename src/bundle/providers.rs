//! Which graphs suit which execution provider.
//!
//! Floats suit all. Integers are made for one kind of device: each has fast kernels for another form, and runs the
//! others' slowly or not at all.
//!
//! | form of int8, int4 | CPU | CUDA | TensorRT |
//! |---|---|---|---|
//! | `cpu`: int8 × int8 products, one scale per token (`MatMulIntegerToFloat`; int4 in `MatMulNBits` of float32) | yes | no kernels | refused: zero points other than 0 |
//! | `cuda`: weights only, in blocks (`MatMulNBits` of float16) | yes, slowly | yes | unknown operator |
//! | `tensorrt`: symmetric quantize-dequantize pairs, static scales | yes, slowly | float kernels only | yes |
//!
//! ONNX Runtime's CUDA provider runs the pairs of the last row as they are, each in its own kernel and the product in
//! floats: correct, and slower than fp16. This is therefore not offered.

use super::manifest::Manifest;
use super::records::Precision;
use super::target::Target;
use crate::model::Part;

impl Manifest {
    /// Whether the bundle can run on an execution provider: `cpu`, `cuda`, `tensorrt` or `tensorrt-rtx`.
    ///
    /// # Errors
    /// Why not and what to do, in one line: the message of a `device.precision`.
    pub fn suits(&self, provider: &str) -> Result<(), String> {
        let integers = self.parts.values().map(|part| part.precision);
        let integers = integers.filter(|p| matches!(p, Precision::Int8 | Precision::Int4)).max_by_key(|p| p.name());
        let wanted = match provider {
            "cpu" => return Ok(()),
            "cuda" => Target::Cuda,
            "tensorrt" | "tensorrt-rtx" => Target::TensorRt,
            other => {
                return Err(format!("unknown provider `{other}`: expected cpu, cuda, tensorrt or tensorrt-rtx"));
            }
        };
        match integers {
            Some(_) if self.target == wanted => Ok(()),
            Some(precision) => Err(format!(
                "the bundle is {precision} for {}, for which {provider} has no kernels: it needs a bundle exported \
                 with `ba-export --quantize int8 --target {wanted}`, or with `--quantize fp16`, which runs on all devices",
                self.target
            )),
            None => {
                match Part::ALL.into_iter().find(|part| wanted == Target::TensorRt && self.lacks_companion(*part)) {
                    None => Ok(()),
                    Some(part) => Err(format!(
                        "the bundle has no `{part}` graph in operators that {provider} supports: it was exported by an \
                     older version; export it again with this one, or use --device cuda or cpu"
                    )),
                }
            }
        }
    }

    /// The file name of a part's graph for an execution provider; none if the bundle cannot run there.
    pub fn graph(&self, part: Part, provider: &str) -> Option<&str> {
        self.suits(provider).ok()?;
        let record = self.part(part);
        let companion = record.tensorrt.as_ref().filter(|_| provider.starts_with("tensorrt"));
        Some(companion.unwrap_or(&record.file))
    }

    /// Whether a part's only graph has operators that TensorRT does not support.
    fn lacks_companion(&self, part: Part) -> bool {
        part.has_contrib_operators() && self.target != Target::TensorRt && self.part(part).tensorrt.is_none()
    }
}
