//! The CPU provider, which is always there.

use ort::session::builder::SessionBuilder;

use super::Provider;
use crate::error::Result;

/// ONNX Runtime's CPU provider.
pub(super) struct Cpu;

impl Provider for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn unavailable(&self) -> Option<String> {
        None
    }

    /// Nothing to do: every session falls back on the CPU provider, so it alone is what remains.
    fn configure(&self, builder: SessionBuilder) -> Result<SessionBuilder> {
        Ok(builder)
    }
}
