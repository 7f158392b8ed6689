//! Twenty rules with ACLs and a map of 100,000 entries, over one request.

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use gungraun::library_benchmark;
use phalanx_bench::TIMES;
use phalanx_config::StaticEnv;
use phalanx_engine::h1::{self, Head, Rewrite};
use phalanx_engine::memory::Memory;
use phalanx_engine::near;
use phalanx_engine::rules::{self, Cursor, Step};
use phalanx_engine::sample::{Context, World};
use phalanx_engine::state::State;

use super::{REQUEST, at, state};

/// The rules of a `frontend`; the path of [`REQUEST`] is in the map.
pub(crate) const TWENTY: &str = "
    acl is_static path_end .css .js .png .jpg .svg
    acl is_admin path_beg /admin /internal
    acl from_inside src 10.0.0.0/8 192.168.0.0/16
    acl is_read method GET HEAD
    acl is_bot hdr_sub(user-agent) -i bot crawler spider
    acl for_api hdr(host) -i api.example.com
    http-request deny if is_admin !from_inside
    http-request deny deny_status 405 unless is_read
    http-request deny if is_bot is_static
    http-request deny if { hdr(x-block) -m found }
    http-request deny if { url_param(debug) -m found } !from_inside
    http-request deny if { path -m beg /.git /.env }
    http-request deny if { hdr(host) -m reg ^[0-9.]+$ }
    http-request deny if { hdr_cnt(host) gt 1 }
    http-request redirect location /api if for_api { path / }
    http-request set-var(txn.shop) path,map(shops.map,none)
    http-request deny if { var(txn.shop) -m str blocked }
    http-request set-header x-shop %[var(txn.shop)]
    http-request set-header x-path %[path,lower]
    http-request set-header x-client %[src]
    http-request del-header x-internal
    http-request set-header x-kind static if is_static
    http-request set-header x-kind page unless is_static
    http-request add-header x-via phalanx if is_read
    http-request set-header x-size %[url_param(size)]
    http-request set-header x-bot yes if is_bot
";

/// Its files: a map of 100,000 paths.
pub(crate) fn files() -> StaticEnv {
    let mut map = String::new();
    for n in 0..100_000 {
        let _ = writeln!(map, "/shop/item-{n}/details shop-{}", n % 16);
    }
    let mut env = StaticEnv::default();
    env.files.insert("shops.map".into(), map.into_bytes());
    env
}

struct Message {
    state: Arc<State>,
    text: Vec<u8>,
    head: Head,
    changed: Vec<u8>,
    ends: (SocketAddr, SocketAddr),
    /// The head that rules change, kept for the next request as the proxy does.
    rewritten: Head,
    room: Vec<u8>,
}

fn message() -> Message {
    let mut config = "defaults\n mode http\n timeout connect 5s\n timeout client 5s\n timeout server 5s\n\
        frontend f\n bind 127.0.0.1:1\n"
        .to_owned();
    config += TWENTY;
    let state = state(&config, &files());
    let (mut text, mut head) = (REQUEST.as_bytes().to_vec(), Head::default());
    h1::request(&mut text, &mut head).expect("a request");
    let mut message = Message {
        state,
        text,
        head,
        changed: Vec::new(),
        ends: (SocketAddr::from(([192, 0, 2, 17], 51234)), SocketAddr::from(([198, 51, 100, 1], 80))),
        rewritten: Head::default(),
        room: Vec::new(),
    };
    // As a worker, which holds what it looked into; once, for that and for the room.
    near::keep();
    walk(&mut message);
    message
}

/// What the proxy does for a request.
fn walk(m: &mut Message) {
    let plan = m.state.plan_owned();
    let proxy = plan.proxy("f").expect("a frontend");
    let (session, memory) = (Memory::default(), Memory::default());
    let head = &mut m.rewritten;
    head.clone_from(&m.head);
    m.changed.clear();
    let mut cursor = Cursor::default();
    loop {
        let bytes = if m.changed.is_empty() { &m.text } else { &m.changed };
        let context = Context {
            src: m.ends.0,
            dst: m.ends.1,
            request: Some((bytes, head)),
            response: None,
            world: Some(World {
                state: &m.state,
                plan: &plan,
                proxy,
                front: proxy,
                backend: None,
                server: None,
            }),
            session: &session,
            memory: &memory,
            first: true,
            waited: true,
            now: at(5),
            draw: 4711,
        };
        match rules::next(&proxy.config.rules.http_request, &mut cursor, proxy, &context) {
            Step::Act(action) => {
                if let Some(edit) = rules::prepare(action, &context, &mut m.room) {
                    edit.apply(&mut Rewrite::new(&m.text, head, &mut m.changed));
                }
            }
            _ => break,
        }
    }
    black_box(&m.changed);
}

#[library_benchmark]
#[bench::and_a_map(message())]
pub(crate) fn twenty(mut message: Message) -> Message {
    for _ in 0..TIMES {
        walk(&mut message);
    }
    message
}
