//! The CPU provider, which is always there.

use ort::session::builder::SessionBuilder;

use super::Provider;
use crate::error::Result;
use crate::runtime::{EngineOptions, Machine, Runtime, SessionOptions};

/// ONNX Runtime's CPU provider.
#[derive(Debug)]
pub(super) struct Cpu;

impl Provider for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn ep(&self) -> &'static str {
        "CPUExecutionProvider"
    }

    fn on_gpu(&self) -> bool {
        false
    }

    fn unavailable(&self, _: &Machine) -> Option<String> {
        None
    }

    fn configure(
        &self,
        _: &Runtime,
        builder: SessionBuilder,
        options: &SessionOptions,
        _: &EngineOptions,
    ) -> Result<SessionBuilder> {
        if !options.shrink && options.fold {
            // Every session falls back on the CPU provider, so it alone is what remains.
            return Ok(builder);
        }
        // The arena keeps what it once had, and whole regions of it for a result that is still there.
        let cpu = ort::ep::CPU::default().with_arena_allocator(false).build();
        super::with_providers(builder, [cpu], self)
    }
}
