//! Bundles in the forms of CUDA and TensorRT, run here on a CPU: close to fp32, of the integers that each device takes,
//! and saying what they are good for.

#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};

use brain_adapter::Code;
use brain_adapter::bundle::{Bundle, Manifest, Parity, PartRecord, Precision, Target};
use brain_adapter::export::{self, Plan, Sources};
use brain_adapter::model::Part;
use brain_adapter::passes::quantize::Scheme;
use brain_adapter::progress::Silent;
use brain_adapter::runtime::{Session, SessionOptions};
use brain_adapter::tensor::{Tensor, cosine};
use support::forms::{self, PART_RUNS, PartRun, Values};
use support::reference::{
    generate::{Case, random_case},
    write::write_case,
};
use support::{commands, common};

/// Least cosine of half precision, each stage on fp32's result of the stage before.
const HALF: f64 = 0.9999;

/// One part's graph for a provider, on these inputs.
fn run(bundle: &Bundle, provider: &str, part: usize, values: &Values) -> Values {
    let PartRun { part, inputs, outputs } = &PART_RUNS[part];
    let path = bundle.file(bundle.manifest.graph(part.parse().unwrap(), provider).unwrap()).unwrap();
    let options = SessionOptions { threads: Some(1), ..SessionOptions::default() };
    let mut session = Session::open(common::runtime(), &path, &options).unwrap();
    let feed: Vec<(&str, &Tensor)> = inputs.iter().map(|n| (*n, &values[*n])).collect();
    let found = session.run(&feed, outputs).unwrap();
    outputs.iter().map(|n| (*n).to_owned()).zip(found).collect()
}

/// Everything that the fp32 bundle makes of the inputs.
fn single(bundle: &Bundle, inputs: Values) -> Values {
    (0..PART_RUNS.len()).fold(inputs, |mut values, part| {
        let found = run(bundle, "cpu", part, &values);
        values.extend(found);
        values
    })
}

/// The least cosine of a sample, over all outputs of each part.
fn cosines(bundle: &Bundle, provider: &str, expected: &Values) -> [f64; 4] {
    std::array::from_fn(|part| {
        let found = run(bundle, provider, part, expected);
        let of = |(name, tensor): (&String, &Tensor)| {
            assert_eq!(tensor.shape(), expected[name].shape(), "{name}");
            let (found, expected) = (tensor.as_f32().unwrap(), expected[name].as_f32().unwrap());
            let width = found.len() / tensor.shape()[0];
            let rows = found.chunks(width).zip(expected.chunks(width));
            rows.map(|(f, e)| cosine(f.iter().copied(), e.iter().copied()))
                .fold(1.0, |m: f64, c| if c.is_nan() { c } else { m.min(c) })
        };
        found.iter().map(of).fold(1.0, |m: f64, c| if c.is_nan() { c } else { m.min(c) })
    })
}

#[test]
fn half_precision_of_the_fixtures_in_both_forms() {
    for fixture in forms::FIXTURES {
        let dir = tempfile::tempdir().unwrap();
        forms::write(dir.path(), fixture);
        let bundles = [Precision::Fp32, Precision::Fp16].map(|p| forms::export(dir.path(), p, Target::Cpu));
        let expected = single(&bundles[0], forms::recorded_inputs(fixture.name));
        // The second form of fp32 is the first, operator by operator.
        let same = cosines(&bundles[0], "tensorrt", &expected);
        assert!(same.iter().all(|c| *c > 1.0 - 1e-9), "{fixture:?}: {same:?}");
        for provider in ["cuda", "tensorrt"] {
            let found = cosines(&bundles[1], provider, &expected);
            eprintln!("{} fp16 for {provider}: {found:.7?}", fixture.name);
            assert!(found.iter().all(|c| *c >= HALF), "{fixture:?} for {provider}: {found:?}");
        }
    }
}

/// Random configurations, without a calibration input: what half precision does where nothing was measured.
#[test]
fn half_precision_of_random_models_in_both_forms() {
    for case in (300..320).map(random_case) {
        let dir = tempfile::tempdir().unwrap();
        let bundles = [Precision::Fp32, Precision::Fp16].map(|precision| export_case(&case, dir.path(), precision));
        let ints = |rows: &[Vec<i64>]| Tensor::i64(&[rows.len(), rows[0].len()], rows.concat()).unwrap();
        let volume = Tensor::f32(&case.inputs.volume.shape, case.inputs.volume.to_f32()).unwrap();
        let (ids, mask) = (ints(&case.inputs.input_ids), ints(&case.inputs.attention_mask));
        let inputs = [("volume", volume), ("input_ids", ids), ("attention_mask", mask)];
        let expected = single(&bundles[0], inputs.map(|(n, t)| (n.to_owned(), t)).into());
        for provider in ["cuda", "tensorrt"] {
            let found = cosines(&bundles[1], provider, &expected);
            assert!(found.iter().all(|c| *c >= HALF), "seed {} for {provider}: {found:?}", case.seed);
        }
    }
}

