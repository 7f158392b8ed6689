//! Tables by themselves: entries, expiry, eviction, reading, clearing, reload.

use std::collections::BTreeMap;

use phalanx_config::model::DataType;
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::*;

fn at(ms: u64) -> Now {
    Now { mono: Duration::from_millis(ms), unix_us: 1_700_000_000_000_000 + ms * 1000 }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn spec(size: usize, expire: Option<Duration>) -> Spec {
    let store = vec![
        DataType::HttpReqRate(secs(10)),
        DataType::ServerId,
        DataType::HttpReqCnt,
        DataType::Gpc0,
        DataType::ConnCnt,
        DataType::ConnRate(secs(1)),
    ];
    Spec { expire, shared: true, ..Spec::new(KeyType::Ip, size, &store) }
}

fn tables(spec: Spec) -> (Arc<Tables>, Arc<Table>) {
    let tables = Tables::new("n1", 1, 7);
    tables.apply(&BTreeMap::from([("t".to_string(), spec)]), at(0));
    let table = tables.get("t").unwrap();
    (tables, table)
}

#[test]
fn counts_and_rates_of_a_tracked_key() {
    let (_all, t) = tables(spec(100, Some(secs(60))));
    let key = Key::V4(1);
    let tracked = t.track(&key, at(1_000)).unwrap();
    tracked.conn(at(1_000));
    for n in 0..5 {
        tracked.http_req(at(2_000 + n));
    }
    assert_eq!(tracked.inc_gpc0(at(3_000)), 1);
    assert_eq!(tracked.value("http_req_cnt", at(3_000)), Some(5));
    assert_eq!(tracked.value("http_req_rate", at(3_000)), Some(5));
    assert_eq!(tracked.value("conn_cnt", at(3_000)), Some(1));
    assert_eq!(tracked.value("bytes_in_cnt", at(3_000)), None);
    assert_eq!(t.value(&Key::V4(2), "gpc0", at(3_000)), None, "looking does not create");
    let mut rows = 0;
    t.dump(at(3_000), |row| {
        rows += 1;
        assert_eq!((row.key, row.uses, row.exp), (key, 1, Some(secs(60))));
        assert_eq!(row.values, [0, 1, 1, 1, 5, 5], "in HAProxy's order of data types");
    });
    assert_eq!(rows, 1);
    t.check_invariants();
}

#[test]
fn to_begin_with_its_events_is_to_track_and_count_them() {
    let (_all, one) = tables(spec(100, Some(secs(60))));
    let (_others, other) = tables(spec(100, Some(secs(60))));
    let rows = |t: &Table| {
        let mut rows = Vec::new();
        t.dump(at(1_600), |row| {
            rows.push((format!("{:?}", row.key), row.uses, row.exp, row.values.to_vec()))
        });
        rows.sort();
        rows
    };
    for n in 0..40u64 {
        let (key, now, request) = (Key::V4(n as u32 % 7), at(1_000 + n * 15), n % 3 > 0);
        let begun = one.track_begun(&key, request, now).unwrap();
        let tracked = other.track(&key, now).unwrap();
        tracked.conn(now);
        if request {
            tracked.http_req(now);
        }
        assert_eq!(begun.value("conn_rate", now), tracked.value("conn_rate", now));
        assert_eq!(begun.trackers(), 1);
        one.check_invariants();
    }
    assert_eq!(rows(&one), rows(&other));
    assert!(rows(&one).iter().any(|row| row.3.iter().sum::<u64>() > 5));
}

#[test]
fn tracked_entries_neither_expire_nor_leave() {
    let (_all, t) = tables(spec(2, Some(secs(1))));
    let tracked = t.track(&Key::V4(1), at(0)).unwrap();
    t.set_server_id(&Key::V4(2), 5, at(10));
    t.set_server_id(&Key::V4(3), 6, at(20));
    assert_eq!(t.used(), 2);
    assert_eq!(t.server_id(&Key::V4(2), at(20)), None, "the oldest untracked one made room");
    assert_eq!(t.clear_key(&Key::V4(1), at(20)), Cleared::InUse);
    assert!(t.value(&Key::V4(1), "gpc0", at(4_000)).is_some(), "long after its time");
    t.sweep(at(5_000));
    assert_eq!(t.used(), 1);
    drop(tracked);
    t.sweep(at(5_500));
    assert_eq!(t.used(), 1, "its time began again when it was let go");
    t.sweep(at(6_200));
    assert_eq!(t.used(), 0);
    t.check_invariants();
}

#[test]
fn full_table_evicts_the_oldest_unless_nopurge() {
    for expire in [None, Some(secs(60))] {
        let (_all, t) = tables(spec(3, expire));
        for n in 1..=3 {
            t.set_server_id(&Key::V4(n), n, at(u64::from(n)));
        }
        assert_eq!(t.server_id(&Key::V4(1), at(10)), Some(1), "refreshed: 2 is the oldest now");
        t.set_server_id(&Key::V4(4), 4, at(11));
        let left: Vec<_> = (1..=4).filter(|&n| t.value(&Key::V4(n), "server_id", at(12)).is_some()).collect();
        assert_eq!(left, [1, 3, 4]);
        t.check_invariants();
    }
    let (_all, t) = tables(Spec { nopurge: true, ..spec(1, None) });
    t.set_server_id(&Key::V4(1), 1, at(0));
    t.set_server_id(&Key::V4(2), 2, at(0));
    assert!(t.track(&Key::V4(3), at(0)).is_none());
    assert_eq!((t.used(), t.server_id(&Key::V4(1), at(0))), (1, Some(1)));
}

#[test]
fn expiry_is_exact_and_refreshed_by_a_match_but_not_by_a_look() {
    let (_all, t) = tables(spec(100, Some(secs(10))));
    t.set_server_id(&Key::V4(1), 7, at(0));
    assert_eq!(t.server_id(&Key::V4(1), at(9_000)), Some(7));
    assert_eq!(t.value(&Key::V4(1), "server_id", at(18_999)), Some(7));
    assert_eq!(t.value(&Key::V4(1), "server_id", at(19_000)), None);
    assert_eq!(t.used(), 0);
}

#[test]
fn keys_are_cast_as_haproxy_casts_samples() {
    let mut s = Scratch::default();
    let v4: std::net::IpAddr = "10.0.0.1".parse().unwrap();
    let mapped: std::net::IpAddr = "::ffff:10.0.0.1".parse().unwrap();
    let v6: std::net::IpAddr = "2001:db8::1".parse().unwrap();
    let ten = 0x0a00_0001;
    assert_eq!(Key::cast(KeyType::Ip, Input::Ip(v4), &mut s), Some(Key::V4(ten)));
    assert_eq!(Key::cast(KeyType::Ip, Input::Ip(mapped), &mut s), Some(Key::V4(ten)));
    assert_eq!(Key::cast(KeyType::Ip, Input::Ip(v6), &mut s), None);
    assert_eq!(Key::cast(KeyType::Ip, Input::Bytes(b"10.0.0.1"), &mut s), Some(Key::V4(ten)));
    assert_eq!(Key::cast(KeyType::Integer, Input::Bytes(b"x"), &mut s), None);
    assert_eq!(Key::cast(KeyType::String(4), Input::Bytes(b"abcdef"), &mut s), Some(Key::Str(b"abcd")));
    assert_eq!(Key::cast(KeyType::String(32), Input::Ip(v4), &mut s), Some(Key::Str(b"10.0.0.1")));
    assert_eq!(Key::cast(KeyType::String(32), Input::Int(-5), &mut s), Some(Key::Str(b"-5")));
    assert_eq!(Key::Str(b"a b\\\xff").to_string(), "a\\ b\\\\\\xff");
}

#[test]
fn set_and_clear() {
    let (_all, t) = tables(spec(100, Some(secs(10))));
    t.set(&Key::V4(1), &[("gpc0".into(), 9), ("http_req_rate".into(), 4)], at(0)).unwrap();
    assert_eq!(t.value(&Key::V4(1), "gpc0", at(1)), Some(9));
    assert_eq!(t.value(&Key::V4(1), "http_req_rate", at(1)), Some(4));
    t.track(&Key::V4(1), at(2)).unwrap().inc_gpc0(at(2));
    t.set(&Key::V4(1), &[("server_id".into(), 3)], at(3)).unwrap();
    assert_eq!(t.value(&Key::V4(1), "gpc0", at(3)), Some(10), "what is not set is kept");
    assert_eq!(t.server_id(&Key::V4(1), at(3)), Some(3));
    assert_eq!(t.set(&Key::V4(1), &[("gpt0".into(), 3)], at(3)), Err(SetError::NotStored(Data::GPT0)));
    assert_eq!(t.clear_key(&Key::V4(1), at(4)), Cleared::Removed);
    assert_eq!(t.clear_key(&Key::V4(1), at(4)), Cleared::Absent);
    assert_eq!((t.used(), t.server_id(&Key::V4(1), at(4))), (0, None));
    for n in 1..=10 {
        t.set(&Key::V4(n), &[("gpc0".into(), u64::from(n))], at(5)).unwrap();
    }
    let held = t.track(&Key::V4(10), at(5)).unwrap();
    assert_eq!(t.clear_where(at(6), |row| row.values[1] > 5), 1);
    assert_eq!(t.used(), 6);
    t.clear(at(7));
    assert_eq!(t.used(), 1, "the tracked one stays");
    assert_eq!(held.value("gpc0", at(7)), Some(0), "emptied");
    assert_eq!(held.inc_gpc0(at(8)), 1);
    t.check_invariants();
}

#[test]
fn reload_keeps_changes_and_drops() {
    let (all, t) = tables(spec(100, Some(secs(10))));
    for n in 0..20 {
        t.set(&Key::V4(n), &[("gpc0".into(), 1), ("server_id".into(), 2)], at(u64::from(n))).unwrap();
    }
    let apply = |s: Spec, ms| all.apply(&BTreeMap::from([("t".to_string(), s)]), at(ms));
    apply(spec(10, Some(secs(60))), 100);
    assert!(Arc::ptr_eq(&t, &all.get("t").unwrap()));
    assert_eq!((t.used(), t.size(), t.expire()), (10, 10, Some(secs(60))));
    t.check_invariants();
    let fewer = Spec { store: vec![DataType::Gpc0], ..spec(10, Some(secs(60))) };
    apply(fewer, 200);
    let t2 = all.get("t").unwrap();
    assert!(!Arc::ptr_eq(&t, &t2));
    assert_eq!((t2.used(), t2.value(&Key::V4(15), "gpc0", at(200))), (10, Some(1)));
    apply(Spec { key: KeyType::Integer, ..spec(10, None) }, 300);
    assert_eq!(all.get("t").unwrap().used(), 0);
    all.apply(&BTreeMap::new(), at(400));
    assert!(all.get("t").is_none());
}

#[test]
fn sessions_go_on_in_the_table_that_takes_the_place_of_theirs() {
    let store = [DataType::ConnCur, DataType::HttpReqCnt];
    let spec = |store: &[DataType]| Spec { expire: Some(secs(9)), ..Spec::new(KeyType::Ip, 100, store) };
    let (all, t) = tables(spec(&store));
    let (a, b, gone) =
        (t.track(&Key::V4(1), at(1)).unwrap(), t.track(&Key::V4(1), at(1)).unwrap(), Key::V4(2));
    [&a, &b].into_iter().for_each(|tracked| tracked.conn(at(1)));
    t.track(&gone, at(1)).unwrap().conn(at(1));
    let apply = |store: &[DataType], ms| {
        all.apply(&BTreeMap::from([("t".to_string(), spec(store))]), at(ms));
        all.get("t").unwrap()
    };
    for (ms, more) in [(10, DataType::Gpc0), (20, DataType::ConnCnt)] {
        let store = [&store[..], &[more]].concat();
        let t = apply(&store, ms);
        a.http_req(at(ms));
        let key = Key::V4(1);
        assert_eq!(t.value(&key, Data::CONN_CUR, at(ms)), Some(2), "neither lost nor doubled");
        assert_eq!((t.value(&gone, Data::CONN_CUR, at(ms)), t.trackers(&key, at(ms))), (Some(0), Some(2)));
        assert_eq!(t.value(&key, Data::HTTP_REQ_CNT, at(ms)), Some(ms / 10));
        t.check_invariants();
    }
    let t = all.get("t").unwrap();
    drop(a);
    assert_eq!(t.value(&Key::V4(1), Data::CONN_CUR, at(30)), Some(1));
    drop(b);
    assert_eq!(t.trackers(&Key::V4(1), at(30)), Some(0));
    t.sweep(at(20_000));
    assert_eq!(t.used(), 0);
    t.check_invariants();
}

#[test]
fn table_agrees_with_a_plain_map_over_random_steps() {
    for seed in 0..40 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let ttl = 1_000;
        let (_all, t) = tables(spec(10_000, Some(Duration::from_millis(ttl))));
        let mut model: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        let mut held: Vec<(u32, Tracked)> = Vec::new();
        let mut now = 0;
        for _ in 0..600 {
            now += rng.random_range(0..40);
            let key = rng.random_range(0..60);
            model.retain(|k, (_, expire)| *expire > now || held.iter().any(|(h, _)| h == k));
            match rng.random_range(0..10) {
                0..5 => {
                    let tracked = t.track(&Key::V4(key), at(now)).unwrap();
                    tracked.inc_gpc0(at(now));
                    let entry = model.entry(key).or_default();
                    *entry = (entry.0 + 1, now + ttl);
                    if rng.random_bool(0.3) {
                        held.push((key, tracked));
                    }
                }
                5..7 if !held.is_empty() => {
                    let (key, tracked) = held.swap_remove(rng.random_range(0..held.len()));
                    t.sweep(at(now));
                    drop(tracked);
                    model.get_mut(&key).unwrap().1 = now + ttl;
                }
                7 => {
                    let in_use = held.iter().any(|(h, _)| *h == key);
                    let expect = match (model.contains_key(&key), in_use) {
                        (false, _) => Cleared::Absent,
                        (true, true) => Cleared::InUse,
                        (true, false) => Cleared::Removed,
                    };
                    assert_eq!(t.clear_key(&Key::V4(key), at(now)), expect, "seed {seed}");
                    if expect == Cleared::Removed {
                        model.remove(&key);
                    }
                }
                _ => t.sweep(at(now)),
            }
            t.check_invariants();
            let value = t.value(&Key::V4(key), "gpc0", at(now));
            assert_eq!(value, model.get(&key).map(|m| m.0), "seed {seed} key {key} at {now}");
        }
        let mut live = 0;
        t.dump(at(now), |_| live += 1);
        assert_eq!(live, model.len(), "seed {seed}");
        held.clear();
        t.sweep(at(now + ttl + ttl / 32));
        assert_eq!(t.used(), 0, "seed {seed}: what expired is gone soon after");
    }
}

