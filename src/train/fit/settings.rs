//! Everything that the numbers of a training depend on. A training resumes only with the same settings.

use std::collections::BTreeMap;

use super::cases::Cases;
use super::{Plan, threads};
use crate::train::artifacts::Artifacts;

/// Settings by name, each as text; part of the state in `last`. `build` is ONNX Runtime's, `bundle` the SHA-256 of the
/// language model's bundle.
pub(super) fn settings(
    plan: &Plan,
    artifacts: &Artifacts,
    cases: &Cases,
    bundle: &str,
    build: &str,
) -> BTreeMap<String, String> {
    let settings: [(&str, String); 16] = [
        ("tool", env!("CARGO_PKG_VERSION").into()),
        ("artifacts", artifacts.sha256.clone()),
        ("cohort", cases.sha256()),
        ("bundle", bundle.into()),
        ("epochs", plan.epochs.to_string()),
        ("batch", plan.batch.to_string()),
        ("accumulate", plan.accumulate.to_string()),
        ("schedule", format!("{:?}", plan.schedule)),
        ("adamw", format!("{:?}", plan.adamw)),
        ("seed", plan.seed.to_string()),
        ("patience", format!("{:?}", plan.patience)),
        ("frozen-adapter", plan.frozen_adapter.to_string()),
        ("balance", format!("{:?}", plan.balance)),
        ("activations", format!("{:?}", plan.activations)),
        ("threads", threads(plan).to_string()),
        ("onnxruntime", build.into()),
    ];
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What differs between the settings of a state and those of now, for a person: by the flags of `ba-train fit`.
pub(super) fn differences(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    for (name, now) in now {
        let Some(before) = before.get(name) else {
            found.push(format!("{} is not recorded", subject(name)));
            continue;
        };
        if before == now {
            continue;
        }
        match name.as_str() {
            "artifacts" | "cohort" | "bundle" => found.push(format!("{} changed", subject(name))),
            "schedule" | "adamw" => found.extend(fields(before, now)),
            _ => found.push(format!("{} was {}, now {}", subject(name), shown(before), shown(now))),
        }
    }
    found
}

/// What a person calls a setting.
fn subject(name: &str) -> String {
    match name {
        "tool" => "the version of ba-train".into(),
        "onnxruntime" => "the ONNX Runtime build".into(),
        "cohort" => "the cohort (--data)".into(),
        "artifacts" | "bundle" => format!("the content of --{name}"),
        "schedule" | "adamw" => format!("the setting `{name}`"),
        flag => format!("--{flag}"),
    }
}

/// The fields that differ between two structures, each written as `Name { field: value, … }`.
fn fields(before: &str, now: &str) -> Vec<String> {
    let parse = |text: &str| -> Vec<(String, String)> {
        let inner = text.split_once("{ ").map_or(text, |(_, rest)| rest).trim_end_matches(" }").to_owned();
        // `betas: [0.9, 0.999]` is one field: a new field begins with a name.
        inner.split(", ").fold(Vec::<(String, String)>::new(), |mut all, part| {
            match (part.split_once(": "), all.last_mut()) {
                (Some((name, value)), _) => all.push((name.to_owned(), value.to_owned())),
                (None, Some((_, value))) => *value = format!("{value}, {part}"),
                (None, None) => {}
            }
            all
        })
    };
    let flag = |name: &str| match name {
        "rate" => "--lr".to_owned(),
        "cosine" => "--schedule".to_owned(),
        "warmup" | "weight_decay" | "clip" => format!("--{}", name.replace('_', "-")),
        other => format!("AdamW's {other}"),
    };
    let value = |name: &str, value: &str| match (name, value) {
        ("cosine", "true") => "cosine".to_owned(),
        ("cosine", "false") => "constant".to_owned(),
        _ => shown(value),
    };
    let (before, now) = (parse(before), parse(now));
    let pairs = before.into_iter().zip(now).filter(|(b, n)| b != n);
    pairs
        .map(|((name, b), (_, n))| format!("{} was {}, now {}", flag(&name), value(&name, &b), value(&name, &n)))
        .collect()
}

/// A recorded value as the command line has it: `Some(3)` is 3, `None` is none.
fn shown(value: &str) -> String {
    let inner = value.strip_prefix("Some(").and_then(|v| v.strip_suffix(')')).unwrap_or(value);
    match inner.parse::<f64>() {
        Ok(number) => number.to_string(),
        // A variant's name, as the flag spells it.
        Err(_) if inner.chars().all(char::is_alphabetic) => inner.to_lowercase(),
        Err(_) => inner.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AdamW;
    use crate::train::fit::Schedule;

    fn map(pairs: &[(&str, String)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    #[test]
    fn differences_name_flags_and_no_debug_text() {
        let schedule = Schedule { rate: 1e-3, warmup: 0.05, cosine: true };
        let adam = AdamW::default();
        let record = |schedule: Schedule, adam: AdamW, patience: Option<u32>, more: [&str; 3]| {
            let texts = more.map(str::to_owned);
            let [cohort, build, balance] = texts;
            map(&[
                ("schedule", format!("{schedule:?}")),
                ("adamw", format!("{adam:?}")),
                ("patience", format!("{patience:?}")),
                ("cohort", cohort),
                ("onnxruntime", build),
                ("balance", balance),
            ])
        };
        let before = record(schedule, adam, None, ["1f", "1.22.0", "None"]);
        let now = record(
            Schedule { rate: 2e-3, cosine: false, ..schedule },
            AdamW { betas: [0.8, 0.999], clip: Some(1.0), ..adam },
            Some(3),
            ["2e", "1.23.0", "Weights"],
        );
        assert_eq!(
            differences(&before, &now),
            [
                "AdamW's betas was [0.9, 0.999], now [0.8, 0.999]",
                "--clip was none, now 1",
                "--balance was none, now weights",
                "the cohort (--data) changed",
                "the ONNX Runtime build was 1.22.0, now 1.23.0",
                "--patience was none, now 3",
                "--lr was 0.001, now 0.002",
                "--schedule was cosine, now constant",
            ]
        );
        assert_eq!(differences(&before, &before), [""; 0]);
        assert_eq!(differences(&BTreeMap::new(), &map(&[("seed", "0".into())])), ["--seed is not recorded"]);
    }
}
