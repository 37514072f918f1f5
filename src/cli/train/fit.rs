//! `ba-train fit`.

use crate::cli::Common;
use crate::error::{Code, Error, Result};

/// Flags of `ba-train fit`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {}

/// Runs the subcommand.
pub(super) fn run(_: &Args, _: &Common) -> Result<()> {
    Err(Error::new(Code::IO, "ba-train fit is not built yet"))
}
