//! The code paths of a GPU, run on the CPU: values bound and left where they are made, graphs warmed up,
//! report and image at once. The answers are those of the plain way, bit for bit.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use brain_adapter::Code;
use brain_adapter::bundle::{Bundle, Precision};
use brain_adapter::infer::{EncodedReport, Mode, Options, Prediction, Predictor};
use brain_adapter::onnx::SegmentedModel;
use brain_adapter::progress::{Progress, Shared};
use brain_adapter::runtime::{
    DeviceTensor, EngineOptions, Input, OutputPlacement, ProfiledInput, RuntimeValue, Session, SessionOptions, Source,
};
use brain_adapter::tensor::{Tensor, TensorView};
use support::process::alone;
use support::reference::generate::Case;
use support::{commands, common, large, reduced};

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.as_f32().unwrap().iter().map(|v| v.to_bits()).collect()
}

fn host(tensor: &Tensor) -> Input<'_> {
    Input::Host(TensorView::of(tensor).unwrap())
}

fn device(flowing: RuntimeValue) -> DeviceTensor {
    match flowing {
        RuntimeValue::Device(tensor) => tensor,
        RuntimeValue::Host(_) => panic!("it was to stay"),
    }
}

const ONE_THREAD: fn() -> SessionOptions = || SessionOptions { threads: Some(1), ..SessionOptions::default() };

/// A bundle's graph in groups of one block, each session gone before the next is made: only bound values flow.
fn bound_in_groups(path: &Path, inputs: &[(&str, &Tensor)], output: &str) -> (Tensor, Vec<String>) {
    let model = SegmentedModel::read(path).unwrap();
    let mut flowing: BTreeMap<String, DeviceTensor> = BTreeMap::new();
    let mut kinds = Vec::new();
    let last = model.segments().len() - 1;
    for i in 0..=last {
        let part = model.extract(i..i + 1).unwrap();
        let source = Source::Part { model: &part.bytes, path };
        let mut session = Session::load(common::runtime(), source, &ONE_THREAD(), &EngineOptions::default()).unwrap();
        session.always_bind();
        let given = inputs.iter().map(|(n, t)| (*n, host(t)));
        let given = given.chain(flowing.iter().map(|(n, t)| (n.as_str(), Input::Device(t))));
        let feed: Vec<_> = given.filter(|(n, _)| part.inputs.iter().any(|name| name == n)).collect();
        let leave = |name: &String| if name == output { OutputPlacement::Host } else { OutputPlacement::Device };
        let wanted: Vec<_> = part.outputs.iter().map(|name| (name.as_str(), leave(name))).collect();
        let made = session.run_bound(&feed, &wanted).unwrap();
        drop(session);
        if i == last {
            return (made.into_iter().find_map(RuntimeValue::host).unwrap(), kinds);
        }
        for tensor in made.into_iter().map(device) {
            assert!(tensor.on_host() && !tensor.shape().contains(&0), "{tensor:?}");
            kinds.push(tensor.dtype());
            flowing.insert(tensor.name().to_owned(), tensor);
        }
    }
    unreachable!("a graph has a last segment")
}

fn inputs_of(case: &Case, bundle: &Bundle) -> [Tensor; 3] {
    let size = bundle.manifest.config.volume.size;
    let one = |v: &[i64]| Tensor::i64(&[1, v.len()], v.to_vec()).unwrap();
    let volume = case.inputs.volume.to_f32()[..size * size * size].to_vec();
    let volume = Tensor::f32(&[1, size, size, size], volume).unwrap();
    [volume, one(&case.inputs.input_ids[0]), one(&case.inputs.attention_mask[0])]
}

