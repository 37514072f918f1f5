//! What this program writes for itself and reads again: results of cohorts, records of caches.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use brain_adapter::cohort::{Row, parse_list};
use brain_adapter::execute::records_in;
use brain_adapter::infer::results::{Claim, is_results, is_table};
use tempfile::TempDir;

/// A record of a cache is of one kind at most: features, engines, or verified files.
pub fn cache(data: &[u8]) {
    assert!(records_in(data, "k").into_iter().filter(|is| *is).count() <= 1);
}

/// A folder with a list of three rows.
struct Place {
    folder: TempDir,
    rows: Vec<Row>,
}

static PLACE: LazyLock<Place> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder for results");
    let list = b"scan,report\na,\nb,r\nc,\n";
    fs::write(folder.path().join("l.csv"), list).expect("a list");
    let rows = parse_list(list, Path::new("l.csv")).expect("a list of ours").rows;
    Place { folder, rows }
});

/// A results file: refused, or opened; what is kept is ours, and is kept to the byte when it is opened again.
pub fn results(data: &[u8]) {
    let (path, list) = (PLACE.folder.path().join("o.jsonl"), PLACE.folder.path().join("l.csv"));
    fs::write(&path, data).expect("a file");
    let (lines, _) = (is_results(&path).expect("it can be read"), is_table(&path, &[]).expect("it can be read"));
    let open = || {
        let claim = Claim::new(&path, false)?;
        claim.open(&list, "b", &PLACE.rows, &mut |row| Some(format!("key {}", row.scan)))
    };
    let Ok(results) = open() else { return };
    assert!(lines, "what is no file of results was opened");
    let (done, kept) = (PLACE.rows.iter().filter(|row| results.has(row)).count(), fs::read(&path).expect("results"));
    assert!(kept.len() <= data.len() + 3 * 4096 && is_results(&path).expect("it can be read"));
    assert_eq!(results.check_complete(&PLACE.rows).is_ok(), done == PLACE.rows.len());
    drop(results);
    drop(open().expect("what was kept is ours"));
    assert_eq!(fs::read(&path).expect("results"), kept);
}
