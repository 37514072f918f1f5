//! What providers that compute by engines need to know of a graph.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What providers need to know that compute by engines, which are made for certain extents of the inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// The inputs that have dimensions without a number.
    pub inputs: Vec<ProfiledInput>,
    /// Where engines are kept; without, they are made anew by every process.
    pub folder: Option<PathBuf>,
}

/// The extents that an input may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfiledInput {
    /// The input's name.
    pub name: String,
    /// The least extent of each dimension.
    pub min: Vec<u64>,
    /// What the engine is made to be fastest for.
    pub opt: Vec<u64>,
    /// The largest.
    pub max: Vec<u64>,
}
