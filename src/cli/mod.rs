//! The commands' flags, their output and their exit codes.
//!
//! Layer 8, feature `cli`. Each command turns what was typed into the plan of a use case, runs it and renders the
//! result: results on stdout, everything else on stderr. Exit codes are decided here alone: 0 done, 1 the work could not be
//! done, 2 wrong usage.

pub mod export;
pub mod infer;
mod layers;
mod progress;
mod render;
pub mod train;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::error::{Code, Error, Result};
use crate::infer::results::error_json;
use crate::progress::{Progress, Shared};

/// Printed by every command that gives an answer.
const RESEARCH_USE: &str = "Research use only. Not a medical device; not for diagnosis or treatment.";

/// Flags that all commands have.
#[derive(Args, Debug)]
struct Common {
    /// Print one JSON document (several scans: one a line) instead of text
    #[arg(long, global = true)]
    json: bool,
    /// No progress and no warnings on stderr
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Tell more on stderr
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
    /// Threads to compute with [default: one a core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// ONNX Runtime's shared library [default: $ORT_DYLIB_PATH, then searched for]
    #[arg(long, global = true, value_name = "FILE")]
    ort_lib: Option<PathBuf>,
}

impl Common {
    fn threads(&self) -> Option<usize> {
        self.threads.map(usize::from)
    }

    /// Makes `--threads` hold for everything that is computed outside ONNX Runtime too.
    fn limit_threads(&self) -> Result<()> {
        let Some(threads) = self.threads() else { return Ok(()) };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        pool.map_err(|e| Error::new(Code::IO, format!("cannot start {threads} threads: {e}")))
    }
}

/// Ends a command: says the error, if any, and gives the exit code.
fn finish(outcome: Result<()>, json: bool) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    complain(&error);
    if json {
        // Nothing is left to be done when stdout is closed.
        let _ = print(&format!("{}\n", serde_json::json!({"error": error_json(&error)})));
    }
    ExitCode::FAILURE
}

/// An error as one line on stderr.
fn complain(error: &Error) {
    let _ = writeln!(std::io::stderr(), "error[{}]: {error}", error.code());
}

/// Writes results to stdout. A reader that has gone away (`| head`) is not an error.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(Error::io("stdout", "cannot write the results", e)),
        Ok(()) => Ok(()),
    }
}

/// Writes one JSON document to stdout.
fn print_json(document: &impl serde::Serialize) -> Result<()> {
    let json = serde_json::to_string(document).map_err(|e| Error::new(Code::IO, e.to_string()))?;
    print(&format!("{json}\n"))
}

/// The calibration folder: one that was named must be there.
fn calibration_folder(named: Option<&PathBuf>) -> Result<PathBuf> {
    match named {
        Some(folder) if !folder.is_dir() => {
            Err(Error::new(Code::CALIBRATION_INPUT, "there is no such calibration folder").at(folder))
        }
        Some(folder) => Ok(folder.clone()),
        None => Ok(PathBuf::from("calibration")),
    }
}

/// Warnings and, with `-v`, what ONNX Runtime logged, on stderr.
fn tell(common: &Common, lines: impl IntoIterator<Item = String>) {
    if !common.quiet {
        for line in lines {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }
}

/// A progress whose notes go to stderr, from whatever thread.
fn telling(common: &Common) -> Shared {
    if common.quiet { Shared::default() } else { Shared::new(Notes) }
}

struct Notes;

impl Progress for Notes {
    fn line(&mut self, text: &str) {
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}
