//! The crate's one error type: a stable dotted [`Code`], the place, what is wrong and what to do.
//!
//! Everything that can fail returns [`Result`]. A message is one line; it says what was found, what was expected and,
//! if something can be done, what to do. Programs match on [`Error::code`]: codes are stable between releases, messages
//! are not.
//!
//! ```
//! use brain_adapter::Code;
//! use brain_adapter::bundle::Bundle;
//!
//! let error = Bundle::open("no-such-folder".as_ref()).unwrap_err();
//! assert_eq!(error.code(), Code::BUNDLE_NOT_FOUND);
//! assert_eq!(error.path(), Some("no-such-folder".as_ref()));
//! ```

mod tally;
mod warning;

use std::fmt;
use std::path::{Path, PathBuf};

pub use tally::WarningTally;
pub use warning::{Warning, WarningCode};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A stable, dotted name of a class of errors, such as `nifti.truncated`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Code(&'static str);

impl Code {
    /// Whether an error can have the code of this name: one of [`Self::ALL`], or that of a quality warning which was
    /// refused ([`WarningCode::QUALITY`]).
    pub fn is_known(name: &str) -> bool {
        Self::ALL.iter().any(|(code, _)| code.0 == name) || WarningCode::QUALITY.iter().any(|c| c.as_str() == name)
    }

    /// The dotted name.
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

macro_rules! codes {
    ($($name:ident = $text:literal, $meaning:literal;)*) => {
        impl Code {
            $(#[doc = $meaning] pub const $name: Code = Code($text);)*
            /// Every code with its meaning, in the order of `docs/errors.md`.
            pub const ALL: &'static [(Code, &'static str)] = &[$((Code::$name, $meaning)),*];
        }
    };
}

codes! {
    INTERNAL = "internal", "a defect of this program, not of its input";
    USAGE = "usage", "the command line is wrong";
    INTERRUPTED = "interrupted", "a signal ended the program";
    IO = "io", "the operating system refused an operation on a file";
    MEMORY_LIMIT = "memory.limit", "the run needs more memory than is allowed or available";
    THREADS_UNAVAILABLE = "threads.unavailable", "the system refuses to start another thread";
    DISK_FULL = "disk.full", "not enough free space for what is to be written";
    OUTPUT_EXISTS = "output.exists", "the output exists and was not made by this tool";
    OUTPUT_IN_USE = "output.in_use", "another program writes there";
    CACHE_UNSAFE = "cache.unsafe", "the cache folder belongs to another user, or others can write to it";

    NIFTI_EMPTY = "nifti.empty", "the scan file holds no bytes";
    NIFTI_NOT_FOUND = "nifti.not_found", "there is no such scan file";
    NIFTI_NOT_A_FILE = "nifti.not_a_file", "the scan path is a folder, device or pipe";
    NIFTI_NOT_NIFTI = "nifti.not_nifti", "the file is of a format that is not read";
    NIFTI_TRUNCATED = "nifti.truncated", "the scan file ends too early";
    NIFTI_GZIP = "nifti.gzip", "the gzip or zstd container is damaged";
    NIFTI_DIMS = "nifti.dims", "the header's dimensions are not those of a 3-D volume";
    NIFTI_VOLUMES = "nifti.volumes", "the file holds several volumes and none (or a missing one) was chosen";
    NIFTI_TOO_LARGE = "nifti.too_large", "the header claims more voxels than are accepted";
    NIFTI_DATATYPE = "nifti.datatype", "the voxel type is not a real number type";
    NIFTI_VOX_OFFSET = "nifti.vox_offset", "the header's data offset is impossible";
    NIFTI_AFFINE = "nifti.affine", "the voxel-to-world transform is unusable";
    NIFTI_ORIENTATION = "nifti.orientation", "the orientation that was stated is not the file's own";
    NIFTI_SCALING = "nifti.scaling", "the header's intensity scaling gives unusable values";
    NIFTI_CONSTANT = "nifti.constant", "all voxels are equal: there is no image";
    NIFTI_PAIR = "nifti.pair", "the .img file of a .hdr/.img pair is missing";
    NIFTI_CHANGED = "nifti.changed", "the scan file changed while it was read";

    CONFIG_SYNTAX = "config.syntax", "a configuration file cannot be parsed or has an unknown field";
    CONFIG_VALUE = "config.value", "a configuration value is impossible";
    CONFIG_CONTRADICTION = "config.contradiction", "two sources of the same setting disagree";
    CONFIG_UNSUPPORTED = "config.unsupported", "the language model's configuration asks for what the graph does not compute";

    CHECKPOINT_NOT_FOUND = "checkpoint.not_found", "a checkpoint file or folder is missing";
    CHECKPOINT_FORMAT = "checkpoint.format", "the file is not a checkpoint format this tool reads";
    CHECKPOINT_TRUNCATED = "checkpoint.truncated", "a checkpoint file ends too early";
    CHECKPOINT_CORRUPT = "checkpoint.corrupt", "a checkpoint file contradicts itself";
    CHECKPOINT_CHANGED = "checkpoint.changed", "a checkpoint file was changed while it was read";
    CHECKPOINT_UNSAFE_PICKLE = "checkpoint.unsafe-pickle", "a pickle asks for code that is not on the allow-list";
    CHECKPOINT_TENSORS = "checkpoint.tensors", "tensors are missing, unexpected or of the wrong shape";
    CHECKPOINT_NONFINITE = "checkpoint.nonfinite", "a weight is NaN or infinite";
    CHECKPOINT_VALUE = "checkpoint.value", "a weight has an impossible value";
    CHECKPOINT_DTYPE = "checkpoint.dtype", "integers or booleans are where weights are wanted";
    CHECKPOINT_QUANTIZED = "checkpoint.quantized", "the weights are quantized in a way that is not read";
    CHECKPOINT_LORA = "checkpoint.lora", "LoRA weights that cannot be merged: their base or settings are missing, or the kind is another";

    TOKENIZER_MISSING = "tokenizer.missing", "no tokenizer lies next to the text model";
    TOKENIZER_INVALID = "tokenizer.invalid", "the tokenizer cannot be read or does not fit the text model";
    REPORT_NOT_FOUND = "report.not_found", "there is no such report";
    REPORT_FORMAT = "report.format", "the report is a document, archive, message or scan, not plain text";
    REPORT_ENCODING = "report.encoding", "the report is neither UTF-8 nor UTF-16, or holds NUL bytes";
    REPORT_EMPTY = "report.empty", "the report holds no text, or a placeholder for a missing one";
    REPORT_TOO_LARGE = "report.too_large", "the report file is too large to be a clinical report";

    GRAPH_INVALID = "graph.invalid", "a graph breaks a rule of the intermediate representation";
    GRAPH_UNKNOWN_OP = "graph.unknown_op", "a bundle's graph has an operator that is never written";
    ONNX_INVALID = "onnx.invalid", "an ONNX file cannot be read or written";

    BUNDLE_NOT_FOUND = "bundle.not_found", "there is no bundle in the folder";
    BUNDLE_MANIFEST = "bundle.manifest", "bundle.json is unreadable or of another format version";
    BUNDLE_CHECKSUM = "bundle.checksum", "a bundle file differs from what bundle.json recorded";
    BUNDLE_PATH = "bundle.path", "a bundle refers to a file outside its own folder";
    BUNDLE_NO_IMAGE_HEAD = "bundle.no_image_head", "no report was given and the bundle has no image-only classifier";
    BUNDLE_VERSION = "bundle.version", "the bundle has no such version";
    BUNDLE_BUSY = "bundle.busy", "another program is changing the bundle";
    BUNDLE_CHANGED = "bundle.changed", "a file of the bundle was changed while it was in use";
    BUNDLE_REPLACED = "bundle.replaced", "the bundle was replaced while it was in use";

    RUNTIME_MISSING = "runtime.missing", "the ONNX Runtime library cannot be found or loaded";
    RUNTIME_VERSION = "runtime.version", "the ONNX Runtime library has the wrong version";
    RUNTIME_MODEL = "runtime.model", "ONNX Runtime cannot load a graph";
    RUNTIME_RUN = "runtime.run", "ONNX Runtime failed while running a graph";
    DEVICE_UNAVAILABLE = "device.unavailable", "the device asked for cannot be used";
    DEVICE_PRECISION = "device.precision", "the bundle's number format was not made for the device";
    DEVICE_FALLBACK = "device.fallback", "the device does not compute all nodes, and fallback is not allowed";
    DEVICE_MEMORY = "device.memory", "the device has not enough free memory";

    VERIFY_MISMATCH = "verify.mismatch", "a stage differs from the recorded PyTorch output";
    VERIFY_INPUT = "verify.input", "the recorded tensors cannot be used";
    CALIBRATION_INPUT = "calibration.input", "a calibration input cannot be used";
    QUANTIZE_ERROR = "quantize.error", "a quantized model differs too much from float32";
    TRAINING_ARTIFACTS = "training.artifacts", "the folder holds no training artifacts, or damaged ones";
    TRAINING_DATA = "training.data", "the cohort cannot be trained on";
    TRAINING_DIVERGED = "training.diverged", "the loss, a gradient or a parameter is not a number";
    TRAINING_RESUME = "training.resume", "an interrupted training cannot be resumed";
    TEMPERATURE_FEW = "temperature.few", "there are too few validation rows to fit a temperature on";
    LIST_INVALID = "list.invalid", "the cohort list cannot be read";
    LIST_PARTIAL = "list.partial", "some rows of the list, or some of several scans, failed";
}

/// What went wrong, where, and why.
///
/// `Display` gives one line without the code: `scan.nii.gz: ends after 1,024 of 33,554,784 bytes`.
#[derive(Debug)]
pub struct Error {
    code: Code,
    path: Option<PathBuf>,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of class `code`; `message` is one line that says found, expected and what to do.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, path: None, message: message.into(), source: None }
    }

    /// A defect of this program: something that no input should cause. `message` says where it was noticed and what was
    /// expected there; the file and line of the caller are added.
    #[track_caller]
    pub fn internal(message: impl fmt::Display) -> Self {
        let place = std::panic::Location::caller();
        let (file, line) = (place.file(), place.line());
        let message =
            format!("internal error: {message} ({file}:{line}); this is a defect of the program: please report it");
        Self::new(Code::INTERNAL, message)
    }

    /// An [`Code::IO`] error of an operation on `path`; a full disk becomes [`Code::DISK_FULL`].
    pub fn io(path: impl Into<PathBuf>, doing: &str, source: std::io::Error) -> Self {
        let code = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Code::DISK_FULL,
            _ => Code::IO,
        };
        Self::new(code, format!("{doing}: {source}")).at(path).caused_by(source)
    }

    /// Names the file or folder. The innermost one wins: a path that is already set stays.
    #[must_use]
    pub fn at(mut self, path: impl Into<PathBuf>) -> Self {
        self.path.get_or_insert_with(|| path.into());
        self
    }

    /// Keeps the error that caused this one, as [`source`](std::error::Error::source).
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The stable class of the error.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The file or folder that the error is about.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The message without the path.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = match &self.path {
            Some(path) => format!("{}: {}", path.display(), self.message),
            None => self.message.clone(),
        };
        // One line, whatever a file name or a foreign message holds.
        f.write_str(&line.replace(|c: char| c.is_control(), " "))
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_well_formed() {
        let mut seen = std::collections::BTreeSet::new();
        for (code, _) in Code::ALL {
            assert!(seen.insert(*code), "{code} twice");
            assert!(code.as_str().chars().all(|c| c.is_ascii_lowercase() || "._-0123456789".contains(c)), "{code}");
        }
    }

    #[test]
    fn warning_codes_are_distinct_and_survive_json() {
        let mut seen = std::collections::BTreeSet::new();
        for (code, _) in WarningCode::ALL {
            assert!(seen.insert(*code), "{code} twice");
            let warning = Warning::new(*code, "a");
            let json = serde_json::to_string(&warning).unwrap();
            assert_eq!(json, format!(r#"{{"code":"{code}","message":"a"}}"#));
            assert_eq!(serde_json::from_str::<Warning>(&json).unwrap(), warning);
        }
        assert!(serde_json::from_str::<Warning>(r#"{"code":"unheard_of","message":"a"}"#).is_err());
    }

    #[test]
    fn a_defect_names_the_line_that_noticed_it() {
        let e = Error::internal("vision: output missing");
        assert_eq!(e.code(), Code::INTERNAL);
        assert!(e.message().contains(file!()) && e.message().ends_with("please report it"), "{e}");
    }

    #[test]
    fn display_is_one_line_and_the_innermost_path_wins() {
        let e = Error::new(Code::IO, "cannot\nread").at("a").at("b");
        assert_eq!(e.to_string(), "a: cannot read");
    }
}
