//! Plans for hosts of different sizes, with graphs of LLaMA 2 7B's and the vision transformer's full geometry.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::config::{Config, LlamaConfig, TextPool, Variant};
use crate::graph::{Builder, Dim, Graph};
use crate::model::{Attention, Stages, Weights, keys, llama, vit};
use crate::onnx::{SegmentedModel, without_data};
use crate::passes::quantize::{Plan, Scheme, quantize};
use crate::passes::{linears, to_fp16};
use crate::tensor::DType;

const GB: u64 = 1_000_000_000;
const IN_USE: u64 = 200_000_000;
const TOKENS: u64 = 512;

const SEVEN_B: LlamaConfig = LlamaConfig {
    vocab: 32000,
    hidden: 4096,
    mlp: 11008,
    layers: 32,
    heads: 32,
    kv_heads: 32,
    head_dim: 128,
    rms_eps: 1e-5,
    rope_theta: 1e4,
    max_positions: None,
    variant: Variant::PLAIN,
};

fn seven_b(pool: TextPool) -> Graph {
    llama::build(&SEVEN_B, pool, &Weights::placeholders(keys::text(&SEVEN_B)), Stages::Output).unwrap()
}

/// The vision transformer and a language model of 7B's sizes.
struct Full {
    vision: SegmentedModel,
    text: SegmentedModel,
}

impl Full {
    fn new() -> Self {
        let config: Config = serde_json::from_str("{}").unwrap();
        let weights = Weights::placeholders(keys::vision(&config));
        let vision = vit::build(&config, &weights, Attention::Fused, Stages::Output).unwrap();
        let text = seven_b(config.text.pool);
        let read = |graph| SegmentedModel::from_bytes(&without_data(&graph).unwrap()).unwrap();
        Self { vision: read(vision), text: read(text) }
    }

    /// Both parts, each in its mode.
    fn parts(&self, vision: Mode, text: Mode) -> Vec<PlannedPart<'_>> {
        let dimensions = BTreeMap::from([("batch", 1), ("tokens", TOKENS)]);
        vec![
            PlannedPart { part: Part::Vision, model: &self.vision, mode: vision, dimensions: dimensions.clone() },
            PlannedPart { part: Part::Text, model: &self.text, mode: text, dimensions },
        ]
    }
}

fn limit(limit: u64) -> MemoryBudget {
    MemoryBudget { limit, limited_by: LimitedBy::Request, in_use: IN_USE }
}

fn stored(model: &SegmentedModel) -> u64 {
    model.segments().iter().map(|s| s.weights).sum()
}

/// ONNX Runtime's allocator was measured to take up to 2.3 times the live activations of this very geometry.
#[test]
fn activations_are_planned_with_what_the_allocator_takes() {
    let full = Full::new();
    let text = &full.parts(Mode::OneShot, Mode::OneShot)[1..];
    let live = full.text.live_bytes(0..full.text.segments().len(), &text[0].dimensions);
    assert!(live > 10_000_000, "512 tokens of 4096 channels in float32 are 8 MB a tensor: {live}");
    let (planned, peak) = plan(text, &limit(1000 * GB), true).unwrap();
    assert_eq!(planned[0].groups.len(), 1);
    let activations = peak - IN_USE - stored(&full.text);
    assert!(activations >= live * 23 / 10 && activations <= live * 3 + GB / 10, "{activations} of {live}");
    assert_eq!(planned[0].bytes, peak - IN_USE);
}

/// Results of one size take each other's place, those of another do not; what enters is the caller's.
#[test]
fn like_sizes_share_memory() {
    let mut g = Builder::new("text");
    let wide = |g: &mut Builder, name: &str, n| g.input(name, DType::F32, &[Dim::Known(n)]);
    let (small, large) = (wide(&mut g, "small", 1000), wide(&mut g, "large", 100_000));
    let chain = |g: &mut Builder, mut x, n| {
        for _ in 0..n {
            x = g.add(x, x).unwrap();
        }
        x
    };
    let (a, b) = (chain(&mut g, small, 4), chain(&mut g, large, 4));
    g.output("a", a).unwrap();
    g.output("b", b).unwrap();
    let model = SegmentedModel::from_bytes(&without_data(&g.finish().unwrap()).unwrap()).unwrap();
    let all = 0..model.segments().len();
    assert_eq!(model.allocated_bytes(all.clone(), &BTreeMap::new()), 2 * 4000 + 2 * 400_000);
    assert_eq!(model.boundary_bytes(all, &BTreeMap::new()), [404_000, 404_000]);
}

