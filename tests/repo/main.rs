//! The repository: its rules, and the scripts of its benchmarks.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod architecture;
mod circles;
mod fuzz_corpus;
mod gpu_bench;
mod links;
mod oracles;
mod sizes;
mod source;
