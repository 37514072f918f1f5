//! M3D's own `config.json` beside the weights of its vision transformer, held against ours.
//!
//! Heads and the order of a patch's axes are in no shape of a tensor: were they wrong, the export would be, and nothing
//! would show it. Flows in: our configuration and the vision weights' folder. A folder without `config.json`, and
//! fields that the file lacks, are fine.
//!
//! # Errors
//! `config.contradiction`, naming both fields and both values; `config.unsupported` for another patch embedding;
//! `config.syntax` for a file that is no JSON.

use std::path::Path;

use serde_json::{Value, json};

use super::text_model::read_json;
use crate::config::Config;
use crate::error::{Code, Error, Result};

/// Compares `config` (of the file `ours`) with the configuration in the folder of the weights `vision`.
pub(super) fn check(config: &Config, ours: &Path, vision: &Path) -> Result<()> {
    let folder = if vision.is_dir() { vision } else { vision.parent().unwrap_or(Path::new("")) };
    let path = folder.join("config.json");
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if !path.is_file() || same(&path, ours) {
        return Ok(());
    }
    compare(config, &read_json(&path)?, ours).map_err(|e| e.at(&path))
}

/// Which of M3D's models a configuration is of.
enum Whole {
    /// M3D-CLIP, or the vision transformer alone: sizes are the transformer's.
    Vision,
    /// M3D-LaMed: sizes are the language model's, images have fields of their own.
    Lamed,
    Other,
}

fn whole(theirs: &Value) -> Whole {
    let mut names = vec![theirs["model_type"].as_str().unwrap_or_default().to_lowercase()];
    let classes = theirs["architectures"].as_array().into_iter().flatten();
    names.extend(classes.filter_map(|class| class.as_str().map(str::to_lowercase)));
    let has = |word: &str| names.iter().any(|name| name.contains(word));
    let bare = ["img_size", "num_heads", "num_layers"].iter().all(|field| !theirs[*field].is_null());
    match () {
        () if has("lamed") || theirs["vision_tower"] == "vit3d" => Whole::Lamed,
        () if has("m3d") || has("clip") || has("vit") || bare => Whole::Vision,
        () => Whole::Other,
    }
}

fn compare(config: &Config, theirs: &Value, ours: &Path) -> Result<()> {
    let v = &config.vision;
    let (img, patch) = (json!(v.img), json!(v.patch));
    let rows: Vec<(&str, &str, Value)> = match whole(theirs) {
        Whole::Other => return Ok(()),
        Whole::Lamed => vec![
            ("image_size", "vision.img", img.clone()),
            ("img_size", "vision.img", img),
            ("patch_size", "vision.patch", patch),
        ],
        Whole::Vision => vec![
            ("img_size", "vision.img", img.clone()),
            ("image_size", "vision.img", img),
            ("patch_size", "vision.patch", patch),
            ("hidden_size", "vision.hidden", json!(v.hidden)),
            ("mlp_dim", "vision.mlp", json!(v.mlp)),
            ("num_heads", "vision.heads", json!(v.heads)),
            ("num_layers", "vision.layers", json!(v.layers)),
        ],
    };
    for (field, own, value) in rows {
        let found = &theirs[field];
        if !found.is_null() && !equal(found, &value) {
            let message =
                format!("{field} is {}, and {own} is {value} in {}: they must agree", short(found), ours.display());
            return Err(Error::new(Code::CONFIG_CONTRADICTION, message));
        }
    }
    let fixed = [
        ("in_channels", json!(1)),
        ("image_channel", json!(1)),
        ("pos_embed", json!("perceptron")),
        ("spatial_dims", json!(3)),
    ];
    for (field, computed) in fixed {
        let found = &theirs[field];
        if !found.is_null() && !equal(found, &computed) {
            let message = format!("{field} is {}, and a vision transformer with {computed} is computed", short(found));
            return Err(Error::new(Code::CONFIG_UNSUPPORTED, message));
        }
    }
    Ok(())
}

/// Numbers by value, lists element by element; one number stands for all three axes.
fn equal(found: &Value, value: &Value) -> bool {
    match (found, value) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Number(_), Value::Array(all)) => all.iter().all(|one| equal(found, one)),
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        _ => found == value,
    }
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip(changed: &str, value: Value) -> Value {
        let mut all = json!({"architectures": ["M3DCLIP"], "model_type": "m3d_clip", "hidden_size": 768, "mlp_dim": 3072,
            "img_size": [32, 256, 256], "patch_size": [4, 16, 16], "in_channels": 1, "num_heads": 12, "num_layers": 12,
            "pos_embed": "perceptron", "dropout_rate": 0.0, "spatial_dims": 3, "max_text_len": 128, "vocab_size": 30522});
        all[changed] = value;
        all
    }

    #[test]
    fn each_size_is_compared() {
        let (config, ours) = (Config::default(), Path::new("model/config.json"));
        compare(&config, &clip("local_loss", json!(false)), ours).unwrap();
        compare(&config, &clip("num_heads", json!(12.0)), ours).unwrap();
        for (field, value, own) in [
            ("num_heads", json!(16), "vision.heads is 12"),
            ("num_layers", json!(24), "vision.layers is 12"),
            ("hidden_size", json!(1024), "vision.hidden is 768"),
            ("mlp_dim", json!(4096), "vision.mlp is 3072"),
            ("patch_size", json!([16, 16, 4]), "vision.patch is [4,16,16]"),
            ("patch_size", json!(16), "vision.patch is [4,16,16]"),
            ("img_size", json!([256, 256, 32]), "vision.img is [32,256,256]"),
        ] {
            let error = compare(&config, &clip(field, value.clone()), ours).unwrap_err();
            assert_eq!(error.code(), Code::CONFIG_CONTRADICTION);
            let words = [&format!("{field} is {value}"), own, "model/config.json"];
            assert!(words.iter().all(|words| error.message().contains(*words)), "{error}");
        }
        for (field, value) in [("in_channels", json!(3)), ("pos_embed", json!("conv"))] {
            let error = compare(&config, &clip(field, value), ours).unwrap_err();
            assert!(error.code() == Code::CONFIG_UNSUPPORTED && error.message().contains(field), "{error}");
        }
    }

    #[test]
    fn of_larger_models_only_what_is_the_vision_transformers_is_compared() {
        let (config, ours) = (Config::default(), Path::new("config.json"));
        let lamed = json!({"model_type": "lamed_llama", "vision_tower": "vit3d", "hidden_size": 4096, "image_channel": 1,
            "image_size": [32, 256, 256], "patch_size": [4, 16, 16], "num_attention_heads": 32});
        compare(&config, &lamed, ours).unwrap();
        let mut other = lamed;
        other["patch_size"] = json!([4, 8, 16]);
        assert!(compare(&config, &other, ours).unwrap_err().message().contains("patch_size"));
        compare(&config, &json!({"hidden_size": 4096, "model_type": "resnet"}), ours).unwrap();
        compare(&config, &json!([1]), ours).unwrap();
    }
}
