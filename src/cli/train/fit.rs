//! `ba-train fit`: fine-tuning on a cohort.

use std::fmt::Write;
use std::path::PathBuf;

use clap::ValueEnum;

use crate::bundle::INTENDED_USE;
use crate::cli::Common;
use crate::cli::progress::Bar;
use crate::cli::text::{count, provider, quoted, shown, table};
use crate::cohort::explain;
use crate::config::AdamW;
use crate::error::Result;
use crate::model::Mode;
use crate::train::Activations;
use crate::train::fit::{self, Balance, Plan, Schedule, Summary};

/// Flags of `ba-train fit`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Cohort: table with columns scan, report, label and optionally split, subject and volume; paths relative to it
    #[arg(long, value_name = "FILE.csv")]
    data: PathBuf,
    /// Training artifacts made by ba-train prepare
    #[arg(long, default_value = "training", value_name = "DIR")]
    artifacts: PathBuf,
    /// Bundle whose language model encodes the reports; the result is meant for this bundle
    #[arg(long, default_value = "onnx", value_name = "DIR")]
    bundle: PathBuf,
    /// Folder for checkpoints, history and pictures [default: run inside the artifacts]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Maximum number of epochs
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    epochs: u32,
    /// Batch size, of batch norm and of the contrastive loss
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// Number of batches whose gradients are averaged for one step
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    accumulate: u32,
    /// Maximum learning rate; small models with random frozen weights need 1e-3 or more
    #[arg(long, default_value_t = 1e-4, value_name = "X")]
    lr: f64,
    /// Learning rate schedule after the warm-up
    #[arg(long, default_value = "cosine", value_name = "SHAPE")]
    schedule: Shape,
    /// Share of all steps in which the learning rate warms up
    #[arg(long, default_value_t = 0.05, value_name = "SHARE")]
    warmup: f64,
    /// Weight decay (weights only: no biases, norms or logit_scale)
    #[arg(long, default_value_t = 0.01, value_name = "X")]
    weight_decay: f64,
    /// Maximum global gradient norm [default: no clipping]
    #[arg(long, value_name = "X")]
    clip: Option<f64>,
    /// Seed of the order of cases, and of the split if the list has none
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Stop after N epochs without a better macro-F1 on the validation cases [default: never]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    patience: Option<u32>,
    /// Train only projections and classifier, on features that are computed once: epochs take seconds
    #[arg(long)]
    frozen_adapter: bool,
    /// Class balancing
    #[arg(long, default_value = "none", value_name = "HOW")]
    balance: BalanceName,
    /// Activations kept for the backward pass
    #[arg(long, default_value = "recompute", value_name = "WHICH")]
    activations: ActivationsName,
    /// Continue an interrupted training
    #[arg(long)]
    resume: bool,
    /// Replace files of the output's names that ba-train fit did not write
    #[arg(long)]
    force: bool,
    /// Maximum seconds between two checkpoints within an epoch
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    save_every: f64,
    /// Epochs after which the embedding of the validation cases is drawn (t-SNE), such as 1,5,20
    #[arg(long, value_name = "EPOCHS", value_delimiter = ',')]
    embed: Vec<u32>,
    /// Cache folder for features of reports and scans [default: cache inside the output]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Stop at a scan or report with a quality warning, with the warning's code as the error's [default: they are
    /// counted]
    #[arg(long)]
    strict_quality: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shape {
    /// Cosine decay to 0
    Cosine,
    /// No decay
    Constant,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BalanceName {
    /// No balancing
    None,
    /// Class weights in the loss
    Weights,
    /// Oversampling of smaller classes
    Sampling,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ActivationsName {
    /// None: stages are recomputed (less memory)
    Recompute,
    /// Those that are expensive to recompute (less time)
    Save,
}

/// Runs the subcommand.
pub(super) fn run(args: &Args, common: &Common) -> Result<()> {
    let plan = plan(args, common);
    let mut bar = Bar::new(common);
    let outcome = fit::run(&plan, &mut bar);
    let warnings = bar.finish();
    common.note_log();
    let summary = outcome.map_err(explain)?;
    common.print_result(&summary, &warnings, || render(&summary, args))
}

fn plan(args: &Args, common: &Common) -> Plan {
    Plan {
        data: args.data.clone(),
        artifacts: args.artifacts.clone(),
        strict_quality: args.strict_quality,
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
        force: args.force,
        save_every: args.save_every,
        embed: args.embed.clone(),
        cache: args.cache.clone(),
        threads: common.threads(),
        library: common.ort_lib.clone(),
    }
}

fn render(summary: &Summary, args: &Args) -> String {
    let mut rows = vec![["epoch", "loss", "validation", "accuracy", "macro-F1", ""].map(str::to_owned).to_vec()];
    rows.extend(summary.history.iter().map(|r| {
        let best = if r.epoch == summary.best_epoch { "best" } else { "" };
        let numbers = [r.train_loss, r.validation_loss].map(|x| format!("{x:.4}"));
        let shares = [r.accuracy, r.macro_f1].map(|x| format!("{x:.3}"));
        [vec![r.epoch.to_string()], numbers.to_vec(), shares.to_vec(), vec![best.to_owned()]].concat()
    }));
    let mut text = table(&rows);
    let [train, validation] = summary.cases;
    let early = if summary.stopped_early { ", stopped early" } else { "" };
    let _ = writeln!(
        text,
        "\nmode {}: {} for training, {} for validation, {} steps on {}{early}",
        summary.mode.name(),
        count(train, "case"),
        count(validation, "case"),
        summary.steps,
        provider(summary.device)
    );
    let _ = writeln!(
        text,
        "best: epoch {}, macro-F1 {:.3} on the validation cases",
        summary.best_epoch, summary.best_macro_f1
    );
    let folder = shown(&summary.output);
    let _ = writeln!(text, "checkpoints: {folder}/best, {folder}/last; for PyTorch: {folder}/adapter.safetensors");
    if summary.mode == Mode::Mri {
        let hint =
            "the trained classifier is for scans without a report; if the list has reports: ba-train eval --image-only";
        let _ = writeln!(text, "{hint}");
    }
    let (best, bundle) = (quoted(&summary.output.join("best")), quoted(&args.bundle));
    let _ = writeln!(text, "\n{INTENDED_USE}\n\nnext: ba-train apply --checkpoint {best} --bundle {bundle}");
    text
}
