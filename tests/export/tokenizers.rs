//! Tokenizers against their models: BOS, template, ids beyond the table, tokens added next to the file.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::commands::{Done, ba_export, manifest, write_model};
use support::package;

const NO_INPUTS: &str = "none";

/// Exports a copy of the tiny model after a change of its language model's folder.
struct Export {
    model: tempfile::TempDir,
}

impl Export {
    fn of(change: impl FnOnce(&Path)) -> Self {
        let model = tempfile::tempdir().unwrap();
        write_model(model.path(), "tiny", "tiny");
        fs::copy(package("tests/data/tokenizer/tokenizer.model"), model.path().join("llama/tokenizer.model")).unwrap();
        change(&model.path().join("llama"));
        Self { model }
    }

    fn run(&self) -> Done {
        let (model, none, bundle) = (self.model.path(), self.model.path().join(NO_INPUTS), self.bundle());
        fs::create_dir_all(&none).unwrap();
        ba_export(&[&"--model", &model, &"--calibration", &none, &"-o", &bundle, &"--json"])
    }

    fn bundle(&self) -> std::path::PathBuf {
        self.model.path().join("bundle")
    }

    fn bos(&self) -> u64 {
        manifest(&self.bundle())["tokenizer"]["bos"].as_u64().unwrap()
    }

    /// The export's warnings of the tokenizer, by code.
    fn warnings(&self) -> Vec<(String, String)> {
        let done = self.run().ok();
        let text = |w: &Value, field: &str| w[field].as_str().unwrap().to_owned();
        let all =
            done.json()["warnings"].as_array().unwrap().iter().map(|w| (text(w, "code"), text(w, "message"))).collect();
        Vec::into_iter(all).filter(|(code, _): &(String, String)| code.starts_with("tokenizer")).collect()
    }
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json: Value = fs::read(path).map_or(json!({}), |bytes| serde_json::from_slice(&bytes).unwrap());
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

fn tokenizer(folder: &Path, change: impl FnOnce(&mut Value)) {
    edit(&folder.join("tokenizer.json"), change);
}

fn settings(folder: &Path, settings: Value) {
    fs::write(folder.join("tokenizer_config.json"), settings.to_string()).unwrap();
}

fn token(id: u64, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
           "special": special})
}

fn bos_token_id(folder: &Path, id: Value) {
    edit(&folder.join("config.json"), |json| json["bos_token_id"] = id);
}

