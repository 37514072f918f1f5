//! `ba-train eval`: metrics of a bundle on a cohort, temperatures into the bundle, pictures.

#![cfg(unix)]

use std::fs;
use std::path::Path;

use brain_adapter::bundle::Bundle;
use brain_adapter::metrics::softmax;
use serde_json::Value;
use support::commands::{self, Done, command, finish, scan, snapshot, tiny_bundle, tiny_copy};

const LABELS: [&str; 3] = ["CN", "MCI", "AD"];
const REPORTS: [&str; 6] = [
    "Memory complaints.",
    "MMSE 28 of 30. Independent in daily life.",
    "Severe atrophy of both hippocampi. MMSE 14.",
    "No complaints at all; a healthy volunteer of 71 years.",
    "Word finding difficulties, slowly worse over three years.",
    "MMSE 24.",
];

/// Scans next to a list. They hold the same: a list may name a scan once.
const SCANS: usize = 32;

/// A cohort list of `rows`, with scans `s0.nii.gz` and so on, reports `r0.txt` to `r5.txt` and a broken scan next to
/// it.
fn cohort(rows: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..SCANS {
        fs::copy(scan(), dir.path().join(format!("s{i}.nii.gz"))).unwrap();
    }
    for (i, text) in REPORTS.iter().enumerate() {
        fs::write(dir.path().join(format!("r{i}.txt")), text).unwrap();
    }
    fs::write(dir.path().join("bad.nii"), "no scan").unwrap();
    fs::write(dir.path().join("cohort.csv"), rows).unwrap();
    dir
}

fn eval(dir: &Path, bundle: &Path, args: &[&str]) -> Done {
    let mut command = command("ba-train");
    command.arg("eval").arg("--data").arg(dir.join("cohort.csv")).arg("--bundle").arg(bundle).args(args);
    finish(command.current_dir(dir))
}

fn infer(dir: &Path, bundle: &Path, report: Option<usize>) -> Value {
    let mut command = command("ba-infer");
    command.arg(dir.join("s0.nii.gz")).arg("--bundle").arg(bundle).arg("--json");
    if let Some(i) = report {
        command.arg("--report").arg(dir.join(format!("r{i}.txt")));
    }
    finish(&mut command).ok().json()
}

/// The tiny bundle's label, with a report and without one: true labels are chosen by it.
fn said(dir: &Path) -> Vec<usize> {
    let class = |answer: &Value| LABELS.iter().position(|l| answer["label"] == *l).unwrap();
    (0..6).map(Some).chain([None]).map(|report| class(&infer(dir, tiny_bundle(), report))).collect()
}

#[test]
fn figures_of_a_cohort_with_bad_rows() {
    let dir = cohort("");
    let said = said(dir.path());
    let wrong = |class: usize| LABELS[(class + 1) % 3];
    // Five test rows that can be answered: three right, two wrong; two people; one without a report.
    let mut rows = "subject,scan,report,label,split\n".to_owned();
    for (i, right) in [true, true, false, false].into_iter().enumerate() {
        let label = if right { LABELS[said[i]] } else { wrong(said[i]) };
        rows += &format!("p{},s{i}.nii.gz,r{i}.txt,{label},test\n", i / 2);
    }
    rows += &format!("p1,s4.nii.gz,,{},test\n", LABELS[said[6]]);
    rows += "p9,bad.nii,r0.txt,CN,test\np8,s5.nii.gz,none.txt,AD,test\np7,s6.nii.gz,r5.txt,AD,train\n";
    fs::write(dir.path().join("cohort.csv"), rows).unwrap();
    let args = ["--bootstrap", "200", "--seed", "3"];
    let done = eval(dir.path(), tiny_bundle(), &[&["--json"], args.as_slice()].concat());
    assert_eq!(done.code, Some(1), "{done:#?}");
    assert!(done.stderr.contains("line 7: error[nifti.") && done.stderr.contains("line 8: error[report.not_found]"));
    assert!(done.stderr.lines().last().unwrap().starts_with("error[list.partial]"), "{done:#?}");
    let json = done.json();
    let split = &json["split"];
    assert_eq!((split["name"].as_str(), split["why"].as_str()), (Some("test"), Some("the list has it")));
    let counts = ["rows", "answered", "subjects", "without_report"].map(|name| split[name].as_u64().unwrap());
    assert_eq!(counts, [7, 5, 2, 1]);
    assert_eq!(json["scores"]["accuracy"].as_f64(), Some(0.6));
    assert_eq!((json["error"]["code"].as_str(), json["failures"][0]["row"].as_u64()), (Some("list.partial"), Some(7)));
    let total: u64 =
        json["confusion"].as_array().unwrap().iter().flat_map(|r| r.as_array().unwrap()).flat_map(Value::as_u64).sum();
    assert_eq!(total, 5);
    for (i, row) in json["rows"].as_array().unwrap().iter().enumerate() {
        let alone = infer(dir.path(), tiny_bundle(), (i < 4).then_some(i));
        for name in ["label", "logits", "probabilities", "similarity"] {
            assert_eq!(row[name], alone[name], "row {i}: {name}");
        }
        assert_eq!(row["report"].is_null(), i == 4);
    }
    let interval = &json["intervals"]["accuracy"];
    assert!(interval["low"].as_f64() <= Some(0.6) && interval["high"].as_f64() >= Some(0.6), "{interval}");
    assert!(json["fitted"].is_null() && json["uncalibrated"].is_null());
    let again = eval(dir.path(), tiny_bundle(), &[&["--json", "--threads", "1"], args.as_slice()].concat());
    assert_eq!(again.json()["intervals"], json["intervals"]);
    let text = eval(dir.path(), tiny_bundle(), &args);
    for words in [
        "answered    5 of 7 rows, 2 subjects; 1 without a report",
        "accuracy",
        "0.600 [",
        "true \\ predicted",
        "Research use",
    ] {
        assert!(text.stdout.contains(words), "{words}: {text:#?}");
    }
}

