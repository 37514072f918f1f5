//! Language models with the activation outliers that real ones have, exported in reduced precision and held against the
//! float64 reference.

use std::fs;
use std::path::Path;

use brain_adapter::bundle::{Bundle, Precision};
use brain_adapter::export::{self, Plan, Sources, Summary};
use brain_adapter::progress::Silent;
use brain_adapter::runtime::{Session, SessionOptions};
use brain_adapter::tensor::{Tensor, cosine};
use brain_adapter::text::Tokenizer;

use crate::common;
use crate::reference::files::round_to;
use crate::reference::generate::{Case, case_around};
use crate::reference::weights::Random;
use crate::reference::write::write_case;
use crate::reference::{LlamaConfig, llama};
use safetensors::tensor::Dtype;

/// Invented reports. The first two calibrate; the others are held out.
pub const REPORTS: [&str; 8] = [
    "MRI brain without contrast. Mild generalized cortical atrophy, more marked in the medial temporal lobes.",
    "No acute infarct or hemorrhage. The ventricles and sulci are normal for age. MTA score 0. Normal study, CN.",
    "Moderate atrophy of the hippocampus, left > right. MMSE 21/30. Findings suggest Alzheimer's disease.",
    "Patient aged 74, female. Memory complaints for 18 months. Mild cognitive impairment is suspected; CDR 0.5.",
    "Voxel based volumetry: left hippocampus 2.61 mL, right 2.84 mL (below the 5th percentile).",
    "IMPRESSION: 1. Posterior cortical atrophy. 2. No mass, midline shift or extra-axial collection.",
    "Follow-up at 12 months: progression of medial temporal atrophy from grade 1 to grade 2.",
    "Normal gray-white differentiation. Corpus callosum, brainstem and cerebellum unremarkable.",
];

/// Sizes of a language model for these tests.
pub fn sizes(hidden: usize, layers: usize, kv_heads: usize) -> LlamaConfig {
    let mlp = hidden * 43 / 16;
    LlamaConfig { vocab: 512, hidden, mlp, layers, heads: 8, kv_heads, head_dim: hidden / 8, eps: 1e-5, theta: 1e4 }
}

/// A model of LLaMA 2's kind of outliers: in all layers but the first, two MLP channels reach `peak` for the BOS token
/// alone and write into fixed residual channels, and three norm gains are `gain` over residual channels that are as
/// much smaller.
pub fn massive(seed: u64, l: &LlamaConfig, peak: f64, gain: f64) -> Case {
    let mut case = case_around(seed, l);
    let rng = &mut Random::new(seed ^ 0xb05);
    let mut channels: Vec<usize> = (0..l.hidden).collect();
    (0..6).for_each(|i| channels.swap(i, rng.int(i, l.hidden - 1)));
    let (small, written, marker) = (&channels[..3], &channels[3..5], channels[5]);
    for (name, w) in &mut case.llama {
        let width = *w.shape.last().unwrap();
        let residual_rows = name.contains("o_proj") || name.contains("down_proj");
        for &c in small {
            match () {
                () if name.contains("embed_tokens") => w.data.chunks_mut(width).for_each(|row| row[c] /= gain),
                () if residual_rows => w.data[c * width..][..width].iter_mut().for_each(|v| *v /= gain),
                () if name.contains("layernorm") => w.data[c] *= gain,
                () => {}
            }
        }
        // Only BOS has anything in the marker channel, and nothing is written there.
        if name.contains("embed_tokens") {
            w.data.chunks_mut(width).enumerate().for_each(|(id, row)| row[marker] = if id == 1 { 8.0 } else { 0.0 });
        } else if residual_rows {
            w.data[marker * width..][..width].fill(0.0);
        }
    }
    for n in 1..l.layers {
        // BOS stands first and sees only itself: what it gives is the same in every report.
        let bos = llama::mlp_input(l, &case.llama, &[1], n).data[marker];
        for (j, &target) in written.iter().enumerate() {
            let channel = rng.int(0, l.mlp - 1);
            let sign = if j % 2 == 0 { 1.0 } else { -1.0 };
            for (leaf, sign) in [("gate_proj", 1.0), ("up_proj", sign)] {
                let w = case.llama.get_mut(&format!("model.layers.{n}.mlp.{leaf}.weight")).unwrap();
                w.data[channel * l.hidden..][..l.hidden].fill(0.0);
                w.data[channel * l.hidden + marker] = sign * peak.sqrt() / bos;
            }
            let down = case.llama.get_mut(&format!("model.layers.{n}.mlp.down_proj.weight")).unwrap();
            (0..l.hidden).for_each(|row| down.data[row * l.mlp + channel] *= 0.05);
            down.data[target * l.mlp + channel] = 0.6 * sign;
        }
    }
    stored(&mut case);
    case
}

