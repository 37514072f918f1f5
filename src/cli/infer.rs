//! `ba-infer`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgGroup, Parser};

use super::{Common, complain, finish, print, render, tell, telling};
use crate::checkpoint::write_safetensors;
use crate::cohort;
use crate::cohort::Row;
use crate::error::{Code, Error, Result};
use crate::files::replace;
use crate::infer::results::{self, Results, error_json};
use crate::infer::{EncodedReport, Expected, Mode, Options, PendingScan, Prediction, Predictor, read_ahead};
use crate::runtime::{Device, take_log};
use crate::tensor::{LazyTensor, Tensor};
use crate::text::read_report;
use crate::volume;

const EXAMPLES: &str = "\
Examples:
  ba-infer scan.nii.gz --report report.txt          label, probabilities, similarity
  ba-infer scan.nii.gz                              by the image alone, where the bundle can
  ba-infer sub-*_T1w.nii.gz --json                  several scans, one JSON object a line
  ba-infer --list cohort.csv -o results.csv         a cohort; call it again to go on where it stopped
  ba-infer scan.nii.gz --save-preview check.png     see what the model sees

Research use only. Not a medical device; not for diagnosis or treatment.";

/// Reads a brain MRI, and the clinical report where there is one, as CN, MCI or AD.
#[derive(Parser, Debug)]
#[command(name = "ba-infer", version, after_help = EXAMPLES)]
#[command(group = ArgGroup::new("input").required(true).args(["scans", "list"]))]
struct Args {
    /// Scans: NIfTI-1 or NIfTI-2, .nii, .nii.gz or .hdr with its .img
    #[arg(value_name = "SCAN")]
    scans: Vec<PathBuf>,
    /// The clinical report's text (UTF-8); - reads standard input. It is used for every scan named
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Bundle made by ba-export
    #[arg(long, default_value = "onnx", value_name = "DIR")]
    bundle: PathBuf,
    /// Where to compute: auto, cpu, cuda, tensorrt or tensorrt-rtx. auto takes the best that can be used
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Fail when the device leaves parts of a graph to the processor, or TensorRT to CUDA [default: they run there; -v names them]
    #[arg(long)]
    strict_device: bool,
    /// Volume of a 4-D scan, from 0
    #[arg(long, value_name = "N")]
    volume: Option<usize>,
    /// Write the results to a file: JSON lines, or CSV with --list and a name that ends in .csv
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Save every stage's tensor under the names that ba-export --verify reads (one scan)
    #[arg(long, value_name = "FILE.safetensors", conflicts_with = "list")]
    save_tensors: Option<PathBuf>,
    /// Save the scan on the model's grid, before intensities are scaled (one scan)
    #[arg(long, value_name = "FILE.nii.gz", conflicts_with = "list")]
    save_conformed: Option<PathBuf>,
    /// Save a picture of the conformed scan's middle slices (one scan)
    #[arg(long, value_name = "FILE.png", conflicts_with = "list")]
    save_preview: Option<PathBuf>,
    /// Cohort: CSV with columns scan and report (others are allowed), paths relative to it
    #[arg(long, value_name = "FILE.csv", conflicts_with_all = ["report", "volume"])]
    list: Option<PathBuf>,
    /// Most memory to use, such as 4G or 1500M (powers of 1024): graphs that do not fit are run in groups of blocks, with the
    /// same result [default: what the machine has left]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_memory: Option<u64>,
    /// Keep features of scans and reports here, and which large files of the bundle were verified: what was computed once
    /// is not computed again, nor are TensorRT's engines made again. Derived from patients' data: keep it as private as the scans
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Keep weights laid out for this machine in the cache too: full speed without a slow start, for about twice their size
    /// on disk
    #[arg(long, requires = "cache")]
    prepacked: bool,
    /// one-shot: weights stay in mapped files, graphs are released (starts at once, less memory); resident: weights are
    /// laid out anew, graphs stay loaded (slow start, faster runs) [default: by the number of scans and reports]
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    mode: Option<Mode>,
    #[command(flatten)]
    common: Common,
}

/// `4G`, `1500M`, `65536`: bytes, with powers of 1024.
pub(super) fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let wrong = || format!("`{text}` is no size: expected a number with K, M, G or T behind it, such as 4G");
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
        other => Err(format!("`{other}` is no mode: expected one-shot or resident")),
    }
}

/// Runs `ba-infer` with the process's arguments.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let saving = args.save_tensors.is_some() || args.save_conformed.is_some() || args.save_preview.is_some();
    if saving && args.scans.len() > 1 {
        let message = "--save-tensors, --save-conformed and --save-preview take one scan";
        clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, format!("{message}\n")).exit();
    }
    let ready = args.common.limit_threads().and_then(|()| check_outputs(&args));
    let outcome = ready.and_then(|()| match &args.list {
        Some(list) => run_list(&args, list),
        None => run_scans(&args),
    });
    if args.common.verbose {
        tell(&args.common, take_log());
    }
    finish(outcome, args.common.json)
}

