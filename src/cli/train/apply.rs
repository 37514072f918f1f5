//! `ba-train apply`: trained weights into a bundle, and back to earlier versions.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::bundle::{Version, Versions};
use crate::checkpoint::Selection;
use crate::cli::outputs::{self, Kind};
use crate::cli::progress::Bar;
use crate::cli::text::{duration, place_and_message, probability_change, quoted, short, shown, table};
use crate::cli::{Common, calibration_folder, print, print_json, render};
use crate::error::Result;
use crate::infer::results::error_json;
use crate::model::Part;
use crate::train::apply::{self, Plan, Summary};

const EXAMPLES: &str = "\
Examples:
  ba-train apply                                       put the best weights of the last training into ./onnx
  ba-train apply --checkpoint adapter.safetensors --bundle bundles/study7
  ba-train apply --save-adapter adapter.safetensors    also save them for PyTorch's load_state_dict
  ba-train apply --versions                            list the versions
  ba-train apply --rollback                            restore the bundle as it was before

The old bundle is kept in a folder next to the bundle (onnx.versions).";

/// Flags of `ba-train apply`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Trained weights: a training checkpoint, or .safetensors or .pt with PyTorch's names
    #[arg(long, default_value = "training/run/best", value_name = "FILE")]
    checkpoint: PathBuf,
    /// Entry of the checkpoint that holds the weights, such as state_dict_ema; entries in entries with dots between
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Start of the names of the weights in the checkpoint, such as ema_model. [default: the one that all have]
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// The bundle to put them into
    #[arg(long, default_value = "onnx", value_name = "DIR")]
    bundle: PathBuf,
    /// Scans and reports for calibration and for the comparison with fp32 [default: ./calibration]
    #[arg(long, value_name = "DIR")]
    calibration: Option<PathBuf>,
    /// Leave the adapter of an int8 or int4 bundle in fp32 if there is no scan to calibrate it on
    #[arg(long)]
    adapter_fp32: bool,
    /// Also write the trained tensors as safetensors for PyTorch
    #[arg(long, value_name = "FILE")]
    save_adapter: Option<PathBuf>,
    /// Replace the file of --save-adapter if it exists and was not made by this program; its own are always replaced
    #[arg(long, requires = "save_adapter")]
    force: bool,
    /// Restore the version that the bundle in use was made from
    #[arg(long, group = "instead", conflicts_with_all = ["checkpoint", "key", "prefix", "calibration", "adapter_fp32", "save_adapter"])]
    rollback: bool,
    /// Restore the version of this number
    #[arg(long, value_name = "N", group = "instead", value_parser = clap::value_parser!(u32).range(1..),
          conflicts_with_all = ["checkpoint", "key", "prefix", "calibration", "adapter_fp32", "save_adapter"])]
    to: Option<u32>,
    /// List the versions
    #[arg(long, group = "instead", conflicts_with_all = ["checkpoint", "key", "prefix", "calibration", "adapter_fp32", "save_adapter"])]
    versions: bool,
}

/// Runs the subcommand.
pub(super) fn run(args: &Args, common: &Common) -> Result<()> {
    if args.versions {
        let all = Versions::list(&args.bundle)?;
        return if common.json { print_json(&versions_json(&all)) } else { print(&versions_text(&all)) };
    }
    let saved: Vec<(&Path, Kind)> = args.save_adapter.iter().map(|path| (path.as_path(), Kind::Tensors)).collect();
    outputs::check(&saved, &[&args.checkpoint], args.force)?;
    let mut bar = Bar::new(common);
    if args.rollback || args.to.is_some() {
        let outcome = apply::roll_back(&args.bundle, args.to, &mut bar);
        let warnings = bar.finish();
        let number = outcome?;
        let result = json!({"bundle": args.bundle.display().to_string(), "version": number});
        let text = || format!("bundle: {} is version {number} again\n", shown(&args.bundle));
        return common.print_result(&result, &warnings, text);
    }
    let outcome = apply::run(&plan(args, common)?, &mut bar);
    let warnings = bar.finish();
    common.note_log();
    let summary = outcome?;
    common.print_result(&summary, &warnings, || summary_text(&summary, args.save_adapter.as_deref()))
}

fn plan(args: &Args, common: &Common) -> Result<Plan> {
    Ok(Plan {
        bundle: args.bundle.clone(),
        checkpoint: args.checkpoint.clone(),
        selection: Selection { key: args.key.clone(), prefix: args.prefix.clone() },
        calibration: Some(calibration_folder(args.calibration.as_ref())?),
        adapter_fp32: args.adapter_fp32,
        save_adapter: args.save_adapter.clone(),
        library: common.ort_lib.clone(),
        threads: common.threads(),
    })
}

/// The result of an application.
fn summary_text(summary: &Summary, saved: Option<&Path>) -> String {
    let mut text: String = summary.fallbacks.iter().map(|f| format!("{}\n", f.describe())).collect();
    text += &render::parts(&summary.parts);
    text.push_str("max error, cosine: against fp32 graphs of the same weights, on the calibration inputs\n");
    text += &render::unchecked(&summary.parts);
    if let Some(p) = summary.probabilities {
        let _ = writeln!(text, "max probability change from quantization: {}", probability_change(p));
    }
    let _ = writeln!(
        text,
        "\n{}all other files: unchanged from version {}",
        render::sources(&summary.sources),
        summary.parent
    );
    if let Some(path) = saved {
        let _ = writeln!(text, "for PyTorch: {}", shown(path));
    }
    let (id, seconds) = (short(&summary.sha256), duration(summary.seconds));
    let _ = writeln!(
        text,
        "bundle: {} is now version {}, sha256 {id} ({seconds})",
        shown(&summary.bundle),
        summary.version
    );
    let bundle = quoted(&summary.bundle);
    let _ = writeln!(text, "undo: ba-train apply --rollback --bundle {bundle}");
    let _ = writeln!(text, "\nnext: ba-infer scan.nii.gz --bundle {bundle}");
    text
}

/// The versions as a table.
fn versions_text(all: &[Version]) -> String {
    let head = ["version", "sha256", "format", "adapter", "max error", "cosine", "weights from"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut damaged = String::new();
    for version in all {
        let number = format!("{}{}", version.number, if version.in_use { " (in use)" } else { "" });
        match &version.content {
            Err(e) => {
                rows.push(vec![number, "cannot be read".into()]);
                let _ = writeln!(damaged, "{}", place_and_message(e));
            }
            Ok((manifest, sha256)) => {
                let adapter = manifest.part(Part::Adapter);
                let (error, cosine) = render::parity(&adapter.parity);
                let from = manifest.sources.iter().filter(|s| s.role == "adapter");
                let from: Vec<&str> = from.map(|s| s.name.as_str()).collect();
                let precision = manifest.part(Part::Text).precision.to_string();
                let from = shown(Path::new(&from.join(", ")));
                rows.push(vec![number, short(sha256), precision, adapter.precision.to_string(), error, cosine, from]);
            }
        }
    }
    format!("{}max error, cosine: of the adapter, against fp32\n{damaged}", table(&rows))
}

/// The versions as one JSON document.
fn versions_json(all: &[Version]) -> serde_json::Value {
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
    json!({"versions": all.iter().map(row).collect::<Vec<_>>()})
}
