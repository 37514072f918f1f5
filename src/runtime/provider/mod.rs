//! Execution providers: who computes a graph. One short file each.

mod cpu;

use std::fmt;
use std::str::FromStr;

use ort::session::builder::SessionBuilder;

use crate::error::{Code, Error, Result};

/// What a user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The best device that can be used; which one it is, is told.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU through CUDA.
    Cuda,
    /// An NVIDIA GPU through TensorRT.
    TensorRt,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        Ok(match name {
            "auto" => Self::Auto,
            "cpu" => Self::Cpu,
            "cuda" => Self::Cuda,
            "tensorrt" => Self::TensorRt,
            other => return Err(format!("`{other}` is no device: expected auto, cpu, cuda or tensorrt")),
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
        })
    }
}

/// One way to compute a graph.
pub trait Provider: Sync {
    /// The name that results state as the device.
    fn name(&self) -> &'static str;

    /// Why it cannot be used on this machine, if it cannot.
    fn unavailable(&self) -> Option<String>;

    /// Sets a session up to use it.
    ///
    /// # Errors
    /// `device.unavailable` when the runtime refuses.
    fn configure(&self, builder: SessionBuilder) -> Result<SessionBuilder>;
}

/// Providers in the order in which `auto` tries them.
const PROVIDERS: [&dyn Provider; 1] = [&cpu::Cpu];

impl Device {
    /// The provider for this device.
    ///
    /// # Errors
    /// `device.unavailable`, with the reason, when a device was asked for by name and cannot be used.
    pub fn provider(self) -> Result<&'static dyn Provider> {
        let wanted = |p: &&&dyn Provider| self == Self::Auto || p.name() == self.to_string();
        let mut reasons = Vec::new();
        for provider in PROVIDERS.iter().filter(wanted) {
            match provider.unavailable() {
                None => return Ok(*provider),
                Some(reason) => reasons.push(reason),
            }
        }
        if reasons.is_empty() {
            reasons.push("this version runs on the CPU only; use --device cpu or auto".to_owned());
        }
        Err(Error::new(Code::DEVICE_UNAVAILABLE, format!("device `{self}` cannot be used: {}", reasons.join("; "))))
    }
}
