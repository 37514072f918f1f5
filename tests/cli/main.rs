//! The commands as a user meets them.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod demo;
mod devices;
mod threads;
mod usage;
