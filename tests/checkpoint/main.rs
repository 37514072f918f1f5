//! Checkpoints: what PyTorch and ONNX Runtime wrote, what this crate writes, and what is damaged or hostile.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod candidates;
mod distributed;
mod fixtures;
mod frameworks;
mod hostile;
mod merging;
mod mutations;
mod named;
mod prefixes;
mod restored;
mod roundtrip;
mod training;
