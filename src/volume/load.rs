//! Reading and conforming in one pass: one thread unpacks the file, this one decodes and resamples.
//!
//! In: a positioned [`Scan`]. Out: a [`Conformed`] volume. Between the threads go blocks of whole rows in a bounded
//! channel, and emptied blocks go back, so memory is the output plus a few blocks and planes whatever the file's
//! size. Unpacking takes longest, so the resampling costs almost no time of its own.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use super::axis::AxisMap;
use super::conform::{Range, Resampler};
use super::datatype::{Datatype, Decoder};
use super::file::Scan;
use super::geometry::{Orientation, Transform, orientation, transform};
use super::header::Header;
use super::peek::TAIL_LIMIT;
use super::quality::{self, HeaderFigures, Sample};
use super::stream::{Stream, Tail};
use super::{Conformed, Grid, ReadOptions, SourceInfo};
use crate::error::{Code, Error, Result, Warning, WarningCode};
use crate::tensor::number::{to_f64, to_u64};
use crate::threads;

/// Decoded bytes that travel together: large enough to make hand-over cheap, small enough for the cache.
const BLOCK: usize = 256 * 1024;
/// Blocks under way.
const DEPTH: usize = 4;
/// Bytes of later volumes that are read only to verify a checksum.
const FOLLOWING_LIMIT: u64 = 1 << 30;

/// Conforms a scan to `options.grid`; its voxels are sampled for the quality figures where `measure` asks for it.
pub(super) fn load(
    scan: Scan<'_>,
    options: &ReadOptions,
    mut warnings: Vec<Warning>,
    measure: bool,
) -> Result<Conformed> {
    let Scan { header, mut stream, following, .. } = scan;
    let grid = options.grid;
    let transform = transform(&header, options.orientation, &mut warnings)?;
    let orientation = orientation(&transform.affine);
    let axes = [0, 1, 2].map(|a| {
        let w = orientation.world[a];
        AxisMap::new(header.shape[a], orientation.spacing[a], orientation.flipped[a], grid.shape[w], grid.voxel_mm[w])
    });
    warnings.extend(field_of_view(&axes, &orientation, &grid));
    let [ni, nj, nk] = grid.shape;
    let out = zeroed(ni * nj * nk)?;
    let mut consumer = Consumer {
        decoder: Decoder::new(header.datatype, header.big, header.scaling),
        resampler: Resampler::new(header.shape, axes, orientation.world, grid.shape, out),
        values: Vec::new(),
        source: Range::EMPTY,
        nonfinite: 0,
        sample: if measure { Sample::new(header.shape) } else { Sample::none(header.shape) },
    };
    warnings.extend(run(&header, &mut stream, following, &mut consumer)?);

    let Consumer { resampler, source, nonfinite, sample, .. } = consumer;
    let (voxels, range) = resampler.finish();
    let count = header.shape.iter().product::<usize>();
    if nonfinite > 0 {
        let text = format!("{nonfinite} of {count} voxels are NaN or infinite; they are taken as 0");
        warnings.push(Warning::new(WarningCode::NONFINITE, text));
    }
    refuse_constant(source, "scan", nonfinite == to_u64(count))?;
    refuse_constant(range, "conformed volume", false)?;
    let figures = HeaderFigures::new(&header, &transform, &orientation);
    let quality = sample.figures(&figures, [source.min, source.max], header.datatype == Datatype::I16);
    warnings.extend(quality::warnings(&figures, &quality, &grid, orientation.world));
    Ok(Conformed {
        voxels,
        grid,
        affine: orientation.conformed_affine(&transform.affine, header.shape, grid.shape, grid.voxel_mm),
        min: range.min,
        max: range.max,
        nonfinite,
        quality,
        source: source_info(&header, &transform, &orientation, stream.is_gzip()),
        warnings,
    })
}

/// Zeros that the system provides page by page on first touch, or an error where they cannot be promised.
fn zeroed(count: usize) -> Result<Vec<f32>> {
    // `vec!` aborts when memory runs out and `resize` touches every page: ask first, then take.
    let refused = |e| Error::new(Code::MEMORY_LIMIT, format!("no memory for {count} voxels: {e}"));
    Vec::<f32>::new().try_reserve_exact(count).map_err(refused)?;
    Ok(vec![0.0; count])
}

fn source_info(header: &Header, transform: &Transform, orientation: &Orientation, gzip: bool) -> SourceInfo {
    SourceInfo {
        format: header.format().to_owned(),
        gzip,
        shape: header.shape,
        volumes: header.volumes,
        datatype: header.datatype.name().to_owned(),
        transform: transform.kind.to_owned(),
        affine: transform.affine,
        axcodes: orientation.axcodes(),
        spacing_mm: orientation.spacing,
        units: header.units.name(),
    }
}

fn refuse_constant(range: Range, what: &str, nothing_finite: bool) -> Result<()> {
    // A range below the smallest normal f32 has lost its precision: nothing could be distinguished after normalising.
    if range.max - range.min >= f32::MIN_POSITIVE {
        return Ok(());
    }
    let text = if nothing_finite {
        "no voxel is a finite number: there is no image".to_owned()
    } else {
        format!("every voxel of the {what} is {}: there is no image", range.min)
    };
    Err(Error::new(Code::NIFTI_CONSTANT, text))
}

