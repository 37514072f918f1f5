//! The repository: its rules, and the scripts of its benchmarks.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod architecture;
mod gpu_bench;
