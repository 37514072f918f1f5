//! Checkpoints that are changed while they are exported: nothing is installed, and the error says why.

use std::fs::{self, File};
use std::path::Path;

use support::commands::{command, finish, names, save};
use support::large;
use support::stopped::stop_when;

fn overwrite(path: &Path, bytes: &[u8]) {
    let mut other = bytes.to_vec();
    let end = other.len();
    other[end / 2..].iter_mut().for_each(|b| *b ^= 1);
    fs::write(path, other).unwrap();
}

fn truncate(path: &Path, bytes: usize) {
    File::options().write(true).open(path).unwrap().set_len(bytes as u64).unwrap();
}

#[test]
fn a_checkpoint_that_changes_is_not_exported() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    large::write_model(&model, &|llama| save(&llama.join("model.safetensors"), large::tensors()));
    let text = model.join("llama/model.safetensors");
    let whole = fs::read(&text).unwrap();
    type Change<'a> = &'a dyn Fn();
    let changes: [(&str, Change<'_>); 6] = [
        ("truncated to half", &|| truncate(&text, whole.len() / 2)),
        ("truncated to nothing", &|| truncate(&text, 0)),
        ("grown", &|| truncate(&text, whole.len() + 4096)),
        ("overwritten in place", &|| overwrite(&text, &whole)),
        ("another in its place", &|| {
            overwrite(&model.join("other"), &whole);
            fs::rename(model.join("other"), &text).unwrap();
        }),
        ("removed", &|| fs::remove_file(&text).unwrap()),
    ];
    let output = dir.path().join("onnx");
    let export = |quantize: &str| {
        let mut export = command("ba-export");
        export.arg("--model").arg(&model).arg("-o").arg(&output).args(["--json", "-q", "--threads", "2"]);
        export.args(["--quantize", quantize]).current_dir(dir.path());
        export
    };
    for (what, change) in changes {
        // Weights are read in other orders there.
        let quantized = ["truncated to half", "overwritten in place"].contains(&what);
        for quantize in ["none", "int8"].into_iter().take(1 + usize::from(quantized)) {
            fs::write(&text, &whole).unwrap();
            let run = stop_when(&mut export(quantize), &|maps| maps.contains("llama/model.safetensors"));
            change();
            let done = run.goes_on().fails("checkpoint.changed").naming(&["model.safetensors"]);
            assert_eq!(done.json()["error"]["code"], "checkpoint.changed", "{what}: {done:#?}");
            assert!(!output.exists(), "{what}");
        }
    }
    // The other files that it is made of.
    fs::write(&text, &whole).unwrap();
    for file in ["config.json", "llama/tokenizer.json"] {
        let bytes = fs::read(model.join(file)).unwrap();
        // All are open when the bundle is begun.
        let begun = |_: &str| names(dir.path()).iter().any(|name| name.starts_with(".onnx.partial-"));
        let run = stop_when(&mut export("none"), &begun);
        fs::write(model.join(file), &bytes).unwrap();
        run.goes_on().fails("checkpoint.changed").naming(&[file.rsplit('/').next().unwrap()]);
        assert!(!output.exists());
    }
    finish(&mut export("none")).ok();
    // An old bundle stays; what an ended export left goes with the next one.
    let before = support::commands::snapshot(&output);
    let run = stop_when(&mut export("none"), &|maps| maps.contains("llama/model.safetensors"));
    truncate(&text, 0);
    run.goes_on().fails("checkpoint.changed");
    assert!(support::commands::snapshot(&output) == before);
    fs::write(&text, &whole).unwrap();
    finish(&mut export("none")).ok();
    assert_eq!(names(dir.path()), ["model", "onnx"]);
}