/// Outputs are renamed into place: that must not hit an input, nor anything that is no file (`/dev/stdout`, a folder).
fn check_outputs(args: &Args) -> Result<()> {
    let inputs = args.scans.iter().chain(&args.report).chain(&args.list);
    let inputs: Vec<PathBuf> = inputs.filter_map(|path| path.canonicalize().ok()).collect();
    let csv_lines = args.list.as_ref().and(args.output.as_deref()).and_then(lines_beside);
    let outputs = [&args.output, &args.save_tensors, &args.save_conformed, &args.save_preview].into_iter().flatten();
    for output in outputs.chain(&csv_lines) {
        if output.canonicalize().is_ok_and(|path| inputs.contains(&path)) {
            return Err(Error::new(Code::OUTPUT_EXISTS, "the output is an input: choose another name").at(output));
        }
        if std::fs::metadata(output).is_ok_and(|meta| !meta.is_file()) {
            let message = "the output is there and is not a file: choose another name";
            return Err(Error::new(Code::OUTPUT_EXISTS, message).at(output));
        }
        // Found out after a minute of work, this would cost the minute.
        let folder = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            return Err(Error::new(Code::IO, "the output's folder does not exist: make it first").at(output));
        }
    }
    Ok(())
}

/// The lines from which a CSV of results is made, in_background it; none for other results.
fn lines_beside(output: &Path) -> Option<PathBuf> {
    let csv = output.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
    csv.then(|| output.with_extension("jsonl"))
}

fn open(args: &Args, expected: Expected) -> Result<Predictor> {
    let options = Options {
        device: args.device,
        strict_device: args.strict_device,
        placement: args.common.verbose || args.common.json,
        threads: args.common.threads(),
        library: args.common.ort_lib.clone(),
        volume: args.volume,
        expected,
        mode: args.mode,
        max_memory: args.max_memory,
        cache: args.cache.clone(),
        prepacked: args.prepacked,
        voxels: args.save_conformed.is_some() || args.save_preview.is_some(),
        keep_tensors: args.save_tensors.is_some(),
        progress: telling(&args.common),
        ..Options::default()
    };
    let predictor = Predictor::open(&args.bundle, options)?;
    tell(&args.common, predictor.chosen().told(args.common.verbose));
    Ok(predictor)
}

fn run_scans(args: &Args) -> Result<()> {
    // Cheap checks first: a report that cannot be read should not cost the language model's time, nor a scan.
    let report = args.report.as_deref().map(read_report).transpose()?;
    let several = args.scans.len() > 1;
    let expected = Expected { scans: args.scans.len(), reports: usize::from(report.is_some()) };
    let predictor = open(args, expected)?;
    if report.is_none() {
        predictor.require_image_head()?;
    }
    if let [one] = args.scans.as_slice() {
        volume::files(one)?;
    }
    if several && report.is_some() {
        tell(&args.common, [format!("the one report is used for all {} scans", args.scans.len())]);
    }
    let mut encoded: Option<EncodedReport> = None;
    let (mut lines, mut failed) = (String::new(), 0);
    let (reader, in_background) = (predictor.reader(), predictor.reads_in_background());
    if args.scans.first().is_some_and(|first| !reader.is_cached(first)) {
        predictor.preload()?;
    }
    let mut paths = args.scans.iter();
    read_ahead(&reader, args.scans.iter().map(PathBuf::as_path), in_background, &mut |reading| {
        let path = paths.next().map_or(Path::new(""), PathBuf::as_path);
        let outcome = scan(args, &predictor, reading, report.as_deref(), &mut encoded);
        let text = match outcome {
            Ok(prediction) if args.common.json || args.output.is_some() => format!("{}\n", to_json(&prediction)?),
            Ok(prediction) => render::prediction(&prediction, encoded.as_ref().map(|r| r.tokens)),
            Err(e) if !several || unusable(&e) => return Err(e),
            Err(e) => {
                failed += 1;
                complain(&e);
                let line = serde_json::json!({"scan": path.display().to_string(), "error": error_json(&e)});
                if args.common.json || args.output.is_some() { format!("{line}\n") } else { return Ok(()) }
            }
        };
        match &args.output {
            Some(_) => lines.push_str(&text),
            None => print(&text)?,
        }
        Ok(())
    })?;
    tell_placement(args, &predictor);
    if let Some(path) = &args.output {
        replace(path, lines.as_bytes())?;
    }
    if failed > 0 {
        let message = format!("{failed} of {} scans could not be read", args.scans.len());
        return Err(Error::new(Code::LIST_PARTIAL, message));
    }
    Ok(())
}

