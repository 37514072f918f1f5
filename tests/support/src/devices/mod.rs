//! Machines with NVIDIA GPUs that are not there.

pub mod fake;
pub mod stub;
