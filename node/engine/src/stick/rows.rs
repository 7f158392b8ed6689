//! Rows of a shard by index, in pieces that never move once they are full.
//!
//! A table grows to a million entries while requests come. One growing array would be copied again and
//! again, each time into memory that the kernel has to clear first, and hold its former self meanwhile:
//! that was half the CPU time of being taught. Small tables stay small: the first piece grows by quarters.

use std::ops::{Index, IndexMut};

const BITS: u32 = 9;
/// Rows of a piece.
const PIECE: usize = 1 << BITS;

/// Rows of one value each.
#[derive(Debug)]
pub(crate) struct Rows<T> {
    pieces: Vec<Vec<T>>,
}

impl<T> Rows<T> {
    pub(crate) const fn new() -> Rows<T> {
        Rows { pieces: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.pieces.last().map_or(0, |last| (self.pieces.len() - 1) * PIECE + last.len())
    }

    pub(crate) fn push(&mut self, value: T) {
        room(&mut self.pieces, 1).push(value);
    }

    pub(crate) fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        self.pieces.get_mut(at >> BITS)?.get_mut(at & (PIECE - 1))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pieces.iter().flatten()
    }

    /// Rows that there is memory for.
    pub(crate) fn capacity(&self) -> usize {
        self.pieces.iter().map(Vec::capacity).sum()
    }
}

impl<T> Index<usize> for Rows<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        &self.pieces[at >> BITS][at & (PIECE - 1)]
    }
}

impl<T> IndexMut<usize> for Rows<T> {
    fn index_mut(&mut self, at: usize) -> &mut T {
        &mut self.pieces[at >> BITS][at & (PIECE - 1)]
    }
}

/// Rows of `stride` words each.
#[derive(Debug)]
pub(crate) struct Words {
    pieces: Vec<Vec<u32>>,
    stride: usize,
}

impl Words {
    pub(crate) const fn new(stride: usize) -> Words {
        Words { pieces: Vec::new(), stride }
    }

    /// Appends a row of zeros.
    pub(crate) fn push(&mut self) {
        if self.stride > 0 {
            let piece = room(&mut self.pieces, self.stride);
            piece.resize(piece.len() + self.stride, 0);
        }
    }

    pub(crate) fn row(&self, at: usize) -> &[u32] {
        match self.stride {
            0 => &[],
            stride => &self.pieces[at >> BITS][(at & (PIECE - 1)) * stride..][..stride],
        }
    }

    pub(crate) fn row_mut(&mut self, at: usize) -> &mut [u32] {
        match self.stride {
            0 => &mut [],
            stride => &mut self.pieces[at >> BITS][(at & (PIECE - 1)) * stride..][..stride],
        }
    }

    /// Words that there is memory for.
    pub(crate) fn capacity(&self) -> usize {
        self.pieces.iter().map(Vec::capacity).sum()
    }
}

/// The piece that has room for one more row of `width` values.
fn room<T>(pieces: &mut Vec<Vec<T>>, width: usize) -> &mut Vec<T> {
    let full = pieces.last().is_none_or(|last| last.len() >= PIECE * width);
    if full {
        let rows = if pieces.is_empty() { 0 } else { PIECE };
        pieces.push(Vec::with_capacity(rows * width));
    }
    let first = pieces.len() == 1;
    let last = pieces.last_mut().expect("one was just pushed if there was none");
    if first && last.len() == last.capacity() {
        let rows = last.len() / width;
        last.reserve_exact((rows / 4).max(16).min(PIECE - rows) * width);
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stay_where_they_are_and_memory_follows_their_number() {
        let (mut rows, mut words) = (Rows::new(), Words::new(3));
        for i in 0..5_000usize {
            rows.push(i);
            words.push();
            words.row_mut(i).copy_from_slice(&[i as u32; 3]);
            assert_eq!(rows.len(), i + 1);
            let bound = (i + 1) + (i / 4).max(16).max(if i + 1 > PIECE { PIECE } else { 0 });
            assert!(rows.capacity() <= bound && words.capacity() <= 3 * bound, "{i}: {}", rows.capacity());
        }
        for i in 0..5_000 {
            assert_eq!((rows[i], words.row(i)), (i, [i as u32; 3].as_slice()));
        }
        rows[4_999] = 7;
        assert_eq!(rows.get_mut(4_999).copied(), Some(7));
        assert_eq!(rows.get_mut(5_000), None);
        assert_eq!(rows.iter().count(), 5_000);
        let mut none = Words::new(0);
        none.push();
        assert_eq!((none.row(0), none.capacity()), ([].as_slice(), 0));
    }
}
