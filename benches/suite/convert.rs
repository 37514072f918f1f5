//! An fp16 checkpoint to an int8 bundle: `ba-export`, Python's path, and the disk's own time.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::process::{Contender, Run, interleaved};
use super::report::Bound::{AtLeast, AtMost};
use super::report::Floor;
use super::suite::{Suite, bytes_in, export, row};

const WHAT: &str = "convert fp16 → int8";
/// Times the fp16 checkpoint's bytes that Python's path holds in memory: 5.0 measured at two layers, and some room.
const PYTHON_HOLDS: f64 = 5.5;

pub fn run(suite: &mut Suite) -> Result<()> {
    let ready = suite.options.checkpoint.clone();
    let checkpoint = match &ready {
        Some(folder) => folder.canonicalize().with_context(|| format!("{} cannot be opened", folder.display()))?,
        None => suite.checkpoint(Some(suite.options.layers))?,
    };
    let llama = checkpoint.join("llama");
    let weights = bytes_in(&llama, |_| true);
    let (nothing, output) = (suite.path("no-calibration"), suite.path("converted"));
    let (copy, python) = (suite.path("copy"), suite.path("python"));
    std::fs::create_dir_all(&nothing)?;
    let rounds = suite.options.rounds.min(2);
    let ours = || {
        clear(&output)?;
        Ok(export(&checkpoint, "int8", &nothing, &output))
    };
    let disk = || {
        clear(&copy)?;
        Ok(copying(&checkpoint, &output, &copy))
    };
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let torch = || {
        enough_memory(weights as f64 * PYTHON_HOLDS)?;
        clear(&copy)?;
        suite.peer("onnx_export.py", &["export", &text(&llama), &text(&python)])
    };
    let graph = python.join("model.onnx");
    let quantize = || {
        let graph = graph.exists().then_some(&graph).ok_or("not run: there is no graph to quantize")?;
        enough_memory(weights as f64 * PYTHON_HOLDS)?;
        suite.peer("onnx_export.py", &["quantize", &text(graph), &text(&python)])
    };
    let contenders = vec![
        Contender::new("ours, `ba-export --quantize int8` without data", rounds, ours),
        Contender::new("`cp` of the checkpoint, `dd` of the bundle with fsync", rounds, disk),
        Contender::new("Python: `torch.onnx.export`", 1, torch),
        Contender::new("Python: `quantize_dynamic`", 1, quantize),
    ];
    let names: Vec<String> = contenders.iter().map(|c| c.name.clone()).collect();
    // What one run has left to be written must not be the next one's work.
    let settle = || drop(Command::new("sync").status());
    let mut outcomes = interleaved(contenders, &settle);
    let both = outcomes[2].clone().and_then(|a| outcomes[3].clone().map(|b| added(&a, &b)));
    outcomes.push(both.map_err(|_| "see its two steps".into()));
    let names = names.iter().map(String::as_str).chain(["Python: both steps"]);
    let mut rows: Vec<_> = names.zip(outcomes).map(|(name, outcome)| row(WHAT, name, outcome)).collect();
    let floor = rows[1].outcome.as_ref().ok().map(|r| r.seconds);
    rows[0].floor = floor.map(Floor::Seconds);
    let bytes = bytes_of(&checkpoint, weights, &output, &python);
    rows.iter_mut().zip(bytes).for_each(|(row, bytes)| row.bytes = bytes);
    targets(suite, rows[0].outcome.as_ref(), rows[4].outcome.as_ref(), floor);
    suite.report.extend(rows);
    suite.report.notes.push(note(ready.is_some(), suite.options.layers, weights));
    for folder in [output, copy, python] {
        clear(&folder).map_err(anyhow::Error::msg)?;
    }
    Ok(())
}

/// Copies the checkpoint, and the bundle until it is on the disk.
fn copying(checkpoint: &Path, bundle: &Path, to: &Path) -> Command {
    let script = "mkdir \"$3\" && cp -r \"$1\" \"$3/checkpoint\" && for file in \"$2\"/*; do \
                  dd if=\"$file\" of=\"$3/${file##*/}\" bs=4M conv=fsync; done";
    let mut command = Command::new("sh");
    command.args(["-ec", script, "sh"]).args([checkpoint, bundle, to]);
    command
}

/// Bytes of our bundle, of the copies, and of the files of Python's two steps, in the order of the rows.
fn bytes_of(checkpoint: &Path, weights: u64, bundle: &Path, python: &Path) -> [Option<u64>; 4] {
    let all = |folder: &Path| bytes_in(folder, |_| true);
    let of = |begin: &str| Some(bytes_in(python, |name| name.starts_with(begin))).filter(|bytes| *bytes > 0);
    let copied = all(bundle) + all(checkpoint) + weights + all(&checkpoint.join("m3d"));
    [Some(all(bundle)), Some(copied), of("model.onnx"), of("int8.onnx")]
}

/// What the rows were measured with.
fn note(given: bool, layers: usize, weights: u64) -> String {
    let size = if given {
        "the checkpoint given".into()
    } else {
        format!("LLaMA2-7B's geometry with {layers} of 32 blocks, full-size adapter and ViT")
    };
    format!(
        "Conversion: {size} ({:.2} GB of text weights), page cache warm, `sync` before each run; the floor is `cp`, which \
         leaves the copy in the page cache where there is room, and `dd`, which waits for the disk as ours does. Python \
         converts the text alone, in float32, once.",
        weights as f64 / 1e9
    )
}

fn targets(suite: &mut Suite, ours: Result<&Run, &String>, python: Result<&Run, &String>, floor: Option<f64>) {
    let ours = ours.ok();
    let ratio = |pick: fn(&Run) -> f64| Some(pick(python.ok()?) / pick(ours?)).filter(|r| r.is_finite());
    let what = match suite.options.checkpoint {
        Some(_) => "convert the checkpoint given".into(),
        None => format!("convert, {} of 32 blocks", suite.options.layers),
    };
    let report = &mut suite.report;
    report.target(format!("{what}: anonymous peak"), ours.map(|r| r.anon_kib / 1024.0), AtMost(1024.0), "MiB");
    report.target(
        format!("{what}: time against `cp` and `dd`"),
        ours.and_then(|r| Some(r.seconds / floor?)),
        AtMost(2.5),
        "times",
    );
    report.target(
        format!("{what}: Python's anonymous peak against ours"),
        ratio(|r| r.anon_kib),
        AtLeast(10.0),
        "times",
    );
    report.target(format!("{what}: Python's whole peak against ours"), ratio(|r| r.peak_kib), AtLeast(10.0), "times");
}

/// Two steps one after the other.
fn added(a: &Run, b: &Run) -> Run {
    Run {
        seconds: a.seconds + b.seconds,
        peak_kib: a.peak_kib.max(b.peak_kib),
        anon_kib: a.anon_kib.max(b.anon_kib),
        ..Run::default()
    }
}

fn clear(folder: &Path) -> Result<(), String> {
    if !folder.exists() {
        return Ok(());
    }
    std::fs::remove_dir_all(folder).map_err(|e| format!("an old folder stays: {e}"))
}

/// A peer that doesn't fit isn't started: the system might end something else.
pub fn enough_memory(need: f64) -> Result<(), String> {
    let about = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free =
        about.lines().find_map(|l| l.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    match free.map(|kib| kib * 1024.0) {
        Some(free) if free < need => {
            Err(format!("not run: it would need about {:.0} GB, {:.0} GB are free", need / 1e9, free / 1e9))
        }
        _ => Ok(()),
    }
}
