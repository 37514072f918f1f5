//! Selects the execution provider for the device that was asked for, and says why better ones were passed over.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::provider::{PROVIDERS, Provider};
use super::{Device, Gpu, Machine, PassedOver};
use crate::error::{Code, Error, Result};
use crate::runtime::{Runtime, ort_library};

/// The device in use.
#[derive(Clone, Debug, Serialize)]
pub struct SelectedDevice {
    /// What was asked for.
    #[serde(rename = "asked", serialize_with = "as_text")]
    pub requested: Device,
    /// The execution provider that computes.
    #[serde(rename = "device", serialize_with = "by_name")]
    pub provider: &'static dyn Provider,
    /// The GPU that it computes on; none on the CPU.
    pub gpu: Option<Gpu>,
    /// The version of NVIDIA's driver, where the driver was asked and answered; also when the CPU computes.
    pub driver: Option<String>,
    /// Whether NVIDIA's driver is installed: a user of `auto` then expects the GPU to be used.
    #[serde(skip)]
    pub expected_gpu: bool,
    /// The ONNX Runtime library that this provider needs; none where it is to be searched for.
    #[serde(skip)]
    pub library: Option<PathBuf>,
    /// The devices that come before this one in `auto`'s order, and why each cannot be used.
    pub passed_over: Vec<PassedOver>,
    /// What is uncertain about the GPU, one line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

fn as_text<S: Serializer>(device: &Device, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(device)
}

fn by_name<S: Serializer>(provider: &&'static dyn Provider, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(provider.name())
}

impl SelectedDevice {
    /// The selection for a person, one line each: what is uncertain; then, with `verbose`, what `auto` selected and why
    /// it passed over the others. Without `verbose` it reports that too if a GPU's driver is installed and the CPU
    /// computes all the same.
    pub fn describe(&self, verbose: bool) -> Vec<String> {
        let mut lines: Vec<String> = self.notes.iter().map(|note| format!("device: {note}")).collect();
        if self.requested != Device::Auto {
            return lines;
        }
        let gpu_unused = self.expected_gpu && !self.provider.on_gpu();
        if verbose || gpu_unused {
            lines.push(format!("device: {self} (auto)"));
        }
        // Without -v one reason is enough: that of the device with the fewest requirements.
        let reported = match (verbose, gpu_unused, self.passed_over.split_last()) {
            (true, ..) => self.passed_over.as_slice(),
            (false, true, Some((last, _))) => std::slice::from_ref(last),
            _ => &[],
        };
        lines.extend(group_reasons(reported).into_iter().map(|reason| format!("device: not {reason}")));
        lines
    }
}

/// `NAME: reason`, with the devices that share a reason in one line.
fn group_reasons(passed_over: &[PassedOver]) -> Vec<String> {
    let mut groups: Vec<(Vec<&str>, &str)> = Vec::new();
    for PassedOver { device, reason } in passed_over {
        match groups.iter_mut().find(|(_, same)| same == reason) {
            Some((devices, _)) => devices.push(device),
            None => groups.push((vec![device], reason)),
        }
    }
    groups.into_iter().map(|(devices, reason)| format!("{}: {reason}", devices.join(", "))).collect()
}

/// `cuda (NVIDIA RTX A4000, driver 580.65.06)`; `cpu`.
impl fmt::Display for SelectedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.provider.name())?;
        match (&self.gpu, &self.driver) {
            (Some(gpu), Some(driver)) => write!(f, " ({}, driver {driver})", gpu.name),
            _ => Ok(()),
        }
    }
}

impl Device {
    /// Selects the first provider that serves the request and can be used on `machine`. `suits` says whether what is to
    /// be run suits the provider of a name, or why not.
    ///
    /// # Errors
    /// `device.unavailable`, with the reason, when a device was asked for by name and cannot be used;
    /// `device.precision` when it can, and what is to be run does not suit it.
    pub fn select(
        self,
        machine: &Machine,
        suits: &dyn Fn(&str) -> std::result::Result<(), String>,
    ) -> Result<SelectedDevice> {
        let mut passed_over = Vec::new();
        let mut unsuited = None;
        for &provider in PROVIDERS.iter().filter(|p| self.matches(p.name())) {
            let refused = machine.refused.iter().find(|refused| refused.device == provider.name());
            let suited = suits(provider.name());
            // `auto` must not load a GPU's libraries for a bundle that will not run there.
            let probes = self != Self::Auto || suited.is_ok();
            let unavailable = || probes.then(|| provider.unavailable(machine)).flatten();
            let reason = match refused.map(|r| r.reason.clone()).or_else(unavailable) {
                Some(reason) => reason,
                None => match suited {
                    Ok(()) => return Ok(self.selected(provider, machine, passed_over)),
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
            several => group_reasons(several).join("; "),
        };
        let message = format!("device `{self}` cannot be used: {why}; --device cpu needs no GPU");
        Err(Error::new(Code::DEVICE_UNAVAILABLE, message))
    }

    /// Detects this machine's devices, selects one as [`Self::select`] does, loads ONNX Runtime (`library`, else the
    /// one that the device needs) and probes the device with it. `auto` passes over a device that ONNX Runtime refuses:
    /// a driver may answer although its GPU is out of reach.
    ///
    /// # Errors
    /// Those of [`Self::select`] and of [`Runtime::load`].
    pub fn open(
        self,
        library: Option<&Path>,
        suits: &dyn Fn(&str) -> std::result::Result<(), String>,
    ) -> Result<(SelectedDevice, &'static Runtime)> {
        let library = ort_library::named(library)?;
        let mut machine = Machine::detect(self, library.as_deref());
        loop {
            let selected = self.select(&machine, suits)?;
            let runtime = Runtime::load(selected.library.as_deref())?;
            runtime.record(&selected.provider.files(&machine))?;
            let Err(error) = runtime.probe(selected.provider) else { return Ok((selected, runtime)) };
            machine.loaded = Some(runtime.library.clone());
            machine.refused.push(PassedOver { device: selected.provider.name(), reason: error.message().to_owned() });
        }
    }

    fn selected(
        self,
        provider: &'static dyn Provider,
        machine: &Machine,
        passed_over: Vec<PassedOver>,
    ) -> SelectedDevice {
        let mut notes = if provider.on_gpu() { machine.notes.clone() } else { Vec::new() };
        let several = machine.nvidia.as_ref().is_ok_and(|nvidia| nvidia.gpus.len() > 1);
        if provider.name() == "tensorrt-rtx" && several {
            let message = "TensorRT for RTX uses the first of several GPUs that it finds: set CUDA_VISIBLE_DEVICES to \
                           choose another";
            notes.push(message.to_owned());
        }
        SelectedDevice {
            requested: self,
            provider,
            gpu: machine.gpu().filter(|_| provider.on_gpu()).cloned(),
            driver: machine.nvidia.as_ref().ok().map(|nvidia| nvidia.driver.clone()),
            expected_gpu: machine.driver_installed,
            library: provider.library(machine),
            passed_over,
            notes,
        }
    }
}
