//! What the simulation promises: anatomy that follows severity down to the demo model's grid, overlapping reports, and
//! the same bytes from the same seed.

use std::collections::{BTreeMap, BTreeSet};

use brain_adapter::cohort::{Split, read_labelled};
use brain_adapter::text::Tokenizer;
use brain_adapter::volume::{Grid, ReadOptions};

use super::anatomy::{Change, in_temporal, near_ventricles};
use super::*;

fn demo(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo").join(file)
}

/// A subject with the template's anatomy and an ideal scanner.
fn plain(change: Change) -> Subject {
    let mut subject = Subject::draw(1, 0, &mut stream(0, 1));
    subject.change = change;
    subject.scale = [1.0; 3];
    let acquisition = &mut subject.acquisition;
    for pose in [&mut acquisition.turn, &mut acquisition.shift, &mut acquisition.tilt, &mut acquisition.offset] {
        *pose = [0.0; 3];
    }
    (acquisition.bias, acquisition.noise, acquisition.gain, acquisition.gamma) = ([0.0; 6], 0.0, 1000.0, 1.0);
    subject
}

/// Sum over the voxels that `inside` chooses by MNI coordinates, of `value` of the grey value (0 to 1), in ml.
fn volume(
    voxels: &[f32],
    grid: usize,
    affine: &[[f64; 4]],
    inside: fn([f64; 3]) -> bool,
    value: impl Fn(f64) -> f64,
) -> f64 {
    let ml = (0..3).map(|c| (0..3).map(|r| affine[r][c].powi(2)).sum::<f64>().sqrt()).product::<f64>() / 1000.0;
    let place = |at: usize| {
        let index = [at % grid, at / grid % grid, at / grid / grid].map(|n| n as f64);
        [0, 1, 2].map(|r| affine[r][3] + (0..3).map(|c| affine[r][c] * index[c]).sum::<f64>())
    };
    let chosen = voxels.iter().enumerate().filter(|(at, _)| inside(place(*at)));
    chosen.map(|(_, v)| value(f64::from(*v)) * ml).sum()
}

/// The fluid in a voxel: all of it at 0.3 and below, none from 0.55 on.
fn fluid(grey: f64) -> f64 {
    ((0.55 - grey) / 0.25).clamp(0.0, 1.0)
}

#[test]
fn ventricles_grow_and_temporal_lobes_shrink_with_severity() {
    let brain = Brain::read(&demo("mni152_t1.nii.gz")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let options = ReadOptions { grid: Grid::cube(64, 4.0), ..ReadOptions::default() };
    let (mut scans, mut seen) = (Vec::new(), Vec::new());
    for step in 0..5 {
        let severity = 0.2 * f64::from(step);
        let change = Change { ventricles: severity, temporal: severity, asymmetry: 0.0 };
        let scan = acquire(&brain, &plain(change), 64, &mut stream(0, 2));
        let path = dir.path().join(format!("{step}.nii.gz"));
        scan.save(&path).unwrap();
        let stored: Vec<f32> = scan.voxels.iter().map(|v| f32::from(*v) / 1000.0).collect();
        // The demo model's grid.
        let conformed = brain_adapter::volume::read(&path, &options).unwrap();
        let values: Vec<f32> = conformed.voxels.iter().map(|v| v / 1000.0).collect();
        let measure = |values: &[f32], affine: &[[f64; 4]]| {
            let ventricles = volume(values, 64, affine, near_ventricles, fluid);
            [ventricles, volume(values, 64, affine, in_temporal, |grey| 1.0 - fluid(grey))]
        };
        // The plain scan may be flipped, so the sides change place: the measures know no side.
        scans.push(measure(&stored, &scan.affine));
        seen.push(measure(&values, &conformed.affine[..3]));
    }
    for (name, measures) in [("stored", scans), ("conformed", seen)] {
        for pair in measures.windows(2) {
            assert!(pair[1][0] > 1.1 * pair[0][0] && pair[1][1] < 0.99 * pair[0][1], "{name}: {measures:?}");
        }
        let [first, last] = [measures[0], measures[4]];
        assert!(last[0] > 1.5 * first[0] && last[1] < 0.92 * first[1], "{name}: {measures:?}");
    }
}

/// All files below `folder` with their bytes.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_gives_others() {
    let brain = Brain::read(&demo("mni152_t1.nii.gz")).unwrap();
    let make = |seed: u64| {
        let dir = tempfile::tempdir().unwrap();
        // Alone or after others: a subject is the same.
        draw(9, seed).iter().rev().take(2).for_each(|s| write(dir.path(), &brain, s, seed, 24).unwrap());
        contents(dir.path()).into_iter().map(|(p, b)| (p.strip_prefix(dir.path()).unwrap().to_owned(), b)).collect()
    };
    let [first, again, other]: [BTreeMap<PathBuf, Vec<u8>>; 3] = [make(4), make(4), make(5)];
    assert_eq!(first.len(), 4);
    assert!(first == again);
    assert!(first.iter().all(|(path, bytes)| &other[path] != bytes));
    for (path, bytes) in first.iter().filter(|(path, _)| path.extension().unwrap() == "txt") {
        assert!(bytes.starts_with(b"SIMULATED REPORT"), "{}", path.display());
    }
}