#[test]
fn bound_values_give_the_same_bits() {
    for (seed, precision) in [(31, Precision::Fp32), (32, Precision::Fp16), (33, Precision::Int8)] {
        let dir = tempfile::tempdir().unwrap();
        let case = reduced::massive(seed, &reduced::sizes(64, 3, 2), 200.0, 1.0);
        reduced::write(&case, dir.path(), 2);
        let (_, bundle) = reduced::export(&reduced::plan(dir.path(), precision));
        let [volume, ids, mask] = inputs_of(&case, &bundle);
        let open = |part: &str| {
            let path = bundle.file(&bundle.manifest.parts[part].file).unwrap();
            Session::open(common::runtime(), &path, &ONE_THREAD()).unwrap()
        };
        // From one session to the next, with the first one gone.
        let adapter = open("adapter").run(&[("volume", &volume)], &["adapter"]).unwrap().remove(0);
        let vision = open("vision").run(&[("adapter", &adapter)], &["vision"]).unwrap().remove(0);
        for bind in [true, false] {
            let [mut first, mut second] = ["adapter", "vision"].map(open);
            if bind {
                first.always_bind();
                second.always_bind();
            }
            let left = first
                .run_bound(&[("volume", host(&volume))], &[("adapter", OutputPlacement::Device)])
                .unwrap()
                .remove(0);
            drop(first);
            let left = device(left);
            assert_eq!((left.name(), left.shape(), left.dtype()), ("adapter", adapter.shape().to_vec(), "f32".into()));
            for _ in 0..2 {
                let seen = second
                    .run_bound(&[("adapter", Input::Device(&left))], &[("vision", OutputPlacement::Host)])
                    .unwrap();
                let seen = seen.into_iter().next().unwrap().host().unwrap();
                assert!(bits(&seen) == bits(&vision), "{precision} bind {bind}");
            }
            drop(second);
            drop(left);
        }
        // From group to group.
        let feed = [("input_ids", &ids), ("attention_mask", &mask)];
        let text = open("text").run(&feed, &["text"]).unwrap().remove(0);
        let path = bundle.file(&bundle.manifest.parts["text"].file).unwrap();
        let (found, kinds) = bound_in_groups(&path, &feed, "text");
        assert!(bits(&found) == bits(&text), "{precision}");
        assert!(kinds.len() > 3 && kinds.iter().all(|k| ["f32", "f16", "i64"].contains(&k.as_str())), "{kinds:?}");
    }
}

/// A result is its own: the next run of the same session does not write over it.
#[test]
fn results_that_stay_are_not_written_over() {
    let bundle = Bundle::open(commands::tiny_bundle()).unwrap();
    let path = bundle.file(&bundle.manifest.parts["heads"].file).unwrap();
    let mut session = Session::open(common::runtime(), &path, &ONE_THREAD()).unwrap();
    session.always_bind();
    let config = &bundle.manifest.config;
    let features = |width: usize, scale: f32| {
        Tensor::f32(&[1, width], (0..width).map(|i| scale * (i as f32 - 3.5)).collect()).unwrap()
    };
    let text = features(config.text.hidden, 0.5);
    let mut run = |scale: f32, leave| {
        let vision = features(config.vision.hidden, scale);
        let inputs = [("vision", host(&vision)), ("text", host(&text))];
        session.run_bound(&inputs, &[("v", leave), ("logits", OutputPlacement::Host)]).unwrap().remove(0)
    };
    let first = run(1.0, OutputPlacement::Host).host().unwrap();
    let kept = device(run(1.0, OutputPlacement::Device));
    let other = run(-2.0, OutputPlacement::Host).host().unwrap();
    let again = device(run(-2.0, OutputPlacement::Device));
    assert!(bits(&first) != bits(&other));
    let read = |tensor: &DeviceTensor| bits(&tensor.to_host().unwrap());
    assert!(read(&kept) == bits(&first) && read(&again) == bits(&other));
}

#[test]
fn wrong_inputs_are_refused_alike() {
    let bundle = Bundle::open(commands::tiny_bundle()).unwrap();
    let path = bundle.file(&bundle.manifest.parts["text"].file).unwrap();
    let ids = Tensor::i64(&[1, 3], vec![1, 2, 3]).unwrap();
    let [longer, empty] = [4, 0].map(|n| Tensor::i64(&[1, n], vec![1; n]).unwrap());
    let floats = Tensor::f32(&[1, 3], vec![1.0; 3]).unwrap();
    for bind in [false, true] {
        let mut session = Session::open(common::runtime(), &path, &ONE_THREAD()).unwrap();
        if bind {
            session.always_bind();
        }
        let mut refused = |inputs: &[(&str, &Tensor)], output: &str, words: &str| {
            let inputs: Vec<_> = inputs.iter().map(|(n, t)| (*n, host(t))).collect();
            let error = session.run_bound(&inputs, &[(output, OutputPlacement::Device)]).unwrap_err();
            assert_eq!(error.code(), Code::RUNTIME_RUN, "bind {bind}: {error}");
            assert!(error.message().contains(words), "bind {bind}: {error}");
        };
        refused(&[("input_ids", &ids)], "text", "`attention_mask` was not given");
        refused(&[("input_ids", &empty), ("attention_mask", &empty)], "text", "is empty");
        refused(&[("input_ids", &ids), ("attention_mask", &ids)], "nothing", "no output `nothing`");
        refused(&[("input_ids", &ids), ("attention_mask", &longer)], "text", "");
        refused(&[("input_ids", &floats), ("attention_mask", &ids)], "text", "");
        // And the session can still be used.
        let good = [("input_ids", host(&ids)), ("attention_mask", host(&ids))];
        session.run_bound(&good, &[("text", OutputPlacement::Host)]).unwrap();
    }
}