fn export_case(case: &Case, dir: &Path, precision: Precision) -> Bundle {
    let model = dir.join("model");
    if !model.exists() {
        fs::create_dir(&model).unwrap();
        write_case(case, &model, Some(&support::package("tests/data/tokenizer/tokenizer.json")));
    }
    let plan = Plan { precision, ..Plan::new(Sources::in_folder(&model).unwrap(), dir.join(precision.name())) };
    export::run(&plan, &mut Silent).unwrap_or_else(|e| panic!("seed {} {precision}: {e}", case.seed));
    Bundle::open(&plan.output).unwrap()
}

/// Both graphs of vision lie over one data file: of the model's large weights none is there twice.
#[test]
fn the_companion_brings_no_weights() {
    let dir = tempfile::tempdir().unwrap();
    for precision in [Precision::Fp32, Precision::Fp16] {
        let sources = Sources::in_folder(&support::package("examples/demo/checkpoint")).unwrap();
        let plan = Plan { precision, ..Plan::new(sources, dir.path().join(precision.name())) };
        export::run(&plan, &mut Silent).unwrap();
        let bundle = Bundle::open(&plan.output).unwrap();
        let vision = &bundle.manifest.parts["vision"];
        assert_eq!((vision.file.as_str(), vision.tensorrt.as_deref()), ("vision.onnx", Some("vision.tensorrt.onnx")));
        let others = bundle.manifest.parts.iter().filter(|(name, _)| *name != "vision");
        assert!(others.map(|(_, part)| part).all(|part| part.tensorrt.is_none()));
        let size = |name: &str| fs::metadata(bundle.file(name).unwrap()).unwrap().len();
        let [first, second, data] = ["vision.onnx", "vision.tensorrt.onnx", "vision.onnx.data"].map(size);
        assert_eq!(vision.bytes, first + second + data);
        assert!(second < 2 * first && second < data / 10, "{second} bytes next to {first} and {data}");
        let names = commands::names(&bundle.dir);
        assert_eq!(names.iter().filter(|n| n.ends_with(".data") && n.starts_with("vision")).count(), 1, "{names:?}");
        let files: Vec<PathBuf> = ["vision.onnx", "vision.tensorrt.onnx"].map(|f| bundle.file(f).unwrap()).into();
        let Some(read) = forms::nodes(&files) else { continue };
        assert!(read.iter().all(|file| file["external"] == serde_json::json!(["vision.onnx.data"])));
        let own = |i: usize| read[i]["nodes"].as_array().unwrap().iter().any(|n| n["domain"] != "ai.onnx");
        assert_eq!([own(0), own(1)], [true, false]);
    }
}

#[test]
fn integers_for_gpus_keep_the_limits() {
    for fixture in forms::FIXTURES {
        let dir = tempfile::tempdir().unwrap();
        forms::write(dir.path(), fixture);
        let bundle = forms::export(dir.path(), Precision::Fp32, Target::Cpu);
        let expected = single(&bundle, forms::recorded_inputs(fixture.name));
        for (precision, target) in
            [(Precision::Int8, Target::Cuda), (Precision::Int8, Target::TensorRt), (Precision::Int4, Target::Cuda)]
        {
            let bundle = forms::export(dir.path(), precision, target);
            let record = bundle.manifest.quantization.as_ref().unwrap();
            assert_eq!((bundle.manifest.target, bundle.manifest.graph(Part::Text, "cpu")), (target, Some("text.onnx")));
            for layer in &record.layers {
                assert!(layer.error.unwrap() <= record.max_error, "{fixture:?} {precision} for {target}: {layer:?}");
            }
            let integers = record.layers.iter().filter(|l| !matches!(l.scheme, Scheme::Fp16 | Scheme::Fp32)).count();
            assert!(
                3 * integers > record.layers.len(),
                "{fixture:?} for {target}: {integers} of {}",
                record.layers.len()
            );
            let found = cosines(&bundle, "cpu", &expected);
            eprintln!("{} {precision} for {target}: {found:.6?}", fixture.name);
            // The limits of 8 bits, and of 4 bits in the language model.
            let text = if precision == Precision::Int4 { 0.99 } else { 0.9995 };
            // In the order of the parts.
            let least = [HALF, 0.9995, text, HALF];
            for ((found, least), PartRun { part, .. }) in found.into_iter().zip(least).zip(PART_RUNS) {
                assert!(found >= least, "{fixture:?} {precision} for {target}, {part}: {found}");
            }
            assert!(bundle.manifest.parts.values().all(|p| matches!(p.parity, Parity::Checked { .. })));
            assert_eq!(bundle.manifest.parts["adapter"].precision, Precision::Fp16);
        }
    }
}

