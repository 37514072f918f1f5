//! Files that are changed while they are used: the right answer, or an error that says so; never another answer.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use brain_adapter::Error;
use brain_adapter::bundle::Precision;
use brain_adapter::infer::{Mode, Options, Predictor};
use serde_json::Value;
use support::commands::{self, command, copy_files, finish, library, report, scan, tiny_copy};
use support::large;
use support::stopped::stop_when;

type Answer = Result<Vec<f32>, Error>;

fn open(bundle: &Path, mode: Mode) -> Predictor {
    let options = Options { mode: Some(mode), library: Some(library()), threads: Some(2), ..Options::default() };
    Predictor::open(bundle, options).unwrap()
}

fn ask(predictor: &Predictor) -> Answer {
    let report = predictor.encode_report("Memory complaints. MMSE 24.")?;
    let scan = predictor.reader().read(&scan())?;
    predictor.predict(scan, Some(&report)).map(|p| p.logits)
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let end = bytes.len();
    bytes[end / 2..].iter_mut().for_each(|b| *b ^= 8);
    fs::write(path, bytes).unwrap();
}

fn truncate(path: &Path, percent: u64) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() * percent / 100).unwrap();
}

/// Puts a file with these bytes in the place of another.
fn put(path: &Path, bytes: Vec<u8>) {
    let other = path.with_extension("new");
    fs::write(&other, bytes).unwrap();
    fs::rename(other, path).unwrap();
}

