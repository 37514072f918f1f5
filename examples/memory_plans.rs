//! Compares planned with measured memory, each case in a process of its own:
//!
//! ```text
//! cargo run --release --example memory_plans -- onnx bundles/full-int8 --tokens 8,256,1024
//! ```
//!
//! A row is a bundle, what ran (one graph on made-up inputs, or `all`: a scan and a report, as `ba-infer` does), mode,
//! threads and tokens, with the peak of resident memory that was planned, the measured one, and their ratio. Below it
//! stand the smallest and the largest ratio: below 1 a plan let through what does not fit, far above it plans refuse
//! what would.
#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use brain_adapter::execute::{Mode, Options, Pipeline, Timing};
use brain_adapter::graph::Dim;
use brain_adapter::infer::Predictor;
use brain_adapter::model::Part;
use brain_adapter::onnx::SegmentedModel;
use brain_adapter::tensor::Tensor;
use clap::Parser;

#[derive(Parser)]
#[command(about = "Compares planned with measured memory")]
struct Args {
    /// Bundles.
    #[arg(required = true)]
    bundles: Vec<PathBuf>,
    /// Tokens of the report; more than a bundle's maximum are left out.
    #[arg(long, value_delimiter = ',', default_value = "8,64,256,512,1024")]
    tokens: Vec<usize>,
    /// What to run: adapter, vision, text, heads, all.
    #[arg(long, value_delimiter = ',', default_value = "adapter,vision,text,heads,all")]
    parts: Vec<String>,
    /// Computing threads.
    #[arg(long, value_delimiter = ',', default_value = "2")]
    threads: Vec<usize>,
    /// Modes: one-shot, resident.
    #[arg(long, value_delimiter = ',', default_value = "one-shot,resident")]
    modes: Vec<String>,
    /// Memory limit in MiB, under which graphs run in groups.
    #[arg(long)]
    limit: Option<u64>,
    /// Reads weights instead of mapping them.
    #[arg(long)]
    read_weights: bool,
    /// The scan of `all`.
    #[arg(long, default_value = "examples/demo/mni152_t1.nii.gz")]
    scan: PathBuf,
    /// Runs one case in this process (used by the program itself).
    #[arg(long, hide = true)]
    child: bool,
}

/// One case: bytes.
struct Measured {
    planned: u64,
    peak: u64,
    in_use: u64,
    groups: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if args.child {
        return child(&args);
    }
    println!(
        "{:<24} {:<8} {:<9} {:>7} {:>6} {:>6} {:>12} {:>12} {:>6} {:>12}",
        "bundle", "ran", "mode", "threads", "tokens", "groups", "planned MB", "measured MB", "ratio", "in use MB"
    );
    let mut ratios = Vec::new();
    for bundle in &args.bundles {
        for part in &args.parts {
            for (mode, threads) in args.modes.iter().flat_map(|m| args.threads.iter().map(move |t| (m, *t))) {
                let with_text = matches!(part.as_str(), "text" | "all");
                for &tokens in args.tokens.iter().take(if with_text { usize::MAX } else { 1 }) {
                    let Some(m) = measure(&args, bundle, part, mode, threads, tokens)? else { continue };
                    let ratio = m.planned as f64 / m.peak as f64;
                    let name = bundle.file_name().unwrap_or_default().to_string_lossy();
                    let mb = |bytes: u64| bytes as f64 / 1e6;
                    println!(
                        "{name:<24} {part:<8} {mode:<9} {threads:>7} {tokens:>6} {:>6} {:>12.1} {:>12.1} \
                        {ratio:>6.2} {:>12.1}",
                        m.groups,
                        mb(m.planned),
                        mb(m.peak),
                        mb(m.in_use)
                    );
                    ratios.push(ratio);
                }
            }
        }
    }
    ratios.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (ratios.first(), ratios.last()) else { bail!("nothing was measured") };
    println!(
        "{} cases: planned / measured is {least:.2} to {most:.2}, median {:.2}",
        ratios.len(),
        ratios[ratios.len() / 2]
    );
    Ok(())
}

