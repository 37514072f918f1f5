//! A results file: claimed by one program, opened for a list, and grown line by line.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::columns;
use super::line::{Found, Line, Lines, Names, is_results};
use crate::cohort::Row;
use crate::error::{Code, Error, Result};
use crate::files::{Lock, Pending};
use crate::infer::Prediction;

/// A results file that no other program may write now, and that holds nothing but results.
pub struct Claim {
    path: PathBuf,
    /// Whether what is there is to be replaced as a whole.
    replace: bool,
    lock: Lock,
}

impl Claim {
    /// Locks the results file at `path`, whether it exists or not. With `force` a file that holds other things will be
    /// replaced.
    ///
    /// # Errors
    /// `output.in_use` while another program writes it; `output.exists` when it holds other things; `io`.
    pub fn new(path: &Path, force: bool) -> Result<Self> {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(".lock");
        let file = path.with_file_name(name);
        let Some(lock) = Lock::try_temporary(&file)? else {
            let message = "another run is writing these results: wait for its end, or choose another -o";
            return Err(Error::new(Code::OUTPUT_IN_USE, message).at(path));
        };
        let replace = path.exists() && force && !is_results(path)?;
        if path.exists() && !replace {
            let mut lines = Lines::open(path)?;
            while lines.next()?.is_some() {}
        }
        Ok(Self { path: path.to_owned(), replace, lock })
    }

    /// Opens the results for the rows of `list`. Lines that answer a row as its files are now are kept; `current` gives
    /// the key of that, and is asked only where there is a line to compare with. Lines of other lists are kept. Failed
    /// and superseded lines of this list, and an unfinished last line, are dropped. `bundle` is the SHA-256 of the
    /// bundle that answers.
    ///
    /// # Errors
    /// `list.invalid` when lines of other lists are answers of another bundle; `io`, `disk.full`.
    pub fn open(
        self,
        list: &Path,
        bundle: &str,
        rows: &[Row],
        current: &mut dyn FnMut(&Row) -> Option<String>,
    ) -> Result<Results> {
        let Self { path, replace, lock } = self;
        let canonical = list.canonicalize().map_err(|e| Error::io(list, "cannot find the list", e))?;
        let list = canonical.display().to_string();
        let earlier = path.exists() && !replace;
        let keys = if earlier { done(&path, &list, bundle, rows, current)? } else { HashMap::new() };
        let pending = Pending::next_to(&path, "")?;
        if earlier {
            keep(&path, &list, rows, &keys, pending.file())?;
        }
        pending.put()?;
        let failed = |e| Error::io(&path, "cannot write the results", e);
        let file = File::options().append(true).open(&path).map_err(failed)?;
        Ok(Results { keys, list, file, path, _lock: lock })
    }
}

/// The keys of the rows that have an answer.
fn done(
    path: &Path,
    list: &str,
    bundle: &str,
    rows: &[Row],
    current: &mut dyn FnMut(&Row) -> Option<String>,
) -> Result<HashMap<Names, String>> {
    let mut recorded: HashMap<Names, Vec<String>> = rows.iter().map(|row| (row.names(), Vec::new())).collect();
    let mut lines = Lines::open(path)?;
    while let Some(Found { line, .. }) = lines.next()? {
        // One table, one model: results of two are not to be mixed.
        if is_others(&line, list) && line.bundle().is_some_and(|sha256| sha256 != bundle) {
            let message = "the output exists and holds results of another list by another bundle: choose another -o";
            return Err(Error::new(Code::LIST_INVALID, message).at(path));
        }
        // A line that names no list is of nobody, and is not kept.
        let answer = line.label.is_some() && line.list.is_some();
        if let (true, Some(key), Some(keys)) = (answer, &line.key, recorded.get_mut(&line.names())) {
            keys.push(key.clone());
        }
    }
    let mut found = HashMap::new();
    for row in rows {
        let Some(keys) = recorded.remove(&row.names()).filter(|keys| !keys.is_empty()) else { continue };
        found.extend(current(row).filter(|key| keys.contains(key)).map(|key| (row.names(), key)));
    }
    Ok(found)
}

/// Whether a line belongs to another list than this one.
pub(super) fn is_others(line: &Line, list: &str) -> bool {
    line.list.as_ref().is_some_and(|other| other != list)
}

