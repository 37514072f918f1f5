//! Graphs taken apart: run in groups of blocks they give the same bits as run whole.

use std::collections::BTreeMap;
use std::path::Path;

use brain_adapter::bundle::{Bundle, Precision, Target};
use brain_adapter::export::Plan;
use brain_adapter::onnx::SegmentedModel;
use brain_adapter::runtime::{Session, SessionOptions};
use brain_adapter::tensor::Tensor;
use support::reference::{generate::Case, weights::Random};
use support::{common, reduced};

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.as_f32().unwrap().iter().map(|v| v.to_bits()).collect()
}

/// The graph's result in groups that begin at `starts`.
fn in_groups(
    path: &Path,
    inputs: &[(&str, Tensor)],
    output: &str,
    starts: &[usize],
    options: &SessionOptions,
) -> Tensor {
    let model = SegmentedModel::read(path).unwrap();
    let mut flowing: BTreeMap<String, Tensor> = inputs.iter().map(|(n, t)| ((*n).to_owned(), t.clone())).collect();
    let ends = starts[1..].iter().copied().chain([model.segments().len()]);
    for (start, end) in starts.iter().copied().zip(ends) {
        let part = model.extract(start..end).unwrap();
        let mut session = Session::open_part(common::runtime(), &part.bytes, path, options).unwrap();
        let feed: Vec<(&str, &Tensor)> = part.inputs.iter().map(|n| (n.as_str(), &flowing[n])).collect();
        let names: Vec<&str> = part.outputs.iter().map(String::as_str).collect();
        let made = session.run(&feed, &names).unwrap();
        flowing.extend(part.outputs.iter().cloned().zip(made));
    }
    flowing.remove(output).unwrap()
}

/// Every part of a bundle, whole and in groups: each block alone, and cut at random.
fn compare(bundle: &Bundle, case: &Case, rng: &mut Random) -> usize {
    let size = bundle.manifest.config.volume.size;
    let (ids, mask) = (&case.inputs.input_ids[0], &case.inputs.attention_mask[0]);
    let one = |v: &[i64]| Tensor::i64(&[1, v.len()], v.to_vec()).unwrap();
    let volume = case.inputs.volume.to_f32()[..size * size * size].to_vec();
    let volume = Tensor::f32(&[1, size, size, size], volume).unwrap();
    let mut cut = 0;
    let mut feeds: Vec<(&str, Vec<(&str, Tensor)>)> = vec![
        ("adapter", vec![("volume", volume)]),
        ("text", vec![("input_ids", one(ids)), ("attention_mask", one(mask))]),
    ];
    while let Some((part, inputs)) = feeds.pop() {
        let path = bundle.file(&bundle.manifest.parts[part].file).unwrap();
        for prepack in [true, false] {
            let options = SessionOptions { prepack, threads: Some(1), ..SessionOptions::default() };
            let mut whole = Session::open(common::runtime(), &path, &options).unwrap();
            let feed: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (*n, t)).collect();
            let expected = whole.run(&feed, &[part]).unwrap().remove(0);
            let segments = SegmentedModel::read(&path).unwrap().segments().len();
            let random = (0..segments).filter(|&i| i == 0 || rng.chance(0.4)).collect();
            for starts in [(0..segments).collect::<Vec<_>>(), random] {
                let found = in_groups(&path, &inputs, part, &starts, &options);
                let precision = bundle.manifest.parts[part].precision;
                let what = format!("{part} {precision}, seed {}, prepack {prepack}, cut at {starts:?}", case.seed);
                assert!(bits(&found) == bits(&expected), "{what}");
                cut += usize::from(starts.len() > 2);
            }
            if part == "adapter" && prepack {
                feeds.push(("vision", vec![("adapter", expected)]));
            }
        }
    }
    cut
}