impl Table {
    /// Makes the numbers of texts differ between processes.
    fn texts_differ(&self, text: &str) {
        self.shared.texts.intern(text);
    }
}

/// All of one table as a peer would be taught it, merged into another.
fn teach(from: &Table, to: &Table, node: &str, now: Now) {
    let known = from.shared.origins.list();
    assert_eq!(known[0].node, node);
    let named = |o: u16| {
        let of = &known[usize::from(o)];
        to.shared.origins.intern(&of.node, of.incarnation, 0, 0)
    };
    let reading = codec::Reading::new(from.kind, &codec::columns(&from.layout), &to.layout).unwrap();
    let source = codec::Source { reading: &reading, origins: &named, late: 0 };
    for index in 0..from.shard_count() {
        let mut bytes = Vec::new();
        from.cut_teach(index, 0, None, now, &mut bytes, |_| {});
        to.merge(&bytes, &source, now).unwrap();
    }
}

#[test]
fn a_batch_merged_at_once_is_as_one_entry_after_the_other() {
    for seed in 0..20 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let origin = Tables::new("n2", 1, 8);
        // Fuller than where it goes, so that entries are given up meanwhile.
        let start = |tables: &Tables, size| {
            tables.apply(&BTreeMap::from([("t".to_string(), spec(size, Some(secs(1000))))]), at(0));
            tables.get("t").unwrap()
        };
        let from = start(&origin, 500);
        let (all, single) = (Tables::new("n1", 1, 7), Tables::new("n1", 1, 7));
        let (once, apart) = (start(&all, 120), start(&single, 120));
        let mut batch: Vec<Vec<u8>> = Vec::new();
        for step in 0..300u64 {
            let key = Key::V4(rng.random_range(0..150));
            from.track(&key, at(step)).unwrap().http_req(at(step));
            if rng.random_ratio(1, 10) {
                from.clear_key(&key, at(step));
            }
            let mut bytes = Vec::new();
            from.attach(0, &[], true);
            from.track(&key, at(step)).unwrap().http_req(at(step));
            from.cut_updates(0, 0, at(step), &mut bytes, |_| {});
            batch.push(bytes);
        }
        let reading = codec::Reading::new(from.kind, &codec::columns(&from.layout), &once.layout).unwrap();
        for (table, parts) in [(&once, vec![batch.concat()]), (&apart, batch)] {
            let named = |_| table.shared.origins.intern("n2", 1, 0, 0);
            let source = codec::Source { reading: &reading, origins: &named, late: 0 };
            for bytes in parts {
                table.merge(&bytes, &source, at(400)).unwrap();
                table.check_invariants();
            }
        }
        assert!(once.used() > 50, "seed {seed}");
        assert_eq!((once.used(), once.digest(at(400))), (apart.used(), apart.digest(at(400))), "seed {seed}");
    }
}