/// Runs a case in a process of its own; none where the bundle reads no such reports.
fn measure(
    args: &Args,
    bundle: &Path,
    part: &str,
    mode: &str,
    threads: usize,
    tokens: usize,
) -> Result<Option<Measured>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(bundle).args(["--child", "--parts", part, "--modes", mode]).arg("--scan").arg(&args.scan);
    command.args(["--threads", &threads.to_string(), "--tokens", &tokens.to_string()]);
    if let Some(limit) = args.limit {
        command.args(["--limit", &limit.to_string()]);
    }
    if args.read_weights {
        command.arg("--read-weights");
    }
    let out = command.output()?;
    let said = String::from_utf8_lossy(&out.stdout);
    ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    let numbers: Vec<u64> = said.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [planned, peak, in_use, groups] = numbers[..] else { return Ok(None) };
    Ok(Some(Measured { planned, peak, in_use, groups: groups as usize }))
}

fn child(args: &Args) -> Result<()> {
    let (bundle, part, tokens) = (args.bundles[0].as_path(), args.parts[0].as_str(), args.tokens[0]);
    let mode = if args.modes[0] == "resident" { Mode::Resident } else { Mode::OneShot };
    let options = Options {
        mode: Some(mode),
        threads: Some(args.threads[0]),
        report_tokens: Some(tokens),
        max_memory: args.limit.map(|mib| mib << 20),
        read_weights: args.read_weights,
        ..Options::default()
    };
    let run = if part == "all" {
        // A word is a token at least. The plan is made for the tokens that these words are.
        let report = vec!["a"; tokens].join(" ");
        let predictor = Predictor::open_for(bundle, Options { report_tokens: None, ..options }, Some(&report))?;
        if tokens > predictor.bundle().manifest.tokenizer.max_tokens {
            return Ok(());
        }
        let report = predictor.encode_report(&report)?;
        let scan = predictor.reader().read(&args.scan)?;
        predictor.predict(scan, Some(&report))?.run
    } else {
        let pipeline = Pipeline::open(bundle, &options)?;
        if tokens > pipeline.bundle().manifest.tokenizer.max_tokens {
            return Ok(());
        }
        let part: Part = part.parse().map_err(|_| anyhow::anyhow!("no part is called `{part}`"))?;
        let provider = pipeline.device();
        let file = pipeline.bundle().manifest.graph(part, provider).context("the bundle has no such graph")?;
        let model = SegmentedModel::read(&pipeline.bundle().file(file)?)?;
        let names: Vec<String> = model.inputs().into_iter().map(str::to_owned).collect();
        let inputs = names.iter().map(|name| input(&model, name, tokens)).collect::<Result<Vec<_>>>()?;
        let feed: Vec<(&str, &Tensor)> = names.iter().map(String::as_str).zip(&inputs).collect();
        let outputs: Vec<String> = model.outputs().into_iter().map(str::to_owned).collect();
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        for _ in 0..if mode == Mode::Resident { 3 } else { 1 } {
            pipeline.run(part, &feed, &outputs, &mut Timing::default())?;
        }
        let mut run = pipeline.to_record(Vec::new());
        run.stages.retain(|stage| stage.part == part.as_str());
        run.memory_bytes.planned = run.memory_bytes.in_use + run.stages[0].planned_bytes;
        run
    };
    let (memory, groups) = (run.memory_bytes, run.stages.iter().map(|s| s.groups).max().unwrap_or(1));
    println!("{} {} {} {groups}", memory.planned, memory.peak.context("the system does not say")?, memory.in_use);
    Ok(())
}

/// A made-up input.
fn input(model: &SegmentedModel, name: &str, tokens: usize) -> Result<Tensor> {
    let shape = model.shape(name).with_context(|| format!("`{name}` has no shape"))?;
    let size = |dim: &Dim| match dim {
        Dim::Known(n) => *n,
        Dim::Symbol("tokens") => tokens,
        _ => 1,
    };
    let shape: Vec<usize> = shape.iter().map(size).collect();
    let n = shape.iter().product::<usize>();
    let tensor = match name {
        "input_ids" => Tensor::i64(&shape, (0..n).map(|i| 3 + (i as i64 * 37) % 500).collect()),
        "attention_mask" => Tensor::i64(&shape, vec![1; n]),
        _ => Tensor::f32(&shape, (0..n).map(|i| (i * 7919 % 1000) as f32 / 1000.0).collect()),
    };
    tensor.context("the values fill the shape")
}
