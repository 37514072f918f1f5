//! What the groups share: options, the folder of what is made for them, and how processes are started.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use brain_adapter::checkpoint::Checkpoint;
use brain_adapter::config::AdapterKind;
use brain_adapter::model::Weights;
use tempfile::TempDir;

use super::process::{Contender, Outcome, Run, interleaved, measure, progress};
use super::report::{Figure, Report};
use super::train::adapters;

/// What was asked for.
pub struct Options {
    pub layers: usize,
    pub rounds: usize,
    pub checkpoint: Option<PathBuf>,
    pub bundle: Option<PathBuf>,
    /// A tiny model, where a group has one.
    pub small: bool,
    /// The adapters that are trained.
    pub adapters: Vec<AdapterKind>,
    pub write: bool,
}

impl Options {
    /// The options and the other arguments.
    pub fn parse(arguments: Vec<String>) -> Result<(Self, Vec<String>)> {
        let mut options = Self {
            layers: 4,
            rounds: 2,
            checkpoint: None,
            bundle: None,
            small: false,
            adapters: adapters("2d")?,
            write: false,
        };
        let mut rest = Vec::new();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--layers" => options.layers = value()?.parse().context("--layers takes a number")?,
                "--rounds" => options.rounds = value()?.parse().context("--rounds takes a number")?,
                "--checkpoint" => options.checkpoint = Some(value()?.into()),
                "--bundle" => options.bundle = Some(value()?.into()),
                "--size" => {
                    options.small = match value()?.as_str() {
                        "small" => true,
                        "full" => false,
                        _ => bail!("--size is small or full"),
                    }
                }
                "--adapter" => options.adapters = adapters(&value()?)?,
                "--write" => options.write = true,
                _ => rest.push(argument),
            }
        }
        ensure!(options.layers > 0 && options.rounds > 0, "--layers and --rounds are at least 1");
        Ok((options, rest))
    }
}

/// One run of the suite.
pub struct Suite {
    pub options: Options,
    pub report: Report,
    folder: TempDir,
}

/// Most blocks of the text that are run, not just converted: their float32 weights are held in memory by the peers.
const MOST_RUN: usize = 4;

impl Suite {
    pub fn new(options: Options) -> Result<Self> {
        // Beside the build: a folder for temporary files is often in memory.
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).context("no folder to work in")?;
        Ok(Self { options, report: Report::default(), folder })
    }

    /// A path in the folder that goes when the suite ends.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Blocks of the text in the groups that run it.
    pub fn run_layers(&self) -> usize {
        self.options.layers.min(MOST_RUN)
    }

    /// A model folder of random weights: LLaMA2-7B with so many blocks in fp16, full-size adapter and ViT; `None`: with
    /// a small LLaMA instead.
    pub fn checkpoint(&self, layers: Option<usize>) -> Result<PathBuf> {
        let path = self.path(&format!("checkpoint-{}", layers.unwrap_or(0)));
        if path.exists() {
            return Ok(path);
        }
        if let Some(layers) = layers {
            // The checkpoint, its copy, the bundle; and where the text runs, our and the peers' graphs in float32.
            let times = if layers > MOST_RUN { 4 } else { 8 };
            self.ensure_space(times * (layers as u64 * 405_000_000 + 262_000_000))?;
        }
        match layers {
            Some(layers) => synthesize(&path, &["--preset", "full", "--text-layers", &layers.to_string()])?,
            None => synthesize(&path, &["--preset", "vit"])?,
        }
        Ok(path)
    }

    /// A model folder of random weights by a preset's name.
    pub fn synthesize(&self, preset: &str) -> Result<PathBuf> {
        let path = self.path(&format!("preset-{preset}"));
        if !path.exists() {
            synthesize(&path, &["--preset", preset])?;
        }
        Ok(path)
    }

    fn ensure_space(&self, need: u64) -> Result<()> {
        #[cfg(unix)]
        {
            let about = rustix::fs::statvfs(self.folder.path()).context("cannot ask for the free space")?;
            let free = about.f_bavail.saturating_mul(about.f_frsize);
            let gb = |bytes: u64| bytes as f64 / 1e9;
            ensure!(free >= need, "{:.1} GB are free, {:.1} needed: use fewer --layers", gb(free), gb(need));
        }
        let _ = need;
        Ok(())
    }

    /// The bundle of [`checkpoint`](Self::checkpoint) as `ba-export` makes it without data (the text's), or calibrated
    /// on the demo's scan (the image's).
    pub fn bundle(&self, layers: Option<usize>, precision: &str) -> Result<PathBuf> {
        let path = self.path(&format!("bundle-{}-{precision}", layers.unwrap_or(0)));
        if !path.exists() {
            let calibration = if layers.is_some() { "nothing" } else { "calibration" };
            let calibration = self.path(calibration);
            std::fs::create_dir_all(&calibration)?;
            if layers.is_none() {
                std::fs::copy(root().join("examples/demo/mni152_t1.nii.gz"), calibration.join("scan.nii.gz"))?;
            }
            let checkpoint = self.checkpoint(layers)?;
            progress(&format!("exporting a bundle in {precision}"));
            succeed(&mut export(&checkpoint, precision, &calibration, &path))?;
        }
        Ok(path)
    }

    /// A child of this program.
    pub fn child(&self, arguments: &[&str]) -> Result<Command, String> {
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut command = Command::new(program);
        command.arg("--child").args(arguments);
        Ok(command)
    }

    /// A run of one graph in a child; `more` are the options of [`graphs::child`](super::graphs::child).
    pub fn graph(&self, path: &Path, more: &[&str]) -> Result<Command, String> {
        let mut command = self.child(&["graph"])?;
        command.arg(path).args(more);
        Ok(command)
    }

    /// A peer's script.
    pub fn peer(&self, script: &str, arguments: &[&str]) -> Result<Command, String> {
        let python = python().ok_or("not installed (BA_BENCH_PYTHON names no Python)")?;
        let mut command = Command::new(python);
        command.arg(root().join("benches/peers").join(script)).args(arguments);
        Ok(command)
    }

    /// Puts more into a row.
    pub fn amend(&mut self, what: &str, with: &str, change: impl FnOnce(&mut Figure)) {
        if let Some(figure) = self.report.figures.iter_mut().find(|f| f.what == what && f.with == with) {
            change(figure);
        }
    }
}