#[test]
fn a_plain_model_has_no_warning() {
    let export = Export::of(|folder| {
        settings(folder, json!({"add_bos_token": true, "add_eos_token": false, "bos_token": {"content": "<s>"}}));
        fs::write(folder.join("generation_config.json"), r#"{"bos_token_id": 1}"#).unwrap();
    });
    assert_eq!((export.warnings(), export.bos()), (vec![], 1));
    let export = Export::of(|folder| fs::remove_file(folder.join("tokenizer.json")).unwrap());
    assert_eq!((export.warnings(), export.bos()), (vec![], 1));
}

#[test]
fn the_tokenizers_bos_counts() {
    // LLaMA 1's configurations name <unk>, and others </s>.
    for id in [0, 2] {
        let export = Export::of(|folder| bos_token_id(folder, json!(id)));
        let warnings = export.warnings();
        let name = ["<unk>", "", "</s>"][id];
        assert!(warnings.len() == 1 && warnings[0].0 == "tokenizer_bos" && export.bos() == 1, "{warnings:?}");
        assert!(warnings[0].1.contains(name) && warnings[0].1.contains("`<s>` (1)"), "{warnings:?}");
    }
    // Nothing but the unknown token, and no word of the tokenizer's.
    let export = Export::of(|folder| {
        tokenizer(folder, |json| json["post_processor"] = Value::Null);
        bos_token_id(folder, json!(0));
    });
    let warnings = export.warnings();
    assert_eq!(warnings.iter().map(|w| w.0.as_str()).collect::<Vec<_>>(), ["tokenizer_bos", "tokenizer_template"]);
    assert_eq!(export.bos(), 1);
    // A name of its own.
    let export = Export::of(|folder| {
        tokenizer(folder, |json| json["post_processor"] = Value::Null);
        settings(folder, json!({"bos_token": "</s>", "add_bos_token": true}));
    });
    let warnings = export.warnings();
    assert!(warnings[0].0 == "tokenizer_bos" && warnings.len() == 1 && export.bos() == 2, "{warnings:?}");
    // generation_config.json is told, and not followed.
    let export = Export::of(|folder| {
        tokenizer(folder, |json| json["post_processor"] = Value::Null);
        settings(folder, json!({"add_eos_token": false}));
        fs::write(folder.join("generation_config.json"), r#"{"bos_token_id": 2}"#).unwrap();
    });
    assert!(export.warnings()[0].1.contains("generation_config.json has `</s>` (2)") && export.bos() == 1);
}

#[test]
fn an_ordinary_piece_as_bos_is_refused() {
    for id in [77, 411] {
        let export = Export::of(|folder| bos_token_id(folder, json!(id)));
        export.run().fails("tokenizer.invalid").naming(&[
            "bos_token_id",
            &format!("({id})"),
            "ordinary piece",
            "`<s>` (1)",
        ]);
    }
    // The files next to the tokenizer name it: then it is one.
    let export = Export::of(|folder| {
        let mut piece = String::new();
        tokenizer(folder, |json| {
            let vocab = json["model"]["vocab"].as_object().unwrap();
            piece = vocab.iter().find(|(_, id)| **id == json!(411)).unwrap().0.clone();
            json["post_processor"] = Value::Null;
        });
        settings(folder, json!({"bos_token": piece, "add_bos_token": true, "add_eos_token": false}));
        bos_token_id(folder, json!(411));
    });
    assert_eq!((export.warnings(), export.bos()), (vec![], 411));
}

#[test]
fn another_template_is_told() {
    let single = |pieces: &[&str]| {
        let piece = |name: &&str| match *name {
            "A" => json!({"Sequence": {"id": "A", "type_id": 0}}),
            name => json!({"SpecialToken": {"id": name, "type_id": 0}}),
        };
        let token = |name: &str, id: u64| json!({"id": name, "ids": [id], "tokens": [name]});
        json!({"type": "TemplateProcessing", "single": pieces.iter().map(piece).collect::<Vec<_>>(),
               "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
               "special_tokens": {"<s>": token("<s>", 1), "</s>": token("</s>", 2)}})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let sequence = |parts: Value| json!({"type": "Sequence", "processors": parts});
    for (processor, flags, told) in [
        (single(&["<s>", "A", "</s>"]), json!({}), "<s> REPORT </s>"),
        (single(&["A"]), json!({}), "no BOS"),
        (single(&["<s>", "</s>", "A"]), json!({}), "<s> </s> REPORT"),
        (byte_level.clone(), json!({}), "no BOS"),
        (Value::Null, json!({}), "no BOS"),
        (single(&["<s>", "A"]), json!({"add_bos_token": false}), "no BOS"),
        (
            single(&["<s>", "A"]),
            json!({"add_bos_token": true, "add_eos_token": true, "eos_token": "</s>"}),
            "REPORT </s>",
        ),
        (single(&["<s>", "A", "</s>"]), json!({"add_bos_token": true, "add_eos_token": false}), "REPORT </s>"),
        (Value::Null, json!({"add_eos_token": false}), "no BOS"),
        // Controls.
        (single(&["<s>", "A"]), json!({}), ""),
        (sequence(json!([byte_level, single(&["<s>", "A"])])), json!({"clean_up_tokenization_spaces": false}), ""),
        (single(&["<s>", "A"]), json!({"add_eos_token": false}), ""),
        (Value::Null, json!({"add_bos_token": true, "bos_token": "<s>"}), ""),
    ] {
        let export = Export::of(|folder| {
            tokenizer(folder, |json| json["post_processor"] = processor.clone());
            settings(folder, flags.clone());
        });
        let warnings = export.warnings();
        let place = format!("{processor}, {flags}: {warnings:?}");
        assert_eq!(export.bos(), 1, "{place}");
        match told {
            "" => assert!(warnings.is_empty(), "{place}"),
            told => assert!(
                warnings.len() == 1 && warnings[0].0 == "tokenizer_template" && warnings[0].1.contains(told),
                "{place}"
            ),
        }
    }
}

#[test]
fn ids_beyond_the_table_are_refused() {
    let add = |tokens: Value| {
        Export::of(|folder| {
            tokenizer(folder, |json| {
                json["added_tokens"].as_array_mut().unwrap().extend(tokens.as_array().unwrap().clone())
            });
        })
    };
    // Padding beyond the table is usual.
    let padded = json!([token(512, "<pad>", true), token(513, "<x>", true)]);
    assert_eq!(add(padded).warnings(), []);
    let words = json!([token(512, "<pad>", true), token(513, "CDR-SB", false)]);
    add(words).run().fails("tokenizer.invalid").naming(&["added token", "CDR-SB", "513", "512 rows"]);
    let other = Export::of(|folder| {
        tokenizer(folder, |json| json["model"]["vocab"]["zzzz"] = json!(600));
    });
    other.run().fails("tokenizer.invalid").naming(&["pieces", "600", "512 rows"]);
}

#[test]
fn far_fewer_pieces_than_rows_are_told() {
    let keep = |count: u64| {
        Export::of(|folder| {
            tokenizer(folder, |json| {
                let model = json["model"].as_object_mut().unwrap();
                model["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() < count);
                model["merges"] = json!([]);
            });
        })
    };
    // As DeepSeek's table is padded, 2.3 %.
    assert_eq!(keep(500).warnings(), []);
    let warnings = keep(290).warnings();
    assert!(warnings.len() == 1 && warnings[0].0 == "tokenizer_vocabulary", "{warnings:?}");
    assert!(warnings[0].1.contains("290 pieces") && warnings[0].1.contains("512 rows"), "{warnings:?}");
}

#[test]
fn tokens_added_next_to_a_tokenizer_are_told() {
    // The table has rows for two tokens more than the model's pieces when two of these are gone: here there are none.
    let with = |file: &'static str, words: Value| {
        Export::of(|folder| {
            fs::remove_file(folder.join(if file == "json" { "tokenizer.model" } else { "tokenizer.json" })).ok();
            fs::write(folder.join("added_tokens.json"), words.to_string()).unwrap();
        })
    };
    with("model", json!({"CDR-SB": 512})).run().fails("tokenizer.invalid").naming(&["added token", "CDR-SB", "rows"]);
    with("model", json!({"CDR-SB": 300})).run().fails("tokenizer.invalid").naming(&["added token", "id 300", "piece"]);
    assert_eq!(with("model", json!({"<pad>": 512})).run().code, Some(1));
    let warnings = with("json", json!({"CDR-SB": 512})).warnings();
    assert!(warnings[0].0 == "tokenizer_added" && warnings[0].1.contains("`CDR-SB`"), "{warnings:?}");
    let special =
        Export::of(|folder| settings(folder, json!({"added_tokens_decoder": {"512": token(512, "[P]", true)}})));
    assert_eq!(special.warnings(), []);
}

#[test]
fn files_of_tiktoken_are_named() {
    for lines in ["IQ== 0\nIg== 1\n", "aGlwcG9jYW1wdXM= 40000\r\n"] {
        let export = Export::of(|folder| {
            fs::remove_file(folder.join("tokenizer.json")).unwrap();
            fs::write(folder.join("tokenizer.model"), lines).unwrap();
        });
        export.run().fails("tokenizer.invalid").naming(&["tiktoken", "Llama 3", "tokenizer.json"]);
    }
    let export = Export::of(|folder| {
        fs::remove_file(folder.join("tokenizer.json")).unwrap();
        fs::write(folder.join("tokenizer.model"), "not base64 at all").unwrap();
    });
    export.run().fails("tokenizer.invalid").naming(&["neither tokenizer.json nor SentencePiece"]);
}