/// Warns when the scan reaches at least a voxel beyond the grid.
fn field_of_view(axes: &[AxisMap; 3], orientation: &Orientation, grid: &Grid) -> Option<Warning> {
    const SIDES: [[&str; 2]; 3] = [["left", "right"], ["posterior", "anterior"], ["inferior", "superior"]];
    let mut cuts = Vec::new();
    for (w, names) in SIDES.iter().enumerate() {
        let axis = axes.iter().zip(orientation.world).find(|(_, world)| *world == w);
        for (mm, side) in axis.iter().flat_map(|(axis, _)| axis.cut_mm.iter().zip(names)) {
            if *mm >= grid.voxel_mm[w] {
                cuts.push(format!("{side} {mm:.1} mm"));
            }
        }
    }
    let [x, y, z] = [0, 1, 2].map(|w| to_f64(grid.shape[w]) * grid.voxel_mm[w]);
    (!cuts.is_empty()).then(|| {
        let cuts = cuts.join(", ");
        let text = format!("the scan reaches beyond the {x} × {y} × {z} mm grid and is cut there, air or not: {cuts}");
        Warning::new(WarningCode::FOV_CUT, text)
    })
}

/// The end of the pipe: decodes, counts and resamples.
struct Consumer {
    decoder: Decoder,
    resampler: Resampler,
    values: Vec<f32>,
    source: Range,
    nonfinite: u64,
    sample: Sample,
}

impl Consumer {
    fn take(&mut self, block: &[u8]) -> Result<()> {
        self.nonfinite += self.decoder.decode(block, &mut self.values)?;
        self.source.include(&self.values);
        self.sample.push(&self.values);
        self.resampler.push(&self.values);
        Ok(())
    }
}

/// Runs both ends until the file has been read to its end; the warning is about what follows the voxels.
fn run(header: &Header, stream: &mut Stream<'_>, following: u64, consumer: &mut Consumer) -> Result<Option<Warning>> {
    let rows = header.shape[1] * header.shape[2];
    let row = header.row_bytes();
    let footer = header.footer;
    let block_rows = (BLOCK / row).clamp(1, rows);
    let (full_tx, full_rx) = sync_channel(DEPTH);
    let (empty_tx, empty_rx) = channel();
    std::thread::scope(|scope| {
        let unpack = move || {
            unpack(stream, row, rows, block_rows, &full_tx, &empty_rx)?;
            drop(full_tx);
            finish(stream, following, footer)
        };
        let worker = threads::spawn_scoped(scope, "unpack", unpack)?;
        let consumed = consume(&full_rx, &empty_tx, consumer);
        let unpacked = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // A damaged container explains odd voxels, not the other way round.
        let warning = unpacked?;
        consumed.map(|()| warning)
    })
}

fn unpack(
    stream: &mut Stream<'_>,
    row: usize,
    mut rows: usize,
    block_rows: usize,
    full: &SyncSender<Vec<u8>>,
    empty: &Receiver<Vec<u8>>,
) -> Result<()> {
    let wanted = to_u64(row * rows);
    let mut got = 0;
    while rows > 0 {
        let count = block_rows.min(rows);
        let mut block = empty.try_recv().unwrap_or_default();
        block.resize(count * row, 0);
        let read = stream.read(&mut block)?;
        got += to_u64(read);
        if read < block.len() {
            return Err(Error::new(
                Code::NIFTI_TRUNCATED,
                format!(
                    "the volume ends after {got} of {wanted} bytes: the file is incomplete, copy or export it again"
                ),
            ));
        }
        if full.send(block).is_err() {
            break;
        }
        rows -= count;
    }
    Ok(())
}

/// Receives blocks until there are no more. After a failure the rest is received and discarded, so that the other
/// end reaches the container's checksum.
fn consume(full: &Receiver<Vec<u8>>, empty: &Sender<Vec<u8>>, consumer: &mut Consumer) -> Result<()> {
    let mut result = Ok(());
    for block in full {
        if result.is_ok() {
            result = consumer.take(&block);
        }
        // The other end may have finished already.
        let _ = empty.send(block);
    }
    result
}

/// Reads what follows the volume: other volumes, a footer of at most `footer` bytes, a checksum, surplus.
fn finish(stream: &mut Stream<'_>, following: u64, footer: u64) -> Result<Option<Warning>> {
    let container = stream.container().unwrap_or_default();
    let warning = |text: String| Some(Warning::new(WarningCode::TRAILING_DATA, text));
    if following > 0 {
        let within = stream.length().map_or(FOLLOWING_LIMIT, |_| u64::MAX);
        let skipped = stream.skip(following.min(within))?;
        if following > within && skipped == within {
            return Ok(warning(format!(
                "{following} bytes of later volumes were not read, so the {container} checksum is unverified"
            )));
        }
        if skipped < following {
            return Err(Error::new(
                Code::NIFTI_TRUNCATED,
                format!("the later volumes end {} bytes too early: the file is incomplete", following - skipped),
            ));
        }
    }
    let footer = stream.skip(footer)?;
    Ok(match stream.finish()? {
        Tail::Clean => None,
        Tail::Surplus(count) => warning(format!("{} bytes follow the voxels; they are ignored", footer + count)),
        Tail::Garbage => {
            warning(format!("bytes that are not {container} follow the {container} data; they are ignored"))
        }
        Tail::Endless => warning(format!(
            "more than {} bytes follow the voxels; they are ignored, and the {container} checksum is unverified",
            footer + TAIL_LIMIT
        )),
    })
}
