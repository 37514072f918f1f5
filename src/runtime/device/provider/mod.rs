//! Execution providers: what computes a graph. One short file each.
//!
//! A [`Provider`] says whether a [`Machine`] can run it, and configures sessions. [`Device`](super::Device) selects
//! one.

mod cpu;
mod cuda;
mod gpu;
mod profile;
mod tensorrt;
mod tensorrt_rtx;

use std::path::PathBuf;

use ort::session::builder::SessionBuilder;

use super::Machine;
use crate::error::{Code, Error, Result};
use crate::runtime::{EngineOptions, Runtime};

/// What a session asks of its provider.
#[derive(Clone, Copy, Debug)]
pub struct ProviderOptions<'a> {
    /// Whether the CPU provider allocates activations from an arena, which keeps its peak size, and whole regions of it
    /// for a result that is still alive.
    pub cpu_arena: bool,
    /// Shapes and cache of the engines, for providers that build some.
    pub engines: &'a EngineOptions,
}

/// One way to compute a graph.
pub trait Provider: Sync + std::fmt::Debug {
    /// The name that results report as the device.
    fn name(&self) -> &'static str;

    /// ONNX Runtime's own name of it, such as `CUDAExecutionProvider`.
    fn ep(&self) -> &'static str;

    /// Whether it computes in a GPU's memory.
    fn on_gpu(&self) -> bool;

    /// Whether it needs bundles' graphs in the form that TensorRT reads, and builds engines from them.
    fn makes_engines(&self) -> bool {
        false
    }

    /// The model that a session writes into the engine cache and that later sessions load in place of the graph; none
    /// if the graph is loaded again and the provider finds its engines by itself.
    fn context(&self) -> Option<&'static str> {
        None
    }

    /// Why it cannot be used on this machine, if it cannot: what is missing, in which version, and what to install.
    ///
    /// If nothing is missing, this loads the GPU's libraries, so that ONNX Runtime finds them.
    fn unavailable(&self, machine: &Machine) -> Option<String>;

    /// The ONNX Runtime library that it needs; none where any will do and it is to be searched for.
    fn library(&self, machine: &Machine) -> Option<PathBuf> {
        machine.library.clone()
    }

    /// The provider's own files, which ONNX Runtime loads when a session is configured.
    fn files(&self, machine: &Machine) -> Vec<PathBuf> {
        let _ = machine;
        Vec::new()
    }

    /// Configures a session to use it.
    ///
    /// # Errors
    /// `device.unavailable` when the runtime refuses.
    fn configure(
        &self,
        runtime: &Runtime,
        builder: SessionBuilder,
        options: &ProviderOptions<'_>,
    ) -> Result<SessionBuilder>;
}

/// The CPU provider, which every build of ONNX Runtime has.
pub const CPU: &dyn Provider = &cpu::Cpu;

/// Providers in the order in which `auto` tries them.
pub(in crate::runtime) const PROVIDERS: [&dyn Provider; 4] =
    [&tensorrt::TensorRt, &tensorrt_rtx::TensorRtRtx, &cuda::Cuda, CPU];

/// Adds providers to a session, in order of preference; one that cannot be used is an error.
fn with_providers<const N: usize>(
    builder: SessionBuilder,
    all: [ort::ep::ExecutionProviderDispatch; N],
    provider: &dyn Provider,
) -> Result<SessionBuilder> {
    let all = all.map(ort::ep::ExecutionProviderDispatch::error_on_failure);
    builder.with_execution_providers(all).map_err(|e| refused(provider, &e.to_string()))
}

/// The error of a provider that ONNX Runtime, or a library that it loads, refuses.
fn refused(provider: &dyn Provider, reason: &str) -> Error {
    let message = format!("ONNX Runtime cannot use the device `{}`: {}", provider.name(), root_cause(reason));
    Error::new(Code::DEVICE_UNAVAILABLE, message)
}

/// ONNX Runtime's reason in one line. Of a failed CUDA call only the failure: its message also holds places in the
/// source, and the host's name.
fn root_cause(reason: &str) -> String {
    let failed = reason.rfind("CUDA failure ").map(|at| reason[at..].split(" ; ").next().unwrap_or_default());
    failed.unwrap_or(reason).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn root_cause_of_a_cuda_failure() {
        // A message of ONNX Runtime 1.31.1, shortened.
        let message = "/onnxruntime_src/x.cc:63 static X::From(const ProviderOptions&) [ONNXRuntimeError] : 1 : FAIL : \
                    utils.h:187 Parse Failed to parse provider option \"device_id\": CUDA failure 100: no CUDA-capable \
                    device is detected ; GPU=-1 ; hostname=reading-room-3 ; file=/onnxruntime_src/x.cc ; line=70 ; \
                    expr=f(&n);";
        assert_eq!(super::root_cause(message), "CUDA failure 100: no CUDA-capable device is detected");
        assert_eq!(super::root_cause("not enabled in\n this build."), "not enabled in this build.");
    }
}
