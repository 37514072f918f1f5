//! The commands' flags, their output and their exit codes.
//!
//! Layer 8, feature `cli`. Each command turns its arguments into the plan of a use case, runs it and renders the
//! result: results on stdout, everything else on stderr. Exit codes are decided here alone: 0 done, 1 the work failed,
//! 2 wrong usage, 128 and its number for a signal.

#[cfg(target_os = "linux")]
mod bus_error;
pub mod export;
pub mod infer;
mod layers;
mod outputs;
mod progress;
mod render;
#[cfg(unix)]
mod signals;
mod text;
pub mod train;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser};

use crate::error::{Code, Error, Result, Warning};
use crate::infer::results::error_json;
use crate::progress::{Progress, Shared};
use crate::runtime::{LibraryFile, PINNED_VERSION, Runtime};
use crate::threads::start_pool;

/// Exit code of wrong usage.
const USAGE: u8 = 2;

/// Flags that all commands have.
#[derive(Args, Debug)]
struct Common {
    /// Print one JSON document (several scans: one per line) instead of text
    #[arg(long, global = true)]
    json: bool,
    /// No progress and no warnings on stderr
    #[arg(short, long, global = true)]
    quiet: bool,
    /// More detail in the result, and ONNX Runtime's log on stderr
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
    /// Number of threads [default: one per core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// ONNX Runtime's shared library [default: $ORT_DYLIB_PATH, an absolute path; then searched for near the program]
    #[arg(long, global = true, value_name = "FILE")]
    ort_lib: Option<PathBuf>,
}

impl Common {
    fn threads(&self) -> Option<usize> {
        self.threads.map(usize::from)
    }

    /// Starts the threads of all work outside ONNX Runtime, as many as `--threads` says.
    fn start_threads(&self) -> Result<()> {
        start_pool(self.threads())
    }

    /// Reports a mapped file that was truncated meanwhile as an error of that file; elsewhere it ends the process.
    fn catch_bus_errors(&self) {
        #[cfg(target_os = "linux")]
        bus_error::install(self.json);
    }

    /// Lines on stderr, unless `--quiet`.
    fn note(&self, lines: impl IntoIterator<Item = String>) {
        if !self.quiet {
            lines.into_iter().for_each(|line| write_stderr(&text::escaped(&line)));
        }
    }

    /// Warnings on stderr, unless `--quiet`.
    fn warn(&self, warnings: &[Warning]) {
        if !self.quiet {
            warnings.iter().for_each(|warning| write_stderr(&warning_line(warning)));
        }
    }

    /// ONNX Runtime's log on stderr, with `--verbose`, after the files that were loaded.
    fn note_log(&self) {
        if self.verbose {
            self.note(loaded_files().into_iter().map(|file| library_line(&file)));
            self.note(crate::runtime::take_log());
        }
    }

    /// A progress for several threads, whose lines go to stderr, unless `--quiet`.
    fn shared_notes(&self) -> Shared {
        if self.quiet { Shared::default() } else { Shared::new(Notes) }
    }

    /// Prints a result: with `--json` as one document with the warnings of the run, else as `text`.
    fn print_result(
        &self,
        result: &impl serde::Serialize,
        warnings: &[Warning],
        text: impl FnOnce() -> String,
    ) -> Result<()> {
        let about_libraries = library_warnings();
        self.warn(&about_libraries);
        let warnings = &[warnings, &about_libraries].concat();
        if self.json { print_json(&Document { result, warnings }) } else { print(&text()) }
    }
}

/// The files of ONNX Runtime that this process has loaded.
fn loaded_files() -> Vec<LibraryFile> {
    Runtime::loaded().map(Runtime::files).unwrap_or_default()
}

/// What there is to know about them.
fn library_warnings() -> Vec<Warning> {
    loaded_files().iter().filter_map(LibraryFile::warning).collect()
}

/// A file of ONNX Runtime as a line.
fn library_line(file: &LibraryFile) -> String {
    let build = if file.pinned { format!("ONNX Runtime {PINNED_VERSION}") } else { "not a pinned build".to_owned() };
    format!("library: {} ({build}, SHA-256 {})", file.path.display(), file.sha256)
}

/// What `--json` prints: the result's own keys, and the warnings of the run.
#[derive(serde::Serialize)]
struct Document<'a, T> {
    #[serde(flatten)]
    result: &'a T,
    warnings: &'a [Warning],
}

struct Notes;

impl Progress for Notes {
    fn line(&mut self, line: &str) {
        write_stderr(&text::escaped(line));
    }
}

