//! Plans for cards of 8 to 80 GB, with graphs of LLaMA 2 7B's and the vision transformer's full geometry.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::config::{Config, LlamaConfig, Variant};
use crate::execute::host_memory::LimitedBy;
use crate::model::{Attention, Part, Stages, Weights, adapter, keys, llama, vit};
use crate::onnx::{SegmentedModel, without_data};

const GB: u64 = 1_000_000_000;

/// Adapter, vision transformer and a language model of 7B's sizes, in the form that goes to CUDA or into engines.
struct Full {
    models: Vec<(Part, SegmentedModel)>,
}

impl Full {
    fn new(half: bool, engines: bool) -> Self {
        let config: Config = serde_json::from_str("{}").unwrap();
        let text = LlamaConfig {
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
        let adapter = adapter::build(&config, &Weights::placeholders(keys::adapter(&config))).unwrap();
        let weights = Weights::placeholders(keys::vision(&config));
        let form = if engines { Attention::Decomposed } else { Attention::Fused };
        let vision = vit::build(&config, &weights, form, Stages::Output).unwrap();
        let weights = Weights::placeholders(keys::text(&text));
        let llama = llama::build(&text, config.text.pool, &weights, Stages::Output).unwrap();
        let graphs = [(Part::Adapter, adapter), (Part::Vision, vision), (Part::Text, llama)];
        let read = |(name, graph)| {
            let graph = if half { crate::passes::to_fp16(&graph, &BTreeSet::new()).unwrap() } else { graph };
            (name, SegmentedModel::from_bytes(&without_data(&graph).unwrap()).unwrap())
        };
        Self { models: graphs.into_iter().map(read).collect() }
    }

    fn parts(&self, mode: Mode) -> Vec<PlannedPart<'_>> {
        let dimensions = BTreeMap::from([("batch", 1), ("tokens", 512)]);
        self.models
            .iter()
            .map(|(name, model)| PlannedPart { part: *name, model, mode, dimensions: dimensions.clone() })
            .collect()
    }

    fn text(&self) -> &SegmentedModel {
        &self.models[2].1
    }
}

fn gpu(free: u64, engines: bool) -> GpuBudget {
    GpuBudget { name: "NVIDIA Test 4090".into(), free, engines }
}

const ROOMY: MemoryBudget = MemoryBudget { limit: 256 * GB, limited_by: LimitedBy::Machine, in_use: 200_000_000 };

/// Bytes of the weights of a group, as the graph declares them.
fn declared(model: &SegmentedModel, group: &Group) -> u64 {
    model.segments()[group.segments.clone()].iter().map(|s| s.weights).sum()
}

/// Groups are all segments, in order, once.
fn covers(model: &SegmentedModel, planned: &Planned) {
    let ends: Vec<usize> = planned.groups.iter().map(|g| g.segments.end).collect();
    let starts: Vec<usize> = planned.groups.iter().map(|g| g.segments.start).collect();
    assert_eq!(starts[0], 0);
    assert_eq!(starts[1..], ends[..ends.len() - 1]);
    assert_eq!(*ends.last().unwrap(), model.segments().len());
    assert!(planned.groups.iter().all(|g| !g.segments.is_empty() && !g.prepack));
}

/// The geometry is that of the real model: 6.6 billion weights in the language model, 13.2 GB in half precision.
#[test]
fn the_geometry_is_the_real_one() {
    let bytes = |half| -> u64 { Full::new(half, false).text().segments().iter().map(|s| s.weights).sum() };
    // Two bytes for each of LLaMA 2 7B's weights but the head's, which this model does not have.
    let weights = 6_738_415_616u64 - 32000 * 4096;
    let (half, single) = (bytes(true), bytes(false));
    assert!(half.abs_diff(2 * weights) < GB / 100, "{half}");
    assert!(single.abs_diff(4 * weights) < GB / 100, "{single}");
}

