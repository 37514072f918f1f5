//! Every gradient rule against finite differences in float64.
//!
//! A table of cases covers every row of the rules' table, in odd shapes and every form of broadcasting. Our gradient
//! graph is run in float32 by ONNX Runtime; the graph itself is run in float64, again and again, by onnx's reference
//! implementation (`check.py`, one process for all; needs a Python with `onnx`, named by `BA_PYTHON`).

mod basic;
mod chains;
mod harness;
mod products;
mod refusals;
mod slabs;
mod ties;

use std::collections::{BTreeMap, BTreeSet};

use brain_adapter::passes::autodiff::differentiable;
use brain_adapter::tensor::Tensor;
use harness::{Case, Row, norm_error};
use serde_json::{Value, json};
use support::oracle;

/// Largest relative error in norm of a gradient, and of a result.
const LIMIT: f64 = 1e-5;

fn rows() -> Vec<Row> {
    let groups = [
        basic::pairs(),
        basic::elementwise(),
        basic::reductions(),
        basic::moves(),
        basic::constants(),
        products::products(),
        products::convolutions(),
        products::norms(),
        products::attention(),
        products::several(),
    ];
    groups.into_iter().flatten().collect()
}

fn cases() -> Vec<Case> {
    rows().iter().enumerate().map(|(i, row)| Case::new(row, i as u64)).collect()
}

#[test]
fn every_rule_has_a_case() {
    let cases = cases();
    let nodes = cases.iter().flat_map(|c| &c.graph.nodes);
    let covered: BTreeSet<_> = nodes.map(|n| (n.op.domain, n.op.kind)).collect();
    let missing: Vec<_> = differentiable().filter(|op| !covered.contains(op)).collect();
    assert!(missing.is_empty(), "rules without a case in this table: {missing:?}");
    assert!(differentiable().count() > 35);
}

/// What Python makes of the cases; none where Python is skipped.
fn expected(cases: &[Case]) -> Option<Vec<Value>> {
    let dir = tempfile::tempdir().unwrap();
    let mut list = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let (model, joint) = (format!("{i:03}"), format!("{i:03}-joint"));
        brain_adapter::onnx::write(&case.graph, dir.path(), &model, &mut |_| {}).unwrap();
        brain_adapter::onnx::write(&case.joint, dir.path(), &joint, &mut |_| {}).unwrap();
        let values = |t: &Tensor| json!({ "shape": t.shape(), "data": t.as_f32().unwrap() });
        let feed: BTreeMap<&str, Value> = case.feed.iter().map(|(name, t)| (name.as_str(), values(t))).collect();
        let (model, joint) = (format!("{model}.onnx"), format!("{joint}.onnx"));
        list.push(json!({ "model": model, "joint": joint, "feed": feed, "of": case.of, "wrt": case.wrt }));
    }
    std::fs::write(dir.path().join("cases.json"), serde_json::to_vec(&list).unwrap()).unwrap();
    let report =
        oracle::run_python("gradients by finite differences", "tests/passes/gradients/check.py", [dir.path()])?;
    Some(serde_json::from_slice(&report).unwrap())
}

fn floats(value: &Value) -> Vec<f64> {
    // JSON of Python: `NaN` and infinities do not parse, so what is here is a number.
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn rules_agree_with_finite_differences() {
    let cases = cases();
    let Some(report) = expected(&cases) else { return };
    assert_eq!(report.len(), cases.len());
    let (mut worst, mut bad) = (BTreeMap::<String, f64>::new(), Vec::new());
    for (case, row) in cases.iter().zip(&report) {
        if !row["error"].is_null() || row["wrong"] != json!([]) {
            bad.push(format!("{}: {} {}\n{}", case.name, row["error"], row["wrong"], case.joint));
            continue;
        }
        let found = case.run();
        let names = case.of.iter().chain(&case.wrt);
        let values = row["results"].as_array().unwrap().iter().chain(row["gradients"].as_array().unwrap());
        for ((name, found), expected) in names.zip(&found).zip(values) {
            let error = norm_error(found.as_f32().unwrap(), &floats(expected));
            let kind = case.name.split(' ').next().unwrap().to_owned();
            let most = worst.entry(kind).or_default();
            *most = most.max(error);
            if error.is_nan() || error > LIMIT {
                bad.push(format!("{} {name}: {error:.1e}", case.name));
            }
        }
    }
    for (kind, error) in worst {
        println!("{kind}: {error:.1e}");
    }
    println!("{} cases", cases.len());
    assert!(bad.is_empty(), "{} wrong:\n{}", bad.len(), bad.join("\n"));
}

/// Forward and backward as two graphs give what the joint graph gives.
#[test]
fn the_cut_changes_nothing() {
    for case in cases() {
        let joint = case.run();
        for save in [false, true] {
            for ((found, expected), name) in case.run_cut(save).iter().zip(&joint[case.of.len()..]).zip(&case.wrt) {
                let expected: Vec<f64> = expected.as_f32().unwrap().iter().map(|&v| v.into()).collect();
                let error = norm_error(found.as_f32().unwrap(), &expected);
                assert!(error <= 2e-6, "{} {name}: {error:.1e}", case.name);
            }
        }
    }
}
