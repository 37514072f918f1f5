//! Meta's own LLaMA layout: `params.json` and `consolidated.NN.pth`, tensor-parallel slices of the same tensors.
//!
//! Flows in: the folder. Flows out: the tensors under Hugging Face's names and in its row order, and [`MetaParams`].
//!
//! - `wq`, `wk`, `wv`, `w1`, `w3` and `output` are concatenated along axis 0, `wo`, `w2` and (LLaMA 1 and 2)
//!   `tok_embeddings` along axis 1; norms are copies, which must agree.
//! - Rotary pairs are rows `2i, 2i+1` of a head in Meta's `wq` and `wk` and rows `i, i + head_dim/2` in Hugging Face's:
//!   the rows are reordered here.
//!
//! # Errors
//! `checkpoint.corrupt` when slices disagree or do not fit `params.json`; `checkpoint.not_found` for a gap in their
//! numbers; those of the single files.
//!
//! # Safety
//! No `unsafe`. Shapes are compared before tensors are joined.

use std::path::Path;

use super::mapping::Mapping;
use super::meta_params::MetaParams;
use super::{Contents, Format, Opened, Skipped, SourceFile, detect, lora};
use crate::error::{Code, Error, Result};
use crate::tensor::{LazyTensor, show};

/// How the slices of a tensor make the whole.
#[derive(Clone, Copy, PartialEq)]
enum Join {
    Rows,
    Columns,
    Copies,
    /// Along axis 1 when that makes `dim` columns, else (LLaMA 3) along axis 0.
    Embedding,
    /// Rows, then reordered: query heads or (`true`) KV heads.
    Rotary(bool),
}

const NAMES: &[(&str, &str, Join)] = &[
    ("tok_embeddings.weight", "model.embed_tokens.weight", Join::Embedding),
    ("norm.weight", "model.norm.weight", Join::Copies),
    ("output.weight", "lm_head.weight", Join::Rows),
];
const LAYER_NAMES: &[(&str, &str, Join)] = &[
    ("attention.wq.weight", "self_attn.q_proj.weight", Join::Rotary(false)),
    ("attention.wk.weight", "self_attn.k_proj.weight", Join::Rotary(true)),
    ("attention.wv.weight", "self_attn.v_proj.weight", Join::Rows),
    ("attention.wo.weight", "self_attn.o_proj.weight", Join::Columns),
    ("feed_forward.w1.weight", "mlp.gate_proj.weight", Join::Rows),
    ("feed_forward.w2.weight", "mlp.down_proj.weight", Join::Columns),
    ("feed_forward.w3.weight", "mlp.up_proj.weight", Join::Rows),
    ("attention_norm.weight", "input_layernorm.weight", Join::Copies),
    ("ffn_norm.weight", "post_attention_layernorm.weight", Join::Copies),
];

/// Reads the slices among `names` in `folder`.
pub(super) fn read(folder: &Path, names: &[String]) -> Result<Opened> {
    let at = folder.join("params.json");
    let json = Mapping::open(&at)?;
    let params: MetaParams = serde_json::from_slice(json.bytes())
        .map_err(|e| Error::new(Code::CHECKPOINT_CORRUPT, format!("is not Meta's params.json: {e}")).at(&at))?;
    params.check().map_err(|e| e.at(&at))?;
    let extras: lora::meta::Extras = serde_json::from_slice(json.bytes())
        .map_err(|e| Error::new(Code::CHECKPOINT_LORA, format!("its lora_args are no rank and scale: {e}")).at(&at))?;
    let mut files = vec![SourceFile::of(&json)];
    let mut slices = Vec::new();
    for (i, name) in slice_names(names).map_err(|e| e.at(folder))?.iter().enumerate() {
        let at = folder.join(name);
        let map = Mapping::open(&at).map_err(|e| e.at(&at))?;
        let slice = detect::read(&map).map_err(|e| e.at(&at))?;
        files.push(SourceFile::of(&map));
        slices.push(slice);
        let same = slices[i].tensors.keys().eq(slices[0].tensors.keys());
        if !same {
            return Err(corrupt("holds other tensors than consolidated.00.pth".into()).at(&at));
        }
    }
    let mut contents = Contents::new(Format::Meta);
    let mut all: Vec<_> = slices.iter_mut().map(|slice| &mut slice.tensors).collect();
    contents.warnings.extend(lora::meta::merge(&mut all, &extras).map_err(|e| e.at(folder))?);
    let first: Vec<String> = slices.first().map(|s| s.tensors.keys().cloned().collect()).unwrap_or_default();
    for name in first {
        let parts: Vec<LazyTensor> = slices.iter().filter_map(|s| s.tensors.get(&name).cloned()).collect();
        let Some((hf, join)) = translate(&name) else {
            contents.skipped.push(Skipped { name, why: "not a weight of the model".into() });
            continue;
        };
        let whole = joined(&parts, join, &params)
            .map_err(|e| Error::new(e.code(), format!("tensor `{name}`: {}", e.message())).at(folder))?;
        contents.tensors.insert(hf, whole);
    }
    contents.skipped.extend(slices.iter_mut().flat_map(|s| s.skipped.drain(..)));
    Ok(Opened { contents, files, params: Some(params) })
}