#[test]
fn graphs_are_cut_to_the_card() {
    for half in [true, false] {
        let full = Full::new(half, false);
        let mut fewest = usize::MAX;
        for gigabytes in [8, 12, 24, 80] {
            let free = gigabytes * GB * 95 / 100;
            let plan = plan(&full.parts(Mode::OneShot), &gpu(free, false), &ROOMY, false).unwrap();
            let what = format!("half {half}, {gigabytes} GB: {plan:?}");
            assert!(plan.peak <= free, "{what}");
            (0..3).for_each(|i| covers(&full.models[i].1, &plan.planned[i]));
            let groups = &plan.planned[2].groups;
            // More room never means more groups.
            assert!(groups.len() <= fewest, "{what}");
            fewest = groups.len();
            let all: u64 = groups.iter().map(|g| declared(full.text(), g)).sum();
            let fits = all + CONTEXT < free;
            assert_eq!(groups.len() == 1, fits, "{what}");
            // No group is more than there is, and none could have been one fewer.
            let largest = groups.iter().map(|g| declared(full.text(), g)).max().unwrap();
            assert!(largest + CONTEXT < plan.peak, "{what}");
            assert!(groups.len() as u64 <= 1 + all / ((free - CONTEXT) / 2), "{what}");
            // Only where the language model leaves room does the image run beside it.
            assert_eq!(plan.concurrent, fits, "{what}");
            // Weights pass through the process's memory a block at a time, of all graphs that are loaded at once.
            let largest = |model: &SegmentedModel| model.segments().iter().map(|s| s.weights).max().unwrap();
            let blocks = full.models.iter().map(|(_, model)| largest(model));
            let block: u64 = if plan.concurrent { blocks.sum() } else { blocks.max().unwrap() };
            assert_eq!(plan.host, ROOMY.in_use + block, "{what}");
        }
    }
}

/// The arena of a group that was released lives as long as its results, which the next group reads.
#[test]
fn a_group_starts_while_the_results_of_the_one_before_are_there() {
    let full = Full::new(true, false);
    let part = &full.parts(Mode::OneShot)[2];
    let n = full.text().segments().len();
    let one = |group: &Range<usize>| loaded(part, group, false);
    let (first, second) = (0..n / 2, n / 2..n);
    let expected = one(&first).max(one(&second) + live(part, &first, false));
    assert!(expected > one(&first).max(one(&second)));
    assert_eq!(transient_peak(part, &[first, second], false, false), expected);
}

#[test]
fn what_is_run_often_stays_where_it_fits() {
    let full = Full::new(true, false);
    let modes = |free, fixed| {
        let plan = plan(&full.parts(Mode::Resident), &gpu(free, false), &ROOMY, fixed);
        plan.map(|plan| plan.planned.iter().map(|p| p.mode).collect::<Vec<_>>())
    };
    assert_eq!(modes(80 * GB, false).unwrap(), [Mode::Resident; 3]);
    assert_eq!(modes(24 * GB, false).unwrap(), [Mode::Resident; 3]);
    // The language model gives way first.
    assert_eq!(modes(12 * GB, false).unwrap(), [Mode::Resident, Mode::Resident, Mode::OneShot]);
    // Asked for, it is not made otherwise behind the user's back.
    assert_eq!(modes(12 * GB, true).unwrap_err().code(), Code::DEVICE_MEMORY);
}

#[test]
fn engines_are_made_of_less_than_two_gigabytes() {
    for half in [true, false] {
        let full = Full::new(half, true);
        for (mode, gigabytes) in [(Mode::Resident, 80), (Mode::OneShot, 80), (Mode::OneShot, 12)] {
            let plan = plan(&full.parts(mode), &gpu(gigabytes * GB, true), &ROOMY, false).unwrap();
            let groups = &plan.planned[2].groups;
            covers(full.text(), &plan.planned[2]);
            assert_eq!(plan.planned[2].mode, mode);
            let largest = groups.iter().map(|g| declared(full.text(), g)).max().unwrap();
            assert!(largest < 2 * GB && largest > GB, "{largest}");
            // As many as it takes, and one or two for what cannot be cut evenly.
            let all: u64 = groups.iter().map(|g| declared(full.text(), g)).sum();
            assert!((groups.len() as u64).abs_diff(all.div_ceil(ENGINE_WEIGHTS)) <= 3, "{} groups", groups.len());
            assert_eq!((plan.planned[0].groups.len(), plan.planned[1].groups.len()), (1, 1));
            // While one is made, the process holds it several times.
            assert!(plan.host >= ROOMY.in_use + ENGINE_COPIES * largest && plan.host < 8 * GB);
        }
    }
}

