//! The language model's tokenizer: found, held against the model, and written into the bundle as a `tokenizer.json`;
//! and what the calibration reports are like.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::CalibrationInput;
use super::special_tokens::{self, ADDING, Sayings};
use crate::bundle::{FileRecord, TokenizerRecord};
use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::tensor::hex;
use crate::text::{AddedTokens, Beyond, ReportProfile, Tokenizer, read_report};

/// The file's name in a bundle.
const FILE: &str = "tokenizer.json";

/// Share of the embedding table's rows below which a tokenizer is another model's. Tables are padded by less: Phi-2's
/// by 1.8 %, DeepSeek's by 2.3 %, Qwen 2's by 0.2 %. The vocabularies of two families mostly differ by more: 32,000,
/// 64,000, 100,000, 128,256, 151,936 pieces.
const FEW_PIECES: f64 = 0.7;

/// Added tokens that a message names.
const SHOWN: usize = 3;

/// A tokenizer that fits its language model.
pub(super) struct Found {
    /// `tokenizer.json` or `tokenizer.model`.
    pub path: PathBuf,
    /// What files next to a `tokenizer.model` add to it.
    pub added: AddedTokens,
    /// These files, if they add something.
    pub adding: Vec<PathBuf>,
    /// The token in front of every report.
    pub bos: u32,
    /// What to know of it.
    pub warnings: Vec<Warning>,
}

impl Found {
    /// The tokenizer.
    ///
    /// # Errors
    /// `tokenizer.*`.
    pub fn load(&self) -> Result<Tokenizer> {
        Tokenizer::load_with(&self.path, &self.added, self.bos)
    }
}

/// Finds the tokenizer of the language model in `folder` and holds it against the model: `bos` is the BOS token by its
/// `config`, if that is a file, and `rows` are those of its embedding table.
///
/// # Errors
/// `tokenizer.missing`; `tokenizer.invalid` when it cannot be read or is another model's.
pub(super) fn find(folder: &Path, config: Option<&Path>, bos: u32, rows: usize) -> Result<Found> {
    let path = tokenizer_file(folder)?;
    let place = path.parent().unwrap_or(Path::new("."));
    let says = Sayings::read(place)?;
    let beside = says.added()?;
    let json = path.extension().is_some_and(|end| end == "json");
    let added = if json { AddedTokens::default() } else { beside.clone() };
    let tokenizer = Tokenizer::open(&path, &added)?;
    let named = config.is_some_and(special_tokens::names_bos);
    let (bos, disagrees) = special_tokens::bos(&tokenizer, &says, bos, named).map_err(|e| e.at(&path))?;
    let tokenizer = tokenizer.with_bos(bos).map_err(|e| e.at(&path))?;
    check_rows(&tokenizer, rows).map_err(|message| Error::new(Code::TOKENIZER_INVALID, message).at(&path))?;
    let told = if json { left_out(&tokenizer, &beside) } else { read_with(&added) };
    let template = special_tokens::template(&tokenizer, &says, bos, json);
    let warnings = [disagrees, template, few_pieces(&tokenizer, rows), told].into_iter().flatten().collect();
    let adding =
        ADDING.map(|name| place.join(name)).into_iter().filter(|file| !added.tokens.is_empty() && file.is_file());
    Ok(Found { adding: adding.collect(), path, added, bos, warnings })
}

/// Refuses a tokenizer that a report can lead beyond the embedding table.
fn check_rows(tokenizer: &Tokenizer, rows: usize) -> Result<(), String> {
    let bos = tokenizer.bos();
    if usize::try_from(bos).is_ok_and(|bos| bos >= rows) {
        return Err(format!(
            "its BOS token is {bos}, and the embedding table has {rows} rows: they are of different models"
        ));
    }
    match tokenizer.beyond(rows) {
        None => Ok(()),
        Some(Beyond { content, id, added: true }) => Err(format!(
            "its added token `{content}` has the id {id}, and the embedding table {rows} rows: a report with that word would \
             reach beyond the table. Use the checkpoint whose table was resized for it (resize_token_embeddings), or remove \
             the token from added_tokens"
        )),
        Some(Beyond { content, id, added: false }) => {
            let pieces = tokenizer.pieces();
            Err(format!(
                "the tokenizer has {pieces} pieces, `{content}` with the id {id} among them, and the embedding table {rows} \
                 rows: they belong to different models"
            ))
        }
    }
}

