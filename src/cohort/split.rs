//! The three splits of a cohort.

/// What a subject is used for.
///
/// ```
/// use brain_adapter::cohort::Split;
///
/// assert_eq!(Split::from_name("val"), Some(Split::Validation));
/// assert_eq!(Split::Test.name(), "test");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Split {
    /// Its gradients update the parameters.
    Train,
    /// Selects the best epoch, fits temperatures.
    Validation,
    /// Evaluated once, at the end.
    Test,
}

impl Split {
    /// All splits, in the order of the fractions of [`super::assign_splits`].
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// `train`, `validation` or `test`.
    pub fn name(self) -> &'static str {
        ["train", "validation", "test"][self as usize]
    }

    /// Reads a name, in upper or lower case; `val` is `validation`.
    pub fn from_name(name: &str) -> Option<Self> {
        let known = |split: &Self| name.eq_ignore_ascii_case(split.name());
        Self::ALL.into_iter().find(known).or(name.eq_ignore_ascii_case("val").then_some(Self::Validation))
    }
}
