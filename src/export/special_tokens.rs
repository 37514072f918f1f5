//! What files say of a tokenizer's special tokens, against what the model gets: BOS in front of each report and nothing
//! else.
//!
//! In: the tokenizer, `config.json` of the language model, and next to the tokenizer `tokenizer_config.json`,
//! `special_tokens_map.json` and `generation_config.json`, each if it is there. Out: the BOS token, and warnings where
//! they disagree.
//!
//! **BOS.** The tokenizer's word counts, for the model learned from its texts: the first token of its template, else
//! `bos_token`. The `bos_token_id` of `config.json` serves generation alone, and LLaMA 1's names `<unk>`. One that
//! names an ordinary piece is refused: something belongs to another model.
//!
//! **Template.** What transformers puts around a text depends on its version: with 4 (`LlamaTokenizerFast`)
//! `add_bos_token` and `add_eos_token` decide, with 5 (`TokenizersBackend`) the template of `tokenizer.json`, if there
//! is one. BOS and nothing else stands around a report always: where one of the two differs, that is a warning.

use std::path::Path;

use serde_json::Value;

use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::json;
use crate::text::{AddedTokens, Template, Tokenizer};

/// Maximum size of one of the files, in bytes, and of its values: `added_tokens_decoder` has a few for each token.
const MAX_BYTES: u64 = 16 << 20;
const MAX_VALUES: usize = 1 << 20;

