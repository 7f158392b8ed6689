//! Sessions byte by byte: against bytes that HAProxy 2.6 sent, and between two of ours.

use std::collections::BTreeMap;

use super::*;
use crate::stick::{Data, DataType, Key, KeyType, Spec};

fn at(ms: u64) -> Now {
    Now { mono: Duration::from_millis(ms), unix_us: 1_700_000_000_000_000 + ms * 1000 }
}

const PERIOD: Duration = Duration::from_secs(10);

fn node(name: &str) -> Arc<Tables> {
    let spec = |key, store: &[DataType]| Spec {
        expire: Some(Duration::from_secs(600)),
        section: Some("p".to_string()),
        ..Spec::new(key, 100_000, store)
    };
    let t = [
        DataType::ServerId,
        DataType::Gpt0,
        DataType::Gpc0,
        DataType::Gpc0Rate(PERIOD),
        DataType::ConnCnt,
        DataType::ConnCur,
        DataType::HttpReqRate(PERIOD),
        DataType::BytesInCnt,
    ];
    let s = [
        DataType::ServerKey,
        DataType::Gpc(3),
        DataType::Gpt(2),
        DataType::GpcRate(2, PERIOD),
        DataType::HttpReqCnt,
    ];
    let tables = Tables::new(name, 1, 1);
    let specs = BTreeMap::from([
        ("t".to_string(), spec(KeyType::Ip, &t)),
        ("s".to_string(), spec(KeyType::String(20), &s)),
        ("i".to_string(), spec(KeyType::Integer, &[DataType::HttpFailCnt])),
    ]);
    tables.apply(&specs, at(0));
    tables
}

fn peer(tables: &Arc<Tables>, name: &str) -> Peer {
    Peer::new(tables.clone(), Arc::default(), Some("p"), name, Duration::ZERO).unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|b| u8::from_str_radix(b, 16).unwrap()).collect()
}

fn out(peer: &mut Peer, now: Now) -> Vec<u8> {
    let mut bytes = Vec::new();
    while peer.poll_output(&mut bytes, now) {}
    bytes
}

/// Lets both say all that there is to say.
fn exchange(a: &mut Peer, b: &mut Peer, now: Now) {
    for _ in 0..20 {
        let (to_b, to_a) = (out(a, now), out(b, now));
        if to_a.is_empty() && to_b.is_empty() {
            return;
        }
        // In pieces, as a network brings them.
        to_b.chunks(7).for_each(|bytes| b.receive(bytes, Role::Learner, now).unwrap());
        to_a.chunks(1000).for_each(|bytes| a.receive(bytes, Role::Learner, now).unwrap());
    }
    panic!("two peers never come to an end");
}

fn pair(now: Now) -> [(Arc<Tables>, Peer); 2] {
    let (a, b) = (node("a"), node("b"));
    let (mut of_a, mut of_b) = (peer(&a, "b"), peer(&b, "a"));
    of_a.connected(now);
    of_b.connected(now);
    exchange(&mut of_a, &mut of_b, now);
    [(a, of_a), (b, of_b)]
}

fn value(tables: &Tables, key: &Key, data: Data, now: Now) -> Option<u64> {
    let table = match key {
        Key::V4(_) => "t",
        Key::Str(_) => "s",
        _ => "i",
    };
    tables.get(table).unwrap().value(key, data, now)
}

const KEY: Key = Key::V4(0x0102_0309);

