//! Brain-Adapter beside what one would use instead: seconds, memory, sizes, accuracy and the machine's floors, in one
//! run.
//!
//! ```text
//! make bench                                         everything, with the peers; writes docs/benchmarks.md
//! cargo bench --bench suite                          the same, peers from $BA_BENCH_PYTHON
//! cargo bench --bench suite -- text vision           some groups
//! cargo bench --bench suite -- convert --layers 32   the full-size conversion
//! cargo bench --bench suite -- infer --bundle DIR    whole `ba-infer` calls with a bundle that is there already
//! cargo bench --bench suite -- train --size small    training of a tiny model: whether the group runs, in minutes
//! ```
//!
//! Groups: *convert* (fp16 checkpoint → int8 bundle), *text*, *quantizer* (ONNX Runtime's own), *start*, *schemes* (all
//! number formats of the text), *vision*, *adapter*, *scan*, *infer* (whole calls of `ba-infer`), *train* (steps and
//! epochs). The text is LLaMA2-7B's geometry with `--layers` blocks (4), 256 tokens; vision, adapter, scan and training
//! are full-size. `--checkpoint DIR` converts a model folder that is there already, `--bundle DIR` answers with such a
//! bundle, `--size small` trains a tiny model, `--adapter` 2d (the default), 3d, both or none (epochs alone) says which
//! adapter steps are taken with, `--rounds N` (2) how often the short ones run, `--write` puts the tables into
//! docs/benchmarks.md (everything does).
//!
//! Weights are seeded random numbers, different in every layer: ONNX Runtime stores equal weights once, which would
//! flatter it. Every run is a process of its own; ours and the peers' take turns; the shortest time counts and the
//! highest memory. Where a peer is missing, its row says so.

mod convert;
mod document;
mod floors;
mod graphs;
mod image;
mod infer;
mod process;
mod report;
mod scan;
mod schemes;
mod suite;
mod text;
mod train;

use anyhow::{Result, bail};

use document::PAGE;
use suite::{Options, Suite};

type Group = fn(&mut Suite) -> Result<()>;

const GROUPS: [(&str, Group); 10] = [
    ("convert", convert::run),
    ("text", text::passes),
    ("quantizer", text::quantizer),
    ("start", text::start),
    ("schemes", schemes::run),
    ("vision", image::vision),
    ("adapter", image::adapter),
    ("scan", scan::run),
    ("infer", infer::run),
    ("train", train::run),
];

#[allow(clippy::print_stdout)]
fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if arguments.first().is_some_and(|a| a == "--child") {
        return child(&arguments[1..]);
    }
    let (options, chosen) = Options::parse(arguments)?;
    if let Some(name) = chosen.iter().find(|c| GROUPS.iter().all(|g| g.0 != *c)) {
        bail!("no group `{name}`: there are {}", GROUPS.map(|g| g.0).join(", "));
    }
    let all = chosen.is_empty();
    let write = all || options.write;
    let mut suite = Suite::new(options)?;
    floors::run(&mut suite)?;
    let mut failed = Vec::new();
    for (name, run) in GROUPS {
        if all || chosen.iter().any(|c| c == name) {
            // What the others found is not to be lost.
            if let Err(error) = run(&mut suite) {
                failed.push(format!("{name}: {error:#}"));
            }
        }
    }
    suite.report.notes.extend(NOTES.map(str::to_owned));
    let text = format!("{}\n{}", document::circumstances(&suite, &chosen), suite.report.markdown());
    println!("{text}");
    if !failed.is_empty() {
        bail!("{PAGE} stays as it was: {}", failed.join("; "));
    }
    if write {
        document::write(&text)?;
    }
    Ok(())
}

/// What holds for all tables.
const NOTES: [&str; 4] = [
    "Seconds: the best round; of the work alone (without starting, loading and importing) for passes and scans, of the whole \
     process for conversions and calls of `ba-infer`; of a step or an epoch for training. Times ours: against the first row of the same name.",
    "Peak: `VmHWM` of the whole process, pages of mapped files included. Anonymous: the highest `RssAnon` seen, every 10 ms.",
    "Cosine: of the result to float32's on the same input; of the pooled vector, or, where it says so, of the worst token.",
    "Weights are random: cosines say that the arithmetic is right, not what int8 does to a trained model.",
];

/// One measured run, in a process of its own.
fn child(arguments: &[String]) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["graph", path, rest @ ..] => graphs::child(path.as_ref(), rest),
        ["scan", path] => scan::child(path.as_ref()),
        ["scan-unmeasured", path] => scan::unmeasured(path.as_ref()),
        ["inflate", path] => scan::inflate(path.as_ref()),
        ["train-step", artifacts, case, activations] => {
            train::steps::child(artifacts.as_ref(), case.as_ref(), activations)
        }
        ["train-epoch", paths @ ..] => train::epoch::child(paths),
        ["memory"] => floors::memory(),
        ["disk", path] => floors::disk(path.as_ref()),
        _ => bail!("no such child: {arguments:?}"),
    }
}
