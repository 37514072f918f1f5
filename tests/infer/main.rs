//! Inference: a scan and a report to a label, from the library and from `ba-infer`.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod changed;
mod cohort;
mod fixtures;
mod lists;
mod memory;
mod orientation;
mod outputs;
mod quality;
mod report_language;
mod reports;
mod results;
mod symbols;
mod temperature;
mod tokenizer;
mod tokenizer_hostile;
