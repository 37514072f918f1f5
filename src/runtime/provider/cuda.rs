//! NVIDIA GPUs through CUDA and cuDNN.

use ort::session::builder::SessionBuilder;

use super::Provider;
use crate::error::Result;
use crate::runtime::{EngineOptions, Machine, Runtime, SessionOptions};

/// NVIDIA GPUs through CUDA and cuDNN.
#[derive(Debug)]
pub(super) struct Cuda;

impl Provider for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn ep(&self) -> &'static str {
        "CUDAExecutionProvider"
    }

    fn on_gpu(&self) -> bool {
        true
    }

    fn unavailable(&self, machine: &Machine) -> Option<String> {
        machine.no_gpu()
    }

    fn configure(
        &self,
        _: &Runtime,
        builder: SessionBuilder,
        _: &SessionOptions,
        _: &EngineOptions,
    ) -> Result<SessionBuilder> {
        Ok(builder)
    }
}
