//! When somebody had the address, from single answers; and when two had it.

use std::time::Duration;

/// A time in which a node had the address for certain: from the end of a probe that it answered to
/// the beginning of a later one, with every probe between them answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Since when.
    pub from: Duration,
    /// Until when.
    pub to: Duration,
}

/// Spans out of answers, in the order in which the probes were sent.
#[derive(Clone, Debug, Default)]
pub struct Spans {
    closed: Vec<Span>,
    open: Option<Span>,
}

/// Further apart than that, two answers say nothing of the time between them.
const JOINS: Duration = Duration::from_millis(20);

impl Spans {
    /// A probe was answered.
    pub fn seen(&mut self, sent: Duration, got: Duration) {
        match &mut self.open {
            Some(span) if sent <= span.to + JOINS => span.to = span.to.max(sent),
            _ => {
                self.broken();
                // At some moment of this probe it had the address: a point, for certain only between two.
                self.open = Some(Span { from: got, to: sent });
            }
        }
    }

    /// A probe was not answered.
    pub fn broken(&mut self) {
        self.closed.extend(self.open.take().filter(|s| s.to > s.from));
    }

    /// All of them so far.
    pub fn all(&self) -> Vec<Span> {
        let open = self.open.filter(|s| s.to > s.from);
        self.closed.iter().copied().chain(open).collect()
    }
}

/// A time in which two nodes had the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The two, by their place in the list.
    pub nodes: (usize, usize),
    /// When.
    pub span: Span,
}

/// Every time in which two of the nodes had the address.
pub fn overlaps(nodes: &[Vec<Span>]) -> Vec<Overlap> {
    let mut found = Vec::new();
    for (a, first) in nodes.iter().enumerate() {
        for (b, second) in nodes.iter().enumerate().skip(a + 1) {
            for x in first {
                // Both lists are in order of time.
                let start = second.partition_point(|y| y.to <= x.from);
                for y in second[start..].iter().take_while(|y| y.from < x.to) {
                    let span = Span { from: x.from.max(y.from), to: x.to.min(y.to) };
                    found.push(Overlap { nodes: (a, b), span });
                }
            }
        }
    }
    found.sort_by_key(|o| o.span.from);
    found
}

/// How long two nodes had the address, within a time.
pub fn overlap(nodes: &[Vec<Span>], from: Duration, to: Duration) -> Duration {
    let within = |o: Overlap| o.span.to.min(to).saturating_sub(o.span.from.max(from));
    overlaps(nodes).into_iter().map(within).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn answers_join_to_a_span_that_is_certain() {
        let mut spans = Spans::default();
        for at in [10, 12, 14] {
            spans.seen(ms(at), ms(at + 1));
        }
        spans.broken();
        spans.seen(ms(18), ms(19));
        spans.seen(ms(20), ms(21));
        // The harness stood still: nobody knows about the time between.
        spans.seen(ms(90), ms(91));
        assert_eq!(spans.all(), [Span { from: ms(11), to: ms(14) }, Span { from: ms(19), to: ms(20) }]);
    }

    #[test]
    fn a_single_answer_is_not_a_span() {
        let mut spans = Spans::default();
        spans.seen(ms(10), ms(12));
        spans.broken();
        assert!(spans.all().is_empty());
    }

    #[test]
    fn two_owners_are_seen_and_neighbours_are_not() {
        let span = |from, to| Span { from: ms(from), to: ms(to) };
        let apart = [vec![span(0, 100), span(300, 400)], vec![span(100, 299)], vec![]];
        assert!(overlaps(&apart).is_empty());
        let planted = [vec![span(0, 100)], vec![span(97, 200)], vec![span(150, 160)]];
        assert_eq!(
            overlaps(&planted),
            [Overlap { nodes: (0, 1), span: span(97, 100) }, Overlap { nodes: (1, 2), span: span(150, 160) },]
        );
        assert_eq!(overlap(&planted, ms(0), ms(1000)), ms(13));
        assert_eq!(overlap(&planted, ms(98), ms(155)), ms(7));
    }
}
