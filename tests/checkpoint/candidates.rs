//! Which of several checkpoints is read, and that the choice is reported; names of shared tensors.

use std::collections::BTreeMap;
use std::path::Path;

use brain_adapter::checkpoint::{Checkpoint, write_safetensors};
use brain_adapter::error::{Code, Error, WarningCode};
use brain_adapter::export::Sources;
use brain_adapter::tensor::LazyTensor;

/// A safetensors file with one number in `w`.
fn put(path: &Path, value: f32) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let tensor = LazyTensor::from_f32(&[1], &[value]);
    write_safetensors(path, [("w".to_owned(), tensor)], &BTreeMap::new()).unwrap();
}

fn put_index(path: &Path, shard: &str) {
    std::fs::write(path, format!(r#"{{"metadata": {{}}, "weight_map": {{"w": "{shard}"}}}}"#)).unwrap();
}

fn value(checkpoint: &Checkpoint) -> f32 {
    checkpoint.get("w").unwrap().to_f32().unwrap()[0]
}

fn warned(checkpoint: &Checkpoint) -> String {
    assert!(checkpoint.warnings().iter().all(|w| w.code == WarningCode::CHECKPOINT_CHOICE));
    checkpoint.warnings().iter().map(|w| w.message.as_str()).collect::<Vec<_>>().join("; ")
}

fn refusal(path: impl AsRef<Path>) -> Error {
    let error = Checkpoint::open(path).unwrap_err();
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

/// The order of transformers' `from_pretrained` (modeling_utils.py): each name is taken when those before it are gone.
#[test]
fn the_order_is_that_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    put(&at("model.safetensors"), 1.0);
    put(&at("model-00001-of-00001.safetensors"), 2.0);
    put_index(&at("model.safetensors.index.json"), "model-00001-of-00001.safetensors");
    put(&at("pytorch_model.bin"), 3.0);
    put(&at("pytorch_model-1.bin"), 4.0);
    put_index(&at("pytorch_model.bin.index.json"), "pytorch_model-1.bin");
    put(&at("pretrained_ViT.bin"), 5.0);
    let order = [
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "pretrained_ViT.bin",
    ];
    for (i, name) in order.iter().enumerate() {
        let found = Checkpoint::open(folder.path()).unwrap();
        assert_eq!((value(&found), found.chosen()), ((i + 1) as f32, Some(*name)));
        let warning = warned(&found);
        assert_eq!(warning.is_empty(), i + 1 == order.len(), "{warning}");
        assert!(order[i + 1..].iter().all(|other| warning.contains(other)), "{warning}");
        std::fs::remove_file(at(name)).unwrap();
    }
}

#[test]
fn an_index_without_its_shards_is_passed_over_for_a_whole_file_alone() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    put(&at("model.safetensors"), 1.5);
    put_index(&at("model.safetensors.index.json"), "model-00001-of-00003.safetensors");
    let found = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(value(&found), 1.5);
    assert!(warned(&found).contains("whose shards are missing"), "{}", warned(&found));
    // An index of this very file says nothing else.
    put_index(&at("model.safetensors.index.json"), "model.safetensors");
    assert_eq!(warned(&Checkpoint::open(folder.path()).unwrap()), "");
    std::fs::rename(at("model.safetensors"), at("pytorch_model.bin")).unwrap();
    put_index(&at("model.safetensors.index.json"), "model-00001-of-00003.safetensors");
    let error = refusal(folder.path());
    assert_eq!(error.code(), Code::CHECKPOINT_NOT_FOUND);
    assert!(error.message().contains("1 of its 1 shards") && error.message().contains("pytorch_model.bin"), "{error}");
    std::fs::remove_file(at("pytorch_model.bin")).unwrap();
    assert_eq!(refusal(folder.path()).code(), Code::CHECKPOINT_NOT_FOUND);
}

#[test]
fn shards_may_lie_below_and_not_outside() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    put(&at("parts/a/x.safetensors"), 7.0);
    put(&at("outside.safetensors"), 8.0);
    let index = at("parts/model.safetensors.index.json");
    put_index(&index, "a/x.safetensors");
    assert_eq!(value(&Checkpoint::open(at("parts")).unwrap()), 7.0);
    for shard in ["../outside.safetensors", "a/../../outside.safetensors", "/x", "a//x", "./a/x", "a\\\\x", ""] {
        put_index(&index, shard);
        assert_eq!(refusal(at("parts")).code(), Code::CHECKPOINT_CORRUPT, "{shard}");
    }
}

