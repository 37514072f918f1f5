//! The header of a list: which column is which.
//!
//! In: the first record of a list. Out: places of columns by name, and the names of the others. Capitals, padding
//! (spaces, a byte order mark) and empty cells do not matter, and `participant id` or `Participant-ID` is
//! `participant_id`; a name as it is documented comes before such a variant of it.

use std::collections::HashMap;

use csv::StringRecord;

use super::cells::{brief, is_space};

/// The names of the columns, without the space around them.
pub(super) struct Header {
    names: Vec<String>,
}

impl Header {
    pub fn new(record: &StringRecord) -> Self {
        Self { names: record.iter().map(|name| name.trim_matches(is_space).to_owned()).collect() }
    }

    /// Number of columns.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether the columns from `first` on have no names: they pad the header.
    pub fn is_padding(&self, first: usize) -> bool {
        self.names.iter().skip(first).all(String::is_empty)
    }

    /// Whether there is a column `name`, or several.
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|n| normal(n) == name)
    }

    /// The place of the column `name`; two of them are an error.
    pub fn find(&self, name: &str) -> Result<Option<usize>, String> {
        let places = |is: &dyn Fn(&String) -> bool| -> Vec<usize> {
            self.names.iter().enumerate().filter(|(_, n)| is(n)).map(|(i, _)| i).collect()
        };
        let mut found = places(&|n| n == name);
        if found.is_empty() {
            found = places(&|n| normal(n) == name);
        }
        match found.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(*one)),
            several => Err(format!("the header has {} columns `{name}`: keep one", several.len())),
        }
    }

    /// The place of a column that must be there.
    pub fn needed(&self, name: &str) -> Result<usize, String> {
        self.find(name)?.ok_or_else(|| {
            let shown = brief(&self.names.join(", "));
            let hint =
                if self.names.len() == 1 { " (cells are separated by a comma, semicolon, tab or |)" } else { "" };
            format!("the header has no column `{name}`; it has {shown}{hint}")
        })
    }

    /// The other columns than `used`, with names that are all different: a column without a name is `column_N`, N from
    /// 1, and a second `age` is `age_2`. The flag is whether the column has a name of its own.
    pub fn others(&self, used: &[Option<usize>]) -> Vec<(usize, String, bool)> {
        let mut found: Vec<(usize, String, bool)> = Vec::new();
        let mut seen: HashMap<String, usize> = HashMap::new();
        for (i, name) in self.names.iter().enumerate().filter(|(i, _)| !used.contains(&Some(*i))) {
            let own = if name.is_empty() { format!("column_{}", i + 1) } else { name.clone() };
            let mut unique = own.clone();
            while seen.contains_key(&unique) {
                let number = seen.entry(own.clone()).or_insert(1);
                *number += 1;
                unique = format!("{own}_{number}");
            }
            seen.insert(unique.clone(), 1);
            found.push((i, unique, !name.is_empty()));
        }
        found
    }
}

/// A name in the form that columns are known by.
fn normal(name: &str) -> String {
    let inner = name.trim_matches(is_space).to_lowercase();
    inner.chars().map(|c| if c == ' ' || c == '-' { '_' } else { c }).collect()
}
