//! `ba-train eval`.

use crate::cli::Common;
use crate::error::{Code, Error, Result};

/// Flags of `ba-train eval`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {}

/// Runs the subcommand.
pub(super) fn run(_: &Args, _: &Common) -> Result<()> {
    Err(Error::new(Code::IO, "ba-train eval is not built yet"))
}
