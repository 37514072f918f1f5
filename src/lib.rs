//! Brain-Adapter: a brain-MRI model out of PyTorch and onto a hospital workstation.

pub mod error;
pub mod volume;

pub use error::{Code, Error, Result, Warning};
