//! An export's memory and disk: what it holds does not grow with the model, in any layout, and a disk that is too small
//! is reported at once. All under limits of the operating system.

#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use brain_adapter::bundle::Bundle;
use brain_adapter::tensor::LazyTensor;
use serde_json::json;
use support::commands::{self, bare, finish, save};
use support::large::{self, L, SINGLE, tensors};

/// The most private memory that an export gets, in KiB: far less, and enough for what is being written.
const LIMIT: u64 = 176 << 10;

/// A model folder in each layout, made once: safetensors, PyTorch archives with an index, Meta's slices.
fn models() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let make = || {
        let dir = support::lasting();
        let all = tensors();
        for layout in ["safetensors", "bin", "meta", "lora"] {
            large::write_model(&dir.path().join(layout), &|llama| match layout {
                "safetensors" => save(&llama.join("model.safetensors"), all.clone()),
                "bin" => write_bin(llama, &all),
                "lora" => write_lora(llama, &all),
                _ => write_meta(llama, &all),
            });
        }
        dir
    };
    FOLDER.get_or_init(make).path()
}

fn write_bin(folder: &Path, tensors: &[(String, LazyTensor)]) {
    let mut map = serde_json::Map::new();
    for (i, part) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
        let name = format!("pytorch_model-0000{}-of-00002.bin", i + 1);
        write_torch(&folder.join(&name), part);
        map.extend(part.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
    }
    let index = json!({"metadata": {}, "weight_map": map});
    fs::write(folder.join("pytorch_model.bin.index.json"), index.to_string()).unwrap();
}

/// The model with a LoRA adapter of every layer beside it.
fn write_lora(folder: &Path, tensors: &[(String, LazyTensor)]) {
    const RANK: usize = 16;
    save(&folder.join("model.safetensors"), tensors.to_vec());
    let mut adapter = Vec::new();
    for (name, tensor) in tensors.iter().filter(|(name, _)| name.contains("_proj")) {
        let module = format!("base_model.model.{}", name.strip_suffix(".weight").unwrap());
        for (part, shape) in [("A", [RANK, tensor.shape()[1]]), ("B", [tensor.shape()[0], RANK])] {
            let values: Vec<f32> = (0..shape[0] * shape[1]).map(|i| (i % 251) as f32 / 2510.0 - 0.05).collect();
            adapter.push((format!("{module}.lora_{part}.weight"), LazyTensor::from_f32(&shape, &values)));
        }
    }
    save(&folder.join("adapter_model.safetensors"), adapter);
    let settings = json!({"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "target_modules": "all-linear"});
    fs::write(folder.join("adapter_config.json"), settings.to_string()).unwrap();
}

/// Two slices: rows of the layers that spread out, columns of those that join, rotary pairs side by side.
fn write_meta(folder: &Path, tensors: &[(String, LazyTensor)]) {
    let names = [
        ("self_attn.q_proj", "attention.wq"),
        ("self_attn.k_proj", "attention.wk"),
        ("self_attn.v_proj", "attention.wv"),
        ("self_attn.o_proj", "attention.wo"),
        ("mlp.gate_proj", "feed_forward.w1"),
        ("mlp.down_proj", "feed_forward.w2"),
        ("mlp.up_proj", "feed_forward.w3"),
        ("input_layernorm", "attention_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("model.embed_tokens", "tok_embeddings"),
        ("model.", ""),
    ];
    for slice in 0..2 {
        let half = |n: usize| slice * n / 2..(slice + 1) * n / 2;
        let sliced = tensors.iter().map(|(name, t)| {
            let meta = names.iter().fold(name.clone(), |n, (hf, meta)| n.replace(hf, meta));
            let t = if name.contains("q_proj") || name.contains("k_proj") {
                let d = L.head_dim;
                t.rows((0..t.shape()[0]).map(|r| r / d * d + r % d / 2 + r % 2 * d / 2))
            } else {
                t.clone()
            };
            let columns = ["o_proj", "down_proj", "embed_tokens"].iter().any(|n| name.contains(n));
            let part = match t.shape() {
                [_] => t,
                [_, columns_of] if columns => t.transposed().rows(half(*columns_of)).transposed(),
                [rows, _] => t.rows(half(*rows)),
                _ => unreachable!(),
            };
            (meta, part)
        });
        write_torch(&folder.join(format!("consolidated.0{slice}.pth")), &sliced.collect::<Vec<_>>());
    }
    let params = json!({"dim": L.hidden, "n_layers": L.layers, "n_heads": L.heads, "n_kv_heads": L.kv_heads,
        "norm_eps": L.eps, "rope_theta": L.theta, "vocab_size": L.vocab, "multiple_of": 256});
    fs::write(folder.join("params.json"), params.to_string()).unwrap();
    fs::remove_file(folder.join("config.json")).unwrap();
}

/// What `torch.save` makes of a dictionary of float16 tensors.
fn write_torch(path: &Path, tensors: &[(String, LazyTensor)]) {
    let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let text = |out: &mut Vec<u8>, s: &str| {
        out.push(b'X');
        out.extend((s.len() as u32).to_le_bytes());
        out.extend(s.as_bytes());
    };
    let number = |out: &mut Vec<u8>, n: usize| {
        out.push(b'J');
        out.extend((n as u32).to_le_bytes());
    };
    let mut pickle = b"\x80\x02}(".to_vec();
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        let out = &mut pickle;
        text(out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(out, "storage");
        out.extend(b"ctorch\nHalfStorage\n");
        text(out, &i.to_string());
        text(out, "cpu");
        number(out, tensor.len());
        out.extend(b"tQK\0(");
        tensor.shape().iter().for_each(|&n| number(out, n));
        out.extend(b"t(");
        (0..tensor.shape().len()).for_each(|axis| number(out, tensor.shape()[axis + 1..].iter().product()));
        out.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
    }
    pickle.extend(b"u.");
    zip.start_file("archive/data.pkl", stored).unwrap();
    zip.write_all(&pickle).unwrap();
    for (i, (_, tensor)) in tensors.iter().enumerate() {
        zip.start_file(format!("archive/data/{i}"), stored).unwrap();
        zip.write_all(&tensor.bytes().unwrap()).unwrap();
    }
    zip.finish().unwrap();
}

/// A command under the limit.
fn limited(program: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -d \"$0\" || exit 99; exec \"$@\"", &LIMIT.to_string()]);
    // Threads have stacks, and each of them counts.
    shell.arg(program.get_program()).env("RAYON_NUM_THREADS", "2");
    shell
}

#[test]
fn a_model_is_exported_in_less_memory_than_it_has_weights() {
    const { assert!(SINGLE > (LIMIT << 10) * 3 / 2, "the weights in float32 do not fit") };
    for precision in ["int8", "fp16", "int4"] {
        let mut data = Vec::new();
        for layout in ["safetensors", "bin", "meta"] {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("onnx");
            let mut run = limited(&bare("ba-export"));
            run.current_dir(dir.path()).args(["--quantize", precision, "--model"]).arg(models().join(layout));
            finish(run.arg("-o").arg(&target)).ok();
            let manifest = Bundle::open(&target).unwrap().manifest;
            data.push(manifest.files.iter().find(|f| f.name == "text.onnx.data").unwrap().clone());
        }
        // The same weights, however they lie in their files.
        assert!(data.iter().all(|file| *file == data[0]), "{precision}: {data:#?}");
    }
}

#[test]
fn a_lora_is_merged_in_the_memory_of_an_export_without_one() {
    for precision in ["none", "int8", "fp16"] {
        let dir = tempfile::tempdir().unwrap();
        let mut run = limited(&bare("ba-export"));
        run.current_dir(dir.path()).args(["--quantize", precision, "--model"]).arg(models().join("lora"));
        let done = finish(run.arg("-o").arg(dir.path().join("onnx"))).ok();
        let layers = 7 * L.layers;
        assert!(done.stderr.contains(&format!("merged into {layers} tensors (r 16, alpha 32)")), "{}", done.stderr);
    }
}

/// The limit is one: what holds the weights in float32 does not get so far.
#[test]
fn the_limit_is_one() {
    let held = |limit: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -d \"$0\" || exit 99; head -c \"$1\" /dev/zero | tail -c \"$1\" | wc -c"]);
        let out = shell.arg(limit).arg(SINGLE.to_string()).output().unwrap();
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(held("unlimited"), SINGLE.to_string());
    assert_ne!(held(&LIMIT.to_string()), SINGLE.to_string());
}