#[test]
fn content_decides_where_no_name_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("notes.bak"), "no weights").unwrap();
    std::fs::write(at("README.md"), "text").unwrap();
    put(&at("model_best.pth.tar"), 6.0);
    let found = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(value(&found), 6.0);
    assert!(warned(&found).contains("model_best.pth.tar"));
    put(&at("epoch=3.ckpt"), 6.5);
    let error = refusal(folder.path());
    assert!(error.message().contains("model_best.pth.tar") && error.message().contains("epoch=3.ckpt"), "{error}");
    std::fs::remove_file(at("epoch=3.ckpt")).unwrap();
    std::fs::remove_file(at("model_best.pth.tar")).unwrap();
    put(&at("run7/model.safetensors"), 1.0);
    assert!(refusal(folder.path()).message().contains("run7"));
}

#[test]
fn an_unpacked_archive_is_called_that() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("head.pt/head");
    std::fs::create_dir_all(inner.join("data")).unwrap();
    std::fs::write(inner.join("data.pkl"), b"\x80\x02}.").unwrap();
    for path in [folder.path().join("head.pt"), inner] {
        let error = refusal(&path);
        assert_eq!(error.code(), Code::CHECKPOINT_FORMAT);
        assert!(error.message().contains("unpacked") && error.message().contains("zip -0"), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn the_hugging_face_cache_and_its_links() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("models--lab--tower");
    let snapshot = |name: &str| repository.join("snapshots").join(name);
    put(&repository.join("blobs/0a"), 2.5);
    put(&repository.join("blobs/0b"), 3.5);
    std::fs::create_dir_all(snapshot("aaa")).unwrap();
    symlink("../../blobs/0a", snapshot("aaa").join("model.safetensors")).unwrap();
    // The only snapshot; then the one of `main`; then none of them.
    assert_eq!(value(&Checkpoint::open(&repository).unwrap()), 2.5);
    std::fs::create_dir_all(snapshot("bbb")).unwrap();
    symlink("../../blobs/0b", snapshot("bbb").join("model.safetensors")).unwrap();
    let error = refusal(&repository);
    assert!(error.message().contains("aaa, bbb"), "{error}");
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::write(repository.join("refs/main"), "bbb\n").unwrap();
    let found = Checkpoint::open(&repository).unwrap();
    assert_eq!((value(&found), found.path()), (3.5, snapshot("bbb").as_path()));
    for outside in ["../../../elsewhere", "/tmp", "ccc", ""] {
        std::fs::write(repository.join("refs/main"), outside).unwrap();
        assert_eq!(refusal(&repository).code(), Code::CHECKPOINT_NOT_FOUND, "{outside}");
    }
    // The weights' link leads nowhere: another file is not taken in its place, one behind it in the order may be
    // broken.
    std::fs::remove_file(repository.join("blobs/0a")).unwrap();
    put(&snapshot("aaa").join("pytorch_model.bin"), 9.0);
    for path in [snapshot("aaa"), snapshot("aaa").join("model.safetensors")] {
        let error = refusal(&path);
        assert_eq!(error.code(), Code::CHECKPOINT_NOT_FOUND);
        assert!(error.to_string().contains("model.safetensors") && error.message().contains("link"), "{error}");
    }
    symlink("../../blobs/gone", snapshot("bbb").join("pytorch_model.bin")).unwrap();
    assert_eq!(value(&Checkpoint::open(snapshot("bbb")).unwrap()), 3.5);
}

#[test]
fn a_model_folder_with_one_other_checkpoint_has_an_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let put = |path: &Path, value: f32| {
        let tensor = LazyTensor::from_f32(&[1], &[value]);
        write_safetensors(path, [("net.classifier.bias".to_owned(), tensor)], &BTreeMap::new()).unwrap();
    };
    // Tensors recorded for --verify are no adapter.
    self::put(&at("expected.safetensors"), 0.0);
    assert!(Sources::in_folder(folder.path()).unwrap().adapter.ends_with("adapter.pt"));
    std::fs::write(at("config.json"), "{}").unwrap();
    put(&at("heads.pth.tar"), 1.0);
    let sources = Sources::in_folder(folder.path()).unwrap();
    assert_eq!(sources.adapter, at("heads.pth.tar"));
    assert!(sources.choices[0].1.message.contains("heads.pth.tar"));
    put(&at("last.ckpt"), 2.0);
    let error = Sources::in_folder(folder.path()).unwrap_err();
    assert!(error.message().contains("heads.pth.tar") && error.message().contains("last.ckpt"), "{error}");
    put(&at("adapter.safetensors"), 3.0);
    let sources = Sources::in_folder(folder.path()).unwrap();
    assert!(sources.adapter.ends_with("adapter.safetensors") && sources.choices.is_empty());
    for name in ["m3d", "m3d-clip"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    let sources = Sources::in_folder(folder.path()).unwrap();
    assert!(sources.vision.ends_with("m3d") && sources.choices[0].1.message.contains("m3d-clip"));
}

/// safetensors' `save_model`: a dropped name is in `__metadata__` with the name that was kept.
#[test]
fn names_in_the_metadata_are_restored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let two =
        [("kept.w".to_owned(), LazyTensor::from_f32(&[2], &[1.0, 2.0])), ("own".to_owned(), LazyTensor::zeros(&[1]))];
    let map = [("dropped.w", "kept.w"), ("own", "kept.w"), ("format", "pt"), ("lost", "gone")];
    let map = map.map(|(a, b)| (a.to_owned(), b.to_owned())).into();
    write_safetensors(&path, two, &map).unwrap();
    let found = Checkpoint::open(&path).unwrap();
    assert_eq!(found.names().collect::<Vec<_>>(), ["dropped.w", "kept.w", "own"]);
    assert_eq!(found.get("dropped.w").unwrap().to_f32().unwrap(), [1.0, 2.0]);
    assert_eq!(found.get("own").unwrap().to_f32().unwrap(), [0.0]);
}

