//! Measures large maps: nanoseconds of a lookup, of an edit by command, bytes of an entry.
//!
//! `cargo run --release -p phalanx-engine --example patterns [entries]`

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use phalanx_config::pattern::Method;
use phalanx_config::{Source, StaticEnv};
use phalanx_engine::pattern::{Input, Matcher};
use phalanx_engine::registry::patterns::{KeyChange, KeyEdit, PatternAction, PatternCommand};
use phalanx_engine::registry::{Command, Registry};
use phalanx_engine::state::{Setup, State};
use phalanx_engine::stick::Tables;
use phalanx_engine::time::Now;

const CONFIG: &str = "
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend f
    bind 127.0.0.1:1
    acl a path,map(texts.map) -m found
    acl b src,map_ip(nets.map) -m found
    http-request deny if a b
";

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

/// Time on the processor so far: others may want it, too.
fn used() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}

/// Nanoseconds of one of `n` lookups.
fn measure(n: u64, mut lookup: impl FnMut(u64)) -> f64 {
    let mut draw = 1u64;
    let began = used();
    for _ in 0..n {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        lookup(draw >> 33);
    }
    (used() - began).as_nanos() as f64 / n as f64
}

fn main() {
    let entries: u64 = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let (mut texts, mut nets) = (String::new(), String::new());
    for n in 0..entries {
        let _ = writeln!(texts, "/shop/item-{n} backend-{}", n % 16);
        let _ = writeln!(nets, "{}/{} zone-{}", Ipv4Addr::from((n as u32) << 12), 20 + n % 8, n % 16);
    }
    let mut env = StaticEnv::default();
    env.files.insert("texts.map".into(), texts.into_bytes());
    env.files.insert("nets.map".into(), nets.into_bytes());
    let outcome = phalanx_config::parse(&[Source::new("c", CONFIG)], &env);
    let Some(config) = outcome.config else { panic!("{:?}", outcome.diagnostics) };
    drop(env);
    let now = Now { mono: Duration::ZERO, unix_us: 0 };
    let setup = Setup { workers: 1, seed: 1, default_maxconn: 100, node: "n".into() };
    let before = resident();
    let began = used();
    let state = State::new(config, setup, Tables::new("n", 1, 1), now);
    let set = |name: &str| {
        let plan = state.plan();
        plan.patterns.iter().find(|set| set.identity() == name).expect("in the configuration").clone()
    };
    let texts: Arc<Matcher> = set("texts.map").matcher(Method::Str, false);
    let nets: Arc<Matcher> = set("nets.map").matcher(Method::Ip, false);
    println!("{entries} texts and {entries} networks indexed in {:?}", used() - began);
    println!("memory per entry: {} bytes", (resident() - before) / (2 * entries));
    let keys: Vec<String> = (0..entries).map(|n| format!("/shop/item-{n}")).collect();
    let hit = measure(2_000_000, |draw| {
        let key = &keys[(draw % entries) as usize];
        black_box(texts.find(&Input::Text(key.as_bytes()), |e| e.value().map(str::len)));
    });
    let miss = measure(2_000_000, |draw| {
        let key = &keys[(draw % entries) as usize].as_bytes()[1..];
        black_box(texts.find(&Input::Text(key), |e| e.value().map(str::len)));
    });
    println!("text: found in {hit:.0} ns, not found in {miss:.0} ns");
    let found = measure(2_000_000, |draw| {
        let addr = IpAddr::V4(Ipv4Addr::from(((draw % entries) as u32) << 12));
        black_box(nets.find(&Input::Ip(addr), |e| e.value().map(str::len)));
    });
    println!("network, eight lengths: found in {found:.0} ns");
    let (mut registry, map) = (Registry::new(), set("texts.map"));
    let edits = 1000;
    let began = used();
    for n in 0..edits {
        let key = format!("/new-{n}");
        let edit = KeyEdit { file: map.in_file(&key), key, change: KeyChange::Add(Some("v".into())) };
        let action = PatternAction::Edit { version: None, edits: vec![edit] };
        let command = PatternCommand { set: map.identity().into(), file: map.file(), action };
        registry.apply(&Command::Patterns(command));
        black_box(state.reconcile(&registry, now));
    }
    println!("{edits} times 'add map', one by one: {:?} each", (used() - began) / edits);
    assert!(texts.matches(&Input::Text(b"/new-999")));
}