/// `consolidated.00.pth`, `.01.pth`, … without a gap.
fn slice_names(names: &[String]) -> Result<Vec<String>> {
    let number = |n: &String| n.strip_prefix("consolidated.")?.strip_suffix(".pth")?.parse::<usize>().ok();
    let mut found: Vec<(usize, &String)> = names.iter().filter_map(|n| Some((number(n)?, n))).collect();
    found.sort_unstable();
    match found.iter().enumerate().find(|(i, (number, _))| i != number) {
        Some((gap, _)) => {
            let message = format!("consolidated.{gap:02}.pth is missing, or another one is there twice");
            Err(Error::new(Code::CHECKPOINT_NOT_FOUND, message))
        }
        None => Ok(found.into_iter().map(|(_, name)| name.clone()).collect()),
    }
}

/// Hugging Face's name and the way to join, or `None` for what is no weight (`rope.freqs`).
fn translate(name: &str) -> Option<(String, Join)> {
    if let Some((_, hf, join)) = NAMES.iter().find(|(meta, _, _)| *meta == name) {
        return Some(((*hf).to_owned(), *join));
    }
    let (layer, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (_, hf, join) = LAYER_NAMES.iter().find(|(meta, _, _)| *meta == rest)?;
    Some((format!("model.layers.{layer}.{hf}"), *join))
}

fn joined(parts: &[LazyTensor], join: Join, params: &MetaParams) -> Result<LazyTensor> {
    let first = &parts[0];
    if parts.iter().any(|p| p.shape() != first.shape() || p.dtype() != first.dtype()) {
        return Err(corrupt(format!("its slices differ in type or shape: {parts:?}")));
    }
    if join == Join::Copies {
        return if copies_agree(parts)? { Ok(first.clone()) } else { Err(corrupt("its copies differ".into())) };
    }
    let &[rows, cols] = first.shape() else {
        return Err(corrupt(format!("found shape {}, expected a matrix", show(first.shape()))));
    };
    let too_big = || corrupt("its slices add up to too much".into());
    let (all_rows, all_cols) =
        (rows.checked_mul(parts.len()).ok_or_else(too_big)?, cols.checked_mul(parts.len()).ok_or_else(too_big)?);
    match join {
        Join::Columns => Ok(LazyTensor::concat_columns(parts)),
        Join::Embedding if all_cols == params.dim => Ok(LazyTensor::concat_columns(parts)),
        Join::Embedding if cols != params.dim => {
            let (n, dim) = (parts.len(), params.dim);
            Err(corrupt(format!("{n} slices of {cols} columns do not make {dim}: is a slice missing?")))
        }
        Join::Rotary(kv) => {
            let heads = if kv { params.kv_heads() } else { params.n_heads };
            let head = params.dim / params.n_heads;
            if heads.checked_mul(head) != Some(all_rows) {
                return Err(corrupt(format!("found {all_rows} rows, expected {heads} heads of {head}")));
            }
            Ok(LazyTensor::concat(parts).rows(hf_rows(all_rows, head)))
        }
        _ => Ok(LazyTensor::concat(parts)),
    }
}

/// For each row in Hugging Face's order, where it is in Meta's; `rows` is a multiple of the even `head`.
fn hf_rows(rows: usize, head: usize) -> impl Iterator<Item = usize> {
    (0..rows).map(move |row| {
        let (start, within) = (row / head * head, row % head);
        let (half, pair) = (within / (head / 2), within % (head / 2));
        start + 2 * pair + half
    })
}

fn copies_agree(parts: &[LazyTensor]) -> Result<bool> {
    let first = parts[0].bytes()?;
    for part in &parts[1..] {
        if part.bytes()? != first {
            return Ok(false);
        }
    }
    Ok(true)
}

fn corrupt(message: String) -> Error {
    Error::new(Code::CHECKPOINT_CORRUPT, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotary_pairs_move_apart() {
        assert_eq!(hf_rows(8, 4).collect::<Vec<_>>(), [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(hf_rows(6, 6).collect::<Vec<_>>(), [0, 2, 4, 1, 3, 5]);
    }

    #[test]
    fn slices_are_numbered_without_a_gap() {
        let names = |n: &[&str]| slice_names(&n.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(names(&["consolidated.01.pth", "consolidated.00.pth", "x"]).unwrap().len(), 2);
        assert_eq!(
            names(&["consolidated.00.pth", "consolidated.02.pth"]).unwrap_err().code(),
            Code::CHECKPOINT_NOT_FOUND
        );
    }
}
