//! Walks of a graph block by block: one that begins at what another kept shows the same, and runs less.

use std::sync::Arc;

use brain_adapter::calibrate::{ChannelStats, Feed, Inputs, Role, Runner, Walk};
use brain_adapter::config::{LlamaConfig, TextPool};
use brain_adapter::graph::{Graph, Segment, Tail};
use brain_adapter::model::{self, Stages, Weights};
use brain_adapter::progress::Progress;
use brain_adapter::tensor::{LazyTensor, Tensor};
use support::common;
use support::reference::{self, generate::case_around};

/// A language model of eight blocks.
fn graph() -> Graph {
    let l = reference::LlamaConfig {
        vocab: 64,
        hidden: 32,
        mlp: 48,
        layers: 8,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        eps: 1e-5,
        theta: 1e4,
    };
    let case = case_around(3, &l);
    let config = LlamaConfig::from_hf(&case.llama_config).unwrap();
    let tensors = case.llama.iter();
    let weights: Weights = tensors
        .map(|(n, a)| (n.trim_start_matches("model.").to_owned(), LazyTensor::from_f32(&a.shape, &a.to_f32())))
        .collect();
    model::llama::build(&config, TextPool::Mean, &weights, Stages::Output).unwrap()
}

/// Reports of 5, 8 and 11 tokens.
fn reports() -> Vec<(Feed, Role)> {
    let report = |(i, role): (usize, Role)| {
        let n = 5 + 3 * i;
        let ids = Tensor::i64(&[1, n], (0..n as i64).map(|t| (7 * t + 1) % 64).collect()).unwrap();
        let mask = Tensor::i64(&[1, n], vec![1; n]).unwrap();
        let feed = [("input_ids", ids), ("attention_mask", mask)].map(|(name, t)| (name.to_owned(), Arc::new(t)));
        (feed.into(), role)
    };
    Role::of(3).into_iter().enumerate().map(report).collect()
}

/// Names of the blocks that were run.
#[derive(Default)]
struct Ran(Vec<String>);

impl Progress for Ran {
    fn item(&mut self, what: &str, _: usize, _: usize) {
        self.0.push(what.to_owned());
    }
}

/// What a visitor sees of a block.
#[derive(Debug, PartialEq)]
struct Seen {
    block: String,
    stats: Vec<ChannelStats>,
    samples: Vec<Vec<u32>>,
    held_out: Vec<(String, Vec<u32>)>,
}

fn bits<'a>(values: impl IntoIterator<Item = &'a f32>) -> Vec<u32> {
    values.into_iter().map(|v| v.to_bits()).collect()
}

/// Walks to those blocks: what was run, what was seen, and whether the graph's results came of it.
fn visit(graph: &Graph, inputs: &mut Inputs, blocks: &[usize]) -> (usize, Vec<Seen>, Option<Vec<Feed>>) {
    let names: Vec<String> = graph.segments(Tail::Separate).into_iter().map(|s| s.name).collect();
    let wanted = |s: &Segment| blocks.iter().any(|&b| names[b] == s.name);
    let dir = tempfile::tempdir().unwrap();
    let runner = Runner { runtime: common::runtime(), threads: Some(1), scratch: dir.path(), layout: None };
    let (mut ran, mut seen) = (Ran::default(), Vec::new());
    let walk = Walk { graph, runner: &runner, visits: &wanted, ranges: false };
    let outputs = walk.run(inputs, &mut ran, &mut |visit, _| {
        let samples = visit.groups.iter().flat_map(|g| [&g.calibrating, &g.held_out]);
        let samples = samples.flat_map(|s| std::iter::once(&s.x).chain(&s.y)).map(|rows| bits(rows.view()));
        let held_out = visit.held_out.iter().flat_map(|(entering, leaving)| entering.iter().chain(leaving));
        let held_out = held_out.map(|(name, t)| (name.clone(), bits(t.as_f32().unwrap_or_default())));
        seen.push(Seen {
            block: visit.segment.name.clone(),
            samples: samples.collect(),
            held_out: held_out.collect(),
            stats: visit.groups.into_iter().map(|g| g.stats).collect(),
        });
        Ok(())
    });
    (ran.0.len(), seen, outputs.unwrap())
}

#[test]
fn a_walk_from_what_was_kept_shows_the_same_and_runs_only_what_is_visited() {
    let graph = graph();
    let count = graph.segments(Tail::Separate).len();
    let all: Vec<usize> = (0..count).collect();
    let text = |outputs: Vec<Feed>| -> Vec<Vec<u32>> {
        outputs.iter().map(|feed| bits(feed["text"].as_f32().unwrap())).collect()
    };
    // Room for all that flows between blocks, and for nothing.
    for (max_bytes, ran_for_two) in [(1 << 20, 2), (0, 8)] {
        let mut inputs = Inputs::new(reports(), max_bytes);
        let (ran, first, outputs) = visit(&graph, &mut inputs, &all);
        assert_eq!((ran, first.len()), (count, count));
        let whole = text(outputs.unwrap());

        let (ran, again, outputs) = visit(&graph, &mut inputs, &[3, 7]);
        assert_eq!(again.iter().collect::<Vec<_>>(), [&first[3], &first[7]]);
        assert_eq!(ran, ran_for_two);
        assert!(outputs.is_none());

        // To the end of the graph: its results are whole.
        let (_, _, outputs) = visit(&graph, &mut inputs, &[2, count - 1]);
        assert_eq!(text(outputs.unwrap()), whole);
    }
}
