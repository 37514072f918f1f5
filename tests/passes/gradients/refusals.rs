//! What is not differentiated: no rule, no way, no wish.

use brain_adapter::graph::{Attribute, Builder, Dim, Graph, Op};
use brain_adapter::passes::autodiff::{differentiate, joint};
use brain_adapter::tensor::{DType, LazyTensor};

fn graph(build: impl FnOnce(&mut Builder) -> brain_adapter::Result<()>) -> Graph {
    let mut g = Builder::new("refused");
    build(&mut g).unwrap();
    g.finish().unwrap()
}

fn refusal(graph: &Graph, of: &[&str], wrt: &[&str]) -> String {
    let error = joint(graph, of, wrt).unwrap_err();
    assert_eq!(error.code().to_string(), "graph.invalid");
    error.to_string()
}

/// `[2, 3]` by an operator alone, under a scope.
fn alone(op: Op) -> Graph {
    graph(|g| {
        let x = g.input("x", DType::F32, &[Dim::Known(2), Dim::Known(3)]);
        let y = g.scope("somewhere", |g| g.node(op, &[Some(x)]))?;
        g.output("y", y)
    })
}

#[test]
fn an_operator_without_a_rule_is_named() {
    for kind in ["Sigmoid", "Abs", "Cos", "Erf", "Reciprocal"] {
        let message = refusal(&alone(Op::new(kind)), &["y"], &["x"]);
        assert!(message.contains(&format!("`somewhere.{kind}`")), "{message}");
        assert!(message.contains(&format!("operator `{kind}` has no gradient rule")), "{message}");
    }
}

/// A form that a rule does not know must not be differentiated as another.
#[test]
fn attributes_that_a_rule_does_not_know_are_named() {
    let gelu = alone(Op::new("Gelu").with("approximate", Attribute::Text("tanh")));
    let message = refusal(&gelu, &["y"], &["x"]);
    assert!(message.contains("`Gelu` with `approximate`"), "{message}");
    let gemm = graph(|g| {
        let x = g.input("x", DType::F32, &[Dim::Known(3), Dim::Known(3)]);
        let y = g.node(Op::new("Gemm").float("alpha", 0.5), &[Some(x), Some(x)])?;
        g.output("y", y)
    });
    assert!(refusal(&gemm, &["y"], &["x"]).contains("`Gemm` with `alpha`"));
    let softmax = alone(Op::new("Softmax").int("axis", 0));
    assert!(refusal(&softmax, &["y"], &["x"]).contains("axis 0 is not the last"));
    let stepping = graph(|g| {
        let x = g.input("x", DType::F32, &[Dim::Known(9)]);
        let bounds = [0, 9, 0, 2].map(|n| Some(g.ints(&[n])));
        let y = g.node(Op::new("Slice"), &[&[Some(x)], bounds.as_slice()].concat())?;
        g.output("y", y)
    });
    assert!(refusal(&stepping, &["y"], &["x"]).contains("steps other than 1"));
}

#[test]
fn unknown_names_and_absent_ways_are_errors() {
    let one = alone(Op::new("Relu"));
    assert!(refusal(&one, &["z"], &["x"]).contains("no output `z`"));
    assert!(refusal(&one, &["y"], &["w"]).contains("no input `w`"));
    // By way of a comparison, or of a shape, there is no derivative.
    let compared = graph(|g| {
        let [x, z] = ["x", "z"].map(|name| g.input(name, DType::F32, &[Dim::BATCH]));
        let hit = g.binary("Greater", x, z)?;
        let hit = g.cast(hit, DType::F32)?;
        let size = g.unary("Size", x)?;
        let size = g.cast(size, DType::F32)?;
        let y = g.mul(hit, size)?;
        let y = g.mul(y, z)?;
        g.output("y", y)
    });
    assert!(refusal(&compared, &["y"], &["x"]).contains("no result depends on `x`"));
    assert!(joint(&compared, &["y"], &["z"]).is_ok());
}

/// A chain `x → a → b → y` with side branches that lead elsewhere.
fn branches() -> Graph {
    graph(|g| {
        let (x, z) = (g.input("x", DType::F32, &[Dim::Known(3)]), g.input("z", DType::F32, &[Dim::Known(3)]));
        let w = g.weight("w", LazyTensor::from_f32(&[3], &[1.0, 2.0, 3.0]));
        // Neither has a rule, and neither is on the way from x to y.
        let beside = g.unary("Sigmoid", z)?;
        let (away, far) = (g.unary("Abs", x)?, g.unary("Cos", x)?);
        let a = g.mul(x, w)?;
        let b = g.mul(a, beside)?;
        let y = g.unary("Exp", b)?;
        for (name, id) in [("y", y), ("away", away), ("far", far)] {
            g.output(name, id)?;
        }
        Ok(())
    })
}

#[test]
fn only_the_way_is_differentiated() {
    let graph = branches();
    let joint = joint(&graph, &["y"], &["x"]).unwrap();
    let added: Vec<&str> = joint.nodes[graph.nodes.len()..].iter().map(|n| n.op.kind).collect();
    // Exp: dy y. Mul by the branch, mul by the weight; neither of their own gradients.
    assert_eq!(added, ["Mul", "Mul", "Mul"], "{joint}");
    let names: Vec<&str> = joint.outputs.iter().map(|&id| joint.value(id).name.as_str()).collect();
    assert_eq!(names, ["y", "away", "far", "d.x"]);
}

#[test]
fn the_way_back_holds_no_more_than_it_needs() {
    let cut = differentiate(&branches(), &["y"], &["x"], &|n| matches!(n.op.kind, "Exp" | "Sigmoid" | "Abs")).unwrap();
    // What was kept is read, what is not read is not kept: `away` leads nowhere.
    assert_eq!(cut.saved.len(), 2, "{:?}", cut.saved);
    let kinds: Vec<&str> = cut.backward.nodes.iter().map(|n| n.op.kind).collect();
    assert_eq!(kinds, ["Mul", "Mul", "Mul"], "{}", cut.backward);
}

/// A frozen weight of a layer gets no gradient: not even the nodes for one.
#[test]
fn frozen_weights_get_no_gradient() {
    let linear = |trained: bool| {
        let graph = graph(|g| {
            let x = g.input("x", DType::F32, &[Dim::BATCH, Dim::Known(3)]);
            let w = if trained {
                g.input("w", DType::F32, &[Dim::Known(3), Dim::Known(5)])
            } else {
                g.weight("w", LazyTensor::from_f32(&[3, 5], &[0.5; 15]))
            };
            let y = g.matmul(x, w)?;
            g.output("y", y)
        });
        let products = |wrt: &[&str]| {
            let joint = joint(&graph, &["y"], wrt).unwrap();
            joint.nodes.iter().filter(|n| n.op.kind == "MatMul").count()
        };
        if trained { (products(&["x"]), products(&["x", "w"])) } else { (products(&["x"]), 0) }
    };
    assert_eq!(linear(false), (2, 0));
    // An input that is not asked for is as good as frozen.
    assert_eq!(linear(true), (2, 3));
}
