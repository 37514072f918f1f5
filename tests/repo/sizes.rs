//! Sizes: of files, of functions, of comment lines.

use super::source::{code_only, line_of, places, read, report, rust_files};

/// The longest file of Rust, in lines.
const MAX_LINES: usize = 400;
/// The longest function, in lines from its `fn` to its closing brace.
const MAX_FUNCTION: usize = 60;
/// The longest comment line, in characters with its indentation.
const MAX_COMMENT: usize = 120;
/// Functions that are one table, an entry a row.
const TABLES: &[(&str, &str)] = &[("tests/support/src/rules.rs", "rows")];

fn all_files() -> impl Iterator<Item = String> {
    ["src", "tests", "examples", "benches", "fuzz"].into_iter().flat_map(rust_files)
}

/// The functions with bodies: name, first line, number of lines.
fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    for at in places(code, "fn ") {
        let name = code[at + 3..].split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        // The body begins at the first brace outside the parameters; a semicolon there ends a declaration.
        let mut depth = 0;
        let opening = code[at..].char_indices().find(|(_, c)| {
            depth += i32::from("([".contains(*c)) - i32::from(")]".contains(*c));
            depth == 0 && "{;".contains(*c)
        });
        let Some((begin, '{')) = opening else { continue };
        let mut depth = 0;
        let closing = code[at + begin..].char_indices().find(|(_, c)| {
            depth += i32::from(*c == '{') - i32::from(*c == '}');
            depth == 0
        });
        let end = at + begin + closing.map_or(0, |(end, _)| end);
        found.push((name.to_owned(), line_of(code, at), code[at..end].matches('\n').count() + 1));
    }
    found
}

/// Comment lines that are too long, by number.
fn long_comments(source: &str) -> Vec<usize> {
    // A row of a table cannot be wrapped.
    let row = |line: &str| line.trim_start().trim_start_matches(['/', '!']).trim_start().starts_with('|');
    let comment = |line: &str| line.trim_start().starts_with("//") && !row(line);
    let long = |line: &str| comment(line) && line.chars().count() > MAX_COMMENT;
    source.lines().enumerate().filter(|(_, line)| long(line)).map(|(i, _)| i + 1).collect()
}

#[test]
fn files_are_short() {
    let long = all_files().map(|f| (read(&f).lines().count(), f)).filter(|(lines, _)| *lines > MAX_LINES);
    report(&long.map(|(lines, f)| format!("{f} has {lines} lines, at most {MAX_LINES}")).collect::<Vec<_>>());
}

#[test]
fn functions_are_short() {
    let (mut problems, mut seen) = (Vec::new(), Vec::new());
    for file in all_files() {
        for (name, line, lines) in functions(&code_only(&read(&file))).into_iter().filter(|f| f.2 > MAX_FUNCTION) {
            let entry = TABLES.iter().find(|entry| **entry == (file.as_str(), name.as_str()));
            match entry {
                Some(entry) => seen.push(*entry),
                None => problems.push(format!("{file}:{line}: `{name}` has {lines} lines, at most {MAX_FUNCTION}")),
            }
        }
    }
    let gone = TABLES.iter().filter(|entry| !seen.contains(entry));
    problems.extend(gone.map(|(file, name)| format!("{file}: `{name}` is not long any more, strike it from the list")));
    report(&problems);
}

#[test]
fn comments_fit_the_page() {
    let lines = |file: String| long_comments(&read(&file)).into_iter().map(move |line| format!("{file}:{line}"));
    report(&all_files().flat_map(lines).collect::<Vec<_>>());
}

#[test]
fn made_up_lengths_are_found() {
    let code = "trait T { fn declared(&self, a: [u8; 3]) -> u8; }\nfn short(x: [u8; 2]) where X: Y { a }\nfn long() {\n  if b {\n  }\n}\n";
    assert_eq!(functions(code), [("short".to_owned(), 2, 1), ("long".to_owned(), 3, 4)]);
    let line = |n: usize| "x".repeat(n);
    let source = format!("// {}\n    /// {}\nlet x = \"{}\";\n", line(117), line(112), line(200));
    assert_eq!(long_comments(&source), [2; 0]);
    assert_eq!(long_comments(&source.replace("x\n    ///", "xx\n     ///")), [1, 2]);
}