#[test]
fn a_slot_begun_again_takes_the_place_of_the_one_before() {
    let (_here, here) = tables(spec(100, Some(secs(1000))));
    let there = Tables::new("n2", 1, 8);
    there.apply(&BTreeMap::from([("t".to_string(), spec(100, Some(secs(1))))]), at(0));
    let there = there.get("t").unwrap();
    let key = Key::Str(b"");
    assert!(here.track(&key, at(0)).is_none(), "a key of another type is none");
    let key = Key::V4(9);
    let hit = |ms| there.track(&key, at(ms)).unwrap().http_req(at(ms));
    (0..5).for_each(hit);
    teach(&there, &here, "n2", at(10));
    here.track(&key, at(11)).unwrap().http_req(at(11));
    assert_eq!(here.value(&key, "http_req_cnt", at(11)), Some(6));
    teach(&there, &here, "n2", at(12));
    assert_eq!(here.value(&key, "http_req_cnt", at(12)), Some(6), "the same twice counts once");
    // It has expired there, and is counted anew; here it was kept alive.
    here.set_server_id(&key, 1, at(900));
    hit(3_000);
    teach(&there, &here, "n2", at(3_001));
    let (parts, one) = (here.detail(&key, at(3_001)), here.layout().find("http_req_cnt").unwrap());
    let seen: Vec<_> = parts.iter().map(|p| (&*p.node, p.values[one])).collect();
    assert_eq!(seen, [("n1", 1), ("n2", 1)]);
}

