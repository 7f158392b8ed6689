//! The hash functions of `hash-type`, bit for bit as HAProxy has them.
//!
//! Pure functions over bytes. Every node must map a key to the same server, and a migration from
//! HAProxy must keep the mapping, so nothing here may ever change its result.

use std::net::IpAddr;

use phalanx_config::model::HashFunction;

/// Applies a hash function to a key.
pub fn hash(function: HashFunction, key: &[u8]) -> u32 {
    match function {
        HashFunction::Sdbm => sdbm(key),
        HashFunction::Djb2 => djb2(key),
        HashFunction::Crc32 => crc32(key),
        HashFunction::None => number(key),
    }
}

/// The avalanche step (a full 32-bit integer mixer) of `hash-type … avalanche` and of ring points.
pub fn avalanche(mut a: u32) -> u32 {
    a = a.wrapping_add(0x7ed5_5d16).wrapping_add(a << 12);
    a = (a ^ 0xc761_c23c) ^ (a >> 19);
    a = a.wrapping_add(0x1656_67b1).wrapping_add(a << 5);
    a = a.wrapping_add(0xd3a2_646c) ^ (a << 9);
    a = a.wrapping_add(0xfd70_46c5).wrapping_add(a << 3);
    a = (a ^ 0xb55a_4f09) ^ (a >> 16);
    a.wrapping_mul(3_221_225_473)
}

/// `balance source`: the address folded to 32 bits, without a hash function.
pub fn source(addr: IpAddr) -> u32 {
    match addr {
        IpAddr::V4(v4) => u32::from(v4),
        IpAddr::V6(v6) => {
            v6.octets().chunks_exact(4).fold(0, |h, w| h ^ u32::from_be_bytes([w[0], w[1], w[2], w[3]]))
        }
    }
}

fn sdbm(key: &[u8]) -> u32 {
    key.iter().fold(0u32, |h, &c| u32::from(c).wrapping_add(h << 6).wrapping_add(h << 16).wrapping_sub(h))
}

fn djb2(key: &[u8]) -> u32 {
    key.iter().fold(5381u32, |h, &c| h.wrapping_mul(33).wrapping_add(u32::from(c)))
}

fn crc32(key: &[u8]) -> u32 {
    !key.iter().fold(!0u32, |mut crc, &c| {
        crc ^= u32::from(c);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
        crc
    })
}

/// The key's text read as a decimal number; what is not one counts as 0.
fn number(key: &[u8]) -> u32 {
    let text = key.trim_ascii_start();
    let (negative, digits) = match text.first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let value = digits
        .iter()
        .take_while(|c| c.is_ascii_digit())
        .fold(0i64, |n, &c| n.saturating_mul(10).saturating_add(i64::from(c - b'0')));
    (if negative { -value } else { value }) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_give_what_haproxy_gives() {
        use HashFunction::{Crc32, Djb2, Sdbm};
        for (key, sdbm, djb2, crc32, mixed_sdbm) in [
            ("a", 97, 177_670, 3_904_355_907, 1_830_748_055),
            ("ab", 6_363_201, 5_863_208, 2_659_403_885, 3_352_188_731u32),
            ("hello", 684_824_882, 261_238_937, 907_060_870, 2_061_535_398),
            ("The quick brown fox", 2_367_138_851, 2_546_203_896, 3_074_782_430, 721_029_811),
        ] {
            let key = key.as_bytes();
            assert_eq!(hash(Sdbm, key), sdbm);
            assert_eq!(hash(Djb2, key), djb2);
            assert_eq!(hash(Crc32, key), crc32);
            assert_eq!(avalanche(hash(Sdbm, key)), mixed_sdbm);
        }
    }

    #[test]
    fn source_folds_an_ipv6_address() {
        assert_eq!(source("10.0.0.1".parse().unwrap()), 0x0a00_0001);
        assert_eq!(source("1:2::3:4".parse().unwrap()), 0x0001_0002 ^ 0x0003_0004);
    }

    #[test]
    fn none_reads_the_number_at_the_start() {
        assert_eq!(number(b" 42abc"), 42);
        assert_eq!(number(b"-1"), u32::MAX);
        assert_eq!(number(b"x"), 0);
    }
}
