//! The language model: its pass, ONNX Runtime's own quantizer, and the time to a first result.

use std::path::PathBuf;

use anyhow::Result;

use super::convert::enough_memory;
use super::floors::{self, operations};
use super::graphs::{TOKENS, least_cosine};
use super::process::{Contender, Outcome, measure, progress};
use super::report::Bound::{AtLeast, AtMost};
use super::report::Floor;
use super::suite::{Suite, blocks, bytes_in, compare, export};

const OURS: &str = "ours int8";
const OURS_FP32: &str = "ours fp32";
const LLAMA_CPP: &str = "llama.cpp Q8_0";
/// Times a float32 graph's bytes that `quantize_dynamic` holds in memory: 3.6 measured at one layer, and some room.
const QUANTIZER_HOLDS: f64 = 4.0;

/// 256 tokens through the layers.
pub fn passes(suite: &mut Suite) -> Result<()> {
    let what = format!("text pass, {}", size(suite));
    let [int8, fp32] = bundles(suite)?;
    let gguf = gguf(suite);
    let (rounds, tokens, layers) = (suite.options.rounds, TOKENS.to_string(), suite.run_layers().to_string());
    let torch = |dtype: &str| suite.peer("torch_text.py", &[dtype, &tokens, &layers]);
    let mut contenders = vec![
        Contender::new(OURS, rounds, || suite.graph(&int8, &["save:text"])),
        Contender::new(OURS_FP32, rounds, || suite.graph(&fp32, &["save:text"])),
        Contender::new("PyTorch bf16", rounds, || torch("bf16")),
        Contender::new("PyTorch fp32", rounds, || torch("fp32")),
        Contender::new(LLAMA_CPP, rounds, || {
            gguf.clone().and_then(|path| suite.peer("llama_prefill.py", &["run", &path.to_string_lossy(), &tokens]))
        }),
    ];
    contenders.extend(floors::again(suite));
    let mut rows = compare(&what, contenders);
    floors::absorb(suite, &mut rows);
    suite.report.extend(rows);
    let operations = operations(suite.run_layers());
    let (int8_floor, fp32_floor) = (Floor::Products([0.0, operations]), Floor::Products([operations, 0.0]));
    let cosine = least_cosine(&int8, &fp32, None);
    suite.amend(&what, OURS, |f| (f.bytes, f.cosine, f.floor) = (data_bytes(&int8), cosine, Some(int8_floor)));
    suite.amend(&what, OURS_FP32, |f| (f.bytes, f.floor) = (data_bytes(&fp32), Some(fp32_floor)));
    suite.amend(&what, "PyTorch fp32", |f| f.floor = Some(fp32_floor));
    let bytes = gguf.ok().and_then(|path| std::fs::metadata(path).ok()).map(|m| m.len());
    suite.amend(&what, LLAMA_CPP, |f| (f.bytes, f.floor) = (bytes, Some(int8_floor)));
    let of = format!("{} of 32 blocks", suite.run_layers());
    let found = ["PyTorch bf16", LLAMA_CPP].map(|peer| suite.report.speedup(&what, OURS, peer));
    suite.report.target(format!("text int8, {of}: against PyTorch bf16"), found[0], AtLeast(1.6), "times as fast");
    suite.report.target(
        format!("text int8, {of}: against llama.cpp Q8_0 prefill"),
        found[1],
        AtLeast(2.5),
        "times as fast",
    );
    suite.report.notes.push(format!(
        "Text: {} and nothing extrapolated. llama.cpp runs as many, with a vocabulary of 512 and the logits of the last \
         token alone, one thread a core, flash attention as it chooses; ours and PyTorch end at the last hidden states. Ours \
         is made by `ba-export` without data.",
        blocks(suite.run_layers())
    ));
    Ok(())
}

