//! The rules of ARCHITECTURE.md and CONTRIBUTING.md that a program can check.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;

use brain_adapter::{Code, WarningCode};

use super::source::{code_only, line_of, places, read, report, root, rust_files};

/// The modules by layer. A module imports from lower layers only, never from another of its own.
const LAYERS: [&[&str]; 10] = [
    &["error"],
    &["tensor", "progress", "files", "metrics", "threads"],
    &["volume", "text", "checkpoint", "graph", "config", "cohort"],
    &["model", "passes", "onnx", "batch"],
    &["bundle", "optimizer", "runtime"],
    &["execute", "calibrate", "plot"],
    &["export", "infer"],
    &["train"],
    &["cli"],
    &["bin"],
];

/// The files with `unsafe` in them.
const UNSAFE: [&str; 3] = [
    "src/checkpoint/mapping.rs",
    "src/runtime/placement.rs",
    // A handler of bus errors: `sigaction` has no safe form.
    "src/cli/bus_error.rs",
];
/// Macros that write past the caller.
const PRINTING: [&str; 5] = ["println!", "eprintln!", "print!", "eprint!", "dbg!"];

/// What starts threads and panics where none is to be had.
const THREAD_STARTS: [&str; 5] =
    ["thread::spawn", "scope.spawn", "thread::Builder", "ThreadPoolBuilder", "enable_steady_tick"];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|names| names.contains(&module))
}

