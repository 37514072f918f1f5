//! Every node of the graphs for CUDA has a kernel in ONNX Runtime's CUDA provider, by its own list of kernels
//! (`tests/data/cuda-kernels.tsv`): nothing runs there, but no node must be left to the CPU for want of a kernel.

#![cfg(unix)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use brain_adapter::bundle::{Bundle, Precision, Target};
use brain_adapter::export::{self, Plan, Sources};
use brain_adapter::model::Part;
use brain_adapter::progress::Silent;
use serde_json::Value;
use support::forms;
use support::reference::{generate::random_case, write::write_case};

/// A row of the table.
struct Kernel {
    from: u64,
    to: u64,
    operands: Vec<String>,
    results: Vec<String>,
    types: BTreeMap<String, Vec<String>>,
}

impl Kernel {
    /// Why it does not take the node; none where it does.
    fn refuses(&self, node: &Value) -> Option<String> {
        let version = node["version"].as_u64().unwrap();
        if version < self.from || version > self.to {
            return Some(format!("version {version}, not {} to {}", self.from, self.to));
        }
        // A type that stands in two places is one and the same.
        let mut bound: BTreeMap<&str, &str> = BTreeMap::new();
        for (side, declared) in [("inputs", &self.operands), ("outputs", &self.results)] {
            for (i, found) in node[side].as_array().unwrap().iter().enumerate() {
                let Some(found) = found.as_str() else { continue };
                let Some(name) = declared.get(i).or(declared.last().filter(|d| d.ends_with('*'))) else {
                    return Some(format!("{side} {i} is unknown"));
                };
                let name = name.trim_end_matches('*');
                let own = [name.to_owned()];
                let allowed = self.types.get(name).map_or(&own[..], Vec::as_slice);
                if !allowed.iter().any(|t| t == found) || *bound.entry(name).or_insert(found) != found {
                    return Some(format!("{side} {i} ({name}) is {found}, not one of {allowed:?}"));
                }
            }
        }
        None
    }
}

/// The table, by domain and operator.
fn kernels() -> BTreeMap<(String, String), Kernel> {
    let text = fs::read_to_string(support::package("tests/data/cuda-kernels.tsv")).unwrap();
    let rows = text.lines().filter(|l| !l.starts_with('#')).skip(1);
    let list = |text: &str, by: char| text.split(by).map(|t| t.trim().to_owned()).collect::<Vec<String>>();
    let kernel = |line: &str| {
        let cells: Vec<&str> = line.split('\t').collect();
        let [domain, op, from, to, operands, results, types] = cells[..] else { panic!("{line}") };
        let types = list(types, ';')
            .iter()
            .filter_map(|t| t.split_once('=').map(|(n, all)| (n.to_owned(), list(all, ','))))
            .collect();
        let (from, to) = (from.parse().unwrap(), if to.is_empty() { u64::MAX } else { to.parse().unwrap() });
        let (operands, results) = (list(operands, ','), list(results, ','));
        ((domain.to_owned(), op.to_owned()), Kernel { from, to, operands, results, types })
    };
    rows.map(kernel).collect()
}

/// Nodes without a kernel, by why.
fn missing(table: &BTreeMap<(String, String), Kernel>, file: &Value) -> Vec<String> {
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let why = |node: &Value| match table.get(&(text(&node["domain"]), text(&node["op"]))) {
        None => Some(format!("no kernel of {}", node["op"])),
        Some(kernel) => kernel.refuses(node),
    };
    let nodes = file["nodes"].as_array().unwrap();
    nodes.iter().filter_map(|node| why(node).map(|why| format!("{}: {why}", node["name"]))).collect()
}

