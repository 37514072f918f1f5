//! Tests that need a process of their own, because they measure it or change what is one per process.

use std::process::Command;

/// Set in the process in which the test runs alone.
const ALONE: &str = "BA_TEST_ALONE";

/// Runs `body` in a process of its own: the running test program again, with this one test. `module` is the test's
/// `module_path!()`, `name` the name of its function.
pub fn alone(module: &str, name: &str, body: impl FnOnce()) {
    let (_, module) = module.split_once("::").expect("a test's module lies in its program");
    let test = format!("{module}::{name}");
    if std::env::var(ALONE).is_ok_and(|running| running == test) {
        return body();
    }
    let program = std::env::current_exe().expect("a running program has a path");
    let mut command = Command::new(program);
    command.args([&test, "--exact", "--nocapture"]).env(ALONE, &test);
    let done = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&done.stdout), text(&done.stderr));
    assert!(done.status.success(), "{test}: {}\n{stdout}\n{stderr}", done.status);
    assert!(stdout.contains("1 passed"), "{test} did not run: {stdout}");
    println!("{stdout}\n{stderr}");
    stderr.lines().filter(|line| line.starts_with("skipped (")).for_each(crate::say);
}
