//! The paper's ablation on any cohort: fixed projections (`fpm`), trained projections (`tlp`) and the image alone
//! (`mri`), trained with several seeds each and compared on the test split.
//!
//! ```text
//! cargo run --release --example ablation -- --cohort COHORT/cohort.csv --model examples/demo/checkpoint -o OUT
//! ```
//!
//! ```text
//! cohort × mode × seed ─ fit ─ the epoch that is best on validation ─ export (fp32) ─ eval on test ─ answers.json
//!                                                                     all predictions ─ statistics ─ table
//! ```
//!
//! Everything except mode, seed and cohort is the same in all trainings. The test split is read only after a training
//! and selects nothing. A training that is done is not repeated, and an interrupted one is resumed.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod statistics;
mod table;
mod trial;

use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use brain_adapter::export;
use brain_adapter::files::replace;
use brain_adapter::model::Mode;
use brain_adapter::train::prepare;
use clap::Parser;

use statistics::{Findings, Trials};
use trial::{Outcome, StderrProgress, Trial};

/// The modes that are compared, in the order of the table.
const MODES: [Mode; 3] = [Mode::Fpm, Mode::Tlp, Mode::Mri];

#[derive(Parser)]
#[command(about = "Trains the modes fpm, tlp and mri from several seeds and compares them on the test split")]
struct Args {
    /// Labelled list with train, validation and test split; several compare over all of them
    #[arg(long, required = true, num_args = 1.., value_name = "FILE.csv")]
    cohort: Vec<PathBuf>,
    /// Folder of config.json, the adapter, m3d/ and llama/
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Seeds of the order of cases
    #[arg(long, value_delimiter = ',', default_value = "1,2,3")]
    seeds: Vec<u64>,
    /// Epochs; the one with the best macro-F1 on the validation split is evaluated
    #[arg(long, default_value_t = 15)]
    epochs: u32,
    /// Maximum learning rate
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,
    /// Cases a step
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Epochs after which the embedding of the validation cases is drawn
    #[arg(long, value_delimiter = ',')]
    embed: Vec<u32>,
    /// Draws of the bootstrap
    #[arg(long, default_value_t = 2000)]
    draws: u32,
    /// Number of trainings that run at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    jobs: u8,
    /// Threads within an operator [default: one a core]
    #[arg(long)]
    threads: Option<usize>,
    /// Folder for trainings, bundles and features
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
    /// ONNX Runtime's shared library [default: $ORT_DYLIB_PATH, then searched for near the program]
    #[arg(long)]
    ort_lib: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(!args.seeds.is_empty(), "--seeds takes at least one seed");
    prepare_all(&args)?;
    let outcomes = run_all(&args)?;
    let trials = Trials::of(&outcomes, args.cohort.len(), args.seeds.len())?;
    let findings = Findings::of(&trials, args.draws);
    let json = serde_json::to_string_pretty(&table::document(&args, &outcomes, &findings))?;
    replace(&args.output.join("ablation.json"), json.as_bytes())?;
    match args.json {
        true => println!("{json}"),
        false => print!("{}", table::text(&args, &outcomes, &findings)),
    }
    Ok(())
}

/// Writes the training artifacts of each mode and the bundle that encodes reports, unless they exist.
fn prepare_all(args: &Args) -> Result<()> {
    let sources = export::Sources::in_folder(&args.model)?;
    for mode in MODES {
        let output = args.output.join("artifacts").join(mode.name());
        if !output.exists() {
            let plan = prepare::Plan {
                sources: sources.clone(),
                mode,
                statistics: brain_adapter::model::adapter::Statistics::Batch,
                adamw: Default::default(),
                output,
                force: false,
            };
            prepare::run(&plan, &mut StderrProgress::new(mode.name()))?;
        }
    }
    let bundle = args.output.join("bundle");
    if !bundle.exists() {
        let plan = export::Plan { library: args.ort_lib.clone(), ..export::Plan::new(sources, bundle) };
        export::run(&plan, &mut StderrProgress::new("bundle"))?;
    }
    Ok(())
}

/// Runs every training, in the order cohort, seed, mode: an interrupted ablation has results of all modes.
fn run_all(args: &Args) -> Result<Vec<Outcome>> {
    let mut trials = Vec::new();
    for cohort in 0..args.cohort.len() {
        for &seed in &args.seeds {
            trials.extend(MODES.map(|mode| Trial { cohort, seed, mode }));
        }
    }
    let queue = Mutex::new(trials.iter().enumerate());
    let next = || queue.lock().ok().and_then(|mut queue| queue.next());
    let work = || -> Result<Vec<(usize, Outcome)>> {
        let mut done = Vec::new();
        while let Some((place, trial)) = next() {
            done.push((place, trial.run(args).with_context(|| trial.name())?));
        }
        Ok(done)
    };
    let mut done = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.jobs).map(|_| scope.spawn(work)).collect();
        let joined = workers.into_iter().map(|w| w.join().map_err(|_| anyhow::anyhow!("a training panicked"))?);
        joined.collect::<Result<Vec<_>>>()
    })?
    .concat();
    done.sort_by_key(|(place, _)| *place);
    Ok(done.into_iter().map(|(_, outcome)| outcome).collect())
}
