//! Checkpoints: what PyTorch and ONNX Runtime wrote, what this crate writes, and what is damaged or hostile.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod fixtures;
mod frameworks;
mod hostile;
mod mutations;
mod named;
mod prefixes;
mod roundtrip;
mod training;