/// TensorRT's rules, in the eyes of the onnx package: int8 around 0, one scale an activation, one an output of a
/// weight.
#[test]
fn pairs_for_tensorrt_are_symmetric() {
    let dir = tempfile::tempdir().unwrap();
    forms::write(dir.path(), forms::FIXTURES[1]);
    let bundle = forms::export(dir.path(), Precision::Int8, Target::TensorRt);
    let record = bundle.manifest.quantization.as_ref().unwrap();
    let files: Vec<PathBuf> = forms::graphs(&bundle, "tensorrt").into_iter().map(|(_, path)| path).collect();
    let Some(read) = forms::nodes(&files) else { return };
    for ((part, file), path) in forms::PARTS.iter().zip(&read).zip(&files) {
        assert!(file["nodes"].as_array().unwrap().iter().all(|n| n["domain"] == "ai.onnx"), "{}", path.display());
        let layers = record.layers.iter().filter(|l| l.part == *part && l.scheme == Scheme::Int8Tensor).count();
        let pairs = file["pairs"].as_array().unwrap();
        let weights: Vec<_> = pairs.iter().filter(|p| p["of_weight"] == true).collect();
        assert_eq!(weights.len(), layers, "{part}");
        assert_eq!(layers > 0, matches!(*part, "vision" | "text"), "{part}");
        for pair in pairs {
            assert!(pair["zero_type"] == "int8" && pair["zeros"] == true && pair["scales_usable"] == true, "{pair}");
            match (pair["op"].as_str().unwrap(), pair["of_weight"] == true) {
                ("DequantizeLinear", true) => {
                    let outputs = &pair["shape"][1];
                    assert!(pair["axis"] == 1 && pair["scales"] == serde_json::json!([outputs]), "{pair}");
                    // -128 has no opposite.
                    assert!(pair["least"].as_i64().unwrap() >= -127, "{pair}");
                    assert_eq!(pair["read_by"], serde_json::json!(["MatMul"]), "{pair}");
                }
                ("DequantizeLinear", false) => assert_eq!(pair["read_by"], serde_json::json!(["MatMul"]), "{pair}"),
                _ => assert_eq!(pair["read_by"], serde_json::json!(["DequantizeLinear"]), "{pair}"),
            }
            assert!(pair["of_weight"] == true || pair["scales"] == serde_json::json!([]), "{pair}");
        }
        let ends = |op: &str| pairs.iter().filter(|p| p["op"] == op && p["of_weight"] == false).count();
        assert_eq!(ends("QuantizeLinear"), ends("DequantizeLinear"), "{part}");
    }
}

#[test]
fn what_cannot_be_made_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    forms::write(dir.path(), forms::FIXTURES[0]);
    let refused = |precision, target, calibration: Option<PathBuf>| {
        let plan = Plan { calibration, ..forms::plan(dir.path(), precision, target) };
        let e = export::run(&plan, &mut Silent).unwrap_err();
        assert!(!plan.output.exists());
        (e.code(), e.to_string())
    };
    let all = Some(dir.path().join("calibration"));
    let (code, why) = refused(Precision::Int4, Target::TensorRt, all);
    assert!(code == Code::DEVICE_PRECISION && why.contains("int4 for cuda"), "{why}");
    let (code, why) = refused(Precision::Int8, Target::TensorRt, None);
    assert!(code == Code::CALIBRATION_INPUT && why.contains("scan") && why.contains("--statistics"), "{why}");
    let reports = dir.path().join("reports");
    fs::create_dir(&reports).unwrap();
    fs::write(reports.join("a.txt"), "Normal study.").unwrap();
    assert_eq!(refused(Precision::Int8, Target::TensorRt, Some(reports)).0, Code::CALIBRATION_INPUT);
    // Statistics of an earlier export stand in for inputs, and give the same ranges.
    let bundle = forms::export(dir.path(), Precision::Int8, Target::TensorRt);
    let statistics = Some(bundle.file("calibration.safetensors").unwrap());
    let output = dir.path().join("again");
    let plan =
        Plan { statistics, calibration: None, output, ..forms::plan(dir.path(), Precision::Int8, Target::TensorRt) };
    let summary = export::run(&plan, &mut Silent).unwrap();
    let layers = summary.quantization.unwrap().layers;
    assert!(layers.iter().any(|l| l.scheme == Scheme::Int8Tensor), "{layers:?}");
}

