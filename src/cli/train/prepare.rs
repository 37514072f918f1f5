//! `ba-train prepare`.

use crate::cli::Common;
use crate::error::{Code, Error, Result};

/// Flags of `ba-train prepare`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {}

/// Runs the subcommand.
pub(super) fn run(_: &Args, _: &Common) -> Result<()> {
    Err(Error::new(Code::IO, "ba-train prepare is not built yet"))
}