#[test]
fn the_list_is_one_that_training_reads() {
    let dir = tempfile::tempdir().unwrap();
    let subjects = draw(60, 2);
    let mut rows = rows(&subjects);
    assign_splits(&mut rows, [0.6, 0.2, 0.2], 2).unwrap();
    let path = dir.path().join("cohort.csv");
    std::fs::write(&path, files::list(&subjects, &rows).unwrap()).unwrap();
    let read = read_labelled(&path, &LABELS.map(str::to_owned)).unwrap();
    for label in 0..3 {
        let count = |split| read.iter().filter(|s| s.label == label && s.split == Some(split)).count();
        assert_eq!(Split::ALL.map(count), [12, 4, 4]);
    }
    for (subject, row) in subjects.iter().zip(&read) {
        assert_eq!((subject.label, row.scan.as_path()), (row.label, dir.path().join(files::scan(subject)).as_path()));
    }
}

/// Facts and reports of a large cohort, by class.
fn reports() -> [Vec<(Subject, String)>; 3] {
    let mut classes = [const { Vec::new() }; 3];
    for subject in draw(600, 3) {
        let text = report::write(&subject.facts, &mut stream(3, 3 * subject.number as u64));
        classes[subject.label].push((subject, text));
    }
    classes
}

#[test]
fn reports_of_neighbouring_classes_overlap() {
    let classes = reports();
    let mean = |of: fn(&Subject) -> f64| {
        classes.each_ref().map(|c| c.iter().map(|(s, _)| of(s)).sum::<f64>() / c.len() as f64)
    };
    let mmse = mean(|s| f64::from(s.facts.mmse));
    let ventricles = mean(|s| s.change.ventricles);
    assert!(mmse[0] > mmse[1] + 1.0 && mmse[1] > mmse[2] + 2.0, "{mmse:?}");
    assert!(ventricles.is_sorted() && ventricles[1] - ventricles[0] > ventricles[2] - ventricles[1], "{ventricles:?}");
    for pair in classes.windows(2) {
        // No fact and no deformation parts two neighbours: the extremes cross, for more than a few.
        let crossed = |worse: fn(&Subject) -> f64| {
            let most = pair[0].iter().map(|(s, _)| worse(s)).fold(f64::MIN, f64::max);
            let least = pair[1].iter().map(|(s, _)| worse(s)).fold(f64::MAX, f64::min);
            let between = pair.iter().flatten().filter(|(s, _)| (least..=most).contains(&worse(s))).count();
            between as f64 / pair.iter().flatten().count() as f64
        };
        let facts: [fn(&Subject) -> f64; 4] =
            [|s| -f64::from(s.facts.mmse), |s| s.facts.cdr(), |s| s.facts.complaint as f64, |s| s.change.ventricles];
        for (i, fact) in facts.into_iter().enumerate() {
            assert!(crossed(fact) > 0.2, "fact {i} parts two classes: {}", crossed(fact));
        }
    }
}

#[test]
fn reports_name_no_class_and_leave_facts_out() {
    let classes = reports();
    let all = || classes.iter().flatten().map(|(_, text)| text);
    for text in all() {
        assert!(text.starts_with(report::HEADING) && text.len() < 500, "{text}");
        let words: BTreeSet<&str> = text.split(|c: char| !c.is_alphanumeric()).collect();
        assert!(["CN", "MCI", "AD", "Alzheimer", "dementia", "atrophy"].iter().all(|w| !words.contains(w)), "{text}");
    }
    // 0.08: four standard deviations of a share among 600.
    for (word, expected) in [("MMSE", 0.9), ("CDR", 0.8), ("APOE", 0.4), ("education", 0.5), ("year-old", 0.95)] {
        let share = all().filter(|text| text.contains(word)).count() as f64 / all().count() as f64;
        assert!((share - expected).abs() < 0.08, "{word} in {share}");
    }
}

/// The demo model's language part is random: the class must show in which tokens there are. A naive Bayes classifier
/// over tokens that occur, learned on one half of the reports, is far from chance on the other, and far from perfect.
#[test]
fn tokens_of_the_demo_tell_the_classes_apart_in_part() {
    let tokenizer = Tokenizer::load(&demo("checkpoint/llama/tokenizer.json"), 1).unwrap();
    let bags = reports().map(|class| {
        let bag = |text: &String| tokenizer.encode(text, 512).unwrap().ids.into_iter().collect::<BTreeSet<i64>>();
        class.iter().map(|(_, text)| bag(text)).collect::<Vec<_>>()
    });
    // log-odds of a token's presence and absence, with Laplace's correction
    let model = bags.each_ref().map(|class| {
        let learned = &class[..class.len() / 2];
        (0..810)
            .map(|id| {
                let p =
                    (learned.iter().filter(|bag| bag.contains(&id)).count() + 1) as f64 / (learned.len() + 2) as f64;
                [(1.0 - p).ln(), p.ln()]
            })
            .collect::<Vec<_>>()
    });
    let score = |bag: &BTreeSet<i64>, class: usize| -> f64 {
        model[class].iter().zip(0i64..).map(|(odds, id)| odds[usize::from(bag.contains(&id))]).sum()
    };
    let (mut right, mut of) = (0, 0);
    for (label, class) in bags.iter().enumerate() {
        for bag in &class[class.len() / 2..] {
            let best = (0..3).max_by(|a, b| score(bag, *a).total_cmp(&score(bag, *b))).unwrap();
            right += usize::from(best == label);
            of += 1;
        }
    }
    let accuracy = f64::from(right as u32) / f64::from(of);
    assert!((0.6..0.9).contains(&accuracy), "{accuracy}");
}
