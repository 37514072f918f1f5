//! `ba-train`: one file per subcommand.

mod apply;
mod eval;
mod fit;
mod prepare;
mod report;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::{Common, finish, parse};
use crate::error::Code;

const EXAMPLES: &str = "\
Examples:
  ba-train prepare --model checkpoints --mode tlp      training artifacts of a checkpoint, into ./training
  ba-train fit --data cohort.csv                       fine-tune on a cohort; --resume continues an interrupted run
  ba-train eval --data cohort.csv --bundle onnx        metrics of a bundle on a cohort
  ba-train apply --checkpoint training/run/best        put the trained adapter and heads into a bundle

cohort.csv has the columns scan, report and label, and optionally split (train, validation, test), subject and volume;
paths are relative to it.";

/// Fine-tunes the adapter and heads with ONNX Runtime.
#[derive(Parser, Debug)]
#[command(name = "ba-train", version, after_help = EXAMPLES)]
struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Writes the training artifacts of a checkpoint
    Prepare(prepare::Args),
    /// Fine-tunes adapter and heads on a cohort
    Fit(fit::Args),
    /// Evaluates a bundle on a cohort
    Eval(eval::Args),
    /// Puts a trained adapter and heads into a bundle, or restores an earlier version
    Apply(apply::Args),
}

/// Runs `ba-train` with the process's arguments.
pub fn main() -> ExitCode {
    let Args { command, common } = match parse(|_| Ok(())) {
        Ok(args) => args,
        Err(code) => return code,
    };
    common.catch_bus_errors();
    let outcome = common.start_threads().and_then(|()| match &command {
        Command::Prepare(args) => prepare::run(args, &common),
        Command::Fit(args) => fit::run(args, &common),
        Command::Apply(args) => apply::run(args, &common),
        Command::Eval(args) => eval::run(args, &common),
    });
    // An evaluation reports failed rows in its own document.
    let reported = outcome.as_ref().is_err_and(|e| e.code() == Code::LIST_PARTIAL);
    finish(outcome, common.json && !reported)
}
