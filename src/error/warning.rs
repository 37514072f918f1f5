//! Warnings: conditions that a user should know of and that do not stop the work.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A stable, short name of a class of warnings, such as `fov_cut`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WarningCode(&'static str);

impl WarningCode {
    /// The name, as in JSON and on stderr.
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for WarningCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for WarningCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Serialize for WarningCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

impl<'de> Deserialize<'de> for WarningCode {
    /// A name that this version does not know, in a file written by another version, is an error.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let known = Self::ALL.iter().map(|(code, _)| *code).find(|code| code.0 == name);
        known.ok_or_else(|| serde::de::Error::custom(format!("unknown warning code `{name}`")))
    }
}

macro_rules! warning_codes {
    ($($name:ident = $text:literal, $meaning:literal;)*) => {
        impl WarningCode {
            $(#[doc = $meaning] pub const $name: WarningCode = WarningCode($text);)*
            /// Every code with its meaning, in the order of `docs/errors.md`.
            pub const ALL: &'static [(WarningCode, &'static str)] = &[$((WarningCode::$name, $meaning)),*];
        }
    };
}

warning_codes! {
    NO_ORIENTATION = "no_orientation", "the header gives no orientation: the file's axes are read as left, anterior, superior (as nibabel does; an MGH file's as left, inferior, anterior, 1 mm, as FreeSurfer does)";
    XFORM_CODE = "xform_code", "a transform's code is not one that NIfTI defines; the transform is used";
    QUATERNION = "quaternion", "the qform's quaternion is longer than 1 by more than rounding; it is normalised";
    BITPIX = "bitpix", "the header's bits per voxel contradict the voxel type; the type is used";
    EXTENSION = "extension", "a header extension is malformed; it is skipped";
    TRAILING_DATA = "trailing_data", "bytes follow the voxels; they are ignored";
    NONFINITE = "nonfinite", "voxels that are NaN or infinite were set to 0; the message counts them";
    FOV_CUT = "fov_cut", "part of the scan lies outside the model's field of view";
    CALIBRATION_NONE = "calibration_none", "there are no calibration inputs: static quantization is off and accuracy is not checked";
    CALIBRATION_FEW = "calibration_few", "there are few calibration inputs; the message counts them";
    WEIGHTS_FLUSHED = "weights_flushed", "non-zero weights underflow to 0 in fp16; the message counts them";
    PART_PRECISION = "part_precision", "the new adapter or heads have another precision than the bundle's; the message says which";
    SPLIT_MADE = "split_made", "the cohort has no column `split`: cases were assigned to training and validation by their group";
    SUBJECT_ALIKE = "subject_alike", "the list spells people in several ways: these were taken for one person, whose rows stay together";
    SUBJECT_UNKNOWN = "subject_unknown", "nothing says whose some scans are, so that each counts as a person of its own; the message counts them";
    VALIDATION_FEW = "validation_few", "a temperature is not fitted, for there are too few validation rows; the message counts them";
    TEMPERATURE_LEFT = "temperature_left", "a fitted temperature is not used, for it is not surely better on held-out rows; the old one stays";
    MEMORY_EXCEEDED = "memory_exceeded", "the process took more memory than `--max-memory` allows; the message has both numbers";
    RUNTIME_UNPINNED = "runtime_unpinned", "the ONNX Runtime library is not a published build of the pinned version; the message names it";
    REPORT_LANGUAGE = "report_language", "the report is in another language than the model's calibration reports; the message has the share that says so";
    REPORT_UNKNOWN_TOKENS = "report_unknown_tokens", "much of the report is characters that the tokenizer does not know; the message has the share";
    REPORT_TRUNCATED = "report_truncated", "the report has more tokens than the model reads; the message counts those that were cut";
}

/// A condition that the user should know of and that does not stop the work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// The class of the warning.
    pub code: WarningCode,
    /// The message for a person, one line.
    pub message: String,
}

impl Warning {
    /// A warning of class `code`.
    pub fn new(code: WarningCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The same warning, naming the file that it is about.
    #[must_use]
    pub fn at(&self, path: &Path) -> Self {
        Self { code: self.code, message: format!("{}: {}", path.display(), self.message) }
    }
}
