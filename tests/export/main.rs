//! Export: checkpoints to bundles, and bundles that were changed.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod bundle;
mod bundle_mutations;
mod bundle_operators;
mod calibration;
#[cfg(target_os = "linux")]
mod changed;
mod decisions;
mod install;
mod language_models;
mod memory;
mod quantize;
mod random;
mod targets;
mod targets_commands;
mod tokenizers;
