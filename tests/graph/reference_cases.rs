//! The random cases themselves: valid, varied, repeatable, small, and written so that reading gives them back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use safetensors::tensor::Dtype;

use support::reference::{
    AdapterConfig, Array, Case, LlamaConfig, VitConfig, Weights,
    files::{read_safetensors, write_safetensors},
    generate::random_case,
    write::write_case,
};

const SEEDS: u64 = 60;

/// Grids of the run and of `vision.img`.
fn grids(case: &Case) -> ([usize; 3], [usize; 3]) {
    let (a, v) = (AdapterConfig::from_json(&case.config), VitConfig::from_json(&case.config));
    let run = [a.d_out, a.d_in, a.d_in];
    assert!((0..3).all(|i| run[i] % v.patch[i] == 0 && v.img[i] % v.patch[i] == 0));
    (std::array::from_fn(|i| run[i] / v.patch[i]), std::array::from_fn(|i| v.img[i] / v.patch[i]))
}

/// Every stage is finite, of order 1 and of the shape the specification gives; and a case does not take long.
#[test]
fn stages_are_sound() {
    let mut slowest = 0.0_f64;
    for seed in 0..SEEDS {
        let case = random_case(seed);
        let start = Instant::now();
        let out = case.forward();
        slowest = slowest.max(start.elapsed().as_secs_f64());
        for (name, a) in &out {
            let largest = a.data.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
            assert!(a.data.iter().all(|x| x.is_finite()) && largest < 1e3, "seed {seed} {name}: {largest}");
            assert!(largest > 1e-3, "seed {seed} {name} is all but zero");
        }
        let (v, l) = (VitConfig::from_json(&case.config), LlamaConfig::from_json(&case.llama_config));
        let (b, t) = (case.inputs.volume.shape[0], case.inputs.input_ids[0].len());
        let n: usize = grids(&case).0.iter().product();
        assert_eq!(out["vision_patch_tokens"].shape, [b, n, v.hidden]);
        assert_eq!(out["vision_tokens"].shape, [b, n + 1, v.hidden]);
        assert_eq!(out["text_hidden"].shape, [b, t, l.hidden]);
        assert_eq!(out["logits"].shape, [b, 3]);
    }
    println!("slowest {:.1} ms", slowest * 1e3);
}

/// All that the property tests should meet is met.
#[test]
fn cases_are_varied() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let case = random_case(seed);
        let (a, v) = (AdapterConfig::from_json(&case.config), VitConfig::from_json(&case.config));
        let l = LlamaConfig::from_json(&case.llama_config);
        let mut note = |yes: bool, what: String| yes.then(|| seen.insert(what));
        note(true, format!("{} {}", a.kind, a.norm));
        note(true, format!("ratio {}", l.heads / l.kv_heads));
        note(l.kv_heads == 1 && l.heads > 1, "multi-query".into());
        note(l.layers == 1, "one llama layer".into());
        note(v.layers == 1, "one vit layer".into());
        note(v.heads == 1, "one vit head".into());
        note(l.head_dim * l.heads != l.hidden, "free head_dim".into());
        note(case.inputs.input_ids[0].len() == 1, "one token".into());
        note(case.inputs.attention_mask.iter().all(|m| *m.last().unwrap() == 0), "padding behind all".into());
        note(true, format!("prefix {:?}", case.layout.vision_prefix));
        note(true, format!("{:?} in {} files", case.layout.llama_dtype, case.layout.llama_shards));
        note(case.llama_config.get("rope_theta").is_some(), "transformers 4".into());
        note(case.llama_config.get("rope_parameters").is_some(), "transformers 5".into());
        note(!case.heads.contains_key("image_classifier.weight"), "no image classifier".into());
        let [p1, p2, p3] = v.patch;
        note(p1 != p2 && p2 != p3 && p1 != p3, "three patch sides".into());
        let (run, img) = grids(&case);
        note(run == img, "not resampled".into());
        for i in 0..3 {
            note(run[i] > img[i], format!("axis {i} up"));
            note(run[i] < img[i], format!("axis {i} down"));
        }
    }
    println!("{seen:#?}");
    // 6 adapters, 3 ratios, 7 single things, 3 prefixes, 9 storages, 3 more, 1 patch, 1 + 6 grids
    assert_eq!(seen.len(), 39, "{seen:#?}");
}

/// Reads every safetensors file of a folder.
fn read_all(folder: &Path) -> Weights {
    let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    files.filter(|f| f.extension().is_some_and(|e| e == "safetensors")).flat_map(|f| read_safetensors(&f)).collect()
}

/// The files hold the case, bit for bit, and what they say is unused besides.
#[test]
fn files_hold_the_case() {
    for seed in 0..SEEDS {
        let case = random_case(seed);
        assert_eq!(case.heads, random_case(seed).heads, "repeatable");
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = dir.path().join("some.json");
        std::fs::write(&tokenizer, "{}").unwrap();
        let w = write_case(&case, dir.path(), Some(&tokenizer));
        assert_eq!(read_safetensors(&w.adapter), case.heads);
        assert!(
            w.config.is_file() && w.llama.join("config.json").is_file() && w.llama.join("tokenizer.json").is_file()
        );

        let mut vision = read_safetensors(&w.vision);
        assert!(w.vision_unused.iter().all(|n| vision.remove(n).is_some()));
        let strip = |n: String| n.strip_prefix(case.layout.vision_prefix).unwrap().to_owned();
        assert_eq!(vision.into_iter().map(|(n, a)| (strip(n), a)).collect::<Weights>(), case.vit);

        let mut llama = read_all(&w.llama);
        assert!(w.llama_unused.iter().all(|n| llama.remove(n).is_some()));
        let prefix = |n: String| if case.layout.llama_prefix { n } else { format!("model.{n}") };
        assert_eq!(llama.into_iter().map(|(n, a)| (prefix(n), a)).collect::<Weights>(), case.llama);
        assert_eq!(w.llama.join("model.safetensors.index.json").exists(), case.layout.llama_shards > 1);
    }
}

/// Writes cases with their outputs for `tests/scripts/check_against_torch.py`, into the folder named by `CASES`;
/// `COUNT` of them.
#[test]
#[ignore = "writes files for a PyTorch script"]
fn write_cases_for_torch() {
    let folder = std::env::var_os("CASES").expect("CASES names a folder");
    let count = std::env::var("COUNT").map_or(SEEDS, |n| n.parse().unwrap());
    for seed in 0..count {
        let case = random_case(seed);
        let dir = Path::new(&folder).join(seed.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        write_case(&case, &dir, None);
        let mut out: BTreeMap<String, Array> = case.forward();
        let ids = |rows: &[Vec<i64>]| {
            Array::new(&[rows.len(), rows[0].len()], rows.iter().flatten().map(|&x| x as f64).collect())
        };
        out.insert("volume".into(), case.inputs.volume.clone());
        out.insert("input_ids".into(), ids(&case.inputs.input_ids));
        out.insert("attention_mask".into(), ids(&case.inputs.attention_mask));
        write_safetensors(&dir.join("expected.safetensors"), out.iter().map(|(n, a)| (n.clone(), Dtype::F64, a)));
    }
}
