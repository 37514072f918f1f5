//! What training frameworks write next to the weights, and files that are no state dict: recorded files of PyTorch,
//! Lightning, OmegaConf and numpy (`make_frameworks.py`), and random modules that PyTorch folds itself.

use std::path::{Path, PathBuf};
use std::process::Command;

use brain_adapter::checkpoint::{Checkpoint, Requirements, Selection};
use brain_adapter::error::{Code, Result, WarningCode};
use support::oracle;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoint/frameworks").join(name)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(data(name)).unwrap_or_else(|e| panic!("{e} [{}]", e.code()))
}

fn choose(name: &str, key: Option<&str>, prefix: Option<&str>) -> Result<Checkpoint> {
    let owned = |text: Option<&str>| text.map(str::to_owned);
    Checkpoint::open_with(data(name), &Selection { key: owned(key), prefix: owned(prefix) })
}

/// Names, shapes and bits of `weights.safetensors`, behind `prefix`.
fn is_weights(found: &Checkpoint, prefix: &str) {
    let want = open("weights.safetensors");
    assert_eq!(found.len(), want.len(), "{found:?}");
    for (name, tensor) in want.iter() {
        let got = found.get(&format!("{prefix}{name}")).unwrap_or_else(|| panic!("{found:?}: {name}"));
        assert_eq!((got.shape(), got.bytes().unwrap()), (tensor.shape(), tensor.bytes().unwrap()), "{name}");
    }
}

/// Each warning's message, all of them `checkpoint_choice`.
fn choices(found: &Checkpoint) -> Vec<&str> {
    assert!(found.warnings().iter().all(|w| w.code == WarningCode::CHECKPOINT_CHOICE));
    found.warnings().iter().map(|w| w.message.as_str()).collect()
}

#[test]
fn lightnings_contents_are_passed_over() {
    for name in ["lightning_p2.ckpt", "lightning_p4.ckpt", "lightning_p5.ckpt"] {
        let found = open(name);
        is_weights(&found, "net.");
        is_weights(&choose(name, None, Some("net")).unwrap(), "");
        assert_eq!(choices(&found), [""; 0], "{name}");
        let skipped: Vec<&str> = found.skipped().iter().map(|s| s.name.as_str()).collect();
        assert!(skipped.contains(&"hyper_parameters") && skipped.contains(&"callbacks"), "{skipped:?}");
    }
}

#[test]
fn of_two_sets_the_usual_one_is_taken_and_told() {
    let found = open("averaged.pt");
    is_weights(&found, "");
    let told = choices(&found);
    assert!(
        told.len() == 1 && told[0].contains("`network` was taken") && told[0].contains("--key network_ema"),
        "{told:?}"
    );
    let other = choose("averaged.pt", Some("network_ema"), None).unwrap();
    assert_eq!(choices(&other), [""; 0]);
    let twice: Vec<f32> = found.get("head.bias").unwrap().to_f32().unwrap().iter().map(|x| x * 2.0).collect();
    assert_eq!(other.get("head.bias").unwrap().to_f32().unwrap(), twice);
    // None of two averages is the usual one.
    let error = Checkpoint::open(data("two_averages.pt")).unwrap_err();
    let line = error.to_string();
    assert_eq!(error.code(), Code::CHECKPOINT_FORMAT, "{line}");
    assert!(["`run.weights_ema`", "`run.weights_swa`", "--key"].iter().all(|word| line.contains(word)), "{line}");
    let found = choose("two_averages.pt", Some("run.weights_swa"), None).unwrap();
    assert_eq!(found.get("head.bias").unwrap().to_f32().unwrap(), [1.0; 3]);
    // Dicts of single modules are one model.
    let parts = open("parts.pt");
    is_weights(&parts, "");
    assert!(choices(&parts)[0].contains("`head`, `stem`"), "{:?}", choices(&parts));
    assert_eq!(choose("parts.pt", Some("stem"), None).unwrap().names().collect::<Vec<_>>(), ["conv.weight"]);
}

