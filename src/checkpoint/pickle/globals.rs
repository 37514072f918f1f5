//! The allow-list: every (module, name) pair that a pickle may mention, and what it means to us.
//!
//! A pair that is not in the table is refused where it is mentioned. Nothing in the table can do anything: each entry
//! is evaluated by [`super::build`] to plain values.

use super::{Dialect, Element, Foreign, Global, foreign, inert};
use crate::error::{Code, Error, Result};
use crate::tensor::DType;

/// Looks a global up among those of `dialect`, then among all others.
///
/// # Errors
/// `checkpoint.unsafe-pickle`, naming it.
pub(super) fn find_in(dialect: Dialect, module: &str, name: &str) -> Result<Global> {
    let own = match dialect {
        Dialect::StateDict => None,
        Dialect::Distributed => distributed(module, name),
        Dialect::Zero => zero(module, name),
    };
    own.map_or_else(|| find(module, name), Ok)
}

/// What the `.metadata` of torch.distributed.checkpoint names; before PyTorch 2.3 some of it was in `_shard`.
fn distributed(module: &str, name: &str) -> Option<Global> {
    match (module, name) {
        (
            "torch.distributed.checkpoint.metadata",
            "Metadata"
            | "TensorStorageMetadata"
            | "BytesStorageMetadata"
            | "ChunkStorageMetadata"
            | "MetadataIndex"
            | "TensorProperties"
            | "StorageMeta",
        )
        | ("torch.distributed.checkpoint.filesystem", "_StorageInfo")
        | ("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties") => Some(Global::Record),
        ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING")
        | ("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING")
        | ("torch.serialization", "_get_layout") => Some(Global::Inert),
        _ => None,
    }
}

/// What DeepSpeed's optimizer states name: only the stage matters.
fn zero(module: &str, name: &str) -> Option<Global> {
    match (module, name) {
        ("deepspeed.runtime.zero.config", "ZeroStageEnum") => Some(Global::Value),
        ("deepspeed.runtime.fp16.loss_scaler", "LossScaler" | "DynamicLossScaler")
        | ("deepspeed.utils.tensor_fragment", "fragment_address") => Some(Global::Inert),
        _ => None,
    }
}

/// Looks a global up.
///
/// # Errors
/// `checkpoint.unsafe-pickle`, naming it.
pub(super) fn find(module: &str, name: &str) -> Result<Global> {
    let global = match (module, name) {
        ("torch._utils", "_rebuild_tensor") => Some(Global::RebuildTensor(1)),
        ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensor(2)),
        ("torch._utils", "_rebuild_tensor_v3") => Some(Global::RebuildTensor(3)),
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Some(Global::RebuildParameter),
        ("torch._tensor", "_rebuild_from_type_v2") => Some(Global::RebuildFromType),
        ("collections", "OrderedDict" | "defaultdict" | "Counter") => Some(Global::Dict),
        ("builtins" | "__builtin__", "dict") => Some(Global::Dict),
        ("builtins" | "__builtin__", "set" | "frozenset" | "list" | "tuple") => Some(Global::Sequence),
        ("torch", "Size") => Some(Global::Sequence),
        ("_codecs", "encode") | ("builtins" | "__builtin__", "bytearray" | "bytes") => Some(Global::Scalar("bytes")),
        ("torch._utils", "_rebuild_meta_tensor_no_storage") => Some(Global::Foreign(Foreign::Meta)),
        ("torch._utils", "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor") => {
            Some(Global::Foreign(Foreign::Sparse))
        }
        ("torch._utils", "_rebuild_qtensor") => Some(Global::Foreign(Foreign::Quantized)),
        ("torch._utils", "_rebuild_nested_tensor") => Some(Global::Foreign(Foreign::Nested)),
        ("torch._utils", "_rebuild_device_tensor_from_numpy" | "_rebuild_xla_tensor") => {
            Some(Global::Foreign(Foreign::Device))
        }
        ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor") => Some(Global::DeviceTensor),
        ("torch._utils", "_rebuild_wrapper_subclass") => Some(Global::Wrapper),
        ("torch" | "torch.storage" | "torch.cuda", _) => element(name).map(Global::Element),
        _ => None,
    };
    if let Some(global) = global.or_else(|| inert::find(module, name)) {
        return Ok(global);
    }
    Err(foreign::class_of_tensors(module, name).unwrap_or_else(|| refused(module, name)))
}

