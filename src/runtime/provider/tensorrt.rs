//! NVIDIA GPUs through TensorRT, for data-centre cards and wherever the user installed it.

use ort::session::builder::SessionBuilder;

use super::Provider;
use crate::error::Result;
use crate::runtime::{EngineOptions, Machine, Runtime, SessionOptions};

/// NVIDIA GPUs through TensorRT, for data-centre cards and wherever the user installed it.
#[derive(Debug)]
pub(super) struct TensorRt;

impl Provider for TensorRt {
    fn name(&self) -> &'static str {
        "tensorrt"
    }

    fn ep(&self) -> &'static str {
        "TensorrtExecutionProvider"
    }

    fn on_gpu(&self) -> bool {
        true
    }

    fn makes_engines(&self) -> bool {
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
