//! `ba-infer` as a user calls it: one scan and one report, from the start of the process to its answer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use brain_adapter::text::{Tokenizer, read_report};
use serde_json::Value;

use super::process::{Contender, Outcome, Run, interleaved};
use super::report::Bound::AtMost;
use super::report::{Call, Figure, Report};
use super::suite::{Suite, blocks, bytes_in, root, row, succeed};

const HASHED: &str = "one-shot, weights hashed beside";
const REMEMBERED: &str = "one-shot, hashing remembered";
const RESIDENT: &str = "resident, hashing remembered";
const CACHED: &str = "features of both in the cache";
const FULL_BLOCKS: usize = 32;
/// What a full-size bundle is limited to, and a smaller one: this share of its weights.
const FULL_LIMIT: u64 = 4 << 30;
const SHARE: f64 = 0.6;
/// A segment is the least that is loaded: planned for the language model's largest are 645 MB, for the adapter 466.
const LEAST: u64 = 640 * MIB;
/// How old files must be, and some room.
const SETTLED: Duration = Duration::from_secs(3);
const MIB: u64 = 1 << 20;

/// One way to call it: a row.
struct Way {
    name: String,
    options: Vec<String>,
    cache: Option<Cache>,
}

#[derive(Clone, Copy, PartialEq)]
enum Cache {
    /// Of what was hashed; features are deleted before each run.
    Hashing,
    /// Of features too.
    Features,
}

pub fn run(suite: &mut Suite) -> Result<()> {
    let ready = suite.options.bundle.clone();
    let bundle = match &ready {
        Some(folder) => folder.canonicalize().with_context(|| format!("{} cannot be opened", folder.display()))?,
        None => suite.bundle(Some(suite.run_layers()), "int8")?,
    };
    let Described { layers, tokens, schemes } = described(&bundle)?;
    let weights = bytes_in(&bundle, |name| name.ends_with(".onnx.data"));
    let share = ((weights as f64 * SHARE) as u64 / MIB * MIB).max(LEAST);
    let limit = if layers == FULL_BLOCKS { FULL_LIMIT } else { share };
    let limited = format!("--max-memory {}", size(limit));
    let cold = suite.path("infer-hashing");
    let warm = suite.path("infer-features");
    if ready.is_none() {
        // The hashing of files that were just written isn't remembered.
        std::thread::sleep(SETTLED);
    }
    // Fills the cache, and brings all files into the page cache.
    succeed(&mut call(&bundle, &[], Some(&warm)))?;
    copy_folder(&warm.join("verified"), &cold.join("verified"))?;

    let ways = ways(&limited);
    let rounds = suite.options.rounds;
    let contenders = ways.iter().map(|way| {
        let (bundle, cold, warm) = (&bundle, &cold, &warm);
        Contender::new(&way.name, rounds, move || {
            let cache = match way.cache {
                None => None,
                Some(Cache::Features) => Some(warm.as_path()),
                Some(Cache::Hashing) => {
                    clear(&cold.join("features"))?;
                    Some(cold.as_path())
                }
            };
            Ok(call(bundle, &way.options, cache))
        })
    });
    let outcomes = interleaved(contenders.collect(), &|| ());
    let what = format!("`ba-infer`, a scan and a report, {}, {tokens} tokens", blocks(layers));
    let rows: Vec<Figure> = ways
        .iter()
        .zip(outcomes)
        .map(|(way, outcome)| Figure {
            bytes: Some(weights),
            ..row(&what, &way.name, outcome.and_then(|r| way.check(r)))
        })
        .collect();
    suite.report.calls.extend(rows.iter().filter_map(|row| Some(told(&row.with, row.outcome.as_ref().ok()?))));
    suite.report.extend(rows);
    targets(&mut suite.report, &what, layers, &limited, limit);
    let share = format!(" ({:.0} % of the weights)", 100.0 * limit as f64 / weights as f64);
    suite.report.notes.push(note(&schemes, &format!("`{limited}`{share}"), ready.is_some()));
    for folder in [cold, warm] {
        clear(&folder).map_err(anyhow::Error::msg)?;
    }
    Ok(())
}