/// Top-level modules of Python itself, of which no checkpoint names a class but those on the list.
const PYTHON: &[&str] = &[
    "",
    "__builtin__",
    "_pickle",
    "asyncio",
    "builtins",
    "cProfile",
    "code",
    "codeop",
    "commands",
    "ctypes",
    "distutils",
    "ensurepip",
    "ftplib",
    "http",
    "imaplib",
    "importlib",
    "io",
    "lib2to3",
    "logging",
    "multiprocessing",
    "nt",
    "os",
    "pdb",
    "pickle",
    "pip",
    "posix",
    "pty",
    "pydoc",
    "runpy",
    "setuptools",
    "shutil",
    "smtplib",
    "socket",
    "socketserver",
    "subprocess",
    "sys",
    "tarfile",
    "tempfile",
    "threading",
    "timeit",
    "trace",
    "types",
    "unittest",
    "urllib",
    "webbrowser",
    "xmlrpc",
    "zipfile",
    "zipimport",
];

/// Whether a class that is not on the list may be a key or a value of a dict, where it is a name and never called.
///
/// Lightning 1 kept the state of callbacks under their classes, whatever they are called, and hyper-parameters may hold
/// a class (a loss, an optimizer, the type of a structured configuration). As data a name is harmless, and what calls
/// it, or puts it anywhere else, is refused. To a reader of the file a function among the data would look like an
/// attack: names must be those of classes (capitals first, in every part) and not of Python's own modules.
pub(super) fn may_be_named(module: &str, name: &str) -> bool {
    let class = |part: &str| part.trim_start_matches('_').starts_with(|c: char| c.is_ascii_uppercase());
    let plain = |text: &str| text.len() <= 200 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._".contains(&b));
    let top = module.split('.').next().unwrap_or_default();
    plain(module) && plain(name) && name.split('.').all(class) && !PYTHON.contains(&top)
}

/// The error for a thing that is not on the list. A pickle chooses the text: it is cut short.
pub(super) fn refused(module: &str, name: &str) -> Error {
    let way_out = if module == "torch.optim" || module.starts_with("torch.optim.") {
        "An optimizer was pickled whole; save its state instead: torch.save({\"state_dict\": model.state_dict(), \
         \"optimizer\": optimizer.state_dict()}, …)"
    } else {
        "If you trust the file, save its state dict alone: torch.save(model.state_dict(), …)"
    };
    refused_with(module, name, way_out)
}

/// The same for the class of a tensor that is made of others.
pub(super) fn refused_subclass(module: &str, name: &str) -> Error {
    let way_out = "Its tensors are of a subclass, which only its own code can read: save plain tensors, such as \
                   {k: v.detach().cpu().dequantize() or v.full_tensor() …}, as the library of that class offers";
    refused_with(module, name, way_out)
}

/// The same for a number in `copyreg`'s registry, which could stand for anything.
pub(super) fn refused_code(code: i64) -> Error {
    let message = format!(
        "its pickle asks for `extension code {code}`, which is not on the allow-list; nothing was run. If you trust the \
         file, save its state dict alone: torch.save(model.state_dict(), …)"
    );
    Error::new(Code::CHECKPOINT_UNSAFE_PICKLE, message)
}

fn refused_with(module: &str, name: &str, way_out: &str) -> Error {
    let shown: String = format!("{module}.{name}").chars().take(120).collect();
    let message = format!("its pickle asks for `{shown}`, which is not on the allow-list; nothing was run. {way_out}");
    Error::new(Code::CHECKPOINT_UNSAFE_PICKLE, message)
}