/// What stays resident is there while a one-shot graph runs: its groups have what is left.
#[test]
fn one_shot_graphs_share_memory_with_resident_ones() {
    let full = Full::new();
    let parts = full.parts(Mode::Resident, Mode::OneShot);
    let (alone, whole) = plan(&parts[1..], &limit(1000 * GB), true).unwrap();
    assert_eq!(alone[0].groups.len(), 1);
    let resident = stored(&full.vision);
    assert!(resident > 300_000_000, "{resident}");
    // Enough for the language model as a whole, were the vision transformer not loaded.
    let budget = limit(whole + resident / 2);
    let (planned, peak) = plan(&parts, &budget, true).unwrap();
    assert_eq!((planned[0].mode, planned[1].mode), (Mode::Resident, Mode::OneShot));
    assert!(planned[1].groups.len() > 1, "{:?}", planned[1].groups);
    assert!(peak <= budget.limit, "{peak}");
    // Groups are consecutive and complete.
    let ends: Vec<usize> = planned[1].groups.iter().map(|g| g.segments.end).collect();
    let starts: Vec<usize> = planned[1].groups.iter().map(|g| g.segments.start).collect();
    assert_eq!((starts[0], *ends.last().unwrap()), (0, full.text.segments().len()));
    assert_eq!(starts[1..], ends[..ends.len() - 1]);
}

/// Where not all can stay loaded the language model is released first; modes that the caller chose are kept.
#[test]
fn the_language_model_gives_way_first() {
    let full = Full::new();
    let parts = full.parts(Mode::Resident, Mode::Resident);
    let tight = limit(stored(&full.text) + stored(&full.vision));
    let (planned, peak) = plan(&parts, &tight, false).unwrap();
    assert_eq!((planned[0].mode, planned[1].mode), (Mode::Resident, Mode::OneShot));
    assert!(peak <= tight.limit);
    let error = plan(&parts, &tight, true).unwrap_err();
    assert_eq!(error.code(), Code::MEMORY_LIMIT);
    assert!(error.message().contains("--max-memory"), "{error}");
}

/// A language model of 7B's sizes with weights in 4-bit blocks, or in half precision.
fn reduced(scheme: Option<Scheme>) -> SegmentedModel {
    let graph = seven_b(TextPool::Mean);
    let graph = match scheme {
        Some(scheme) => {
            let layers = linears(&graph, 0..graph.nodes.len()).into_iter().map(|l| (l.name, scheme));
            quantize(&graph, &Plan { schemes: layers.collect(), ..Plan::default() }).unwrap()
        }
        None => to_fp16(&graph, &BTreeSet::new()).unwrap(),
    };
    SegmentedModel::from_bytes(&without_data(&graph).unwrap()).unwrap()
}

fn text(model: &SegmentedModel, mode: Mode) -> [PlannedPart<'_>; 1] {
    [PlannedPart { part: Part::Text, model, mode, dimensions: BTreeMap::from([("batch", 1), ("tokens", TOKENS)]) }]
}

/// Weights in blocks are slow unless prepacked, and grow by it. Half-precision weights are widened by the CPU provider.
#[test]
fn weights_are_planned_with_what_loading_makes_of_them() {
    let blocks = reduced(Some(Scheme::Blocks { bits: 4, block: 64 }));
    let (_, peak) = plan(&text(&blocks, Mode::Resident), &limit(1000 * GB), true).unwrap();
    assert!(peak >= IN_USE + stored(&blocks) * 3 / 2, "{peak}");
    let (planned, _) = plan(&text(&blocks, Mode::OneShot), &limit(1000 * GB), true).unwrap();
    for group in &planned[0].groups {
        let segments = &blocks.segments()[group.segments.clone()];
        assert!(segments.iter().all(|s| s.blocked == group.prepack), "{group:?}");
    }
    let half = reduced(None);
    let widened: u64 = half.segments().iter().map(|s| s.widened).sum();
    assert!(widened > stored(&half), "{widened}");
    let (_, peak) = plan(&text(&half, Mode::OneShot), &limit(1000 * GB), true).unwrap();
    assert!(peak >= IN_USE + stored(&half) + widened, "{peak}");
}

/// The image's graphs are loaded while the language model runs, if both fit.
#[test]
fn preloading_needs_room_for_the_weights() {
    let full = Full::new();
    let parts = full.parts(Mode::OneShot, Mode::OneShot);
    let (planned, peak) = plan(&parts, &limit(1000 * GB), true).unwrap();
    let more = peak + stored(&full.vision);
    assert_eq!(peak_when_preloading(&parts, &planned, peak, &limit(more)), Some(more));
    assert_eq!(peak_when_preloading(&parts, &planned, peak, &limit(more - 1)), None);
}

/// Prepacking a small graph pays even for a single run; prepacking 26 GB does not.
#[test]
fn small_graphs_are_prepacked() {
    let sizes =
        LlamaConfig { vocab: 1000, hidden: 64, mlp: 128, layers: 2, heads: 4, kv_heads: 4, head_dim: 16, ..SEVEN_B };
    let weights = Weights::placeholders(keys::text(&sizes));
    let graph = llama::build(&sizes, TextPool::Mean, &weights, Stages::Output).unwrap();
    let small = SegmentedModel::from_bytes(&without_data(&graph).unwrap()).unwrap();
    let full = Full::new();
    for (model, prepack) in [(&small, true), (&full.text, false)] {
        let (planned, _) = plan(&text(model, Mode::OneShot), &limit(1000 * GB), true).unwrap();
        assert_eq!(planned[0].groups, [Group { segments: 0..model.segments().len(), prepack }]);
    }
}
