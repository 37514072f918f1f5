//! What an interruption, a full disk, a second process or a machine without means leaves: the old state or the new one,
//! and one clear line.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod bundles;
mod conditions;
mod harness;
mod results;
mod signals;
mod soak;