/// Two tables of one cluster that have told each other nothing yet.
fn two(store: &[DataType]) -> [(Arc<Tables>, Arc<Table>); 2] {
    ["n1", "n2"].map(|name| {
        let all = Tables::new(name, 1, 7);
        let spec = Spec { expire: Some(secs(1000)), shared: true, ..Spec::new(KeyType::Ip, 100, store) };
        all.apply(&BTreeMap::from([("t".to_string(), spec)]), at(0));
        let table = all.get("t").unwrap();
        (all, table)
    })
}

fn exchange(a: &Table, b: &Table, now: Now) {
    teach(a, b, "n1", now);
    teach(b, a, "n2", now);
}

#[test]
fn what_is_cleared_stays_cleared_and_what_was_counted_meanwhile_is_kept() {
    let store = [DataType::ServerId, DataType::Gpc0, DataType::Gpc0Rate(secs(10)), DataType::ConnCur];
    for whole in [false, true] {
        let [(_n1, here), (_n2, there)] = two(&store);
        let key = Key::V4(1);
        here.inc(&key, Data::GPC0, 5, at(1)).unwrap();
        there.inc(&key, Data::GPC0, 3, at(2)).unwrap();
        there.stick(&key, 4, "", at(2));
        exchange(&here, &there, at(3));
        assert_eq!(here.value(&key, Data::GPC0, at(3)), Some(8));
        // It is cleared here, while the other counts on.
        if whole {
            here.clear(at(10));
        } else {
            assert_eq!(here.clear_key(&key, at(10)), Cleared::Removed);
        }
        assert_eq!(here.used(), 0);
        teach(&there, &here, "n2", at(11));
        assert_eq!(here.used(), 0, "nothing of it comes back");
        there.inc(&key, Data::GPC0, 2, at(12)).unwrap();
        exchange(&here, &there, at(13));
        for t in [&here, &there] {
            assert_eq!(t.value(&key, Data::GPC0, at(13)), Some(2), "counted meanwhile");
            assert_eq!(t.value(&key, Data::GPC0_RATE, at(13)), Some(2));
            assert_eq!(t.server_id(&key, at(13)), None);
            t.check_invariants();
        }
        assert_eq!(here.digest(at(13)), there.digest(at(13)));
        there.stick(&key, 9, "", at(14));
        here.inc(&key, Data::GPC0, 1, at(14)).unwrap();
        exchange(&here, &there, at(15));
        assert_eq!(here.server_id(&key, at(15)), Some(9));
        assert_eq!(there.value(&key, Data::GPC0, at(15)), Some(3));
        assert_eq!(here.digest(at(15)), there.digest(at(15)));
    }
}

