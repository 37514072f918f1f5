//! What to load as a session, and how.

use std::path::Path;
use std::sync::Arc;

use super::{CPU, EngineOptions, Provider, ProviderOptions};

/// How a graph is loaded.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// The execution provider that computes it.
    pub provider: &'static dyn Provider,
    /// Whether a fallback node is an error, unless its operator is one of [`SHAPE_OPS`](super::SHAPE_OPS).
    pub strict: bool,
    /// Whether to record which provider computes which node ([`crate::runtime::Session::placement`]).
    pub placement: bool,
    /// Threads within an operator; by default one per core.
    pub threads: Option<usize>,
    /// Whether ONNX Runtime may rewrite the graph. Otherwise it runs operator by operator, as written.
    pub optimize: bool,
    /// Whether weights are repacked for the CPU's kernels when a graph is loaded (prepacking). Otherwise they stay in
    /// the mapped file: less memory and a faster start, slower runs.
    pub prepack: bool,
    /// Whether constants are folded when a graph is loaded. Otherwise fp16 weights are widened to float32 in every run
    /// and freed again: less memory, slower runs.
    pub fold: bool,
    /// Whether memory for activations is freed at the end of each run.
    pub shrink: bool,
}

impl SessionOptions {
    /// The CPU, at full speed.
    pub const DEFAULT: Self = Self {
        provider: CPU,
        strict: false,
        placement: false,
        threads: None,
        optimize: true,
        prepack: true,
        fold: true,
        shrink: false,
    };

    /// The part of them that the provider needs.
    pub(super) fn for_provider<'a>(&self, engines: &'a EngineOptions) -> ProviderOptions<'a> {
        ProviderOptions { cpu_arena: !self.shrink && self.fold, engines }
    }
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Where a graph is loaded from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A file; its external data lies next to it.
    File(&'a Path),
    /// Part of the graph in a file; its external data is the whole graph's.
    Part {
        /// The part as an ONNX model.
        model: &'a [u8],
        /// The whole graph's file.
        path: &'a Path,
    },
    /// A graph whose files were read: nothing is opened.
    Read {
        /// The graph as an ONNX model.
        model: &'a [u8],
        /// The files of its external data by name, whole.
        weights: &'a [(String, Arc<[u8]>)],
        /// The graph's file, for messages.
        path: &'a Path,
    },
    /// An ONNX model with all its weights, and a name for messages.
    Bytes(&'a [u8], &'a str),
}
