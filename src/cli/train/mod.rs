//! `ba-train`: one subcommand a file.

mod apply;
mod eval;
mod fit;
mod prepare;
mod report;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::{Common, finish};
use crate::error::Code;

const EXAMPLES: &str = "\
Examples:
  ba-train prepare --model checkpoints --mode tlp      training artifacts of a checkpoint, into ./training
  ba-train fit --data cohort.csv                       fine-tune on a cohort; interrupted, go on with --resume
  ba-train eval --data cohort.csv --bundle onnx        how good is a bundle?
  ba-train apply --checkpoint training/run/best        the trained adapter and heads into a bundle

cohort.csv has the columns scan,report,label and may have split (train, validation, test); paths are relative to it.";

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
    /// Trains on a cohort
    Fit(fit::Args),
    /// Measures a bundle on a cohort
    Eval(eval::Args),
    /// Puts a trained adapter and heads into a bundle, or takes the last ones back
    Apply(apply::Args),
}

/// Runs `ba-train` with the process's arguments.
pub fn main() -> ExitCode {
    let Args { command, common } = Args::parse();
    let outcome = common.limit_threads().and_then(|()| match &command {
        Command::Prepare(args) => prepare::run(args, &common),
        Command::Fit(args) => fit::run(args, &common),
        Command::Apply(args) => apply::run(args, &common),
        Command::Eval(args) => eval::run(args, &common),
    });
    // An evaluation tells of rows that failed in its one document.
    let told = outcome.as_ref().is_err_and(|e| e.code() == Code::LIST_PARTIAL);
    finish(outcome, common.json && !told)
}
