//! Warnings: conditions that a user should know of and that do not stop the work.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Code, Error, Result};

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
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

impl<'de> Deserialize<'de> for WarningCode {
    /// A name that this version does not know, in a file written by another version, is an error.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
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
    CHECKPOINT_CHOICE = "checkpoint_choice", "there are several sets of weights; the message says which one was taken";
    CHECKPOINT_UNKNOWN = "checkpoint_unknown", "the checkpoint has tensors of modules that the model does not have; the message names them";
    CHECKPOINT_MERGED = "checkpoint_merged", "LoRA weights were merged into the model; the message counts them";
    CHECKPOINT_DEQUANTIZED = "checkpoint_dequantized", "quantized weights were made floats; the message says of which kind";
    CONFIG_CHOICE = "config_choice", "the language model's configuration leaves open how it attends; the message says what was taken";
    TOKENIZER_TEMPLATE = "tokenizer_template", "the tokenizer's own template puts other special tokens around a text than the model gets; the message names them";
    TOKENIZER_BOS = "tokenizer_bos", "the configuration's BOS token is not the tokenizer's; the message has both";
    TOKENIZER_ADDED = "tokenizer_added", "tokens were added to the tokenizer in files next to it; the message names them and says how they are read";
    TOKENIZER_VOCABULARY = "tokenizer_vocabulary", "the tokenizer has far fewer pieces than the embedding table has rows";
    CALIBRATION_UNUSED = "calibration_unused", "files of the calibration folder are not used; the message names them and says why";
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
    XFORM_CONFLICT = "xform_conflict", "sform and qform disagree in side, axes, rotation (> 5°) or voxel size (> 2 %); the sform is used";
    OBLIQUE = "oblique", "the scan's axes are turned more than 20° from the world's; the turn is kept";
    SHEARED = "sheared", "the scan's axes are more than 1° from being perpendicular; the shear is kept";
    FOV_SMALL = "fov_small", "the scan measures less than 100 mm along an axis: no whole head";
    RESOLUTION = "resolution", "voxels are much larger than the model's (> 1.5 times, or > 3 mm on a finer grid): detail is interpolated";
    INTENT = "intent", "the header's intent code says that the values are labels, statistics or vectors";
    INTENSITY_RANGE = "intensity_range", "99.8 % of the voxels lie within a tenth of the range: a few outliers squeeze the rest";
    NEGATIVE = "negative", "values far below 0: Hounsfield units, z-scores or a ratio image, where 0 is not air";
    WRAPPED = "wrapped", "16-bit integers overflowed: bright tissue became negative";
    BACKGROUND = "background", "the border of the scan is bright: its air is not 0, but the padding around it is";
    INVERTED = "inverted", "the border of the scan is brighter than its centre: inverted contrast";
    FEW_VALUES = "few_values", "the scan has few distinct values, or areas of one value: a mask or label image";
    NOISE = "noise", "neighbouring voxels are unrelated: there is no structure";
}

impl WarningCode {
    /// Codes that question whether a scan or report is fit for the model. `strict_quality` of the options refuses an
    /// input that carries one; the error then has the warning's own code.
    pub const QUALITY: &'static [WarningCode] = &[
        Self::NO_ORIENTATION,
        Self::FOV_CUT,
        Self::XFORM_CONFLICT,
        Self::OBLIQUE,
        Self::SHEARED,
        Self::FOV_SMALL,
        Self::RESOLUTION,
        Self::INTENT,
        Self::INTENSITY_RANGE,
        Self::NEGATIVE,
        Self::WRAPPED,
        Self::BACKGROUND,
        Self::INVERTED,
        Self::FEW_VALUES,
        Self::NOISE,
        Self::REPORT_LANGUAGE,
        Self::REPORT_UNKNOWN_TOKENS,
    ];

    /// Whether the code is one of [`Self::QUALITY`].
    pub fn is_quality(self) -> bool {
        Self::QUALITY.contains(&self)
    }
}

impl From<WarningCode> for Code {
    /// The code of the error that a quality warning is under `strict_quality`: the same name.
    fn from(code: WarningCode) -> Self {
        Code(code.0)
    }
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

    /// Refuses an input that carries a warning of [`WarningCode::QUALITY`].
    ///
    /// # Errors
    /// The first such warning, with its code; the caller names the file.
    pub fn refuse_quality(warnings: &[Warning]) -> Result<()> {
        match warnings.iter().find(|warning| warning.code.is_quality()) {
            Some(Warning { code, message }) => Err(Error::new(
                (*code).into(),
                format!("{message}; refused by --strict-quality: mend the input, or run without the option"),
            )),
            None => Ok(()),
        }
    }

    /// The same warning, naming the file that it is about.
    #[must_use]
    pub fn at(&self, path: &Path) -> Self {
        Self { code: self.code, message: format!("{}: {}", path.display(), self.message) }
    }
}
