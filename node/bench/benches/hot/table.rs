//! `track-sc0 src` and a rate rule, in a table of 100,000 addresses.

use std::hint::black_box;
use std::sync::Arc;

use gungraun::library_benchmark;
use phalanx_bench::TIMES;
use phalanx_config::StaticEnv;
use phalanx_engine::replication::Peer;
use phalanx_engine::state::State;
use phalanx_engine::stick::{Data, Key, Table, Tables};

use super::{at, draw, state};

const KEYS: u32 = 100_000;

struct Tracking {
    table: Arc<Table>,
    _state: Arc<State>,
    _peers: Option<(Arc<Tables>, Peer, Peer)>,
}

/// The table, filled; `replicated`: a peer has all of it, so that each touch is marked as news for it.
fn filled(replicated: bool) -> Tracking {
    let text = "peers p\n peer n1 127.0.0.1:1\n peer n2 127.0.0.1:2\n\
        backend b\n mode http\n timeout connect 5s\n timeout server 5s\n\
        stick-table type ip size 1m expire 10m store http_req_rate(10s),conn_cnt";
    let text = if replicated { format!("{text} peers p\n") } else { format!("{text}\n") };
    let state = state(&text, &StaticEnv::default());
    let table = state.tables().get("b").expect("a table");
    for n in 0..KEYS {
        drop(table.track_begun(&key(n), true, at(1)));
    }
    let peers = replicated.then(|| attach(state.tables()));
    Tracking { table, _state: state, _peers: peers }
}

/// Lets a peer catch up.
fn attach(tables: &Arc<Tables>) -> (Arc<Tables>, Peer, Peer) {
    let others = Tables::new("n2", 1, 2);
    let mut here = Peer::new(tables.clone(), "n2").expect("room for a peer");
    let mut there = Peer::new(others.clone(), "n1").expect("room for a peer");
    here.connected(at(2));
    there.connected(at(2));
    loop {
        let mut quiet = true;
        while let Some(message) = here.poll_output(at(2)) {
            there.handle(message, at(2)).expect("a message that it takes");
            quiet = false;
        }
        while let Some(message) = there.poll_output(at(2)) {
            here.handle(message, at(2)).expect("a message that it takes");
            quiet = false;
        }
        if quiet {
            return (others, here, there);
        }
    }
}

fn key(n: u32) -> Key<'static> {
    Key::V4(0x0a00_0000 + n)
}

// One request: tracked, counted, its rate asked for, its end counted.
#[library_benchmark]
#[bench::alone(filled(false))]
#[bench::replicated(filled(true))]
pub(crate) fn touch(tracking: Tracking) -> Tracking {
    for n in 0..TIMES {
        let now = at(1_000 + n);
        let key = key((draw(n) % u64::from(KEYS)) as u32);
        let tracked = tracking.table.track_begun(&key, true, now).expect("there is room");
        black_box(tracked.value(Data::HTTP_REQ_RATE, now));
    }
    tracking
}
