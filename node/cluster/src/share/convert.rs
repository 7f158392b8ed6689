//! Between the engine's messages and the wire's. What does not make sense is left out.

use std::time::Duration;

use phalanx_engine::health::{CheckStatus, Report};
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

pub(super) fn to_message(message: pb::ShareMessage) -> Option<Message> {
    Some(match message.kind? {
        Body::Beat(pb::Beat { version, of, acked }) => Message::Beat { version, of, acked },
        Body::Claims(pb::Claims { base, upto, claims }) => {
            Message::Claims { base, upto, claims: claims.into_iter().filter_map(to_claim).collect() }
        }
    })
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
        code: report.code.map_or(0, u32::from),
        info: report.info.clone(),
        duration_us: report.duration.as_micros() as u64,
    }
}

pub(super) fn to_report(report: pb::ProbeReport) -> Report {
    Report {
        status: CheckStatus::from_u8(u8::try_from(report.status).unwrap_or(0)),
        code: u16::try_from(report.code).ok().filter(|code| *code > 0),
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
            assert_eq!(to_message(from_message(message.clone())), Some(message));
        }
        let beat = Message::Beat { version: 1, of: 2, acked: 3 };
        assert_eq!(to_message(from_message(beat.clone())), Some(beat));
    }

    #[test]
    fn nonsense_is_left_out() {
        assert_eq!(to_message(pb::ShareMessage::default()), None);
        let odd = pb::Claims { claims: vec![pb::Claim::default()], ..pb::Claims::default() };
        let message = to_message(pb::ShareMessage { kind: Some(Body::Claims(odd)) });
        assert_eq!(message, Some(Message::Claims { base: 0, upto: 0, claims: vec![] }));
        let long = pb::ProbeReport { status: 999, code: 70_000, info: "ä".repeat(5000), duration_us: 0 };
        let report = to_report(long);
        assert_eq!((report.status, report.code), (CheckStatus::Unknown, None));
        assert!(report.info.len() <= MAX_TEXT);
    }
}
