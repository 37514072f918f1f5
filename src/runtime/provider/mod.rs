//! Execution providers: who computes a graph. One short file each.
//!
//! A [`Provider`] says whether a [`Machine`] can run it, and sets sessions up. Which one is taken is
//! [`Device`](super::Device)'s.

mod cpu;
mod cuda;
mod gpu;
mod profile;
mod tensorrt;
mod tensorrt_rtx;

use std::path::PathBuf;

use ort::session::builder::SessionBuilder;

use super::{EngineOptions, Machine, Runtime, SessionOptions};
use crate::error::{Code, Error, Result};

/// One way to compute a graph.
pub trait Provider: Sync + std::fmt::Debug {
    /// The name that results state as the device.
    fn name(&self) -> &'static str;

    /// ONNX Runtime's own name of it.
    fn ep(&self) -> &'static str;

    /// Whether it computes in a GPU's memory.
    fn on_gpu(&self) -> bool;

    /// Whether it takes bundles' graphs in the form that TensorRT reads, and makes engines of them.
    fn makes_engines(&self) -> bool {
        false
    }

    /// Why it cannot be used on this machine, if it cannot: what is missing, in which version, and what to install.
    ///
    /// Where nothing is missing, the GPU's libraries are loaded, so that ONNX Runtime finds them.
    fn unavailable(&self, machine: &Machine) -> Option<String>;

    /// The library of ONNX Runtime to load for it; none where any will do and it is to be searched for.
    fn library(&self, machine: &Machine) -> Option<PathBuf> {
        machine.library.clone()
    }

    /// Sets a session up to use it. Providers that compute by engines take their inputs' extents and where engines are kept
    /// from `engines`.
    ///
    /// # Errors
    /// `device.unavailable` when the runtime refuses.
    fn configure(
        &self,
        runtime: &Runtime,
        builder: SessionBuilder,
        options: &SessionOptions,
        engines: &EngineOptions,
    ) -> Result<SessionBuilder>;
}

/// The CPU, which is always there.
pub const CPU: &dyn Provider = &cpu::Cpu;

/// Providers in the order in which `auto` tries them.
pub(super) const PROVIDERS: [&dyn Provider; 4] = [&tensorrt::TensorRt, &tensorrt_rtx::TensorRtRtx, &cuda::Cuda, CPU];

/// The builder with providers that must be taken, the first first.
fn with_providers<const N: usize>(
    builder: SessionBuilder,
    all: [ort::ep::ExecutionProviderDispatch; N],
    provider: &dyn Provider,
) -> Result<SessionBuilder> {
    let all = all.map(ort::ep::ExecutionProviderDispatch::error_on_failure);
    builder.with_execution_providers(all).map_err(|e| refused(provider, &e.to_string()))
}

/// The error of a provider that ONNX Runtime, or what it loads, does not take.
fn refused(provider: &dyn Provider, reason: &str) -> Error {
    // ONNX Runtime's own words are many lines, with places in its source.
    let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    let message = format!("ONNX Runtime does not take the device `{}`: {reason}", provider.name());
    Error::new(Code::DEVICE_UNAVAILABLE, message)
}
