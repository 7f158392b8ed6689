//! Where replication with a peer stands, for people: `show peers`.

use std::time::Duration;

use super::{Peer, Totals};
use crate::stick::Tables;
use crate::time::Now;

/// Where replication with one peer stands (`show peers`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// Name of the peer.
    pub name: String,
    /// `down`, `hello`, `learning`, `teaching` or `established`.
    pub state: &'static str,
    /// Its run, 0 before the first hello.
    pub incarnation: u64,
    /// Own changes that it has not acknowledged.
    pub lag_updates: u64,
    /// Age of the oldest unacknowledged batch.
    pub lag: Duration,
    /// Bytes on the way.
    pub in_flight: usize,
    /// Since the start.
    pub totals: Totals,
    /// The tables shared with it.
    pub tables: Vec<TableStatus>,
}

/// One table as shared with one peer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TableStatus {
    /// Name.
    pub name: String,
    /// Own changes that the peer has not acknowledged.
    pub lag_updates: u64,
    /// Digest of the content here.
    pub digest: u64,
    /// The last digest that the peer told, when it was quiet.
    pub remote_digest: Option<u64>,
    /// Whether this node has been taught all of it.
    pub learned: bool,
    /// Whether the peer has the table too.
    pub matched: bool,
}

impl Status {
    /// Puts in the digests of the tables as they are now.
    pub fn add_digests(&mut self, tables: &Tables, now: Now) {
        for status in &mut self.tables {
            status.digest = tables.get(&status.name).map_or(0, |table| table.digest(now));
        }
    }
}

impl Peer {
    /// Whether there is a stream to the peer.
    pub fn is_connected(&self) -> bool {
        self.session.is_some()
    }

    /// Whether the peer has acknowledged all that this node counted, and was taught what it asked for.
    /// Not before it has said hello: what it lacks is not known until then.
    pub fn has_told_all(&self) -> bool {
        let Some(session) = &self.session else { return false };
        let all = |mine: &super::Mine| {
            let Some(table) = &mine.table else { return true };
            table.positions().iter().zip(&mine.acked).all(|(seq, acked)| seq <= acked)
        };
        session.greeted
            && session.generation == self.tables.generation()
            && session.queue.is_empty()
            && session.teach.is_empty()
            && session.in_flight.is_empty()
            && session.mine.iter().all(all)
    }

    /// A snapshot for people, but for the digests, which cost a walk over what has changed in the tables:
    /// see [`Status::add_digests`].
    pub fn status(&self, now: Now) -> Status {
        let mut status = Status {
            name: self.name.clone(),
            state: "down",
            incarnation: self.incarnation,
            totals: self.totals,
            ..Status::default()
        };
        let Some(session) = &self.session else { return status };
        for mine in &session.mine {
            let Some(table) = &mine.table else { continue };
            let theirs = session.theirs.values().find(|t| t.name == table.name());
            let latest = table.positions();
            let lag = latest.iter().zip(&mine.acked).map(|(seq, acked)| seq.saturating_sub(*acked)).sum();
            status.lag_updates += lag;
            status.tables.push(TableStatus {
                name: table.name().to_string(),
                lag_updates: lag,
                digest: 0,
                remote_digest: theirs.and_then(|t| t.digest),
                learned: table.is_learned(),
                matched: theirs.is_some_and(|t| t.into.is_some()),
            });
        }
        status.in_flight = session.flying;
        status.lag = session.in_flight.front().map_or(Duration::ZERO, |f| now.mono.saturating_sub(f.at));
        status.state = match session {
            s if !s.greeted => "hello",
            s if !s.teach.is_empty() => "teaching",
            s if s
                .theirs
                .values()
                .any(|t| t.into.as_ref().is_some_and(|(t, _)| t.claimed_by(self.index))) =>
            {
                "learning"
            }
            _ => "established",
        };
        status
    }
}