/// A storage class (`FloatStorage`) or dtype (`float32`); `None` inside for the untyped storage.
fn element(name: &str) -> Option<Option<Element>> {
    if matches!(name, "UntypedStorage" | "_UntypedStorage") {
        return Some(None);
    }
    let row = ELEMENTS.iter().find(|(class, dtypes, _)| !name.is_empty() && (*class == name || dtypes.contains(&name)));
    row.map(|&(_, _, element)| Some(element))
}

const ELEMENTS: &[(&str, &[&str], Element)] = &[
    ("DoubleStorage", &["float64", "double"], Element::Known(DType::F64)),
    ("FloatStorage", &["float32", "float"], Element::Known(DType::F32)),
    ("HalfStorage", &["float16", "half"], Element::Known(DType::F16)),
    ("BFloat16Storage", &["bfloat16"], Element::Known(DType::BF16)),
    ("LongStorage", &["int64", "long"], Element::Known(DType::I64)),
    ("IntStorage", &["int32", "int"], Element::Known(DType::I32)),
    ("ShortStorage", &["int16", "short"], Element::Known(DType::I16)),
    ("CharStorage", &["int8"], Element::Known(DType::I8)),
    ("ByteStorage", &["uint8"], Element::Known(DType::U8)),
    ("BoolStorage", &["bool"], Element::Known(DType::Bool)),
    ("", &["uint16"], Element::Known(DType::U16)),
    ("", &["uint32"], Element::Known(DType::U32)),
    ("", &["uint64"], Element::Known(DType::U64)),
    ("ComplexFloatStorage", &["complex64"], Element::Other("complex64", 8)),
    ("ComplexDoubleStorage", &["complex128"], Element::Other("complex128", 16)),
    ("QInt8Storage", &["qint8"], Element::Other("qint8", 1)),
    ("QUInt8Storage", &["quint8"], Element::Other("quint8", 1)),
    ("QInt32Storage", &["qint32"], Element::Other("qint32", 4)),
    ("", &["complex32"], Element::Other("complex32", 4)),
    ("", &["float8_e4m3fn"], Element::Known(DType::F8E4M3)),
    ("", &["float8_e5m2"], Element::Known(DType::F8E5M2)),
    ("", &["float8_e4m3fnuz"], Element::Other("float8_e4m3fnuz", 1)),
    ("", &["float8_e5m2fnuz"], Element::Other("float8_e5m2fnuz", 1)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_may_be_named_and_functions_and_pythons_own_may_not() {
        for (module, name, may) in [
            ("pytorch_lightning.callbacks.early_stopping", "EarlyStopping", true),
            ("__main__", "_MyCallback", true),
            ("lab.train", "Outer.Inner", true),
            ("lab.train", "Outer.run", false),
            ("lab.train", "Outer.__globals__", false),
            ("lab.train", "run", false),
            ("lab.train", "", false),
            ("subprocess", "Popen", false),
            ("os", "PathLike", false),
            ("", "Popen", false),
            ("lab\ntrain", "Run", false),
            ("posix.x", "System", false),
        ] {
            assert_eq!(may_be_named(module, name), may, "{module} {name}");
        }
    }

    #[test]
    fn known_names_have_a_meaning_and_no_other_has() {
        assert_eq!(find("torch", "FloatStorage").unwrap(), Global::Element(Some(Element::Known(DType::F32))));
        assert_eq!(find("torch.storage", "UntypedStorage").unwrap(), Global::Element(None));
        for (module, name) in [("posix", "system"), ("torch", "load"), ("torch", ""), ("builtins", "eval"), ("", "")] {
            let error = find(module, name).unwrap_err();
            assert_eq!(error.code(), Code::CHECKPOINT_UNSAFE_PICKLE);
            assert!(error.message().contains(&format!("`{module}.{name}`")), "{error}");
        }
    }
}
