//! A fast 64-bit hash by folded multiplication (the scheme of wyhash): for the index, tower heights, the digest of a
//! snapshot and the state hash.
//!
//! **Always:** the same bytes and seed give the same hash on every machine and in every version, because hashes are
//! part of snapshot files. **Left out:** resistance against someone who knows the seed; certificates keep strangers
//! away, and CRCs stand beside it in files.

/// Hashes `bytes`; different seeds give independent hashes.
#[inline]
pub(super) fn hash64(seed: u64, bytes: &[u8]) -> u64 {
    let mut state = fold(seed ^ SECRET[0], SECRET[1]);
    let (pairs, rest) = bytes.as_chunks::<16>();
    for pair in pairs {
        let (low, high) = pair.split_at(8);
        state = fold(read(low) ^ SECRET[1], read(high) ^ state);
    }
    let (low, high) = rest.split_at(rest.len().min(8));
    // Copying nothing costs as much as copying a little, and most lengths that people choose leave no rest.
    let [low, high] = if rest.is_empty() { [0, 0] } else { [read(low), read(high)] };
    state = fold(low ^ SECRET[2], high ^ state);
    fold(state ^ SECRET[0], bytes.len() as u64 ^ SECRET[1])
}

/// Adds one number to a running hash.
#[inline]
pub(super) fn mix(state: u64, value: u64) -> u64 {
    // The rotated addition keeps the old state alive should the product ever be zero.
    fold(state ^ SECRET[1], value ^ SECRET[2]).wrapping_add(state.rotate_left(23))
}

/// Up to 8 bytes, little-endian, padded with zeros.
#[inline]
fn read(bytes: &[u8]) -> u64 {
    if let Ok(whole) = <[u8; 8]>::try_from(bytes) {
        return u64::from_le_bytes(whole);
    }
    let mut padded = [0; 8];
    padded[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(padded)
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

const SECRET: [u64; 3] = [0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db, 0x8ebc_6af0_9c88_c6e3];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_the_length_and_the_seed_count() {
        let mut seen = std::collections::BTreeSet::new();
        let zeros = [0; 70];
        for len in 0..70 {
            assert!(seen.insert(hash64(1, &zeros[..len])), "length {len}");
            assert!(seen.insert(hash64(2, &zeros[..len])), "seed at {len}");
            let mut changed = zeros;
            changed[len] = 1;
            assert!(seen.insert(hash64(1, &changed)), "byte {len}");
        }
    }
}
