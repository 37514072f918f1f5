//! Devices: what a user asks for, what the machine has, and which execution provider computes.
//!
//! [`detect`] asks NVIDIA's driver, [`visible`] says which of its GPUs CUDA sees, [`gpu_libraries`] loads CUDA's and
//! TensorRT's libraries, [`system_libraries`] finds those of the system, [`provider`] has one file per execution
//! provider, and [`select`] puts these together.

mod detect;
mod gpu_libraries;
mod provider;
mod select;
mod system_libraries;
mod visible;

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

pub use detect::{Machine, Nvidia};
pub use provider::{CPU, Provider, ProviderOptions};
pub use select::SelectedDevice;

#[cfg(test)]
pub(super) use provider::PROVIDERS;

/// What a user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The best device that can be used: TensorRT, then CUDA, then the CPU. The result reports which one it was.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU through CUDA.
    Cuda,
    /// An NVIDIA GPU through TensorRT, or TensorRT for RTX.
    TensorRt,
    /// An NVIDIA GPU through TensorRT for RTX.
    TensorRtRtx,
}

impl Device {
    /// The name on the command line and in results.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
            Self::TensorRtRtx => "tensorrt-rtx",
        }
    }

    /// Whether the provider of this name serves the request.
    fn matches(self, provider: &str) -> bool {
        match self {
            Self::Auto => true,
            Self::TensorRt => matches!(provider, "tensorrt" | "tensorrt-rtx"),
            named => named.as_str() == provider,
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let all = [Self::Auto, Self::Cpu, Self::Cuda, Self::TensorRt, Self::TensorRtRtx];
        all.into_iter()
            .find(|device| device.as_str() == name)
            .ok_or_else(|| format!("unknown device `{name}`: expected auto, cpu, cuda, tensorrt or tensorrt-rtx"))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One GPU, as the driver reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// The product's name, such as `NVIDIA RTX A4000`.
    pub name: String,
    /// Its compute capability, (major, minor).
    #[serde(rename = "compute_capability", serialize_with = "dotted")]
    pub capability: (u32, u32),
    /// Bytes of its memory.
    #[serde(rename = "memory_bytes")]
    pub memory: u64,
    /// Bytes of it that were free when the driver was asked.
    #[serde(rename = "free_bytes")]
    pub free: u64,
    /// The driver's unique name of this very GPU, `GPU-…`.
    #[serde(skip)]
    pub uuid: String,
}

fn dotted<S: Serializer>((major, minor): &(u32, u32), serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{major}.{minor}"))
}

/// A device that was tried before the selected one and cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PassedOver {
    /// The provider's name.
    pub device: &'static str,
    /// Why it cannot be used.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_matched() {
        for name in ["auto", "cpu", "cuda", "tensorrt", "tensorrt-rtx"] {
            assert_eq!(name.parse::<Device>().map(|d| d.to_string()), Ok(name.to_owned()));
        }
        assert!("gpu".parse::<Device>().is_err_and(|e| e.contains("`gpu`")));
        let served =
            |device: Device| PROVIDERS.iter().map(|p| p.name()).filter(|name| device.matches(name)).collect::<Vec<_>>();
        assert_eq!(served(Device::Auto), ["tensorrt", "tensorrt-rtx", "cuda", "cpu"]);
        assert_eq!(served(Device::TensorRt), ["tensorrt", "tensorrt-rtx"]);
        assert_eq!(served(Device::TensorRtRtx), ["tensorrt-rtx"]);
        assert_eq!(served(Device::Cpu), ["cpu"]);
    }
}
