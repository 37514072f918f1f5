//! ONNX Runtime's CPU provider, which every build has.

use ort::session::builder::SessionBuilder;

use super::{Provider, ProviderOptions};
use crate::error::Result;
use crate::runtime::{Machine, Runtime};

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

    fn configure(&self, _: &Runtime, builder: SessionBuilder, options: &ProviderOptions<'_>) -> Result<SessionBuilder> {
        if options.cpu_arena {
            // Every session has the CPU provider, with an arena, as its last one.
            return Ok(builder);
        }
        let cpu = ort::ep::CPU::default().with_arena_allocator(false).build();
        super::with_providers(builder, [cpu], self)
    }
}
