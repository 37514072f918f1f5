//! `ba-infer`: scans and reports to labels.

mod list;
mod positional;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgGroup, Parser};

use super::outputs::{self, Kind};
use super::{Common, finish, library_warnings, parse, print, print_json_line, render, report_error, to_json};
use crate::bundle::INTENDED_USE;
use crate::checkpoint::{maker_metadata, write_safetensors};
use crate::cohort;
use crate::error::{Code, Error, Result};
use crate::files::replace;
use crate::infer::results::error_json;
use crate::infer::{EncodedReport, Expected, Mode, Options, PendingScan, Prediction, Predictor, read_ahead};
use crate::runtime::Device;
use crate::tensor::{LazyTensor, Tensor};
use crate::text::{ReportFormat, read_report_argument};
use crate::volume::AxisCodes;

const EXAMPLES: &str = "\
Examples:
  ba-infer scan.nii.gz --report report.txt          label, probabilities, similarity
  ba-infer scan.nii.gz                              from the image alone, if the bundle has a classifier for it
  ba-infer sub-*_T1w.nii.gz --json                  several scans, one JSON object per line
  ba-infer --list cohort.csv -o results.csv         a cohort; run it again to continue where it stopped
  ba-infer scan.nii.gz --save-preview check.png     check the orientation and field of view of the model's input";

fn after_help() -> String {
    format!("{EXAMPLES}\n\n{INTENDED_USE}")
}

/// Classifies a brain MRI, with its clinical report if there is one, as CN, MCI or AD.
#[derive(Parser, Debug)]
#[command(name = "ba-infer", version, after_help = after_help())]
#[command(group = ArgGroup::new("input").required(true).args(["scans", "list"]))]
struct Args {
    /// Scans: NIfTI-1 or NIfTI-2 (.nii, .nii.gz, .nii.zst or .hdr with its .img), MGH (.mgz, .mgh), or Analyze 7.5 with
    /// --orientation
    #[arg(value_name = "SCAN")]
    scans: Vec<PathBuf>,
    /// The scan's clinical report: plain text (UTF-8 or UTF-16); - reads standard input
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Use the one report for all scans
    #[arg(long, requires = "report")]
    same_report: bool,
    /// Format of the reports, also of a list's: text or html (converted to plain text)
    #[arg(long, default_value = "text", value_name = "FORMAT", hide_default_value = true)]
    report_format: ReportFormat,
    /// Bundle made by ba-export
    #[arg(long, default_value = "onnx", value_name = "DIR")]
    bundle: PathBuf,
    /// Device: auto, cpu, cuda, tensorrt or tensorrt-rtx. auto selects the best available
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Fail if nodes of a graph fall back to the CPU, or from TensorRT to CUDA [default: allowed; -v names them]
    #[arg(long)]
    strict_device: bool,
    /// Volume of a 4-D scan, from 0; with --list, of rows that name none in a column volume
    #[arg(long, value_name = "N")]
    volume: Option<usize>,
    /// Directions that the scan's axes run towards, such as LAS (left, anterior, superior), where its file holds none:
    /// required for Analyze 7.5. A file that holds another orientation is refused
    #[arg(long, value_name = "LETTERS")]
    orientation: Option<AxisCodes>,
    /// Refuse a scan or report with a quality warning (docs/quality.md), with the warning's code as the error's
    #[arg(long)]
    strict_quality: bool,
    /// Write the results to a file: JSON lines, or CSV with --list and a name ending in .csv
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Save the tensor of every stage, under the names that ba-export --verify reads (one scan)
    #[arg(long, value_name = "FILE.safetensors", conflicts_with = "list")]
    save_tensors: Option<PathBuf>,
    /// Save the scan on the model's grid, with its own intensities (one scan)
    #[arg(long, value_name = "FILE.nii.gz", conflicts_with = "list")]
    save_conformed: Option<PathBuf>,
    /// Save an image of the conformed scan's middle slices (one scan)
    #[arg(long, value_name = "FILE.png", conflicts_with = "list")]
    save_preview: Option<PathBuf>,
    /// Replace outputs that exist and were not made by this program; its own are always replaced
    #[arg(long)]
    force: bool,
    /// Cohort: table with columns scan and report (others are allowed), paths relative to it
    #[arg(long, value_name = "FILE.csv", conflicts_with = "report")]
    list: Option<PathBuf>,
    /// Memory limit, such as 4G or 1500M (powers of 1024): graphs that do not fit run in groups of blocks, with the
    /// same result [default: the available memory]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_memory: Option<u64>,
    /// Cache folder for features of scans and reports, checksums of the bundle and TensorRT engines: later runs reuse
    /// them. Features are derived from patient data: keep the folder as private as the scans
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Cache weights prepacked for this CPU too: full speed without a slow start, for about twice their size on disk
    #[arg(long, requires = "cache")]
    prepacked: bool,
    /// one-shot: weights stay in mapped files, graphs are released (fast start, less memory); resident: weights are
    /// repacked once and stay in memory (slow start, faster runs) [default: by the number of scans and reports]
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    mode: Option<Mode>,
    #[command(flatten)]
    common: Common,
}

