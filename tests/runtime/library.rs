//! ONNX Runtime's library, missing or wrong in every way: an error in one line, soon, and never a panic.

#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use brain_adapter::runtime::LIBRARY_NAME;
use support::commands::{self, Done, bare, finish, finish_within, library, scan, tiny_bundle};
use support::oracle;

/// The name that the library has in a wheel.
const VERSIONED: &str = "libonnxruntime.so.1.99.0";

/// Seconds within which a wrong library must have been refused.
const SOON: u64 = 5;

/// `ba-infer` with these variables and flags, in `folder`.
fn infer(folder: &Path, variables: &[(&str, &Path)], flags: &[&str]) -> Done {
    let mut command = bare("ba-infer");
    command.arg(scan()).arg("--bundle").arg(tiny_bundle()).current_dir(folder);
    finish_within(command.args(flags).envs(variables.iter().copied()), SOON)
}

/// Things that are no usable ONNX Runtime, made in `folder`.
fn wrong_libraries(folder: &Path) -> Vec<(&'static str, PathBuf)> {
    let file = |name: &str, bytes: &[u8]| {
        fs::write(folder.join(name), bytes).unwrap();
        folder.join(name)
    };
    let pipe = folder.join("pipe.so");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let half = fs::read(library()).unwrap();
    let mut all = vec![
        ("missing", folder.join("none.so")),
        ("folder", folder.to_path_buf()),
        ("pipe", pipe),
        ("device", "/dev/zero".into()),
        ("empty", file("empty.so", b"")),
        ("text", file("text.so", b"<!doctype html><title>404</title>")),
        ("elf header alone", file("header.so", &half[..64])),
        ("other machine", file("machine.so", &[&half[..18], &[0xb7, 0], &half[20..4096]].concat())),
        ("below a file", folder.join("text.so/x.so")),
    ];
    let places = ["/lib/x86_64-linux-gnu", "/lib64", "/usr/lib", "/lib/aarch64-linux-gnu"];
    match places.iter().map(|p| Path::new(p).join("libm.so.6")).find(|p| p.exists()) {
        Some(other) => all.push(("other library", other)),
        None => oracle::not_here("no libm.so.6", "a library that is not ONNX Runtime"),
    }
    all
}

#[test]
fn wrong_libraries_are_told() {
    let dir = tempfile::tempdir().unwrap();
    for (what, path) in wrong_libraries(dir.path()) {
        let name = path.display().to_string();
        let by_flag = infer(dir.path(), &[], &["--ort-lib", &name]);
        let by_variable = infer(dir.path(), &[("ORT_DYLIB_PATH", &path)], &[]);
        for done in [by_flag, by_variable] {
            eprintln!("{what}: {}", done.stderr.trim_end());
            done.fails_with_one_line("runtime.missing").naming(&[&name, "make ort"]);
        }
    }
}

#[test]
fn the_same_of_an_export_that_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let record = commands::fixture("tiny/expected.safetensors");
    let target = dir.path().join("onnx");
    let run = |verify: bool| {
        let mut command = bare("ba-export");
        command.arg("--model").arg(commands::tiny_model()).arg("-o").arg(&target).env("ORT_DYLIB_PATH", "/nonexistent");
        if verify {
            command.arg("--verify").arg(&record);
        }
        finish(command.current_dir(dir.path()))
    };
    run(true).fails_with_one_line("runtime.missing").naming(&["/nonexistent"]);
    assert_eq!(commands::names(dir.path()).len(), 0);
    // Without a check nothing needs it.
    run(false).ok();
}

/// A library that answers with an old version, made by the C compiler that Rust links with.
#[test]
fn an_old_version() {
    let dir = tempfile::tempdir().unwrap();
    let (source, old) = (dir.path().join("old.c"), dir.path().join("old.so"));
    let code = r#"
        static const char *version(void) { return "1.19.2"; }
        static const void *api(unsigned v) { (void)v; return 0; }
        static const struct { const void *(*a)(unsigned); const char *(*v)(void); } base = { api, version };
        const void *OrtGetApiBase(void) { return &base; }
    "#;
    fs::write(&source, code).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&old).arg(&source).status();
    assert!(built.expect("Rust links with cc").success());
    let name = old.display().to_string();
    infer(dir.path(), &[], &["--ort-lib", &name]).fails_with_one_line("runtime.version").naming(&[&name, "1.19.2"]);
}

#[test]
fn the_flag_comes_before_the_variable() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (library(), dir.path().join("none.so"));
    let name = |p: &Path| p.display().to_string();
    infer(dir.path(), &[("ORT_DYLIB_PATH", &bad)], &["--ort-lib", &name(&good)]).ok();
    infer(dir.path(), &[("ORT_DYLIB_PATH", &good)], &["--ort-lib", &name(&bad)])
        .fails_with_one_line("runtime.missing")
        .naming(&["none.so"]);
    // An empty variable is none; a relative path in the flag is the caller's.
    infer(dir.path(), &[("ORT_DYLIB_PATH", Path::new(""))], &["--ort-lib", &name(&good)]).ok();
    std::os::unix::fs::symlink(&good, dir.path().join("link.so")).unwrap();
    infer(dir.path(), &[], &["--ort-lib", "link.so"]).ok();
    // In the variable it would mean another file in every folder.
    for relative in ["link.so", "./link.so", "../x/link.so"] {
        let done = infer(dir.path(), &[("ORT_DYLIB_PATH", Path::new(relative))], &[]);
        done.fails_with_one_line("runtime.missing").naming(&[relative, "is a relative path", "make it absolute"]);
    }
}

