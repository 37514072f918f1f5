//! Training artifacts in other hands: the onnx package's checker, stock ONNX Runtime, and Microsoft's training runtime,
//! which must train with our files as it does with its own.

use std::collections::BTreeMap;
use std::path::Path;

use brain_adapter::Code;
use brain_adapter::checkpoint::{Checkpoint, Properties, TrainingState};
use brain_adapter::config::AdamW;
use brain_adapter::graph::{Builder, Dim, Graph, Op, ValueId};
use brain_adapter::onnx::write;
use brain_adapter::optimizer::{optimizer_model, write_optimizer_model};
use brain_adapter::runtime::{Session, SessionOptions};
use brain_adapter::tensor::{DType, LazyTensor, Tensor};
use support::common::{assert_close, runtime};
use support::ort_training::{self, assert_within, train};
use support::package;
use support::{oracle, rules};

fn fixture(name: &str) -> std::path::PathBuf {
    package("tests/data/ort-training").join(name)
}

fn open(path: &Path) -> Session {
    Session::open(runtime(), path, &SessionOptions::default()).unwrap()
}

/// A buffer of that shape and what is added to it. Sessions here take no booleans: `reset` comes as an integer.
fn accumulator(shape: &[usize]) -> Graph {
    let mut g = Builder::new("accumulator");
    let dims: Vec<Dim> = shape.iter().map(|&n| Dim::Known(n)).collect();
    let buffer = g.input("buffer", DType::F32, &dims);
    let gradient = g.input("gradient", DType::F32, &dims);
    let reset = g.input("reset", DType::I64, &[Dim::Known(1)]);
    let reset = g.cast(reset, DType::Bool).unwrap();
    let [flag, sum] = g.accumulate(buffer, gradient, reset).unwrap();
    g.output("flag", flag).unwrap();
    g.output("sum", sum).unwrap();
    g.finish().unwrap()
}

#[test]
fn gradients_add_up_in_stock_onnx_runtime() {
    for shape in [&[][..], &[1], &[3, 2, 1, 1]] {
        let folder = tempfile::tempdir().unwrap();
        write(&accumulator(shape), folder.path(), "accumulator", &mut |_| {}).unwrap();
        let n: usize = shape.iter().product();
        let values = |by: f32| Tensor::f32(shape, (0..n).map(|i| (i + 1) as f32 * by).collect()).unwrap();
        // What is reset may be anything, even no number.
        let spoilt = Tensor::f32(shape, vec![f32::NAN; n]).unwrap();
        let mut session = open(&folder.path().join("accumulator.onnx"));
        for (buffer, reset, expected) in [(values(0.5), 0, values(0.75)), (spoilt, 1, values(0.25))] {
            let reset = Tensor::i64(&[1], vec![reset]).unwrap();
            let inputs = [("buffer", &buffer), ("gradient", &values(0.25)), ("reset", &reset)];
            let sum = &session.run(&inputs, &["sum"]).unwrap()[0];
            assert_eq!((sum.shape(), sum.as_f32()), (shape, expected.as_f32()));
        }
        if let Some(report) =
            oracle::run_python("the onnx package's checker", "tests/scripts/onnx_check.py", [folder.path()])
        {
            let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
            let row = &report["accumulator.onnx"];
            assert!(row["error"].is_null() && row["wrong"] == serde_json::json!([]), "{row}");
        }
    }
}

