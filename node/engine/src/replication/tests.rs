//! One pair of peers, message by message.

use std::collections::BTreeMap;

use super::*;
use crate::stick::{DataType, Key, KeyType, Spec};

fn at(ms: u64) -> Now {
    Now { mono: Duration::from_millis(ms), unix_us: 1_700_000_000_000_000 + ms * 1000 }
}

fn node(name: &str) -> Arc<Tables> {
    let spec = Spec {
        expire: Some(Duration::from_secs(10)),
        shared: true,
        ..Spec::new(KeyType::Integer, 200_000, &[DataType::Gpc0])
    };
    let tables = Tables::new(name, 1, 1);
    tables.apply(&BTreeMap::from([("t".to_string(), spec)]), at(0));
    tables
}

fn said(peer: &mut Peer, now: Now) -> Vec<Message> {
    std::iter::from_fn(|| peer.poll_output(now)).collect()
}

/// Two nodes whose stream is up and who have said all there is to say.
fn pair(now: Now) -> [(Arc<Tables>, Peer); 2] {
    let (a, b) = (node("a"), node("b"));
    let mut of_a = Peer::new(a.clone(), "b").unwrap();
    let mut of_b = Peer::new(b.clone(), "a").unwrap();
    of_a.connected(now);
    of_b.connected(now);
    for _ in 0..8 {
        said(&mut of_a, now).into_iter().for_each(|m| of_b.handle(m, now).unwrap());
        said(&mut of_b, now).into_iter().for_each(|m| of_a.handle(m, now).unwrap());
    }
    [(a, of_a), (b, of_b)]
}

fn hit(tables: &Tables, key: u32, now: Now) {
    tables.get("t").unwrap().track(&Key::Int(key), now).unwrap().inc_gpc0(now);
}

fn bytes(messages: &[Message]) -> usize {
    let size = |m: &Message| if let Message::Batch(b) = m { b.entries.len() } else { 0 };
    messages.iter().map(size).sum()
}

#[test]
fn a_peer_that_does_not_acknowledge_is_sent_a_window_and_no_more() {
    let now = at(1);
    let [(a, mut of_a), (b, mut of_b)] = pair(now);
    (0..150_000).for_each(|key| hit(&a, key, now));
    let first = said(&mut of_a, now);
    assert!(bytes(&first) <= WINDOW + (32 << 10), "{} bytes", bytes(&first));
    assert!(said(&mut of_a, now).is_empty());
    let lag = of_a.status(at(50));
    assert!(lag.lag_updates > 100_000 && lag.lag == Duration::from_millis(49), "{lag:?}");
    let mut next = first;
    while !next.is_empty() {
        next.into_iter().for_each(|m| of_b.handle(m, now).unwrap());
        let acks = said(&mut of_b, now);
        assert!(acks.iter().all(|m| matches!(m, Message::Ack { .. })) && acks.len() <= 1, "one ack for all");
        acks.into_iter().for_each(|m| of_a.handle(m, now).unwrap());
        next = said(&mut of_a, now);
    }
    assert_eq!(b.get("t").unwrap().used(), 150_000);
    let status = of_a.status(now);
    assert_eq!((status.lag_updates, status.in_flight, status.lag), (0, 0, Duration::ZERO));
}

#[test]
fn a_hot_key_is_sent_once_with_its_newest_value() {
    let now = at(1);
    let [(a, mut of_a), (b, mut of_b)] = pair(now);
    (0..1_000).for_each(|_| hit(&a, 7, now));
    let batches = said(&mut of_a, now);
    assert_eq!(batches.len(), 1);
    assert!(matches!(&batches[0], Message::Batch(b) if b.count == 1));
    batches.into_iter().for_each(|m| of_b.handle(m, now).unwrap());
    assert_eq!(b.get("t").unwrap().value(&Key::Int(7), "gpc0", now), Some(1_000));
}

