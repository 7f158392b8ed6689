//! Hashing of keys (seeded, against flooding) and of content (fixed, equal on all nodes).

/// Multiplies to 128 bits and folds.
pub(crate) fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide as u64) ^ ((wide >> 64) as u64)
}

const K0: u64 = 0x9e37_79b9_7f4a_7c15;
const K1: u64 = 0xd1b5_4a32_d192_ed03;

/// Hash of one word.
pub(crate) fn word(seed: u64, value: u64) -> u64 {
    fold(fold(value ^ seed ^ K0, K1 ^ seed.rotate_left(32)) ^ seed, K0)
}

/// Hash of a byte string.
pub(crate) fn bytes(seed: u64, text: &[u8]) -> u64 {
    let mut h = seed ^ fold(text.len() as u64 ^ K1, K0);
    for chunk in text.chunks(8) {
        let mut b = [0; 8];
        b[..chunk.len()].copy_from_slice(chunk);
        h = word(seed, h.rotate_left(23) ^ u64::from_le_bytes(b));
    }
    h
}
