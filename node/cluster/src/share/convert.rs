//! Between the engine's messages and the wire's. What does not make sense is left out.

use std::time::Duration;

use phalanx_engine::health::{CheckStatus, Report};
use phalanx_engine::permits::{self, Ballot, Key, Line};
use phalanx_engine::server::OpState;
use phalanx_engine::verdict::{Claim, Kind, Message, Stance, Subject, Verdict};
use phalanx_wire::cluster as pb;
use phalanx_wire::cluster::share_message::Kind as Body;

/// Longest text that is taken of a peer's report.
const MAX_TEXT: usize = 1024;

pub(super) fn from_message(message: Message) -> pb::ShareMessage {
    let kind = match message {
        Message::Beat { version, of, acked } => Body::Beat(pb::Beat { version, of, acked }),
        Message::Claims { base, upto, claims } => {
            Body::Claims(pb::Claims { base, upto, claims: claims.iter().map(from_claim).collect() })
        }
    };
    pb::ShareMessage { kind: Some(kind) }
}

/// A message for one of the machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Verdicts(Message),
    Permits(permits::Message),
}

pub(super) fn to_heard(message: pb::ShareMessage) -> Option<Heard> {
    Some(match message.kind? {
        Body::Beat(pb::Beat { version, of, acked }) => Heard::Verdicts(Message::Beat { version, of, acked }),
        Body::Claims(pb::Claims { base, upto, claims }) => {
            let claims = claims.into_iter().filter_map(to_claim).collect();
            Heard::Verdicts(Message::Claims { base, upto, claims })
        }
        Body::PlaceBeat(beat) => {
            Heard::Permits(permits::Message::Beat { promised: to_ballot(beat.promised?) })
        }
        Body::PlaceClaim(claim) => {
            Heard::Permits(permits::Message::Claim { ballot: to_ballot(claim.ballot?) })
        }
        Body::PlaceReport(report) => Heard::Permits(permits::Message::Report {
            ballot: to_ballot(report.ballot?),
            number: report.number,
            full: report.full,
            lines: report.lines.into_iter().map(to_line).collect(),
        }),
        Body::PlaceOrder(order) => Heard::Permits(permits::Message::Order {
            ballot: to_ballot(order.ballot?),
            incarnation: order.incarnation,
            number: order.number,
            key: Key { backend: order.backend.into(), server: order.server.into() },
            held: order.held,
            cap: order.cap,
        }),
    })
}

pub(super) fn from_permits(message: permits::Message) -> pb::ShareMessage {
    use permits::Message;
    let kind = match message {
        Message::Beat { promised } => {
            Body::PlaceBeat(pb::PlaceBeat { promised: Some(from_ballot(promised)) })
        }
        Message::Claim { ballot } => Body::PlaceClaim(pb::PlaceClaim { ballot: Some(from_ballot(ballot)) }),
        Message::Report { ballot, number, full, lines } => Body::PlaceReport(pb::PlaceReport {
            ballot: Some(from_ballot(ballot)),
            number,
            full,
            lines: lines.into_iter().map(from_line).collect(),
        }),
        Message::Order { ballot, incarnation, number, key, held, cap } => Body::PlaceOrder(pb::PlaceOrder {
            ballot: Some(from_ballot(ballot)),
            incarnation,
            number,
            backend: key.backend.to_string(),
            server: key.server.to_string(),
            held,
            cap,
        }),
    };
    pb::ShareMessage { kind: Some(kind) }
}

fn from_ballot(ballot: Ballot) -> pb::PlaceBallot {
    pb::PlaceBallot { counter: ballot.counter, node: ballot.node.to_string() }
}

fn to_ballot(ballot: pb::PlaceBallot) -> Ballot {
    Ballot { counter: ballot.counter, node: ballot.node.into() }
}

fn from_line(line: Line) -> pb::PlaceLine {
    pb::PlaceLine {
        backend: line.key.backend.to_string(),
        server: line.key.server.to_string(),
        limit: line.limit,
        held: line.held,
        served: line.served,
        waiting: line.waiting,
        applied: line.applied,
    }
}

fn to_line(line: pb::PlaceLine) -> Line {
    Line {
        key: Key { backend: line.backend.into(), server: line.server.into() },
        limit: line.limit,
        held: line.held,
        served: line.served,
        waiting: line.waiting,
        applied: line.applied,
    }
}

fn from_claim(claim: &Claim) -> pb::Claim {
    let verdict = &claim.verdict;
    pb::Claim {
        subject: Some(from_subject(&claim.subject)),
        stance: match claim.stance {
            Stance::Idle => 0,
            Stance::Probing => 1,
            Stance::Apart => 2,
        },
        version: claim.version,
        health: verdict.health,
        op: verdict.op as u32,
        report: verdict.report.as_ref().map(from_report),
        forced: verdict.forced,
        said: verdict.said.clone(),
    }
}