#[test]
fn what_haproxy_sends_is_learned_and_acknowledged() {
    let now = at(1_000);
    let tables = node("N");
    let mut peer = peer(&tables, "A");
    peer.connected(now);
    assert_eq!(out(&mut peer, now), [0, 0], "it asks to be taught");
    // Definitions of three tables, entries with their time left, numbered and not, as a running HAProxy
    // taught them; then 'partial'.
    let seen = "00 00 0a 82 16 02 01 73 06 15 f1 91 ff 70 f0 ed a3 01 16 02 17 03 18 02 f0 e2 03 \
        0a 82 14 01 01 74 04 04 ff b6 03 f0 ed a3 01 03 f0 e2 03 0a f0 e2 03 \
        0a 85 20 00 00 00 01 00 09 21 1f 01 02 03 01 00 00 01 fd 88 85 c4 7d 00 00 00 00 fd 88 85 c4 7d 00 00 00 \
        0a 86 1c 00 09 21 24 01 02 03 02 00 00 02 fd 88 85 c4 7d 00 00 00 00 fd 88 85 c4 7d 00 00 00 \
        0a 82 0d 03 01 69 02 04 f0 f1 fe 02 f0 ed a3 01 0a 80 09 00 00 00 01 00 00 00 07 09 00 02";
    peer.receive(&hex(seen), Role::Learner, now).unwrap();
    assert_eq!(value(&tables, &Key::V4(0x0102_0301), Data::GPC0, now), Some(1));
    assert_eq!(value(&tables, &Key::V4(0x0102_0302), Data::GPC0, now), Some(2));
    assert_eq!(value(&tables, &Key::Int(7), Data::HTTP_FAIL_CNT, now), Some(9));
    let left = tables.get("t").unwrap().left(&Key::V4(0x0102_0301), now).unwrap();
    assert_eq!(left, Duration::from_millis(0x0009_211f));
    let said = out(&mut peer, now);
    // The confirmation; acknowledgements of update 2 of table 1 and of 1 of table 3; 'partial' to its
    // own request, for this node does not know either.
    let expected = "00 03 0a 84 05 01 00 00 00 02 0a 84 05 03 00 00 00 01";
    assert!(said.starts_with(&hex(expected)), "{said:02x?}");
    assert!(said.ends_with(&[0, 2]), "{said:02x?}");
    // What was learned is not sent back.
    assert!(!said[hex(expected).len()..].windows(2).any(|w| w == [10, 128]), "{said:02x?}");
}

#[test]
fn everything_goes_both_ways() {
    let now = at(1_000);
    let [(a, mut of_a), (b, mut of_b)] = pair(now);
    let [t, s] = ["t", "s"].map(|name| a.get(name).unwrap());
    let tracked = t.track(&KEY, now).unwrap();
    (0..5).for_each(|_| _ = tracked.inc(Data::GPC0, 1, now));
    (0..3).for_each(|_| tracked.http_req(now));
    tracked.conn(now);
    t.set(&Key::V4(5), &[(Data::GPT0, 77), (Data::BYTES_IN_CNT, 1 << 40)], now).unwrap();
    t.set_server_id(&Key::V4(6), 3, now);
    s.stick(&Key::Str(b"hello"), 4, "web4", now);
    let tracked = s.track(&Key::Str(b"hello"), now).unwrap();
    tracked.inc(Data::gpc(2), 8, now);
    tracked.inc(Data::gpc(1), 2, now);
    exchange(&mut of_a, &mut of_b, now);
    let later = at(1_500);
    assert_eq!(value(&b, &KEY, Data::GPC0, later), Some(5));
    assert_eq!(value(&b, &KEY, Data::GPC0_RATE, later), Some(5));
    assert_eq!(value(&b, &KEY, Data::HTTP_REQ_RATE, later), Some(3));
    assert_eq!(value(&b, &KEY, Data::CONN_CNT, later), Some(1));
    assert_eq!(value(&b, &KEY, Data::CONN_CUR, later), Some(0), "gauges stay at home");
    assert_eq!(value(&b, &Key::V4(5), Data::GPT0, later), Some(77));
    assert_eq!(value(&b, &Key::V4(5), Data::BYTES_IN_CNT, later), Some(1 << 40));
    assert_eq!(value(&b, &Key::V4(6), Data::SERVER_ID, later), Some(3));
    assert_eq!(value(&b, &Key::Str(b"hello"), Data::gpc(2), later), Some(8));
    assert_eq!(value(&b, &Key::Str(b"hello"), Data::gpc_rate(1), later), Some(2));
    let stuck = b.get("s").unwrap().stuck(&Key::Str(b"hello"), later).unwrap();
    assert_eq!(stuck.key.as_deref(), Some("web4"));
    // And back: a counter that both count takes turns.
    b.get("t").unwrap().track(&KEY, later).unwrap().inc(Data::GPC0, 2, later);
    exchange(&mut of_a, &mut of_b, later);
    assert_eq!(value(&a, &KEY, Data::GPC0, later), Some(7));
    // Rates fade on both as one window does.
    assert_eq!(
        value(&b, &KEY, Data::HTTP_REQ_RATE, at(16_000)),
        value(&a, &KEY, Data::HTTP_REQ_RATE, at(16_000))
    );
}

