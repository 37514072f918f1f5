//! Scans: NIfTI and MGH files read and conformed, and those that are damaged or hostile.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod corpus;
mod formats;
mod hostile;
mod mgh;
mod mgh_hostile;
mod mutations;
mod named;
mod output;
mod paths;
mod properties;
mod quality;
mod zstd;