/// How a file is changed, and whether the file that was open is.
type Change = (&'static str, fn(&Path), bool);

const CHANGES: [Change; 9] = [
    ("overwritten in place", flip, true),
    ("the same bytes written again", |path| fs::write(path, fs::read(path).unwrap()).unwrap(), true),
    ("truncated to half", |path| truncate(path, 50), true),
    ("truncated to nothing", |path| truncate(path, 0), true),
    ("grown", |path| truncate(path, 110), true),
    ("another in its place", |path| put(path, vec![7; fs::metadata(path).unwrap().len() as usize]), false),
    ("removed", |path| fs::remove_file(path).unwrap(), false),
    ("a copy in its place", |path| put(path, fs::read(path).unwrap()), false),
    ("linked", |path| fs::hard_link(path, path.with_extension("backup")).unwrap(), false),
];

/// Every file of every graph, every kind of change, loaded once or again for each answer.
#[test]
fn a_changed_file_gives_no_other_answer() {
    let graphs: Vec<String> =
        commands::names(commands::tiny_bundle()).into_iter().filter(|n| n.contains("onnx")).collect();
    assert!(graphs.len() >= 7, "{graphs:?}");
    for (what, change, in_place) in CHANGES {
        for name in &graphs {
            for mode in [Mode::OneShot, Mode::Resident] {
                let bundle = tiny_copy();
                let predictor = open(bundle.path(), mode);
                let right = ask(&predictor).unwrap();
                std::thread::sleep(Duration::from_millis(15));
                change(&bundle.path().join(name));
                let found = ask(&predictor);
                let case = format!("{name} {what}, {mode:?}: {found:?}");
                match &found {
                    Ok(logits) => assert!(!in_place && *logits == right, "{case}"),
                    Err(e) => {
                        assert_eq!(e.code().as_str(), "bundle.changed", "{case}");
                        assert!(!["a copy in its place", "linked"].contains(&what), "{case}");
                        assert!(e.path().is_some_and(|p| p.ends_with(name)), "{case}");
                    }
                }
                // It stays so: nothing is believed again because it was asked twice.
                assert_eq!(ask(&predictor).is_ok(), found.is_ok(), "{case}");
            }
        }
    }
}

/// Read instead of mapped, weights give the same answer bit for bit.
#[test]
fn read_weights_answer_as_mapped_ones() {
    let large = tempfile::tempdir().unwrap();
    copy_files(&large::bundle(Precision::Int8), large.path());
    let options = |mode, read_weights| Options {
        mode,
        library: Some(library()),
        threads: Some(2),
        read_weights,
        ..Options::default()
    };
    for mode in [Mode::OneShot, Mode::Resident] {
        for bundle in [commands::tiny_bundle(), large.path()] {
            let read = Predictor::open(bundle, options(Some(mode), true)).unwrap();
            let answer = ask(&read).unwrap();
            // A kept session maps nothing.
            #[cfg(target_os = "linux")]
            if bundle == large.path() {
                let maps = fs::read_to_string("/proc/self/maps").unwrap();
                assert!(!maps.contains(&bundle.canonicalize().unwrap().display().to_string()), "{mode:?}");
            }
            assert_eq!(answer, ask(&open(bundle, mode)).unwrap(), "{mode:?} {}", bundle.display());
        }
    }
    // In groups they would be read again and again: it is refused.
    let opened = |limit, read| {
        Predictor::open(large.path(), Options { max_memory: Some(limit), ..options(None, read) }).map(drop)
    };
    let limit = (1..1000).map(|i| i * large::SINGLE / 16).find(|limit| opened(*limit, false).is_ok()).unwrap();
    let refused = opened(limit, true).unwrap_err();
    assert_eq!(refused.code().as_str(), "memory.limit");
    assert!(refused.message().contains("as a whole"), "{refused}");
}

/// The tokenizer is read late, and not changed meanwhile.
#[test]
fn a_changed_tokenizer_gives_no_other_tokens() {
    for (what, change, in_place) in CHANGES {
        let bundle = tiny_copy();
        let predictor = open(bundle.path(), Mode::Resident);
        std::thread::sleep(Duration::from_millis(15));
        change(&bundle.path().join("tokenizer.json"));
        match predictor.encode_report("MMSE 24.") {
            Ok(_) => assert!(!in_place && !["removed", "another in its place"].contains(&what), "{what}"),
            Err(e) => assert_eq!(e.code().as_str(), "bundle.changed", "{what}"),
        }
    }
}

/// A graph in groups, each of which maps the weights again.
#[test]
fn groups_are_checked_each() {
    let dir = tempfile::tempdir().unwrap();
    copy_files(&large::bundle(Precision::Int8), dir.path());
    let options = Options { library: Some(library()), threads: Some(2), ..Options::default() };
    let predictor = large::tightest(dir.path(), &options);
    let right = ask(&predictor).unwrap();
    assert_eq!(ask(&predictor).unwrap(), right);
    flip(&dir.path().join("text.onnx.data"));
    assert_eq!(ask(&predictor).unwrap_err().code().as_str(), "bundle.changed");
}

fn row_command(bundle: &Path, list: &Path, output: &Path, mode: &str) -> Command {
    let mut run = command("ba-infer");
    run.arg("--bundle").arg(bundle).arg("--list").arg(list).arg("-o").arg(output);
    run.args(["--threads", "1", "-q", "--mode", mode]);
    run
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap_or_default().lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
}

/// A cohort while whose rows the weights are changed: the rows so far are right, the others are none.
#[cfg(target_os = "linux")]
#[test]
fn a_cohort_ends_where_its_bundle_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let rows = 30;
    let list = dir.path().join("l.csv");
    let mut text = "scan,report\n".to_owned();
    for i in 0..rows {
        fs::write(dir.path().join(format!("r{i}.txt")), format!("Report {i}. MMSE 24.")).unwrap();
        std::os::unix::fs::symlink(scan(), dir.path().join(format!("s{i}.nii.gz"))).unwrap();
        text += &format!("s{i}.nii.gz,r{i}.txt\n");
    }
    fs::write(&list, text).unwrap();
    let right = dir.path().join("right.jsonl");
    finish(&mut row_command(commands::tiny_bundle(), &list, &right, "one-shot")).ok();
    let right = lines(&right);
    for (what, change, _) in CHANGES.into_iter().filter(|(_, _, in_place)| *in_place) {
        for (mode, file) in
            [("one-shot", "vision.onnx.data"), ("resident", "text.onnx.data"), ("resident", "adapter.onnx")]
        {
            let bundle = tiny_copy();
            let output = dir.path().join(format!("{}.jsonl", bundle.path().file_name().unwrap().to_string_lossy()));
            let mut run = row_command(bundle.path(), &list, &output, mode);
            let run = stop_when(&mut run, &|_| lines(&output).len() >= 2);
            change(&bundle.path().join(file));
            run.goes_on().fails("bundle.changed").naming(&[file]);
            let found = lines(&output);
            let answers = found.iter().filter(|row| row.get("label").is_some());
            let answers: Vec<(&Value, &Value)> = answers.zip(&right).collect();
            assert!((2..rows).contains(&answers.len()), "{what} {file}: {found:?}");
            for (row, right) in answers {
                assert_eq!((&row["scan"], &row["logits"]), (&right["scan"], &right["logits"]), "{what} {file}");
            }
        }
    }
}