#[test]
fn what_was_learned_is_not_sent_back_until_it_changes_here() {
    let now = at(1_000);
    let [(a, mut of_a), (b, mut of_b)] = pair(now);
    a.get("t").unwrap().track(&KEY, now).unwrap().inc(Data::GPC0, 1, now);
    exchange(&mut of_a, &mut of_b, now);
    assert_eq!(of_b.totals().updates_out, 0);
    b.get("t").unwrap().track(&KEY, now).unwrap().inc(Data::GPC0, 1, now);
    exchange(&mut of_a, &mut of_b, now);
    assert_eq!(of_b.totals().updates_out, 1);
    assert_eq!(value(&a, &KEY, Data::GPC0, now), Some(2));
}

#[test]
fn repeated_and_older_lessons_count_nothing() {
    let now = at(1_000);
    let [(a, mut of_a), (b, mut of_b)] = pair(now);
    a.get("t").unwrap().track(&KEY, now).unwrap().inc(Data::GPC0, 9, now);
    let bytes = out(&mut of_a, now);
    for _ in 0..3 {
        of_b.receive(&bytes, Role::Learner, now).unwrap();
        assert_eq!(value(&b, &KEY, Data::GPC0, now), Some(9));
    }
    b.get("t").unwrap().track(&KEY, now).unwrap().inc(Data::GPC0, 1, now);
    of_b.receive(&bytes, Role::Learner, now).unwrap();
    assert_eq!(value(&b, &KEY, Data::GPC0, now), Some(10));
}

#[test]
fn bystander_acknowledges_and_takes_nothing() {
    let now = at(1_000);
    let [(a, mut of_a), (b, mut of_b)] = pair(now);
    a.get("t").unwrap().track(&KEY, now).unwrap().inc(Data::GPC0, 9, now);
    let bytes = out(&mut of_a, now);
    of_b.receive(&bytes, Role::Bystander, now).unwrap();
    assert_eq!(value(&b, &KEY, Data::GPC0, now), None);
    assert!(out(&mut of_b, now).starts_with(&[10, 132]));
}

#[test]
fn a_new_session_goes_on_where_the_peer_acknowledged() {
    let now = at(1_000);
    let [(a, mut of_a), (b, mut of_b)] = pair(now);
    let t = a.get("t").unwrap();
    (0..1000).for_each(|n| _ = t.track(&Key::V4(n), now).unwrap().inc(Data::GPC0, 1, now));
    exchange(&mut of_a, &mut of_b, now);
    assert_eq!(of_a.totals().updates_out, 1000);
    of_a.disconnected();
    of_b.disconnected();
    t.track(&Key::V4(7), now).unwrap().inc(Data::GPC0, 1, now);
    of_a.connected(now);
    of_b.connected(now);
    let taught = of_a.totals().taught_out;
    exchange(&mut of_a, &mut of_b, now);
    assert_eq!(of_a.totals().updates_out, 1001, "one change");
    assert_eq!(value(&b, &Key::V4(7), Data::GPC0, now), Some(2));
    assert!(of_a.totals().taught_out >= taught);
}

/// A node that hears of it through another one lags behind what HAProxy has told it.
#[test]
fn haproxy_is_never_sent_less_than_it_has_just_said() {
    let now = at(1_000);
    let (h, n) = (node("h"), node("n"));
    let mut of_h = peer(&h, "n");
    let delay = Duration::from_millis(100);
    let mut of_n = Peer::new(n.clone(), Arc::default(), Some("p"), "h", delay).unwrap();
    of_h.connected(now);
    of_n.connected(now);
    exchange(&mut of_h, &mut of_n, now);
    let count = |tables: &Arc<Tables>, data, times| {
        tables.get("t").unwrap().track(&KEY, now).unwrap().inc(data, times, now);
    };
    count(&n, Data::GPC0, 1);
    exchange(&mut of_h, &mut of_n, now);
    count(&h, Data::GPC0, 4);
    let said = out(&mut of_h, now);
    of_n.receive(&said, Role::Bystander, now).unwrap();
    assert_eq!(value(&n, &KEY, Data::GPC0, now), Some(1), "it is not for this node to take it");
    let before = of_n.totals().updates_out;

    // A late update and a late teaching of the same say nothing.
    n.get("t").unwrap().set(&KEY, &[], now).unwrap();
    let bytes = out(&mut of_n, now);
    of_h.receive(&bytes, Role::Learner, now).unwrap();
    of_n.receive(&[CONTROL, Control::ResyncRequest as u8], Role::Bystander, now).unwrap();
    let taught = of_n.totals().taught_out;
    out(&mut of_n, now);
    assert_eq!((of_n.totals().updates_out, of_n.totals().taught_out), (before, taught));
    // Of something new, what HAProxy had counted goes along.
    let wire = {
        n.get("t").unwrap().set(&KEY, &[(Data::BYTES_IN_CNT, 700)], now).unwrap();
        out(&mut of_n, now)
    };
    let mut witness = peer(&node("w"), "n");
    witness.connected(now);
    witness.receive(&wire, Role::Learner, now).unwrap();
    assert_eq!(value(&witness.tables, &KEY, Data::BYTES_IN_CNT, now), Some(700));
    assert_eq!(value(&witness.tables, &KEY, Data::GPC0, now), Some(5));
    // Nothing is acknowledged before its time.
    assert_eq!(of_n.next_poll(now), now.mono + delay);
    let later = at(1_100);
    of_n.handle_timeout(Role::Learner, later);
    assert_eq!(value(&n, &KEY, Data::GPC0, later), Some(5), "whose turn it is says so then");
    assert!(out(&mut of_n, later).windows(2).any(|w| w == [10, 132]));
}