/// A copy of the program in a `bin` of its own, away from the project.
fn lonely(folder: &Path) -> PathBuf {
    let copy = folder.join("bin/ba-infer");
    fs::create_dir_all(folder.join("bin")).unwrap();
    // Not by this process: while it writes, a child of another test would inherit the open file, and a file that
    // is open for writing cannot be run.
    assert!(Command::new("cp").arg(bare("ba-infer").get_program()).arg(&copy).status().unwrap().success());
    copy
}

fn run_lonely(program: &Path, current: &Path, variables: &[(&str, &Path)]) -> Done {
    let mut command = Command::new(program);
    for name in ["ORT_DYLIB_PATH", "VIRTUAL_ENV"] {
        command.env_remove(name);
    }
    command.arg(scan()).arg("--bundle").arg(tiny_bundle()).current_dir(current).envs(variables.iter().copied());
    finish_within(&mut command, SOON * 2)
}

#[test]
fn where_it_is_searched_for() {
    let dir = tempfile::tempdir().unwrap();
    let program = lonely(dir.path());
    let work = dir.path().join("work/deep/er");
    fs::create_dir_all(&work).unwrap();
    let none = run_lonely(&program, &work, &[]).fails_with_one_line("runtime.missing");
    none.naming(&["make ort", "--ort-lib", "ORT_DYLIB_PATH", LIBRARY_NAME]);
    struct Place {
        folder: &'static str,
        name: &'static str,
        /// Whether a virtual environment is active.
        venv: bool,
    }
    let capi = "venv/lib/python3.12/site-packages/onnxruntime/capi";
    let places = [
        Place { folder: "bin", name: LIBRARY_NAME, venv: false },
        Place { folder: "bin", name: VERSIONED, venv: false },
        Place { folder: "bin/gpu", name: LIBRARY_NAME, venv: false },
        Place { folder: "lib", name: LIBRARY_NAME, venv: false },
        Place { folder: "lib", name: VERSIONED, venv: false },
        Place { folder: capi, name: VERSIONED, venv: true },
    ];
    for Place { folder, name, venv } in places {
        let folder = dir.path().join(folder);
        fs::create_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink(library(), folder.join(name)).unwrap();
        let venv_folder = dir.path().join("venv");
        let variables: &[(&str, &Path)] = if venv { &[("VIRTUAL_ENV", &venv_folder)] } else { &[] };
        let done = run_lonely(&program, &work, variables);
        assert_eq!(done.code, Some(0), "{}: {done:#?}", folder.display());
        fs::remove_file(folder.join(name)).unwrap();
    }
    // A folder of the library's name is passed over.
    fs::create_dir_all(dir.path().join("bin").join(LIBRARY_NAME)).unwrap();
    run_lonely(&program, &work, &[]).fails_with_one_line("runtime.missing");
    std::os::unix::fs::symlink(library(), dir.path().join("lib").join(LIBRARY_NAME)).unwrap();
    run_lonely(&program, &work, &[]).ok();
}

/// A library whose code leaves a file when it is loaded, made by the C compiler that Rust links with.
fn trap(folder: &Path, mark: &Path) -> PathBuf {
    let (source, made) = (folder.join("trap.c"), folder.join("trap.so"));
    let code = format!(
        "#include <stdio.h>\n__attribute__((constructor)) static void f(void) \
         {{ FILE *o = fopen(\"{}\", \"w\"); if (o) fclose(o); }}\n",
        mark.display()
    );
    fs::write(&source, code).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&made).arg(&source).status();
    assert!(built.expect("Rust links with cc").success());
    made
}