#[test]
fn groups_of_blocks_give_the_same_bits() {
    let mut rng = Random::new(11);
    for (seed, precision, target) in [
        (21, Precision::Fp32, Target::Cpu),
        (22, Precision::Fp32, Target::Cpu),
        (23, Precision::Fp16, Target::Cpu),
        (24, Precision::Int8, Target::Cpu),
        (25, Precision::Int8, Target::Cpu),
        (26, Precision::Int4, Target::Cpu),
        (27, Precision::Int8, Target::Cuda),
        (28, Precision::Int8, Target::TensorRt),
    ] {
        let dir = tempfile::tempdir().unwrap();
        // 3 to 5 blocks, grouped key-value heads in every other.
        let l = reduced::sizes(64 + 64 * (seed as usize % 2), 3 + seed as usize % 3, 1 + seed as usize % 2);
        let case = reduced::massive(seed, &l, 200.0, 1.0);
        reduced::write(&case, dir.path(), 2);
        // TensorRT's scales want a scan too.
        let scan = support::package("tests/data/fixtures/tiny/scan.nii.gz");
        std::fs::copy(scan, dir.path().join("calibration/report0.nii.gz")).unwrap();
        let (_, bundle) = reduced::export(&Plan { target, ..reduced::plan(dir.path(), precision) });
        assert!(compare(&bundle, &case, &mut rng) >= 2, "seed {seed}: nothing was cut");
    }
}

/// What planning counts is there: every weight once, activations that grow with the report.
#[test]
fn what_is_planned_with_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let l = reduced::sizes(64, 4, 2);
    let case = reduced::massive(3, &l, 100.0, 1.0);
    reduced::write(&case, dir.path(), 1);
    /// A form of a bundle, and whether its weights are widened to float32 before they are used: all, or one at a time.
    struct Form {
        precision: Precision,
        target: Target,
        widened: bool,
        one_at_a_time: bool,
    }
    let forms = [
        Form { precision: Precision::Fp32, target: Target::Cpu, widened: false, one_at_a_time: false },
        Form { precision: Precision::Fp16, target: Target::Cpu, widened: true, one_at_a_time: false },
        Form { precision: Precision::Int8, target: Target::Cpu, widened: false, one_at_a_time: false },
        Form { precision: Precision::Int8, target: Target::Cuda, widened: false, one_at_a_time: true },
    ];
    for Form { precision, target, widened: wide, one_at_a_time } in forms {
        let (_, bundle) = reduced::export(&Plan { target, ..reduced::plan(dir.path(), precision) });
        let record = &bundle.manifest.parts["text"];
        let model = SegmentedModel::read(&bundle.file(&record.file).unwrap()).unwrap();
        let blocks = model.segments().iter().filter(|s| s.name.starts_with("layers.")).count();
        assert_eq!(blocks, l.layers);
        let weights: u64 = model.segments().iter().map(|s| s.weights).sum();
        // The rest of the files is the graph itself and padding.
        assert!(weights <= record.bytes && weights * 10 > record.bytes * 5, "{weights} of {}", record.bytes);
        let widened: u64 = model.segments().iter().map(|s| s.widened).sum();
        // Twice the halves, four times the bytes: float32 either way.
        assert_eq!(widened > weights, wide, "{precision} for {target}: {widened} next to {weights}");
        let largest = model.segments().iter().map(|s| s.dequantized).max().unwrap_or(0);
        // Whole blocks of 32.
        let expected = if one_at_a_time { 4 * (l.hidden * l.mlp.next_multiple_of(32)) as u64 } else { 0 };
        assert_eq!(largest, expected, "{precision} for {target}");
        let live =
            |tokens| model.live_bytes(0..model.segments().len(), &BTreeMap::from([("batch", 1), ("tokens", tokens)]));
        // At least the residual stream and what a layer makes of it; scores grow with the square.
        assert!(live(64) >= 64 * 4 * (l.hidden + l.mlp) as u64);
        assert!(live(1024) > 16 * live(64) && live(1024) < 300 * live(64));
    }
}
