//! Plots of an export, a training and an evaluation, as SVG files that need nothing else.
//!
//! Layer 5. Each function returns the text of one file: dark ink on white, which reads the same on light and dark
//! pages. Text that comes from outside (labels, titles, names of layers) is escaped. Values that are not finite are
//! left out.
//!
//! ```
//! use brain_adapter::plot::{Epoch, history};
//!
//! let loss = |epoch, train_loss| Epoch { epoch, train_loss, validation_loss: None, macro_f1: None };
//! let svg = history(&[loss(1, 1.1), loss(2, 0.7)], "Fine-tuning");
//! assert!(svg.starts_with("<svg"));
//! ```

mod chart;
mod embedding;
mod evaluation;
mod history;
mod layer_errors;

pub use embedding::embedding;
pub use evaluation::{confusion, reliability};
pub use history::{Epoch, history};
pub use layer_errors::layer_errors;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};
use crate::files::{MADE_BY, MAKER};

/// Before the maker's name in a plot.
const MARK: &str = "<metadata>";

/// A plot with the maker's name in it, by which [`is_marked`] knows the file.
///
/// ```
/// let svg = brain_adapter::plot::marked("<svg width=\"1\"></svg>");
/// assert!(svg.starts_with("<svg width=\"1\"><metadata>Brain-Adapter "));
/// ```
pub fn marked(svg: &str) -> String {
    let (element, rest) = svg.split_at(svg.find('>').map_or(0, |end| end + 1));
    format!("{element}{MARK}{MADE_BY}</metadata>{rest}")
}

/// Whether the file at `path` is a plot of [`marked`].
///
/// # Errors
/// `io`.
pub fn is_marked(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(4096).read_to_end(&mut start));
    read.map_err(|e| Error::io(path, "cannot read the output", e))?;
    let start = String::from_utf8_lossy(&start);
    let element = start.split_inclusive('>').nth(1);
    let after = start.split('>').nth(2);
    let marked = element == Some(MARK) && after.is_some_and(|text| text.starts_with(MAKER));
    Ok(start.starts_with("<svg ") && marked)
}

/// An sRGB colour; its `Display` is that of SVG and CSS, `#0072b2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Colour {
    pub red: u8,
    pub green: u8,
    pub blue: u8,
}

impl Colour {
    const fn new(red: u8, green: u8, blue: u8) -> Self {
        Self { red, green, blue }
    }
}

impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{:02x}{:02x}{:02x}", self.red, self.green, self.blue)
    }
}

/// The palette of all plots: colours that the colour-blind can tell apart (Okabe and Ito 2008).
pub(crate) mod palette {
    use super::Colour;

    pub(crate) const BLACK: Colour = Colour::new(0, 0, 0);
    pub(crate) const BLUE: Colour = Colour::new(0, 114, 178);
    pub(crate) const GREEN: Colour = Colour::new(0, 158, 115);
    pub(crate) const GREY: Colour = Colour::new(90, 90, 90);
    pub(crate) const ORANGE: Colour = Colour::new(230, 159, 0);
    pub(crate) const PURPLE: Colour = Colour::new(204, 121, 167);
    pub(crate) const SKY: Colour = Colour::new(86, 180, 233);
    pub(crate) const VERMILION: Colour = Colour::new(213, 94, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_written_as_svg_has_them() {
        assert_eq!([palette::BLUE, palette::BLACK].map(|c| c.to_string()), ["#0072b2", "#000000"]);
    }
}
