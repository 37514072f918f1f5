//! Which device is taken, and why not the others.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::provider::PROVIDERS;
use super::{Gpu, Machine, Provider, Runtime};
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
#[derive(Clone, Debug, Serialize)]
pub struct Chosen {
    /// What was asked for.
    #[serde(serialize_with = "shown")]
    pub asked: Device,
    /// What computes.
    #[serde(rename = "device", serialize_with = "named")]
    pub provider: &'static dyn Provider,
    /// The GPU that it computes on.
    pub gpu: Option<Gpu>,
    /// The version of NVIDIA's driver, where it was asked for and there is one; also where the processor computes.
    pub driver: Option<String>,
    /// Whether NVIDIA's driver is installed: then who asks for `auto` expects the GPU.
    #[serde(skip)]
    pub expected_gpu: bool,
    /// The library that must be loaded for it, where it is not to be searched for.
    #[serde(skip)]
    pub library: Option<PathBuf>,
    /// What would have been better, and why it cannot be used.
    pub passed_over: Vec<PassedOver>,
    /// What is not certain about the GPU, a line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

fn shown<S: Serializer>(device: &Device, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(device)
}

fn named<S: Serializer>(provider: &&'static dyn Provider, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(provider.name())
}

impl Chosen {
    /// What a person is told of the choice, a line each: what is uncertain; with `verbose` what `auto` took and why not the
    /// others, and without too where there is a GPU's driver and the processor computes.
    pub fn told(&self, verbose: bool) -> Vec<String> {
        let mut lines: Vec<String> = self.notes.iter().map(|note| format!("device: {note}")).collect();
        if self.asked != Device::Auto {
            return lines;
        }
        let unused = self.expected_gpu && !self.provider.on_gpu();
        if verbose || unused {
            lines.push(format!("device: auto took {self}"));
        }
        // Without -v one reason is enough: that of the device which needs least.
        let told = match (verbose, unused, self.passed_over.split_last()) {
            (true, ..) => self.passed_over.as_slice(),
            (false, true, Some((least, _))) => std::slice::from_ref(least),
            _ => &[],
        };
        lines.extend(reasons(told).into_iter().map(|reason| format!("device: not {reason}")));
        lines
    }
}

/// `NAME: reason`, devices with the same reason in one.
fn reasons(passed_over: &[PassedOver]) -> Vec<String> {
    let mut all: Vec<(Vec<&str>, &str)> = Vec::new();
    for PassedOver { device, reason } in passed_over {
        match all.iter_mut().find(|(_, same)| same == reason) {
            Some((devices, _)) => devices.push(device),
            None => all.push((vec![device], reason)),
        }
    }
    all.into_iter().map(|(devices, reason)| format!("{}: {reason}", devices.join(", "))).collect()
}

/// `cuda (NVIDIA RTX A4000, driver 580.65.06)`; `cpu`.
impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.provider.name())?;
        match (&self.gpu, &self.driver) {
            (Some(gpu), Some(driver)) => write!(f, " ({}, driver {driver})", gpu.name),
            _ => Ok(()),
        }
    }
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
            let refused = machine.refused.iter().find(|refused| refused.device == provider.name());
            let suited = suits(provider.name());
            // Whoever asks for any device is not to load a GPU's libraries for a bundle that will not run there.
            let asks = self != Self::Auto || suited.is_ok();
            let unavailable = || asks.then(|| provider.unavailable(machine)).flatten();
            let reason = match refused.map(|r| r.reason.clone()).or_else(unavailable) {
                Some(reason) => reason,
                None => match suited {
                    Ok(()) => return Ok(self.chosen(provider, machine, passed_over)),
                    Err(reason) => unsuited.insert(reason).clone(),
                },
            };
            passed_over.push(PassedOver { device: provider.name(), reason });
        }
        if let Some(reason) = unsuited {
            return Err(Error::new(Code::DEVICE_PRECISION, format!("device `{self}`: {reason}")));
        }
        let why = match passed_over.as_slice() {
            [one] => one.reason.clone(),
            several => reasons(several).join("; "),
        };
        let message = format!("device `{self}` cannot be used: {why}; --device cpu needs no GPU");
        Err(Error::new(Code::DEVICE_UNAVAILABLE, message))
    }

    /// Looks at this machine, chooses as [`Self::choose`] does, loads ONNX Runtime (`library`, else as the device needs it) and has
    /// it take the device. What it does not take, `auto` passes over: a driver may answer and its GPU be out of reach.
    ///
    /// # Errors
    /// Those of [`Self::choose`] and of [`Runtime::load`].
    pub fn open(
        self,
        library: Option<&Path>,
        suits: &dyn Fn(&str) -> std::result::Result<(), String>,
    ) -> Result<(Chosen, &'static Runtime)> {
        let mut machine = Machine::look(self, library);
        loop {
            let chosen = self.choose(&machine, suits)?;
            let runtime = Runtime::load(chosen.library.as_deref())?;
            let Err(error) = runtime.takes(chosen.provider) else { return Ok((chosen, runtime)) };
            machine.loaded = Some(runtime.library.clone());
            machine.refused.push(PassedOver { device: chosen.provider.name(), reason: error.message().to_owned() });
        }
    }

    fn chosen(self, provider: &'static dyn Provider, machine: &Machine, passed_over: Vec<PassedOver>) -> Chosen {
        let mut notes = if provider.on_gpu() { machine.notes.clone() } else { Vec::new() };
        let several = machine.nvidia.as_ref().is_ok_and(|nvidia| nvidia.gpus.len() > 1);
        if provider.name() == "tensorrt-rtx" && several {
            let message =
                "of several GPUs TensorRT for RTX takes the first that it finds: name one in CUDA_VISIBLE_DEVICES";
            notes.push(message.to_owned());
        }
        Chosen {
            asked: self,
            provider,
            gpu: machine.gpu().filter(|_| provider.on_gpu()).cloned(),
            driver: machine.nvidia.as_ref().ok().map(|nvidia| nvidia.driver.clone()),
            expected_gpu: machine.installed,
            library: provider.library(machine),
            passed_over,
            notes,
        }
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
