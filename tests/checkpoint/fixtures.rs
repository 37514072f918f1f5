//! Checkpoints that PyTorch wrote load to what PyTorch recorded of them: those in `tests/data/checkpoint`, and the
//! larger families in `../shared/fixtures` where that folder is there.

use std::path::{Path, PathBuf};

use brain_adapter::checkpoint::{Checkpoint, Format, Requirements};
use brain_adapter::error::Code;
use support::oracle;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoint").join(name)
}

/// A file of the large recorded fixtures; none where they are skipped.
fn shared(name: &str) -> Option<PathBuf> {
    oracle::shared(&format!("fixtures/{name}"))
}

fn open(path: impl AsRef<Path>) -> Checkpoint {
    let path = path.as_ref();
    Checkpoint::open(path).unwrap_or_else(|e| panic!("{} [{}]", e, e.code()))
}

/// Same names, types, shapes and bits.
fn assert_same(found: &Checkpoint, expected: &Checkpoint) {
    assert_eq!(found.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>());
    for (name, want) in expected.iter() {
        let got = found.get(name).unwrap();
        assert_eq!((got.dtype(), got.shape()), (want.dtype(), want.shape()), "{name}");
        assert_eq!(got.bytes().unwrap(), want.bytes().unwrap(), "{name}");
    }
}

fn legacy_pickle(folder: &Path) {
    let expected = open(folder.join("expected.safetensors"));
    assert_eq!(expected.len(), 27);
    for (name, format) in [
        ("adapter_legacy.pt", Format::TorchLegacy),
        ("adapter_views.pt", Format::TorchZip),
        ("adapter_views_legacy.pt", Format::TorchLegacy),
        ("checkpoint_dp.pt", Format::TorchZip),
        ("checkpoint_dp_legacy.pt", Format::TorchLegacy),
    ] {
        let found = open(folder.join(name));
        assert_eq!(found.format(), format, "{name}");
        assert_same(&found, &expected);
        let skipped: Vec<&str> = found.skipped().iter().map(|s| s.name.as_str()).collect();
        let others = ["amp", "arch", "best_acc", "epoch", "optimizer", "scheduler"];
        assert_eq!(skipped, if name.contains("_dp") { &others[..] } else { &[] }, "{name}");
        assert_eq!(found.files().len(), 1);
        assert_eq!(found.files()[0].size, std::fs::metadata(folder.join(name)).unwrap().len());
    }
}

#[test]
fn legacy_pickles_load_bit_for_bit() {
    legacy_pickle(&data("legacy-pickle"));
    if let Some(folder) = shared("legacy-pickle") {
        legacy_pickle(&folder);
        assert_same(&open(shared("tiny/adapter.pt").unwrap()), &open(folder.join("expected.safetensors")));
    }
}

#[test]
fn every_dtype_and_view_in_every_protocol() {
    let expected = open(data("extra/dtypes.safetensors"));
    for name in ["dtypes_p2.pt", "dtypes_p4.pt", "dtypes_p5.pt"] {
        assert_same(&open(data("extra").join(name)), &expected);
    }
    let legacy = expected.subset(|name| !["uint16", "uint32", "uint64"].contains(&name));
    assert_eq!(legacy.len(), expected.len() - 3);
    assert_same(&open(data("extra/dtypes_legacy.pt")), &legacy);
    let wrapped = open(data("extra/wrapped.pt"));
    assert_same(&wrapped, &legacy);
    let skipped: Vec<String> = wrapped.skipped().iter().map(|s| format!("{}: {}", s.name, s.why)).collect();
    assert_eq!(skipped, ["ema: a dict with 17 tensors", "lr: a list, not a tensor", "steps: an int, not a tensor"]);
}

#[test]
fn an_export_archive_gives_its_weights() {
    let found = open(data("extra/adapter.pt2"));
    assert_eq!(found.format(), Format::TorchExport);
    assert_same(&found, &open(data("extra/adapter.safetensors")));
}

