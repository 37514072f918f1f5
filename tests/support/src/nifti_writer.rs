//! Writes NIfTI files for tests, byte by byte and independent of the reader.

use std::io::Write;

/// The ten real types of voxels, with NIfTI's codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Datatype {
    U8 = 2,
    I16 = 4,
    I32 = 8,
    F32 = 16,
    F64 = 64,
    I8 = 256,
    U16 = 512,
    U32 = 768,
    I64 = 1024,
    U64 = 1280,
}

impl Datatype {
    /// All of them, in the order of their codes.
    pub const ALL: [Self; 10] = {
        use Datatype::{F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
        [U8, I16, I32, F32, F64, I8, U16, U32, I64, U64]
    };
}

/// A single-file scan.
#[derive(Clone, Debug)]
pub struct Scan {
    pub shape: [usize; 3],
    /// Rows of the sform.
    pub affine: [[f64; 4]; 3],
    pub datatype: Datatype,
    pub big: bool,
    pub version: u8,
    pub scaling: (f64, f64),
    /// Values to store, the first axis fastest; rounded and clamped to the type.
    pub values: Vec<f64>,
}

struct Bytes {
    bytes: Vec<u8>,
    big: bool,
}

impl Bytes {
    fn put<const N: usize>(&mut self, at: usize, mut little: [u8; N]) {
        if self.big {
            little.reverse();
        }
        self.bytes[at..at + N].copy_from_slice(&little);
    }
}

impl Scan {
    /// The file's bytes, uncompressed.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = if self.version == 2 { self.header2() } else { self.header1() };
        bytes.extend(self.values.iter().flat_map(|&v| self.stored(v).0));
        bytes
    }

    fn header1(&self) -> Vec<u8> {
        let mut h = Bytes { bytes: vec![0; 352], big: self.big };
        h.put(0, 348i32.to_le_bytes());
        h.put(40, 3i16.to_le_bytes());
        for (a, &n) in self.shape.iter().enumerate() {
            h.put(42 + 2 * a, (n as i16).to_le_bytes());
            h.put(80 + 4 * a, 1f32.to_le_bytes());
        }
        h.put(70, (self.datatype as i16).to_le_bytes());
        h.put(72, (8 * self.stored(0.0).0.len() as i16).to_le_bytes());
        h.put(76, 1f32.to_le_bytes());
        h.put(108, 352f32.to_le_bytes());
        h.put(112, (self.scaling.0 as f32).to_le_bytes());
        h.put(116, (self.scaling.1 as f32).to_le_bytes());
        h.put(254, 1i16.to_le_bytes());
        for (i, v) in self.affine.iter().flatten().enumerate() {
            h.put(280 + 4 * i, (*v as f32).to_le_bytes());
        }
        h.bytes[344..348].copy_from_slice(b"n+1\0");
        h.bytes
    }

    fn header2(&self) -> Vec<u8> {
        let mut h = Bytes { bytes: vec![0; 544], big: self.big };
        h.put(0, 540i32.to_le_bytes());
        h.bytes[4..12].copy_from_slice(b"n+2\0\r\n\x1a\n");
        h.put(12, (self.datatype as i16).to_le_bytes());
        h.put(14, (8 * self.stored(0.0).0.len() as i16).to_le_bytes());
        h.put(16, 3i64.to_le_bytes());
        for (a, &n) in self.shape.iter().enumerate() {
            h.put(24 + 8 * a, (n as i64).to_le_bytes());
        }
        h.put(168, 544i64.to_le_bytes());
        h.put(176, self.scaling.0.to_le_bytes());
        h.put(184, self.scaling.1.to_le_bytes());
        h.put(348, 1i32.to_le_bytes());
        for (i, v) in self.affine.iter().flatten().enumerate() {
            h.put(400 + 8 * i, v.to_le_bytes());
        }
        h.bytes
    }

    /// The bytes of one voxel, and the value they stand for before scaling.
    fn stored(&self, v: f64) -> (Vec<u8>, f64) {
        macro_rules! as_type {
            ($type:ty) => {{
                let v = v as $type;
                (if self.big { v.to_be_bytes().to_vec() } else { v.to_le_bytes().to_vec() }, v as f64)
            }};
        }
        match self.datatype {
            Datatype::U8 => as_type!(u8),
            Datatype::I16 => as_type!(i16),
            Datatype::I32 => as_type!(i32),
            Datatype::F32 => as_type!(f32),
            Datatype::F64 => as_type!(f64),
            Datatype::I8 => as_type!(i8),
            Datatype::U16 => as_type!(u16),
            Datatype::U32 => as_type!(u32),
            Datatype::I64 => as_type!(i64),
            Datatype::U64 => as_type!(u64),
        }
    }

    /// The values a reader must see: as stored, scaled, 0 where not finite.
    pub fn seen(&self) -> Vec<f64> {
        // NIfTI-1 keeps the scaling in f32
        let (slope, inter) = match self.version {
            1 => (f64::from(self.scaling.0 as f32), f64::from(self.scaling.1 as f32)),
            _ => self.scaling,
        };
        let scaled = |v: f64| if slope == 0.0 { v } else { slope * v + inter };
        let seen = self.values.iter().map(|&v| scaled(self.stored(v).1));
        seen.map(|v| if v.is_finite() { v } else { 0.0 }).collect()
    }
}

/// gzip in `members` parts.
pub fn gzip(bytes: &[u8], members: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for part in bytes.chunks(bytes.len().div_ceil(members).max(1)) {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(part).expect("memory is writable");
        out.extend(encoder.finish().expect("memory is writable"));
    }
    out
}
