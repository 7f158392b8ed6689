//! The usual header line, read eight bytes at a time.
//!
//! Nearly all lines are `name: value` with a name of letters, digits and dashes, CRLF at the end and
//! nothing odd between. [`usual`] knows these only; whatever else it meets it leaves as it was to the
//! parser of `head`, which alone decides what is wrong.

use super::{Field, Span, restore};

const ONES: u64 = u64::from_ne_bytes([1; 8]);
const HIGH: u64 = ONES << 7;

/// A line that [`usual`] has read.
pub(super) struct Usual {
    pub(super) field: Field,
    /// It is written as it would be written anew.
    pub(super) canonical: bool,
    /// Where the next one begins.
    pub(super) next: usize,
}

/// Reads the line at `start` and puts its name into lower case, if it is a usual one.
pub(super) fn usual(buf: &mut [u8], start: usize) -> Option<Usual> {
    let rest = buf.get_mut(start..)?;
    let (colon, upper) = name(rest)?;
    let len = colon + 1 + text(&rest[colon + 1..]);
    if rest.get(len..len + 2) != Some(b"\r\n") {
        restore(rest, upper);
        return None;
    }
    let raw = &rest[colon + 1..len];
    let (left, right) = blanks(raw);
    let at = start + colon + 1;
    Some(Usual {
        field: Field {
            name: Span::new(start, start + colon),
            value: Span::new(at + left, at + raw.len() - right),
            upper,
        },
        canonical: right == 0 && left == 1 && raw[0] == b' ',
        next: start + len + 2,
    })
}

/// How many blanks stand before and behind a value.
pub(super) fn blanks(raw: &[u8]) -> (usize, usize) {
    if let [b' ', first, .., last] = raw
        && *first > b' '
        && *last > b' '
    {
        return (1, 0);
    }
    let blank = |b: &&u8| matches!(**b, b' ' | b'\t');
    let left = raw.iter().take_while(blank).count();
    (left, raw[left..].iter().rev().take_while(blank).count())
}

/// How many bytes come before the first control character.
fn text(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(eight) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let word = u64::from_le_bytes(*eight);
        // What is borrowed from the next byte can be wrong only behind the first that is found.
        let control = word.wrapping_sub(ONES << 5) & !word & HIGH;
        if control != 0 {
            return at + (control.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    let rest = &bytes[at..];
    at + rest.iter().position(|b| *b < 0x20).unwrap_or(rest.len())
}

/// Length of the name that begins `line`, up to its colon, and which of its letters were capitals.
fn name(line: &mut [u8]) -> Option<(usize, u32)> {
    let (mut at, mut upper) = (0, 0u64);
    while let Some(eight) = line.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        let word = u64::from_le_bytes(*eight);
        if word & HIGH != 0 {
            break;
        }
        let letters = within(word | ONES << 5, b'a', b'z');
        let good = letters | within(word, b'0', b'9') | within(word, b'-', b'-');
        let odd = !good & HIGH;
        // Bytes before the first that belongs to no name; all eight if there is none.
        let count = (odd.trailing_zeros() / 8) as usize;
        let ours = 1u64.checked_shl(8 * count as u32).map_or(u64::MAX, |bit| bit - 1);
        let capitals = letters & !(word << 2) & ours;
        *eight = (word | capitals >> 2).to_le_bytes();
        if at < 32 {
            // Gathers the eight bits, the first byte's lowest.
            upper |= ((capitals >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) << at;
        }
        at += count;
        if odd != 0 {
            if at > 0 && line[at] == b':' {
                return Some((at, upper as u32));
            }
            break;
        }
    }
    restore(line, upper as u32);
    None
}

/// Which bytes of a word lie between two others, by their highest bit; none of them may have it set.
fn within(word: u64, from: u8, to: u8) -> u64 {
    let at_least = |b: u8| word.wrapping_add(ONES * u64::from(0x80 - b));
    at_least(from) & !at_least(to + 1) & HIGH
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::super::{field, next_line};
    use super::*;

    /// Whatever is taken for a usual line, the parser of all lines reads in the same way.
    #[test]
    fn usual_lines_read_as_all_others() {
        let mut usuals = 0;
        for seed in 0..20_000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let texts =
                ["Host: a.example\r\n", "X-Forwarded-For: 10.0.0.1, 10.0.0.2 \r\nA: b\r\n", "a:\r\n\r\n"];
            let mut line = texts[rng.random_range(0..texts.len())].as_bytes().to_vec();
            for _ in 0..rng.random_range(0..4) {
                let at = rng.random_range(0..line.len());
                match rng.random_range(0..3) {
                    0 => line[at] = rng.random(),
                    1 => line.insert(at, b"\r\n :\t\0-_HA0\x80"[rng.random_range(0..12)]),
                    _ => line.truncate(at.max(1)),
                }
            }
            let mut other = line.clone();
            let Some(usual) = usual(&mut line, 0) else {
                assert_eq!(line, other, "seed {seed}: changed, though it is not usual");
                continue;
            };
            usuals += 1;
            let whole = next_line(&other, 0).expect("no error").expect("a whole line");
            let mut canonical = true;
            let read = field(&mut other, 0, whole.end, &mut canonical);
            let (read, next) = (read.expect("a field"), whole.next);
            assert_eq!((usual.field, usual.next, usual.canonical), (read, next, canonical), "seed {seed}");
            assert!(whole.crlf && line == other, "seed {seed}");
        }
        assert!(usuals > 4000, "only {usuals} were usual");
    }

    #[test]
    fn every_byte_is_classed_as_it_is_alone() {
        for b in 0..=0x7fu8 {
            for at in 0..8 {
                let mut word = [b'a'; 8];
                word[at] = b;
                let found = within(u64::from_le_bytes(word), b'0', b'9');
                let alone = if b.is_ascii_digit() { 0x80 << (8 * at) } else { 0 };
                assert_eq!(found, alone, "{b:#x} at {at}");
            }
        }
    }

    #[test]
    fn names_of_all_lengths_are_read_and_restored() {
        for len in 1..80 {
            let name: String = ('A'..='Z').cycle().take(len).collect();
            let mut line = format!("{name}: value\r\nnext").into_bytes();
            let usual = usual(&mut line, 0).expect("a usual line");
            assert_eq!(usual.field.name.of(&line), name.to_ascii_lowercase().as_bytes());
            assert_eq!((usual.field.value.of(&line), usual.canonical), (&b"value"[..], true));
            assert_eq!(&line[usual.next..], b"next");
            restore(&mut line, usual.field.upper);
            assert_eq!(line[..len.min(32)], name.as_bytes()[..len.min(32)]);
        }
    }

    #[test]
    fn what_is_not_usual_is_left_as_it_was() {
        for text in [
            "Host : a\r\n",
            ": a\r\n",
            "Hést: a\r\n",
            "X_Y: a\r\n",
            "Content-Length\r\n",
            "A: b\n",
            "A: b\r",
            "A: b\rc\r\n",
            "A: \0\r\n",
            "\r\n",
            "",
            "Accept-Encoding",
            "Accept-Encoding_: a\r\n",
            " Folded: a\r\n",
        ] {
            let mut line = text.as_bytes().to_vec();
            assert!(usual(&mut line, 0).is_none(), "{text:?}");
            assert_eq!(line, text.as_bytes());
        }
    }
}
