//! An evaluation as text for people.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::bundle::INTENDED_USE;
use crate::cli::text::{count, escaped, precision, provider, short, shown, table};
use crate::metrics::Interval;
use crate::metrics::temperature::Outcome;
use crate::train::eval::{Decided, Evaluation};

/// The text of an evaluation. `written` are the pictures' files.
pub(super) fn evaluation(e: &Evaluation, bundle: &Path, written: &[PathBuf]) -> String {
    let mut text = String::new();
    let (split, id) = (&e.split, &e.bundle);
    let _ = writeln!(text, "data        {}", shown(Path::new(&e.data)));
    let _ = writeln!(text, "split       {} ({})", split.name, split.why);
    let _ = write!(text, "answered    {} of {} rows, {} subjects", split.answered, split.rows, split.subjects);
    if split.without_report > 0 {
        let _ = write!(text, "; {} without a report, by the image-only classifier", split.without_report);
    }
    let (format, id, device) = (precision(&id.precision), short(&id.sha256), provider(&e.device));
    let _ = writeln!(text, "\nbundle      {}, {format}, {id}, on {device}", shown(bundle));
    text += &temperatures(e);
    let _ = writeln!(text, "\n{}", metrics(e));
    text += &classes(e);
    let _ = writeln!(text, "\n{}", confusion(e));
    let intervals = &e.intervals;
    if intervals.draws > 0 {
        let _ = writeln!(
            text,
            "95 % intervals: percentiles of {}, resampling subjects within their class, seed {}",
            count(intervals.draws as usize, "bootstrap draw"),
            intervals.seed
        );
    }
    for (label, class) in e.labels.iter().zip(&e.scores.classes).filter(|(_, c)| !c.undefined.is_empty()) {
        let undefined = class.undefined.join(", ");
        let _ = writeln!(text, "{}: {undefined} undefined (no denominator), counted as 0", escaped(label));
    }
    for path in written {
        let _ = writeln!(text, "picture: {}", shown(path));
    }
    let _ = writeln!(text, "\n{INTENDED_USE}");
    text
}

fn temperatures(e: &Evaluation) -> String {
    let mut text = String::new();
    let fits = e.fitted.as_ref();
    let rows = [
        (e.temperature.report, fits.and_then(|f| f.report.as_ref()), "with a report"),
        (e.temperature.image, fits.and_then(|f| f.image.as_ref()), "without a report"),
    ];
    for (temperature, fit, with) in rows.into_iter().filter(|(t, fit, _)| t.is_some() || fit.is_some()) {
        let from = fit.map_or("in the bundle".to_owned(), fitted);
        let _ = writeln!(text, "temperature {:.3} {with}: {from}", temperature.unwrap_or(1.0));
    }
    let kept = |fit: &Option<Decided>| fit.as_ref().is_some_and(|fit| fit.kept);
    if let Some(fitted) = fits.filter(|f| kept(&f.report) || kept(&f.image)) {
        let _ = writeln!(text, "            written into the bundle, whose ID is now {}", short(&fitted.bundle_sha256));
    }
    text
}

fn fitted(decided: &Decided) -> String {
    let fit = &decided.fit;
    let why = match fit.outcome {
        Outcome::Minimum => "",
        Outcome::LowerEnd => "; the minimum allowed",
        Outcome::UpperEnd => "; the maximum allowed: the logits are hardly better than chance",
        Outcome::AllRight => "; all are correct, which fits any temperature",
        Outcome::NoAnswers => "; there are none",
    };
    let what = match decided.kept {
        true => "fitted".to_owned(),
        false => format!("as before; {:.3} was fitted", fit.temperature),
    };
    let rows = count(fit.answers, "validation row");
    let mut text = format!("{what} on {rows} (NLL {:.3} to {:.3}{why})", fit.nll_before, fit.nll_after);
    if let Some(gain) = &decided.gain {
        let gained = signed(gain.nats, gain.interval);
        let _ = write!(text, "\n            gain over {:.3} on rows left out: {gained} nats a row", gain.over);
        let _ = write!(text, ", {} folds of {}", gain.folds, count(gain.subjects, "subject"));
    }
    text
}

/// A difference with its interval.
fn signed(value: f64, interval: Option<Interval>) -> String {
    let interval = interval.map_or(String::new(), |i| format!(" [{:+.3}, {:+.3}]", i.low, i.high));
    format!("{value:+.3}{interval}")
}

fn value(value: f64, interval: Option<Interval>) -> String {
    match interval {
        Some(i) => format!("{value:.3} [{:.3}, {:.3}]", i.low, i.high),
        None => format!("{value:.3}"),
    }
}

fn metrics(e: &Evaluation) -> String {
    let (s, i, r) = (&e.scores, &e.intervals, &e.scores.reliability);
    let before = e.uncalibrated.as_ref();
    let row = |name: &str, now: Option<f64>, interval, before: Option<f64>| {
        let now = now.map_or("-".to_owned(), |now| value(now, interval));
        vec![name.to_owned(), now, before.map_or(String::new(), |b| format!("{b:.3}"))]
    };
    let title = if i.draws > 0 { "value [95 %]" } else { "value" };
    let second = if before.is_some() { "without temperature" } else { "" };
    table(&[
        vec!["metric".to_owned(), title.to_owned(), second.to_owned()],
        row("accuracy", Some(s.accuracy), i.accuracy, None),
        row("balanced accuracy", Some(s.balanced_accuracy), i.balanced_accuracy, None),
        row("macro-F1", Some(s.macro_f1), i.macro_f1, None),
        row("mean ROC AUC", s.macro_auc, i.macro_auc, None),
        row("ECE (15 bins)", Some(r.ece), i.ece, before.map(|b| b.ece)),
        row("NLL (nats)", Some(r.nll), i.nll, before.map(|b| b.nll)),
        row("Brier (0 to 2)", Some(r.brier), i.brier, before.map(|b| b.brier)),
    ])
}

fn classes(e: &Evaluation) -> String {
    let (s, i) = (&e.scores, &e.intervals);
    let mut rows = vec![["class", "rows", "precision", "recall", "F1", "ROC AUC"].map(str::to_owned).to_vec()];
    for (c, (label, class)) in e.labels.iter().zip(&s.classes).enumerate() {
        rows.push(vec![
            label.clone(),
            class.support.to_string(),
            value(class.precision, i.precision[c]),
            value(class.recall, i.recall[c]),
            value(class.f1, i.f1[c]),
            s.auc[c].map_or("-".to_owned(), |auc| value(auc, i.auc[c])),
        ]);
    }
    table(&rows)
}

fn confusion(e: &Evaluation) -> String {
    let mut rows = vec![std::iter::once("true \\ predicted".to_owned()).chain(e.labels.iter().cloned()).collect()];
    for (label, counts) in e.labels.iter().zip(&e.confusion.counts) {
        rows.push(std::iter::once(label.clone()).chain(counts.iter().map(u64::to_string)).collect::<Vec<String>>());
    }
    table(&rows)
}
