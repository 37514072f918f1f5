//! Writes MGH files for tests, byte by byte and independent of the reader.

/// Bytes before the voxels.
pub const HEADER: usize = 284;

/// An MGH file.
#[derive(Clone, Debug)]
pub struct Mgh {
    /// The version's word: intent and 1.
    pub version: i32,
    pub shape: [usize; 3],
    pub frames: usize,
    /// FreeSurfer's code of the voxel type.
    pub kind: i32,
    /// `goodRASFlag`.
    pub flag: i16,
    /// Millimetres along the file's axes.
    pub delta: [f32; 3],
    /// For each file axis the world's direction.
    pub cosines: [[f32; 3]; 3],
    pub centre: [f32; 3],
    /// Values to store, the first axis fastest; rounded and clamped to the type.
    pub values: Vec<f64>,
    pub footer: Vec<u8>,
}

impl Mgh {
    /// One frame of 16-bit integers as `mri_convert` conforms a scan (coronal), without a footer.
    pub fn coronal(shape: [usize; 3], mm: f32) -> Self {
        let values = (0..shape.iter().product::<usize>()).map(|i| (i * 31 % 97) as f64).collect();
        Self {
            version: 1,
            shape,
            frames: 1,
            kind: 4,
            flag: 1,
            delta: [mm; 3],
            cosines: [[-1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]],
            centre: [0.5, -10.0, 8.0],
            values,
            footer: Vec::new(),
        }
    }

    /// The file's bytes, uncompressed.
    pub fn bytes(&self) -> Vec<u8> {
        let words = [self.version, self.shape[0] as i32, self.shape[1] as i32, self.shape[2] as i32];
        let words = words.into_iter().chain([self.frames as i32, self.kind, 0]);
        let mut bytes: Vec<u8> = words.flat_map(i32::to_be_bytes).collect();
        bytes.extend(self.flag.to_be_bytes());
        let numbers = self.delta.iter().chain(self.cosines.iter().flatten()).chain(&self.centre);
        bytes.extend(numbers.flat_map(|v| v.to_be_bytes()));
        bytes.resize(HEADER, 0);
        bytes.extend(self.values.iter().flat_map(|&v| self.stored(v)));
        bytes.extend(&self.footer);
        bytes
    }

    fn stored(&self, v: f64) -> Vec<u8> {
        match self.kind {
            0 => vec![v as u8],
            1 => (v as i32).to_be_bytes().to_vec(),
            2 => (v as i64).to_be_bytes().to_vec(),
            3 | 6 => (v as f32).to_be_bytes().to_vec(),
            4 => (v as i16).to_be_bytes().to_vec(),
            10 => (v as u16).to_be_bytes().to_vec(),
            other => panic!("no voxel type {other}"),
        }
    }

    /// What FreeSurfer writes after the voxels of one frame: five numbers, and tags up to a record of 44 KB.
    pub fn usual_footer() -> Vec<u8> {
        let mut footer: Vec<u8> = [2300.0f32, 0.15, 2.98, 900.0, 256.0].iter().flat_map(|v| v.to_be_bytes()).collect();
        let mut tag = |number: i32, data: &[u8]| {
            footer.extend(number.to_be_bytes());
            footer.extend((data.len() as i64).to_be_bytes());
            footer.extend(data);
        };
        tag(41, b"UNKNOWN");
        tag(43, &3f32.to_be_bytes());
        tag(42, &[0; 44_000]);
        tag(3, b"mri_convert orig.mgz T1.mgz\0");
        footer
    }
}
