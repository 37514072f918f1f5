//! The bundle's tokenizer: a `tokenizer.json`, copied or converted.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::sources::Loaded;
use crate::bundle::{FileRecord, TokenizerRecord};
use crate::error::{Code, Error, Result};
use crate::tensor::hex;
use crate::text::Tokenizer;

/// The file's name in a bundle.
const FILE: &str = "tokenizer.json";

/// Writes the tokenizer into `folder` and lists it in `files`.
pub(super) fn install(loaded: &Loaded, folder: &Path, files: &mut Vec<FileRecord>) -> Result<TokenizerRecord> {
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
    Ok(TokenizerRecord { file: FILE.into(), bos: loaded.bos, max_tokens: loaded.config.text.max_tokens })
}