/// The image-only classifier answers also rows that have a report, as `ba-infer` does without one. A report that is not
/// needed may be missing.
#[test]
fn reports_are_left_out_on_request() {
    let dir = cohort("scan,report,label\ns0.nii.gz,r2.txt,CN\ns1.nii.gz,,MCI\ns2.nii.gz,none.txt,AD\n");
    let json = eval(dir.path(), tiny_bundle(), &["--image-only", "--json", "--bootstrap", "0"]).ok().json();
    assert_eq!(json["split"]["without_report"].as_u64(), Some(3));
    let (alone, with) = (infer(dir.path(), tiny_bundle(), None), infer(dir.path(), tiny_bundle(), Some(2)));
    assert_ne!(alone["logits"], with["logits"]);
    for row in json["rows"].as_array().unwrap() {
        assert_eq!((&row["logits"], &row["report"]), (&alone["logits"], &Value::Null));
    }
}

/// Validation rows of each classifier.
const VALIDATION: usize = 90;

/// A list with a header, [`VALIDATION`] validation rows with a report and as many without, of which `wrong` have
/// another label than the bundle says, and a test row of each report and one without, each with a scan of its own.
fn validation(dir: &Path, said: &[usize], wrong: usize) -> String {
    let mut rows = "scan,report,label,split\n".to_owned();
    for i in 0..2 * VALIDATION + 7 {
        let scan = dir.join(format!("v{i}.nii.gz"));
        if !scan.exists() {
            fs::hard_link(dir.join("s0.nii.gz"), scan).unwrap();
        }
        let (split, n, which) = match i {
            _ if i < VALIDATION => ("validation", i, i % 6),
            _ if i < 2 * VALIDATION => ("validation", i - VALIDATION, 6),
            _ => ("test", wrong + i % 2, i - 2 * VALIDATION),
        };
        let label = if n < wrong { (said[which] + 1 + n % 2) % 3 } else { said[which] };
        let report = if which < 6 { format!("r{which}.txt") } else { String::new() };
        rows += &format!("v{i}.nii.gz,{report},{},{split}\n", LABELS[label]);
    }
    rows
}