#[test]
fn a_value_that_is_set_is_the_value_everywhere_and_later_counts_add_to_it() {
    let store = [DataType::Gpc0, DataType::Gpc1, DataType::ConnCur, DataType::BytesInCnt];
    let [(_n1, here), (_n2, there)] = two(&store);
    let key = Key::V4(1);
    here.inc(&key, Data::GPC0, 5, at(1)).unwrap();
    here.inc(&key, Data::GPC1, 7, at(1)).unwrap();
    there.inc(&key, Data::GPC0, 3, at(2)).unwrap();
    let held = there.track(&key, at(2)).unwrap();
    held.conn(at(2));
    exchange(&here, &there, at(3));
    here.set(&key, &[(Data::GPC0, 100), (Data::BYTES_IN_CNT, 1 << 40)], at(4)).unwrap();
    there.inc(&key, Data::GPC0, 1, at(5)).unwrap();
    exchange(&here, &there, at(6));
    for t in [&here, &there] {
        assert_eq!(t.value(&key, Data::GPC0, at(6)), Some(101));
        assert_eq!(t.value(&key, Data::GPC1, at(6)), Some(7), "not set, not changed");
        assert_eq!(t.value(&key, Data::BYTES_IN_CNT, at(6)), Some(1 << 40));
        assert_eq!(t.value(&key, Data::CONN_CUR, at(6)), Some(1));
    }
    // The later one of two that did not know of each other wins; what was counted then is kept.
    here.set(&key, &[(Data::GPC0, 10)], at(7)).unwrap();
    there.set(&key, &[(Data::GPC0, 20)], at(8)).unwrap();
    here.inc(&key, Data::GPC0, 2, at(9)).unwrap();
    there.inc(&key, Data::GPC1, 1, at(9)).unwrap();
    exchange(&here, &there, at(10));
    drop(held);
    exchange(&here, &there, at(11));
    for t in [&here, &there] {
        assert_eq!(t.value(&key, Data::GPC0, at(11)), Some(22));
        assert_eq!(t.value(&key, Data::GPC1, at(11)), Some(8));
        assert_eq!(t.value(&key, Data::CONN_CUR, at(11)), Some(0));
        t.check_invariants();
    }
    assert_eq!(here.digest(at(11)), there.digest(at(11)));
    let tracked = here.track(&key, at(12)).unwrap();
    assert_eq!(tracked.clear(Data::GPC0, at(12)), Some(22));
    assert_eq!((tracked.value(Data::GPC0, at(12)), tracked.value(Data::GPC1, at(12))), (Some(0), Some(8)));
    assert_eq!(tracked.inc(Data::GPC0, 1, at(13)), Some(1));
}

