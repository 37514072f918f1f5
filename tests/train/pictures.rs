//! Pictures of training and evaluation: well-formed, complete, and harmless whatever the labels and numbers are.

use brain_adapter::metrics::{Confusion, LabelledPrediction, Reliability, tsne};
use brain_adapter::plot::{self, Epoch};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn labels(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

/// Checks a picture's XML as far as this needs no parser, and leaves it where `$BA_PICTURES` says, to be looked at.
fn sound(name: &str, svg: &str) {
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{name}: {svg}");
    let numbers = svg.contains("NaN") || svg.contains("inf\"");
    assert!(!numbers && !svg.contains("<script") && !svg.contains("href"), "{name}: {svg}");
    for (opening, closing) in [("<text", "</text>"), ("<svg", "</svg>")] {
        assert_eq!(svg.matches(opening).count(), svg.matches(closing).count(), "{name}");
    }
    assert!(svg.matches('<').count() == svg.matches('>').count(), "{name}");
    if let Some(folder) = std::env::var_os("BA_PICTURES") {
        std::fs::write(std::path::Path::new(&folder).join(format!("{name}.svg")), svg).unwrap();
    }
}

/// Answers of a model that is too sure of itself.
fn answers(n: usize, sure: f32) -> Vec<LabelledPrediction> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let answer = |i: usize| {
        let logits: Vec<f32> =
            (0..3).map(|c| sure * (rng.random::<f32>() * 2.0 + if c == i % 3 { 0.6 } else { 0.0 })).collect();
        LabelledPrediction::from_logits(i % 3, &logits, 1.0)
    };
    (0..n).map(answer).collect()
}

#[test]
fn evaluations() {
    let (now, before) = (answers(300, 1.2), answers(300, 4.0));
    let refs: Vec<&LabelledPrediction> = now.iter().collect();
    let [now, before] = [&now, &before].map(|a| Reliability::of(&a.iter().collect::<Vec<_>>()));
    let svg = plot::reliability(&now, Some(&before), "Reliability, test split of 300");
    sound("reliability", &svg);
    assert!(svg.contains(&format!("ECE {:.3}", now.ece)) && svg.contains(&format!("ECE {:.3}", before.ece)));
    sound("reliability-empty", &plot::reliability(&Reliability::of(&[]), None, "none"));
    let svg = plot::confusion(&Confusion::of(&refs, 3), &labels(&["CN", "MCI", "AD"]), "Confusion, test split of 300");
    sound("confusion", &svg);
    for label in ["CN", "MCI", "AD"] {
        assert_eq!(svg.matches(&format!("\n{label}\n")).count(), 2, "{label}: {svg}");
    }
    for classes in [1, 2, 5, 9] {
        let names: Vec<String> = (0..classes).map(|c| format!("class {c}")).collect();
        sound(&format!("confusion-{classes}"), &plot::confusion(&Confusion::of(&refs, classes), &names, "t"));
    }
}

#[test]
fn learning_curves() {
    let epoch = |i: u32| {
        let x = f64::from(i);
        let f1 = Some(0.85 - 0.6 / x.sqrt() - 0.0005 * x * x);
        Epoch { epoch: i, train_loss: 1.1 / x.sqrt(), validation_loss: Some(1.1 / x.sqrt() + 0.004 * x), macro_f1: f1 }
    };
    let all: Vec<Epoch> = (1..=20).map(epoch).collect();
    let svg = plot::history(&all, "Fine-tuning, mode tlp");
    sound("history", &svg);
    assert!(svg.contains("best: ") && svg.contains("validation") && svg.contains("training"));
    sound("history-1", &plot::history(&all[..1], "one epoch"));
    sound("history-2", &plot::history(&all[..2], "two epochs"));
    sound("history-0", &plot::history(&[], "none"));
    let train: Vec<Epoch> = all.iter().map(|e| Epoch { validation_loss: None, macro_f1: None, ..*e }).collect();
    let svg = plot::history(&train, "no validation split");
    sound("history-train", &svg);
    assert!(!svg.contains("macro-F1"));
    let nan = f64::NAN;
    let diverged = [Epoch { train_loss: nan, ..all[0] }, Epoch { train_loss: f64::INFINITY, ..all[1] }, all[2]];
    sound("history-diverged", &plot::history(&diverged, "diverged"));
    let many: Vec<Epoch> = (1..=400).map(|i| Epoch { macro_f1: Some(0.5), ..epoch(i) }).collect();
    sound("history-many", &plot::history(&many, "many"));
}

#[test]
fn embeddings() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut point = |i: usize| (0..16).map(|d| rng.random::<f32>() + f32::from(u8::from(d % 3 == i % 3))).collect();
    let points: Vec<Vec<f32>> = (0..150).map(&mut point).collect();
    let classes: Vec<usize> = (0..150).map(|i| i % 3).collect();
    let names = labels(&["CN", "MCI", "AD"]);
    let layout = tsne(&points, 7);
    sound("embedding", &plot::embedding(&layout.points, &classes, &names, "Fused embedding, 150 subjects"));
    sound("embedding-0", &plot::embedding(&[], &[], &names, "none"));
    sound("embedding-1", &plot::embedding(&[[3.0, 4.0]], &[1], &names, "one"));
    let odd = [[f64::NAN, 1.0], [1e300, -1e300], [0.0, f64::INFINITY], [1e-300, 0.0]];
    sound("embedding-odd", &plot::embedding(&odd, &[0, 1, 2, 0], &names, "odd"));
}

#[test]
fn text_is_escaped() {
    let names = labels(&["<script>alert(1)</script>", "a&b\u{7}\u{0}", "\"q'"]);
    let title = "</text><script href='x'>&\u{1b}[31m";
    let svg = plot::embedding(&[[0.0, 0.0], [1.0, 1.0]], &[0, 1], &names, title);
    assert!(svg.contains("&lt;script&gt;alert(1)") && svg.contains("a&amp;b") && !svg.contains("<script"));
    assert!(svg.chars().all(|c| c == '\n' || !c.is_control()));
    let refs = [&LabelledPrediction::new(0, vec![1.0, 0.0, 0.0])];
    for svg in [
        plot::confusion(&Confusion::of(&refs, 3), &names, title),
        plot::reliability(&Reliability::of(&refs), None, title),
        plot::history(&[], title),
    ] {
        assert!(
            !svg.contains("<script") && svg.contains("&lt;script") && svg.chars().all(|c| c == '\n' || !c.is_control())
        );
    }
}
