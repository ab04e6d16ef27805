//! Memory that may be written with `O_DIRECT`: whole blocks at block-aligned addresses.

/// The unit of every write to a log, in bytes.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// One block, aligned to its size.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK_BYTES]);

const _: () = assert!(size_of::<Block>() == BLOCK_BYTES && align_of::<Block>() == BLOCK_BYTES);

/// A fixed number of zeroed blocks.
#[derive(Debug)]
pub(crate) struct AlignedBuffer {
    blocks: Box<[Block]>,
}

impl AlignedBuffer {
    /// At least `bytes`, rounded up to blocks.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { blocks: vec![Block([0; BLOCK_BYTES]); bytes.div_ceil(BLOCK_BYTES)].into_boxed_slice() }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: a `Block` is exactly its byte array, without padding, so that the slice's blocks are as many
        // consecutive initialised bytes; the lifetime is the borrow's.
        unsafe {
            std::slice::from_raw_parts(self.blocks.as_ptr().cast::<u8>(), self.blocks.len() * BLOCK_BYTES)
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; the borrow is exclusive, and every byte pattern is a valid `Block`.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.blocks.as_mut_ptr().cast::<u8>(),
                self.blocks.len() * BLOCK_BYTES,
            )
        }
    }
}