#[test]
fn a_table_too_large_to_remember_its_entries_is_cleared_by_the_clock() {
    let [(_n1, here), (_n2, there)] = two(&[DataType::Gpc0, DataType::ConnCur]);
    let (new, old) = (Key::V4(2), Key::V4(1));
    let held = here.track(&old, at(5)).unwrap();
    held.conn(at(5));
    held.inc_gpc0(at(5));
    there.inc(&old, Data::GPC0, 1, at(5)).unwrap();
    there.inc(&new, Data::GPC0, 2, at(20)).unwrap();
    here.raise_floor(here.shared.hlc.tick(at(10)), at(10));
    exchange(&here, &there, at(30));
    assert_eq!(here.value(&new, Data::GPC0, at(30)), Some(2));
    assert_eq!((held.value(Data::GPC0, at(30)), held.value(Data::CONN_CUR, at(30))), (Some(0), Some(1)));
    assert_eq!(there.value(&old, Data::CONN_CUR, at(30)), Some(1), "what goes on goes on");
}

#[test]
fn workers_at_once_lose_no_count() {
    let (_all, t) = tables(Spec { size: 50_000, ..spec(0, Some(secs(60))) });
    t.attach(0, &[], false);
    std::thread::scope(|scope| {
        for worker in 0..4u32 {
            let t = t.clone();
            scope.spawn(move || {
                for n in 0..5_000u32 {
                    let now = at(u64::from(n) / 100);
                    let shared = t.track(&Key::V4(n % 10), now).unwrap();
                    shared.http_req(now);
                    t.set_server_id(&Key::V4(1_000 + n * 4 + worker), 1, now);
                }
            });
        }
        let mut bytes = Vec::new();
        for _ in 0..200 {
            let index = t.take_pending(0).trailing_zeros() as usize % t.shard_count();
            bytes.clear();
            t.cut_updates(0, index, at(50), &mut bytes, |_| {});
            t.sweep(at(50));
        }
    });
    t.check_invariants();
    let counts: u64 = (0..10).map(|k| t.value(&Key::V4(k), "http_req_cnt", at(60)).unwrap()).sum();
    assert_eq!((counts, t.used()), (20_000, 20_010));
}

#[test]
#[ignore = "a measurement: a million entries"]
fn bytes_per_entry_at_a_million() {
    let store = vec![DataType::HttpReqRate(secs(10))];
    let (_all, t) = tables(Spec { store, ..spec(1_000_000, Some(secs(600))) });
    let started = std::time::Instant::now();
    for n in 0..1_000_000u32 {
        t.track(&Key::V4(n.wrapping_mul(2_654_435_761)), at(1)).unwrap().http_req(at(1));
    }
    let bytes = t.heap_bytes() as f64 / t.used() as f64;
    println!("{} entries, {bytes:.1} bytes each, filled in {:?}", t.used(), started.elapsed());
    assert!(bytes <= 0.7 * 221.0);
}