/// What the rows were measured with; `limit` is the limit of those that name one.
fn note(schemes: &str, limit: &str, given: bool) -> String {
    let bundle =
        if given { "the bundle given" } else { "the bundle that `ba-export --quantize int8` makes without data" };
    format!(
        "`ba-infer`: the demo's scan and report, {bundle} (matrices of the language model: {schemes}), page cache warm; \
         seconds of the whole process. {limit} where a limit is named, else what the machine has left. Passes: \
         `adapter`, `vision`, `text` and `heads` of its `timing_ms`; overhead: all other time of the same run, among it loading graphs, reading the scan and waiting for hashes. Hashing \
         beside takes a core from the passes, which makes these longer: *over the best passes* compares with the shortest \
         of all rows."
    )
}

/// All rows; those with a limit come right after what they are compared with.
fn ways(limited: &str) -> Vec<Way> {
    let limit: Vec<String> = limited.split(' ').map(str::to_owned).collect();
    let mode = |mode: &str| vec!["--mode".to_owned(), mode.to_owned()];
    let way = |name: String, options: Vec<String>, cache| Way { name, options, cache };
    let both = [mode("one-shot"), limit].concat();
    vec![
        way(HASHED.into(), mode("one-shot"), None),
        way(limits(HASHED, limited), both.clone(), None),
        way(REMEMBERED.into(), mode("one-shot"), Some(Cache::Hashing)),
        way(limits(REMEMBERED, limited), both, Some(Cache::Hashing)),
        way(RESIDENT.into(), mode("resident"), Some(Cache::Hashing)),
        way(CACHED.into(), mode("one-shot"), Some(Cache::Features)),
    ]
}

/// How the row of the same way under a limit is called.
fn limits(name: &str, limited: &str) -> String {
    format!("`{limited}`, {name}")
}

impl Way {
    fn limited(&self) -> bool {
        self.options.iter().any(|option| option == "--max-memory")
    }

    /// The run, if it went as its row says.
    fn check(&self, run: Run) -> Outcome {
        let about = &run.told["run"];
        let from_cache = about["from_cache"].as_array().map_or(0, Vec::len);
        let stages = about["stages"].as_array().into_iter().flatten();
        let grouped = stages.filter(|stage| stage["part"] == "text").any(|stage| stage["groups"].as_u64() > Some(1));
        let wrong = match self.cache {
            _ if self.limited() && !grouped => "the limit forced no groups",
            None if about["weights"] != "hashed" => "its weights were not hashed",
            Some(Cache::Hashing) if about["weights"] != "unchanged since hashed" => "its weights were hashed again",
            Some(Cache::Features) if from_cache != 2 => "not both features came from the cache",
            None | Some(Cache::Hashing) if from_cache != 0 => "features came from the cache",
            _ => return Ok(run),
        };
        Err(format!("not what was to be measured: {wrong}"))
    }
}

/// `ba-infer` on the demo's scan and report.
fn call(bundle: &Path, options: &[String], cache: Option<&Path>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ba-infer"));
    let [scan, report] = demo();
    command.current_dir(root()).args(["--quiet", "--json"]).arg(scan).arg("--report").arg(report);
    command.arg("--bundle").arg(bundle).args(options);
    if let Some(cache) = cache {
        command.arg("--cache").arg(cache);
    }
    command
}

fn demo() -> [PathBuf; 2] {
    ["mni152_t1.nii.gz", "report.txt"].map(|name| root().join("examples/demo").join(name))
}

/// What the figures depend on.
struct Described {
    /// Blocks of the language model.
    layers: usize,
    /// Of the demo's report.
    tokens: usize,
    /// Number formats of the language model's matrices, and how many have each: those that aren't plain int8 are laid
    /// out anew or widened at each loading.
    schemes: String,
}

fn described(bundle: &Path) -> Result<Described> {
    let manifest: Value = serde_json::from_slice(&std::fs::read(bundle.join("bundle.json"))?)?;
    let number = |path: &str| {
        let value = manifest.pointer(path).and_then(Value::as_u64);
        value.with_context(|| format!("bundle.json has no number at {path}"))
    };
    let (layers, hidden) = (number("/text_model/layers")?, number("/text_model/hidden")?);
    ensure!(hidden == 4096, "the bundle's language model has not LLaMA2-7B's geometry: a width of {hidden}");
    let file = manifest.pointer("/tokenizer/file").and_then(Value::as_str).context("bundle.json names no tokenizer")?;
    let tokenizer = Tokenizer::load(&bundle.join(file), number("/tokenizer/bos")?.try_into()?)?;
    let most = number("/tokenizer/max_tokens")?.try_into()?;
    let [_, report] = demo();
    let tokens = tokenizer.encode(&read_report(&report)?, most)?.ids.len();
    let quantized = manifest.pointer("/quantization/layers").and_then(Value::as_array).into_iter().flatten();
    let mut schemes: BTreeMap<&str, usize> = BTreeMap::new();
    for layer in quantized.filter(|layer| layer["part"] == "text") {
        *schemes.entry(layer["scheme"]["scheme"].as_str().unwrap_or("unknown")).or_default() += 1;
    }
    let schemes: Vec<String> = schemes.iter().map(|(scheme, n)| format!("{n} {scheme}")).collect();
    Ok(Described { layers: layers.try_into()?, tokens, schemes: schemes.join(", ") })
}

