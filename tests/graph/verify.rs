//! The verifier and the type rules refuse wrong graphs; the printer's text, the builder and the folding pass.

use brain_adapter::Code;
use brain_adapter::config::Config;
use brain_adapter::graph::{Builder, Dim, Graph, Node, Op, Value, ValueId, ValueType};
use brain_adapter::model::{self, Attention, Stages, Weights};
use brain_adapter::passes::fold_batch_norm;
use brain_adapter::tensor::{DType, LazyTensor};
use support::rules::{graph, op, rows};

const F: DType = DType::F32;
const B: Dim = Dim::BATCH;
const K: fn(usize) -> Dim = Dim::Known;

/// What the rule makes of an operator over such operands.
fn typed(op: Op, operands: &str, outputs: usize) -> Result<String, String> {
    let graph = graph(op, operands, outputs).map_err(|e| {
        assert_eq!(e.code(), Code::GRAPH_INVALID);
        e.to_string()
    })?;
    let types: Vec<String> = graph.outputs.iter().map(|id| graph.value(*id).ty.to_string()).collect();
    Ok(types.join(" "))
}

#[test]
fn the_rules_answer_and_refuse() {
    let mut failures = Vec::new();
    for (op, operands, expected) in rows() {
        let found = typed(op.clone(), operands, 1);
        let right = match &found {
            Ok(types) => types == expected,
            Err(message) => expected == "!" && message.contains(op.kind) && !message.contains('\n'),
        };
        if !right {
            failures.push(format!("{}({operands}): {found:?}, expected {expected}", op.kind));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    let split = || op("Split").int("axis", 1);
    assert_eq!(typed(split(), "f:n,3 =1,2", 2).unwrap(), "float32[batch, 1] float32[batch, 2]");
    typed(split(), "f:n,3 =-1,4", 2).unwrap_err();
    typed(op("Relu"), "f:3", 2).unwrap_err();
    typed(op("Relu"), "f:3", 0).unwrap_err();
}

/// `y = relu(x · w)`.
fn small() -> Graph {
    let mut g = Builder::new("small");
    let x = g.input("x", F, &[B, K(2)]);
    let w = g.weight("w", LazyTensor::from_f32(&[2, 3], &[1.0; 6]));
    let p = g.matmul(x, w).unwrap();
    let y = g.unary("Relu", p).unwrap();
    g.output("y", y).unwrap();
    g.finish().unwrap()
}

/// An id that the small graph does not have.
fn foreign() -> ValueId {
    let mut g = Builder::new("other");
    (0..99).map(|_| g.input("x", F, &[])).last().unwrap()
}

/// What is done to the small graph, and a word of the refusal.
type Change = (&'static str, fn(&mut Graph));

const CHANGES: &[Change] = &[
    ("before it is made", |g| g.nodes.swap(0, 1)),
    ("before it is made", |g| g.inputs.clear()),
    ("before it is made", |g| drop(g.nodes.remove(0))),
    ("made twice", |g| {
        let again = Node { name: "again".into(), ..g.nodes[1].clone() };
        g.nodes.push(again);
    }),
    ("made twice", |g| g.nodes[1].outputs = g.nodes[0].outputs.clone()),
    ("used twice", |g| g.nodes[1].name = g.nodes[0].name.clone()),
    ("used twice", |g| g.values[1].name = "x".into()),
    ("empty", |g| g.values[0].name = String::new()),
    ("listed twice", |g| g.inputs.push(g.inputs[0])),
    ("listed twice", |g| g.outputs.push(g.outputs[0])),
    ("never made", |g| drop(g.nodes.pop())),
    ("declared", |g| g.values[1].ty = ValueType::known(F, &[3, 2])),
    ("declared", |g| g.values[1].init = Some(LazyTensor::from_i64(&[2, 3], &[1; 6]))),
    ("declared", |g| g.values[2].ty = ValueType::known(F, &[2, 3])),
    ("declared", |g| g.values[3].ty = ValueType::new(F, [B, Dim::Any])),
    ("declared", |g| g.values[3].ty.dtype = DType::F16),
    ("no type rule", |g| g.nodes[1].op.kind = "Frobnicate"),
    ("cannot multiply", |g| g.nodes[0].inputs.swap(0, 1)),
    ("missing", |g| g.nodes[1].inputs[0] = None),
    ("missing", |g| g.nodes[1].inputs.clear()),
    ("results", |g| g.nodes[1].outputs.clear()),
    ("is a weight", |g| g.inputs.push(g.nodes[0].inputs[1].unwrap())),
    ("another graph's", |g| g.outputs.push(foreign())),
    ("another graph's", |g| g.inputs.push(foreign())),
    ("another graph's", |g| g.nodes[1].inputs[0] = Some(foreign())),
    ("another graph's", |g| g.nodes[1].outputs[0] = foreign()),
];

#[test]
fn the_verifier_refuses() {
    let mut failures = Vec::new();
    for (i, (word, change)) in CHANGES.iter().enumerate() {
        let mut graph = small();
        graph.verify().unwrap();
        change(&mut graph);
        match graph.verify() {
            Ok(()) => failures.push(format!("{i}: accepted, expected `{word}`")),
            Err(e) if e.code() != Code::GRAPH_INVALID || !e.to_string().contains(word) => {
                failures.push(format!("{i}: {e}, expected `{word}`"));
            }
            Err(e) => assert!(e.to_string().contains("small"), "the graph is not named: {e}"),
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn the_builder() {
    let mut g = Builder::new("g");
    let x = g.input("x", F, &[B, K(2)]);
    assert_eq!(g.scalar(2.0), g.scalar(2.0));
    assert_ne!(g.scalar(0.0), g.scalar(-0.0));
    assert_eq!(g.ints(&[1, 2]), g.ints(&[1, 2]));
    assert_ne!(g.ints(&[1, 2]), g.ints(&[1]));
    let w = LazyTensor::from_f32(&[2], &[1.0; 2]);
    let (a, b) = (g.weight("w", w.clone()), g.weight("w", w));
    let sum = g.scope("outer", |g| g.scope("inner", |g| g.add(x, a))).unwrap();
    let failed = g.scope("lost", |g| g.unary("Nonsense", x)).unwrap_err();
    assert!(failed.to_string().contains("lost.Nonsense"), "{failed}");
    let sum = g.add(sum, b).unwrap();
    // No output under a name that is taken, of an input, of a weight, or twice.
    for (name, id) in [("x", sum), ("y", x), ("y", a)] {
        assert_eq!(g.output(name, id).unwrap_err().code(), Code::GRAPH_INVALID);
    }
    g.output("y", sum).unwrap();
    g.output("z", sum).unwrap_err();
    assert!(g.declare(sum, &[B, K(3)]).is_err() && g.declare(sum, &[K(4), K(2)]).is_err());
    let graph = g.finish().unwrap();
    let names: Vec<&str> = graph.nodes.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["outer.inner.Add", "Add"]);
    let weights: Vec<&str> = graph.initializers().iter().map(|&id| graph.value(id).name.as_str()).collect();
    assert_eq!((weights, graph.parameters()), (vec!["w", "w.1"], 4));
}

#[test]
fn printed_graphs() {
    let config: Config = serde_json::from_value(serde_json::json!({
        "volume": {"size": 16, "voxel_mm": 16.0}, "adapter": {"in": 16, "out": 4},
        "vision": {"img": [2, 16, 16], "patch": [2, 8, 8], "hidden": 12, "mlp": 20, "layers": 1, "heads": 3},
        "text": {"hidden": 8}, "projection": {"dim": 6}
    }))
    .unwrap();
    config.validate().unwrap();
    let zeros = |(name, shape): (String, Vec<usize>)| {
        let tensor = LazyTensor::from_f32(&shape, &vec![0.5; shape.iter().product()]);
        (name, tensor)
    };
    let weights: Weights = model::keys::adapter(&config).into_iter().map(zeros).collect();
    let adapter = model::adapter::build(&config, &weights).unwrap();
    let (folded, _) = fold_batch_norm(adapter.clone()).unwrap();
    let weights: Weights = model::keys::vision(&config).into_iter().map(zeros).collect();
    let vision = |form| model::vit::build(&config, &weights, form, Stages::Output).unwrap();
    golden("adapter.txt", &format!("{adapter}\n{folded}"));
    golden("vision.txt", &format!("{}\n{}", vision(Attention::Fused), vision(Attention::Decomposed)));
}

/// Compares with `tests/graph/printed/NAME`; with `BA_BLESS=1` in the environment, writes it.
fn golden(name: &str, text: &str) {
    let path = support::package("tests/graph/printed").join(name);
    if std::env::var_os("BA_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = expected.lines().zip(text.lines()).find(|(e, f)| e != f);
    assert!(expected == text, "{} differs, first at {differs:#?}; BA_BLESS=1 writes it anew", path.display());
}

/// A value pushed as a pass does, to show that the verifier sees what passes make.
#[test]
fn values_that_nothing_uses_are_allowed() {
    let mut graph = small();
    let ty = ValueType::known(F, &[1]);
    graph.values.push(Value { name: "spare".into(), ty, init: Some(LazyTensor::from_f32(&[1], &[1.0])) });
    graph.verify().unwrap();
    assert_eq!(graph.parameters(), 6);
}