#[test]
fn silence_and_heartbeats() {
    let now = at(10_000);
    let [(_, mut of_a), (_, mut of_b)] = pair(now);
    assert_eq!(of_a.next_poll(now), (now.mono + HEARTBEAT));
    assert!(out(&mut of_a, at(12_999)).is_empty());
    let beat = out(&mut of_a, at(13_000));
    assert_eq!(beat, [0, 4]);
    assert!(!of_b.is_silent(at(15_000)) && of_b.is_silent(at(15_001)));
    of_b.receive(&beat, Role::Learner, at(15_001)).unwrap();
    assert!(!of_b.is_silent(at(15_002)));
}

#[test]
fn nothing_that_comes_panics() {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    let seed = std::env::var("PHALANX_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(11);
    let mut rng = StdRng::seed_from_u64(seed);
    let now = at(1_000);
    let [(a, mut of_a), (_, _)] = pair(now);
    (0..50).for_each(|n| _ = a.get("t").unwrap().track(&Key::V4(n), now).unwrap().inc(Data::GPC0, 1, now));
    a.get("s").unwrap().stick(&Key::Str(b"hello"), 4, "web4", now);
    let good = out(&mut of_a, now);
    for _ in 0..3_000 {
        let mut bytes = good.clone();
        for _ in 0..rng.random_range(1..6) {
            let place = rng.random_range(0..bytes.len());
            match rng.random_range(0..3) {
                0 => bytes[place] = rng.random(),
                1 => bytes.truncate(place + 1),
                _ => bytes.insert(place, rng.random()),
            }
        }
        let tables = node("c");
        let mut victim = peer(&tables, "a");
        victim.connected(now);
        let _ = victim.receive(&bytes, Role::Learner, now);
        let _ = out(&mut victim, now);
        tables.get("t").unwrap().check_invariants();
    }
}

#[test]
fn a_smaller_table_takes_the_place_of_one_that_is_being_sent() {
    let now = at(1_000);
    let [(a, mut of_a), (b, mut of_b)] = pair(now);
    let spec = |size| Spec {
        expire: Some(Duration::from_secs(600)),
        section: Some("p".to_string()),
        ..Spec::new(KeyType::Ip, size, &[DataType::Gpc0])
    };
    let count = |n: u32| a.get("t").unwrap().inc(&Key::V4(n), Data::GPC0, 1, now);
    (0..5_000).for_each(|n| _ = count(n));
    // The first burst is on its way, shards are still to be gone through, and the peer asks for all.
    let mut first = Vec::new();
    assert!(of_a.poll_output(&mut first, now));
    of_a.receive(&[CONTROL, Control::ResyncRequest as u8], Role::Learner, now).unwrap();
    a.apply(&BTreeMap::from([("t".to_string(), spec(10))]), now);
    count(7);
    let sent = out(&mut of_a, now);
    assert!(!sent.is_empty());
    // An acknowledgement of what was sent of the table before is none of what this one sent.
    let acked = |peer: &Peer| peer.mine.iter().find(|m| m.table.name() == "t").unwrap().acked.clone();
    let before = acked(&of_a);
    of_b.receive(&first, Role::Learner, now).unwrap();
    of_b.handle_timeout(Role::Learner, now);
    of_a.receive(&out(&mut of_b, now), Role::Learner, now).unwrap();
    assert_eq!(acked(&of_a), before);
    of_b.receive(&sent, Role::Learner, now).unwrap();
    of_b.handle_timeout(Role::Learner, now);
    assert!(value(&b, &Key::V4(7), Data::GPC0, now) > Some(0));
}