/// First parts of the paths that begin here: one, or those of a group in braces.
fn heads(path: &str) -> Vec<&str> {
    let name = |text: &str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let Some(group) = path.trim_start().strip_prefix('{') else { return vec![&path[..name(path)]] };
    let (mut depth, mut found, mut start) = (0, Vec::new(), 0);
    for (at, c) in group.char_indices() {
        match c {
            ',' | '}' if depth == 0 => {
                let item = group[start..at].trim();
                found.extend((!item.is_empty()).then(|| &item[..name(item)]));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    found
}

/// The crate's modules that `code` names, with their lines: by `crate::`, by the crate's name, or by enough `super::`.
fn imports<'a>(file: &str, code: &'a str) -> Vec<(usize, &'a str)> {
    let inside = file.trim_start_matches("src/").trim_end_matches("/mod.rs");
    let depth = inside.split('/').count();
    let tests = code.find("\nmod tests {").unwrap_or(code.len());
    let mut found = Vec::new();
    for prefix in ["crate::", "brain_adapter::"] {
        found.extend(places(code, prefix).map(|at| (at, &code[at + prefix.len()..])));
    }
    for at in places(code, "super::").filter(|at| !code[..*at].ends_with("super::")) {
        let rest = code[at..].trim_start_matches("super::");
        let steps = (code.len() - at - rest.len()) / "super::".len();
        if steps >= depth + usize::from(at > tests) {
            found.push((at, rest));
        }
    }
    found.into_iter().flat_map(|(at, rest)| heads(rest).into_iter().map(move |m| (line_of(code, at), m))).collect()
}

/// What is wrong with a file of `src/`, a line each.
fn violations(file: &str, source: &str) -> Vec<String> {
    let code = code_only(source);
    let module = file.trim_start_matches("src/").split('/').next().unwrap().trim_end_matches(".rs");
    let mut found = Vec::new();
    let mut say = |line: usize, what: String| found.push(format!("{file}:{line}: {what}"));
    if module != "lib" {
        let own = layer(module);
        if own.is_none() {
            say(1, format!("`{module}` is in no layer of tests/repo/architecture.rs"));
        }
        for (line, name) in imports(file, &code) {
            // Items of the crate's root are those of `error`; macros and `self` belong nowhere.
            let other = if name.starts_with(char::is_uppercase) { "error" } else { name };
            if other != module && other != "self" && layer(other) >= own {
                say(line, format!("`{module}` (layer {own:?}) imports `{other}` (layer {:?})", layer(other)));
            }
            if layer(other).is_none() && other != "self" {
                say(line, format!("`{other}` is no module of the crate"));
            }
        }
    }
    if module != "runtime" {
        let ort = places(&code, "ort::").chain(places(&code, "use ort"));
        ort.for_each(|at| say(line_of(&code, at), "only `runtime` may use ort".into()));
    }
    if !UNSAFE.contains(&file) {
        let files = UNSAFE.join(" and ");
        places(&code, "unsafe").for_each(|at| say(line_of(&code, at), format!("unsafe belongs in {files}")));
    }
    let library = &code[..code.find("\nmod tests {").unwrap_or(code.len())];
    for start in THREAD_STARTS.iter().filter(|_| file != "src/threads.rs" && !file.ends_with("_tests.rs")) {
        places(library, start).for_each(|at| say(line_of(&code, at), format!("{start}: use crate::threads")));
    }
    for print in PRINTING {
        places(&code, print).for_each(|at| say(line_of(&code, at), format!("{print} in the library")));
    }
    found
}

#[test]
fn modules_keep_to_their_layers() {
    let files = rust_files("src");
    assert!(files.len() > 50, "only {} files found", files.len());
    report(&files.iter().flat_map(|file| violations(file, &read(file))).collect::<Vec<_>>());
}

#[test]
fn every_layer_has_its_modules() {
    let lib = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let missing = LAYERS.concat().into_iter().filter(|m| *m != "bin" && !lib.contains(&format!("mod {m};")));
    report(&missing.map(|m| format!("src/lib.rs has no module `{m}`")).collect::<Vec<_>>());
}

#[test]
fn made_up_violations_are_found() {
    let cases = [
        ("src/volume/x.rs", "use crate::text::Tokens;", "imports `text`"),
        ("src/graph/mod.rs", "use crate::{error::Code, model::{self, Weights}};", "imports `model`"),
        ("src/graph/x.rs", "fn f() { crate::export::run() }", "imports `export`"),
        ("src/batch.rs", "use super::runtime::Session;", "imports `runtime`"),
        ("src/text/x.rs", "use super::super::graph;", "imports `graph`"),
        ("src/model/heads.rs", "mod a;\nuse crate::nowhere::A;", "src/model/heads.rs:2: `nowhere` is no module"),
        ("src/newcomer.rs", "", "in no layer"),
        ("src/infer/mod.rs", "use ort::session::Session;", "only `runtime`"),
        ("src/infer/mod.rs", "let e = ort::init();", "only `runtime`"),
        ("src/tensor/dense.rs", "let x = unsafe { y() };", "unsafe belongs"),
        ("src/infer/scan.rs", "let t = std::thread::spawn(f);", "use crate::threads"),
        ("src/infer/scan.rs", "thread::scope(|scope| { scope.spawn(f); })", "use crate::threads"),
        ("src/cli/mod.rs", "eprintln!(\"{x}\");", "eprintln! in the library"),
    ];
    for (file, source, expected) in cases {
        let found = violations(file, source);
        assert!(found.iter().any(|f| f.contains(expected)), "{file}: {source}: found {found:?}");
    }
    let innocent = [
        (
            "src/infer/scan.rs",
            "use crate::threads;\nlet t = threads::spawn(\"read\", f)?;\nmod tests {\n thread::spawn(f) }",
        ),
        ("src/graph/x.rs", "//! see crate::model\nlet s = \"unsafe crate::model ort::\"; let r = r#\"\"println!\"#;"),
        ("src/graph/x.rs", "/* ort:: */ let c = '\"'; let e = '\\''; fn f<'a>(x: &'a str) -> report::Port {}"),
        (
            "src/graph/x.rs",
            "use crate::Error;\nuse crate::graph::Op;\nuse super::{Dim, op::Op};\n#![deny(unsafe_code)]",
        ),
        ("src/config/mod.rs", "fn f() {}\nmod tests {\n    use super::llama;\n}\n"),
    ];
    for (file, source) in innocent {
        assert_eq!(violations(file, source), [""; 0], "{file}: {source}");
    }
}

/// What git tracks or would; without git, what lies in the folders of the project.
fn tracked_files() -> Vec<PathBuf> {
    let git = Command::new("git").args(["ls-files", "-z", "-co", "--exclude-standard"]).current_dir(root()).output();
    if let Some(out) = git.ok().filter(|out| out.status.success()) {
        let names = String::from_utf8_lossy(&out.stdout).into_owned();
        return names.split('\0').filter(|n| !n.is_empty()).map(|n| root().join(n)).collect();
    }
    ["src", "tests", "examples", "benches"].into_iter().flat_map(rust_files).map(|f| root().join(f)).collect()
}

/// The folder of a machine that `text` names, if any: a path from its root, not a part of another.
fn machine_path(text: &str) -> Option<usize> {
    let roots = ["work", "root", "home", "Users", "tmp/pv"].map(|folder| format!("/{folder}/"));
    let part = |c: char| c.is_alphanumeric() || "._-~$}".contains(c);
    roots.iter().find_map(|r| text.match_indices(r).map(|(at, _)| at).find(|at| !text[..*at].ends_with(part)))
}

#[test]
fn no_file_names_a_folder_of_some_machine() {
    let mut problems = Vec::new();
    for file in tracked_files() {
        // Fixtures too: PyTorch writes the folders of its sources into some files.
        let Ok(bytes) = std::fs::read(&file) else { continue };
        let text = String::from_utf8_lossy(&bytes);
        if let Some(at) = machine_path(&text) {
            problems.push(format!("{}:{}: names an absolute path", file.display(), line_of(&text, at)));
        }
    }
    report(&problems);
    let bad = format!("cd {}work/x", '/');
    assert!(machine_path(&bad).is_some() && machine_path("../shared/work/x, no/root/").is_none());
}

#[test]
fn docs_list_every_error_code() {
    let text = std::fs::read_to_string(root().join("docs/errors.md")).unwrap();
    let (errors, warnings) = text.split_once("## Warnings").unwrap();
    let rows = errors.lines().filter(|l| l.starts_with("| `")).map(|l| {
        let cells: Vec<&str> = l.trim_matches('|').split(" | ").map(str::trim).collect();
        assert!(cells.len() == 3 && cells.iter().all(|c| !c.is_empty()), "three cells: {l}");
        (cells[0].trim_matches('`').to_owned(), cells[1].to_owned())
    });
    let (found, mut difference) = (rows.collect::<Vec<_>>(), String::new());
    let expected: Vec<_> = Code::ALL.iter().map(|(code, text)| (code.to_string(), (*text).to_owned())).collect();
    for row in expected.iter().filter(|row| !found.contains(row)) {
        writeln!(difference, "missing: | `{}` | {} | what to do |", row.0, row.1).unwrap();
    }
    for row in found.iter().filter(|row| !expected.contains(row)) {
        writeln!(difference, "in docs/errors.md only: {} {}", row.0, row.1).unwrap();
    }
    assert!(difference.is_empty(), "{difference}");
    assert_eq!(found, expected, "the order");

    let rows = warnings.lines().filter(|l| l.starts_with("| `")).map(|l| {
        let (code, meaning) = l.trim_matches('|').split_once(" | ").unwrap();
        (code.trim().trim_matches('`').to_owned(), meaning.trim().to_owned())
    });
    let expected = WarningCode::ALL.iter().map(|(code, text)| (code.to_string(), (*text).to_owned()));
    assert_eq!(rows.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "the table of warnings");
}
