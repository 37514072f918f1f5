//! A report's bytes to its text: Python's `open()` as the oracle of decoding and line ends, and what is no report.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use brain_adapter::Code;
use brain_adapter::text::{ReportFormat, decode_report, decode_report_as, read_report, read_report_argument};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use support::commands::{ba_export, ba_infer, bare, command, finish, manifest, report, scan, tiny_bundle, tiny_model};
use support::{oracle, package};

/// A text of letters of many scripts, all line ends that Python knows, spaces and marks; without NEL and zero-width
/// characters, which Python keeps.
fn random_text(rng: &mut ChaCha8Rng) -> String {
    let pieces = [
        "MTA 1",
        " ",
        "\n",
        "\r\n",
        "\r",
        "\r\r\n",
        "\n\r",
        "\t",
        "é",
        "e\u{301}",
        "\u{a0}",
        "ß",
        "Ω",
        "Гиппокамп",
        "海馬",
        "해마",
        "حصين",
        "🧠",
        "\u{2028}",
        "\u{b}",
        "\u{c}",
        "ﬁ",
        "İ",
        "\u{1b}",
        "\"",
        "<",
        "&",
        "क्ष",
        "\u{10ffff}",
        "\u{fffd}",
    ];
    (0..rng.random_range(1..40)).map(|_| pieces[rng.random_range(0..pieces.len())]).collect::<String>() + " ok"
}

#[test]
fn texts_are_those_that_python_gives_the_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut files = Vec::new();
    for i in 0..300 {
        let text = random_text(&mut rng);
        let units = |to: fn(u16) -> [u8; 2]| format!("\u{feff}{text}").encode_utf16().flat_map(to).collect::<Vec<u8>>();
        let forms = [
            ("u8", text.clone().into_bytes()),
            ("marked.u8", format!("\u{feff}{text}").into_bytes()),
            ("le.16", units(u16::to_le_bytes)),
            ("be.16", units(u16::to_be_bytes)),
        ];
        for (ending, bytes) in forms {
            let path = dir.path().join(format!("{i}.{ending}"));
            fs::write(&path, bytes).unwrap();
            files.push(path);
        }
    }
    let Some(expected) = oracle::run_python("Python's open()", "tests/scripts/read_texts.py", &files) else { return };
    let mut expected = expected.as_slice();
    for path in &files {
        let (length, rest) = expected.split_first_chunk::<8>().unwrap();
        let (text, rest) = rest.split_at(u64::from_le_bytes(*length) as usize);
        assert_eq!(read_report(path).unwrap().as_bytes(), text, "{}", path.display());
        expected = rest;
    }
    assert!(expected.is_empty());
}

