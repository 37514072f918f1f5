//! Classifies a scan and its report: `cargo run --release --example classify -- BUNDLE SCAN REPORT`.
#![allow(clippy::print_stdout)]

use brain_adapter::infer::{Options, Predictor};
use brain_adapter::text::read_report;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [bundle, scan, report] = arguments.as_slice() else { return Err("usage: classify BUNDLE SCAN REPORT".into()) };
    let predictor = Predictor::open(bundle.as_ref(), Options::default())?;
    let report = predictor.encode_report(&read_report(report.as_ref())?)?;
    let scan = predictor.reader().read(scan.as_ref())?;
    let prediction = predictor.predict(scan, Some(&report))?;
    println!("{} (research use only)", prediction.label);
    prediction.probabilities.iter().for_each(|(label, p)| println!("{label} {p:.3}"));
    Ok(())
}
