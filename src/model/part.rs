//! The model's four parts, each of which is one graph of a bundle.
//!
//! Strings stand for parts only where data cross the program's border: file names, JSON, messages.

use std::fmt;
use std::ops::{Index, IndexMut};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A part of the model, in the order in which parts run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The trainable CNN between scan and vision transformer.
    Adapter,
    /// The frozen 3-D vision transformer (M3D).
    Vision,
    /// The frozen language model (LLaMA 2).
    Text,
    /// The trained projections and the classifiers.
    Heads,
}

impl Part {
    /// Every part, in the order in which they run.
    pub const ALL: [Self; 4] = [Self::Adapter, Self::Vision, Self::Text, Self::Heads];

    /// The frozen transformers, which hold nearly all weights.
    pub const TRUNKS: [Self; 2] = [Self::Vision, Self::Text];

    /// The name in files, JSON and messages: `adapter`, `vision`, `text` or `heads`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Adapter => "adapter",
            Self::Vision => "vision",
            Self::Text => "text",
            Self::Heads => "heads",
        }
    }

    /// Whether its float graph contains operators of ONNX Runtime's own domain (`com.microsoft`), which TensorRT does not
    /// support: the vision transformer's fused attention.
    pub const fn has_contrib_operators(self) -> bool {
        matches!(self, Self::Vision)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Part {
    type Err = ();

    /// The part of that name; `Err` when there is none.
    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|part| part.as_str() == name).ok_or(())
    }
}

/// One value for each part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartMap<T>([T; 4]);

impl<T> PartMap<T> {
    /// What `value` gives for each part, asked in the order in which parts run.
    pub fn from_fn(mut value: impl FnMut(Part) -> T) -> Self {
        Self(Part::ALL.map(&mut value))
    }

    /// As [`Self::from_fn`], up to the first error.
    ///
    /// # Errors
    /// The first that `value` gives.
    pub fn try_from_fn<E>(value: impl FnMut(Part) -> Result<T, E>) -> Result<Self, E> {
        let values = Part::ALL.into_iter().map(value).collect::<Result<Vec<_>, E>>()?;
        let Ok(values) = <[T; 4]>::try_from(values) else { unreachable!("a value for each of four parts") };
        Ok(Self(values))
    }

    /// Parts with their values, in the order in which parts run.
    pub fn iter(&self) -> impl Iterator<Item = (Part, &T)> {
        Part::ALL.into_iter().zip(&self.0)
    }

    /// As [`Self::iter`], values to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Part, &mut T)> {
        Part::ALL.into_iter().zip(&mut self.0)
    }

    /// The values, in the order in which parts run.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }

    /// A value of each part's value.
    pub fn map<U>(self, mut value: impl FnMut(Part, T) -> U) -> PartMap<U> {
        let mut parts = Part::ALL.into_iter();
        PartMap(self.0.map(|old| {
            let part = parts.next().expect("as many values as parts");
            value(part, old)
        }))
    }
}

impl<T> IntoIterator for PartMap<T> {
    type Item = (Part, T);
    type IntoIter = std::iter::Zip<std::array::IntoIter<Part, 4>, std::array::IntoIter<T, 4>>;

    fn into_iter(self) -> Self::IntoIter {
        Part::ALL.into_iter().zip(self.0)
    }
}

impl<T> Index<Part> for PartMap<T> {
    type Output = T;

    fn index(&self, part: Part) -> &T {
        &self.0[part as usize]
    }
}

impl<T> IndexMut<Part> for PartMap<T> {
    fn index_mut(&mut self, part: Part) -> &mut T {
        &mut self.0[part as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_order_are_those_of_files() {
        let names = Part::ALL.map(Part::as_str);
        assert_eq!(names, ["adapter", "vision", "text", "heads"]);
        for part in Part::ALL {
            assert_eq!(part.as_str().parse(), Ok(part));
            assert_eq!(serde_json::to_string(&part).unwrap(), format!("\"{part}\""));
        }
        assert_eq!("Vision".parse::<Part>(), Err(()));
    }

    #[test]
    fn a_map_holds_each_parts_value() {
        let mut map = PartMap::from_fn(|part| part.as_str().len());
        map[Part::Text] += 1;
        assert_eq!(map.map(|part, n| (part, n)).into_iter().map(|(_, v)| v.1).collect::<Vec<_>>(), [7, 6, 5, 5]);
        assert_eq!(PartMap::try_from_fn(|part| if part == Part::Text { Err(part) } else { Ok(()) }), Err(Part::Text));
    }
}
