//! The people of a labelled list: rows of one scan agree, rows of one person are in one split, and each person gets a
//! name.
//!
//! In: rows with the person that a cell or the scan's path names. Out: the same with splits passed on within a person,
//! and the subjects' names; or what contradicts itself, with the lines.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::cells::brief;
use super::person::Person;
use super::split::Split;

/// A row whose subject is not final yet.
pub(super) struct Row {
    /// Line in the list, from 1.
    pub line: usize,
    /// Who it is of; none where nothing says so.
    pub person: Option<Person>,
    /// The person as the row spells it, without `sub-`.
    pub spelled: Option<String>,
    /// What the row's subject is called as long as nobody spells the person otherwise.
    pub name: String,
    /// The scan as it is listed, without `.` parts.
    pub listed: String,
    pub scan: PathBuf,
    /// The file that this is, by whatever name: rows with one are rows of one scan.
    pub file: PathBuf,
    pub volume: Option<usize>,
    pub report: Option<PathBuf>,
    pub label: usize,
    pub split: Option<Split>,
}

/// What tells people apart, and whether it is a name: else it is the scan.
type Who<'a> = (bool, &'a str);

/// What rows call a person, and the same without sessions.
type Spellings<'a> = (BTreeSet<&'a str>, BTreeSet<&'a str>);

impl Row {
    /// What tells people apart: the person's key, else the scan.
    fn who(&self) -> Who<'_> {
        self.person.as_ref().map_or((false, self.listed.as_str()), |person| (true, person.key.as_str()))
    }
}

/// Gives rows of one scan one person; they must agree on the person, the label and the split.
pub(super) fn of_one_scan(rows: &mut [Row]) -> Result<(), String> {
    let mut scans: BTreeMap<PathBuf, Vec<usize>> = BTreeMap::new();
    for (i, row) in rows.iter_mut().enumerate() {
        scans.entry(std::mem::take(&mut row.file)).or_default().push(i);
    }
    for same in scans.into_values().filter(|same| same.len() > 1) {
        let first = &rows[same[0]];
        for other in same.iter().map(|i| &rows[*i]) {
            let lines = format!("lines {} and {} name one scan, {}", first.line, other.line, brief(&other.listed));
            if other.label != first.label {
                return Err(format!("{lines}, with two labels: correct one"));
            }
            if other.split.zip(first.split).is_some_and(|(a, b)| a != b) {
                return Err(format!("{lines}, in two splits: a model must not be tested on what it learned"));
            }
        }
        let mut named = same.iter().map(|i| &rows[*i]).filter(|row| row.person.is_some());
        match named.next() {
            Some(known) => {
                if let Some(other) = named.find(|row| row.who() != known.who()) {
                    let [a, b] = [known, other].map(|row| brief(row.spelled.as_deref().unwrap_or_default()));
                    return Err(format!("line {}: its scan is listed for two subjects, {a} and {b}", first.line));
                }
                let (person, spelled, name) = (known.person.clone(), known.spelled.clone(), known.name.clone());
                for row in same.iter().copied() {
                    if rows[row].person.is_none() {
                        (rows[row].person, rows[row].spelled) = (person.clone(), spelled.clone());
                        rows[row].name.clone_from(&name);
                    }
                }
            }
            None => {
                let name = same.iter().map(|i| rows[*i].listed.clone()).min().unwrap_or_default();
                for row in same {
                    rows[row].name.clone_from(&name);
                    rows[row].listed.clone_from(&name);
                }
            }
        }
    }
    Ok(())
}

/// Gives rows of one person its split; two splits are refused.
pub(super) fn one_split_each(rows: &mut [Row]) -> Result<(), String> {
    let mut known: BTreeMap<Who<'_>, &Row> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.split.is_some()) {
        let first = *known.entry(row.who()).or_insert(row);
        if first.split != row.split {
            return Err(two_splits(row, first));
        }
    }
    let known: BTreeMap<(bool, String), Option<Split>> =
        known.into_iter().map(|((named, who), row)| ((named, who.to_owned()), row.split)).collect();
    for row in rows {
        let (named, who) = row.who();
        row.split = known.get(&(named, who.to_owned())).copied().flatten();
    }
    Ok(())
}

/// Names both lines of a person in two splits, and both spellings where they differ.
fn two_splits(row: &Row, first: &Row) -> String {
    let spelled = |row: &Row| brief(row.spelled.as_deref().unwrap_or(&row.listed));
    let split = |row: &Row| row.split.map_or("", Split::name);
    let [a, b] = [row, first].map(spelled);
    let keep = "keep a person's rows in one split, or results look better than they are";
    if a == b {
        return format!(
            "line {}: subject {a} is in {}, on line {} in {}: {keep}",
            row.line,
            split(row),
            first.line,
            split(first)
        );
    }
    format!(
        "line {}: subject {a} is in {}, and {b} on line {} in {}, which is taken for the same person (case, leading \
         zeros, .0, sessions and separators tell nobody apart): {keep}; if they are two people, give them names that \
         differ in more",
        row.line,
        split(row),
        first.line,
        split(first)
    )
}

/// The subject of each row: as all rows spell the person, else the first of the spellings without session.
pub(super) fn subjects(rows: &[Row]) -> Vec<String> {
    let mut people: BTreeMap<Who<'_>, Spellings<'_>> = BTreeMap::new();
    for row in rows {
        let (names, ids) = people.entry(row.who()).or_default();
        names.insert(&row.name);
        ids.insert(row.person.as_ref().map_or(&row.listed, |person| &person.id));
    }
    let name = |who: &Who<'_>| {
        let (names, ids) = people.get(who)?;
        let one = names.len() == 1;
        (if one { names } else { ids }).first().map(|name| (*name).to_owned())
    };
    let named: BTreeSet<String> = people.keys().filter(|(named, _)| *named).filter_map(name).collect();
    let of = |row: &Row| {
        let mut name = name(&row.who()).unwrap_or_else(|| row.name.clone());
        // A scan of nobody is not the person who is called as its file.
        while row.person.is_none() && named.contains(&name) {
            name.insert_str(0, "./");
        }
        name
    };
    rows.iter().map(of).collect()
}
