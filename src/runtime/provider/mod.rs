//! Execution providers: who computes a graph. One short file each.
//!
//! A [`Provider`] says whether a [`Machine`] can run it, and sets sessions up. Which one is taken is
//! [`Device`](super::Device)'s.

mod cpu;
mod cuda;
mod tensorrt;
mod tensorrt_rtx;

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
    fn unavailable(&self, machine: &Machine) -> Option<String>;

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

/// The builder with one more provider, which must be taken.
fn with_provider(
    builder: SessionBuilder,
    dispatch: ort::ep::ExecutionProviderDispatch,
    provider: &dyn Provider,
) -> Result<SessionBuilder> {
    builder.with_execution_providers([dispatch.error_on_failure()]).map_err(|e| {
        let message = format!("ONNX Runtime does not take the device `{}`: {e}", provider.name());
        Error::new(Code::DEVICE_UNAVAILABLE, message)
    })
}
