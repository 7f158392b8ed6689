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

/// Hash of a text that never leaves this process: a half or a quarter of the steps of [`bytes`].
pub(crate) fn text(seed: u64, text: &[u8]) -> u64 {
    let word = |chunk: &[u8; 8]| u64::from_le_bytes(*chunk);
    let half = |chunk: &[u8; 4]| u64::from(u32::from_le_bytes(*chunk));
    // Nobody can know what makes either factor 0, and so takes the other out of it.
    let secret = K1 ^ seed.rotate_left(32);
    let (mut h, mut rest) = (seed ^ K0, text);
    while let Some((chunk, more)) = rest.split_first_chunk::<16>()
        && !more.is_empty()
    {
        let (words, _) = chunk.as_chunks::<8>();
        h = fold(word(&words[0]) ^ secret, word(&words[1]) ^ h);
        rest = more;
    }
    // Both ends, which overlap in what is not as long as both.
    let (a, b) = match (rest.first_chunk(), rest.last_chunk(), rest.first_chunk(), rest.last_chunk()) {
        (Some(a), Some(b), ..) => (word(a), word(b)),
        (_, _, Some(a), Some(b)) => (half(a), half(b)),
        _ => match rest {
            [] => (0, 0),
            [a] => (u64::from(*a), 0),
            [a, .., b] => (u64::from(*a) | u64::from(*b) << 8, u64::from(rest[1])),
        },
    };
    fold(fold(a ^ secret, b ^ h) ^ seed, text.len() as u64 ^ K0)
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

    /// Every bit of every length counts, in each half of the hash.
    #[test]
    fn texts_that_differ_have_other_hashes() {
        let (mut low, mut high) = (std::collections::HashSet::new(), std::collections::HashSet::new());
        let mut all = 0;
        let mut see = |bytes: &[u8]| {
            let h = text(7, bytes);
            all += 1;
            low.insert(h as u32);
            high.insert((h >> 32) as u32);
        };
        for len in 0..70 {
            let mut bytes = vec![b'a'; len];
            see(&bytes);
            for bit in 0..len * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                see(&bytes);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
        // Two of 20,000 numbers of 32 bits may be the same by chance.
        assert!(low.len() + 3 > all && high.len() + 3 > all, "{all} {} {}", low.len(), high.len());
        assert_ne!(text(1, b"a"), text(2, b"a"));
    }
}
