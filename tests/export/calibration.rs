//! Calibration folders and statistics as `ba-export` uses them; places that a bundle cannot have.

use std::fs;
use std::path::Path;

use brain_adapter::checkpoint::{Checkpoint, write_safetensors};
use brain_adapter::tensor::LazyTensor;
use serde_json::Value;
use support::commands::{Done, ba_export, command, finish, report, scan, tiny_model, write_model};

fn export(model: &Path, calibration: &Path, bundle: &Path, more: &[&Path]) -> Done {
    let fixed: [&dyn AsRef<std::ffi::OsStr>; 9] =
        [&"--model", &model, &"--calibration", &calibration, &"-o", &bundle, &"--quantize", &"int8", &"--json"];
    let more = more.iter().map(|arg| arg as &dyn AsRef<std::ffi::OsStr>);
    ba_export(&fixed.into_iter().chain(more).collect::<Vec<_>>())
}

/// A folder with a scan and two reports, as a BIDS tree.
fn inputs(folder: &Path) {
    let anat = folder.join("sub-7/anat");
    fs::create_dir_all(&anat).unwrap();
    fs::copy(scan(), anat.join("sub-7_T1w.NII.GZ")).unwrap();
    fs::rename(report(folder), anat.join("sub-7_T1w.txt")).unwrap();
    report(folder);
    fs::write(folder.join("._report.txt"), [0, 5, 22, 7]).unwrap();
    fs::write(folder.join("README.txt"), "not a report").unwrap();
}

#[test]
fn a_tree_is_used_and_the_rest_told() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, bundle) = (dir.path().join("cal"), dir.path().join("bundle"));
    fs::create_dir(&folder).unwrap();
    inputs(&folder);
    let done = export(tiny_model(), &folder, &bundle, &[]).ok();
    assert_eq!(done.json()["calibration"], serde_json::json!({"scans": 1, "reports": 2}), "{done:#?}");
    assert!(!done.stderr.contains("calibration_unused"), "{done:#?}");
    assert!(done.stderr.contains("1 scans and 2 reports"), "{done:#?}");
    fs::write(folder.join("letter.docx"), "x").unwrap();
    let done = export(tiny_model(), &folder, &bundle, &[]).ok();
    assert!(done.stderr.contains("warning[calibration_unused]") && done.stderr.contains("letter.docx"), "{done:#?}");
}

/// The statistics with other metadata.
fn rewritten(from: &Path, to: &Path, change: impl Fn(&mut std::collections::BTreeMap<String, String>)) {
    let file = Checkpoint::open(from).unwrap();
    let mut facts = file.metadata().clone().into_iter().collect();
    change(&mut facts);
    let tensors: Vec<(String, LazyTensor)> =
        file.names().map(|n| (n.to_owned(), file.get(n).unwrap().clone())).collect();
    write_safetensors(to, tensors, &facts).unwrap();
}

#[test]
fn statistics_belong_to_their_weights() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (folder, bundle, again) = (at("cal"), at("bundle"), at("again"));
    fs::create_dir(&folder).unwrap();
    inputs(&folder);
    write_model(&at("model"), "tiny", "tiny");
    export(&at("model"), &folder, &bundle, &[]).ok();
    let statistics = bundle.join("calibration.safetensors");
    let with = |file: &Path| export(&at("model"), &folder, &again, &[Path::new("--statistics"), file]);
    with(&statistics).ok();
    // Another spelling of the same configuration changes nothing; nor do labels.
    let config = fs::read_to_string(at("model/config.json")).unwrap();
    let json: Value = serde_json::from_str(&config).unwrap();
    fs::write(at("model/config.json"), serde_json::to_string_pretty(&json).unwrap() + "\n\n").unwrap();
    with(&statistics).ok();
    // An old file says nothing of its weights.
    let old = at("old.safetensors");
    rewritten(&statistics, &old, |facts| facts.retain(|name, _| !name.ends_with("model_sha256")));
    with(&old).fails("calibration.input").naming(&["older version", "--statistics"]);
    // Another configuration of the scans, and another BOS.
    let mut other = json.clone();
    other["volume"]["clip"] = serde_json::json!([0.5, 99.5]);
    fs::write(at("model/config.json"), other.to_string()).unwrap();
    with(&statistics).fails("calibration.input").naming(&["another model's", "`vision`"]);
    fs::write(at("model/config.json"), config).unwrap();
    with(&statistics).ok();
    // One weight of the language model, and one of the adapter.
    for (file, part) in [("llama/model.safetensors", "`text`"), ("adapter.safetensors", "`vision`")] {
        let path = at("model").join(file);
        let before = fs::read(&path).unwrap();
        let mut bytes = before.clone();
        let last = bytes.len() - 1;
        bytes[last - 1] ^= 1;
        fs::write(&path, &bytes).unwrap();
        with(&statistics).fails("calibration.input").naming(&["another model's", part, "other weights"]);
        fs::write(&path, &before).unwrap();
    }
    with(&statistics).ok();
}

#[cfg(unix)]
#[test]
fn places_that_a_bundle_cannot_have() {
    let dir = tempfile::tempdir().unwrap();
    let none = dir.path().join("none");
    fs::create_dir_all(dir.path().join("here/below")).unwrap();
    fs::create_dir(&none).unwrap();
    std::os::unix::fs::symlink(dir.path().join("nowhere"), dir.path().join("link")).unwrap();
    let run = |place: &str, from: &str| {
        let mut program = command("ba-export");
        program.current_dir(dir.path().join(from)).arg("--model").arg(tiny_model()).arg("--calibration").arg(&none);
        finish(program.args(["-o", place, "--force"]))
    };
    for (place, from) in [(".", "here/below"), ("./", "here/below"), ("../below", "here/below"), ("..", "here/below/")]
    {
        let done = run(place, from).fails("output.exists");
        assert!(place == ".." || done.stderr.contains("current folder"), "{done:#?}");
    }
    run("../link", "here").fails("output.exists").naming(&["link", "remove"]);
    assert!(dir.path().join("link").is_symlink() && dir.path().join("here/below").is_dir());
    run("below", "here").ok();
    run("../beside", "here").ok();
}