/// A language model of more layers than the disk has room for, in a file full of holes.
fn enormous(dir: &Path) -> PathBuf {
    /// As wide as a configuration may say.
    const MLP: usize = 1 << 20;
    let model = dir.join("model");
    commands::write_model(&model, "tiny", "tiny");
    let disk = rustix::fs::statvfs(dir).unwrap();
    // Three layers of half a byte a weight are the least that a bundle can hold of it.
    let layers = (disk.f_bavail * disk.f_frsize) as usize / (3 * 64 * MLP / 2) + 1;
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    let mut put = |name: String, shape: Vec<usize>| {
        let next = end + 2 * shape.iter().product::<usize>();
        header.insert(name, json!({"dtype": "F16", "shape": shape, "data_offsets": [end, next]}));
        end = next;
    };
    for (name, tensor) in commands::tensors("tiny", "llama/") {
        let shape =
            tensor.shape().iter().map(|&n| if name.contains("mlp") && n != 64 { MLP } else { n }).collect::<Vec<_>>();
        match name.split_once("layers.0.") {
            Some((before, after)) => {
                (0..layers).for_each(|n| put(format!("{before}layers.{n}.{after}"), shape.clone()))
            }
            None if name.contains("layers.") => {}
            None => put(name, shape),
        }
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = File::create(model.join("llama/model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    let path = model.join("llama/config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    (config["num_hidden_layers"], config["intermediate_size"]) = (layers.into(), MLP.into());
    fs::write(path, config.to_string()).unwrap();
    model
}

#[test]
fn a_disk_that_is_too_small_is_told_before_anything_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let model = enormous(dir.path());
    let calibration = dir.path().join("calibration");
    fs::create_dir(&calibration).unwrap();
    commands::report(&calibration);
    for precision in ["none", "fp16", "int8", "int4"] {
        let io = dir.path().join("io");
        let mut shell = Command::new("sh");
        // What a shell's children have read, it has read.
        shell.args(["-c", "\"$@\"; code=$?; cat /proc/$$/io > \"$0\"; exit $code"]).arg(&io);
        shell.arg(bare("ba-export").get_program()).args(["--quantize", precision, "--model"]).arg(&model);
        shell.arg("--calibration").arg(&calibration).arg("-o").arg(dir.path().join("onnx"));
        shell.env("ORT_DYLIB_PATH", commands::library());
        finish(&mut shell).fails_with_one_line("disk.full").naming(&["free some"]);
        let counted = fs::read_to_string(io).unwrap();
        let read = counted.lines().find_map(|l| l.strip_prefix("rchar: ")).unwrap().parse::<u64>().unwrap();
        assert!(read < 32 << 20, "{precision}: {read} bytes were read");
    }
    assert_eq!(commands::names(dir.path()), ["calibration", "io", "model"]);
}
