//! Classes and functions of which training frameworks leave values next to the weights, by exact name.
//!
//! A row makes an inert value when it is called and is data when it is only named: nothing of the value is kept but its
//! kind. None of these is run, so that a row decides which files load, never what they can do; what could do harm in
//! Python (`getattr`, `eval`, anything that imports, opens or calls) is left out all the same, so that a file that asks
//! for it is refused by name.

use super::Foreign;
use super::Global;

/// What a row's values are.
#[derive(Clone, Copy)]
enum Kind {
    Object,
    Dict,
    Number,
    Array,
}

use Kind::{Array, Dict, Number, Object};

const ROWS: &[(&[&str], &[&str], Kind)] = &[
    // Metrics, class weights and random states of training loops. numpy 2 renamed the modules.
    (&["numpy.core.multiarray", "numpy._core.multiarray"], &["scalar"], Number),
    (&["numpy.core.multiarray", "numpy._core.multiarray"], &["_reconstruct"], Array),
    (&["numpy.core.numeric", "numpy._core.numeric"], &["_frombuffer"], Array),
    (&["numpy"], NUMPY, Object),
    (&["numpy.random._pickle"], &["__randomstate_ctor", "__generator_ctor", "__bit_generator_ctor"], Object),
    (&["numpy.random._mt19937"], &["MT19937"], Object),
    (&["numpy.random._pcg64"], &["PCG64"], Object),
    (&["numpy.random.bit_generator"], &["SeedSequence", "__pyx_unpickle_SeedSequence"], Object),
    // Python 3.13 has the classes of pathlib in a module of their own.
    (&["pathlib", "pathlib._local"], PATHS, Object),
    (&["argparse"], &["Namespace"], Object),
    (&["types"], &["SimpleNamespace"], Object),
    (&["datetime"], &["datetime", "date", "time", "timedelta", "timezone"], Object),
    (&["collections"], &["deque"], Object),
    (&["decimal"], &["Decimal"], Object),
    (&["fractions"], &["Fraction"], Object),
    (&["uuid"], &["UUID", "SafeUUID"], Object),
    (&["builtins", "__builtin__"], BUILTINS, Object),
    (&["typing"], &["Any", "Union", "Optional", "Dict", "List", "Tuple"], Object),
    // Lightning with Hydra keeps its hyper-parameters as OmegaConf's nodes.
    (&["omegaconf.dictconfig"], &["DictConfig"], Object),
    (&["omegaconf.listconfig"], &["ListConfig"], Object),
    (&["omegaconf.nodes"], NODES, Object),
    (&["omegaconf.base"], &["ContainerMetadata", "Metadata", "Node", "UnionNode"], Object),
    // Dicts with attributes, as configurations.
    (ATTRIBUTE_DICTS, &["AttributeDict"], Dict),
    (&["yacs.config", "fvcore.common.config"], &["CfgNode"], Dict),
    (&["easydict"], &["EasyDict"], Dict),
    (&["addict.addict", "addict"], &["Dict"], Dict),
    (&["torch"], &["device", "Tensor", "layout", "strided", "sparse_coo", "sparse_csr"], Object),
    (&["torch"], &["contiguous_format", "channels_last", "channels_last_3d", "preserve_format"], Object),
    (&["torch"], &["per_tensor_affine", "per_channel_affine", "per_channel_affine_float_qparams"], Object),
    (&["torch.serialization"], &["_get_layout"], Object),
    (&["torch.nn.parameter"], &["Parameter", "Buffer"], Object),
];

const ATTRIBUTE_DICTS: &[&str] = &[
    "pytorch_lightning.utilities.parsing",
    "lightning.pytorch.utilities.parsing",
    "lightning_fabric.utilities.data",
    "lightning.fabric.utilities.data",
];
const BUILTINS: &[&str] =
    &["int", "long", "float", "bool", "str", "unicode", "complex", "range", "xrange", "slice", "object", "Ellipsis"];
const NODES: &[&str] = &[
    "AnyNode",
    "ValueNode",
    "StringNode",
    "IntegerNode",
    "FloatNode",
    "BooleanNode",
    "BytesNode",
    "PathNode",
    "EnumNode",
    "InterpolationResultNode",
];
const NUMPY: &[&str] = &[
    "dtype",
    "ndarray",
    "bool",
    "bool_",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "str_",
    "bytes_",
    "datetime64",
    "timedelta64",
];
const PATHS: &[&str] = &["Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"];

/// The row's meaning.
pub(super) fn find(module: &str, name: &str) -> Option<Global> {
    let row = ROWS.iter().find(|(modules, names, _)| modules.contains(&module) && names.contains(&name));
    row.map(|(_, _, kind)| match kind {
        Object => Global::Inert,
        Dict => Global::Dict,
        Number => Global::Scalar("a numpy scalar"),
        Array => Global::Foreign(Foreign::Array),
    })
}