/// What `quantize_dynamic` makes of our float32 graph.
pub fn quantizer(suite: &mut Suite) -> Result<()> {
    let size = size(suite);
    let [int8, fp32] = bundles(suite)?;
    let (made, theirs) = (suite.path("requantized"), suite.path("dynamic"));
    let (checkpoint, nothing) = (suite.checkpoint(Some(suite.run_layers()))?, suite.path("nothing"));
    let graph = theirs.join("int8.onnx");
    let quantizing = format!("quantizing, {size}");
    let rows = compare(
        &quantizing,
        vec![
            Contender::new("ours, the whole `ba-export`", 1, || Ok(export(&checkpoint, "int8", &nothing, &made))),
            Contender::new("ONNX Runtime `quantize_dynamic`", 1, || {
                enough_memory(data_bytes(&fp32).unwrap_or(0) as f64 * QUANTIZER_HOLDS)?;
                suite.peer("onnx_export.py", &["quantize", &fp32.to_string_lossy(), &theirs.to_string_lossy()])
            }),
        ],
    );
    suite.report.extend(rows);
    let running = format!("quantized text pass, {size}");
    let rounds = suite.options.rounds;
    let rows = compare(
        &running,
        vec![
            Contender::new(OURS, rounds, || suite.graph(&int8, &["save:text"])),
            Contender::new("ONNX Runtime `quantize_dynamic`", rounds, || suite.graph(&graph, &["save:text"])),
            Contender::new(OURS_FP32, 1, || suite.graph(&fp32, &["save:text"])),
        ],
    );
    suite.report.extend(rows);
    let floor = Some(Floor::Products([0.0, operations(suite.run_layers())]));
    for (with, path) in [(OURS, &int8), ("ONNX Runtime `quantize_dynamic`", &graph)] {
        let cosine = least_cosine(path, &fp32, None);
        suite.amend(&running, with, |f| (f.bytes, f.cosine, f.floor) = (data_bytes(path), cosine, floor));
    }
    suite.amend(&running, OURS_FP32, |f| f.bytes = data_bytes(&fp32));
    for folder in [made, theirs] {
        // There is none where the step failed.
        let _ = std::fs::remove_dir_all(folder);
    }
    Ok(())
}

/// From the start of a process to its first text vector.
pub fn start(suite: &mut Suite) -> Result<()> {
    let what = format!("start to first result, {}", size(suite));
    let [int8, _] = bundles(suite)?;
    let gguf = gguf(suite);
    let (rounds, tokens) = (suite.options.rounds, TOKENS.to_string());
    let one_shot = "ours int8, one-shot (weights stay mapped)";
    let contenders = vec![
        Contender::new(one_shot, rounds, || suite.graph(&int8, &["once", "unpacked"])),
        Contender::new("ours int8, resident (prepacked)", rounds, || suite.graph(&int8, &["once"])),
        Contender::new(LLAMA_CPP, rounds, || {
            gguf.clone()
                .and_then(|path| suite.peer("llama_prefill.py", &["run", &path.to_string_lossy(), &tokens, "load"]))
        }),
    ];
    let rows = compare(&what, contenders);
    let loaded = rows[0].outcome.as_ref().ok().and_then(|run| run.number("load"));
    suite.report.extend(rows);
    let of = format!("({} of 32 blocks)", suite.run_layers());
    let anon = suite.report.anon_mb(&what, one_shot);
    suite.report.target(format!("one-shot start {of}: before the first layer runs"), loaded, AtMost(1.5), "s");
    suite.report.target(format!("one-shot start {of}: anonymous"), anon, AtMost(500.0), "MB");
    suite
        .report
        .notes
        .push("Start: page cache warm; llama.cpp without Python's start and imports, the model mapped.".into());
    Ok(())
}

fn size(suite: &Suite) -> String {
    format!("{}, {TOKENS} tokens", blocks(suite.run_layers()))
}

/// The text graphs in int8 and float32.
fn bundles(suite: &Suite) -> Result<[PathBuf; 2]> {
    let layers = Some(suite.run_layers());
    Ok([suite.bundle(layers, "int8")?.join("text.onnx"), suite.bundle(layers, "fp32")?.join("text.onnx")])
}

/// Bytes of a graph and its data.
fn data_bytes(graph: &std::path::Path) -> Option<u64> {
    let name = graph.file_name()?.to_string_lossy().into_owned();
    Some(bytes_in(graph.parent()?, |file| file.starts_with(&name))).filter(|bytes| *bytes > 0)
}

/// The same geometry in llama.cpp's format.
fn gguf(suite: &Suite) -> Result<PathBuf, String> {
    let path = suite.path("random.gguf");
    if !path.exists() {
        progress("writing a GGUF of random weights");
        let arguments = ["write", &path.to_string_lossy(), &suite.run_layers().to_string()];
        let written: Outcome = suite.peer("llama_prefill.py", &arguments).and_then(|mut c| measure(&mut c));
        written?;
    }
    Ok(path)
}
