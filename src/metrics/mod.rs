//! Figures of merit of a classifier: plain numbers in, plain numbers out.
//!
//! Layer 1.
