//! Which lines of a results file stay, and which rows are done.

use super::*;

const KEY: &str = "k";

struct Case {
    dir: tempfile::TempDir,
}

impl Case {
    /// Results next to the list `here.csv`; another list, `there.csv`, exists too.
    fn new(lines: &[Value]) -> Self {
        let case = Self { dir: tempfile::tempdir().unwrap() };
        for name in ["here.csv", "there.csv"] {
            std::fs::write(case.at(name), "scan\n").unwrap();
        }
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(case.at("out.jsonl"), text).unwrap();
        case
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn line(&self, list: &str, scan: &str, key: &str) -> Value {
        let list = self.at(list).display().to_string();
        serde_json::json!({"scan": scan, "report": null, "label": "CN", "bundle": {"sha256": "b"}, "key": key, "list": list})
    }

    fn write(&self, lines: &[Value]) {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(self.at("out.jsonl"), text).unwrap();
    }

    fn open(&self, rows: &[Row]) -> Result<Results> {
        let claim = Claim::new(&self.at("out.jsonl"), false)?;
        claim.open(&self.at("here.csv"), "b", rows, &mut |_| Some(KEY.to_owned()))
    }

    fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.at("out.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn row(scan: &str) -> Row {
    Row { line: 2, scan: scan.into(), ..Row::default() }
}

#[test]
fn results_continue_after_an_interruption() {
    let case = Case::new(&[]);
    let failed =
        serde_json::json!({"scan": "b", "report": null, "error": {"code": "nifti.empty"}, "list": case.at("here.csv")});
    let text = format!("{}\n{failed}\n{{\"scan\":\"c\",\"la", case.line("here.csv", "a", KEY));
    std::fs::write(case.at("out.jsonl"), text).unwrap();
    let rows = ["a", "b", "c"].map(row);
    let mut results = case.open(&rows).unwrap();
    assert_eq!(rows.each_ref().map(|row| results.has(row)), [true, false, false]);
    assert_eq!(case.lines(), [case.line("here.csv", "a", KEY)]);
    let error = Err(Error::new(Code::NIFTI_EMPTY, "no bytes").at("b"));
    results.add(&rows[1], None, &error).unwrap();
    let e = results.check_complete(&rows).unwrap_err();
    assert!(e.code() == Code::LIST_PARTIAL && e.message().starts_with("1 of 3 rows"), "{e}");
    results.check_complete(&rows[..2]).unwrap();
    // What another program leaves in its place is not taken for ours.
    case.write(&[case.line("here.csv", "a", "other"), case.line("there.csv", "b", KEY)]);
    assert!(results.check_complete(&rows[..2]).unwrap_err().message().starts_with("2 of 2 rows"));
}

#[test]
fn lines_belong_to_a_list_and_to_what_was_read() {
    let case = Case::new(&[]);
    let without = |field: &str| {
        let mut line = case.line("here.csv", "a", KEY);
        line.as_object_mut().unwrap().shift_remove(field);
        line
    };
    // Lines; whether row `a` is done; how many lines stay.
    let rows = [
        (vec![case.line("here.csv", "a", KEY)], true, 1),
        (vec![case.line("here.csv", "a", "old")], false, 0),
        (vec![case.line("here.csv", "a", "old"), case.line("here.csv", "a", KEY)], true, 1),
        (vec![case.line("here.csv", "a", KEY); 3], true, 1),
        (vec![case.line("there.csv", "a", "old")], false, 1),
        (vec![without("key")], false, 0),
        (vec![without("list")], false, 0),
        (vec![case.line("here.csv", "x", "old")], false, 1),
        (vec![case.line("there.csv", "a", "old"), case.line("here.csv", "a", KEY)], true, 2),
        // Copied: both lists have it. Moved: this one alone.
        (vec![case.line("there.csv", "a", KEY)], true, 2),
        (vec![case.line("gone.csv", "a", KEY)], true, 1),
        (vec![case.line("gone.csv", "a", "old")], false, 1),
    ];
    for (lines, done, stay) in rows {
        case.write(&lines);
        let results = case.open(&[row("a")]).unwrap();
        assert_eq!((results.has(&row("a")), case.lines().len()), (done, stay), "{lines:?}");
        assert_eq!(results.check_complete(&[row("a")]).is_ok(), done, "{lines:?}");
    }
    // Another list's answers by another bundle: nothing is touched.
    let mut other = case.line("there.csv", "z", KEY);
    other["bundle"]["sha256"] = "c".into();
    case.write(std::slice::from_ref(&other));
    assert_eq!(case.open(&[row("a")]).err().unwrap().code(), Code::LIST_INVALID);
    assert_eq!(case.lines(), [other]);
}

#[test]
fn one_program_at_a_time() {
    let case = Case::new(&[]);
    let results = case.open(&[row("a")]).unwrap();
    let e = Claim::new(&case.at("out.jsonl"), true).err().unwrap();
    assert_eq!(e.code(), Code::OUTPUT_IN_USE);
    drop(results);
    assert!(Claim::new(&case.at("out.jsonl"), false).is_ok() && !case.at(".out.jsonl.lock").exists());
}

#[test]
fn other_files_are_replaced_only_by_force() {
    let case = Case::new(&[]);
    for text in ["{\"subject\":1}\n", "notes", "scan,label\n"] {
        std::fs::write(case.at("out.jsonl"), text).unwrap();
        assert_eq!(Claim::new(&case.at("out.jsonl"), false).err().unwrap().code(), Code::OUTPUT_EXISTS, "{text}");
        assert_eq!(std::fs::read_to_string(case.at("out.jsonl")).unwrap(), text);
        let claim = Claim::new(&case.at("out.jsonl"), true).unwrap();
        drop(claim.open(&case.at("here.csv"), "b", &[row("a")], &mut |_| None).unwrap());
        assert!(case.lines().is_empty());
    }
    // Force does not throw results away.
    case.write(&[case.line("here.csv", "a", KEY)]);
    let claim = Claim::new(&case.at("out.jsonl"), true).unwrap();
    let results = claim.open(&case.at("here.csv"), "b", &[row("a")], &mut |_| Some(KEY.to_owned())).unwrap();
    assert!(results.has(&row("a")));
}
