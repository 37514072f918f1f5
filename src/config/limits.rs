//! How large a model may be: far above every published one, and small enough to be refused before memory is gone.

/// Maximum number of transformer blocks, of either model: the largest published have 126.
pub(super) const MAX_LAYERS: usize = 1024;
/// Maximum number of attention heads.
pub(super) const MAX_HEADS: usize = 1024;
/// Maximum width of a hidden state or of an embedding.
pub(super) const MAX_WIDTH: usize = 1 << 16;
/// Maximum width of an MLP's inner layer.
pub(super) const MAX_MLP: usize = 1 << 20;
/// Maximum side of the cube, of a patch, and of the vision transformer's input, in voxels.
pub(super) const MAX_SIDE: usize = 1024;
/// Maximum number of tokens of a report.
pub(super) const MAX_TOKENS: usize = 1 << 17;
/// Maximum number of patches that the vision transformer sees: attention to them all takes the square of it.
pub(super) const MAX_PATCHES: usize = 1 << 16;
/// Maximum number of values in the position embeddings, which are interpolated to the patches: 1 GB.
pub(super) const MAX_POSITIONS: usize = 1 << 28;
/// Maximum number of classes, and maximum length of a name in bytes.
pub(super) const MAX_LABELS: usize = 1024;
pub(super) const MAX_LABEL_BYTES: usize = 256;
