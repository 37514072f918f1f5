//! How a checkpoint says that it is quantized: `quantization_config` in the `config.json` beside the weights.
//!
//! Flows in: the folder of the weights. Flows out: the method's name and its settings, as JSON. Older tools wrote
//! files of their own: AutoGPTQ `quantize_config.json`, AutoAWQ `quant_config.json`. A file that is no JSON says
//! nothing here: whoever reads the model's configuration refuses it.

use std::path::Path;

use serde_json::Value;

use crate::json;

/// Longest configuration that is read, in bytes, and most values in it.
const MAX_BYTES: u64 = 4 << 20;
const MAX_VALUES: usize = 1 << 16;

/// The settings of a quantization.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The method's name in lower case.
    pub method: String,
    pub json: Value,
    /// The file that says so.
    pub file: &'static str,
}

impl Settings {
    /// The settings in `folder`, if there are any.
    pub fn in_folder(folder: &Path) -> Option<Self> {
        let places =
            [("config.json", None), ("quantize_config.json", Some("gptq")), ("quant_config.json", Some("awq"))];
        places.into_iter().find_map(|(file, own)| {
            let json = read(&folder.join(file))?;
            let json = match own {
                Some(_) => json,
                None => of_model(&json)?.clone(),
            };
            let named = json.get("quant_method").and_then(Value::as_str).or(own).unwrap_or_else(|| unnamed(&json));
            Some(Self { method: short(named).to_lowercase(), json, file })
        })
    }

    /// A setting that is there and not null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.json.get(name).filter(|v| !v.is_null())
    }

    /// A whole number under one of these names.
    pub fn number(&self, names: &[&str]) -> Option<i64> {
        names.iter().find_map(|name| self.get(name)?.as_i64())
    }

    /// A text under that name, in lower case.
    pub fn text(&self, name: &str) -> Option<String> {
        Some(short(self.get(name)?.as_str()?).to_lowercase())
    }

    /// Whether a setting is there and in use.
    pub fn on(&self, name: &str) -> bool {
        self.get(name).is_some_and(json::is_on)
    }
}

fn of_model(json: &Value) -> Option<&Value> {
    let names = ["quantization_config", "compression_config"];
    let places = [json.get("text_config"), Some(json)];
    places.into_iter().flatten().find_map(|at| names.iter().find_map(|n| at.get(n).filter(|v| v.is_object())))
}

/// bitsandbytes' first configurations did not name it.
fn unnamed(json: &Value) -> &'static str {
    let bitsandbytes = json.get("load_in_8bit").is_some() || json.get("load_in_4bit").is_some();
    if bitsandbytes { "bitsandbytes" } else { "an unnamed method" }
}

/// A text of a file, cut for a message.
fn short(text: &str) -> &str {
    text.char_indices().nth(60).map_or(text, |(end, _)| &text[..end])
}

fn read(path: &Path) -> Option<Value> {
    let about = std::fs::metadata(path).ok().filter(|about| about.is_file() && about.len() <= MAX_BYTES)?;
    json::parse_settings(std::fs::read(path).ok()?, MAX_VALUES).ok().filter(|json| about.len() > 0 && json.is_object())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_found_in_files_of_python_and_windows() {
        let folder = tempfile::tempdir().unwrap();
        let config = r#"{"limits": [0.0, Infinity], "quantization_config": {"quant_method": "GPTQ", "bits": 4}}"#;
        for text in [config.as_bytes().to_vec(), [b"\xef\xbb\xbf", config.as_bytes()].concat()] {
            std::fs::write(folder.path().join("config.json"), text).unwrap();
            let found = Settings::in_folder(folder.path()).unwrap();
            assert_eq!((found.method.as_str(), found.number(&["bits"])), ("gptq", Some(4)));
        }
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        assert!(Settings::in_folder(folder.path()).is_none());
    }
}
