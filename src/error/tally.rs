//! Counts of warnings over many inputs: a class once, however many scans carry it.

use std::path::{Path, PathBuf};

use super::{Warning, WarningCode};

/// How many scans (or reports) carry which warnings.
#[derive(Clone, Debug, Default)]
pub struct WarningTally {
    inputs: usize,
    classes: Vec<Class>,
}

/// A class of warnings, in the order of first appearance.
#[derive(Clone, Debug)]
struct Class {
    count: usize,
    /// The first input that carries it.
    path: PathBuf,
    first: Warning,
}

impl WarningTally {
    /// Counts an input and its warnings. Each class counts once an input.
    pub fn add(&mut self, path: &Path, warnings: &[Warning]) {
        self.inputs += 1;
        let mut seen: Vec<WarningCode> = Vec::new();
        for warning in warnings {
            if seen.contains(&warning.code) {
                continue;
            }
            seen.push(warning.code);
            match self.classes.iter_mut().find(|class| class.first.code == warning.code) {
                Some(class) => class.count += 1,
                None => self.classes.push(Class { count: 1, path: path.to_path_buf(), first: warning.clone() }),
            }
        }
    }

    /// One warning a class: `3 of 40 scans, the first PATH: message`; of a class that one input carries, the warning as
    /// it is, with the path. `what` is the inputs' name in the plural.
    pub fn warnings(&self, what: &str) -> Vec<Warning> {
        let of_class = |class: &Class| {
            let mut warning = class.first.at(&class.path);
            if class.count > 1 {
                warning.message = format!("{} of {} {what}, the first {}", class.count, self.inputs, warning.message);
            }
            warning
        };
        self.classes.iter().map(of_class).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_reported_once() {
        let [oblique, cut] =
            [WarningCode::OBLIQUE, WarningCode::FOV_CUT].map(|code| Warning::new(code, format!("{code}!")));
        let mut tally = WarningTally::default();
        assert!(tally.warnings("scans").is_empty());
        tally.add("a".as_ref(), &[]);
        tally.add("b".as_ref(), &[oblique.clone(), oblique.clone()]);
        tally.add("c".as_ref(), &[cut, oblique]);
        let found: Vec<(String, String)> =
            tally.warnings("scans").into_iter().map(|w| (w.code.to_string(), w.message)).collect();
        let expected = [("oblique", "2 of 3 scans, the first b: oblique!"), ("fov_cut", "c: fov_cut!")];
        assert_eq!(found, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }
}
