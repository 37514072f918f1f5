//! Brain-Adapter: a brain-MRI model out of PyTorch and onto a hospital workstation.

pub mod batch;
pub mod bundle;
pub mod checkpoint;
#[cfg(all(feature = "cli", feature = "runtime"))]
pub mod cli;
pub mod config;
pub mod error;
pub mod export;
pub mod graph;
#[cfg(feature = "runtime")]
pub mod infer;
pub mod model;
pub mod onnx;
pub mod passes;
pub mod progress;
#[cfg(feature = "runtime")]
pub mod runtime;
pub mod tensor;
pub mod text;
pub mod volume;

pub use error::{Code, Error, Result, Warning};
