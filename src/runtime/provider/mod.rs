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

    /// The model that a session leaves in the folder of engines and that later ones load in place of the graph; none where the
    /// graph is loaded again and the provider finds its engines by itself.
    fn context(&self) -> Option<&'static str> {
        None
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
    let message = format!("ONNX Runtime does not take the device `{}`: {}", provider.name(), essence(reason));
    Error::new(Code::DEVICE_UNAVAILABLE, message)
}

/// ONNX Runtime's words in one line. Of a failed call of CUDA what failed: around it stand places in its source, and the host's
/// name.
fn essence(reason: &str) -> String {
    let failed = reason.rfind("CUDA failure ").map(|at| reason[at..].split(" ; ").next().unwrap_or_default());
    failed.unwrap_or(reason).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn of_cuda_what_failed() {
        // As ONNX Runtime 1.31.1 says it, shortened.
        let told = "/onnxruntime_src/x.cc:63 static X::From(const ProviderOptions&) [ONNXRuntimeError] : 1 : FAIL : \
                    utils.h:187 Parse Failed to parse provider option \"device_id\": CUDA failure 100: no CUDA-capable device \
                    is detected ; GPU=-1 ; hostname=reading-room-3 ; file=/onnxruntime_src/x.cc ; line=70 ; expr=f(&n);";
        assert_eq!(super::essence(told), "CUDA failure 100: no CUDA-capable device is detected");
        assert_eq!(super::essence("not enabled in\n this build."), "not enabled in this build.");
    }
}
