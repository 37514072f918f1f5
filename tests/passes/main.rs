//! Passes: quantization, folding, calibration walks, and gradients.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod autograd;
mod fold;
mod gradients;
mod gradients_fixtures;
mod quantize;
mod quantize_fixtures;
mod quantize_models;
mod quantize_outliers;
mod quantize_symmetric;
mod quantize_weights;
mod smoothing;
mod walks;