#[test]
fn what_waits_on_its_way_ages() {
    let [(a, mut of_a), (b, mut of_b)] = pair(at(1));
    hit(&a, 7, at(1_000));
    for message in said(&mut of_a, at(1_000)) {
        of_b.handle(message, at(5_000)).unwrap();
    }
    let table = b.get("t").unwrap();
    assert!(table.value(&Key::Int(7), "gpc0", at(10_900)).is_some());
    assert!(table.value(&Key::Int(7), "gpc0", at(11_100)).is_none(), "ten seconds after it was counted");
}

#[test]
fn a_tracked_entry_stays_alive_on_the_peer() {
    let [(a, mut of_a), (b, mut of_b)] = pair(at(1));
    let held = a.get("t").unwrap().track(&Key::Int(7), at(1)).unwrap();
    held.inc_gpc0(at(1));
    for s in 0..60 {
        let now = at(s * 1_000 + 2);
        a.sweep(now);
        b.sweep(now);
        said(&mut of_a, now).into_iter().for_each(|m| of_b.handle(m, now).unwrap());
        said(&mut of_b, now).into_iter().for_each(|m| of_a.handle(m, now).unwrap());
        assert_eq!(b.get("t").unwrap().value(&Key::Int(7), "gpc0", now), Some(1), "second {s}");
    }
}

#[test]
fn looking_for_the_past_of_a_peer_holds_up_no_changes() {
    let [(a, mut of_a), _] = pair(at(1));
    (0..100_000).for_each(|key| hit(&a, key, at(1)));
    said(&mut of_a, at(1));
    of_a.handle(Message::Ack { upto: u64::MAX }, at(1)).unwrap();
    while let [_, ..] = said(&mut of_a, at(1))[..] {
        of_a.handle(Message::Ack { upto: u64::MAX }, at(1)).unwrap();
    }
    a.origins().intern("b", 0, 0, 0).unwrap();
    let asked = Message::Teach { table: "t".to_string(), scratch: false, past: true };
    of_a.handle(asked, at(1)).unwrap();
    let mut looks = 0;
    loop {
        let now = at(2 + looks);
        assert!(!of_a.is_teaching(), "a change has to wake somebody");
        hit(&a, 7, now);
        let out = said(&mut of_a, now);
        assert!(matches!(out.first(), Some(Message::Batch(batch)) if batch.count == 1), "{out:?}");
        of_a.handle(Message::Ack { upto: u64::MAX }, now).unwrap();
        if out.iter().any(|m| matches!(m, Message::Taught { past: true, .. })) {
            break;
        }
        assert_eq!(of_a.next_poll(now), Some(now.mono + Duration::from_millis(1)), "it goes on by itself");
        looks += 1;
    }
    assert!((8..64).contains(&looks), "{looks} looks at 100,000 entries");
}

#[test]
fn another_version_and_another_node_are_refused() {
    let mut peer = Peer::new(node("a"), "b").unwrap();
    for (version, name, error) in
        [(VERSION + 1, "b", Error::Version(VERSION + 1)), (VERSION, "c", Error::WrongNode("c".to_string()))]
    {
        peer.connected(at(1));
        let hello = Hello { version, node: name.to_string(), ..Hello::default() };
        assert_eq!(peer.handle(Message::Hello(hello), at(1)), Err(error));
    }
    peer.connected(at(1));
    assert!(matches!(peer.handle(Message::Ack { upto: 1 }, at(1)), Err(Error::Protocol(_))));
    assert!(!peer.is_silent(at(4_000)) && peer.is_silent(at(6_000)));
}

#[test]
fn a_table_that_only_one_has_is_warned_about_once() {
    let [(a, mut of_a), (_b, mut of_b)] = pair(at(1));
    let mut specs = BTreeMap::new();
    let spec = Spec { shared: true, ..Spec::new(KeyType::Ip, 10, &[DataType::Gpc0]) };
    specs.insert("new".to_string(), spec);
    for _ in 0..3 {
        a.apply(&specs, at(2));
        said(&mut of_a, at(2)).into_iter().for_each(|m| of_b.handle(m, at(2)).unwrap());
    }
    let warnings: Vec<_> = std::iter::from_fn(|| of_b.poll_warning()).collect();
    assert_eq!(
        warnings,
        ["peer 'a': table 'new' is not replicated: there is no such table with 'peers' here"]
    );
}