/// A spec of all that can be stored, with arrays instead of the legacy types if asked for.
fn everything(arrays: bool) -> Vec<DataType> {
    let p = secs(10);
    let mut all = vec![
        DataType::ServerId,
        DataType::ServerKey,
        DataType::ConnCnt,
        DataType::ConnCur,
        DataType::ConnRate(p),
        DataType::SessCnt,
        DataType::SessRate(p),
        DataType::HttpReqCnt,
        DataType::HttpReqRate(p),
        DataType::HttpErrCnt,
        DataType::HttpErrRate(p),
        DataType::HttpFailCnt,
        DataType::HttpFailRate(p),
        DataType::BytesInCnt,
        DataType::BytesInRate(p),
        DataType::BytesOutCnt,
        DataType::BytesOutRate(p),
        DataType::GlitchCnt,
        DataType::GlitchRate(p),
    ];
    match arrays {
        true => all.extend([DataType::Gpt(2), DataType::Gpc(3), DataType::GpcRate(3, p)]),
        false => all.extend([
            DataType::Gpt0,
            DataType::Gpc0,
            DataType::Gpc0Rate(p),
            DataType::Gpc1,
            DataType::Gpc1Rate(p),
        ]),
    }
    all
}

fn touch_everything(t: &Arc<Table>, key: &Key, now: Now) -> Tracked {
    let tracked = t.track(key, now).unwrap();
    tracked.conn(now);
    tracked.sess(now);
    tracked.http_req(now);
    tracked.http_err(now);
    tracked.http_fail(now);
    tracked.bytes_in(5_000_000_000, now);
    tracked.bytes_out(7, now);
    tracked.glitches(2, now);
    assert_eq!(tracked.inc(Data::GPC1, 2, now), Some(2));
    assert!(tracked.set_gpt(Data::GPT0, 9, now));
    t.stick(key, 3, "s3", now);
    tracked
}

#[test]
fn every_data_type_is_counted_and_taught() {
    for arrays in [false, true] {
        let store = everything(arrays);
        let declare = |seed| {
            let spec =
                Spec { expire: Some(secs(60)), shared: true, ..Spec::new(KeyType::Binary(4), 100, &store) };
            let all = Tables::new(if seed == 1 { "n1" } else { "n2" }, 1, seed);
            all.apply(&BTreeMap::from([("t".to_string(), spec)]), at(0));
            all.get("t").map(|t| (all, t)).unwrap()
        };
        let ((_here, here), (_there, there)) = (declare(1), declare(2));
        let key = Key::Str(b"abcd");
        let held = touch_everything(&there, &key, at(1));
        there.texts_differ("other");
        here.texts_differ("another");
        teach(&there, &here, "n2", at(2));
        let mut seen = BTreeMap::new();
        assert!(here.show(&key, at(2), |row| {
            for (c, value) in here.layout().columns().iter().zip(row.values) {
                seen.insert(c.to_string(), *value);
            }
        }));
        assert_eq!(here.text(seen["server_key"]).as_deref(), Some("s3"));
        seen.remove("server_key");
        let of = |name: &str| seen[name];
        for name in ["conn_cnt", "conn_cur", "sess_cnt", "http_req_cnt", "http_err_cnt", "http_fail_cnt"] {
            assert_eq!(of(name), 1, "{name}");
        }
        for name in ["conn_rate(10000)", "sess_rate(10000)", "http_err_rate(10000)", "http_fail_rate(10000)"]
        {
            assert_eq!(of(name), 1, "{name}");
        }
        assert_eq!((of("server_id"), of("gpt0"), of("gpc0"), of("gpc1")), (3, 9, 0, 2));
        assert_eq!((of("gpc1_rate(10000)"), of("glitch_cnt")), (2, 2));
        assert_eq!((of("bytes_in_cnt"), of("bytes_out_cnt")), (5_000_000_000, 7));
        assert_eq!(of("bytes_in_rate(10000)"), u64::from(u32::MAX), "a rate has 32 bits");
        assert_eq!(here.digest(at(2)), there.digest(at(2)));
        drop(held);
        teach(&there, &here, "n2", at(3));
        assert_eq!(here.value(&key, Data::CONN_CUR, at(3)), Some(0), "it ended there");
        assert_eq!(here.value(&key, Data::GPC0, at(3)), Some(0));
        assert_eq!(here.value(&key, Data::gpc(1), at(3)), arrays.then_some(2), "gpc(1) is not gpc1");
    }
}

