//! `ba-export`: PyTorch checkpoints to a bundle.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use super::progress::Bar;
use super::{Common, calibration_folder, finish, parse, render};
use crate::bundle::{self, Precision};
use crate::checkpoint::Selection;
use crate::error::Result;
use crate::export::{self, Plan, Sources};

const EXAMPLES: &str = "\
Examples:
  ba-export                                    ./checkpoints to ./onnx, in fp32
  ba-export --quantize int8                    a quarter of the size, faster; calibrated on ./calibration
  ba-export --quantize int8 --target cuda      8-bit weights for NVIDIA GPUs, the rest in fp16
  ba-export --model study7 -o bundles/study7   another model folder, another place
  ba-export --vision M3D-CLIP --text Llama-2-7b-hf
                                               single parts from other places
  ba-export --verify expected.safetensors      fail unless it reproduces the stages recorded in PyTorch

The model folder holds config.json, adapter.pt (or .safetensors), m3d/ and llama/.";

/// Turns PyTorch checkpoints into an ONNX bundle for ba-infer.
#[derive(Parser, Debug)]
#[command(name = "ba-export", version, after_help = EXAMPLES)]
struct Args {
    /// Model folder: config.json, the adapter, m3d/ and llama/
    #[arg(long, env = "BA_MODEL", default_value = "checkpoints", value_name = "DIR")]
    model: PathBuf,
    /// Number format of the graphs
    #[arg(long, default_value = "none", value_name = "FORMAT")]
    quantize: Quantize,
    /// Device that an int8 or int4 bundle runs on; others refuse it. fp32 and fp16 bundles run on all devices
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    target: Target,
    /// The bundle's folder; an old bundle there is replaced
    #[arg(short, long, default_value = "onnx", value_name = "DIR")]
    output: PathBuf,
    /// Scans and reports for calibration and for the comparison with fp32 [default: ./calibration]
    #[arg(long, value_name = "DIR")]
    calibration: Option<PathBuf>,
    /// Calibration statistics of an earlier export (its calibration.safetensors), instead of computing them
    #[arg(long, value_name = "FILE")]
    statistics: Option<PathBuf>,
    /// Maximum relative error of a layer's result [default: 0.005 for fp16, 0.05 for int8, 0.15 for int4]
    #[arg(long, value_name = "X", value_parser = relative_error)]
    max_error: Option<f64>,
    /// Model configuration, instead of the folder's
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Trained adapter and heads, instead of the folder's
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
    /// Language model, instead of the folder's
    #[arg(long, value_name = "PATH")]
    text: Option<PathBuf>,
    /// Stage outputs recorded in PyTorch (safetensors), which the bundle must reproduce
    #[arg(long, value_name = "FILE")]
    verify: Option<PathBuf>,
    /// Memory that the export should stay below, such as 4G: a warning at the end says if it took more
    #[arg(long, value_name = "SIZE", value_parser = super::infer::parse_size)]
    max_memory: Option<u64>,
    /// Allow an output folder that holds other files; they are kept
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Quantize {
    /// float32
    None,
    /// float16: half the size; faster on GPUs, not on CPUs
    Fp16,
    /// 8-bit integers: a quarter of the size; the fastest on CPUs
    Int8,
    /// 4-bit integers in the language model, 8-bit elsewhere: the smallest
    Int4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// CPUs
    Cpu,
    /// NVIDIA GPUs through ONNX Runtime's CUDA provider: integer weights, everything else in fp16
    Cuda,
    /// NVIDIA GPUs through TensorRT: int8 activations too, whose scales need calibration inputs; no int4
    Tensorrt,
}

impl Target {
    fn target(self) -> bundle::Target {
        match self {
            Self::Cpu => bundle::Target::Cpu,
            Self::Cuda => bundle::Target::Cuda,
            Self::Tensorrt => bundle::Target::TensorRt,
        }
    }
}

impl Quantize {
    fn precision(self) -> Precision {
        match self {
            Self::None => Precision::Fp32,
            Self::Fp16 => Precision::Fp16,
            Self::Int8 => Precision::Int8,
            Self::Int4 => Precision::Int4,
        }
    }
}

/// A relative error: above 0, at most 1.
fn relative_error(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x > 0.0 && x <= 1.0 => Ok(x),
        _ => Err("expected a number above 0 and at most 1".into()),
    }
}

/// Runs `ba-export` with the process's arguments.
pub fn main() -> ExitCode {
    let args: Args = match parse(|args| conflicts(args).map_err(str::to_owned)) {
        Ok(args) => args,
        Err(code) => return code,
    };
    args.common.catch_bus_errors();
    finish(run(&args), args.common.json)
}

/// Combinations that clap cannot express.
fn conflicts(args: &Args) -> std::result::Result<(), &'static str> {
    if args.quantize == Quantize::None && (args.statistics.is_some() || args.max_error.is_some()) {
        return Err("--statistics and --max-error have no effect without --quantize fp16, int8 or int4");
    }
    if args.quantize == Quantize::Int4 && args.target == Target::Tensorrt {
        return Err("--target tensorrt has no int4: use --quantize int8, or --target cuda");
    }
    Ok(())
}

fn run(args: &Args) -> Result<()> {
    args.common.start_threads()?;
    let plan = plan(args)?;
    let mut bar = Bar::new(&args.common);
    let outcome = export::run(&plan, &mut bar);
    let warnings = bar.finish();
    args.common.note_log();
    let summary = outcome?;
    args.common.print_result(&summary, &warnings, || render::export(&summary, args.common.verbose))
}

fn plan(args: &Args) -> Result<Plan> {
    let mut sources = match &args.adapter {
        // A named adapter makes the search for one in the folder unnecessary.
        Some(adapter) => Sources::with_adapter(&args.model, adapter.clone()),
        None => Sources::in_folder(&args.model)?,
    };
    sources.selection = Selection { key: args.key.clone(), prefix: args.prefix.clone() };
    let overrides =
        [(&args.config, &mut sources.config), (&args.vision, &mut sources.vision), (&args.text, &mut sources.text)];
    for (given, slot) in overrides {
        if let Some(path) = given {
            slot.clone_from(path);
        }
    }
    Ok(Plan {
        sources,
        output: args.output.clone(),
        precision: args.quantize.precision(),
        target: args.target.target(),
        calibration: Some(calibration_folder(args.calibration.as_ref())?),
        statistics: args.statistics.clone(),
        max_error: args.max_error,
        verify: args.verify.clone(),
        force: args.force,
        library: args.common.ort_lib.clone(),
        threads: args.common.threads(),
        max_memory: args.max_memory,
    })
}
