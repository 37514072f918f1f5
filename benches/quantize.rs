//! Seconds, peak memory, size and accuracy of reduced precision, side by side with float32.
//!
//! ```text
//! cargo bench --bench quantize [-- text | vision | adapter]
//! BA_PYTHON=/path/to/python cargo bench --bench quantize       # beside PyTorch's bf16, and its integer product
//! ```
//!
//! *text*: four layers of LLaMA2-7B's geometry, 256 tokens. *vision*: the full ViT over 4097 tokens. *adapter*: 256³ voxels.
//! Weights are seeded random numbers, different in every layer (ONNX Runtime stores equal weights once, which would
//! flatter it). Every run is a process of its own; rounds are interleaved, the best counts. The *floor* of the text is what
//! the bare integer products of the same shapes take in the same run.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use brain_adapter::bundle::{Bundle, Precision};
use brain_adapter::checkpoint::Checkpoint;
use brain_adapter::config::{Config, LlamaConfig, TextPool};
use brain_adapter::export::{self, Plan, Sources};
use brain_adapter::graph::{Builder, Dim, Graph, Op};
use brain_adapter::model::{self, Attention, Stages, Weights, keys};
use brain_adapter::passes::quantize::{self, Scheme, quantize};
use brain_adapter::passes::{half, linears};
use brain_adapter::progress::Silent;
use brain_adapter::runtime::{Runtime, Session, SessionOptions};
use brain_adapter::tensor::{DType, LazyTensor, Tensor, cosine};
use brain_adapter::{calibrate, onnx};
use support::{best, checkpoint, measure, peak_kib, random, run};

const ROUNDS: usize = 3;
const TOKENS: usize = 256;
const LAYERS: usize = 4;
const CHILD: &str = "BA_BENCH_GRAPH";

/// The schemes of the text, by the names of their graphs.
const SCHEMES: [(&str, Scheme); 5] = [
    ("int8", Scheme::INT8),
    ("int8-32", Scheme::Blocks { bits: 8, block: 32 }),
    ("int4-64", Scheme::Blocks { bits: 4, block: 64 }),
    ("int4-32", Scheme::Blocks { bits: 4, block: 32 }),
    ("fp16", Scheme::Fp16),
];

type Runs = Vec<(f64, f64)>;

