//! The kind of device that a quantized bundle is made for.

use serde::{Deserialize, Serialize};

/// The kind of device that integer weights and arithmetic are made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// CPUs.
    #[default]
    Cpu,
    /// NVIDIA GPUs through ONNX Runtime's CUDA provider.
    Cuda,
    /// NVIDIA GPUs through TensorRT or TensorRT for RTX.
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