#[test]
fn byte_rates_are_counted_in_blocks_and_no_byte_is_lost() {
    let spec = Spec { brates_factor: 100, ..Spec::new(KeyType::Ip, 10, &[DataType::BytesOutRate(secs(10))]) };
    let (_all, t) = tables(spec);
    let tracked = t.track(&Key::V4(1), at(0)).unwrap();
    (0..30).for_each(|n| tracked.bytes_out(10, at(n)));
    assert_eq!(tracked.value(Data::BYTES_OUT_RATE, at(30)), Some(300));
}

#[test]
fn what_peers_write_goes_on_to_another_table() {
    let store = [DataType::ServerId, DataType::Gpt0, DataType::Gpc0];
    let source = Spec { write_to: Some("w".into()), shared: true, ..Spec::new(KeyType::Integer, 10, &store) };
    let here = Tables::new("n1", 1, 7);
    let target = Spec::new(KeyType::Integer, 10, &store);
    here.apply(&BTreeMap::from([("t".to_string(), source.clone()), ("w".to_string(), target)]), at(0));
    let there = Tables::new("n2", 1, 8);
    there.apply(&BTreeMap::from([("t".to_string(), source)]), at(0));
    let (key, from) = (Key::Int(5), there.get("t").unwrap());
    from.stick(&key, 4, "", at(1));
    from.inc(&key, Data::GPC0, 7, at(1)).unwrap();
    teach(&from, &here.get("t").unwrap(), "n2", at(2));
    let w = here.get("w").unwrap();
    assert_eq!((w.server_id(&key, at(2)), w.value(&key, Data::GPC0, at(2))), (Some(4), Some(0)));
}

/// `cargo test -p phalanx-engine --release -- --ignored --nocapture bytes_per_entry_of`
#[test]
#[ignore = "a measurement: bytes per entry of several layouts"]
fn bytes_per_entry_of_several_layouts() {
    let p = secs(10);
    let layouts: [(&str, KeyType, Vec<DataType>); 6] = [
        ("ip, http_req_rate", KeyType::Ip, vec![DataType::HttpReqRate(p)]),
        ("ip, gpc0 conn_cur", KeyType::Ip, vec![DataType::Gpc0, DataType::ConnCur]),
        ("ip, server_id server_key", KeyType::Ip, vec![DataType::ServerId, DataType::ServerKey]),
        (
            "ipv6, http_req_rate http_err_rate",
            KeyType::Ipv6,
            vec![DataType::HttpReqRate(p), DataType::HttpErrRate(p)],
        ),
        ("string 32, http_req_rate", KeyType::String(32), vec![DataType::HttpReqRate(p)]),
        ("ip, everything", KeyType::Ip, everything(false)),
    ];
    for (what, kind, store) in layouts {
        let (_all, t) = tables(Spec { expire: Some(secs(600)), ..Spec::new(kind, 200_000, &store) });
        let mut scratch = Scratch::default();
        for n in 0..200_000i64 {
            let text = format!("some-key-of-thirty-two-bytes-{:>03}", n % 1000 + n);
            let input = if matches!(kind, KeyType::String(_)) {
                Input::Bytes(text.as_bytes())
            } else {
                Input::Int(n)
            };
            let key = t.key(input, &mut scratch).unwrap();
            let tracked = t.track(&key, at(1)).unwrap();
            tracked.http_req(at(1));
            tracked.inc_gpc0(at(1));
            t.stick(&key, 1, "s1", at(1));
        }
        println!("{what}: {:.1} bytes", t.heap_bytes() as f64 / t.used() as f64);
    }
}

#[test]
fn a_node_without_a_past_looks_through_no_table_for_it() {
    let (all, t) = tables(spec(200_000, Some(secs(60))));
    (0..50_000).for_each(|n| drop(t.track(&Key::V4(n), at(1))));
    t.begin_folding();
    t.sweep(at(2));
    let folded = || t.folded.lock().map(|(shard, _)| shard);
    assert_eq!(folded(), Some(t.shard_count()));
    // With a past it takes its time, and comes to an end.
    let (others, u) = tables(spec(200_000, Some(secs(60))));
    others.origins().intern("n1", 0, 0, 0).unwrap();
    (0..50_000).for_each(|n| drop(u.track(&Key::V4(n), at(1))));
    u.begin_folding();
    u.sweep(at(2));
    assert!(u.folded.lock().is_some_and(|(shard, _)| shard < u.shard_count() / 4));
    (0..u64::from(50_000 / FOLD_STEP) + 32).for_each(|n| u.sweep(at(3 + n)));
    assert_eq!(u.folded.lock().map(|(shard, _)| shard), Some(u.shard_count()));
    drop(all);
}
