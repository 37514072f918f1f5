//! `ba-train apply`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::bundle::{Parity, Version, Versions};
use crate::cli::progress::Bar;
use crate::cli::render::{self, short, shown, table};
use crate::cli::{Common, calibration_folder, print, print_json, tell};
use crate::error::Result;
use crate::infer::results::error_json;
use crate::train::apply::{self, Plan, Summary};

const EXAMPLES: &str = "\
Examples:
  ba-train apply                                       the best weights of the last training into ./onnx
  ba-train apply --checkpoint adapter.safetensors --bundle bundles/study7
  ba-train apply --save-adapter adapter.safetensors    the same weights for PyTorch's load_state_dict too
  ba-train apply --versions                            which versions are there?
  ba-train apply --rollback                            back to what the bundle was before

The old bundle is kept, whole, in a folder beside the bundle (onnx.versions).";

/// Flags of `ba-train apply`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Trained weights: a training checkpoint, or .safetensors or .pt with PyTorch's names
    #[arg(long, default_value = "training/run/best", value_name = "FILE")]
    checkpoint: PathBuf,
    /// The bundle that they go into
    #[arg(long, default_value = "onnx", value_name = "DIR")]
    bundle: PathBuf,
    /// Scans and reports to calibrate a reduced adapter on, and to compare with fp32 [default: ./calibration]
    #[arg(long, value_name = "DIR")]
    calibration: Option<PathBuf>,
    /// Leave the adapter of an int8 or int4 bundle in fp32 where there is no scan to calibrate it on
    #[arg(long)]
    adapter_fp32: bool,
    /// Write the trained tensors as safetensors for PyTorch too
    #[arg(long, value_name = "FILE")]
    save_adapter: Option<PathBuf>,
    /// Bring the version back that the bundle in use was made from
    #[arg(long, group = "instead", conflicts_with_all = ["checkpoint", "calibration", "adapter_fp32", "save_adapter"])]
    rollback: bool,
    /// Bring the version of this number back
    #[arg(long, value_name = "N", group = "instead", value_parser = clap::value_parser!(u32).range(1..),
          conflicts_with_all = ["checkpoint", "calibration", "adapter_fp32", "save_adapter"])]
    to: Option<u32>,
    /// List the versions
    #[arg(long, group = "instead", conflicts_with_all = ["checkpoint", "calibration", "adapter_fp32", "save_adapter"])]
    versions: bool,
}

/// Runs the subcommand.
pub(super) fn run(args: &Args, common: &Common) -> Result<()> {
    if args.versions {
        let all = Versions::list(&args.bundle)?;
        return print(&if common.json { json_lines(&all) } else { listed(&all) });
    }
    let mut bar = Bar::new(common.quiet, common.verbose);
    if args.rollback || args.to.is_some() {
        let outcome = apply::roll_back(&args.bundle, args.to, &mut bar);
        drop(bar);
        let number = outcome?;
        return print(&if common.json {
            format!("{}\n", json!({"bundle": args.bundle.display().to_string(), "version": number}))
        } else {
            format!("bundle: {} is version {number} again\n", shown(&args.bundle))
        });
    }
    let outcome = apply::run(&plan(args, common)?, &mut bar);
    drop(bar);
    if common.verbose {
        tell(common, crate::runtime::take_log());
    }
    let summary = outcome?;
    if common.json {
        return print_json(&summary);
    }
    print(&rendered(&summary, args.save_adapter.as_deref()))
}

fn plan(args: &Args, common: &Common) -> Result<Plan> {
    Ok(Plan {
        bundle: args.bundle.clone(),
        checkpoint: args.checkpoint.clone(),
        calibration: Some(calibration_folder(args.calibration.as_ref())?),
        adapter_fp32: args.adapter_fp32,
        save_adapter: args.save_adapter.clone(),
        library: common.ort_lib.clone(),
        threads: common.threads(),
    })
}

/// What was applied.
fn rendered(summary: &Summary, saved: Option<&Path>) -> String {
    let mut text = render::parts(&summary.parts);
    text.push_str("\nmax error, cosine: against fp32 graphs of the same weights, on the calibration inputs\n");
    text += &render::unchecked(&summary.parts);
    if let Some(p) = summary.probabilities {
        let _ = writeln!(text, "largest difference of a probability that their reduced precision makes: {p:.4}");
    }
    let _ = writeln!(
        text,
        "\n{}the other files are those of version {}",
        render::sources(&summary.sources),
        summary.parent
    );
    if let Some(path) = saved {
        let _ = writeln!(text, "for PyTorch: {}", shown(path));
    }
    let bundle = shown(&summary.bundle);
    let _ = writeln!(
        text,
        "bundle: {bundle} is version {} now, sha256 {} ({:.1} s)\nback: ba-train apply --rollback --bundle {bundle}",
        summary.version,
        short(&summary.sha256),
        summary.seconds
    );
    text
}

/// The versions as a table.
fn listed(all: &[Version]) -> String {
    let head = ["version", "sha256", "precision", "adapter", "max error", "cosine", "weights from"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut damaged = String::new();
    for version in all {
        let number = format!("{}{}", version.number, if version.in_use { " (in use)" } else { "" });
        match &version.content {
            Err(e) => {
                rows.push(vec![number, "cannot be read".into()]);
                let _ = writeln!(damaged, "{e}");
            }
            Ok((manifest, sha256)) => {
                let adapter = &manifest.parts["adapter"];
                let (error, cosine) = match &adapter.parity {
                    Parity::Checked { worst, .. } => (format!("{:.1e}", worst.max_abs), format!("{:.7}", worst.cosine)),
                    Parity::NotChecked(_) => ("not checked".into(), "-".into()),
                };
                let from = manifest.sources.iter().filter(|s| s.role == "adapter");
                let from: Vec<&str> = from.map(|s| s.name.as_str()).collect();
                let precision = manifest.parts["text"].precision.to_string();
                let from = shown(Path::new(&from.join(", ")));
                rows.push(vec![number, short(sha256), precision, adapter.precision.to_string(), error, cosine, from]);
            }
        }
    }
    format!("{}\nmax error, cosine: of the adapter, against fp32\n{damaged}", table(&rows))
}

/// The versions as one JSON document.
fn json_lines(all: &[Version]) -> String {
    let row = |version: &Version| {
        let mut row = json!({"version": version.number, "in_use": version.in_use});
        match &version.content {
            Err(e) => row["error"] = error_json(e),
            Ok((manifest, sha256)) => {
                row["sha256"] = json!(sha256);
                row["parts"] = json!(manifest.parts);
                row["sources"] = json!(manifest.sources);
                row["parent_sha256"] = json!(manifest.version.as_ref().map(|v| &v.parent_sha256));
            }
        }
        row
    };
    format!("{}\n", json!({"versions": all.iter().map(row).collect::<Vec<_>>()}))
}