/// What a run says of itself.
fn told(name: &str, run: &Run) -> Call {
    let milliseconds = |stage: &str| run.told["timing_ms"][stage].as_f64().unwrap_or(0.0);
    let stages = run.told["run"]["stages"].as_array().into_iter().flatten();
    Call {
        with: name.into(),
        seconds: run.seconds,
        passes: ["adapter", "vision", "text", "heads"].map(milliseconds).iter().sum::<f64>() / 1e3,
        loading: milliseconds("load") / 1e3,
        waiting: milliseconds("verify") / 1e3,
        started: run.told["run"]["started_ms"].as_f64().map(|ms| ms / 1e3),
        groups: stages.filter_map(|stage| Some(format!("{} {}", stage["part"].as_str()?, stage["groups"]))).collect(),
        from_cache: run.told["run"]["from_cache"].as_array().is_some_and(|parts| !parts.is_empty()),
    }
}

fn targets(report: &mut Report, what: &str, layers: usize, limited: &str, limit: u64) {
    let of = format!("{layers} of {FULL_BLOCKS} blocks");
    let call = |name: &str| report.calls.iter().find(|call| call.with == name);
    let ratio = |name: &str| Some(report.seconds(what, &limits(name, limited))? / report.seconds(what, name)?);
    let peak = |name: &str| report.peak_mb(what, &limits(name, limited)).map(|mb| mb * 1e6 / MIB as f64);
    let full = layers == FULL_BLOCKS;
    let mut found = Vec::new();
    for name in [HASHED, REMEMBERED] {
        let overhead = call(name).and_then(Call::overhead);
        found.push((
            format!("one scan and report, {of}, {name}: overhead beyond the model passes"),
            overhead,
            5.0,
            "%",
        ));
    }
    // Hashing beside slows the passes of its own run down, which would hide what it costs.
    let undisturbed = call(HASHED).zip(call(REMEMBERED)).map(|(a, b)| 100.0 * (a.seconds / b.passes - 1.0));
    found.push((format!("the same, {HASHED}: beyond the passes of `{REMEMBERED}`"), undisturbed, 5.0, "%"));
    for name in [HASHED, REMEMBERED] {
        let label = format!("`{limited}`, {of}, {name}");
        found.push((format!("{label}: peak"), peak(name), (limit / MIB) as f64, "MiB"));
        found.push((format!("{label}: time against unlimited"), ratio(name), 2.0, "times"));
    }
    for name in [HASHED, REMEMBERED].into_iter().filter(|_| full) {
        let label = format!("start, {of}, {name}");
        found.push((format!("{label}: before the first graph runs"), call(name).and_then(|c| c.started), 1.5, "s"));
        found.push((format!("{label}: anonymous, of the whole run"), report.anon_mb(what, name), 500.0, "MB"));
    }
    if !full {
        let overhead = "one scan and report, full size: overhead beyond the model passes";
        found.push((overhead.into(), None, 5.0, "%"));
        found.push(("`--max-memory 4G`, full size: peak".into(), None, 4096.0, "MiB"));
        found.push(("`--max-memory 4G`, full size: time against unlimited".into(), None, 2.0, "times"));
    }
    for (label, value, most, unit) in found {
        report.target(label, value, AtMost(most), unit);
    }
}

/// Bytes as `--max-memory` takes them.
fn size(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 30) { format!("{}G", bytes >> 30) } else { format!("{}M", bytes / MIB) }
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).context("`ba-infer --cache` remembered no hashing")? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

fn clear(folder: &Path) -> Result<(), String> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("an old folder stays: {e}")),
        _ => Ok(()),
    }
}
