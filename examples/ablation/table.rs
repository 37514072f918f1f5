//! The printed table and the JSON document.

use std::fmt::Write;

use serde_json::{Value, json};

use super::statistics::{Estimate, Findings};
use super::trial::Outcome;
use super::{Args, MODES};

/// A Markdown table: a row a mode, its trainings' macro-F1, and the differences.
pub fn text(args: &Args, outcomes: &[Outcome], findings: &Findings) -> String {
    let mut out = String::new();
    let mut heads = String::new();
    for cohort in 0..args.cohort.len() {
        for seed in &args.seeds {
            let _ = write!(heads, " {}/{seed} |", cohort + 1);
        }
    }
    let columns = args.cohort.len() * args.seeds.len();
    let _ = writeln!(out, "| mode | macro-F1 | 95 % |{heads}");
    let _ = writeln!(out, "| --- | --- | --- |{}", " --- |".repeat(columns));
    for (mode, estimate) in MODES.iter().zip(&findings.modes) {
        let each = outcomes.iter().filter(|o| o.mode == *mode).map(|o| format!(" {:.3} |", o.macro_f1));
        let _ = writeln!(
            out,
            "| {} | {:.3} | {} |{}",
            estimate.name,
            estimate.value,
            interval(estimate),
            each.collect::<String>()
        );
    }
    let _ = writeln!(out, "\n| difference | macro-F1 | 95 % |\n| --- | --- | --- |");
    for estimate in &findings.differences {
        let _ = writeln!(out, "| {} | {:+.3} | {} |", estimate.name, estimate.value, interval(estimate));
    }
    let cases: Vec<String> = (0..args.cohort.len())
        .filter_map(|cohort| outcomes.iter().find(|o| o.cohort == cohort))
        .map(|o| format!("{} / {} / {}", o.cases[0], o.cases[1], o.cases[2]))
        .collect();
    let seconds: f64 = outcomes.iter().map(|o| o.seconds).sum();
    let _ = writeln!(
        out,
        "\nMacro-F1 on the test split, mean over trainings; columns: cohort/seed. Intervals: bootstrap over subjects, {} draws.\n\
         Training, validation and test cases: {}. {} epochs, learning rate {}, batch {}. {} trainings, {seconds:.0} s in sum.\n\
         Research use only. Not a medical device; not for diagnosis or treatment.",
        findings.draws,
        cases.join("; "),
        args.epochs,
        args.lr,
        args.batch,
        outcomes.len(),
    );
    out
}

fn interval(estimate: &Estimate) -> String {
    estimate.interval.map_or_else(|| "-".to_owned(), |i| format!("{:.3} to {:.3}", i.low, i.high))
}

/// All results, with every prediction.
pub fn document(args: &Args, outcomes: &[Outcome], findings: &Findings) -> Value {
    let cohorts: Vec<String> = args.cohort.iter().map(|p| p.display().to_string()).collect();
    json!({
        "cohorts": cohorts,
        "seeds": args.seeds,
        "epochs": args.epochs,
        "learning_rate": args.lr,
        "batch": args.batch,
        "findings": findings,
        "trainings": outcomes,
    })
}
