//! Tensors that a pickle describes and that are not read, each with a way out that fits it.
//!
//! Flows in: which function rebuilds the tensor, or which class it is of. Flows out: a [`Foreign`], which the state
//! dict lists under the tensor's name, or the error for a class that no part of the file makes sense without.
//!
//! # Errors
//! `checkpoint.format` for tensors that are split over processes; `checkpoint.quantized` for those of a quantizer.

use crate::error::{Code, Error};

/// A tensor, or an array, of a kind that is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::checkpoint) enum Foreign {
    /// On the device `meta`: a shape without numbers.
    Meta,
    /// Sparse, in any layout.
    Sparse,
    /// Quantized by PyTorch itself.
    Quantized,
    /// A list of tensors of different lengths.
    Nested,
    /// A view whose sign or imaginary part is still to be changed.
    Unresolved,
    /// A numpy array.
    Array,
    /// Saved on XLA or another device by way of numpy.
    Device,
}

impl Foreign {
    /// What it is, in a few words.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Meta => "a meta tensor",
            Self::Sparse => "a sparse tensor",
            Self::Quantized => "a quantized tensor",
            Self::Nested => "a nested tensor",
            Self::Unresolved => "a tensor with a pending negation or conjugation",
            Self::Array => "a numpy array",
            Self::Device => "a tensor of another device",
        }
    }

    /// What to do, for one tensor among others.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Meta => "it has no data: the weights were offloaded or never loaded when it was saved",
            Self::Sparse => "save it as tensor.to_dense()",
            Self::Quantized => "save it as tensor.dequantize()",
            Self::Nested => "save it as plain tensors",
            Self::Unresolved => "save it as tensor.resolve_neg().resolve_conj().clone()",
            Self::Array => "save it as torch.from_numpy(array)",
            Self::Device => "it was saved on an XLA device: save it as tensor.cpu()",
        }
    }

    /// What to say of a file whose tensors are all of this kind; `count` of them.
    pub fn refusal(self, count: usize) -> Error {
        let message = match self {
            Self::Meta => format!(
                "holds {count} meta tensors: names and shapes, no data. The weights were offloaded (accelerate's \
                 device_map, DeepSpeed) or never loaded when it was saved: load the model without offloading, then save \
                 it again"
            ),
            Self::Array => format!(
                "holds {count} numpy arrays and no tensors. In Python: \
                 torch.save({{k: torch.from_numpy(a) for k, a in arrays.items()}}, …), or \
                 safetensors.numpy.save_file(arrays, …)"
            ),
            _ => format!("holds no plain tensors: each of {count} is {}; {}", self.kind(), self.advice()),
        };
        let code = if self == Self::Quantized { Code::CHECKPOINT_QUANTIZED } else { Code::CHECKPOINT_FORMAT };
        Error::new(code, message)
    }
}

/// Packages whose tensors are quantized weights.
const QUANTIZERS: &[&str] = &["torchao", "bitsandbytes", "quanto", "optimum.quanto", "hqq", "auto_gptq", "gptqmodel"];

/// Classes of tensors of which each process of a distributed run has a part.
const SHARDED: &[(&str, &str)] = &[
    ("torch.distributed.tensor", "DTensor"),
    ("torch.distributed.tensor.api", "DTensor"),
    ("torch.distributed.tensor._api", "DTensor"),
    ("torch.distributed._tensor", "DTensor"),
    ("torch.distributed._tensor.api", "DTensor"),
    ("torch.distributed._shard.sharded_tensor.api", "ShardedTensor"),
    ("torch.distributed._shard.sharded_tensor", "ShardedTensor"),
    ("torch.distributed.fsdp._flat_param", "FlatParameter"),
    ("torch.distributed.fsdp.flat_param", "FlatParameter"),
];

/// The error for a class of tensors that are known by name, where `module.name` is one.
pub(super) fn class_of_tensors(module: &str, name: &str) -> Option<Error> {
    if SHARDED.contains(&(module, name)) {
        let message = format!(
            "its tensors are sharded ({name} of torch.distributed): this file has one process's part. Gather a full state \
             dict and save that: get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, \
             cpu_offload=True)) of torch.distributed.checkpoint.state_dict"
        );
        return Some(Error::new(Code::CHECKPOINT_FORMAT, message));
    }
    let within =
        |package: &&&str| module.strip_prefix(**package).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let quantizer = QUANTIZERS.iter().find(within)?;
    let name: String = name.chars().take(80).collect();
    let message = format!(
        "its weights are quantized by {quantizer} (`{name}`), expected floats: save the model before it is quantized, or \
         its tensors as tensor.dequantize()"
    );
    Some(Error::new(Code::CHECKPOINT_QUANTIZED, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_told_by_their_package() {
        for (module, name, code) in [
            ("torch.distributed._tensor.api", "DTensor", Some(Code::CHECKPOINT_FORMAT)),
            ("torchao.dtypes.affine_quantized_tensor", "AffineQuantizedTensor", Some(Code::CHECKPOINT_QUANTIZED)),
            ("bitsandbytes", "Params4bit", Some(Code::CHECKPOINT_QUANTIZED)),
            ("torchaoist", "Int8Tensor", None),
            ("torch.distributed.tensor", "Shard", None),
        ] {
            assert_eq!(class_of_tensors(module, name).map(|e| e.code()), code, "{module}.{name}");
        }
    }
}