/// How BOS is called where no file says so.
const BOS_NAMES: [&str; 5] = ["<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "[BOS]"];

/// The files next to a tokenizer; null for one that is not there.
pub(super) struct Sayings {
    tokenizer_config: Value,
    special_tokens_map: Value,
    generation_config: Value,
    added_tokens: Value,
}

/// The files that may add tokens.
pub(super) const ADDING: [&str; 3] = ["added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"];

impl Sayings {
    /// Reads the files in `folder`.
    ///
    /// # Errors
    /// `tokenizer.invalid` when one is no JSON; `io`.
    pub fn read(folder: &Path) -> Result<Self> {
        let read = |name: &str| object(&folder.join(name));
        Ok(Self {
            tokenizer_config: read("tokenizer_config.json")?,
            special_tokens_map: read("special_tokens_map.json")?,
            generation_config: read("generation_config.json")?,
            added_tokens: read("added_tokens.json")?,
        })
    }

    /// The tokens that they add.
    ///
    /// # Errors
    /// `tokenizer.invalid`.
    pub fn added(&self) -> Result<AddedTokens> {
        AddedTokens::of(&self.added_tokens, &self.tokenizer_config, &self.special_tokens_map)
    }

    /// The token of that role, such as `bos_token`.
    fn named(&self, role: &str) -> Option<&str> {
        let files = [&self.tokenizer_config, &self.special_tokens_map];
        let tokens = files.into_iter().filter_map(|json| json.get(role));
        tokens.filter_map(|token| token.get("content").unwrap_or(token).as_str()).next()
    }

    /// What puts tokens around a text: the tokenizer's own template, and `add_bos_token` and `add_eos_token` where one
    /// of them is stated. By a `tokenizer.json` (`json`) that has neither, nothing is put there.
    fn templates(&self, tokenizer: &Tokenizer, json: bool) -> Vec<Template> {
        let own = tokenizer.template();
        let flags =
            ["add_bos_token", "add_eos_token"].map(|name| self.tokenizer_config.get(name).and_then(Value::as_bool));
        let one = |wanted: bool, role: &str| match (wanted, self.named(role)) {
            (false, _) => Vec::new(),
            (true, name) => vec![name.unwrap_or(role).to_owned()],
        };
        let stated = flags.iter().any(Option::is_some).then(|| {
            // The default of transformers 4; 5 has BOS by a template alone.
            let [bos, eos] = [flags[0].unwrap_or(own.is_some() || !json), flags[1].unwrap_or(false)];
            Template { before: one(bos, "bos_token"), after: one(eos, "eos_token") }
        });
        let none = (json && own.is_none() && stated.is_none()).then(Template::default);
        own.into_iter().chain(stated).chain(none).collect()
    }

    /// The BOS of the tokenizer's own files, and who says so.
    fn bos(&self, tokenizer: &Tokenizer) -> Option<(u32, &'static str)> {
        let template =
            self.templates(tokenizer, false).into_iter().find_map(|template| template.before.into_iter().next());
        let named = self.named("bos_token");
        let of = |name: Option<&str>, who| name.and_then(|name| tokenizer.id(name)).map(|id| (id, who));
        of(template.as_deref(), "the tokenizer's template").or_else(|| of(named, "the tokenizer's bos_token"))
    }

    /// `bos_token_id` of `generation_config.json`.
    fn generation_bos(&self) -> Option<u32> {
        self.generation_config.get("bos_token_id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok())
    }
}

/// The object in a file; null where there is none.
fn object(path: &Path) -> Result<Value> {
    let invalid = |what: String| Error::new(Code::TOKENIZER_INVALID, what).at(path);
    let Ok(meta) = std::fs::metadata(path) else { return Ok(Value::Null) };
    if !meta.is_file() || meta.len() > MAX_BYTES {
        return Err(invalid(format!("expected a JSON file of at most {MAX_BYTES} bytes")));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "cannot read the file", e))?;
    json::parse_settings(bytes, MAX_VALUES)
        .map_err(|e| invalid(format!("not JSON, which the tokenizer's settings are: {e}")))
}

/// Whether a configuration names a BOS token at all.
pub(super) fn names_bos(config: &Path) -> bool {
    object(config).is_ok_and(|json| json.get("bos_token_id").is_some_and(|id| !id.is_null()))
}

/// The BOS token to put in front of reports, and what to know of it. `configured` is the language model's, which its
/// configuration names or (`named` false) which is LLaMA's 1.
///
/// # Errors
/// `tokenizer.invalid` when that is an ordinary piece.
pub(super) fn bos(
    tokenizer: &Tokenizer,
    says: &Sayings,
    configured: u32,
    named: bool,
) -> Result<(u32, Option<Warning>)> {
    let shown = |id: u32| format!("`{}` ({id})", tokenizer.token(id).unwrap_or_else(|| "no token".into()));
    let stated = says.bos(tokenizer);
    let known = tokenizer.token(configured);
    let unknown = tokenizer.unknown_token() == Some(configured);
    let by_name = known.as_deref().is_some_and(|name| BOS_NAMES.contains(&name) && !tokenizer.has_special());
    let special = tokenizer.is_special(configured) || unknown || by_name || says.named("bos_token") == known.as_deref();
    let special = special && known.is_some() || stated.is_some_and(|(id, _)| id == configured);
    let whose = if named { "config.json's bos_token_id" } else { "LLaMA's BOS, for config.json names none," };
    let fallback = || BOS_NAMES.iter().find_map(|name| tokenizer.id(name).filter(|id| tokenizer.is_special(*id)));
    let warn = |message: String| Some(Warning::new(WarningCode::TOKENIZER_BOS, message));
    match stated {
        Some((id, _)) if id == configured => Ok((id, None)),
        Some((id, who)) if special || !named => {
            let message = format!(
                "{whose} is {}, and {who} has {} as BOS: reports begin with the latter, as in transformers. Correct \
                 bos_token_id if that is right, else the tokenizer",
                shown(configured),
                shown(id)
            );
            Ok((id, warn(message)))
        }
        _ if known.is_some() && !special => {
            let what = if tokenizer.has_special() { "an ordinary piece" } else { "not listed as special" };
            let right = stated.map(|(id, _)| id).or_else(fallback);
            let right = right.map_or(String::new(), |id| format!(" (the tokenizer's BOS seems to be {})", shown(id)));
            Err(Error::new(
                Code::TOKENIZER_INVALID,
                format!(
                    "{whose} is {}, {what}, expected a special token of the tokenizer{right}: correct bos_token_id in \
                     config.json, or use the tokenizer that belongs to the model",
                    shown(configured)
                ),
            ))
        }
        _ if unknown => {
            let message = format!("{whose} is {}, the tokenizer's token for unknown characters", shown(configured));
            match fallback().filter(|id| *id != configured) {
                Some(id) => Ok((id, warn(format!("{message}: reports begin with its BOS {} instead", shown(id))))),
                None => Ok((configured, warn(format!("{message}: reports begin with that, for it has no BOS")))),
            }
        }
        _ => {
            let other = says.generation_bos().filter(|id| *id != configured && known.is_some());
            let message = |id| {
                let (a, b) = (shown(configured), shown(id));
                format!("{whose} is {a}, and generation_config.json has {b} as BOS: reports begin with the former")
            };
            Ok((configured, other.and_then(|id| warn(message(id)))))
        }
    }
}

/// The warning of a template that puts something else around a text than `bos` in front; `json` is whether the file is
/// a `tokenizer.json`, which has a template if anything is put around a text.
pub(super) fn template(tokenizer: &Tokenizer, says: &Sayings, bos: u32, json: bool) -> Option<Warning> {
    let ours = tokenizer.token(bos).unwrap_or_default();
    // `bos_token` without a name is what it is here.
    let is_bos = |name: &String| *name == ours || name == "bos_token";
    let is_ours = |t: &Template| t.after.is_empty() && t.before.len() == 1 && t.before.iter().all(is_bos);
    let found = says.templates(tokenizer, json).into_iter().find(|template| !is_ours(template))?;
    let around = |before: &[String], after: &[String]| {
        let text = ["REPORT".to_owned()];
        before.iter().chain(&text).chain(after).map(String::as_str).collect::<Vec<_>>().join(" ")
    };
    let theirs = around(&found.before, &found.after);
    let why = match (found.before.is_empty(), found.after.is_empty()) {
        (true, _) => "no BOS",
        (_, false) => "tokens at the end (EOS)",
        _ => "other tokens",
    };
    let message = format!(
        "the tokenizer's template (or its add_bos_token, add_eos_token) has {why}: transformers makes `{theirs}` of a \
         report, and this model gets `{}`. Train the adapter on texts of that form, or its results differ",
        around(&[ours], &[])
    );
    Some(Warning::new(WarningCode::TOKENIZER_TEMPLATE, message))
}
