//! Training: artifacts, `ba-train`, metrics, and trained weights in a bundle.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod apply;
mod artifacts;
mod evaluation;
mod fit;
mod fit_parts;
mod fit_resume;
mod hostile_versions;
mod interop;
mod lists;
mod metrics;
mod optimizer;
mod pictures;
mod prepare;
mod steps;
mod versions;