/// `4G`, `1500M`, `65536`: bytes, with powers of 1024.
pub(super) fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let wrong = || format!("`{text}` is not a size: expected a number followed by K, M, G or T, such as 4G");
    let upper = text.trim().to_ascii_uppercase();
    let number = upper.trim_end_matches("IB").trim_end_matches('B');
    let (digits, power) = match number.char_indices().next_back() {
        Some((end, unit)) => match "KMGT".find(unit) {
            Some(i) => (&number[..end], i as u32 + 1),
            None => (number, 0),
        },
        None => return Err(wrong()),
    };
    let value: f64 = digits.trim().parse().map_err(|_| wrong())?;
    let bytes = value * 1024f64.powi(power as i32);
    if (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

fn parse_mode(text: &str) -> std::result::Result<Mode, String> {
    match text {
        "one-shot" => Ok(Mode::OneShot),
        "resident" => Ok(Mode::Resident),
        other => Err(format!("unknown mode `{other}`: expected one-shot or resident")),
    }
}

/// Runs `ba-infer` with the process's arguments.
pub fn main() -> ExitCode {
    let args: Args = match parse(conflicts) {
        Ok(args) => args,
        Err(code) => return code,
    };
    args.common.catch_bus_errors();
    let outcome = args.common.start_threads().and_then(|()| match &args.list {
        Some(path) => {
            let list = cohort::read_list(path)?;
            check_outputs(&args, &list.columns)?;
            list::run(&args, path, &list)
        }
        None => check_outputs(&args, &[]).and_then(|()| run_scans(&args)),
    });
    args.common.note_log();
    finish(outcome, args.common.json)
}

/// What clap cannot express.
fn conflicts(args: &Args) -> std::result::Result<(), String> {
    positional::check(&args.scans, args.report.as_deref())?;
    if args.scans.len() < 2 {
        return Ok(());
    }
    if args.save_tensors.is_some() || args.save_conformed.is_some() || args.save_preview.is_some() {
        return Err("--save-tensors, --save-conformed and --save-preview need a single scan".into());
    }
    if args.report.is_some() && !args.same_report {
        return Err("--report is one patient's, and there are several scans: name each scan's report in a list \
                    (--list), or add --same-report if it belongs to all of them"
            .into());
    }
    Ok(())
}

/// Outputs are renamed into place: this must not overwrite an input, nor anything but files of ours. `columns` are the
/// list's other ones.
fn check_outputs(args: &Args, columns: &[String]) -> Result<()> {
    let inputs: Vec<&Path> = args.scans.iter().chain(&args.report).chain(&args.list).map(PathBuf::as_path).collect();
    let results = args.output.as_deref().map(|path| (path, Kind::Results));
    let lines = args.list.as_ref().and(args.output.as_deref()).and_then(lines_of_csv);
    let output = match &lines {
        Some(lines) => [args.output.as_deref().map(|path| (path, Kind::Table(columns))), Some((lines, Kind::Results))],
        None => [results, None],
    };
    let saved = [
        (&args.save_tensors, Kind::Tensors),
        (&args.save_conformed, Kind::Volume),
        (&args.save_preview, Kind::Preview),
    ];
    let saved = saved.into_iter().filter_map(|(path, kind)| Some((path.as_deref()?, kind)));
    let all: Vec<(&Path, Kind<'_>)> = output.into_iter().flatten().chain(saved).collect();
    outputs::check(&all, &inputs, args.force)
}

/// The file of JSON lines next to a CSV of results, from which the CSV is made; none for other results.
fn lines_of_csv(output: &Path) -> Option<PathBuf> {
    let csv = output.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
    csv.then(|| output.with_extension("jsonl"))
}

fn open(args: &Args, expected: Expected, report: Option<&str>) -> Result<Predictor> {
    let options = Options {
        device: args.device,
        strict_device: args.strict_device,
        placement: args.common.verbose || args.common.json,
        threads: args.common.threads(),
        library: args.common.ort_lib.clone(),
        volume: args.volume,
        orientation: args.orientation,
        strict_quality: args.strict_quality,
        expected,
        mode: args.mode,
        max_memory: args.max_memory,
        cache: args.cache.clone(),
        prepacked: args.prepacked,
        voxels: args.save_conformed.is_some() || args.save_preview.is_some(),
        keep_tensors: args.save_tensors.is_some(),
        progress: args.common.shared_notes(),
        ..Options::default()
    };
    let predictor = Predictor::open_for(&args.bundle, options, report)?;
    args.common.note(predictor.chosen().describe(args.common.verbose));
    args.common.warn(&library_warnings());
    Ok(predictor)
}

fn run_scans(args: &Args) -> Result<()> {
    // Cheap checks first: an unreadable report or scan should fail before the language model runs.
    let report = args.report.as_deref().map(|path| read_report_argument(path, args.report_format)).transpose()?;
    let several = args.scans.len() > 1;
    let expected = Expected { scans: args.scans.len(), reports: usize::from(report.is_some()) };
    let predictor = open(args, expected, report.as_deref())?;
    if report.is_none() {
        predictor.require_image_head()?;
    }
    if several && report.is_some() {
        args.common.note([format!("the same report is used for all {} scans", args.scans.len())]);
    }
    let mut encoded: Option<EncodedReport> = None;
    let json = args.common.json || args.output.is_some();
    let (mut lines, mut failed) = (String::new(), 0);
    let (reader, in_background) = (predictor.reader(), predictor.reads_in_background());
    if let [one] = args.scans.as_slice() {
        reader.check(one)?;
    }
    if args.scans.first().is_some_and(|first| !reader.is_cached(first)) {
        predictor.preload()?;
    }
    let mut paths = args.scans.iter();
    let scans = args.scans.iter().map(|path| (path.as_path(), None));
    read_ahead(&reader, scans, in_background, &mut |reading| {
        let path = paths.next().map_or(Path::new(""), PathBuf::as_path);
        let outcome = scan(args, &predictor, reading, report.as_deref(), &mut encoded);
        let line = match outcome {
            Ok(prediction) if json => to_json(&prediction)?,
            Ok(prediction) => {
                let tokens = encoded.as_ref().map(|r| r.tokens);
                return print(&render::prediction(&prediction, tokens, args.common.verbose));
            }
            Err(e) if !several || is_fatal(&e) => return Err(e),
            Err(e) => {
                failed += 1;
                report_error(&e);
                if !json {
                    return Ok(());
                }
                serde_json::json!({"scan": path.display().to_string(), "error": error_json(&e)}).to_string()
            }
        };
        if args.output.is_none() {
            return print_json_line(&line);
        }
        lines.extend([line.as_str(), "\n"]);
        Ok(())
    })?;
    note_placement(args, &predictor);
    if let Some(path) = &args.output {
        replace(path, lines.as_bytes())?;
    }
    if failed > 0 {
        let message = format!("{failed} of {} scans failed; the others have their results", args.scans.len());
        return Err(Error::new(Code::LIST_PARTIAL, message));
    }
    Ok(())
}

/// Whether an error is the bundle's or the machine's and not a scan's: the other scans would fail too.
fn is_fatal(e: &Error) -> bool {
    let codes = [Code::BUNDLE_CHECKSUM, Code::BUNDLE_CHANGED, Code::BUNDLE_REPLACED, Code::THREADS_UNAVAILABLE];
    codes.contains(&e.code())
}

/// One scan: read, save what was asked for, predict. The report is encoded once, while the first scan is read.
fn scan(
    args: &Args,
    predictor: &Predictor,
    reading: PendingScan<'_>,
    report: Option<&str>,
    encoded: &mut Option<EncodedReport>,
) -> Result<Prediction> {
    let read = || {
        let scan = reading.finish()?;
        if let (Some(path), Some(conformed)) = (&args.save_conformed, scan.conformed()) {
            conformed.save(path)?;
        }
        if let (Some(path), Some(conformed)) = (&args.save_preview, scan.conformed()) {
            conformed.save_preview(path)?;
        }
        Ok(scan)
    };
    let mut prediction = match report {
        Some(report) => predictor.predict_with_report(report, encoded, read)?,
        None => predictor.predict(read()?, None)?,
    };
    prediction.report.clone_from(&args.report);
    if let Some(path) = &args.save_tensors {
        let tensors = prediction.tensors.drain(..).map(|(name, tensor)| (name, lazy(&tensor)));
        write_safetensors(path, tensors, &maker_metadata())?;
    }
    args.common.warn(&prediction.warnings);
    prediction.warnings.extend(library_warnings());
    Ok(prediction)
}

fn lazy(tensor: &Tensor) -> LazyTensor {
    match tensor {
        Tensor::F32(a) => LazyTensor::from_f32(a.shape(), &a.iter().copied().collect::<Vec<_>>()),
        Tensor::I64(a) => LazyTensor::from_i64(a.shape(), &a.iter().copied().collect::<Vec<_>>()),
    }
}

/// Which provider computed which nodes, on stderr.
fn note_placement(args: &Args, predictor: &Predictor) {
    let verbose = args.common.verbose;
    args.common.note(predictor.placements().filter_map(|(part, placement)| placement.describe(part.as_str(), verbose)));
}
