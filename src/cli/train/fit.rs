//! `ba-train fit`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::ValueEnum;

use crate::cli::progress::Bar;
use crate::cli::render::table;
use crate::cli::{Common, RESEARCH_USE, print, print_json, tell};
use crate::config::AdamW;
use crate::error::Result;
use crate::model::Mode;
use crate::train::Activations;
use crate::train::fit::{self, Balance, Plan, Schedule, Summary};

/// Flags of `ba-train fit`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Labelled list: CSV with scan, report, label and perhaps split
    #[arg(long, value_name = "FILE.csv")]
    data: PathBuf,
    /// Folder that ba-train prepare wrote
    #[arg(long, default_value = "training", value_name = "DIR")]
    artifacts: PathBuf,
    /// Bundle whose language model encodes the reports (the one that the result is meant for)
    #[arg(long, default_value = "onnx", value_name = "DIR")]
    bundle: PathBuf,
    /// Where checkpoints, history and pictures go [default: run inside the artifacts]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Most epochs
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    epochs: u32,
    /// Cases at once: what batch norm and the contrastive loss see together
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// Batches whose gradients are averaged for one step
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    accumulate: u32,
    /// Largest learning rate; small models with random frozen weights want 1e-3 or more
    #[arg(long, default_value_t = 1e-4, value_name = "X")]
    lr: f64,
    /// How the learning rate goes after its warm-up
    #[arg(long, default_value = "cosine", value_name = "SHAPE")]
    schedule: Shape,
    /// Share of all steps over which the learning rate rises
    #[arg(long, default_value_t = 0.05, value_name = "SHARE")]
    warmup: f64,
    /// Weight decay (weights only: no biases, norms or logit_scale)
    #[arg(long, default_value_t = 0.01, value_name = "X")]
    weight_decay: f64,
    /// Largest norm of all gradients together [default: not limited]
    #[arg(long, value_name = "X")]
    clip: Option<f64>,
    /// Decides the order of cases, and the split of a list that has none
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// End after so many epochs without a better macro-F1 on the validation cases [default: never]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    patience: Option<u32>,
    /// Train projections and classifier alone, on features that are computed once: epochs take seconds
    #[arg(long)]
    frozen_adapter: bool,
    /// What is done about classes of different size
    #[arg(long, default_value = "none", value_name = "HOW")]
    balance: BalanceName,
    /// What is kept for the way back: less memory, or less time
    #[arg(long, default_value = "recompute", value_name = "WHICH")]
    activations: ActivationsName,
    /// Go on with an interrupted training
    #[arg(long)]
    resume: bool,
    /// Most seconds between two writes of the last checkpoint within an epoch
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    save_every: f64,
    /// Epochs after which the validation cases' embedding is drawn (t-SNE), such as 1,5,20
    #[arg(long, value_name = "EPOCHS", value_delimiter = ',')]
    embed: Vec<u32>,
    /// Folder for features of reports and scans [default: cache inside the output]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shape {
    /// Falls to 0 along half a cosine
    Cosine,
    /// Stays
    Constant,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BalanceName {
    /// Nothing
    None,
    /// Weights of the classes in the loss
    Weights,
    /// Cases of smaller classes are seen several times an epoch
    Sampling,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ActivationsName {
    /// Stages are computed again on the way back
    Recompute,
    /// Dear results are kept
    Save,
}

/// Runs the subcommand.
pub(super) fn run(args: &Args, common: &Common) -> Result<()> {
    let plan = plan(args, common);
    let mut bar = Bar::new(common.quiet, common.verbose);
    let outcome = fit::run(&plan, &mut bar);
    drop(bar);
    if common.verbose {
        tell(common, crate::runtime::take_log());
    }
    let summary = outcome?;
    if common.json {
        return print_json(&summary);
    }
    print(&render(&summary))
}

fn plan(args: &Args, common: &Common) -> Plan {
    Plan {
        data: args.data.clone(),
        artifacts: args.artifacts.clone(),
        bundle: args.bundle.clone(),
        output: args.output.clone(),
        epochs: args.epochs,
        batch: args.batch as usize,
        accumulate: args.accumulate as usize,
        schedule: Schedule { rate: args.lr, warmup: args.warmup, cosine: matches!(args.schedule, Shape::Cosine) },
        adamw: AdamW { weight_decay: args.weight_decay, clip: args.clip, ..AdamW::default() },
        seed: args.seed,
        patience: args.patience,
        frozen_adapter: args.frozen_adapter,
        balance: match args.balance {
            BalanceName::None => Balance::None,
            BalanceName::Weights => Balance::Weights,
            BalanceName::Sampling => Balance::Sampling,
        },
        activations: match args.activations {
            ActivationsName::Recompute => Activations::Recompute,
            ActivationsName::Save => Activations::Save,
        },
        resume: args.resume,
        save_every: args.save_every,
        embed: args.embed.clone(),
        cache: args.cache.clone(),
        threads: common.threads(),
        library: common.ort_lib.clone(),
    }
}

fn render(summary: &Summary) -> String {
    let mut rows = vec![["epoch", "loss", "validation", "accuracy", "macro-F1", ""].map(str::to_owned).to_vec()];
    rows.extend(summary.history.iter().map(|r| {
        let best = if r.epoch == summary.best_epoch { "best" } else { "" };
        let numbers = [r.train_loss, r.validation_loss].map(|x| format!("{x:.4}"));
        let shares = [r.accuracy, r.macro_f1].map(|x| format!("{x:.3}"));
        [vec![r.epoch.to_string()], numbers.to_vec(), shares.to_vec(), vec![best.to_owned()]].concat()
    }));
    let mut text = table(&rows);
    let [train, validation] = summary.cases;
    let early = if summary.stopped_early { ", ended early" } else { "" };
    let _ = writeln!(
        text,
        "\nmode {}, {train} training and {validation} validation cases, {} steps on {}{early}",
        summary.mode.name(),
        summary.steps,
        summary.device
    );
    let _ = writeln!(
        text,
        "best: epoch {}, macro-F1 {:.3} on the validation cases",
        summary.best_epoch, summary.best_macro_f1
    );
    let folder = summary.output.display();
    let _ = writeln!(text, "checkpoints {folder}/best and {folder}/last, for PyTorch {folder}/adapter.safetensors");
    if summary.mode == Mode::Mri {
        let hint =
            "what was trained answers scans without a report; with reports in the list: ba-train eval --image-only";
        let _ = writeln!(text, "{hint}");
    }
    let _ = writeln!(text, "{RESEARCH_USE}");
    text
}
