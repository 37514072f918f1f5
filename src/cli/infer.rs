//! `ba-infer`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgGroup, Parser};

use super::{Common, complain, finish, print, render, tell};
use crate::checkpoint::write_safetensors;
use crate::error::{Code, Error, Result};
use crate::files::replace;
use crate::infer::cohort::{self, Results, Row, error_json};
use crate::infer::{EncodedReport, Options, Prediction, Predictor};
use crate::runtime::{Device, take_log};
use crate::tensor::{LazyTensor, Tensor};
use crate::text::read_report;

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
    /// Where to compute: auto, cpu, cuda or tensorrt
    #[arg(long, default_value = "auto")]
    device: Device,
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
    #[command(flatten)]
    common: Common,
}

/// Runs `ba-infer` with the process's arguments.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let saving = args.save_tensors.is_some() || args.save_conformed.is_some() || args.save_preview.is_some();
    if saving && args.scans.len() > 1 {
        let message = "--save-tensors, --save-conformed and --save-preview take one scan";
        clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, format!("{message}\n")).exit();
    }
    let outcome = check_outputs(&args).and_then(|()| match &args.list {
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

/// The lines from which a CSV of results is made, beside it; none for other results.
fn lines_beside(output: &Path) -> Option<PathBuf> {
    let csv = output.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
    csv.then(|| output.with_extension("jsonl"))
}

fn open(args: &Args, several: bool) -> Result<Predictor> {
    let options = Options {
        device: args.device,
        threads: args.common.threads(),
        library: args.common.ort_lib.clone(),
        volume: args.volume,
        keep_loaded: several,
        keep_tensors: args.save_tensors.is_some(),
    };
    let predictor = Predictor::open(&args.bundle, options)?;
    if args.device == Device::Auto && args.common.verbose {
        tell(&args.common, [format!("device: auto took {}", predictor.device())]);
    }
    Ok(predictor)
}

fn run_scans(args: &Args) -> Result<()> {
    // Cheap checks first: a report that cannot be read should not cost a minute of loading.
    let report = args.report.as_deref().map(read_report).transpose()?;
    let mut predictor = open(args, args.scans.len() > 1)?;
    if report.is_none() {
        predictor.needs_no_report()?;
    }
    let several = args.scans.len() > 1;
    if several && report.is_some() {
        tell(&args.common, [format!("the one report is used for all {} scans", args.scans.len())]);
    }
    let mut encoded: Option<EncodedReport> = None;
    let (mut lines, mut failed) = (String::new(), 0);
    for path in &args.scans {
        let outcome = scan(args, &mut predictor, path, report.as_deref(), &mut encoded);
        let text = match outcome {
            Ok(prediction) if args.common.json || args.output.is_some() => format!("{}\n", to_json(&prediction)?),
            Ok(prediction) => render::prediction(&prediction, encoded.as_ref().map(|r| r.tokens)),
            Err(e) if !several => return Err(e),
            Err(e) => {
                failed += 1;
                complain(&e);
                let line = serde_json::json!({"scan": path.display().to_string(), "error": error_json(&e)});
                if args.common.json || args.output.is_some() { format!("{line}\n") } else { continue }
            }
        };
        match &args.output {
            Some(_) => lines.push_str(&text),
            None => print(&text)?,
        }
    }
    if let Some(path) = &args.output {
        replace(path, lines.as_bytes())?;
    }
    if failed > 0 {
        let message = format!("{failed} of {} scans could not be read", args.scans.len());
        return Err(Error::new(Code::LIST_PARTIAL, message));
    }
    Ok(())
}

/// One scan: read, save what was asked for, predict. The report is encoded once, after the first scan was read.
fn scan(
    args: &Args,
    predictor: &mut Predictor,
    path: &Path,
    report: Option<&str>,
    encoded: &mut Option<EncodedReport>,
) -> Result<Prediction> {
    let scan = predictor.read_scan(path)?;
    if let Some(path) = &args.save_conformed {
        scan.conformed.save(path)?;
    }
    if let Some(path) = &args.save_preview {
        scan.conformed.save_preview(path)?;
    }
    if let (Some(report), None) = (report, &encoded) {
        *encoded = Some(predictor.encode_report(report)?);
    }
    let mut prediction = predictor.predict(scan, encoded.as_ref())?;
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

fn to_json(prediction: &Prediction) -> Result<String> {
    serde_json::to_string(prediction).map_err(|e| Error::new(Code::IO, format!("cannot write JSON: {e}")))
}

fn run_list(args: &Args, list: &Path) -> Result<()> {
    let rows = cohort::read_list(list)?;
    let mut predictor = open(args, true)?;
    let csv = args.output.as_deref().filter(|path| lines_beside(path).is_some());
    // A CSV is made at the end from the lines beside it, which are what an interrupted run leaves.
    let lines = args.output.as_ref().map(|path| lines_beside(path).unwrap_or_else(|| path.clone()));
    let mut results = lines.as_deref().map(|path| Results::open(path, &predictor.bundle().sha256)).transpose()?;
    let (mut failed, mut skipped) = (0, 0);
    for (i, row) in rows.iter().enumerate() {
        if results.as_ref().is_some_and(|r| r.has(row)) {
            skipped += 1;
            continue;
        }
        let outcome = list_row(&mut predictor, row);
        if let Err(e) = &outcome {
            failed += 1;
            tell(&args.common, [format!("line {}: error[{}]: {e}", row.line, e.code())]);
        }
        match (&mut results, args.common.json, &outcome) {
            (Some(results), _, _) => {
                results.add(row, &outcome)?;
                tell(&args.common, [format!("{} of {}: {}", i + 1, rows.len(), row.scan)]);
            }
            (None, true, _) => print(&format!("{}\n", cohort::line(row, &outcome)))?,
            (None, false, Ok(prediction)) => print(&format!("{}\n", short_line(row, prediction)))?,
            (None, false, Err(_)) => {}
        }
    }
    if skipped > 0 {
        tell(&args.common, [format!("{skipped} rows had their result already")]);
    }
    if let (Some(csv), Some(lines)) = (csv, &lines) {
        let labels = &predictor.bundle().manifest.labels;
        replace(csv, &cohort::to_csv(lines, &rows, labels)?)?;
    }
    if failed > 0 {
        let message = format!("{failed} of {} rows failed; the others have their results", rows.len());
        return Err(Error::new(Code::LIST_PARTIAL, message).at(list));
    }
    Ok(())
}

fn list_row(predictor: &mut Predictor, row: &Row) -> Result<Prediction> {
    let report = row.report_path().map(|path| read_report(&path)).transpose()?;
    if report.is_none() {
        predictor.needs_no_report()?;
    }
    let scan = predictor.read_scan(&row.scan_path())?;
    let encoded = report.map(|text| predictor.encode_report(&text)).transpose()?;
    predictor.predict(scan, encoded.as_ref())
}

fn short_line(row: &Row, prediction: &Prediction) -> String {
    let all: Vec<String> = prediction.probabilities.iter().map(|(l, p)| format!("{l} {p:.3}")).collect();
    format!("{}\t{}\t{}", row.scan, prediction.label, all.join(" "))
}
