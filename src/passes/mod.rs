//! Rewrites of graphs: each takes a [`crate::graph::Graph`], returns one, and ends in the verifier.

mod fold;

pub use fold::fold_batch_norm;