/// The same report from Windows, Linux, an EBCDIC host, and with marks: one text, hence one answer and one cache entry.
#[test]
fn one_report_saved_by_many_programs_is_one_text() {
    let text = "Mild atrophy.\nMTA 1 on both sides.\n\nNo infarct.\n";
    let ends = ["\n", "\r\n", "\r", "\u{85}"].map(|end| text.replace('\n', end));
    let zero_width = text.replace("Mild", "\u{feff}Mi\u{200b}ld\u{2060}").replace("MTA", "\u{200d}MTA\u{200c}");
    for saved in ends.iter().chain([&zero_width]) {
        for mark in ["", "\u{feff}"] {
            let marked = format!("{mark}{saved}");
            let little: Vec<u8> = marked.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let big: Vec<u8> = marked.encode_utf16().flat_map(u16::to_be_bytes).collect();
            for bytes in [marked.as_bytes(), &little, &big] {
                assert_eq!(decode_report(bytes).unwrap(), text, "{saved:?}");
            }
        }
    }
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn zipped(names: &[&str]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for name in names {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(b"application/vnd.oasis.opendocument.text").unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn what_is_no_report_is_named() {
    let nifti = fs::read(scan()).unwrap();
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let ole = [b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1".as_slice(), &[7; 600], &utf16("WordDocument")].concat();
    let dicom = [&[0; 128][..], b"DICM\x02\0\0\0UL"].concat();
    let mgh = [1u32, 256, 256, 256, 1, 3, 0].map(u32::to_be_bytes).concat();
    let rows: Vec<(Vec<u8>, Code, &str)> = vec![
        (b"{\\rtf1\\ansi MTA 2\\par}".into(), Code::REPORT_FORMAT, "RTF"),
        (utf16("\u{feff}{\\rtf1\\ansi MTA 2\\par}"), Code::REPORT_FORMAT, "RTF"),
        (b"<html><body>MTA 2</body></html>".into(), Code::REPORT_FORMAT, "HTML"),
        (b"<p>Gr\xf6\xdfe normal</p>".into(), Code::REPORT_FORMAT, "HTML"),
        (utf16("<div>MTA 2</div>"), Code::REPORT_FORMAT, "HTML"),
        (b"%PDF-1.5\nMTA".into(), Code::REPORT_FORMAT, "pdftotext"),
        (b"\n%PDF-1.7\n%\xe2\xe3".into(), Code::REPORT_FORMAT, "PDF"),
        (zipped(&["[Content_Types].xml", "word/document.xml"]), Code::REPORT_FORMAT, "Word"),
        (zipped(&["mimetype", "content.xml"]), Code::REPORT_FORMAT, "OpenDocument text"),
        (zipped(&["report.bin"]), Code::REPORT_FORMAT, "zip archive"),
        (ole, Code::REPORT_FORMAT, "old Word"),
        (packed(b"MTA 2"), Code::REPORT_FORMAT, "zcat"),
        (packed(&dicom), Code::REPORT_FORMAT, "gzip-compressed DICOM"),
        (packed(&mgh), Code::REPORT_FORMAT, "FreeSurfer"),
        (nifti, Code::REPORT_FORMAT, "gzip-compressed NIfTI"),
        (dicom, Code::REPORT_FORMAT, "DICOM scan"),
        (mgh, Code::REPORT_FORMAT, "FreeSurfer"),
        (b"\x89PNG\r\n\x1a\n".into(), Code::REPORT_FORMAT, "PNG"),
        (b"\xff\xd8\xff\xe0".into(), Code::REPORT_FORMAT, "JPEG"),
        (b"MSH|^~\\&|RIS|\rOBX|1|TX|||MTA 2\r".into(), Code::REPORT_FORMAT, "HL7"),
        (b"<?xml version=\"1.0\"?>\n<ClinicalDocument/>".into(), Code::REPORT_FORMAT, "CDA"),
        (b"{\"text\": \"MTA 2\"}".into(), Code::REPORT_FORMAT, "JSON"),
        (b"MTA 2\0\0\0\0\0\0".into(), Code::REPORT_ENCODING, "padded"),
        (b"MTA\0 2".into(), Code::REPORT_ENCODING, "NUL"),
        (b"Ged\xe4chtnis".into(), Code::REPORT_ENCODING, "iconv"),
        (b"None".into(), Code::REPORT_EMPTY, "None"),
        (b" N/A \r\n".into(), Code::REPORT_EMPTY, "N/A"),
        ("\u{feff}\u{200b}\u{2060}\n".into(), Code::REPORT_EMPTY, "no text"),
        (b"--- ...".into(), Code::REPORT_EMPTY, "punctuation"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.txt");
    for (bytes, code, word) in rows {
        fs::write(&path, &bytes).unwrap();
        let error = read_report(&path).unwrap_err();
        assert_eq!((error.code(), error.path()), (code, Some(path.as_path())), "{word}");
        assert!(error.message().contains(word), "{word}: {error}");
        // Nothing of it is HTML, unless it is.
        let html = read_report_argument(&path, ReportFormat::Html);
        assert!(word == "HTML" || html.is_err_and(|e| code != Code::REPORT_FORMAT || e.code() == code), "{word}");
    }
}

#[test]
fn html_is_converted_where_it_is_asked_for() {
    let html = |text: &str| decode_report_as(text.as_bytes(), ReportFormat::Html);
    let page = "<!DOCTYPE html><html><head><title>RIS</title><style>p{margin:0}</style></head><body>\r\n\
                <p>MRI brain.&nbsp;MMSE &lt; 25/30.</p>\
                <p>Mild <b>widening</b> of the\r\nsulci.<br/>MTA&#160;1.</p></body></html>";
    assert_eq!(html(page).unwrap(), "MRI brain.\u{a0}MMSE < 25/30.\n\nMild widening of the sulci.\nMTA\u{a0}1.");
    // What the converter leaves is not given to the model.
    assert_eq!(html("<pre><div>MTA 1</div></pre>").unwrap_err().code(), Code::REPORT_FORMAT);
    assert_eq!(html("MTA 1, no markup").unwrap_err().code(), Code::REPORT_FORMAT);
    assert_eq!(html("{\\rtf1 MTA 1}").unwrap_err().code(), Code::REPORT_FORMAT);
    assert_eq!(html("<html><body><p>n/a</p></body></html>").unwrap_err().code(), Code::REPORT_EMPTY);
    // Deep, unclosed and long: an answer in bounded time.
    let started = std::time::Instant::now();
    let slow = format!("<a b=\">\"{}", "x".repeat(1_000));
    for piece in ["<div>", "<a href=x>", "<a b=\">\"", "<", "<table><tr><td>", "<!--", "<p title='", &slow] {
        let _ = html(&format!("<html>{}", piece.repeat(1_000_000 / piece.len())));
    }
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

#[test]
fn reports_come_through_pipes_of_the_shell_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let text = report(dir.path());
    let bytes = fs::read(&text).unwrap();
    fs::write(dir.path().join("report.txt.gz"), packed(&bytes)).unwrap();
    let infer = command("ba-infer");
    let run = |script: &str| {
        let mut shell = Command::new("bash");
        shell.args(["-c", script]).arg(infer.get_program()).arg(scan()).arg(tiny_bundle()).current_dir(dir.path());
        shell.envs(infer.get_envs().filter_map(|(key, value)| Some((key, value?))));
        finish(shell.stdin(Stdio::null()))
    };
    let named = run("\"$0\" \"$1\" --bundle \"$2\" --json --report report.txt").ok().json();
    for given in ["<(gzip -dc report.txt.gz)", "- < report.txt", "/dev/stdin < report.txt", "/dev/fd/5 5< report.txt"] {
        let done = run(&format!("\"$0\" \"$1\" --bundle \"$2\" --json --report {given}")).ok().json();
        assert_eq!(done["logits"], named["logits"], "{given}");
    }
    // Bounded: a pipe that never ends.
    run("\"$0\" \"$1\" --bundle \"$2\" --report <(yes atrophy)").fails_with_one_line("report.too_large");
    // A named pipe would be waited for, and one in a list is no file.
    assert!(Command::new("mkfifo").arg(dir.path().join("pipe")).status().unwrap().success());
    run("\"$0\" \"$1\" --bundle \"$2\" --report pipe").fails_with_one_line("report.not_found");
    fs::write(dir.path().join("list.csv"), format!("scan,report\n{},pipe\n{0},-\n", scan().display())).unwrap();
    let done = run("\"$0\" --list list.csv --bundle \"$2\" --json");
    let lines = done.json_lines();
    assert!(lines[..2].iter().all(|line| line["error"]["code"] == "report.not_found"), "{done:#?}");
}

#[test]
fn one_report_for_several_scans_must_be_meant() {
    let dir = tempfile::tempdir().unwrap();
    let report = report(dir.path());
    let run = |more: &[&str]| {
        let mut command = command("ba-infer");
        command.arg(scan()).arg(scan()).arg("--report").arg(&report).arg("--bundle").arg(tiny_bundle());
        finish(command.args(more).arg("--json"))
    };
    let done = run(&[]);
    assert_eq!(done.code, Some(2), "{done:#?}");
    let message = done.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("--same-report") && message.contains("--list"), "{message}");
    assert_eq!(run(&["--same-report"]).ok().json_lines().len(), 2);
    // It means nothing without a report.
    assert_eq!(finish(bare("ba-infer").args(["a.nii", "--same-report"])).code, Some(2));
}

#[test]
fn a_report_by_position_is_refused_before_anything_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let report = report(dir.path());
    for args in [[&scan() as &Path, &report], [&report, &scan()]] {
        let mut command = command("ba-infer");
        let done = finish(command.args(args).arg("--bundle").arg(tiny_bundle()));
        assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""), "{done:#?}");
        let call = format!("ba-infer {} --report {}", scan().display(), report.display());
        assert!(done.stderr.contains(&call), "{done:#?}");
    }
}

/// Results and caches are keyed by the text: saved on Windows or Linux, a report is encoded once.
#[test]
fn the_same_text_has_one_cache_entry() {
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(package("examples/demo/report.txt")).unwrap();
    let (unix, windows) = (dir.path().join("unix.txt"), dir.path().join("windows.txt"));
    fs::write(&unix, &text).unwrap();
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    fs::write(&windows, utf16(&format!("\u{feff}{}", text.replace('\n', "\r\n")))).unwrap();
    let cache = dir.path().join("cache");
    let run = |report: &Path| {
        ba_infer(&[&scan(), &"--report", &report, &"--bundle", &tiny_bundle(), &"--json", &"--cache", &cache])
            .ok()
            .json()
    };
    let (first, second) = (run(&unix), run(&windows));
    assert_eq!(first["logits"], second["logits"]);
    assert_eq!(second["run"]["from_cache"], serde_json::json!(["vision", "text"]));
}

/// Counts and languages of the calibration reports are in the bundle; the warning comes from the cache as well.
#[test]
fn a_bundle_knows_the_language_of_its_calibration_reports() {
    let dir = tempfile::tempdir().unwrap();
    let (calibration, bundle) = (dir.path().join("calibration"), dir.path().join("bundle"));
    fs::create_dir(&calibration).unwrap();
    let german = fs::read_to_string(package("tests/data/reports/german.txt")).unwrap();
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    fs::write(calibration.join("a.txt"), utf16(&german[..german.find("Einzelne").unwrap()])).unwrap();
    let export = || ba_export(&[&"--model", &tiny_model(), &"--calibration", &calibration, &"-o", &bundle]);
    export().ok();
    let record = manifest(&bundle)["tokenizer"]["reports"].clone();
    assert_eq!((&record["reports"], &record["languages"]), (&1.into(), &serde_json::json!(["German"])));
    let bytes = fs::read(bundle.join("bundle.json")).unwrap();
    export().ok();
    assert_eq!(fs::read(bundle.join("bundle.json")).unwrap(), bytes);
    let (english, own) = (dir.path().join("english.txt"), dir.path().join("german.txt"));
    fs::copy(package("examples/demo/report.txt"), &english).unwrap();
    fs::write(&own, german[german.find("Einzelne").unwrap()..].replace('\n', "\r\n")).unwrap();
    let cache = dir.path().join("cache");
    let warned = |report: &Path| {
        let done = ba_infer(&[&scan(), &"--report", &report, &"--bundle", &bundle, &"--json", &"--cache", &cache]).ok();
        done.json()["warnings"].as_array().unwrap().iter().any(|warning| warning["code"] == "report_language")
    };
    assert_eq!([warned(&english), warned(&english), warned(&own)], [true, true, false]);
    fs::write(calibration.join("b.txt"), b"{\\rtf1\\ansi MTA 2\\par}").unwrap();
    export().fails_with_one_line("calibration.input").naming(&["b.txt", "RTF"]);
}
