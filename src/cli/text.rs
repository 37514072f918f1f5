//! Numbers, paths and tables as text for people.
//!
//! Text for stdout and stderr may hold ANSI styles: the streams of [`super`] remove them unless they write to a
//! terminal that shows colours (`NO_COLOR` turns them off).

use std::fmt::Write;
use std::path::Path;

use anstyle::{AnsiColor, Style};

use crate::error::Error;

/// Headers of tables and what matters less.
const DIM: Style = Style::new().dimmed();
/// A check that passed.
const GOOD: Style = AnsiColor::Green.on_default();
/// A check that failed, and errors.
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();
/// Warnings.
pub(super) const CAUTION: Style = AnsiColor::Yellow.on_default();

/// Cells that are coloured.
pub(super) const OK: &str = "ok";
/// Cells that are coloured.
pub(super) const FAILED: &str = "FAILED";

/// `text` in a style.
pub(super) fn styled(text: &str, style: Style) -> String {
    format!("{style}{text}{style:#}")
}

/// A table with a rule below its header row. Columns are as wide as their longest cell; all but the first, which hold
/// numbers, are right-aligned. Cells are shown [`escaped`].
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| escaped(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cell = |(c, cell): (usize, &String)| {
            let padding = " ".repeat(widths[c] - cell.chars().count());
            let cell = match cell.as_str() {
                OK => styled(cell, GOOD),
                FAILED => styled(cell, BAD),
                _ => cell.clone(),
            };
            if c == 0 { format!("{cell}{padding}") } else { format!("{padding}{cell}") }
        };
        let line = row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ");
        let line = line.trim_end();
        if number == 0 {
            let rule = "─".repeat(widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1));
            let _ = writeln!(text, "{}\n{}", styled(line, DIM), styled(&rule, DIM));
        } else {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

/// Text from a file or a name for a person: what would steer a terminal, begin a new line or turn the order of letters
/// around is written out (`\n`, `\u001b`, `\u202e`), so that no label can forge a second answer.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if steers(c) => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// Control characters (C0, DEL, C1), separators of lines and paragraphs, and marks that set the direction of writing.
fn steers(c: char) -> bool {
    let direction = ['\u{61c}', '\u{200e}', '\u{200f}'].contains(&c);
    c.is_control() || direction || ('\u{2028}'..='\u{202e}').contains(&c) || ('\u{2066}'..='\u{2069}').contains(&c)
}

/// A path for a person, as [`escaped`].
pub(super) fn shown(path: &Path) -> String {
    escaped(&path.display().to_string())
}

/// An error without its code, in one line: the file that it is about, and the message.
pub(super) fn place_and_message(error: &Error) -> String {
    let message = escaped(error.message());
    error.path().map_or_else(|| message.clone(), |path| format!("{}: {message}", shown(path)))
}

/// A path as a word of a shell command.
pub(super) fn quoted(path: &Path) -> String {
    let text = shown(path);
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// `1,234,567`.
pub(super) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 row`, `2,000 rows`.
pub(super) fn count(n: usize, thing: &str) -> String {
    format!("{} {thing}{}", thousands(n as u64), if n == 1 { "" } else { "s" })
}

/// `12.3 MB`, in powers of ten as disks are sold.
pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB"] {
        if value < 999.5 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.2} GB")
}

/// `0.05 s`, `5.1 s`, `42 s`, `2:05 min`, `1:02 h`.
pub(super) fn duration(seconds: f64) -> String {
    if seconds < 0.95 {
        return format!("{seconds:.2} s");
    }
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, m, s) if m < 2 => format!("{} s", 60 * m + s),
        (0, m, s) => format!("{m}:{s:02} min"),
        (h, m, _) => format!("{h}:{m:02} h"),
    }
}

/// An error, which may be of any size: `1.2e-2`.
pub(super) fn error(value: f64) -> String {
    format!("{value:.1e}")
}

/// A change of a probability: `0.0123`, `< 0.0001`.
pub(super) fn probability_change(value: f64) -> String {
    if value < 1e-4 { "< 0.0001".to_owned() } else { format!("{value:.4}") }
}

/// The beginning of a hash.
pub(super) fn short(sha256: &str) -> String {
    sha256.chars().take(12).collect()
}

/// A number format for people: `int8 (heads fp32)` for `adapter=int8,heads=fp32,text=int8,vision=int8`.
pub(super) fn precision(parts: &str) -> String {
    let pairs: Vec<(&str, &str)> = parts.split(',').filter_map(|part| part.split_once('=')).collect();
    let share = |format: &str| pairs.iter().filter(|(_, f)| *f == format).count();
    let Some((_, main)) = pairs.iter().rev().max_by_key(|(_, format)| share(format)) else { return parts.to_owned() };
    let others = pairs.iter().filter(|(_, format)| format != main);
    let others: Vec<String> = others.map(|(part, format)| format!("{part} {format}")).collect();
    if others.is_empty() { (*main).to_owned() } else { format!("{main} ({})", others.join(", ")) }
}

/// A provider's name for people.
pub(super) fn provider(name: &str) -> &str {
    match name {
        "cpu" => "CPU",
        "cuda" => "CUDA",
        "tensorrt" => "TensorRT",
        "tensorrt-rtx" => "TensorRT for RTX",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            ["0", "999", "1,000", "6,738,415,616"],
            [0, 999, 1000, 6_738_415_616].map(thousands).each_ref().map(String::as_str)
        );
        assert_eq!(
            ["0 B", "999 B", "1.0 kB", "350.5 MB", "13.48 GB"],
            [0, 999, 1000, 350_500_000, 13_480_000_000].map(size).each_ref().map(String::as_str)
        );
        assert_eq!(
            ["0.00 s", "0.05 s", "1.0 s", "5.1 s", "10 s", "42 s", "119 s", "2:05 min", "1:02 h"],
            [0.0, 0.051, 0.99, 5.124, 9.97, 42.4, 119.0, 125.0, 3725.0].map(duration).each_ref().map(String::as_str)
        );
        assert_eq!(["1 row", "0 rows", "1,200 rows"], [1, 0, 1200].map(|n| count(n, "row")));
        assert_eq!((error(0.0123).as_str(), probability_change(9e-5).as_str()), ("1.2e-2", "< 0.0001"));
        assert_eq!(probability_change(0.01234), "0.0123");
    }

    #[test]
    fn formats_of_parts_are_summarized() {
        assert_eq!(precision("fp32"), "fp32");
        assert_eq!(precision("adapter=int8,heads=fp32,text=int8,vision=int8"), "int8 (heads fp32)");
        assert_eq!(precision("adapter=fp32,heads=fp32,text=int4,vision=int8"), "fp32 (text int4, vision int8)");
    }

    #[test]
    fn tables_have_a_rule_and_coloured_verdicts() {
        let rows = [["stage", "error", ""], ["text", "1.2e-2", OK], ["v", "3.0e-1", FAILED]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        let text = table(&rows);
        assert!(text.contains("\u{1b}[32mok") && text.contains("\u{1b}[31m"), "{text:?}");
        let plain = anstream::adapter::strip_str(&text).to_string();
        assert_eq!(plain, "stage   error\n─────────────────────\ntext   1.2e-2      ok\nv      3.0e-1  FAILED\n");
    }

    #[test]
    fn text_of_files_is_one_line_and_steers_nothing() {
        let cases = [
            ("CN\nlabel       AD", r"CN\nlabel       AD"),
            ("\u{1b}[2K\r\tx", r"\u001b[2K\r\tx"),
            ("a\u{7f}\u{85}\u{9b}31m\0", r"a\u007f\u0085\u009b31m\u0000"),
            ("\u{202e}DA\u{2066}\u{2069}\u{200f}", r"\u202eDA\u2066\u2069\u200f"),
            ("a\u{2028}b\u{2029}c", r"a\u2028b\u2029c"),
            ("Gedächtnis 日本 \\n", "Gedächtnis 日本 \\n"),
        ];
        for (text, expected) in cases {
            assert_eq!(escaped(text), expected);
        }
        let rows = [vec!["class".to_owned()], vec!["a\nb\u{1b}[1m".to_owned()]];
        let plain = anstream::adapter::strip_str(&table(&rows)).to_string();
        assert_eq!(plain.lines().last(), Some(r"a\nb\u001b[1m"));
    }

    #[test]
    fn paths_are_safe_in_a_terminal_and_a_shell() {
        assert_eq!(shown(Path::new("a\u{1b}[2Jb")), r"a\u001b[2Jb");
        let cases = [("b-int8", "b-int8"), ("my bundle", "'my bundle'"), ("it's", r"'it'\''s'"), ("", "''")];
        for (path, expected) in cases {
            assert_eq!(quoted(Path::new(path)), expected);
        }
    }
}