/// A model whose outliers lie in the same columns of every token: a few norm gains are `gain` times the others over
/// residual channels of the usual size, and a few rows of the up-projections are `row` times the others. The weights
/// that read those columns are smaller, so that the columns do not drown what the others say.
pub fn everywhere(seed: u64, l: &LlamaConfig, gain: f64, row: f64) -> Case {
    let mut case = case_around(seed, l);
    let rng = &mut Random::new(seed ^ 0xe7e);
    let gains: Vec<usize> = (0..(l.hidden / 128).max(2)).map(|_| rng.int(0, l.hidden - 1)).collect();
    let rows: Vec<usize> = (0..(l.mlp / 512).max(2)).map(|_| rng.int(0, l.mlp - 1)).collect();
    for (name, w) in &mut case.llama {
        let width = *w.shape.last().unwrap();
        if name.contains("layernorm") {
            gains.iter().for_each(|&c| w.data[c] *= gain);
        } else if ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"].iter().any(|p| name.contains(p)) {
            w.data.chunks_mut(width).for_each(|line| gains.iter().for_each(|&c| line[c] *= 2.0 / gain));
        } else if name.contains("down_proj") {
            w.data.chunks_mut(width).for_each(|line| rows.iter().for_each(|&c| line[c] *= 2.0 / row));
        }
        if name.contains("up_proj") {
            rows.iter().for_each(|&r| w.data[r * width..][..width].iter_mut().for_each(|v| *v *= row));
        }
    }
    stored(&mut case);
    case
}

/// Rounds the language model to what it is stored as.
fn stored(case: &mut Case) {
    for w in case.llama.values_mut() {
        w.data.iter_mut().for_each(|v| *v = round_to(Dtype::F16, *v));
    }
}

/// Writes the model to `folder/model` and the first `reports` reports to `folder/calibration`.
pub fn write(case: &Case, folder: &Path, reports: usize) {
    let (model, calibration) = (folder.join("model"), folder.join("calibration"));
    fs::create_dir_all(&model).unwrap();
    write_case(case, &model, Some(&crate::package("tests/data/tokenizer/tokenizer.json")));
    write_reports(&calibration, &REPORTS[..reports]);
}

/// One file a report.
pub fn write_reports(folder: &Path, reports: &[&str]) {
    fs::create_dir_all(folder).unwrap();
    for (i, report) in reports.iter().enumerate() {
        fs::write(folder.join(format!("report{i}.txt")), report).unwrap();
    }
}

/// A plan for `folder/model`, calibrated on `folder/calibration`, into `folder/PRECISION`.
pub fn plan(folder: &Path, precision: Precision) -> Plan {
    let sources = Sources::in_folder(&folder.join("model")).unwrap();
    Plan {
        precision,
        calibration: Some(folder.join("calibration")),
        ..Plan::new(sources, folder.join(precision.name()))
    }
}

/// Exports; gives the summary and the verified bundle.
pub fn export(plan: &Plan) -> (Summary, Bundle) {
    let summary = export::run(plan, &mut Silent).unwrap_or_else(|e| panic!("{}: {e}", e.code()));
    (summary, Bundle::open(&plan.output).unwrap())
}

/// The pooled text of each report, from the bundle.
pub fn texts(bundle: &Bundle, reports: &[&str]) -> Vec<Vec<f32>> {
    let path = bundle.file(&bundle.manifest.parts["text"].file).unwrap();
    let mut session = Session::open(common::runtime(), &path, &SessionOptions::default()).unwrap();
    let run = |report: &&str| {
        let ids = tokens(bundle, report);
        let mask = Tensor::i64(&[1, ids.len()], vec![1; ids.len()]).unwrap();
        let ids = Tensor::i64(&[1, ids.len()], ids).unwrap();
        let out = session.run(&[("input_ids", &ids), ("attention_mask", &mask)], &["text"]).unwrap();
        out[0].as_f32().unwrap().to_vec()
    };
    reports.iter().map(run).collect()
}

/// The tokens of a report.
pub fn tokens(bundle: &Bundle, report: &str) -> Vec<i64> {
    let record = &bundle.manifest.tokenizer;
    Tokenizer::load(&bundle.file(&record.file).unwrap(), record.bos)
        .unwrap()
        .encode(report, record.max_tokens)
        .unwrap()
        .ids
}

/// The least cosine of the pooled text to the reference's, over the reports that did not calibrate.
pub fn least_cosine(case: &Case, l: &LlamaConfig, bundle: &Bundle, reports: &[&str]) -> f64 {
    let found = texts(bundle, reports);
    let of = |(report, found): (&&str, &Vec<f32>)| {
        let ids = vec![tokens(bundle, report)];
        let mask = vec![vec![1; ids[0].len()]];
        let expected = llama::pool("mean", &llama::forward(l, &case.llama, &ids, &mask), &mask).to_f32();
        cosine(found.iter().copied(), expected.into_iter())
    };
    reports.iter().zip(&found).map(of).fold(1.0, f64::min)
}
