//! Conforms a scan and writes what the model would see.
//!
//! ```text
//! cargo run --release --example conform -- scan.nii.gz conformed.nii.gz preview.png
//! ```

#![allow(clippy::print_stdout)]

use brain_adapter::volume::{self, ReadOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [scan, conformed, preview] = arguments.as_slice() else {
        return Err("usage: conform SCAN CONFORMED.nii.gz PREVIEW.png".into());
    };
    let volume = volume::read(scan.as_ref(), &ReadOptions::default())?;
    println!("{:?}", volume.source);
    println!("intensities {} to {}", volume.min, volume.max);
    println!("{:?}", volume.quality);
    for warning in &volume.warnings {
        println!("{}: {}", warning.code, warning.message);
    }
    volume.save(conformed.as_ref())?;
    volume.save_preview(preview.as_ref())?;
    Ok(())
}