/// Parses the process's arguments and begins to handle signals. `check` refuses combinations that clap cannot express.
///
/// # Errors
/// The exit code, after help or an error message was printed.
fn parse<A: Parser>(check: impl FnOnce(&A) -> std::result::Result<(), String>) -> std::result::Result<A, ExitCode> {
    let conflict = |message| A::command().error(clap::error::ErrorKind::ArgumentConflict, message);
    let parsed = A::try_parse().and_then(|args| check(&args).map(|()| args).map_err(conflict));
    let args = parsed.map_err(|e| wrong_usage(&e))?;
    #[cfg(unix)]
    signals::catch(json_is_asked_for());
    Ok(args)
}

/// Prints help, or what is wrong with the arguments: for a person on stderr, and with `--json` as an error on stdout.
fn wrong_usage(error: &clap::Error) -> ExitCode {
    // There is nothing left to do when the stream is closed.
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    if json_is_asked_for() {
        let _ = print_error(&Error::new(Code::USAGE, usage_message(&error.render().to_string())));
    }
    ExitCode::from(USAGE)
}

/// Whether the arguments, which may be wrong, have `--json`.
fn json_is_asked_for() -> bool {
    std::env::args_os().skip(1).take_while(|arg| arg != "--").any(|arg| arg == "--json")
}

/// The message of clap's text in one line, without the usage and hints below it.
fn usage_message(text: &str) -> String {
    let message = text.split("\n\n").next().unwrap_or(text);
    let message = message.strip_prefix("error: ").unwrap_or(message);
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Ends a command: reports the error, if any, and returns the exit code.
fn finish(outcome: Result<()>, json: bool) -> ExitCode {
    #[cfg(unix)]
    signals::wait_if_stopped();
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    report_error(&error);
    if json {
        // There is nothing left to do when stdout is closed.
        let _ = print_error(&error);
    }
    ExitCode::FAILURE
}

/// An error as one line on stderr.
fn report_error(error: &Error) {
    let code = text::styled(&format!("error[{}]:", error.code()), text::BAD);
    write_stderr(&format!("{code} {}", text::place_and_message(error)));
}

/// An error as a JSON document on stdout.
fn print_error(error: &Error) -> Result<()> {
    print_json(&serde_json::json!({"error": error_json(error)}))
}

/// A warning as one line.
fn warning_line(warning: &Warning) -> String {
    format!(
        "{} {}",
        text::styled(&format!("warning[{}]:", warning.code), text::CAUTION),
        text::escaped(&warning.message)
    )
}

/// A line on stderr, in colour if it is a terminal. What comes from files must be [`text::escaped`].
fn write_stderr(line: &str) {
    let _ = writeln!(anstream::stderr(), "{line}");
}

/// Writes text to stdout, in colour if it is a terminal. What comes from files must be [`text::escaped`].
fn print(text: &str) -> Result<()> {
    write_all(anstream::stdout().lock(), text)
}

/// A reader that has closed the pipe (`| head`) is no error.
fn write_all(mut out: impl Write, text: &str) -> Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(Error::io("stdout", "cannot write the results", e)),
        Ok(()) => Ok(()),
    }
}

/// Writes one JSON document to stdout, in one line.
fn print_json(document: &impl serde::Serialize) -> Result<()> {
    print_json_line(&to_json(document)?)
}

/// Writes a line of JSON to stdout.
fn print_json_line(json: &str) -> Result<()> {
    write_all(std::io::stdout().lock(), &format!("{json}\n"))
}

fn to_json(document: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(document).map_err(|e| Error::internal(format!("cannot write the result as JSON: {e}")))
}

/// The calibration folder: one that was named must exist.
fn calibration_folder(named: Option<&PathBuf>) -> Result<PathBuf> {
    match named {
        Some(folder) if !folder.is_dir() => {
            Err(Error::new(Code::CALIBRATION_INPUT, "there is no such calibration folder").at(folder))
        }
        Some(folder) => Ok(folder.clone()),
        None => Ok(PathBuf::from("calibration")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_errors_are_one_line_without_usage() {
        let text = "error: the following required arguments were not provided:\n  <SCAN|--list <FILE.csv>>\n\n\
                    Usage: ba-infer <SCAN|--list <FILE.csv>>\n\nFor more information, try '--help'.\n";
        let expected = "the following required arguments were not provided: <SCAN|--list <FILE.csv>>";
        assert_eq!(usage_message(text), expected);
    }

    #[test]
    fn warnings_follow_the_results_own_keys() {
        let warnings = [Warning::new(crate::WarningCode::CALIBRATION_NONE, "none")];
        let document = Document { result: &serde_json::json!({"b": 1.5, "a": null}), warnings: &warnings };
        let expected = r#"{"b":1.5,"a":null,"warnings":[{"code":"calibration_none","message":"none"}]}"#;
        assert_eq!(to_json(&document).unwrap(), expected);
    }
}
