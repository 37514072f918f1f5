//! `ba-train eval`: metrics of a bundle on a cohort.

use std::path::{Path, PathBuf};

use super::report;
use crate::cli::outputs::{self, Kind};
use crate::cli::progress::Bar;
use crate::cli::text::count;
use crate::cli::{Common, infer};
use crate::error::{Code, Error, Result};
use crate::files::replace;
use crate::infer::Options;
use crate::infer::results::error_json;
use crate::plot;
use crate::runtime::Device;
use crate::train::eval::{self, EvalSplit, Evaluation, Plan};

/// The pictures' names.
const RELIABILITY: &str = "reliability.svg";
const CONFUSION: &str = "confusion.svg";
const EMBEDDING: &str = "embedding.svg";

/// Flags of `ba-train eval`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Cohort: table with columns scan and label, and optionally report, split, subject and volume; paths relative
    /// to it
    #[arg(long, value_name = "FILE.csv")]
    data: PathBuf,
    /// Bundle to evaluate
    #[arg(long, default_value = "onnx", value_name = "DIR")]
    bundle: PathBuf,
    /// Rows to evaluate: train, validation, test or all [default: test if the list has it, else all]
    #[arg(long, value_name = "SPLIT", value_parser = parse_split)]
    split: Option<EvalSplit>,
    /// Fit a temperature on the validation rows and write it into the bundle: probabilities change, labels do not
    #[arg(long)]
    fit_temperature: bool,
    /// Ignore reports: the image-only classifier, which prepare --mode mri trains, answers every row
    #[arg(long)]
    image_only: bool,
    /// Number of bootstrap draws for the 95 % intervals; 0: no intervals
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    bootstrap: u32,
    /// Seed of the bootstrap and of the embedding
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Write reliability.svg and confusion.svg into a folder
    #[arg(long, value_name = "DIR")]
    picture: Option<PathBuf>,
    /// Write embedding.svg too: a t-SNE map of the classifier's inputs
    #[arg(long, requires = "picture")]
    embedding: bool,
    /// Replace pictures that exist and were not made by this program; its own are always replaced
    #[arg(long, requires = "picture")]
    force: bool,
    /// Refuse rows whose scan or report has a quality warning: they count as failed
    #[arg(long)]
    strict_quality: bool,
    /// Device: auto, cpu, cuda, tensorrt or tensorrt-rtx
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Memory limit, such as 4G or 1500M [default: the available memory]
    #[arg(long, value_name = "SIZE", value_parser = infer::parse_size)]
    max_memory: Option<u64>,
    /// Cache folder for features of scans and reports, which later runs reuse. Features are derived from patient data:
    /// keep the folder as private as the scans
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

/// What `--json` prints, with the warnings of the run.
#[derive(serde::Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    evaluation: &'a Evaluation,
    /// The error `list.partial`, if rows failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<serde_json::Value>,
}

fn parse_split(text: &str) -> std::result::Result<EvalSplit, String> {
    EvalSplit::from_name(text).ok_or_else(|| format!("unknown split `{text}`: expected train, validation, test or all"))
}

/// Runs the subcommand. With `--json` there is one document, also when rows failed.
pub(super) fn run(args: &Args, common: &Common) -> Result<()> {
    if let Some(folder) = &args.picture {
        // Created now, not after an hour of work.
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "cannot create the folder", e))?;
        let names = [RELIABILITY, CONFUSION].into_iter().chain(args.embedding.then_some(EMBEDDING));
        let files: Vec<PathBuf> = names.map(|name| folder.join(name)).collect();
        let files: Vec<(&Path, Kind<'_>)> = files.iter().map(|path| (path.as_path(), Kind::Plot)).collect();
        outputs::check(&files, &[&args.data], args.force)?;
    }
    let plan = Plan {
        split: args.split,
        fit_temperature: args.fit_temperature,
        image_only: args.image_only,
        draws: args.bootstrap,
        seed: args.seed,
        embedding: args.embedding,
        options: Options {
            device: args.device,
            threads: common.threads(),
            library: common.ort_lib.clone(),
            max_memory: args.max_memory,
            strict_quality: args.strict_quality,
            cache: args.cache.clone(),
            progress: common.shared_notes(),
            ..Options::default()
        },
        ..Plan::new(&args.data, &args.bundle)
    };
    let mut bar = Bar::new(common);
    let outcome = eval::run(&plan, &mut bar);
    let warnings = bar.finish();
    common.note_log();
    let evaluation = outcome?;
    let written = args.picture.as_deref().map(|folder| pictures(folder, &evaluation)).transpose()?.unwrap_or_default();
    let partial = partial(&evaluation).map(|e| e.at(&args.data));
    let document = Document { evaluation: &evaluation, error: partial.as_ref().map(error_json) };
    common.print_result(&document, &warnings, || report::evaluation(&evaluation, &args.bundle, &written))?;
    partial.map_or(Ok(()), Err)
}

fn partial(evaluation: &Evaluation) -> Option<Error> {
    let failed = evaluation.failures.len();
    let message = format!("{} failed; the metrics are those of the others", count(failed, "row"));
    (failed > 0).then(|| Error::new(Code::LIST_PARTIAL, message))
}

/// Writes the pictures; returns their files.
fn pictures(folder: &Path, evaluation: &Evaluation) -> Result<Vec<PathBuf>> {
    let split = &evaluation.split;
    let of = format!("{} rows, split {}", split.answered, split.name);
    let (labels, before) = (&evaluation.labels, evaluation.uncalibrated.as_ref());
    let reliability = plot::reliability(&evaluation.scores.reliability, before, &format!("Reliability ({of})"));
    let confusion = plot::confusion(&evaluation.confusion, labels, &format!("Confusion ({of})"));
    let mut files = vec![(RELIABILITY, reliability), (CONFUSION, confusion)];
    if let Some(embedding) = &evaluation.embedding {
        let title = format!("Fused embedding ({} rows, split {})", embedding.classes.len(), split.name);
        let svg = plot::embedding(&embedding.layout.points, &embedding.classes, labels, &title);
        files.push((EMBEDDING, svg));
    }
    let write = |(name, svg): (&str, String)| {
        let path = folder.join(name);
        replace(&path, plot::marked(&svg).as_bytes()).map(|()| path)
    };
    files.into_iter().map(write).collect()
}
