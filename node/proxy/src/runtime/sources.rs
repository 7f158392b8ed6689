//! What is known of the descriptors that a thread waits for.
//!
//! Events are edges: a side that was ready stays so until a call says that it would block, or moves less than
//! it could have.

use std::task::Waker;

use phalanx_sys::epoll::Flags;

/// No place.
pub(super) const NONE: u32 = u32::MAX;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// From the descriptor: bytes, its end, or connections.
    Read,
    /// To it.
    Write,
}

/// What one descriptor waits for and is ready for.
#[derive(Debug, Default)]
pub(super) struct Source {
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Changes with each descriptor that has the place.
    turn: u32,
    readable: bool,
    writable: bool,
    /// No more will come than what is there: a read that takes less than it could does not end it.
    closed: bool,
    /// All of it has been read, and it was no failure: a call would say that this is the end.
    ended: bool,
    /// Why it ends, or how far a read gets, is for a call to say: it has failed, or there are urgent data, at
    /// which reads stop.
    special: bool,
    /// The kernel is asked to tell when it can be written to.
    pub(super) asks_writable: bool,
}

impl Source {
    pub(super) fn is_ready(&self, side: Side) -> bool {
        match side {
            Side::Read => self.readable,
            Side::Write => self.writable,
        }
    }

    #[cfg(test)]
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether a read would find the end: the other side has closed, and everything was read.
    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    /// A side is ready, or is not; also its end is not there, then.
    pub(super) fn set_ready(&mut self, side: Side, ready: bool) {
        match side {
            Side::Read => {
                self.readable = ready;
                self.closed &= ready;
                self.ended &= ready;
            }
            Side::Write => self.writable = ready,
        }
    }

    /// A call has moved less than it could have: there is no more. Of an end it would not have said anything,
    /// but the kernel has, if it comes; of room to write it does not tell who has not asked.
    pub(super) fn drained(&mut self, side: Side) {
        match side {
            Side::Read if self.closed => self.ended = !self.special,
            // There may be more behind the mark.
            Side::Read if self.special => {}
            Side::Write if !self.asks_writable => {}
            side => self.set_ready(side, false),
        }
    }

    /// Who is to be woken when a side becomes ready.
    pub(super) fn wait(&mut self, side: Side, waker: &Waker) {
        let waiting = match side {
            Side::Read => &mut self.reader,
            Side::Write => &mut self.writer,
        };
        match waiting {
            Some(known) => known.clone_from(waker),
            None => *waiting = Some(waker.clone()),
        }
    }

    /// What the kernel says; who is to be woken.
    fn heard(&mut self, flags: Flags) -> [Option<Waker>; 2] {
        let ended = flags.intersects(Flags::HUP | Flags::ERR);
        let closed = ended || flags.contains(Flags::RDHUP);
        self.closed |= closed;
        self.special |= ended || flags.contains(Flags::PRI);
        let mut woken = [None, None];
        if closed || flags.contains(Flags::IN) {
            self.readable = true;
            woken[0] = self.reader.take();
        }
        if ended || flags.contains(Flags::OUT) {
            self.writable = true;
            woken[1] = self.writer.take();
        }
        woken
    }
}

/// The descriptors of a thread.
#[derive(Debug)]
pub(super) struct Sources {
    places: Vec<Source>,
    free: Vec<u32>,
}

impl Sources {
    /// None.
    pub(super) const fn new() -> Sources {
        Sources { places: Vec::new(), free: Vec::new() }
    }

