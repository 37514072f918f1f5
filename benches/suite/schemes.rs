//! All number formats of the text, side by side.

use anyhow::Result;
use brain_adapter::config::{LlamaConfig, TextPool, Variant};
use brain_adapter::model::{self, Stages};
use brain_adapter::passes::quantize::{Plan, Scheme, quantize};
use brain_adapter::passes::{linears, to_fp16};
use brain_adapter::tensor::DType;

use super::floors::{self, GEOMETRY, operations};
use super::graphs::{TOKENS, least_cosine, write};
use super::process::{Contender, progress};
use super::report::Bound::AtLeast;
use super::report::Floor;
use super::suite::{Suite, blocks, bytes_in, compare, weights};

/// The schemes, by the names of their rows; the first is what the others are compared with.
const SCHEMES: [(&str, Option<Scheme>); 6] = [
    ("int8", Some(Scheme::INT8)),
    ("fp32", None),
    ("int8-32", Some(Scheme::Blocks { bits: 8, block: 32 })),
    ("int4-64", Some(Scheme::Blocks { bits: 4, block: 64 })),
    ("int4-32", Some(Scheme::Blocks { bits: 4, block: 32 })),
    ("fp16", Some(Scheme::Fp16)),
];

/// Most blocks: all formats lie on the disk at once, and 4 bits take long to find.
const MOST: usize = 2;

/// LLaMA2-7B's configuration with so many blocks.
fn config(layers: usize) -> LlamaConfig {
    let (hidden, mlp) = GEOMETRY;
    LlamaConfig {
        vocab: 32000,
        hidden,
        mlp,
        layers,
        heads: 32,
        kv_heads: 32,
        head_dim: hidden / 32,
        rms_eps: 1e-5,
        rope_theta: 1e4,
        max_positions: None,
        variant: Variant::PLAIN,
    }
}

pub fn run(suite: &mut Suite) -> Result<()> {
    let layers = suite.run_layers().min(MOST);
    let what = format!("schemes, {}, {TOKENS} tokens", blocks(layers));
    let (config, hidden) = (config(layers), GEOMETRY.0);
    let weights = weights(&suite.checkpoint(Some(layers))?.join("llama"), "model.")?;
    let fp32 = model::llama::build(&config, TextPool::Mean, &weights, Stages::All)?;
    let names: Vec<String> = linears(&fp32, 0..fp32.nodes.len()).into_iter().map(|l| l.name).collect();
    let folder = suite.path("schemes");
    std::fs::create_dir_all(&folder)?;
    for (name, scheme) in SCHEMES {
        progress(&format!("writing the text in {name}"));
        let graph = match scheme {
            None => fp32.clone(),
            Some(Scheme::Fp16) => to_fp16(&fp32, &Default::default())?,
            Some(scheme) => {
                let schemes = names.iter().map(|n| (n.clone(), scheme)).collect();
                quantize(&fp32, &Plan { schemes, tables: Some(DType::F16), ..Plan::default() })?
            }
        };
        write(&graph, &folder, name)?;
    }
    let path = |name: &str| folder.join(format!("{name}.onnx"));
    let rounds = suite.options.rounds.min(2);
    let contender = |(name, _)| Contender::new(name, rounds, || suite.graph(&path(name), &["save:text_hidden"]));
    let contenders = SCHEMES.into_iter().map(contender).chain(floors::again(suite)).collect();
    let mut rows = compare(&what, contenders);
    floors::absorb(suite, &mut rows);
    suite.report.extend(rows);
    for (name, scheme) in SCHEMES {
        let bytes = bytes_in(&folder, |file| file.starts_with(&format!("{name}.onnx")));
        let cosine = scheme.and_then(|_| least_cosine(&path(name), &path("fp32"), Some(hidden)));
        let floor = match name {
            "int8" => Some(Floor::Products([0.0, operations(layers)])),
            "fp32" => Some(Floor::Products([operations(layers), 0.0])),
            _ => None,
        };
        suite.amend(&what, name, |f| (f.bytes, f.cosine, f.floor) = (Some(bytes), cosine, floor));
    }
    let gain = suite.report.speedup(&what, "int8", "fp32");
    suite.report.target(
        format!("text int8, {layers} of 32 blocks: against our fp32"),
        gain,
        AtLeast(3.2),
        "times as fast",
    );
    suite.report.notes.push("Schemes: the cosine is the worst token's.".into());
    std::fs::remove_dir_all(folder)?;
    Ok(())
}
