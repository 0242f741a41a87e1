//! Bytes that lie in memory as devices want them: whole blocks, on a boundary of blocks.

use super::BLOCK_BYTES;

/// What is to be written from one block of a file on. The block that is not full yet is written again with what follows,
/// so it stays here.
#[derive(Debug, Default)]
pub struct Blocks {
    memory: Vec<u8>,
    /// Where in `memory` the boundary is.
    skip: usize,
    len: usize,
}

impl Blocks {
    /// Adds bytes.
    pub fn extend(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        if self.skip + end.next_multiple_of(BLOCK_BYTES) > self.memory.len() {
            self.move_to((2 * end).next_multiple_of(BLOCK_BYTES));
        }
        self.memory[self.skip + self.len..self.skip + end].copy_from_slice(bytes);
        self.len = end;
    }

    /// Everything, and zeros to the end of the last block.
    pub fn padded(&mut self) -> &[u8] {
        let end = self.len.next_multiple_of(BLOCK_BYTES);
        self.memory[self.skip + self.len..self.skip + end].fill(0);
        &self.memory[self.skip..self.skip + end]
    }

    /// Lets go of the full blocks, and of memory above `kept_max`.
    pub fn keep_last(&mut self, kept_max: usize) {
        let full = self.len / BLOCK_BYTES * BLOCK_BYTES;
        self.memory.copy_within(self.skip + full..self.skip + self.len, self.skip);
        self.len -= full;
        if self.memory.len() > kept_max + 2 * BLOCK_BYTES {
            self.move_to(kept_max.next_multiple_of(BLOCK_BYTES));
        }
    }

    /// Goes on in memory of another size, which is on another boundary.
    fn move_to(&mut self, bytes: usize) {
        let mut memory = vec![0; bytes + BLOCK_BYTES];
        let skip = memory.as_ptr().align_offset(BLOCK_BYTES);
        memory[skip..skip + self.len].copy_from_slice(&self.memory[self.skip..][..self.len]);
        (self.memory, self.skip) = (memory, skip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_on_a_boundary_with_the_last_one_kept() {
        let mut blocks = Blocks::default();
        let (mut file, mut at, mut wanted) = (Vec::new(), 0, Vec::new());
        for length in [1, 0, 63, 4032, 1, 4096, 70_000, 5, 200_000, 4091] {
            let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8 + 1).collect();
            wanted.extend_from_slice(&bytes);
            blocks.extend(&bytes);
            let padded = blocks.padded();
            assert!(padded.as_ptr().align_offset(BLOCK_BYTES) == 0);
            assert!(padded.len().is_multiple_of(BLOCK_BYTES));
            file.truncate(at);
            file.extend_from_slice(padded);
            assert_eq!(file[..wanted.len()], wanted);
            assert!(file[wanted.len()..].iter().all(|&byte| byte == 0));
            blocks.keep_last(8192);
            at = wanted.len() / BLOCK_BYTES * BLOCK_BYTES;
            assert!(blocks.memory.len() <= 8192 + 3 * BLOCK_BYTES);
        }
    }
}