/// A manifest of this precision and target, of the tiny model.
fn manifest(precision: Precision, target: Target, companion: bool) -> Manifest {
    let bundle = Bundle::open(commands::tiny_bundle()).unwrap();
    let part = |(name, part): (&String, &PartRecord)| {
        let tensorrt = part.tensorrt.clone().filter(|_| companion);
        let precision = if matches!(name.as_str(), "vision" | "text") { precision } else { part.precision };
        (name.clone(), PartRecord { precision, tensorrt, ..part.clone() })
    };
    Manifest { parts: bundle.manifest.parts.iter().map(part).collect(), target, ..bundle.manifest.clone() }
}

#[test]
fn a_manifest_says_what_it_is_good_for() {
    use Precision::{Fp16, Fp32, Int4, Int8};
    use Target::{Cpu, Cuda, TensorRt};
    /// A form of a bundle, whether its vision graph has a companion for TensorRT, and the providers that it suits.
    struct Row {
        precision: Precision,
        target: Target,
        companion: bool,
        suits: &'static [&'static str],
    }
    let everywhere = &["cpu", "cuda", "tensorrt", "tensorrt-rtx"][..];
    let rows = [
        Row { precision: Fp32, target: Cpu, companion: true, suits: everywhere },
        Row { precision: Fp16, target: Cpu, companion: true, suits: everywhere },
        // Of a version before there were companions.
        Row { precision: Fp32, target: Cpu, companion: false, suits: &["cpu", "cuda"] },
        Row { precision: Fp16, target: Cpu, companion: false, suits: &["cpu", "cuda"] },
        Row { precision: Int8, target: Cpu, companion: false, suits: &["cpu"] },
        Row { precision: Int4, target: Cpu, companion: false, suits: &["cpu"] },
        Row { precision: Int8, target: Cuda, companion: false, suits: &["cpu", "cuda"] },
        Row { precision: Int4, target: Cuda, companion: false, suits: &["cpu", "cuda"] },
        Row { precision: Int8, target: TensorRt, companion: false, suits: &["cpu", "tensorrt", "tensorrt-rtx"] },
    ];
    for Row { precision, target, companion, suits } in rows {
        let manifest = manifest(precision, target, companion);
        for provider in everywhere {
            let expected = suits.contains(provider);
            let found = manifest.suits(provider);
            assert_eq!(found.is_ok(), expected, "{precision} for {target} on {provider}: {found:?}");
            assert_eq!(manifest.graph(Part::Text, provider), expected.then_some("text.onnx"));
            let second = companion && provider.starts_with("tensorrt");
            let vision = if second { "vision.tensorrt.onnx" } else { "vision.onnx" };
            assert_eq!(manifest.graph(Part::Vision, provider), expected.then_some(vision));
            if let Err(why) = found {
                let whole = why.contains(provider)
                    && (why.contains("exported with `ba-export") || why.contains("export it again"))
                    && !why.contains('\n');
                assert!(whole, "{why}");
            }
        }
        assert!(manifest.suits("rocm").unwrap_err().contains("rocm"));
        // What old bundles do not say is not written either.
        let text = String::from_utf8(manifest.to_bytes().unwrap()).unwrap();
        assert_eq!(text.contains("\"target\""), target != Cpu);
        assert_eq!(text.contains("\"tensorrt\":"), companion);
        assert_eq!(Manifest::from_bytes(text.as_bytes()).unwrap(), manifest);
    }
    let why = manifest(Int8, Cpu, false).suits("cuda").unwrap_err();
    assert!(why.contains("`ba-export --quantize int8 --target cuda`") && why.contains("fp16"), "{why}");
}

/// Who tampers with the second graph is found out like one who tampers with the first.
#[test]
fn the_companion_is_verified() {
    let open = |change: &dyn Fn(&Path)| {
        let dir = commands::tiny_copy();
        change(dir.path());
        Bundle::open(dir.path()).unwrap_err().code()
    };
    let file = "vision.tensorrt.onnx";
    assert_eq!(open(&|dir| fs::remove_file(dir.join(file)).unwrap()), Code::BUNDLE_CHECKSUM);
    assert_eq!(
        open(&|dir| fs::copy(dir.join("vision.onnx"), dir.join(file)).map(drop).unwrap()),
        Code::BUNDLE_CHECKSUM
    );
    let edit = |dir: &Path, from: &str, to: &str| {
        let path = dir.join("bundle.json");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(path, text.replacen(from, to, 1)).unwrap();
    };
    let field = "\"tensorrt\": \"vision.tensorrt.onnx\"";
    assert_eq!(open(&|dir| edit(dir, field, "\"tensorrt\": \"other.onnx\"")), Code::BUNDLE_MANIFEST);
    assert_eq!(open(&|dir| edit(dir, field, "\"tensorrt\": \"../vision.onnx\"")), Code::BUNDLE_MANIFEST);
}