fn main() {
    if let Some(graph) = std::env::var_os(CHILD) {
        return child(Path::new(&graph));
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let chosen: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| chosen.is_empty() || chosen.iter().any(|c| c == name);
    if wanted("text") {
        text(folder.path());
    }
    if wanted("vision") || wanted("adapter") {
        image(folder.path(), wanted("vision"), wanted("adapter"));
    }
}

fn llama() -> LlamaConfig {
    LlamaConfig {
        vocab: 512,
        hidden: 4096,
        mlp: 11008,
        layers: LAYERS,
        heads: 32,
        kv_heads: 32,
        head_dim: 128,
        rms_eps: 1e-5,
        rope_theta: 1e4,
    }
}

/// Writes the language model in all schemes and measures them in turn.
fn text(folder: &Path) {
    let config = llama();
    let file = folder.join("llama.safetensors");
    random(&file, keys::text(&config), 5);
    let weights: Weights =
        Checkpoint::open(&file).expect("opens").iter().map(|(n, t)| (n.to_owned(), t.clone())).collect();
    let fp32 = model::llama::build(&config, TextPool::Mean, &weights, Stages::All).expect("builds");
    write(&fp32, folder, "fp32");
    let names: Vec<String> = linears(&fp32, 0..fp32.nodes.len()).into_iter().map(|l| l.name).collect();
    for (name, scheme) in SCHEMES {
        let graph = match scheme {
            Scheme::Fp16 => half(&fp32, &Default::default()),
            _ => quantize(&fp32, &plan(names.iter().map(|n| (n.clone(), scheme)))),
        };
        write(&graph.expect("quantizes"), folder, name);
    }
    write(&floor(&config), folder, "floor");
    drop(weights);
    std::fs::remove_file(&file).expect("removed");
    let mut runs: BTreeMap<&str, Runs> = BTreeMap::new();
    let graphs = ["fp32"].into_iter().chain(SCHEMES.iter().map(|s| s.0)).chain(["floor"]);
    for _ in 0..ROUNDS {
        for name in graphs.clone() {
            runs.entry(name).or_default().extend(child_run(folder, name));
        }
        for name in ["bf16", "int_mm"] {
            runs.entry(name).or_default().extend(torch(&[name, &TOKENS.to_string(), &LAYERS.to_string()]));
        }
    }
    let seconds = |name: &str| runs[name].iter().map(|r| r.0).fold(f64::INFINITY, f64::min);
    let base = size(folder, "fp32");
    println!("\n{LAYERS} layers of 7B geometry, {TOKENS} tokens");
    println!("{:<9} {:>24} {:>9} {:>11} {:>11}", "scheme", "", "to fp32", "size", "min cosine");
    for name in graphs.filter(|n| *n != "floor") {
        let ratio = seconds("fp32") / seconds(name);
        let share = size(folder, name) / base;
        let least = tokens_cosine(folder, name);
        println!("{name:<9} {:>24} {ratio:>8.2}x {share:>11.4} {least:>11.5}", best(&runs[name]));
    }
    let floor = seconds("floor").min(seconds("int_mm"));
    for (name, what) in [("floor", "MatMulInteger alone"), ("int_mm", "torch._int_mm alone"), ("bf16", "PyTorch bf16")]
    {
        println!("{name:<9} {:>24}   {what}", best(&runs[name]));
    }
    println!("int8: {:.2} times the floor (target 1.2)", seconds("int8") / floor);
    println!("int8: {:.2} times as fast as fp32 (target 3.2)", seconds("fp32") / seconds("int8"));
    if seconds("bf16").is_finite() {
        println!("int8: {:.2} times as fast as PyTorch bf16 (target 1.6)", seconds("bf16") / seconds("int8"));
    }
}

fn plan(schemes: impl Iterator<Item = (String, Scheme)>) -> quantize::Plan {
    quantize::Plan { schemes: schemes.collect(), tables: Some(DType::F16), ..Default::default() }
}

/// The integer products of the layers, and nothing else.
fn floor(config: &LlamaConfig) -> Graph {
    let mut g = Builder::new("floor");
    let rows = Dim::Symbol("tokens");
    let (h, m) = (config.hidden, config.mlp);
    let zero = g.weight("zero", LazyTensor::new(DType::U8, vec![], Arc::new(vec![128])));
    let one = g.scalar(1.0);
    let inputs = [h, m].map(|k| {
        let x = g.input(&format!("x{k}"), DType::F32, &[rows, Dim::Known(k)]);
        (k, g.node(Op::new("QuantizeLinear"), &[Some(x), Some(one), Some(zero)]).expect("fits"))
    });
    for layer in 0..LAYERS {
        for (i, (k, n)) in [(h, h), (h, h), (h, h), (h, h), (h, m), (h, m), (m, h)].into_iter().enumerate() {
            let x = inputs.iter().find(|(width, _)| *width == k).expect("an input of each width").1;
            let seed = (layer * 7 + i) as u8;
            let bytes: Vec<u8> =
                (0..k * n).map(|j| (j as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ seed).collect();
            let w = g.weight(&format!("w{layer}.{i}"), LazyTensor::new(DType::I8, vec![k, n], Arc::new(bytes)));
            let y = g.node(Op::new("MatMulInteger"), &[Some(x), Some(w), Some(zero)]).expect("fits");
            // One number of each result, so that none is dropped and none is copied out.
            let y = g.slice(y, 1, 0, 1).expect("fits");
            let y = g.cast(y, DType::F32).expect("fits");
            g.output(&format!("y{layer}.{i}"), y).expect("named");
        }
    }
    g.finish().expect("a graph")
}

/// The adapter and the ViT, exported in float32 and int8 with the demo's scan to calibrate on.
fn image(folder: &Path, vision: bool, adapter: bool) {
    checkpoint(&folder.join("checkpoints"));
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo");
    let calibration = folder.join("calibration");
    std::fs::create_dir_all(&calibration).expect("a folder");
    std::fs::copy(demo.join("mni152_t1.nii.gz"), calibration.join("scan.nii.gz")).expect("copied");
    for precision in [Precision::Fp32, Precision::Int8] {
        let sources = Sources::in_folder(&folder.join("checkpoints")).expect("a model folder");
        let calibration = (precision == Precision::Int8).then(|| calibration.clone());
        let plan = Plan { precision, calibration, ..Plan::new(sources, folder.join(precision.name())) };
        export::run(&plan, &mut Silent).expect("exports");
    }
    let parts = [("adapter", adapter), ("vision", vision)].into_iter().filter(|(_, wanted)| *wanted);
    for (part, _) in parts {
        let mut runs: BTreeMap<&str, Runs> = BTreeMap::new();
        for _ in 0..ROUNDS {
            for precision in ["fp32", "int8"] {
                runs.entry(precision).or_default().extend(child_run(&folder.join(precision), part));
            }
        }
        let seconds = |name: &str| runs[name].iter().map(|r| r.0).fold(f64::INFINITY, f64::min);
        println!("\n{part}, full size");
        for precision in ["fp32", "int8"] {
            println!("{precision:<9} {:>24}", best(&runs[precision]));
        }
        let target = if part == "vision" { 1.4 } else { 2.0 };
        println!("int8: {:.2} times as fast as fp32 (target {target})", seconds("fp32") / seconds("int8"));
    }
    let bundle = Bundle::open(&folder.join("int8")).expect("a bundle");
    let record = bundle.manifest.quantization.as_ref().expect("a reduced bundle");
    let adapter = &record.layers[0];
    println!("adapter in the bundle: {}, error {:?}, before {:?}", adapter.scheme, adapter.error, adapter.first);
    if vision {
        every_token(folder, &bundle);
    }
}

/// Runs the ViT with all tokens as outputs, in float32 and as the bundle has it, on the adapter's map of the demo's scan.
fn every_token(folder: &Path, bundle: &Bundle) {
    let record = bundle.manifest.quantization.as_ref().expect("a reduced bundle");
    let layers = || record.layers.iter().filter(|l| l.part == "vision");
    assert!(layers().all(|l| !l.smoothed), "a smoothed layer cannot be rebuilt from its record");
    let weights: Weights = Checkpoint::open(folder.join("checkpoints/m3d"))
        .expect("opens")
        .iter()
        .map(|(n, t)| (n.to_owned(), t.clone()))
        .collect();
    let config = Config::load(&folder.join("checkpoints/config.json")).expect("a configuration");
    let fp32 = model::vit::build(&config, &weights, Attention::Fused, Stages::All).expect("builds");
    let int8 = quantize(&fp32, &plan(layers().map(|l| (l.layer.clone(), l.scheme)))).expect("quantizes");
    write(&fp32, folder, "tokens-fp32");
    write(&int8, folder, "tokens-int8");
    let x = support::noise(&[1, 64, 256, 256]);
    let tokens = ["tokens-fp32", "tokens-int8"].map(|name| {
        let mut session = open(&folder.join(format!("{name}.onnx")));
        let outputs = session.run(&[("adapter", &x)], &["vision_tokens"]).expect("runs");
        outputs.into_iter().next().expect("tokens")
    });
    let [Tensor::F32(expected), Tensor::F32(found)] = &tokens else { panic!("tokens are floats") };
    let all = calibrate::fidelity_of(found, expected).expect("one shape");
    println!("vision: least cosine of a token {:.5} (target 0.9995), relative error {:.4}", all.cosine, all.error);
}

fn write(graph: &Graph, folder: &Path, name: &str) {
    onnx::write(graph, folder, name, &mut |_| {}).expect("written");
}

fn open(path: &Path) -> Session {
    Session::open(Runtime::load(None).expect("ONNX Runtime"), path, &SessionOptions::default()).expect("a session")
}

/// Bytes of the layers' weights: all that is large enough for the data file.
fn size(folder: &Path, name: &str) -> f64 {
    std::fs::metadata(folder.join(format!("{name}.onnx.data"))).expect("written").len() as f64
}

/// Runs a graph in a process of its own.
fn child_run(folder: &Path, name: &str) -> Option<(f64, f64)> {
    let exe = std::env::current_exe().expect("own path");
    measure(Command::new(exe).env(CHILD, folder.join(format!("{name}.onnx"))))
}

fn torch(arguments: &[&str]) -> Option<(f64, f64)> {
    let python = std::env::var_os("BA_PYTHON")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/torch_quantize.py");
    measure(Command::new(python).arg(script).args(arguments))
}

fn child(graph: &Path) {
    let stem = graph.file_stem().expect("a name").to_string_lossy().into_owned();
    let seconds = match stem.as_str() {
        "adapter" => run(graph, ("volume", &[1, 256, 256, 256]), "adapter"),
        "vision" => run(graph, ("adapter", &[1, 64, 256, 256]), "vision"),
        _ => layers(graph, &stem),
    };
    println!("{seconds} {}", peak_kib());
}

/// The language model's layers, or their floor; the hidden states go to a file for comparison.
fn layers(graph: &Path, stem: &str) -> f64 {
    let mut session = open(graph);
    let ids = (0..TOKENS as i64).map(|i| (i * 37) % 512).collect();
    let ids = Tensor::i64(&[1, TOKENS], ids).expect("ids");
    let mask = Tensor::i64(&[1, TOKENS], vec![1; TOKENS]).expect("a mask");
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let start = std::time::Instant::now();
        if stem == "floor" {
            let x = [4096, 11008].map(|k| (format!("x{k}"), support::noise(&[TOKENS, k])));
            let feed: Vec<(&str, &Tensor)> = x.iter().map(|(n, t)| (n.as_str(), t)).collect();
            let outputs = session.outputs();
            let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
            let start = std::time::Instant::now();
            session.run(&feed, &outputs).expect("runs");
            best = best.min(start.elapsed().as_secs_f64());
            continue;
        }
        let out = session.run(&[("input_ids", &ids), ("attention_mask", &mask)], &["text_hidden"]).expect("runs");
        best = best.min(start.elapsed().as_secs_f64());
        let bytes: Vec<u8> = out[0].as_f32().expect("floats").iter().flat_map(|v| v.to_le_bytes()).collect();
        std::fs::write(graph.with_extension("hidden"), bytes).expect("written");
    }
    best
}

/// The least cosine of a token's hidden state to float32's.
fn tokens_cosine(folder: &Path, name: &str) -> f64 {
    let read = |name: &str| -> Vec<f32> {
        let bytes = std::fs::read(folder.join(format!("{name}.hidden"))).expect("written by the child");
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let (found, expected) = (read(name), read("fp32"));
    let rows = found.chunks(4096).zip(expected.chunks(4096));
    rows.map(|(f, e)| cosine(f.iter().copied(), e.iter().copied())).fold(1.0, f64::min)
}
