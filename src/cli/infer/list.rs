//! `ba-infer --list`: a cohort, row by row.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Args, is_fatal, lines_of_csv, note_placement, open};
use crate::cli::text::{count, escaped, place_and_message};
use crate::cli::{library_warnings, print, print_json_line};
use crate::cohort::{BadRow, List, Row, explain};
use crate::error::{Code, Error, Result};
use crate::infer::results::{self, AnswerContext, Claim, CurrentKeys, Results};
use crate::infer::{Expected, PendingScan, Prediction, Predictor, ScanReader, read_ahead};
use crate::text::read_report_as;

/// Runs the list at a path: reports its bad rows, then answers the others.
pub(super) fn run(args: &Args, list: &Path, read: &List) -> Result<()> {
    let List { rows, bad, notes, .. } = read;
    args.common.note(notes.iter().cloned());
    for BadRow { line, error } in bad {
        let what = error.message().trim_start_matches(&format!("line {line}: "));
        args.common.note([format!("line {line}: error[{}]: {what}", error.code())]);
        if args.common.json && args.output.is_none() {
            let line = serde_json::json!({"scan": null, "report": null, "error": results::error_json(error)});
            print_json_line(&line.to_string())?;
        }
    }
    // A CSV is made at the end from the JSON lines next to it, which also survive an interrupted run.
    let csv = args.output.as_deref().filter(|path| lines_of_csv(path).is_some());
    let lines = args.output.as_ref().map(|path| lines_of_csv(path).unwrap_or_else(|| path.clone()));
    let claim = lines.map(|path| Claim::new(&path, args.force)).transpose()?;
    let reports: BTreeSet<PathBuf> = rows.iter().filter_map(Row::report_path).collect();
    let predictor = open(args, Expected { scans: rows.len(), reports: reports.len() }, None)?;
    let context = predictor.answer_context();
    let reader = if claim.is_some() { predictor.reader().identifying() } else { predictor.reader() };
    let mut keys = CurrentKeys::new(&reader, &context, args.report_format);
    let bundle = &predictor.bundle().sha256;
    let results = claim.map(|claim| claim.open(list, bundle, rows, &mut |row| keys.of(row))).transpose()?;
    let mut run = Run { args, predictor: &predictor, context, rows, results };
    let failed = run.pending(&reader)? + bad.len();
    note_placement(args, &predictor);
    if let Some(results) = &run.results {
        if let Some(csv) = csv {
            results.write_csv(csv, rows, &predictor.bundle().manifest.labels)?;
        }
        results.check_complete(rows)?;
    }
    if failed > 0 {
        let message = format!("{failed} of {} rows failed; the others have their results", rows.len() + bad.len());
        return Err(Error::new(Code::LIST_PARTIAL, message).at(list));
    }
    Ok(())
}

struct Run<'a> {
    args: &'a Args,
    predictor: &'a Predictor,
    context: AnswerContext,
    rows: &'a [Row],
    results: Option<Results>,
}

impl Run<'_> {
    /// Answers the rows that have no answer yet; returns how many failed.
    fn pending(&mut self, reader: &ScanReader) -> Result<usize> {
        let done = |row: &Row| self.results.as_ref().is_some_and(|results| results.has(row));
        let pending: Vec<&Row> = self.rows.iter().filter(|row| !done(row)).collect();
        let scans: Vec<(PathBuf, Option<usize>)> = pending.iter().map(|row| (row.scan_path(), row.volume)).collect();
        if scans.first().is_some_and(|(first, volume)| !reader.of_volume(*volume).is_cached(first)) {
            self.predictor.preload()?;
        }
        let (mut failed, mut next) = (0, pending.iter());
        let in_background = self.predictor.reads_in_background();
        let scans = scans.iter().map(|(path, volume)| (path.as_path(), *volume));
        read_ahead(reader, scans, in_background, &mut |reading| {
            let Some(row) = next.next() else { return Ok(()) };
            let outcome = self.row(row, reading).map_err(explain);
            failed += usize::from(outcome.is_err());
            self.tell(row, outcome, self.rows.len() - next.len())
        })?;
        let skipped = self.rows.len() - pending.len();
        if skipped > 0 {
            self.args.common.note([format!("skipped {} with a result", count(skipped, "row"))]);
        }
        Ok(failed)
    }

    /// One row, and the key of its answer where there are results to keep: its report is read and encoded while its
    /// scan is read.
    fn row(&self, row: &Row, reading: PendingScan<'_>) -> Result<(Prediction, Option<String>)> {
        let mut sha256 = None;
        let scan = || {
            let scan = reading.finish()?;
            sha256.clone_from(&scan.sha256);
            Ok(scan)
        };
        let (mut prediction, report) = match row.report_path() {
            Some(path) => {
                let report = read_report_as(&path, self.args.report_format)?;
                (self.predictor.predict_with_report(&report, &mut None, scan)?, Some(report))
            }
            None => {
                self.predictor.require_image_head()?;
                (self.predictor.predict(scan()?, None)?, None)
            }
        };
        prediction.warnings.extend(library_warnings());
        let key = sha256.map(|scan| self.context.of_volume(row.volume).key(&scan, report.as_deref()));
        Ok((prediction, key))
    }

    /// Writes or prints a row's outcome. An error of the bundle ends the run.
    fn tell(&mut self, row: &Row, outcome: Result<(Prediction, Option<String>)>, done: usize) -> Result<()> {
        let common = &self.args.common;
        if let Err(e) = &outcome {
            common.note([format!("line {}: error[{}]: {}", row.line, e.code(), place_and_message(e))]);
        }
        let (outcome, key) = match outcome {
            Ok((prediction, key)) => (Ok(prediction), key),
            Err(e) => (Err(e), None),
        };
        match (&mut self.results, common.json, &outcome) {
            (Some(results), _, _) => {
                results.add(row, key, &outcome)?;
                common.note([format!("{done} of {}: {}", self.rows.len(), row.scan)]);
            }
            (None, true, _) => print_json_line(&results::line(row, &outcome).to_string())?,
            (None, false, Ok(prediction)) => print(&format!("{}\n", short_line(row, prediction)))?,
            (None, false, Err(_)) => {}
        }
        outcome.err().filter(is_fatal).map_or(Ok(()), Err)
    }
}

fn short_line(row: &Row, prediction: &Prediction) -> String {
    let all: Vec<String> = prediction.probabilities.iter().map(|(l, p)| format!("{} {p:.3}", escaped(l))).collect();
    format!("{}\t{}\t{}", escaped(&row.scan), escaped(&prediction.label), all.join(" "))
}
