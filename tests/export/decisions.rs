//! Decisions that are reported: raised layers and their cost, settings that cannot be meant, memory beyond its limit.

use std::fs;

use serde_json::{Value, json};
use support::commands::{
    ba_export, ba_infer, ba_train, command, finish, manifest, scan, tiny_copy, write_manifest, write_model,
};
use support::package;

/// Exports the demo in int8 with this limit of layers.
fn export(dir: &std::path::Path, more: &[&str]) -> support::commands::Done {
    let demo = package("examples/demo");
    let mut export = command("ba-export");
    export.args(["--quantize", "int8", "--max-error", "0.004"]).arg("--model").arg(demo.join("checkpoint"));
    export.arg("--calibration").arg(demo.join("calibration")).arg("-o").arg(dir.join("bundle"));
    finish(export.args(more)).ok()
}

/// The first lines count the layers that were raised, say why and what that costs; so does the JSON.
#[test]
fn raised_layers_come_first() {
    let dir = tempfile::tempdir().unwrap();
    let found = export(dir.path(), &["--json", "--max-memory", "1M"]).json();
    let raised = &found["raised"];
    let number = |name: &str| raised[name].as_u64().unwrap();
    let layers = found["quantization"]["layers"].as_array().unwrap();
    let of: Vec<&Value> =
        layers.iter().filter(|l| !l["first"].is_null() && l["first"]["scheme"] != l["scheme"]).collect();
    assert!(!of.is_empty(), "{found}");
    let missed = of.iter().filter(|l| l["first"]["error"].as_f64() > Some(0.004)).count() as u64;
    let bytes = |of: &[&Value], first: bool| -> u64 {
        of.iter().map(|l| if first { &l["first"]["bytes"] } else { &l["bytes"] }).map(|b| b.as_u64().unwrap()).sum()
    };
    assert_eq!((number("layers"), number("of")), (of.len() as u64, layers.len() as u64));
    assert_eq!((number("by_layer_limit"), number("by_part_limit")), (missed, of.len() as u64 - missed));
    assert_eq!(number("more_bytes"), bytes(&of, false).saturating_sub(bytes(&of, true)));
    // What it took is told afterwards.
    let warning = found["warnings"].as_array().unwrap().iter().find(|w| w["code"] == "memory_exceeded").unwrap();
    let peak = found["peak_memory_bytes"].as_u64().unwrap().div_ceil(1_000_000);
    assert!(warning["message"].as_str().unwrap().contains("allows 1 MB"), "{warning} {peak}");
    let text = export(dir.path(), &["--max-memory", "1T"]);
    let mut lines = text.stdout.lines();
    let first = lines.next().unwrap();
    assert!(first.starts_with(&format!("raised: {} of {} layers", of.len(), layers.len())), "{first}");
    let cost = lines.next().unwrap();
    assert!(cost.starts_with("cost: ") && cost.contains("× the time of these layers"), "{cost}");
    assert!(!text.stderr.contains("memory_exceeded"), "{text:#?}");
}

/// Percentiles as fractions, and more tokens than the model has positions: refused wherever they are read.
#[test]
fn settings_that_cannot_be_meant_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    write_model(&model, "tiny", "tiny");
    let path = model.join("config.json");
    let good: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let output = dir.path().join("out");
    let clip = (["volume", "clip"], json!([0.005, 0.995]), "write [0.5, 99.5]");
    let tokens = (["text", "max_tokens"], json!(4097), "write 4096 or less");
    for ([section, field], wrong, remedy) in [clip, tokens] {
        let mut config = good.clone();
        config[section][field] = wrong;
        fs::write(&path, config.to_string()).unwrap();
        ba_export(&[&"--model", &model, &"-o", &output]).fails_with_one_line("config.value").naming(&[remedy]);
        let prepared = ba_train(&[&"prepare", &"--model", &model, &"-o", &output]);
        prepared.fails_with_one_line("config.value").naming(&["config.json", remedy]);
        assert!(!output.exists());
    }
    let bundle = tiny_copy();
    let mut changed = manifest(bundle.path());
    assert_eq!(changed["text_model"]["max_positions"], 4096);
    changed["tokenizer"]["max_tokens"] = json!(5000);
    write_manifest(bundle.path(), &changed);
    let refused = ba_infer(&[&scan(), &"--bundle", &bundle.path()]);
    refused.fails_with_one_line("bundle.manifest").naming(&["4096 positions"]);
    // A bundle of an earlier version does not say how many there are.
    changed["text_model"].as_object_mut().unwrap().remove("max_positions");
    write_manifest(bundle.path(), &changed);
    ba_infer(&[&scan(), &"--bundle", &bundle.path()]).ok();
}
