//! What `ba-infer` reports of GPUs with a driver and libraries that are not real. No GPU is needed or used.

#![cfg(target_os = "linux")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use brain_adapter::runtime::{Device, Machine};
use support::commands::{Done, bare, finish, library, scan, tiny_bundle};
use support::devices::fake::{self, TENSORRT, gpu_build, take};
use support::oracle;

#[track_caller]
fn names(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
}

/// `ba-infer` with a driver that is not real, and a library of ONNX Runtime next to GPU libraries that are not real.
struct Cli {
    dir: tempfile::TempDir,
    library: PathBuf,
}

impl Cli {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (driver, gpu) = (dir.path().join("driver"), dir.path().join("gpu"));
        fs::create_dir(&driver).unwrap();
        fs::create_dir(&gpu).unwrap();
        fake::driver(&driver);
        gpu_build(&gpu);
        let named = gpu.join("libonnxruntime.so");
        fs::remove_file(&named).unwrap();
        // A copy: the folder in which a link's target lies would be searched too.
        fs::copy(library(), &named).unwrap();
        Self { dir, library: named }
    }

    fn run(&self, device: &str, variables: &[(&str, &str)], flags: &[&str]) -> Done {
        let mut command = bare("ba-infer");
        command.arg(scan()).arg("--bundle").arg(tiny_bundle()).args(["--device", device]);
        command.arg("--ort-lib").arg(&self.library).env("LD_LIBRARY_PATH", self.dir.path().join("driver"));
        command
            .env("FAKE_GPUS", "Imagined 4000/8/6")
            .env_remove("CUDA_VISIBLE_DEVICES")
            .env_remove("CUDA_DEVICE_ORDER");
        finish(command.args(flags).envs(variables.iter().copied()))
    }
}

#[test]
fn the_driver_is_asked() {
    let cli = Cli::new();
    let refused = |variables: &[(&str, &str)], words: &[&str]| {
        let done = cli.run("cuda", variables, &[]);
        done.fails_with_one_line("device.unavailable").naming(&[&["device `cuda`"], words].concat());
    };
    refused(&[("FAKE_DRIVER", "535.154.05"), ("FAKE_CUDA", "12020")], &["535.154.05 is too old", "CUDA 12.2", "580"]);
    refused(&[("FAKE_GPUS", "")], &["580.65.06", "finds no GPU"]);
    refused(&[("FAKE_GPUS", "Imagined 900/5/2")], &["Imagined 900 has compute capability 5.2"]);
    refused(&[("FAKE_INIT", "9")], &["installed and not loaded"]);
    refused(&[("FAKE_INIT", "18")], &["restart the machine"]);
    refused(&[("CUDA_VISIBLE_DEVICES", "")], &["CUDA_VISIBLE_DEVICES", "hides every GPU", "GPU-0"]);
    let two = "Imagined 900/5/2;Imagined 4000/7/0";
    refused(&[("FAKE_GPUS", two), ("CUDA_VISIBLE_DEVICES", "GPU-1")], &["Imagined 4000 has compute capability 7.0"]);
    refused(&[("FAKE_GPUS", two), ("CUDA_VISIBLE_DEVICES", "1,0")], &["Imagined 4000 has compute capability 7.0"]);
    // A driver whose library is damaged.
    fs::write(cli.dir.path().join("driver/libnvidia-ml.so.1"), "text").unwrap();
    refused(&[], &["libnvidia-ml.so.1", "cannot be queried", "580"]);
    // `auto` reports that it runs without a GPU, also without -v.
    let done = cli.run("auto", &[], &["--json"]).ok();
    assert_eq!((&done.json()["device"], &done.json()["run"]["chosen"]["asked"]), (&"cpu".into(), &"auto".into()));
    names(&done.stderr, &["cpu (auto)", "not cuda: NVIDIA's driver cannot be queried"]);
}

/// All is there, and nothing of it real: ONNX Runtime's own refusal is an error in one line, and the process ends
/// cleanly.
#[test]
fn what_onnx_runtime_refuses_is_told() {
    let cli = Cli::new();
    for (device, refused) in [("cuda", "cuda"), ("tensorrt", "tensorrt-rtx"), ("tensorrt-rtx", "tensorrt-rtx")] {
        let done = cli.run(device, &[], &[]).fails_with_one_line("device.unavailable");
        done.naming(&[&format!("ONNX Runtime cannot use the device `{refused}`")]);
    }
    // `auto` tries the next, and the CPU computes.
    let done = cli.run("auto", &[], &["--json"]).ok();
    names(&done.stderr, &["cpu (auto)", "not cuda: ONNX Runtime cannot use"]);
    let chosen = &done.json()["run"]["chosen"];
    assert_eq!((&chosen["device"], &chosen["driver"]), (&"cpu".into(), &"580.65.06".into()));
    let passed_over: Vec<&str> = (0..3).filter_map(|i| chosen["passed_over"][i]["device"].as_str()).collect();
    assert_eq!(passed_over, ["tensorrt", "tensorrt-rtx", "cuda"]);
    let json = cli.run("cuda", &[], &["--json"]);
    assert_eq!(json.json()["error"]["code"], "device.unavailable");
    // The CPU is not asked for a GPU, and strictness means nothing to it.
    let done = cli.run("cpu", &[("FAKE_INIT", "9")], &["--strict-device", "-v", "--json"]).ok();
    names(&done.stderr, &["placement: vision: ", " nodes on CPUExecutionProvider"]);
    let run = &done.json()["run"];
    assert!(run["chosen"]["driver"].is_null() && run["chosen"]["gpu"].is_null());
    assert_eq!(run["stages"][0]["placement"]["providers"][0]["provider"], "CPUExecutionProvider");
    let wrong = cli.run("gpu", &[], &[]);
    assert_eq!(wrong.code, Some(2));
    names(&wrong.stderr, &["expected auto, cpu, cuda, tensorrt or tensorrt-rtx"]);
}

/// What lies in no folder is looked for by the system's loader.
#[test]
fn the_loader_is_asked() {
    let cli = Cli::new();
    let gpu = cli.library.parent().unwrap();
    // TensorRT for RTX does not serve this one, wherever its plugin lies.
    let hopper = [("FAKE_GPUS", "Imagined 9000/9/0")];
    let file = TENSORRT[1].0;
    let away = take(gpu, file);
    if Command::new("ldconfig").arg("-p").output().is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains(file)) {
        oracle::not_here("TensorRT is installed", "the error without TensorRT");
    } else {
        let done = cli.run("tensorrt", &hopper, &[]).fails_with_one_line("device.unavailable");
        done.naming(&["libnvonnxparser.so.10 (TensorRT 10's ONNX parser) is missing", "from NVIDIA"]);
    }
    fs::rename(away, cli.dir.path().join("driver").join(file)).unwrap();
    let done = cli.run("tensorrt", &hopper, &[]).fails("device.unavailable");
    names(&done.stderr, &["ONNX Runtime cannot use the device `tensorrt`"]);
}

/// The rest of this file imagines machines; this one is real.
#[test]
fn this_machine() {
    if Machine::detect(Device::Auto, None).driver_installed {
        return oracle::not_here("an NVIDIA driver is installed", "the error without a driver");
    }
    let mut command = bare("ba-infer");
    command.arg(scan()).arg("--bundle").arg(tiny_bundle()).args(["--device", "cuda"]).env("ORT_DYLIB_PATH", library());
    let done = finish(&mut command);
    done.fails_with_one_line("device.unavailable").naming(&["no NVIDIA driver", "libnvidia-ml.so.1", "580"]);
}