#[test]
fn a_choice_of_nothing_says_what_there_is() {
    for (name, key, prefix, code, words) in [
        ("averaged.pt", Some("ema"), None, Code::CHECKPOINT_FORMAT, "network, network_ema"),
        ("averaged.pt", Some("epoch"), None, Code::CHECKPOINT_FORMAT, "an int"),
        ("averaged.pt", Some("network.head"), None, Code::CHECKPOINT_FORMAT, "`head`"),
        ("folded.pt", Some("state_dict"), None, Code::CHECKPOINT_FORMAT, "leave --key out"),
        ("weights.safetensors", Some("net"), None, Code::CHECKPOINT_FORMAT, "--prefix"),
        ("averaged.pt", None, Some("model."), Code::CHECKPOINT_TENSORS, "`head.` (2), `stem.` (1)"),
        ("weights.safetensors", None, Some("hea"), Code::CHECKPOINT_TENSORS, "`head.` (2)"),
    ] {
        let error = choose(name, key, prefix).unwrap_err();
        assert!(error.code() == code && error.message().contains(words), "{name} {key:?} {prefix:?}: {error}");
        assert_eq!(error.path(), Some(data(name).as_path()));
    }
}

#[test]
fn every_kind_that_is_no_state_dict_has_its_own_way_out() {
    for (name, code, words) in [
        ("meta.pt", Code::CHECKPOINT_FORMAT, "offload"),
        ("quantized.pt", Code::CHECKPOINT_QUANTIZED, "dequantize()"),
        ("packed.pt", Code::CHECKPOINT_QUANTIZED, "quantized"),
        ("arrays.pt", Code::CHECKPOINT_FORMAT, "torch.from_numpy"),
        ("script.pt", Code::CHECKPOINT_FORMAT, "TorchScript"),
        ("package.pt", Code::CHECKPOINT_FORMAT, "torch.package"),
        ("sharded.pt", Code::CHECKPOINT_FORMAT, "full state dict"),
        ("torchao.pt", Code::CHECKPOINT_QUANTIZED, "torchao"),
        ("optimizer.pt", Code::CHECKPOINT_UNSAFE_PICKLE, "optimizer.state_dict()"),
    ] {
        let error = Checkpoint::open(data(name)).unwrap_err();
        let line = error.to_string();
        assert!(error.code() == code && line.contains(words) && !line.contains("state dict alone"), "{name}: {line}");
        assert!(line.contains(name) && !line.contains('\n'), "{line}");
    }
    // Where other tensors are plain, whoever wants this one is told what it is.
    for (name, tensor, shape, words) in [
        ("sparse.pt", "head.weight", &[3, 5][..], "to_dense()"),
        ("sparse.pt", "stem.conv.weight", &[2, 3, 1, 1], "to_dense()"),
        ("negated.pt", "head.bias", &[3], "resolve_neg()"),
        ("orthogonal.pt", "0.weight", &[3, 3], "remove_parametrizations"),
    ] {
        let error = Requirements::new().require(tensor, shape).skip("*").pick(&open(name)).unwrap_err();
        let found = error.message().contains(tensor) && error.message().contains(words);
        assert!(error.code() == Code::CHECKPOINT_TENSORS && found, "{name}: {error}");
    }
}

#[test]
fn an_unpacked_archive_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("last");
    std::fs::create_dir_all(inner.join("data")).unwrap();
    std::fs::write(inner.join("data.pkl"), "x").unwrap();
    for path in [folder.path(), &inner] {
        let error = Checkpoint::open(path).unwrap_err();
        assert!(error.code() == Code::CHECKPOINT_FORMAT && error.message().contains("zip -0"), "{error}");
    }
    std::fs::copy(data("averaged.pt"), folder.path().join("adapter.pt")).unwrap();
    assert!(Checkpoint::open(folder.path()).is_ok());
}

