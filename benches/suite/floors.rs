//! What the machine gives at most: rates of bare products, of memory and of the disk.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use brain_adapter::graph::{Builder, Dim, Graph, Op};
use brain_adapter::tensor::{DType, LazyTensor};
use serde_json::json;

use super::graphs::{self, TOKENS};
use super::process::{Contender, Outcome, interleaved, report as tell};
use super::report::{Figure, PRODUCTS, Rate};
use super::suite::Suite;

/// Hidden size and that of the MLP of LLaMA2-7B.
pub const GEOMETRY: (usize, usize) = (4096, 11008);
/// Layers whose products are measured: more than caches hold.
const LAYERS: usize = 1;
/// Who gives the rates that are looked at again.
const RUNTIME: [&str; 2] = ["ONNX Runtime `MatMul`", "ONNX Runtime `MatMulInteger`"];
/// Bytes of the memory's and the disk's floor.
const LARGE: usize = 1 << 30;

/// Shapes of a decoder layer's products.
fn products() -> [(usize, usize); 7] {
    let (h, m) = GEOMETRY;
    [(h, h), (h, h), (h, h), (h, h), (h, m), (h, m), (m, h)]
}

/// Operations of the products of so many decoder layers over all tokens.
pub fn operations(layers: usize) -> f64 {
    let layer: f64 = products().iter().map(|(k, n)| (k * n) as f64).sum();
    2.0 * TOKENS as f64 * layer * layers as f64
}

/// Measures all rates.
pub fn run(suite: &mut Suite) -> Result<()> {
    for name in ["fp32", "int8"] {
        graphs::write(&bare_products(name == "int8")?, &suite.path(""), &format!("floor-{name}"))?;
    }
    let rounds = suite.options.rounds;
    let (tokens, layers) = (TOKENS.to_string(), LAYERS.to_string());
    let ours = |name: &str| suite.graph(&suite.path(&format!("floor-{name}.onnx")), &[]);
    let torch = |what: &str| suite.peer("torch_text.py", &[what, &tokens, &layers]);
    let disk = suite.path("disk");
    let contenders = vec![
        Contender::new("fp32 products, ONNX Runtime", rounds, || ours("fp32")),
        Contender::new("fp32 products, PyTorch", rounds, || torch("gemm")),
        Contender::new("int8 products, ONNX Runtime", rounds, || ours("int8")),
        Contender::new("int8 products, PyTorch", rounds, || torch("int_mm")),
        Contender::new("memory", rounds, || suite.child(&["memory"])),
        Contender::new("disk", 2, || suite.child(&["disk", &disk.to_string_lossy()])),
    ];
    let outcomes = interleaved(contenders, &|| ());
    let rate = |run: &Outcome| run.clone().map(|run| operations(LAYERS) / run.seconds / 1e9);
    let told = |run: &Outcome, key: &str| {
        run.clone().and_then(|run| run.number(key).map(|x| x / 1e9).ok_or_else(|| "not measured".to_owned()))
    };
    let rows = [
        (PRODUCTS[0], RUNTIME[0], rate(&outcomes[0]), "GFLOP/s"),
        (PRODUCTS[0], "`torch.nn.functional.linear`", rate(&outcomes[1]), "GFLOP/s"),
        (PRODUCTS[1], RUNTIME[1], rate(&outcomes[2]), "GOP/s"),
        (PRODUCTS[1], "`torch._int_mm`", rate(&outcomes[3]), "GOP/s"),
        ("memory", "copy of 1 GiB, all cores, read + written", told(&outcomes[4], "memory"), "GB/s"),
        ("disk, write", "1 GiB of random bytes and fsync", told(&outcomes[5], "write"), "GB/s"),
        ("disk, read", "the same, dropped from the page cache", told(&outcomes[5], "read"), "GB/s"),
    ];
    suite.report.notes.push(format!(
        "Floors of the passes: their products alone, at the better of the two rates of a kind (the best of all rounds, those \
         between the rows' own too; shapes of a decoder layer, {TOKENS} tokens); attention counts at the fp32 rate."
    ));
    let rates = rows.map(|(what, with, rate, unit)| Rate { what: what.into(), with: with.into(), rate, unit });
    suite.report.rates.extend(rates);
    Ok(())
}

