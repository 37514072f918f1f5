//! Graphs: the verifier, the model's graphs against the independent reference, and their files in other hands.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod language_models;
mod models;
mod onnx_checker;
mod reference_cases;
mod reference_fixtures;
mod segments;
mod verify;