#[test]
fn a_temperature_goes_into_the_bundle() {
    let dir = cohort("");
    let (bundle, said) = (tiny_copy(), said(dir.path()));
    let rows = validation(dir.path(), &said, 10);
    fs::write(dir.path().join("cohort.csv"), rows).unwrap();
    let before = eval(dir.path(), bundle.path(), &["--json", "--bootstrap", "0"]).ok().json();
    let cache = dir.path().join("cache");
    let with_cache = ["--json", "--bootstrap", "50", "--cache", cache.to_str().unwrap()];
    let fit = eval(dir.path(), bundle.path(), &[with_cache.as_slice(), &["--fit-temperature"]].concat()).ok().json();
    // The list names no person; all rows have the same scan, a little larger than the grid: one warning, with their number.
    let codes =
        |json: &Value| json["warnings"].as_array().unwrap().iter().map(|w| w["code"].clone()).collect::<Vec<_>>();
    assert_eq!(codes(&fit), ["subject_unknown", "fov_cut"], "{fit}");
    assert!(fit["warnings"][1]["message"].as_str().unwrap().contains(" rows, the first "), "{fit}");
    for name in ["report", "image"] {
        let fitted = &fit["fitted"][name];
        assert_eq!((&fitted["answers"], &fitted["kept"]), (&VALIDATION.into(), &true.into()), "{fitted}");
        let gain = &fitted["gain"];
        assert!(gain["interval"]["low"].as_f64() > Some(0.0) && gain["nats"].as_f64() > Some(0.0), "{gain}");
        assert_eq!((&gain["over"], &gain["wrong"], &gain["folds"]), (&1.0.into(), &10.into(), &5.into()));
        assert!(fitted["nll_after"].as_f64() < fitted["nll_before"].as_f64(), "{fitted}");
        assert_eq!(fitted["temperature"], fit["temperature"][name]);
    }
    assert_eq!(fit["uncalibrated"]["ece"], before["scores"]["ece"]);
    assert_ne!(fit["scores"]["ece"], before["scores"]["ece"]);
    assert_eq!((&fit["scores"]["accuracy"], &fit["confusion"]), (&before["scores"]["accuracy"], &before["confusion"]));
    assert_eq!((fit["bundle"].clone(), fit["rows"].as_array().unwrap().len()), (before["bundle"].clone(), 7));
    let opened = Bundle::open(bundle.path()).unwrap();
    assert_eq!(fit["fitted"]["bundle_sha256"], opened.sha256.as_str());
    // From here on everybody uses it; what was in the cache still holds.
    let after = eval(dir.path(), bundle.path(), &with_cache).ok().json();
    assert_eq!((&after["scores"], &after["intervals"]), (&fit["scores"], &fit["intervals"]));
    assert_eq!((&after["temperature"], &after["rows"]), (&fit["temperature"], &fit["rows"]));
    for (report, name, row) in [(Some(2), "report", 2), (None, "image", 6)] {
        let alone = infer(dir.path(), bundle.path(), report);
        let t = fit["temperature"][name].as_f64().unwrap();
        assert_eq!(
            (alone["temperature"].as_f64(), &alone["probabilities"]),
            (Some(t), &fit["rows"][row]["probabilities"])
        );
        let logits: Vec<f32> = alone["logits"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        assert!((alone["probabilities"]["CN"].as_f64().unwrap() - softmax(&logits, t)[0]).abs() < 1e-12);
    }
    let text = eval(dir.path(), bundle.path(), &["--bootstrap", "0"]).ok();
    assert!(text.stdout.contains("without temperature") && text.stdout.contains(" without a report: in the bundle"));
    // Fitted again, nothing is gained over what is there: it stays, and so does the bundle.
    let before = snapshot(bundle.path());
    let again = eval(dir.path(), bundle.path(), &[with_cache.as_slice(), &["--fit-temperature"]].concat()).ok().json();
    for name in ["report", "image"] {
        let (fitted, stored) = (&again["fitted"][name], &fit["temperature"][name]);
        assert_eq!((&fitted["kept"], &fitted["gain"]["over"]), (&false.into(), stored), "{fitted}");
    }
    assert_eq!((&again["temperature"], codes(&again)[2].as_str()), (&fit["temperature"], Some("temperature_left")));
    assert_eq!(snapshot(bundle.path()), before);
}

/// Too few rows are an error before anything is run, and the bundle stays as it is.
#[test]
fn too_few_rows_fit_no_temperature() {
    let dir = cohort("");
    let (bundle, said) = (tiny_copy(), said(dir.path()));
    let (before, list) = (snapshot(bundle.path()), dir.path().join("cohort.csv"));
    let all = validation(dir.path(), &said, 10);
    // 12 rows, and 49, without those that have no report; and 60 with too few of two classes. No report is read.
    let first = |rows: usize| {
        let kept = |(i, _): &(usize, &str)| *i <= rows || *i > 2 * VALIDATION;
        all.lines().enumerate().filter(kept).map(|(_, line)| line).collect::<Vec<_>>().join("\n")
    };
    let one_class = validation(dir.path(), &said, 4).lines().take(61).collect::<Vec<_>>().join("\n");
    for rows in [first(12), first(49), format!("{one_class}\ns1.nii.gz,r1.txt,CN,test\n")] {
        let mut classes = LABELS.map(|label| rows.matches(&format!(",{label},validation")).count());
        classes.sort_unstable();
        assert!(rows.matches("validation").count() < 50 || classes[0] < 5, "{classes:?}");
        fs::write(&list, rows.replace("r0.txt", "none.txt")).unwrap();
        let done = eval(dir.path(), bundle.path(), &["--fit-temperature"]);
        done.fails_with_one_line("temperature.few").naming(&["cohort.csv", "50 rows", "5 subjects of each class"]);
    }
    assert_eq!(snapshot(bundle.path()), before);
}

#[test]
fn what_is_measured_is_not_what_was_fitted_on() {
    let dir = cohort("scan,report,label,split\ns0.nii.gz,r0.txt,CN,validation\ns1.nii.gz,r1.txt,AD,test\n");
    let bundle = tiny_copy();
    let before = snapshot(bundle.path());
    for split in ["validation", "all"] {
        let done = eval(dir.path(), bundle.path(), &["--fit-temperature", "--split", split]);
        done.fails_with_one_line("config.value").naming(&["cohort.csv", split]);
    }
    eval(dir.path(), bundle.path(), &["--split", "train"]).fails_with_one_line("list.invalid").naming(&["`train`"]);
    fs::write(dir.path().join("cohort.csv"), "scan,report,label\ns0.nii.gz,r0.txt,CN\n").unwrap();
    eval(dir.path(), bundle.path(), &["--fit-temperature"]).fails_with_one_line("list.invalid").naming(&["validation"]);
    let all = eval(dir.path(), bundle.path(), &["--json", "--bootstrap", "0"]).ok().json();
    assert_eq!(
        (all["split"]["name"].as_str(), all["split"]["why"].as_str()),
        (Some("all"), Some("the list has no test split"))
    );
    fs::write(dir.path().join("cohort.csv"), "scan,label\nbad.nii,CN\n").unwrap();
    eval(dir.path(), bundle.path(), &["-q"]).fails("list.invalid").naming(&["no row"]);
    assert_eq!(eval(dir.path(), bundle.path(), &["--split", "some"]).code, Some(2));
    assert_eq!(snapshot(bundle.path()), before);
}

#[test]
fn pictures_are_written() {
    let rows: String = (0..6).map(|i| format!("s{i}.nii.gz,r{i}.txt,{}\n", LABELS[i % 3])).collect();
    let dir = cohort(&format!("scan,report,label\n{rows}"));
    let args = ["--picture", "pictures", "--embedding", "--bootstrap", "0"];
    let done = eval(dir.path(), tiny_bundle(), &args).ok();
    assert_eq!(commands::names(&dir.path().join("pictures")), ["confusion.svg", "embedding.svg", "reliability.svg"]);
    let embedding = fs::read_to_string(dir.path().join("pictures/embedding.svg")).unwrap();
    assert!(embedding.contains("Fused embedding (6 rows, split all)") && embedding.contains("MCI (2)"));
    assert!(done.stdout.contains("picture: pictures/embedding.svg"), "{done:#?}");
    let first = snapshot(&dir.path().join("pictures"));
    eval(dir.path(), tiny_bundle(), &args).ok();
    assert_eq!(snapshot(&dir.path().join("pictures")), first);
    // Somebody else's drawing stays, and is replaced only by force.
    let theirs = dir.path().join("pictures/confusion.svg");
    for text in ["<svg width=\"3\"><metadata>mine</metadata></svg>", "<!-- Brain-Adapter --><svg></svg>", "notes"] {
        fs::write(&theirs, text).unwrap();
        eval(dir.path(), tiny_bundle(), &args).fails_with_one_line("output.exists").naming(&["confusion.svg"]);
        assert_eq!(fs::read_to_string(&theirs).unwrap(), text);
    }
    eval(dir.path(), tiny_bundle(), &[&args[..], &["--force"]].concat()).ok();
    assert_eq!(snapshot(&dir.path().join("pictures")), first);
}