/// ONNX Runtime's products, to be measured among rows: the machine isn't as fast at all times.
pub fn again(suite: &Suite) -> Vec<Contender<'_>> {
    let floor = |name: &str| {
        let path = suite.path(&format!("floor-{name}.onnx"));
        Contender::new(&format!("floor {name}"), suite.options.rounds, move || suite.graph(&path, &[]))
    };
    vec![floor("fp32"), floor("int8")]
}

/// Takes the rows of [`again`] away and keeps their rates.
pub fn absorb(suite: &mut Suite, rows: &mut Vec<Figure>) {
    let floors = rows.split_off(rows.len() - RUNTIME.len());
    for (i, floor) in floors.iter().enumerate() {
        if let Ok(run) = &floor.outcome {
            suite.report.seen(PRODUCTS[i], RUNTIME[i], operations(LAYERS) / run.seconds / 1e9);
        }
    }
}

/// The products of the layers, and nothing else.
fn bare_products(integers: bool) -> Result<Graph> {
    let mut g = Builder::new("floor");
    let rows = Dim::TOKENS;
    let zero = g.weight("zero", LazyTensor::new(DType::U8, vec![], Arc::new(vec![128])));
    let one = g.scalar(1.0);
    let (h, m) = GEOMETRY;
    let mut inputs = Vec::new();
    for k in [h, m] {
        let x = g.input(&format!("x{k}"), DType::F32, &[rows, Dim::Known(k)]);
        let x = if integers { g.node(Op::new("QuantizeLinear"), &[Some(x), Some(one), Some(zero)])? } else { x };
        inputs.push((k, x));
    }
    for layer in 0..LAYERS {
        for (i, (k, n)) in products().into_iter().enumerate() {
            let x = inputs.iter().find(|(width, _)| *width == k).context("an input of each width")?.1;
            let seed = (layer * 7 + i) as u8;
            let byte = |j: usize| (j as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ seed;
            let name = format!("w{layer}.{i}");
            let y = if integers {
                let w = LazyTensor::new(DType::I8, vec![k, n], Arc::new((0..k * n).map(byte).collect::<Vec<u8>>()));
                let w = g.weight(&name, w);
                let y = g.node(Op::new("MatMulInteger"), &[Some(x), Some(w), Some(zero)])?;
                // One column of each result, so that none is dropped and none is copied out.
                let y = g.slice(y, 1, 0, 1)?;
                g.cast(y, DType::F32)?
            } else {
                let values: Vec<f32> = (0..k * n).map(|j| f32::from(byte(j)) / 255.0 - 0.5).collect();
                let w = g.weight(&name, LazyTensor::from_f32(&[k, n], &values));
                let y = g.matmul(x, w)?;
                g.slice(y, 1, 0, 1)?
            };
            g.output(&format!("y{layer}.{i}"), y)?;
        }
    }
    Ok(g.finish()?)
}

/// Copies memory with all cores: bytes read and written a second.
pub fn memory() -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut buffers: Vec<_> = (0..cores).map(|_| (vec![1u8; LARGE / cores], vec![0u8; LARGE / cores])).collect();
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for (from, to) in &mut buffers {
                scope.spawn(|| to.copy_from_slice(from));
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
        std::hint::black_box(&mut buffers);
    }
    tell(best, &json!({"memory": 2.0 * LARGE as f64 / best}));
    Ok(())
}

/// Writes a file and its way to the disk, drops it from the page cache, reads it: bytes a second of both.
pub fn disk(path: &Path) -> Result<()> {
    let mut state = 1u64;
    let block: Vec<u8> = (0..8 << 20)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_le_bytes()[7]
        })
        .collect();
    let start = Instant::now();
    let mut file = std::fs::File::create(path)?;
    for _ in 0..LARGE / block.len() {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    let write = start.elapsed().as_secs_f64();
    drop(file);
    let mut file = std::fs::File::open(path)?;
    let mut told = json!({"write": LARGE as f64 / write});
    // Elsewhere the page cache can't be told, and would be measured.
    #[cfg(target_os = "linux")]
    {
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        let start = Instant::now();
        let mut into = vec![0; block.len()];
        while file.read(&mut into)? > 0 {}
        told["read"] = json!(LARGE as f64 / start.elapsed().as_secs_f64());
    }
    let _ = file.read(&mut []);
    std::fs::remove_file(path)?;
    tell(write, &told);
    Ok(())
}
