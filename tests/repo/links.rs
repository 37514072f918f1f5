//! Links between the documents: every file, picture and heading that one names is there, and the README stays short.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The README is for newcomers: everything else belongs in `docs/`. In bytes.
const README_BYTES: u64 = 9000;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The tracked Markdown files; outside of Git, those at the root and in `docs/`.
fn pages() -> Vec<PathBuf> {
    let git = Command::new("git").args(["ls-files", "-co", "--exclude-standard", "*.md"]).current_dir(root()).output();
    if let Some(out) = git.ok().filter(|out| out.status.success()) {
        return String::from_utf8_lossy(&out.stdout).lines().map(|line| root().join(line)).collect();
    }
    let files = [root().to_path_buf(), root().join("docs")].map(|dir| std::fs::read_dir(dir).unwrap());
    let files = files.into_iter().flatten().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|e| e == "md")).collect()
}

/// The lines outside of code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    })
}

/// The targets of `[text](target)` and `src="target"` in a line; inline code is no link.
fn targets(line: &str) -> Vec<String> {
    let outside: String = line.split('`').step_by(2).collect();
    let between = |open: &str, close: char| -> Vec<String> {
        outside.split(open).skip(1).filter_map(|rest| Some(rest.split_once(close)?.0.to_owned())).collect()
    };
    [between("](", ')'), between("src=\"", '"')].concat()
}

/// The anchor that a heading gets: lower case, words joined by hyphens, punctuation dropped.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

fn has_anchor(page: &Path, wanted: &str) -> bool {
    let text = std::fs::read_to_string(page).unwrap();
    prose(&text).filter(|l| l.starts_with('#')).any(|l| anchor(l.trim_start_matches('#')) == wanted)
}

/// The files and folders of the repository that a line names as inline code; `src/passes/PASS.rs` is a placeholder.
fn named_files(line: &str) -> impl Iterator<Item = &str> {
    let folders = ["src/", "tests/", "examples/", "benches/", "scripts/", "fuzz/", "docs/"];
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "/._-".contains(c);
    let code = line.split('`').skip(1).step_by(2);
    code.filter(move |name| folders.iter().any(|folder| name.starts_with(folder)) && name.chars().all(plain))
}

/// What is wrong with a page's links, a line each.
fn broken(page: &Path, text: &str) -> Vec<String> {
    let missing = prose(text).flat_map(named_files).filter(|name| !root().join(name).exists());
    let mut found: Vec<String> = missing.map(|name| format!("{}: no `{name}`", page.display())).collect();
    for target in prose(text).flat_map(targets).filter(|t| !t.contains("://")) {
        let (file, heading) = target.split_once('#').unwrap_or((&target, ""));
        let path = if file.is_empty() { page.to_path_buf() } else { page.parent().unwrap().join(file) };
        let fits = path.exists() && !file.starts_with('/') && (heading.is_empty() || has_anchor(&path, heading));
        found.extend((!fits).then(|| format!("{}: no `{target}`", page.display())));
    }
    found
}

#[test]
fn links_resolve() {
    let pages = pages();
    assert!(pages.len() > 10, "only {} pages found", pages.len());
    let problems: Vec<String> =
        pages.iter().flat_map(|page| broken(page, &std::fs::read_to_string(page).unwrap())).collect();
    assert!(problems.is_empty(), "{} broken links:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn every_guide_is_in_the_index() {
    let index = std::fs::read_to_string(root().join("docs/README.md")).unwrap();
    let names = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let missing: Vec<String> = names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.ends_with(".md") && name != "README.md" && !index.contains(&format!("]({name})")))
        .collect();
    assert!(missing.is_empty(), "docs/README.md does not list {missing:?}");
}

#[test]
fn the_readme_is_short() {
    let bytes = std::fs::metadata(root().join("README.md")).unwrap().len();
    assert!(bytes <= README_BYTES, "README.md has {bytes} bytes, at most {README_BYTES}: move details to docs/");
}

#[test]
fn broken_links_are_found() {
    let page = root().join("docs/README.md");
    let bad =
        "[a](nowhere.md) [b](errors.md#no-such-heading) [c](/README.md)\n<img src=\"images/none.png\"> `src/none.rs`";
    assert_eq!(broken(&page, bad).len(), 5);
    let good = "[a](errors.md#warnings) `[x](y)` `src/lib.rs` `src/passes/PASS.rs`\n```\n[z](none.md)\n```\n[web](https://arxiv.org/abs/2501.16282)";
    assert_eq!(broken(&page, good), [""; 0]);
    assert_eq!(anchor(" Measuring: `benches/gpu.sh`"), "measuring-benchesgpush");
}