#[test]
fn a_broken_stream_goes_on_where_it_stopped() {
    const KEYS: u32 = 40_000;
    for delivered in [3, 70, 140] {
        let now = at(1);
        let [(a, mut of_a), (b, mut of_b)] = pair(now);
        (0..KEYS).for_each(|key| hit(&a, key, now));
        for message in said(&mut of_a, now).into_iter().take(delivered) {
            of_b.handle(message, now).unwrap();
        }
        of_a.disconnected();
        of_b.disconnected();
        (0..KEYS).step_by(1_000).for_each(|key| hit(&a, key, now));
        assert!(a.get("t").unwrap().take_pending(of_a.index) == 0, "nothing is gathered for an absent peer");
        let before = of_a.totals.updates_out;
        of_a.connected(now);
        of_b.connected(now);
        for _ in 0..8 {
            said(&mut of_a, now).into_iter().for_each(|m| of_b.handle(m, now).unwrap());
            said(&mut of_b, now).into_iter().for_each(|m| of_a.handle(m, now).unwrap());
        }
        let (ours, theirs) = (a.get("t").unwrap(), b.get("t").unwrap());
        assert_eq!(theirs.used(), KEYS as usize, "after {delivered} messages");
        assert_eq!(ours.digest(now), theirs.digest(now));
        assert_eq!(of_a.totals.taught_out, 0);
        let again = of_a.totals.updates_out - before;
        let had = 150 * delivered as u64;
        assert!(again <= u64::from(KEYS) - had + 50, "{again} sent after {delivered} messages");
    }
}

#[test]
fn a_table_feeds_many_peers_and_any_number_one_after_the_other() {
    let a = node("a");
    // As many as a cluster has nodes, at a time; the last is taught like the first.
    let mut peers: Vec<Peer> = (0..63).map(|i| Peer::new(a.clone(), &format!("p{i}")).unwrap()).collect();
    let mut theirs: Vec<(Arc<Tables>, Peer)> = (0..63)
        .map(|i| {
            let tables = node(&format!("p{i}"));
            let peer = Peer::new(tables.clone(), "a").unwrap();
            (tables, peer)
        })
        .collect();
    hit(&a, 7, at(1));
    for at_ms in 1..6 {
        let now = at(at_ms);
        for (ours, (_, their)) in peers.iter_mut().zip(&mut theirs) {
            if at_ms == 1 {
                ours.connected(now);
                their.connected(now);
            }
            said(ours, now).into_iter().for_each(|m| their.handle(m, now).unwrap());
            said(their, now).into_iter().for_each(|m| ours.handle(m, now).unwrap());
        }
        hit(&a, 8, now);
    }
    for (i, (tables, _)) in theirs.iter().enumerate() {
        let value = |key| tables.get("t").unwrap().value(&Key::Int(key), "gpc0", at(6));
        assert_eq!(value(7), Some(1), "peer {i}");
        assert!(value(8) >= Some(4), "peer {i} hears what is new: {:?}", value(8));
    }
    let one_more = Peer::new(a.clone(), "p63").unwrap();
    assert!(matches!(Peer::new(a.clone(), "p64"), Err(Error::TooManyPeers)));
    drop(one_more);
    // Nodes that come and go do not use them up, and one that comes is not taken for one that went.
    peers.truncate(2);
    for i in 0..300 {
        let now = at(10 + i);
        let mut ours = Peer::new(a.clone(), &format!("q{i}")).unwrap();
        let tables = node(&format!("q{i}"));
        let mut their = Peer::new(tables.clone(), "a").unwrap();
        ours.connected(now);
        their.connected(now);
        for _ in 0..4 {
            said(&mut ours, now).into_iter().for_each(|m| their.handle(m, now).unwrap());
            said(&mut their, now).into_iter().for_each(|m| ours.handle(m, now).unwrap());
        }
        assert_eq!(tables.get("t").unwrap().value(&Key::Int(7), "gpc0", now), Some(1), "peer q{i}");
    }
    assert_eq!(a.peer_count(), 2);
}
