//! What a reader of a labelled list should know of its people: which spellings were taken for one, and how many scans
//! name nobody.

use std::collections::{BTreeMap, BTreeSet};

use super::cells::brief;
use super::labelled::Case;
use super::person::of_file_name;
use crate::error::{Warning, WarningCode};

/// People that a message names.
const SHOWN: usize = 3;

/// Warnings about the people of a list: `subject_alike` where several spellings were taken for one person, or where
/// scans of several subjects have one person's name in a known study; `subject_unknown` where nothing says who scans
/// are of, so that each counts as a person of its own.
pub fn subject_warnings(cases: &[Case]) -> Vec<Warning> {
    let spellings = spellings(cases).map(|message| Warning::new(WarningCode::SUBJECT_ALIKE, message));
    let files = files(cases).map(|message| Warning::new(WarningCode::SUBJECT_ALIKE, message));
    let unknown = unknown(cases).map(|message| Warning::new(WarningCode::SUBJECT_UNKNOWN, message));
    spellings.into_iter().chain(files).chain(unknown).collect()
}

fn spellings(cases: &[Case]) -> Option<String> {
    let mut people: BTreeMap<&str, (usize, BTreeSet<&str>)> = BTreeMap::new();
    for case in cases {
        if let Some(spelled) = &case.spelled {
            people.entry(&case.subject).or_insert((case.line, BTreeSet::new())).1.insert(spelled);
        }
    }
    let mut several: Vec<_> = people.into_values().filter(|(_, spellings)| spellings.len() > 1).collect();
    several.sort_unstable();
    let one = |(line, spellings): &(usize, BTreeSet<&str>)| {
        let shown = spellings.iter().take(SHOWN).map(|s| brief(s)).collect::<Vec<_>>().join(" = ");
        let more = if spellings.len() > SHOWN { " = …" } else { "" };
        format!("{shown}{more} (from line {line})")
    };
    let shown: Vec<String> = several.iter().take(SHOWN).map(one).collect();
    let more = if several.len() > SHOWN { ", …" } else { "" };
    let (count, who) = match several.len() {
        0 => return None,
        1 => ("1 subject is".to_owned(), "one person"),
        n => (format!("{n} subjects are"), "one person each"),
    };
    Some(format!(
        "{count} spelled in several ways and taken for {who}, whose rows stay together: {}{more}. Spell each person in \
         one way; two people need names that differ in more than case, leading zeros, sessions and separators",
        shown.join(", ")
    ))
}

fn files(cases: &[Case]) -> Option<String> {
    let mut people: BTreeMap<String, (&Case, usize)> = BTreeMap::new();
    let mut first = None;
    for case in cases {
        let Some(key) = case.scan.file_name().and_then(|name| of_file_name(&name.to_string_lossy())) else { continue };
        let (known, count) = people.entry(key).or_insert((case, 0));
        if known.subject != case.subject {
            *count += 1;
            first = first.or(Some((known.line, case.line, known.subject.as_str(), case.subject.as_str())));
        }
    }
    let (a, b, one, other) = first?;
    let count = people.values().filter(|(_, count)| *count > 0).count();
    Some(format!(
        "scans whose names have one person belong to several subjects ({count} people, such as {} on line {a} and {} on \
         line {b}): check the column of the subjects, for each is taken for a person of its own",
        brief(one),
        brief(other)
    ))
}

fn unknown(cases: &[Case]) -> Option<String> {
    let nameless: Vec<&Case> = cases.iter().filter(|case| case.spelled.is_none()).collect();
    let people = nameless.iter().map(|case| &case.subject).collect::<BTreeSet<_>>().len();
    let of = if nameless.len() < cases.len() { format!(" of {}", cases.len()) } else { String::new() };
    let [scans, people] = match (nameless.len(), people) {
        (0, _) => return None,
        (n, k) => [(n, "scan", "scans"), (k, "person", "people")].map(|(n, one, many)| match n {
            1 => format!("1 {one}"),
            n => format!("{n} {many}"),
        }),
    };
    Some(format!(
        "{scans}{of} taken for {people}, for nothing says whose they are: two scans of a person may be in two splits, and \
         then results look better than they are. Name the person of each row in a column `subject` (or `participant_id`)"
    ))
}