fn same_within(found: &Checkpoint, expected: &Checkpoint, what: &str) {
    assert!(!expected.is_empty());
    for (name, want) in expected.iter() {
        let got = found.get(name).unwrap_or_else(|| panic!("{what}: no {name}"));
        assert_eq!(got.shape(), want.shape(), "{what} {name}");
        let (got, want) = (got.to_f32().unwrap(), want.to_f32().unwrap());
        let largest = want.iter().fold(0f32, |a, b| a.max(b.abs()));
        for (a, b) in got.iter().zip(&want) {
            assert!((a - b).abs() <= 1e-6 * largest, "{what} {name}: {a} {b}");
        }
    }
}

#[test]
fn parametrizations_fold_to_what_pytorch_computed() {
    let (found, expected) = (open("folded.pt"), open("folded.safetensors"));
    same_within(&found, &expected, "recorded");
    // Nothing of them is left.
    assert_eq!(found.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>());
}

/// Random modules under random names, parametrized at random; what PyTorch computes in eval mode.
const SCRIPT: &str = r#"
import random, sys, torch, warnings
from torch import nn
from torch.nn.utils import parametrizations as new, prune, spectral_norm, weight_norm
from pathlib import Path
from safetensors.torch import save_file
warnings.filterwarnings("ignore")
out, r = Path(sys.argv[1]), random.Random(11); torch.manual_seed(11)
for i in range(60):
    kind, n, m, k = r.choice(["l", "1", "2", "3", "t"]), r.randint(1, 6), r.randint(1, 6), r.randint(1, 3)
    if kind == "l": mod, shape = nn.Linear(m, n), (2, m)
    elif kind == "t": mod, shape = nn.ConvTranspose2d(m, n, k), (1, m, 4, 4)
    else: mod, shape = [nn.Conv1d, nn.Conv2d, nn.Conv3d][int(kind) - 1](m, n, k), (1, m) + (4,) * int(kind)
    axes, dt = mod.weight.dim(), r.choice([torch.float32, torch.float32, torch.float64])
    mod = mod.to(dt)
    how = r.choice(["wn", "wn_new", "sn", "sn_new", "prune"])
    dim = r.choice([None] + list(range(axes)))
    if how == "wn": weight_norm(mod, dim=dim)
    elif how == "wn_new": new.weight_norm(mod, dim=dim)
    elif how == "sn": spectral_norm(mod, dim=dim)
    elif how == "sn_new": new.spectral_norm(mod, dim=dim)
    else: prune.random_unstructured(mod, "weight", 0.5)
    for _ in range(2): mod(torch.randn(shape, dtype=dt))
    with torch.no_grad():
        for p in mod.parameters(): p.mul_(1 + torch.randn(p.shape, dtype=dt) * 1e-3)
    mod.eval(); mod(torch.randn(shape, dtype=dt))
    names = ".".join(r.choice(["enc", "b2", "x", "head_1"]) for _ in range(r.randint(0, 3)))
    p = names + "." if names else ""
    torch.save({p + key: t for key, t in mod.state_dict().items()}, out / f"{i}.pt")
    save_file({p + "weight": mod.weight.detach().float().clone().contiguous()}, out / f"{i}.safetensors")
"#;

#[test]
fn random_parametrizations_of_pytorch() {
    let Some(python) = oracle::torch("random parametrizations that PyTorch computes") else { return };
    let folder = tempfile::tempdir().unwrap();
    let run = Command::new(python).arg("-c").arg(SCRIPT).arg(folder.path()).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    for i in 0..60 {
        let at = |ending: &str| folder.path().join(format!("{i}.{ending}"));
        let found = Checkpoint::open(at("pt")).unwrap_or_else(|e| panic!("{e}"));
        same_within(&found, &Checkpoint::open(at("safetensors")).unwrap(), &format!("{i} {found:?}"));
    }
}