#[test]
fn types_that_are_not_read_are_listed() {
    let found = open(data("extra/complex.pt"));
    assert_eq!(found.names().collect::<Vec<_>>(), ["x"]);
    assert_eq!(found.skipped()[0].why, "a tensor of type complex64");
    let error = Requirements::new().require("w", &[2]).optional("x", &[2]).pick(&found).unwrap_err();
    assert!(error.message().contains("complex64"), "{error}");
}

#[test]
fn meta_slices_become_hugging_face_tensors() {
    let found = open(data("extra/meta/"));
    // The folder holds the answer too; Meta's names come before other files.
    assert_eq!(found.format(), Format::Meta);
    assert!(found.chosen().unwrap().contains("consolidated.00.pth"), "{:?}", found.chosen());
    assert_same(&found, &open(data("extra/meta/hf.safetensors")));
    let params = found.meta_params().unwrap();
    assert_eq!((params.dim, params.n_heads, params.n_kv_heads, params.vocab_size), (16, 4, Some(2), Some(-1)));
    assert_eq!(found.skipped()[0].name, "rope.freqs");
    assert_eq!(found.files().len(), 3);
}

#[test]
fn shared_meta_layout_equals_the_hugging_face_one() {
    let (Some(meta), Some(hf)) = (shared("tiny-meta-layout"), shared("tiny/llama")) else { return };
    let hf = open(&hf).subset(|name| !name.ends_with("inv_freq"));
    assert_eq!(hf.chosen(), Some("model.safetensors"));
    assert_same(&open(&meta), &hf);
}

#[test]
fn shards_may_be_torch_files() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::copy(data("extra/dtypes_p2.pt"), at("pytorch_model-00001-of-00002.bin")).unwrap();
    std::fs::copy(data("extra/dtypes_legacy.pt"), at("pytorch_model-00002-of-00002.bin")).unwrap();
    let map = serde_json::json!({"weight_map": {
        "uint16": "pytorch_model-00001-of-00002.bin", "stepped": "pytorch_model-00002-of-00002.bin"}});
    std::fs::write(at("pytorch_model.bin.index.json"), map.to_string()).unwrap();
    let expected = open(data("extra/dtypes.safetensors")).subset(|name| ["uint16", "stepped"].contains(&name));
    let found = open(folder.path());
    assert_same(&found, &expected);
    assert_eq!(found.files().len(), 3);
    assert!(found.skipped().iter().any(|s| s.name == "float32" && s.why.contains("not in the index")));
    std::fs::remove_file(at("pytorch_model-00002-of-00002.bin")).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert_eq!(error.code(), Code::CHECKPOINT_NOT_FOUND);
    assert!(error.message().contains("1 of its 2 shards are missing: pytorch_model-00002-of-00002.bin"), "{error}");
}

#[test]
fn meta_slices_that_disagree_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| std::fs::copy(data("extra/meta").join(from), folder.path().join(to)).map(|_| ());
    copy("params.json", "params.json").unwrap();
    copy("consolidated.00.pth", "consolidated.00.pth").unwrap();
    // One slice of two: the heads do not add up.
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(error.code() == Code::CHECKPOINT_CORRUPT && error.message().contains("expected 2 heads of 4"), "{error}");
    copy("consolidated.01.pth", "consolidated.02.pth").unwrap();
    assert_eq!(Checkpoint::open(folder.path()).unwrap_err().code(), Code::CHECKPOINT_NOT_FOUND);
    std::fs::remove_file(folder.path().join("consolidated.02.pth")).unwrap();
    // A norm that is not a copy: its last byte, found by its value in the first slice.
    let mut slice = std::fs::read(data("extra/meta/consolidated.01.pth")).unwrap();
    let hf = open(data("extra/meta/hf.safetensors"));
    let norm = hf.get("model.norm.weight").unwrap().bytes().unwrap();
    let at = slice.windows(norm.len()).position(|w| w == &*norm).unwrap();
    slice[at] ^= 1;
    std::fs::write(folder.path().join("consolidated.01.pth"), slice).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(error.message().contains("`norm.weight`") && error.message().contains("copies differ"), "{error}");
    std::fs::remove_file(folder.path().join("params.json")).unwrap();
    std::fs::remove_file(folder.path().join("consolidated.01.pth")).unwrap();
    assert!(Checkpoint::open(folder.path()).unwrap_err().message().contains("params.json"));
}

