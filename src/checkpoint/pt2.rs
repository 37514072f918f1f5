//! `torch.export.save` archives (`.pt2`): the weights in them, not the program.
//!
//! Since PyTorch 2.8: a zip of stored records with `NAME/archive_format` = `pt2`; `NAME/data/weights/` holds raw
//! storages (`weight_0`, …) and `MODEL_weights_config.json`, which gives each parameter's and buffer's name, storage,
//! dtype, sizes and strides. Files of older versions hold a pickled state dict in a record of their own and are
//! refused.
//!
//! Flows in: the mapped file and its records. Flows out: parameters and persistent buffers under their names.
//!
//! # Errors
//! `checkpoint.format` for another layout; `checkpoint.corrupt` when the config contradicts the records.
//!
//! # Safety
//! No `unsafe`. The program (`models/*.json`) and the pickled sample inputs are not read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::mapping::Mapping;
use super::strided::View;
use super::zip_records::{Records, check_byte_order};
use super::{Contents, Format, Skipped};
use crate::error::{Code, Error, Result};
use crate::tensor::DType;

const CONFIG: &str = "_weights_config.json";
/// The record that archives of before 2.8 have.
const OLD: &str = "serialized_exported_program.json";
/// `torch._export.serde.schema.Layout.Strided`.
const STRIDED: u8 = 7;

#[derive(serde::Deserialize)]
struct Config {
    config: BTreeMap<String, Weight>,
}

#[derive(serde::Deserialize)]
struct Weight {
    path_name: String,
    #[serde(default)]
    use_pickle: bool,
    tensor_meta: Meta,
}

#[derive(serde::Deserialize)]
struct Meta {
    dtype: u8,
    sizes: Vec<Size>,
    strides: Vec<Size>,
    storage_offset: Size,
    layout: u8,
}

/// A size; symbolic ones (`as_expr`) do not occur in weights.
#[derive(serde::Deserialize)]
struct Size {
    as_int: usize,
}

/// Whether the records are those of an export archive.
pub(super) fn is_archive(records: &Records) -> bool {
    records.keys().any(|name| name.ends_with("/archive_format") || name.ends_with(CONFIG) || name == OLD)
}

/// Reads the weights of an export archive.
pub(super) fn read(map: &Arc<Mapping>, records: &Records) -> Result<Contents> {
    let mut configs = records.iter().filter(|(name, _)| name.contains("data/weights/") && name.ends_with(CONFIG));
    let (config, json) = match (configs.next(), configs.next()) {
        (Some(only), None) => only,
        (Some(_), Some(_)) => return Err(format("holds several models")),
        (None, _) => {
            return Err(format("is a torch.export archive without weights as PyTorch 2.8 and later write them"));
        }
    };
    let (weights, _) = config.rsplit_once('/').unwrap_or(("", config));
    check_byte_order(map, records, weights.strip_suffix("/data/weights").unwrap_or_default())?;
    let parsed: Config = serde_json::from_slice(&map.bytes()[json.clone()])
        .map_err(|e| corrupt(format!("its {CONFIG} is damaged: {e}")).caused_by(e))?;
    let mut contents = Contents::new(Format::TorchExport);
    for (name, weight) in parsed.config {
        let storage = records.get(&format!("{weights}/{}", weight.path_name)).cloned();
        match dtype(weight.tensor_meta.dtype) {
            Some(dtype) if !weight.use_pickle && weight.tensor_meta.layout == STRIDED => {
                let tensor = tensor(map, storage, dtype, &weight.tensor_meta);
                let tensor = tensor.map_err(|e| Error::new(e.code(), format!("tensor `{name}`: {}", e.message())))?;
                contents.tensors.insert(name, tensor);
            }
            _ => contents.skipped.push(Skipped { name, why: "a tensor of another type or layout".into() }),
        }
    }
    if contents.tensors.is_empty() {
        return Err(format("is a torch.export archive without weights"));
    }
    Ok(contents)
}

fn tensor(
    map: &Arc<Mapping>,
    storage: Option<Range<usize>>,
    dtype: DType,
    meta: &Meta,
) -> Result<crate::tensor::LazyTensor> {
    let storage = storage.ok_or_else(|| corrupt("its storage is missing".into()))?;
    let sizes = |sizes: &[Size]| sizes.iter().map(|s| s.as_int).collect();
    let (shape, strides) = (sizes(&meta.sizes), sizes(&meta.strides));
    View { dtype, offset: meta.storage_offset.as_int, shape, strides }.over(map, storage)
}

/// `torch._export.serde.schema.ScalarType`.
fn dtype(code: u8) -> Option<DType> {
    Some(match code {
        1 => DType::U8,
        2 => DType::I8,
        3 => DType::I16,
        4 => DType::I32,
        5 => DType::I64,
        6 => DType::F16,
        7 => DType::F32,
        8 => DType::F64,
        12 => DType::Bool,
        13 => DType::BF16,
        28 => DType::U16,
        34 => DType::U32,
        35 => DType::U64,
        _ => return None,
    })
}

fn format(what: &str) -> Error {
    let message = format!("{what}; save the state dict instead: torch.save(torch.export.load(…).state_dict, …)");
    Error::new(Code::CHECKPOINT_FORMAT, message)
}

fn corrupt(message: String) -> Error {
    Error::new(Code::CHECKPOINT_CORRUPT, message)
}