/// Weights that ONNX Runtime has mapped and that become shorter under it: an error, not a bus error.
#[cfg(target_os = "linux")]
#[test]
fn truncated_under_onnx_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("bundle");
    fs::create_dir(&bundle).unwrap();
    let (source, report) = (large::bundle(Precision::Int8), report(dir.path()));
    let data = bundle.join("text.onnx.data");
    for (delay, percent) in [(0, 0), (30, 0), (60, 50), (100, 0)] {
        copy_files(&source, &bundle);
        let mut run = command("ba-infer");
        run.arg(scan()).arg("--report").arg(&report).arg("--bundle").arg(&bundle).args(["--json", "--threads", "2"]);
        run.args(["--mode", "one-shot"]);
        let run = stop_when(&mut run, &|maps| maps.contains("text.onnx.data") && wait(delay));
        truncate(&data, percent);
        let done = run.goes_on().fails("bundle.changed").naming(&["text.onnx.data"]);
        assert_eq!(done.json()["error"]["code"], "bundle.changed", "{done:#?}");
    }
}

#[cfg(target_os = "linux")]
fn wait(milliseconds: u64) -> bool {
    std::thread::sleep(Duration::from_millis(milliseconds));
    true
}

/// A swap of two reports' features in the cache is two misses: nobody gets another's answer.
#[test]
fn swapped_features_are_computed_again() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("l.csv");
    fs::write(dir.path().join("a.txt"), "Memory complaints. MMSE 24.").unwrap();
    fs::write(dir.path().join("b.txt"), "Severe memory loss, MMSE 8.").unwrap();
    let scan = scan().display().to_string();
    fs::write(&list, format!("scan,report\n{scan},a.txt\n{scan},b.txt\n")).unwrap();
    let cache = dir.path().join("cache");
    let run = || {
        let mut run = command("ba-infer");
        run.arg("--list").arg(&list).arg("--bundle").arg(commands::tiny_bundle()).arg("--cache").arg(&cache);
        finish(run.args(["--json", "-q"])).ok().json_lines()
    };
    let logits = |rows: &[Value]| rows.iter().map(|row| row["logits"].clone()).collect::<Vec<_>>();
    let cached = |rows: &[Value]| rows.iter().map(|row| row["run"]["from_cache"].to_string()).collect::<Vec<_>>();
    let first = run();
    assert_ne!(first[0]["logits"], first[1]["logits"]);
    let entries = fs::read_dir(cache.join("features")).unwrap().map(|e| e.unwrap().path());
    let of_reports: Vec<PathBuf> =
        entries.filter(|p| serde_json::from_slice::<Value>(&fs::read(p).unwrap()).unwrap()["tokens"] != 0).collect();
    let [a, b] = [0, 1].map(|i| fs::read(&of_reports[i]).unwrap());
    fs::write(&of_reports[0], b).unwrap();
    fs::write(&of_reports[1], a).unwrap();
    let second = run();
    assert_eq!(logits(&second), logits(&first));
    assert!(cached(&second).iter().all(|c| !c.contains("text")), "{:?}", cached(&second));
    // They were written again.
    assert!(cached(&run()).iter().all(|c| c.contains("text")));
}

/// A cache that others could have written to is not read.
#[cfg(unix)]
#[test]
fn caches_of_others_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let run = || {
        let mut run = command("ba-infer");
        run.arg(scan()).arg("--bundle").arg(commands::tiny_bundle()).arg("--cache").arg(&cache);
        finish(run.args(["--json", "-q"]))
    };
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let set = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    run().ok();
    let features = cache.join("features");
    assert_eq!((mode(&cache), mode(&features)), (0o700, 0o700));
    let files: Vec<PathBuf> = fs::read_dir(&features).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(!files.is_empty() && files.iter().all(|path| mode(path) == 0o600));
    for folder in [&cache, &features] {
        for open in [0o777, 0o720, 0o702] {
            set(folder, open);
            run().fails_with_one_line("cache.unsafe").naming(&[&folder.display().to_string(), "others"]);
            set(folder, 0o700);
        }
    }
    run().ok();
    // Somewhere else through a link.
    fs::rename(&features, dir.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &features).unwrap();
    run().fails_with_one_line("cache.unsafe").naming(&["link"]);
    fs::remove_file(&features).unwrap();
    // Only root can give a folder away; root is refused another's cache like anybody else.
    if fs::metadata(&cache).is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0) {
        std::os::unix::fs::chown(&cache, Some(12345), None).unwrap();
        run().fails_with_one_line("cache.unsafe").naming(&["12345"]);
    }
}