#[test]
fn a_lone_output_layer_is_the_table_of_a_tied_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    for (prefix, head) in [("", "lm_head.weight"), ("model.", "lm_head.weight"), ("a.model.", "a.lm_head.weight")] {
        let layer = format!("{prefix}layers.0.self_attn.q_proj.weight");
        let names = [layer.as_str(), head].map(|n| (n.to_owned(), LazyTensor::from_f32(&[1], &[4.0])));
        write_safetensors(&path, names, &BTreeMap::new()).unwrap();
        let found = Checkpoint::open(&path).unwrap().with_tied_table();
        assert_eq!(found.get(&format!("{prefix}embed_tokens.weight")).unwrap().to_f32().unwrap(), [4.0]);
        // One that has a table keeps it.
        let table = format!("{prefix}embed_tokens.weight");
        let names = [layer.as_str(), head, &table].map(|n| (n.to_owned(), LazyTensor::zeros(&[1])));
        write_safetensors(&path, names, &BTreeMap::new()).unwrap();
        assert_eq!(Checkpoint::open(&path).unwrap().with_tied_table().len(), 3);
    }
}

#[test]
fn metadata_that_is_no_text_is_named() {
    for (metadata, words) in [
        (r#"{"format": "pt", "epoch": 12}"#, Some("12 under `epoch`")),
        (r#"{"nested": {"a": "b"}}"#, Some("`nested`")),
        (r#"["pt"]"#, Some("no object")),
        ("null", None),
        ("{}", None),
    ] {
        let header = format!(r#"{{"__metadata__":{metadata},"w":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
        let mut bytes = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&[0; 4]);
        match (Checkpoint::from_bytes(bytes, "m.safetensors"), words) {
            (Ok(found), None) => assert_eq!(found.len(), 1),
            (Err(e), Some(words)) => {
                assert!(e.message().contains("__metadata__") && e.message().contains(words), "{e}");
            }
            (found, _) => panic!("{metadata}: {found:?}"),
        }
    }
}
