//! `ba-train apply`.

use crate::cli::Common;
use crate::error::{Code, Error, Result};

/// Flags of `ba-train apply`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {}

/// Runs the subcommand.
pub(super) fn run(_: &Args, _: &Common) -> Result<()> {
    Err(Error::new(Code::IO, "ba-train apply is not built yet"))
}
