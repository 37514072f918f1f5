//! NVIDIA RTX cards through TensorRT for RTX, a library of its own that ONNX Runtime takes as a plugin.

use ort::session::builder::SessionBuilder;

use super::Provider;
use crate::error::Result;
use crate::runtime::{EngineOptions, Machine, Runtime, SessionOptions};

/// NVIDIA RTX cards through TensorRT for RTX, a library of its own that ONNX Runtime takes as a plugin.
#[derive(Debug)]
pub(super) struct TensorRtRtx;

impl Provider for TensorRtRtx {
    fn name(&self) -> &'static str {
        "tensorrt-rtx"
    }

    fn ep(&self) -> &'static str {
        "NvTensorRTRTXExecutionProvider"
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