#[test]
fn graphs_are_warmed_up_on_what_they_are_told() {
    let bundle = Bundle::open(commands::tiny_bundle()).unwrap();
    let path = bundle.file(&bundle.manifest.parts["text"].file).unwrap();
    let mut session = Session::open(common::runtime(), &path, &ONE_THREAD()).unwrap();
    let input = |name: &str, opt: &[u64]| ProfiledInput {
        name: name.into(),
        min: vec![1; opt.len()],
        opt: opt.to_vec(),
        max: opt.to_vec(),
    };
    session.warm_up(&[input("input_ids", &[1, 7]), input("attention_mask", &[1, 7])]).unwrap();
    let error = session.warm_up(&[input("input_ids", &[1, 7])]).unwrap_err();
    assert!(error.message().contains("`attention_mask`"), "{error}");
    assert!(session.warm_up(&[input("input_ids", &[1, 7]), input("attention_mask", &[1, 8])]).is_err());
}

fn options(as_on_gpu: bool) -> Options {
    Options { as_on_gpu, library: Some(commands::library()), ..Options::default() }
}

/// Everything in a result that the model computed.
fn said(p: &Prediction) -> (Vec<u32>, Vec<u32>, Option<u32>, String) {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect();
    (bits(&p.logits), bits(&p.fused), p.similarity.map(f32::to_bits), p.label.clone())
}

const REPORT: &str = "Memory complaints for two years. MMSE 24.";

fn both(
    predictor: &Predictor,
    report: &str,
    encoded: &mut Option<EncodedReport>,
    scan: &Path,
) -> brain_adapter::Result<Prediction> {
    let reader = predictor.reader();
    predictor.predict_with_report(report, encoded, || reader.read(scan))
}

/// Whole and in groups, kept and let go: the same answer. In a process of its own: what other tests hold at the moment
/// would be in the plans of the predictor that limits memory.
#[test]
fn predictors_answer_alike() {
    alone(module_path!(), "predictors_answer_alike", answer_alike);
}

fn answer_alike() {
    for (bundle, report) in
        [(commands::tiny_bundle().to_path_buf(), REPORT.to_owned()), (large::bundle(Precision::Fp32), REPORT.repeat(4))]
    {
        // With repacked weights, products are summed in another order.
        let expected_of = |mode| {
            let plain = Predictor::open(&bundle, Options { mode: Some(mode), ..options(false) }).unwrap();
            let encoded = plain.encode_report(&report).unwrap();
            let scan = plain.reader().read(&commands::scan()).unwrap();
            let prediction = plain.predict(scan, Some(&encoded)).unwrap();
            said(&prediction)
        };
        let [resident, one_shot] = [Mode::Resident, Mode::OneShot].map(expected_of);
        let large = bundle != commands::tiny_bundle();
        for (mode, tight) in [(Mode::OneShot, false), (Mode::Resident, false), (Mode::OneShot, large)] {
            let expected = if mode == Mode::Resident { &resident } else { &one_shot };
            let options = Options { mode: Some(mode), ..options(true) };
            let predictor =
                if tight { large::tightest(&bundle, &options) } else { Predictor::open(&bundle, options).unwrap() };
            for round in 0..2 {
                let prediction = both(&predictor, &report, &mut None, &commands::scan()).unwrap();
                let what = format!("{mode} {tight} {:?}", prediction.timing_ms);
                assert_eq!(said(&prediction), *expected, "{what}");
                let warmed = prediction.timing_ms.iter().any(|(name, _)| name == "warm_up");
                assert_eq!(warmed, round == 0 || mode == Mode::OneShot, "{what}");
                let text = prediction.run.stages.iter().find(|s| s.part == "text").unwrap();
                assert_eq!(text.provider, "cpu");
                assert!(!tight || text.groups > 1, "{what}");
            }
        }
        let cold = Options { warm_up: false, ..options(true) };
        let cold = both(&Predictor::open(&bundle, cold).unwrap(), &report, &mut None, &commands::scan()).unwrap();
        assert_eq!(said(&cold), one_shot);
        assert!(cold.timing_ms.iter().all(|(name, _)| name != "warm_up"));
    }
}