#[test]
fn what_does_not_fit_is_reported_in_numbers() {
    let full = Full::new(true, false);
    for free in [0, GB / 2, 1_500_000_000] {
        let error = plan(&full.parts(Mode::OneShot), &gpu(free, false), &ROOMY, false).unwrap_err();
        assert_eq!(error.code(), Code::DEVICE_MEMORY);
        let message = error.message();
        assert!(message.contains(&format!("{} MB are free on the NVIDIA Test 4090", free / 1_000_000)), "{message}");
        let need: u64 = message.split(" needs ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(need > free / 1_000_000 && need < 4000, "{message}");
        // What it reports is enough for that graph, or another one needs more.
        let more = plan(&full.parts(Mode::OneShot), &gpu((need + 1) * 1_000_000, false), &ROOMY, false);
        assert!(more.is_ok() || more.unwrap_err().message() != message);
    }
}

#[test]
fn a_limit_of_the_process_bounds_what_passes_through_host_memory() {
    let full = Full::new(true, false);
    let host = |limit| MemoryBudget { limit, limited_by: LimitedBy::Request, in_use: 200_000_000 };
    let parts = full.parts(Mode::OneShot);
    // A block of 405 MB at a time.
    assert!(plan(&parts, &gpu(80 * GB, false), &host(GB), false).unwrap().host <= GB);
    let error = plan(&parts, &gpu(80 * GB, false), &host(400_000_000), false).unwrap_err();
    assert_eq!(error.code(), Code::MEMORY_LIMIT);
    // Engines are built from smaller groups.
    let groups = |limit| plan(&parts, &gpu(80 * GB, true), &host(limit), false).unwrap().planned[2].groups.len();
    assert!(groups(3 * GB) > groups(16 * GB));
    let tight = plan(&parts, &gpu(80 * GB, true), &host(3 * GB), false).unwrap();
    assert!(tight.host <= 3 * GB);
    // Next to the language model's engines there is no memory to build others.
    assert!(!tight.concurrent && plan(&parts, &gpu(80 * GB, true), &host(16 * GB), false).unwrap().concurrent);
    let error = plan(&parts, &gpu(80 * GB, true), &host(GB), false).unwrap_err();
    assert_eq!(error.code(), Code::MEMORY_LIMIT);
    assert!(error.message().contains("--max-memory"), "{error}");
}

/// Profiles of real graphs' groups: batch 1, reports of any length, also for values between blocks.
#[test]
fn profiles_have_every_dynamic_dimension() {
    use crate::execute::profiles::profiles;
    let full = Full::new(true, true);
    let text = full.text();
    let whole = profiles(text, text.inputs(), 512).unwrap();
    let dimensions = |all: &[crate::runtime::ProfiledInput], name: &str| {
        let input = all.iter().find(|p| p.name == name).unwrap_or_else(|| panic!("no {name} in {all:?}"));
        (input.min.clone(), input.opt.clone(), input.max.clone())
    };
    assert_eq!(whole.len(), 2);
    assert_eq!(dimensions(&whole, "input_ids"), (vec![1, 1], vec![1, 256], vec![1, 512]));
    assert_eq!(dimensions(&whole, "attention_mask"), (vec![1, 1], vec![1, 256], vec![1, 512]));
    let parts = full.parts(Mode::OneShot);
    let planned = plan(&parts, &gpu(80 * GB, true), &ROOMY, false).unwrap().planned.remove(2);
    for group in &planned.groups[1..] {
        let part = text.extract(group.segments.clone()).unwrap();
        let all = profiles(text, part.inputs.iter().map(String::as_str), 512).unwrap();
        // Rotations, mask and the residual stream: all of them depend on the report's length.
        assert_eq!(all.len(), part.inputs.len(), "{:?}", part.inputs);
        let stream = all.iter().find(|p| p.max.last() == Some(&4096)).unwrap();
        assert_eq!((&stream.min, &stream.max), (&vec![1, 1, 4096], &vec![1, 512, 4096]));
        let mask = all.iter().find(|p| p.max == [1, 1, 512, 512]).unwrap();
        assert_eq!((&mask.min, &mask.opt), (&vec![1, 1, 1, 1], &vec![1, 1, 256, 256]));
    }
    // The image's graphs have a batch and nothing else.
    for (name, model) in &full.models[..2] {
        for input in profiles(model, model.inputs(), 512).unwrap() {
            assert_eq!((&input.min, &input.opt), (&input.max, &input.max), "{name} {input:?}");
            assert_eq!(input.max[0], 1);
        }
    }
    // A short report is not typical of more than the bundle reads.
    assert_eq!(
        dimensions(&profiles(text, text.inputs(), 64).unwrap(), "input_ids"),
        (vec![1, 1], vec![1, 64], vec![1, 64])
    );
    // What has no shape has no engine.
    assert_eq!(profiles(text, ["nowhere"], 512).unwrap_err().code(), Code::ONNX_INVALID);
}