/// Nodes that make numbers for shapes: ONNX Runtime puts what reads `Shape`, up to an operand that must lie in host
/// memory, on the CPU although there are kernels (`GetCpuPreferredNodes`). Here that is the number of tokens on its way
/// to `Range`.
fn of_shapes(file: &Value) -> Vec<String> {
    let names = ["positions.Shape", "positions.Squeeze", "positions.Range"];
    let named = |node: &Value| names.contains(&node["name"].as_str().unwrap());
    let nodes = file["nodes"].as_array().unwrap().iter().filter(|node| named(node));
    // No float goes through them.
    nodes
        .inspect(|n| assert!(n["outputs"].as_array().unwrap().iter().all(|t| t == "int64"), "{n}"))
        .map(|n| n["op"].as_str().unwrap().to_owned())
        .collect()
}

fn graphs(bundle: &Bundle) -> Vec<PathBuf> {
    forms::graphs(bundle, "cuda").into_iter().map(|(_, path)| path).collect()
}

#[test]
fn every_node_has_a_kernel() {
    let (table, mut files) = (kernels(), Vec::new());
    let dir = tempfile::tempdir().unwrap();
    for (i, fixture) in forms::FIXTURES.into_iter().enumerate() {
        let dir = dir.path().join(i.to_string());
        forms::write(&dir, fixture);
        for (precision, target) in [
            (Precision::Fp32, Target::Cpu),
            (Precision::Fp16, Target::Cpu),
            (Precision::Int8, Target::Cuda),
            (Precision::Int4, Target::Cuda),
        ] {
            files.extend(graphs(&forms::export(&dir, precision, target)));
        }
    }
    // Adapters and poolings of every kind.
    for seed in 0..12 {
        let model = dir.path().join(format!("model{seed}"));
        fs::create_dir_all(&model).unwrap();
        write_case(&random_case(seed), &model, Some(&support::package("tests/data/tokenizer/tokenizer.json")));
        for precision in [Precision::Fp32, Precision::Fp16] {
            files.extend(graphs(&float(&model, precision)));
        }
    }
    let Some(read) = forms::nodes(&files) else { return };
    let mut used = BTreeMap::new();
    for (path, file) in files.iter().zip(&read) {
        let missing = missing(&table, file);
        assert!(missing.is_empty(), "{}: {missing:#?}", path.display());
        let expected: &[&str] = if path.ends_with("text.onnx") { &["Shape", "Squeeze", "Range"] } else { &[] };
        assert_eq!(of_shapes(file), expected, "{}", path.display());
        for node in file["nodes"].as_array().unwrap() {
            *used.entry(node["op"].as_str().unwrap().to_owned()).or_insert(0) += 1;
        }
    }
    eprintln!("{} graphs: {used:?}", files.len());
    assert!(
        ["MatMulNBits", "MultiHeadAttention", "Gelu", "InstanceNormalization"].iter().all(|op| used.contains_key(*op)),
        "{used:?}"
    );
}

fn float(model: &Path, precision: Precision) -> Bundle {
    let output = model.with_extension(precision.name());
    let plan = Plan { precision, ..Plan::new(Sources::in_folder(model).unwrap(), output) };
    export::run(&plan, &mut Silent).unwrap();
    Bundle::open(&plan.output).unwrap()
}

/// The forms of other devices: the check above can fail, and `Manifest::suits` says the same.
#[test]
fn the_form_for_cpus_has_none() {
    let dir = tempfile::tempdir().unwrap();
    forms::write(dir.path(), forms::FIXTURES[0]);
    let bundle = forms::export(dir.path(), Precision::Int8, Target::Cpu);
    assert!(bundle.manifest.suits("cuda").is_err() && bundle.manifest.graph(Part::Text, "cuda").is_none());
    let files: Vec<PathBuf> = ["vision.onnx", "text.onnx"].map(|f| bundle.file(f).unwrap()).into();
    for file in forms::nodes(&files).into_iter().flatten() {
        let missing = missing(&kernels(), &file);
        assert!(missing.iter().any(|m| m.contains("MatMulIntegerToFloat")), "{missing:?}");
    }
}
