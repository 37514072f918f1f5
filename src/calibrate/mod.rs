//! Runs a float32 graph on calibration inputs, in bounded memory, and observes the activations of its linear layers.
//!
//! Layer 5, feature `runtime`. A [`Walk`] cuts the graph into its blocks and runs one at a time over all inputs. In
//! memory are one run of a block (its weights are mapped), the values between blocks for every input, and some tokens
//! of the block's activations: so a walk needs no more memory for more blocks. A visitor is given, for every block, the
//! inputs and results of each linear layer on those tokens, and channel statistics over all tokens.
//!
//! Inputs that *calibrate* give the statistics; inputs that are *held out* show how well what was derived from the
//! statistics does on inputs that it has not seen.

mod inputs;
mod observer;
mod runner;
mod sample;
mod statistics;
mod walk;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use inputs::Inputs;
pub use observer::LinearGroup;
pub use runner::{LoadedGraph, Runner};
pub use sample::{Fidelity, Rows, Sample, fidelity, fidelity_of};
pub use statistics::{ChannelStats, Statistics, ZERO_POINTS};
pub use walk::{BlockVisit, Walk};

use crate::tensor::Tensor;

/// The tensors of one input by name; shared, not copied.
pub type Feed = BTreeMap<String, Arc<Tensor>>;

/// The least and the largest element of values, by name.
pub type Ranges = BTreeMap<String, (f32, f32)>;

/// What an input is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// For statistics.
    Calibrate,
    /// For evaluation: it is held out from the statistics.
    HeldOut,
    /// For both, where there is only one input.
    Both,
}

impl Role {
    /// The roles of `count` inputs: the first of each pair calibrates, the second is held out.
    pub fn of(count: usize) -> Vec<Self> {
        match count {
            1 => vec![Self::Both],
            n => (0..n).map(|i| if i % 2 == 0 { Self::Calibrate } else { Self::HeldOut }).collect(),
        }
    }

    /// Whether its activations enter the statistics.
    pub fn calibrates(self) -> bool {
        self != Self::HeldOut
    }

    /// Whether errors are measured on it.
    pub fn evaluates(self) -> bool {
        self != Self::Calibrate
    }
}
