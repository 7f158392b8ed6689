//! Messages of the engine to and from protobuf. The only place that knows both.

use phalanx_engine::replication::{Batch, Define, Had, Hello, Message};
use phalanx_wire::peers as wire;
use phalanx_wire::peers::frame::Kind;

/// The frame of a message.
pub(super) fn to_frame(message: Message) -> wire::Frame {
    let kind = match message {
        Message::Hello(h) => Kind::Hello(wire::Hello {
            version: h.version,
            node: h.node,
            incarnation: h.incarnation,
            clock: h.clock,
            of: h.of,
            had: h.had.into_iter().map(to_had).collect(),
        }),
        Message::Define(d) => Kind::Define(wire::Define {
            id: d.id,
            name: d.name,
            key: d.key,
            key_len: d.key_len,
            columns: d.columns.into_iter().map(|(name, period)| wire::Column { name, period }).collect(),
            shards: d.shards,
            epoch: d.epoch,
            floor: d.floor,
        }),
        Message::Origin { id, node, incarnation, clock } => {
            Kind::Origin(wire::Origin { id: u32::from(id), node, incarnation, clock })
        }
        Message::Batch(b) => {
            let (shards, positions) = b.positions.into_iter().unzip();
            Kind::Batch(wire::Batch {
                number: b.number,
                table: b.table,
                clock: b.clock,
                count: b.count,
                entries: b.entries,
                shards,
                positions,
            })
        }
        Message::Ack { upto } => Kind::Ack(wire::Ack { upto }),
        Message::Teach { table, scratch, past } => Kind::Teach(wire::Teach { table, scratch, past }),
        Message::Taught { table, complete, past } => Kind::Taught(wire::Taught { table, complete, past }),
        Message::Floor { table, at } => Kind::Floor(wire::Floor { table, at }),
        Message::Heartbeat { clock, digests } => {
            let digests = digests.into_iter().map(|(table, digest)| wire::Digest { table, digest });
            Kind::Heartbeat(wire::Heartbeat { clock, digests: digests.collect() })
        }
    };
    wire::Frame { kind: Some(kind) }
}

/// Changes that a frame carries, what it teaches not among them.
pub(super) fn changes(frame: &wire::Frame) -> u32 {
    match &frame.kind {
        Some(Kind::Batch(batch)) if !batch.positions.is_empty() => batch.count,
        _ => 0,
    }
}

/// Whether a frame teaches.
pub(super) fn taught(frame: &wire::Frame) -> bool {
    matches!(&frame.kind, Some(Kind::Batch(batch)) if batch.positions.is_empty())
}

/// The message of a frame; `None` for a kind that a later version added.
pub(super) fn from_frame(frame: wire::Frame) -> Option<Message> {
    Some(match frame.kind? {
        Kind::Hello(h) => Message::Hello(Hello {
            version: h.version,
            node: h.node,
            incarnation: h.incarnation,
            clock: h.clock,
            of: h.of,
            had: h.had.into_iter().map(from_had).collect(),
        }),
        Kind::Define(d) => Message::Define(Define {
            id: d.id,
            name: d.name,
            key: d.key,
            key_len: d.key_len,
            columns: d.columns.into_iter().map(|c| (c.name, c.period)).collect(),
            shards: d.shards,
            epoch: d.epoch,
            floor: d.floor,
        }),
        Kind::Origin(o) => Message::Origin {
            // Out of range is not of this version: number 0 is refused by the engine.
            id: u16::try_from(o.id).unwrap_or(0),
            node: o.node,
            incarnation: o.incarnation,
            clock: o.clock,
        },
        Kind::Batch(b) => Message::Batch(Batch {
            number: b.number,
            table: b.table,
            positions: b.shards.into_iter().zip(b.positions).collect(),
            clock: b.clock,
            count: b.count,
            entries: b.entries,
        }),
        Kind::Ack(a) => Message::Ack { upto: a.upto },
        Kind::Teach(t) => Message::Teach { table: t.table, scratch: t.scratch, past: t.past },
        Kind::Taught(t) => Message::Taught { table: t.table, complete: t.complete, past: t.past },
        Kind::Floor(f) => Message::Floor { table: f.table, at: f.at },
        Kind::Heartbeat(h) => {
            let digests = h.digests.into_iter().map(|d| (d.table, d.digest)).collect();
            Message::Heartbeat { clock: h.clock, digests }
        }
    })
}

fn to_had(had: Had) -> wire::Had {
    wire::Had { table: had.table, epoch: had.epoch, shards: had.shards }
}

fn from_had(had: wire::Had) -> Had {
    Had { table: had.table, epoch: had.epoch, shards: had.shards }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_survives_the_trip() {
        let had = Had { table: "t".into(), epoch: 7, shards: vec![1, 0, 3] };
        let messages = [
            Message::Hello(Hello {
                version: 1,
                node: "n1".into(),
                incarnation: 2,
                clock: 3,
                of: 4,
                had: vec![had],
            }),
            Message::Define(Define {
                id: 1,
                name: "t".into(),
                key: 6,
                key_len: 32,
                columns: vec![("http_req_rate".into(), 10_000)],
                shards: 4,
                epoch: 5,
                floor: 6,
            }),
            Message::Origin { id: 3, node: "n2".into(), incarnation: 9, clock: 1 },
            Message::Batch(Batch {
                number: 1,
                table: 2,
                positions: vec![(0, 0), (3, 1 << 40)],
                clock: 4,
                count: 1,
                entries: vec![1, 2, 3].into(),
            }),
            Message::Batch(Batch { number: 2, ..Batch::default() }),
            Message::Ack { upto: 4 },
            Message::Teach { table: "t".into(), scratch: true, past: true },
            Message::Taught { table: "t".into(), complete: true, past: true },
            Message::Floor { table: 1, at: 2 },
            Message::Heartbeat { clock: 1, digests: vec![(1, 2)] },
        ];
        for message in messages {
            assert_eq!(from_frame(to_frame(message.clone())), Some(message));
        }
        assert_eq!(from_frame(wire::Frame { kind: None }), None);
    }
}
