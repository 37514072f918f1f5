//! Which device is taken, and why not the others.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Serialize;

use super::provider::PROVIDERS;
use super::{Gpu, Machine, Provider};
use crate::error::{Code, Error, Result};

/// What a user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The best device that can be used: TensorRT, then CUDA, then the processor; which one it is, is told.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU through CUDA.
    Cuda,
    /// An NVIDIA GPU through TensorRT, or TensorRT for RTX.
    TensorRt,
    /// An NVIDIA GPU through TensorRT for RTX.
    TensorRtRtx,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        Ok(match name {
            "auto" => Self::Auto,
            "cpu" => Self::Cpu,
            "cuda" => Self::Cuda,
            "tensorrt" => Self::TensorRt,
            "tensorrt-rtx" => Self::TensorRtRtx,
            other => {
                return Err(format!("`{other}` is no device: expected auto, cpu, cuda, tensorrt or tensorrt-rtx"));
            }
        })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
            Self::TensorRtRtx => "tensorrt-rtx",
        })
    }
}

/// A device that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PassedOver {
    /// The provider's name.
    pub device: &'static str,
    /// Why it cannot be used.
    pub reason: String,
}

/// The device that was taken.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// What computes.
    pub provider: &'static dyn Provider,
    /// The GPU that it computes on.
    pub gpu: Option<Gpu>,
    /// The library that must be loaded for it, where it is not to be searched for.
    pub library: Option<PathBuf>,
    /// What would have been better, and why it cannot be used.
    pub passed_over: Vec<PassedOver>,
}

impl Device {
    /// Chooses. `suits` says whether what is to be run suits a provider of that name, or why not.
    ///
    /// # Errors
    /// `device.unavailable`, with the reason, when a device was asked for by name and cannot be used; `device.precision` when it
    /// could, and what is to be run does not suit it.
    pub fn choose(self, machine: &Machine, suits: &dyn Fn(&str) -> std::result::Result<(), String>) -> Result<Chosen> {
        let mut passed_over = Vec::new();
        let mut unsuited = None;
        for &provider in PROVIDERS.iter().filter(|p| self.may_be(p.name())) {
            let reason = match provider.unavailable(machine) {
                Some(reason) => reason,
                None => match suits(provider.name()) {
                    Ok(()) => {
                        let gpu = machine.gpu().filter(|_| provider.on_gpu()).cloned();
                        return Ok(Chosen { provider, gpu, library: machine.library.clone(), passed_over });
                    }
                    Err(reason) => unsuited.insert(reason).clone(),
                },
            };
            passed_over.push(PassedOver { device: provider.name(), reason });
        }
        if let Some(reason) = unsuited {
            return Err(Error::new(Code::DEVICE_PRECISION, format!("device `{self}`: {reason}")));
        }
        let reasons: Vec<String> = passed_over.into_iter().map(|p| format!("{}: {}", p.device, p.reason)).collect();
        let message = format!("device `{self}` cannot be used: {}", reasons.join("; "));
        Err(Error::new(Code::DEVICE_UNAVAILABLE, message))
    }

    /// Whether a provider of that name is what was asked for.
    fn may_be(self, name: &str) -> bool {
        match self {
            Self::Auto => true,
            Self::TensorRt => matches!(name, "tensorrt" | "tensorrt-rtx"),
            named => named.to_string() == name,
        }
    }
}
