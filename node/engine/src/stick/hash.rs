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
    let (chunks, rest) = text.as_chunks::<8>();
    for chunk in chunks {
        h = word(seed, h.rotate_left(23) ^ u64::from_le_bytes(*chunk));
    }
    if !rest.is_empty() {
        let mut chunk = [0; 8];
        chunk[..rest.len()].copy_from_slice(rest);
        h = word(seed, h.rotate_left(23) ^ u64::from_le_bytes(chunk));
    }
    h
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digests of content must be the same on nodes of different versions.
    #[test]
    fn hashes_are_those_of_the_definition() {
        let text: Vec<u8> = (0..100u32).map(|n| (n * 37 % 251) as u8).collect();
        for len in 0..text.len() {
            let mut h = 7 ^ fold(len as u64 ^ K1, K0);
            for chunk in text[..len].chunks(8) {
                let mut padded = [0; 8];
                padded[..chunk.len()].copy_from_slice(chunk);
                h = word(7, h.rotate_left(23) ^ u64::from_le_bytes(padded));
            }
            assert_eq!(bytes(7, &text[..len]), h, "{len}");
        }
    }
}