#[test]
fn shared_shards_join() {
    let Some(folder) = shared("tiny-gqa-bf16-sharded/llama") else { return };
    let found = open(&folder);
    assert_eq!((found.chosen(), found.files().len()), (Some("model.safetensors.index.json"), 3));
    let direct = open(folder.join("model.safetensors.index.json"));
    assert_same(&found, &direct);
    let mut parts = 0;
    for file in &found.files()[1..] {
        let shard = open(&file.path);
        assert_same(&found.subset(|name| shard.contains(name)), &shard);
        parts += shard.len();
    }
    assert_eq!(parts, found.len());
}

#[test]
fn shared_vision_models_are_found_under_their_prefix() {
    let prefixes = ["", "vision_encoder.", "model.vision_tower.vision_tower."];
    for (folder, prefix) in [("tiny/m3d", ""), ("tiny-gqa-bf16-sharded/m3d-clip", "vision_encoder.")] {
        let Some(folder) = shared(folder) else { return };
        let file = open(&folder);
        assert_eq!(file.find_prefix(&prefixes, "cls_token"), Some(prefix));
        let vision = file.under(prefix);
        assert!(vision.contains("blocks.1.attn.qkv.weight"));
        assert_eq!(vision.len() + vision.skipped().len(), file.len());
    }
}

#[test]
fn folders_with_several_checkpoints_are_not_guessed_at() {
    let error = Checkpoint::open(data("extra")).unwrap_err();
    assert_eq!(error.code(), Code::CHECKPOINT_FORMAT);
    assert!(error.message().contains("adapter.pt2, adapter.safetensors, complex.pt"), "{error}");
    let error = Checkpoint::open(data("")).unwrap_err();
    assert_eq!(error.code(), Code::CHECKPOINT_NOT_FOUND);
    assert_eq!(Checkpoint::open(data("nowhere")).unwrap_err().code(), Code::CHECKPOINT_NOT_FOUND);
}

#[test]
fn two_models_in_one_file_are_two_views() {
    let whole = open(data("legacy-pickle/expected.safetensors"));
    let (adapter, heads) = (whole.under("adapter."), whole.subset(|n| !n.starts_with("adapter.")));
    assert!(adapter.contains("reduce.conv.weight") && heads.contains("classifier.weight"));
    assert_eq!(adapter.len() + heads.len(), whole.len());
    assert!(adapter.skipped().iter().any(|s| s.name == "classifier.weight"));
}

#[test]
fn all_complaints_come_at_once() {
    let file = open(data("legacy-pickle/adapter_legacy.pt"));
    let wants = Requirements::new()
        .require("logit_scale", &[])
        .require("classifier.weight", &[3, 81])
        .require("gone.weight", &[2, 2])
        .optional("gone.bias", &[2])
        .skip("adapter.*")
        .skip("*_projection.*");
    let error = wants.pick(&file).unwrap_err();
    assert_eq!(error.code(), Code::CHECKPOINT_TENSORS);
    assert_eq!(
        error.message(),
        "1 tensor missing: `gone.weight` [2, 2]; 1 tensor of the wrong shape: `classifier.weight` (found [3, 80], \
         expected [3, 81]); 3 tensors unexpected: `classifier.bias` [3], `image_classifier.bias` [3], \
         `image_classifier.weight` [3, 40]"
    );
    assert_eq!(error.path(), Some(data("legacy-pickle/adapter_legacy.pt").as_path()));

    let wants = Requirements::new().require("logit_scale", &[]).optional("classifier.bias", &[3]).skip("*");
    let picked = wants.pick(&file).unwrap();
    assert_eq!(picked.tensors.keys().collect::<Vec<_>>(), ["classifier.bias", "logit_scale"]);
    assert_eq!(picked.skipped.len(), file.len() - 2);

    let many = (0..30).fold(Requirements::new(), |r, i| r.require(format!("w{i:02}"), &[1])).skip("*");
    let error = many.pick(&file).unwrap_err();
    assert!(error.message().starts_with("30 tensors missing") && error.message().ends_with("and 10 more"), "{error}");
}