/// Copies what is to be kept. Each key that is done has one line of this list then.
fn keep(path: &Path, list: &str, rows: &[Row], keys: &HashMap<Names, String>, to: &File) -> Result<()> {
    // Answers that only another list has: the list was moved, or copied.
    let mut elsewhere = keys.clone();
    let answers = |line: &Line, keys: &HashMap<Names, String>| {
        line.label.is_some() && line.key.is_some() && keys.get(&line.names()) == line.key.as_ref()
    };
    let mut lines = Lines::open(path)?;
    while let Some(Found { line, .. }) = lines.next()? {
        if line.list.as_deref() == Some(list) && answers(&line, keys) {
            elsewhere.remove(&line.names());
        }
    }
    let mut own: HashMap<Names, bool> = rows.iter().map(|row| (row.names(), false)).collect();
    let now: HashMap<Names, &Row> = rows.iter().map(|row| (row.names(), row)).collect();
    let mut out = BufWriter::new(to);
    let failed = |e| Error::io(path, "cannot write the results", e);
    let mut lines = Lines::open(path)?;
    while let Some(Found { line, bytes, .. }) = lines.next()? {
        if is_others(&line, list) {
            let taken = answers(&line, &elsewhere) && elsewhere.remove(&line.names()).is_some();
            // A list that is gone was moved here: its lines move too, instead of standing there twice.
            if !taken || line.list.as_ref().is_some_and(|other| Path::new(other).exists()) {
                out.write_all(bytes).map_err(failed)?;
            }
            if taken {
                out.write_all(&of_list(bytes, list, now.get(&line.names()).copied())?).map_err(failed)?;
            }
        } else {
            let wanted = match own.get_mut(&line.names()) {
                Some(written) => answers(&line, keys) && line.list.is_some() && !std::mem::replace(written, true),
                // A row that is no longer in the list.
                None => line.label.is_some(),
            };
            // Of the other columns the list's are the right ones, whatever they were.
            match now.get(&line.names()).filter(|row| columns(row).unwrap_or_default() != line.columns) {
                _ if !wanted => {}
                Some(row) => out.write_all(&of_list(bytes, list, Some(row))?).map_err(failed)?,
                None => out.write_all(bytes).map_err(failed)?,
            }
        }
    }
    out.flush().map_err(failed)
}

/// A line as one of `list`, with the other columns of its row.
fn of_list(bytes: &[u8], list: &str, row: Option<&Row>) -> Result<Vec<u8>> {
    let value: serde_json::Result<Value> = serde_json::from_slice(bytes);
    let mut value = value.map_err(|e| Error::internal(format!("a line of results was read before, and now: {e}")))?;
    match (row.and_then(columns), value.as_object_mut()) {
        (Some(columns), _) => value["columns"] = columns.into(),
        (None, Some(line)) => drop(line.shift_remove("columns")),
        (None, None) => {}
    }
    value["list"] = list.into();
    Ok(format!("{value}\n").into_bytes())
}

/// A results file that grows line by line, and that no other program writes.
pub struct Results {
    pub(super) path: PathBuf,
    file: File,
    pub(super) list: String,
    /// Keys of the rows with an answer.
    keys: HashMap<Names, String>,
    _lock: Lock,
}

impl Results {
    /// Whether a row has its answer already.
    pub fn has(&self, row: &Row) -> bool {
        self.keys.contains_key(&row.names())
    }

    /// Adds a row's outcome; of an answer with its key.
    ///
    /// # Errors
    /// `io` or `disk.full`.
    pub fn add(&mut self, row: &Row, key: Option<String>, outcome: &Result<Prediction>) -> Result<()> {
        let mut line = super::line(row, outcome);
        line["key"] = key.clone().into();
        line["list"] = self.list.clone().into();
        let line = format!("{line}\n");
        let failed = |e| Error::io(&self.path, "cannot write the results", e);
        self.file.write_all(line.as_bytes()).and_then(|()| self.file.flush()).map_err(failed)?;
        self.keys.extend(key.map(|key| (row.names(), key)));
        Ok(())
    }

    /// Checks that the file has a line for every row: an answer under the key that was computed, or an error.
    ///
    /// # Errors
    /// `list.partial` when rows are missing; `output.exists` when other things were written into the file; `io`.
    pub fn check_complete(&self, rows: &[Row]) -> Result<()> {
        let found = self.own_lines(rows)?;
        let missing: Vec<u64> = rows.iter().filter(|row| !found.contains_key(&row.names())).map(|r| r.line).collect();
        let Some(first) = missing.first() else { return Ok(()) };
        let message = format!(
            "{} of {} rows of the list (the first on line {first}) are missing in the results: was the file changed \
             meanwhile? Run the same command again",
            missing.len(),
            rows.len()
        );
        Err(Error::new(Code::LIST_PARTIAL, message).at(&self.path))
    }

    /// Where the last line of each row stands; a row whose line is missing is left out.
    pub(super) fn own_lines(&self, rows: &[Row]) -> Result<HashMap<Names, u64>> {
        let wanted: std::collections::HashSet<Names> = rows.iter().map(Row::names).collect();
        let mut found = HashMap::new();
        let mut lines = Lines::open(&self.path)?;
        while let Some(Found { line, start, .. }) = lines.next()? {
            let names = line.names();
            let current = line.label.is_none() || line.key.as_ref() == self.keys.get(&names);
            if line.list.as_ref() == Some(&self.list) && current && wanted.contains(&names) {
                found.insert(names, start);
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