/// Writes a model folder of random weights.
fn synthesize(path: &Path, sizes: &[&str]) -> Result<()> {
    progress("writing a checkpoint of random weights");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(root());
    command.args(["run", "--release", "--quiet", "--example", "synthesize_checkpoint", "--", "--output"]).arg(path);
    succeed(command.args(sizes)).map(drop)
}

/// How the tables call so many blocks of the text.
pub fn blocks(n: usize) -> String {
    format!("{n} block{} of 7B", if n == 1 { "" } else { "s" })
}

/// Runs all in turn: a row for each.
pub fn compare(what: &str, contenders: Vec<Contender>) -> Vec<Figure> {
    let names: Vec<String> = contenders.iter().map(|c| c.name.clone()).collect();
    let outcomes = interleaved(contenders, &|| ());
    names.iter().zip(outcomes).map(|(name, outcome)| row(what, name, outcome)).collect()
}

/// A row with nothing but its run.
pub fn row(what: &str, with: &str, outcome: Outcome) -> Figure {
    Figure { what: what.into(), with: with.into(), outcome, bytes: None, cosine: None, floor: None }
}

/// The Python that has the peers.
pub fn python() -> Option<std::ffi::OsString> {
    std::env::var_os("BA_BENCH_PYTHON").filter(|p| !p.is_empty())
}

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `ba-export` with these flags.
pub fn export(checkpoint: &Path, precision: &str, calibration: &Path, output: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ba-export"));
    let quantize = if precision == "fp32" { "none" } else { precision };
    command.args(["--quiet", "--quantize", quantize, "--model"]).arg(checkpoint);
    command.arg("--calibration").arg(calibration).arg("--output").arg(output).current_dir(root());
    command
}

/// Runs what the suite can't do without.
pub fn succeed(command: &mut Command) -> Result<Run> {
    measure(command).map_err(|reason| anyhow::anyhow!("{command:?} {reason}"))
}

/// Bytes of the files in a folder whose names satisfy `pick`.
pub fn bytes_in(folder: &Path, pick: impl Fn(&str) -> bool) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let picked = entries.filter(|e| pick(&e.file_name().to_string_lossy()));
    picked.filter_map(|e| e.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
}

/// All tensors of a checkpoint, by the names that they have below `prefix`.
pub fn weights(path: &Path, prefix: &str) -> Result<Weights> {
    let checkpoint = Checkpoint::open(path)?;
    let named = checkpoint.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)));
    Ok(named.map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect())
}
