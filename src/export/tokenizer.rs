//! The bundle's tokenizer: a `tokenizer.json`, copied or converted; and what the calibration reports are like.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::calibration::calibration_inputs;
use super::sources::Loaded;
use crate::bundle::{FileRecord, TokenizerRecord};
use crate::error::{Code, Error, Result};
use crate::tensor::hex;
use crate::text::{ReportProfile, Tokenizer, read_report};

/// The file's name in a bundle.
const FILE: &str = "tokenizer.json";

/// Writes the tokenizer into `folder` and lists it in `files`. The record has the profile of the reports in
/// `calibration`.
pub(super) fn install(
    loaded: &Loaded,
    calibration: Option<&Path>,
    folder: &Path,
    files: &mut Vec<FileRecord>,
) -> Result<TokenizerRecord> {
    let tokenizer = Tokenizer::load(&loaded.tokenizer, loaded.bos)?;
    let (pieces, rows) = (tokenizer.pieces(), loaded.llama.vocab);
    if pieces > rows || loaded.bos as usize >= rows {
        let message = format!(
            "the tokenizer has {pieces} pieces and the embedding table {rows} rows: they belong to different models"
        );
        return Err(Error::new(Code::TOKENIZER_INVALID, message).at(&loaded.tokenizer));
    }
    let json = tokenizer.to_json().map_err(|e| e.at(&loaded.tokenizer))?;
    let path = folder.join(FILE);
    std::fs::write(&path, &json).map_err(|e| Error::io(&path, "cannot write", e))?;
    let sha256 = hex(&Sha256::digest(json.as_bytes()));
    files.push(FileRecord { name: FILE.into(), bytes: json.len() as u64, sha256 });
    let max_tokens = loaded.config.text.max_tokens;
    let reports = calibration.map(|folder| profile(&tokenizer, max_tokens, folder)).transpose()?.flatten();
    Ok(TokenizerRecord { file: FILE.into(), bos: loaded.bos, max_tokens, reports })
}

/// The profile of the reports in a calibration folder; none where there are none.
fn profile(tokenizer: &Tokenizer, max_tokens: usize, folder: &Path) -> Result<Option<ReportProfile>> {
    let paths = calibration_inputs(folder)?.into_iter().filter_map(|input| input.report);
    let read = |path: std::path::PathBuf| {
        let read = read_report(&path).and_then(|text| tokenizer.encode(&text, max_tokens).map(|tokens| (text, tokens)));
        read.map_err(|e| Error::new(Code::CALIBRATION_INPUT, format!("{} ({})", e.message(), e.code())).at(&path))
    };
    Ok(ReportProfile::of(&paths.map(read).collect::<Result<Vec<_>>>()?))
}