/// Every stage's tensor, where all are wanted.
#[test]
fn tensors_that_are_kept_are_the_same() {
    let tensors = |as_on_gpu| {
        let options = Options { keep_tensors: true, ..options(as_on_gpu) };
        let predictor = Predictor::open(commands::tiny_bundle(), options).unwrap();
        both(&predictor, REPORT, &mut None, &commands::scan()).unwrap().tensors
    };
    let (plain, bound) = (tensors(false), tensors(true));
    assert_eq!(plain.len(), bound.len());
    for name in ["volume", "adapter", "vision", "input_ids", "text", "logits"] {
        let find = |all: &[(String, Tensor)]| all.iter().find(|(n, _)| n == name).unwrap().1.clone();
        assert_eq!(find(&plain), find(&bound), "{name}");
    }
}

/// An error of either side is reported once, the report's before the scan's, and the other side is kept.
#[test]
fn errors_of_either_side_are_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("none.nii");
    for as_on_gpu in [true, false] {
        let predictor = Predictor::open(commands::tiny_bundle(), options(as_on_gpu)).unwrap();
        let mut encoded = None;
        let error = both(&predictor, REPORT, &mut encoded, &nowhere).unwrap_err();
        assert_eq!(error.code(), Code::NIFTI_NOT_FOUND);
        // The report is read all the same, and not again.
        let tokens = encoded.as_ref().unwrap().tokens;
        let prediction = both(&predictor, "another one", &mut encoded, &commands::scan()).unwrap();
        assert_eq!(encoded.unwrap().tokens, tokens);
        assert!(prediction.similarity.is_some());
        // The next has no memory of any of it.
        let again = both(&predictor, REPORT, &mut None, &commands::scan()).unwrap();
        assert_eq!(said(&again), said(&prediction));
    }
    // Wrong weights of the language model, found while it runs.
    let bundle = dir.path().join("bundle");
    std::fs::create_dir(&bundle).unwrap();
    commands::copy_files(&large::bundle(Precision::Int8), &bundle);
    let weights = bundle.join("text.onnx.data");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, &bytes).unwrap();
    for scan in [commands::scan(), nowhere] {
        for as_on_gpu in [true, false] {
            let predictor = Predictor::open(&bundle, options(as_on_gpu)).unwrap();
            let mut encoded = None;
            let error = both(&predictor, REPORT, &mut encoded, &scan).unwrap_err();
            assert_eq!(error.code(), Code::BUNDLE_CHECKSUM, "{error}");
            assert!(encoded.is_none());
        }
    }
}

/// Many rows, at once and one after the other; also what the cache knows.
#[test]
fn cohorts_answer_alike() {
    let dir = tempfile::tempdir().unwrap();
    let reports = ["CN. Normal study.", "AD suspected; MMSE 19/30.", REPORT, "MCI, follow-up in a year."];
    let run = |as_on_gpu: bool, cache: Option<&str>| {
        let cache = cache.map(|name| dir.path().join(name));
        let predictor = Predictor::open(commands::tiny_bundle(), Options { cache, ..options(as_on_gpu) }).unwrap();
        let answer = |report| both(&predictor, report, &mut None, &commands::scan()).unwrap();
        let all: Vec<Prediction> = reports.into_iter().cycle().take(6).map(answer).collect();
        let cached = all.iter().map(|p| p.run.from_cache.clone()).collect::<Vec<_>>();
        (all.iter().map(said).collect::<Vec<_>>(), cached)
    };
    let (expected, _) = run(false, None);
    assert_eq!(run(true, None).0, expected);
    let (found, cached) = run(true, Some("cache"));
    assert_eq!(found, expected);
    assert_eq!((cached[0].len(), &cached[1], &cached[4]), (0, &vec!["vision"], &vec!["vision", "text"]));
    // The same device, the same features.
    assert_eq!(run(false, Some("cache")).1[0], ["vision", "text"]);
}

/// Collects notes.
struct Notes(Arc<Mutex<Vec<String>>>);

impl Progress for Notes {
    fn line(&mut self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

/// A progress is shared by threads; without one, notes go nowhere.
#[test]
fn notes_reach_a_shared_progress() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let progress = Shared::new(Notes(Arc::clone(&lines)));
    std::thread::scope(|scope| scope.spawn(|| progress.clone().note("one")).join().unwrap());
    Shared::default().note("to nobody");
    assert_eq!(*lines.lock().unwrap(), ["one"]);
}