fn to_claim(claim: pb::Claim) -> Option<Claim> {
    Some(Claim {
        subject: to_subject(claim.subject?)?,
        stance: match claim.stance {
            0 => Stance::Idle,
            1 => Stance::Probing,
            2 => Stance::Apart,
            _ => return None,
        },
        version: claim.version,
        verdict: Verdict {
            health: claim.health,
            op: OpState::from_u8(claim.op.min(3) as u8),
            report: claim.report.map(to_report),
            forced: claim.forced,
            said: short(claim.said),
        },
    })
}

pub(super) fn from_subject(subject: &Subject) -> pb::Subject {
    pb::Subject {
        backend: subject.backend.to_string(),
        server: subject.server.to_string(),
        kind: match subject.kind {
            Kind::Health => 0,
            Kind::Agent => 1,
        },
        how: subject.how,
    }
}

pub(super) fn to_subject(subject: pb::Subject) -> Option<Subject> {
    Some(Subject {
        backend: subject.backend.into(),
        server: subject.server.into(),
        kind: match subject.kind {
            0 => Kind::Health,
            1 => Kind::Agent,
            _ => return None,
        },
        how: subject.how,
    })
}

pub(super) fn from_report(report: &Report) -> pb::ProbeReport {
    pb::ProbeReport {
        status: report.status as u32,
        code: report.code.map(u32::from),
        info: report.info.clone(),
        duration_us: report.duration.as_micros() as u64,
    }
}

pub(super) fn to_report(report: pb::ProbeReport) -> Report {
    Report {
        status: CheckStatus::from_u8(u8::try_from(report.status).unwrap_or(0)),
        code: report.code.and_then(|code| u16::try_from(code).ok()),
        info: short(report.info),
        duration: Duration::from_micros(report.duration_us),
    }
}

fn short(text: String) -> String {
    if text.len() <= MAX_TEXT { text } else { text.chars().take(MAX_TEXT / 4).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_as_they_were() {
        let subject = Subject { backend: "b".into(), server: "s".into(), kind: Kind::Agent, how: u64::MAX };
        let report = Report {
            status: CheckStatus::L7Sts,
            code: Some(503),
            info: "Service Unavailable".into(),
            duration: Duration::from_millis(3),
        };
        let agent = Report { code: Some(0), ..report.clone() };
        assert_eq!(to_report(from_report(&agent)), agent);
        let verdict = Verdict {
            health: 3,
            op: OpState::Stopping,
            report: Some(report),
            forced: 9,
            said: "up 50%".into(),
        };
        for stance in [Stance::Idle, Stance::Probing, Stance::Apart] {
            let claim = Claim { subject: subject.clone(), stance, verdict: verdict.clone(), version: 8 };
            let message = Message::Claims { base: 1, upto: 8, claims: vec![claim] };
            assert_eq!(to_heard(from_message(message.clone())), Some(Heard::Verdicts(message)));
        }
        let beat = Message::Beat { version: 1, of: 2, acked: 3 };
        assert_eq!(to_heard(from_message(beat.clone())), Some(Heard::Verdicts(beat)));
    }

    #[test]
    fn messages_about_places_come_back_as_they_were() {
        let (ballot, key) =
            (Ballot { counter: 7, node: "n1".into() }, Key { backend: "b".into(), server: "s".into() });
        let line = Line { key: key.clone(), limit: 1, held: 2, served: 3, waiting: 4, applied: 5 };
        for message in [
            permits::Message::Beat { promised: ballot.clone() },
            permits::Message::Claim { ballot: ballot.clone() },
            permits::Message::Report { ballot: ballot.clone(), number: 9, full: true, lines: vec![line] },
            permits::Message::Order { ballot, incarnation: 1, number: 2, key, held: 3, cap: 4 },
        ] {
            assert_eq!(to_heard(from_permits(message.clone())), Some(Heard::Permits(message)));
        }
    }

    #[test]
    fn nonsense_is_left_out() {
        assert_eq!(to_heard(pb::ShareMessage::default()), None);
        let odd = pb::Claims { claims: vec![pb::Claim::default()], ..pb::Claims::default() };
        let message = to_heard(pb::ShareMessage { kind: Some(Body::Claims(odd)) });
        let empty = Message::Claims { base: 0, upto: 0, claims: vec![] };
        assert_eq!(message, Some(Heard::Verdicts(empty)));
        let long =
            pb::ProbeReport { status: 999, code: Some(70_000), info: "ä".repeat(5000), duration_us: 0 };
        let report = to_report(long);
        assert_eq!((report.status, report.code), (CheckStatus::Unknown, None));
        assert!(report.info.len() <= MAX_TEXT);
    }
}
