//! Circles inside the modules of `src/`: files of one folder that import each other, directly or in a ring. An import
//! counts for the file that defines the item, also where a `mod.rs` re-exports it.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{code_only, places, read, report, rust_files};

/// The circles that are there, by folder: lazy tensors and their views are natural.
const KNOWN: &[(&str, &[&str])] = &[("tensor", &["lazy", "views"])];

/// A module's path from the root of the crate.
type Path = Vec<String>;

/// What a file names: paths of the crate, and the names that `use` gives them there.
#[derive(Default)]
struct Names {
    paths: Vec<Path>,
    by_name: BTreeMap<String, Path>,
}

/// The module that a file of `src/` is; none for the programs.
fn module_of(file: &str) -> Option<Path> {
    let inside = file.strip_prefix("src/")?.strip_suffix(".rs")?;
    let parts = inside.split('/').filter(|part| !["lib", "mod"].contains(part)).map(str::to_owned);
    (!inside.starts_with("bin/")).then(|| parts.collect())
}

/// Reads the tree of a `use` or a path in code, and adds each leaf: its segments, and the name that it has here.
/// Gives what follows the tree.
fn tree<'a>(text: &'a str, before: &[&'a str], leaves: &mut Vec<(Path, String)>) -> &'a str {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let mut text = text.trim_start();
    if let Some(group) = text.strip_prefix('{') {
        text = group.trim_start();
        while !text.is_empty() && !text.starts_with('}') {
            let rest = tree(text, before, leaves).trim_start();
            let next = rest.strip_prefix(',').unwrap_or(rest).trim_start();
            // What is no list of paths, such as a block of code.
            if next.len() == text.len() {
                return next;
            }
            text = next;
        }
        return text.strip_prefix('}').unwrap_or(text);
    }
    let end = text.find(|c| !part(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let path = [before, &[name]].concat();
    if let Some(more) =
        rest.trim_start().strip_prefix("::").filter(|more| more.trim_start().starts_with(|c| part(c) || c == '{'))
    {
        return tree(more, &path, leaves);
    }
    let renamed = rest.trim_start().strip_prefix("as ").map(str::trim_start);
    let alias = renamed.map(|r| &r[..r.find(|c| !part(c)).unwrap_or(r.len())]);
    let own: Path = path.iter().filter(|s| **s != "self").map(|s| (*s).to_owned()).collect();
    if let Some(last) = own.last().cloned() {
        leaves.push((own, alias.map_or(last, str::to_owned)));
    }
    rest
}

/// The absolute path of `path`, as named in `module`; none outside the crate.
fn absolute(module: &Path, path: &Path, modules: &BTreeSet<Path>) -> Option<Path> {
    let mut base = module.clone();
    let mut rest = path.as_slice();
    match rest.first()?.as_str() {
        "crate" => (base, rest) = (Path::new(), &rest[1..]),
        "super" => {
            while rest.first().is_some_and(|s| s == "super") {
                base.pop();
                rest = &rest[1..];
            }
        }
        child if modules.contains(&[module.as_slice(), &[child.to_owned()]].concat()) => {}
        _ => return None,
    }
    base.extend_from_slice(rest);
    Some(base)
}

fn names(module: &Path, source: &str, modules: &BTreeSet<Path>) -> Names {
    let code = code_only(source);
    let code = &code[..code.find("\nmod tests {").unwrap_or(code.len())];
    let mut found = Names::default();
    for at in places(code, "use ") {
        let mut leaves = Vec::new();
        tree(&code[at + "use ".len()..], &[], &mut leaves);
        for (path, name) in leaves {
            found.by_name.extend(absolute(module, &path, modules).map(|path| (name, path)));
        }
    }
    for word in ["crate::", "super::"] {
        for at in places(code, word).filter(|at| !code[..*at].ends_with("::")) {
            let mut leaves = Vec::new();
            tree(&code[at..], &[], &mut leaves);
            found.paths.extend(leaves.iter().filter_map(|(path, _)| absolute(module, path, modules)));
        }
    }
    found
}

/// The module that defines what `path` names, through re-exports.
fn defining(path: &Path, all: &BTreeMap<Path, Names>, depth: usize) -> Path {
    let mut module = Path::new();
    for (i, segment) in path.iter().enumerate() {
        let child = [module.as_slice(), std::slice::from_ref(segment)].concat();
        if all.contains_key(&child) {
            module = child;
            continue;
        }
        let target = all.get(&module).and_then(|names| names.by_name.get(segment));
        return match target {
            Some(target) if depth > 0 => defining(&[target.as_slice(), &path[i + 1..]].concat(), all, depth - 1),
            _ => module,
        };
    }
    module
}

/// The circles among modules of one parent: the parent, and those that reach each other.
fn circles(files: &[(String, String)]) -> Vec<(String, Vec<String>)> {
    let modules: BTreeSet<Path> = files.iter().filter_map(|(file, _)| module_of(file)).collect();
    let all: BTreeMap<Path, Names> = files
        .iter()
        .filter_map(|(file, source)| module_of(file).map(|m| (m.clone(), names(&m, source, &modules))))
        .collect();
    let mut edges: BTreeMap<Path, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for (from, names) in &all {
        for path in names.paths.iter().chain(names.by_name.values()) {
            let to = defining(path, &all, 8);
            let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
            if let (Some(a), Some(b)) = (from.get(common), to.get(common)) {
                let siblings = edges.entry(from[..common].to_vec()).or_default();
                siblings.entry(a.clone()).or_default().insert(b.clone());
            }
        }
    }
    let mut found = Vec::new();
    for (parent, siblings) in edges.iter().filter(|(parent, _)| !parent.is_empty()) {
        let reached: BTreeMap<&String, BTreeSet<&String>> = siblings.keys().map(|a| (a, reach(a, siblings))).collect();
        let mut done = BTreeSet::new();
        for (a, from_a) in &reached {
            let ring = from_a.iter().filter(|b| reached.get(*b).is_some_and(|from_b| from_b.contains(a)));
            let ring: Vec<String> = ring.map(|b| (*b).clone()).collect();
            if ring.len() > 1 && ring.iter().all(|b| done.insert(b.clone())) {
                found.push((parent.join("/"), ring));
            }
        }
    }
    found
}

/// All that is reached from `start` in one step or more.
fn reach<'a>(start: &'a String, edges: &'a BTreeMap<String, BTreeSet<String>>) -> BTreeSet<&'a String> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
    while let Some(at) = open.pop() {
        open.extend(edges.get(at).into_iter().flatten().filter(|next| seen.insert(*next)));
    }
    seen
}

#[test]
fn modules_have_no_circles_inside() {
    let files: Vec<(String, String)> = rust_files("src").into_iter().map(|f| (f.clone(), read(&f))).collect();
    let found = circles(&files);
    let show = |parent: &str, ring: &[String]| format!("src/{parent}: {}", ring.join(", "));
    let found: BTreeSet<String> = found.iter().map(|(parent, ring)| show(parent, ring)).collect();
    let known =
        KNOWN.iter().map(|(parent, ring)| show(parent, &ring.iter().map(|m| (*m).to_owned()).collect::<Vec<_>>()));
    let known: BTreeSet<String> = known.collect();
    let fresh = found.difference(&known).map(|ring| format!("{ring} import each other"));
    let gone = known.difference(&found).map(|ring| format!("{ring}: no such circle any more, strike it from the list"));
    report(&fresh.chain(gone).collect::<Vec<_>>());
}

#[test]
fn made_up_circles_are_found() {
    let file = |name: &str, source: &str| (format!("src/{name}.rs"), source.to_owned());
    let rings =
        |files: &[(String, String)]| circles(files).into_iter().map(|(_, ring)| ring.join(" ")).collect::<Vec<_>>();
    let parent = file(
        "m/mod.rs".trim_end_matches(".rs"),
        "mod a;\nmod b;\nmod c;\npub use b::{B, Other as Renamed};\npub fn f() { a::g() }",
    );
    let direct = [file("m/a", "use super::b::B;"), file("m/b", "use crate::m::a::{A, g};"), file("m/c", "")];
    let exported = [file("m/a", "fn g(x: super::Renamed) {}"), file("m/b", "use super::{a::A, c};"), file("m/c", "")];
    let ring = [file("m/a", "use super::b;"), file("m/b", "use super::c::C;"), file("m/c", "fn f() { super::a::g() }")];
    let deep = [file("m/a/mod", "mod x;"), file("m/a/x", "use super::super::b;"), file("m/b", "use super::a::x::X;")];
    for (files, expected) in [(&direct[..], "a b"), (&exported, "a b"), (&ring, "a b c"), (&deep, "a b")] {
        assert_eq!(rings(&[std::slice::from_ref(&parent), files].concat()), [expected]);
    }
    let innocent = [
        file("m/a", "use super::b::B;\n// super::c\nmod tests {\n    use super::super::c;\n}"),
        file("m/b", "use super::f;\nuse std::fmt;"),
        file("m/c", "use super::{a, b};\nmod tests {\n    use super::*;\n}"),
    ];
    assert_eq!(rings(&[std::slice::from_ref(&parent), &innocent].concat()), [""; 0]);
}