/// Whoever fills the folder that one stands in, or those above it, or those of the scan and the bundle, runs no code:
/// neither as ONNX Runtime nor as a library of the GPU, whatever the variables of the loader say.
#[test]
fn no_code_from_the_current_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (program, mark) = (lonely(dir.path()), dir.path().join("mark"));
    let trap = trap(dir.path(), &mark);
    let work = dir.path().join("share/patients/one");
    let (scans, bundle) = (dir.path().join("share/scans"), dir.path().join("share/bundle"));
    [&work, &scans, &bundle].iter().for_each(|folder| fs::create_dir_all(folder).unwrap());
    fs::copy(scan(), scans.join("s.nii.gz")).unwrap();
    commands::copy_files(tiny_bundle(), &bundle);
    let (up, top) = (dir.path().join("share/patients"), dir.path().join("share"));
    let names = [LIBRARY_NAME, VERSIONED, "libcuda.so.1", "libnvidia-ml.so.1", "libcudart.so.13", "libcublas.so.13"];
    let capi = "lib/python3.12/site-packages/onnxruntime/capi";
    for folder in [&work, &up, &top, &dir.path().to_path_buf(), &scans, &bundle] {
        for below in ["", ".ort", "gpu", ".ort/gpu", "lib", "target/release", capi] {
            // Of the executable's own tree this is one: `lib` next to `bin`.
            if *folder == dir.path() && below == "lib" {
                continue;
            }
            let place = folder.join(below);
            fs::create_dir_all(&place).unwrap();
            for name in names {
                fs::copy(&trap, place.join(name)).unwrap();
            }
        }
    }
    // As if the folder were the project's.
    fs::write(top.join("Cargo.toml"), "name = \"brain-adapter\"\n").unwrap();
    fs::write(top.join("ONNXRUNTIME_VERSION"), brain_adapter::runtime::PINNED_VERSION).unwrap();
    let run = |variables: &[(&str, &str)], flags: &[&str]| {
        let mut command = Command::new(&program);
        command.env_remove("ORT_DYLIB_PATH").env_remove("VIRTUAL_ENV").env_remove("LD_LIBRARY_PATH");
        command.arg(scans.join("s.nii.gz")).arg("--bundle").arg(&bundle).args(flags).current_dir(&work);
        let done = finish_within(command.envs(variables.iter().copied()), SOON * 4);
        assert!(!mark.exists(), "code of the folder ran with {variables:?}: {done:#?}");
        done
    };
    let variables: [&[(&str, &str)]; 7] = [
        &[],
        &[("LD_LIBRARY_PATH", ":")],
        &[("LD_LIBRARY_PATH", "/nonexistent::.:gpu")],
        &[("VIRTUAL_ENV", ".")],
        &[("VIRTUAL_ENV", "")],
        &[("ORT_DYLIB_PATH", LIBRARY_NAME)],
        &[("ORT_DYLIB_PATH", "./libonnxruntime.so")],
    ];
    let good = library().display().to_string();
    for variables in variables {
        for device in ["cpu", "auto"] {
            run(variables, &["--device", device]).fails_with_one_line("runtime.missing");
            run(variables, &["--device", device, "--ort-lib", &good]).ok();
        }
    }
    // What is named is loaded: it is the user's word.
    let mut command = Command::new(&program);
    command.arg(scans.join("s.nii.gz")).arg("--bundle").arg(&bundle).args(["--ort-lib", LIBRARY_NAME]);
    finish_within(command.current_dir(&work), SOON).fails("runtime.missing").naming(&["it is not ONNX Runtime"]);
    assert!(mark.exists());
}

/// The result says which file was loaded, and a warning names one that is no published build.
#[test]
fn builds_are_recognized_by_their_hash() {
    let dir = tempfile::tempdir().unwrap();
    let (good, other) = (library(), dir.path().join("other.so"));
    let bytes = [fs::read(&good).unwrap(), vec![0]].concat();
    fs::write(&other, bytes).unwrap();
    let run = |path: &Path, flags: &[&str]| {
        infer(dir.path(), &[], &[&["--ort-lib", &path.display().to_string()], flags].concat()).ok()
    };
    let pinned = run(&good, &["--json"]);
    let file = &pinned.json()["run"]["libraries"][0];
    assert_eq!((&file["pinned"], file["path"].as_str()), (&true.into(), good.to_str()), "{pinned:#?}");
    assert_eq!(file["sha256"].as_str().map(str::len), Some(64));
    assert!(!pinned.stderr.contains("runtime_unpinned"));
    let unpinned = run(&other, &["--json"]);
    assert_eq!(unpinned.json()["run"]["libraries"][0]["pinned"], false);
    // The scan's own warnings come first.
    let last = unpinned.json()["warnings"].as_array().and_then(|all| all.last().cloned()).unwrap();
    assert_eq!(last["code"], "runtime_unpinned", "{unpinned:#?}");
    let line = unpinned.stderr.lines().find(|line| line.starts_with("warning[runtime_unpinned]: ")).unwrap();
    assert!(line.contains(&other.display().to_string()), "{line}");
    assert_eq!(pinned.json()["logits"], unpinned.json()["logits"]);
    assert!(run(&other, &["-v"]).stderr.contains("(not a pinned build, SHA-256 "));
    assert!(run(&good, &["-v"]).stderr.contains(&format!("library: {} (ONNX Runtime ", good.display())));
}

#[test]
fn devices_that_are_not_there_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let good = library();
    for device in ["cuda", "tensorrt"] {
        let done = infer(dir.path(), &[("ORT_DYLIB_PATH", &good)], &["--device", device]);
        done.fails_with_one_line("device.unavailable").naming(&[device]);
    }
    for device in ["auto", "cpu"] {
        let done = infer(dir.path(), &[("ORT_DYLIB_PATH", &good)], &["--device", device, "--json", "-v"]).ok();
        assert_eq!(done.json()["device"], "cpu");
        assert_eq!(done.stderr.contains("cpu (auto)"), device == "auto", "{done:#?}");
    }
}