#[test]
fn the_accumulators_rule() {
    let typed = |operands: &str, outputs: usize| {
        let graph = rules::graph(Op::microsoft("InPlaceAccumulatorV2"), operands, outputs).ok()?;
        Some(graph.outputs.iter().map(|id| graph.value(*id).ty.to_string()).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(typed("f:4,3 f:4,3 b:1", 2).unwrap(), "bool[1] float32[4, 3]");
    assert_eq!(typed("f: f: b:1", 2).unwrap(), "bool[1] float32[]");
    for (operands, outputs) in [
        ("f:4,3 f:4,3 b:1", 1),
        ("f:4,3 f:3,4 b:1", 2),
        ("f:4 f:4 b:", 2),
        ("f:4 f:4 i:1", 2),
        ("f:4 h:4 b:1", 2),
        ("i:4 i:4 b:1", 2),
        ("f:4 f:4", 2),
        ("f:4 f:4 b:1 b:1", 2),
    ] {
        assert_eq!(typed(operands, outputs), None, "{operands}");
    }
}

#[test]
fn the_optimizers_model_is_pytorchs_in_stock_onnx_runtime() {
    let run = Checkpoint::open(package("tests/data/adamw/uniform.safetensors")).unwrap();
    let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_str(&run.metadata()["parameters"]).unwrap();
    let options: AdamW = serde_json::from_str(&run.metadata()["options"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (path, plain) = (folder.path().join("optimizer_model.onnx"), folder.path().join("plain.onnx"));
    write_optimizer_model(&path, shapes.len(), &options).unwrap();
    // As it is: every runtime loads it.
    assert_eq!(open(&path).inputs().len(), 6);
    let count = shapes.len().to_string();
    let script = "tests/scripts/ort_training/tensors_in_front.py";
    let arguments: [&Path; 3] = [&path, count.as_ref(), &plain];
    let Some(_) = oracle::run_python("the optimizer's model against PyTorch's steps", script, arguments) else {
        return;
    };
    let recorded = |name: String| {
        let tensor = run.get(&name).unwrap_or_else(|| panic!("{name}"));
        Tensor::f32(tensor.shape(), tensor.to_f32().unwrap()).unwrap()
    };
    let mut session = open(&plain);
    let lists = [("params", ""), ("first_order_moments", ".m"), ("second_order_moments", ".v")];
    let mut state: BTreeMap<String, Tensor> = BTreeMap::new();
    for (i, (name, shape)) in shapes.iter().enumerate() {
        let zeros = Tensor::f32(shape, vec![0.0; shape.iter().product()]).unwrap();
        state.insert(format!("params.{i}"), recorded(format!("0.{name}")));
        state.insert(format!("first_order_moments.{i}"), zeros.clone());
        state.insert(format!("second_order_moments.{i}"), zeros);
    }
    for step in 1..=run.metadata()["steps"].parse().unwrap() {
        let mut inputs = state.clone();
        inputs.insert("learning_rate".into(), recorded(format!("{step}.learning_rate")));
        inputs.insert("step".into(), Tensor::i64(&[1], vec![step]).unwrap());
        for (i, name) in shapes.keys().enumerate() {
            inputs.insert(format!("gradients.{i}"), recorded(format!("{step}.{name}_grad")));
        }
        let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (name.as_str(), t)).collect();
        for (list, suffix) in lists {
            for (i, name) in shapes.keys().enumerate() {
                let result = session.run(&inputs, &[&format!("{list}.out.{i}")]).unwrap().remove(0);
                let expected = recorded(format!("{step}.{name}{suffix}"));
                assert_eq!(result.shape(), expected.shape(), "{name}{suffix}");
                assert_close(
                    &format!("{step} {name}{suffix}"),
                    result.as_f32().unwrap(),
                    expected.as_f32().unwrap(),
                    5e-7,
                );
                state.insert(format!("{list}.{i}"), result);
            }
        }
    }
}

#[test]
fn an_optimizer_that_microsofts_runtime_has_not_is_refused() {
    let code = |parameters, options: &AdamW| optimizer_model(parameters, options).unwrap_err().code();
    assert_eq!(code(1, &AdamW { clip: Some(1.0), ..AdamW::default() }), Code::CONFIG_VALUE);
    assert_eq!(code(1, &AdamW { eps: -1.0, ..AdamW::default() }), Code::CONFIG_VALUE);
    assert_eq!(code(0, &AdamW::default()), Code::GRAPH_INVALID);
}

/// The recorded graphs with our optimizer and our copy of the checkpoint.
fn recorded_graphs_with_our_files(folder: &Path) {
    for name in ["training_model.onnx", "eval_model.onnx"] {
        std::fs::copy(fixture("portable").join(name), folder.join(name)).unwrap();
    }
    write_optimizer_model(&folder.join("optimizer_model.onnx"), 6, &AdamW::default()).unwrap();
    let state = TrainingState::open(fixture("portable/checkpoint")).unwrap();
    assert_eq!(state.trainable.len(), 6);
    state.write(folder.join("checkpoint")).unwrap();
}

#[test]
fn microsofts_runtime_trains_with_our_optimizer_and_checkpoint() {
    let Some(python) = oracle::ort119("our artifacts trained by Microsoft's runtime") else { return };
    let folder = tempfile::tempdir().unwrap();
    recorded_graphs_with_our_files(folder.path());
    for (expected, accumulate) in [("expected.npz", "1"), ("expected_accumulate2.npz", "2")] {
        let options = [("accumulate", Path::new(accumulate))];
        let found = train(&python, folder.path(), &fixture("feeds.npz"), &fixture(expected), &options);
        assert_eq!(found.len(), 15, "{found:?}");
        // Measured for these graphs with Microsoft's own optimizer: 2.4e-7.
        assert_within(expected, &found, 1e-6);
    }
}

#[test]
fn microsofts_runtime_goes_on_where_our_checkpoint_says() {
    let Some(python) = oracle::ort119("our artifacts trained by Microsoft's runtime") else { return };
    let folder = tempfile::tempdir().unwrap();
    recorded_graphs_with_our_files(folder.path());
    let mut state = TrainingState::open(fixture("portable/checkpoint_after_3_steps")).unwrap();
    state.properties = Properties {
        ints: BTreeMap::from([("epoch".into(), 4)]),
        floats: BTreeMap::from([("best".into(), 0.5)]),
        strings: BTreeMap::from([("note".into(), "✓".into())]),
    };
    let (ours, saved) = (folder.path().join("ours"), folder.path().join("saved"));
    state.write(&ours).unwrap();
    // The same from Microsoft's own file: bit for bit, for it is the same runtime with the same values.
    let theirs = fixture("portable/checkpoint_after_3_steps");
    let expected = folder.path().join("expected.npz");
    let feeds = fixture("feeds.npz");
    let two = ("steps", Path::new("2"));
    ort_training::run(&python, folder.path(), &feeds, &expected, &[two, ("checkpoint", &theirs)]);
    let options = [two, ("checkpoint", ours.as_path()), ("save", saved.as_path())];
    let found = train(&python, folder.path(), &feeds, &expected, &options);
    assert_within("continued", &found, 0.0);
    // What it then saves, we read: the fifth step, and the properties as they were.
    let after = TrainingState::open(&saved).unwrap();
    assert_eq!(after.optimizer.unwrap().step, 5);
    assert_eq!(after.properties, state.properties);
}

/// loss = mean((x · w · s)²), with gradients where `training`; `tests/data/ort-training/make_scaled.py` is the same in
/// PyTorch.
fn scaled(training: bool) -> Graph {
    build_scaled(training).unwrap()
}

fn build_scaled(training: bool) -> brain_adapter::Result<Graph> {
    let known = Dim::Known;
    let mut g = Builder::new(if training { "training" } else { "eval" });
    let x = g.input("x", DType::F32, &[known(2), known(3)]);
    let w = g.input("w", DType::F32, &[known(3)]);
    let s = g.input("s", DType::F32, &[]);
    let xw = g.mul(x, w)?;
    let y = g.mul(xw, s)?;
    let square = g.mul(y, y)?;
    let loss = g.reduce_mean(square, &[0, 1], false)?;
    g.output("loss", loss)?;
    if training {
        let buffer_w = g.input("w_grad.accumulation.buffer", DType::F32, &[known(3)]);
        let buffer_s = g.input("s_grad.accumulation.buffer", DType::F32, &[]);
        let reset = g.input("lazy_reset_grad", DType::Bool, &[known(1)]);
        let third = g.scalar(2.0 / 6.0);
        let dy = g.mul(y, third)?;
        let products: [ValueId; 2] = [g.mul(dy, xw)?, g.mul(dy, x)?];
        let ds = g.reduce_sum(products[0], &[0, 1], false)?;
        let sum = g.reduce_sum(products[1], &[0], false)?;
        let dw = g.mul(sum, s)?;
        let sums = [g.accumulate(buffer_w, dw, reset)?, g.accumulate(buffer_s, ds, reset)?];
        for (name, [flag, _]) in ["w", "s"].into_iter().zip(sums) {
            g.output(&format!("{name}_grad.accumulation.out"), flag)?;
        }
        for (name, [_, sum]) in ["w", "s"].into_iter().zip(sums) {
            g.output(&format!("accumulated.{name}_grad"), sum)?;
        }
    }
    g.finish()
}

/// Our graphs too: the file's version and that of its operators, and the function, in Microsoft's runtime.
#[test]
fn microsofts_runtime_trains_a_graph_of_ours() {
    let Some(python) = oracle::ort119("our artifacts trained by Microsoft's runtime") else { return };
    let folder = tempfile::tempdir().unwrap();
    write(&scaled(true), folder.path(), "training_model", &mut |_| {}).unwrap();
    write(&scaled(false), folder.path(), "eval_model", &mut |_| {}).unwrap();
    let options = AdamW { betas: [0.8, 0.95], eps: 1e-6, weight_decay: 0.25, clip: None };
    write_optimizer_model(&folder.path().join("optimizer_model.onnx"), 2, &options).unwrap();
    let (w, s) = (LazyTensor::from_f32(&[3], &[0.5, -1.0, 2.0]), LazyTensor::from_f32(&[], &[1.5]));
    let trainable = BTreeMap::from([("w".to_owned(), w), ("s".to_owned(), s)]);
    TrainingState { trainable, ..TrainingState::default() }.write(folder.path().join("checkpoint")).unwrap();
    let expected = fixture("scaled_expected.npz");
    let options = [("accumulate", Path::new("2")), ("lr", Path::new("0.125"))];
    let found = train(&python, folder.path(), &fixture("scaled_feeds.npz"), &expected, &options);
    assert_eq!(found.len(), 6, "{found:?}");
    assert_within("scaled", &found, 2e-6);
}
