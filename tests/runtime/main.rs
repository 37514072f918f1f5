//! ONNX Runtime: its libraries, devices, and what providers take of our graphs.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod cuda_kernels;
mod cuda_partition;
mod device_exit;
mod device_ways;
mod devices;
mod library;
mod tensorrt;
