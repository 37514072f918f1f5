//! `ba-train prepare`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::ValueEnum;

use crate::cli::progress::Bar;
use crate::cli::render::{size, table};
use crate::cli::{Common, print, print_json};
use crate::config::AdamW;
use crate::error::Result;
use crate::export::Sources;
use crate::model::Mode;
use crate::model::adapter::Statistics;
use crate::train::prepare::{self, Plan, Summary};

/// Flags of `ba-train prepare`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Folder of config.json, the adapter and m3d/
    #[arg(long, env = "BA_MODEL", default_value = "checkpoints", value_name = "DIR")]
    model: PathBuf,
    /// What is trained
    #[arg(long, default_value = "tlp", value_name = "MODE")]
    mode: ModeName,
    /// Folder that the artifacts become; old artifacts there are replaced
    #[arg(short, long, default_value = "training", value_name = "DIR")]
    output: PathBuf,
    /// What batch norms normalise by in training: the batch's statistics, or the stored ones
    #[arg(long, default_value = "batch", value_name = "WHICH")]
    norm_statistics: StatisticsName,
    /// Model configuration, instead of the folder's
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Adapter and heads to begin with, instead of the folder's
    #[arg(long, value_name = "FILE")]
    adapter: Option<PathBuf>,
    /// Vision transformer, instead of the folder's
    #[arg(long, value_name = "PATH")]
    vision: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeName {
    /// Adapter, both projections, classifier and logit_scale
    Tlp,
    /// Adapter and classifier; the projections stay as they are
    Fpm,
    /// Adapter, vision projection and image-only classifier; no reports
    Mri,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StatisticsName {
    /// The batch's, as PyTorch's train()
    Batch,
    /// The stored ones, as PyTorch's eval()
    Running,
}

/// Runs the subcommand.
pub(super) fn run(args: &Args, common: &Common) -> Result<()> {
    let mut sources = match &args.adapter {
        Some(adapter) => Sources::with_adapter(&args.model, adapter.clone()),
        None => Sources::in_folder(&args.model)?,
    };
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
    };
    let mut bar = Bar::new(common.quiet, common.verbose);
    let outcome = prepare::run(&plan, &mut bar);
    drop(bar);
    let summary = outcome?;
    if common.json {
        return print_json(&summary);
    }
    print(&render(&summary))
}

fn render(summary: &Summary) -> String {
    let mut text = String::new();
    let Summary { mode, trained, fixed, frozen, output, .. } = summary;
    let _ = writeln!(text, "mode {}: {trained} numbers are trained, {fixed} of adapter and heads are not", mode.name());
    let _ = writeln!(text, "frozen vision transformer: {frozen} weights\n");
    let mut rows = vec![vec!["file".to_owned(), "size".to_owned()]];
    rows.extend(summary.files.iter().map(|f| vec![f.name.clone(), size(f.bytes)]));
    text += &table(&rows);
    if !summary.skipped.is_empty() {
        let _ = writeln!(text, "not used: {}", summary.skipped.join(", "));
    }
    let _ = writeln!(
        text,
        "\noptimizer_model.onnx decays nothing (its form has one decay for all); ba-train fit decays weights alone"
    );
    let _ = writeln!(text, "training artifacts in {}", output.display());
    text
}