fn few_pieces(tokenizer: &Tokenizer, rows: usize) -> Option<Warning> {
    let tokens = tokenizer.within(rows);
    let few = (tokens as f64) < FEW_PIECES * rows as f64;
    let message = format!(
        "the tokenizer has {tokens} pieces and the embedding table {rows} rows: far more than padding leaves. Is it another \
         model's tokenizer?"
    );
    few.then(|| Warning::new(WarningCode::TOKENIZER_VOCABULARY, message))
}

/// How added tokens of a `tokenizer.model` are read.
fn read_with(added: &AddedTokens) -> Option<Warning> {
    let how = match added.legacy {
        true => {
            "(legacy) what follows one is a text of its own, with a space in front, as in transformers' slow tokenizer"
        }
        false => "the space in front of the report stays the only one",
    };
    let words = added.tokens.iter().filter(|token| !token.special).map(|token| token.content.as_str());
    tell(words.collect(), &format!("added next to tokenizer.model are taken whole in reports; {how}"))
}

/// Added tokens of which a `tokenizer.json` knows nothing.
fn left_out(tokenizer: &Tokenizer, beside: &AddedTokens) -> Option<Warning> {
    let unknown = beside.tokens.iter().filter(|token| !token.special && tokenizer.id(&token.content).is_none());
    let why = "added next to tokenizer.json are left out, for that file does not have them: save the tokenizer again";
    tell(unknown.map(|token| token.content.as_str()).collect(), why)
}

fn tell(words: Vec<&str>, what: &str) -> Option<Warning> {
    let shown: Vec<String> = words.iter().take(SHOWN).map(|word| format!("`{word}`")).collect();
    let (count, more) = (words.len(), if words.len() > SHOWN { ", …" } else { "" });
    let word = if count == 1 { "token" } else { "tokens" };
    let message = format!("{count} {word} ({}{more}) {what}", shown.join(", "));
    (count > 0).then(|| Warning::new(WarningCode::TOKENIZER_ADDED, message))
}

/// `tokenizer.json` or `tokenizer.model` next to the language model, or (as Meta's download has it) one folder above.
fn tokenizer_file(folder: &Path) -> Result<PathBuf> {
    let above = folder.join("..");
    let places = [folder, &above].into_iter().flat_map(|f| ["tokenizer.json", "tokenizer.model"].map(|n| f.join(n)));
    places.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        let message = "neither tokenizer.json nor tokenizer.model lies here or one folder above";
        Error::new(Code::TOKENIZER_MISSING, message).at(folder)
    })
}

/// Writes the tokenizer into `folder` and lists it in `files`. The record has the profile of the reports among the
/// calibration `inputs`, each cut to `max_tokens`.
pub(super) fn install(
    found: &Found,
    max_tokens: usize,
    inputs: &[CalibrationInput],
    folder: &Path,
    files: &mut Vec<FileRecord>,
) -> Result<TokenizerRecord> {
    let tokenizer = found.load()?;
    let json = tokenizer.to_json().map_err(|e| e.at(&found.path))?;
    let path = folder.join(FILE);
    std::fs::write(&path, &json).map_err(|e| Error::io(&path, "cannot write", e))?;
    let sha256 = hex(&Sha256::digest(json.as_bytes()));
    files.push(FileRecord { name: FILE.into(), bytes: json.len() as u64, sha256 });
    let reports = profile(&tokenizer, max_tokens, inputs)?;
    Ok(TokenizerRecord { file: FILE.into(), bos: tokenizer.bos(), max_tokens, reports })
}

/// The profile of the calibration reports; none where there are none.
fn profile(tokenizer: &Tokenizer, max_tokens: usize, inputs: &[CalibrationInput]) -> Result<Option<ReportProfile>> {
    let paths = inputs.iter().filter_map(|input| input.report.as_ref());
    let read = |path: &PathBuf| {
        let read = read_report(path).and_then(|text| tokenizer.encode(&text, max_tokens).map(|tokens| (text, tokens)));
        read.map_err(|e| Error::new(Code::CALIBRATION_INPUT, format!("{} ({})", e.message(), e.code())).at(path))
    };
    Ok(ReportProfile::of(&paths.map(read).collect::<Result<Vec<_>>>()?))
}
