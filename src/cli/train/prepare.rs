//! `ba-train prepare`: training artifacts of a checkpoint.

use std::fmt::Write;
use std::path::PathBuf;

use clap::ValueEnum;

use crate::checkpoint::Selection;
use crate::cli::Common;
use crate::cli::progress::Bar;
use crate::cli::text::{escaped, quoted, shown, size, table, thousands};
use crate::config::AdamW;
use crate::error::Result;
use crate::export::Sources;
use crate::model::Mode;
use crate::model::adapter::Statistics;
use crate::train::prepare::{self, Plan, Summary};

/// Flags of `ba-train prepare`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Model folder: config.json, the adapter and m3d/
    #[arg(long, env = "BA_MODEL", default_value = "checkpoints", value_name = "DIR")]
    model: PathBuf,
    /// What is trained
    #[arg(long, default_value = "tlp", value_name = "MODE")]
    mode: ModeName,
    /// The artifacts' folder; old artifacts there are replaced
    #[arg(short, long, default_value = "training", value_name = "DIR")]
    output: PathBuf,
    /// Statistics that batch norms use in training
    #[arg(long, default_value = "batch", value_name = "WHICH")]
    norm_statistics: StatisticsName,
    /// Model configuration, instead of the folder's
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Initial adapter and heads, instead of the folder's
    #[arg(long, value_name = "FILE")]
    adapter: Option<PathBuf>,
    /// Entry of the adapter's file that holds the weights, such as state_dict_ema; entries in entries with dots between
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Start of the names of the adapter's weights in their file, such as ema_model. [default: the one that all have]
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// Vision transformer, instead of the folder's
    #[arg(long, value_name = "PATH")]
    vision: Option<PathBuf>,
    /// Allow an output folder that holds other files; they are kept
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeName {
    /// Adapter, both projections, classifier and logit_scale
    Tlp,
    /// Adapter and classifier; the projections stay frozen
    Fpm,
    /// Adapter, vision projection and image-only classifier; no reports
    Mri,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StatisticsName {
    /// Those of the batch, as PyTorch's train()
    Batch,
    /// The stored running statistics, as PyTorch's eval()
    Running,
}

/// Runs the subcommand.
pub(super) fn run(args: &Args, common: &Common) -> Result<()> {
    let mut sources = match &args.adapter {
        Some(adapter) => Sources::with_adapter(&args.model, adapter.clone()),
        None => Sources::in_folder(&args.model)?,
    };
    sources.selection = Selection { key: args.key.clone(), prefix: args.prefix.clone() };
    for (given, slot) in [(&args.config, &mut sources.config), (&args.vision, &mut sources.vision)] {
        if let Some(path) = given {
            slot.clone_from(path);
        }
    }
    let plan = Plan {
        sources,
        mode: match args.mode {
            ModeName::Tlp => Mode::Tlp,
            ModeName::Fpm => Mode::Fpm,
            ModeName::Mri => Mode::Mri,
        },
        statistics: match args.norm_statistics {
            StatisticsName::Batch => Statistics::Batch,
            StatisticsName::Running => Statistics::Running,
        },
        adamw: AdamW::default(),
        output: args.output.clone(),
        force: args.force,
    };
    let mut bar = Bar::new(common);
    let outcome = prepare::run(&plan, &mut bar);
    let warnings = bar.finish();
    let summary = outcome?;
    common.print_result(&summary, &warnings, || render(&summary))
}

fn render(summary: &Summary) -> String {
    let mut text = String::new();
    let Summary { mode, trained, fixed, frozen, output, .. } = summary;
    let [trained, fixed, frozen] = [trained, fixed, frozen].map(|n| thousands(*n));
    let _ = writeln!(text, "mode {}: {trained} trainable parameters, {fixed} frozen", mode.name());
    let _ = writeln!(text, "vision transformer: {frozen} parameters, frozen\n");
    let mut rows = vec![vec!["file".to_owned(), "size".to_owned()]];
    rows.extend(summary.files.iter().map(|f| vec![f.name.clone(), size(f.bytes)]));
    text += &table(&rows);
    if !summary.skipped.is_empty() {
        let _ = writeln!(text, "not used: {}", escaped(&summary.skipped.join(", ")));
    }
    let _ = writeln!(
        text,
        "\nnote: optimizer_model.onnx has weight decay 0; `ba-train fit` applies weight decay to weights only"
    );
    let _ = writeln!(text, "training artifacts: {}", shown(output));
    let _ = writeln!(text, "\nnext: ba-train fit --data cohort.csv --artifacts {}", quoted(output));
    text
}