    /// A place for a descriptor, of which nothing is known.
    pub(super) fn add(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.places.push(Source::default());
            // Each is a descriptor, of which there are not as many.
            (self.places.len() - 1) as u32
        })
    }

    /// Frees a place.
    pub(super) fn remove(&mut self, place: u32) {
        let source = &mut self.places[place as usize];
        *source = Source { turn: source.turn.wrapping_add(1), ..Source::default() };
        self.free.push(place);
    }

    pub(super) fn get(&mut self, place: u32) -> &mut Source {
        &mut self.places[place as usize]
    }

    /// What the kernel hands back with the descriptor's events.
    pub(super) fn token(&self, place: u32) -> u64 {
        u64::from(self.places[place as usize].turn) << 32 | u64::from(place)
    }

    /// What the kernel says; who is to be woken. A descriptor that was closed here and has a duplicate in a
    /// process that is just being started may still have events.
    pub(super) fn heard(&mut self, token: u64, flags: Flags) -> [Option<Waker>; 2] {
        let (place, turn) = (token as u32, (token >> 32) as u32);
        match self.places.get_mut(place as usize) {
            Some(source) if source.turn == turn => source.heard(flags),
            _ => [None, None],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_not_forgotten_by_a_short_read() {
        let mut source = Source::default();
        source.heard(Flags::IN);
        source.drained(Side::Read);
        assert!(!source.is_ready(Side::Read));
        source.heard(Flags::IN | Flags::RDHUP);
        source.drained(Side::Read);
        assert!(source.is_ready(Side::Read) && source.is_closed() && !source.is_ready(Side::Write));
        assert!(source.is_ended(), "there was no more");
        source.set_ready(Side::Read, false);
        assert!(!source.is_ready(Side::Read) && !source.is_closed(), "a call that would block knows better");
    }

    #[test]
    fn of_failures_and_beyond_urgent_data_a_call_tells() {
        for special in [Flags::ERR, Flags::HUP, Flags::PRI] {
            let mut source = Source::default();
            source.heard(Flags::IN | special);
            source.heard(Flags::IN | Flags::RDHUP);
            source.drained(Side::Read);
            assert!(source.is_ready(Side::Read) && !source.is_ended(), "{special:?}");
        }
    }

    #[test]
    fn a_read_that_stops_at_urgent_data_is_not_the_last() {
        let mut source = Source::default();
        source.heard(Flags::IN | Flags::PRI);
        source.drained(Side::Read);
        assert!(source.is_ready(Side::Read) && !source.is_ended());
        source.set_ready(Side::Read, false);
        assert!(!source.is_ready(Side::Read), "a call has said so");
    }

    #[test]
    fn a_short_write_is_the_last_only_for_who_is_told_of_room() {
        let mut source = Source::default();
        source.set_ready(Side::Write, true);
        source.drained(Side::Write);
        assert!(source.is_ready(Side::Write));
        source.asks_writable = true;
        source.drained(Side::Write);
        assert!(!source.is_ready(Side::Write));
    }

    #[test]
    fn each_side_wakes_its_own_and_a_failure_both() {
        let mut sources = Sources::new();
        let place = sources.add();
        let token = sources.token(place);
        let woken = |sources: &mut Sources, flags| {
            sources.get(place).wait(Side::Read, Waker::noop());
            sources.get(place).wait(Side::Write, Waker::noop());
            sources.heard(token, flags).map(|waker| waker.is_some())
        };
        assert_eq!(woken(&mut sources, Flags::IN), [true, false]);
        assert_eq!(woken(&mut sources, Flags::RDHUP), [true, false]);
        assert_eq!(woken(&mut sources, Flags::OUT), [false, true]);
        assert_eq!(woken(&mut sources, Flags::ERR), [true, true]);
        assert_eq!(woken(&mut sources, Flags::HUP), [true, true]);
    }

    #[test]
    fn events_of_who_had_the_place_before_are_nobodys() {
        let mut sources = Sources::new();
        let place = sources.add();
        let old = sources.token(place);
        sources.remove(place);
        assert_eq!(sources.add(), place);
        sources.get(place).wait(Side::Read, Waker::noop());
        assert_eq!(sources.heard(old, Flags::IN).map(|waker| waker.is_some()), [false, false]);
        assert!(!sources.get(place).is_ready(Side::Read));
        let new = sources.token(place);
        assert!(sources.heard(new, Flags::IN)[0].is_some());
    }
}