/// Whether an error is the bundle's and not a scan's: then there is no going on.
fn unusable(e: &Error) -> bool {
    e.code() == Code::BUNDLE_CHECKSUM
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
        write_safetensors(path, tensors, &BTreeMap::new())?;
    }
    tell(&args.common, prediction.warnings.iter().map(|w| format!("warning[{}]: {}", w.code, w.message)));
    Ok(prediction)
}

fn lazy(tensor: &Tensor) -> LazyTensor {
    match tensor {
        Tensor::F32(a) => LazyTensor::from_f32(a.shape(), &a.iter().copied().collect::<Vec<_>>()),
        Tensor::I64(a) => LazyTensor::from_i64(a.shape(), &a.iter().copied().collect::<Vec<_>>()),
    }
}

/// Where nodes were computed, on stderr.
fn tell_placement(args: &Args, predictor: &Predictor) {
    let verbose = args.common.verbose;
    tell(&args.common, predictor.placements().filter_map(|(part, placement)| placement.told(part.as_str(), verbose)));
}

fn to_json(prediction: &Prediction) -> Result<String> {
    serde_json::to_string(prediction).map_err(|e| Error::new(Code::IO, format!("cannot write JSON: {e}")))
}

fn run_list(args: &Args, list: &Path) -> Result<()> {
    let rows = cohort::read_list(list)?;
    let csv = args.output.as_deref().filter(|path| lines_beside(path).is_some());
    // A CSV is made at the end from the lines in_background it, which are what an interrupted run leaves.
    let lines = args.output.as_ref().map(|path| lines_beside(path).unwrap_or_else(|| path.clone()));
    let reports: BTreeSet<PathBuf> = rows.iter().filter_map(Row::report_path).collect();
    let predictor = open(args, Expected { scans: rows.len(), reports: reports.len() })?;
    let mut results = lines.as_deref().map(|path| Results::open(path, &predictor.bundle().sha256)).transpose()?;
    let left: Vec<&Row> = rows.iter().filter(|row| !results.as_ref().is_some_and(|r| r.has(row))).collect();
    let (reader, in_background) = (predictor.reader(), predictor.reads_in_background());
    let paths: Vec<PathBuf> = left.iter().map(|row| row.scan_path()).collect();
    if paths.first().is_some_and(|first| !reader.is_cached(first)) {
        predictor.preload()?;
    }
    let (mut failed, mut next) = (0, left.iter());
    read_ahead(&reader, paths.iter().map(PathBuf::as_path), in_background, &mut |reading| {
        let Some(row) = next.next() else { return Ok(()) };
        let outcome = list_row(&predictor, row, reading);
        if let Err(e) = &outcome {
            failed += 1;
            tell(&args.common, [format!("line {}: error[{}]: {e}", row.line, e.code())]);
        }
        match (&mut results, args.common.json, &outcome) {
            (Some(results), _, _) => {
                results.add(row, &outcome)?;
                let done = rows.len() - next.len();
                tell(&args.common, [format!("{done} of {}: {}", rows.len(), row.scan)]);
            }
            (None, true, _) => print(&format!("{}\n", results::line(row, &outcome)))?,
            (None, false, Ok(prediction)) => print(&format!("{}\n", short_line(row, prediction)))?,
            (None, false, Err(_)) => {}
        }
        outcome.err().filter(unusable).map_or(Ok(()), Err)
    })?;
    tell_placement(args, &predictor);
    let skipped = rows.len() - left.len();
    if skipped > 0 {
        tell(&args.common, [format!("{skipped} rows had their result already")]);
    }
    if let (Some(csv), Some(lines)) = (csv, &lines) {
        let labels = &predictor.bundle().manifest.labels;
        replace(csv, &results::to_csv(lines, &rows, labels)?)?;
    }
    if failed > 0 {
        let message = format!("{failed} of {} rows failed; the others have their results", rows.len());
        return Err(Error::new(Code::LIST_PARTIAL, message).at(list));
    }
    Ok(())
}

/// One row: its report is read and encoded while its scan is read.
fn list_row(predictor: &Predictor, row: &Row, reading: PendingScan<'_>) -> Result<Prediction> {
    match row.report_path() {
        Some(path) => predictor.predict_with_report(&read_report(&path)?, &mut None, || reading.finish()),
        None => {
            predictor.require_image_head()?;
            predictor.predict(reading.finish()?, None)
        }
    }
}

fn short_line(row: &Row, prediction: &Prediction) -> String {
    let all: Vec<String> = prediction.probabilities.iter().map(|(l, p)| format!("{l} {p:.3}")).collect();
    format!("{}\t{}\t{}", row.scan, prediction.label, all.join(" "))
}
