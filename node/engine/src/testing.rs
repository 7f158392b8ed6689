//! Sections for tests, so that each states only what it is about.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use phalanx_config::model::{
    Balance, Config, ConnectionMode, HashType, LogFormat, Mode, Pos, Proxy, ProxyKind, Rules, Server,
    ServerOptions, Timeouts,
};

use crate::time::Now;

/// Seeds of a simulation: `ordinary` many, unless the environment asks for others. `PHALANX_SEED=7` is that
/// one, `PHALANX_SEEDS=1000000` the first million, `PHALANX_SEEDS=5000..9000` a part of them.
///
/// # Panics
/// When the environment holds something else.
pub fn seeds(ordinary: u64) -> Range<u64> {
    let asked = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    let number = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("'{text}' is no seed"));
    match (asked("PHALANX_SEED"), asked("PHALANX_SEEDS")) {
        (Some(one), _) => number(&one)..number(&one) + 1,
        (None, Some(many)) => match many.split_once("..") {
            Some((from, to)) => number(from)..number(to),
            None => 0..number(&many),
        },
        (None, None) => 0..ordinary,
    }
}

/// A moment of the process.
pub fn at(ms: u64) -> Now {
    Now { mono: Duration::from_millis(ms), unix_us: ms * 1000 }
}

/// A server line `name`, `id`.
pub fn server(name: &str, id: u32, options: ServerOptions) -> Arc<Server> {
    let addr = format!("127.0.0.1:{}", 9000 + id % 1000).parse().unwrap();
    let host = "127.0.0.1".into();
    Arc::new(Server { name: name.into(), id, pos: Pos::default(), host, addr, discovered: None, options })
}

/// Servers `s1`, `s2`, … with these options.
pub fn servers(options: &[ServerOptions]) -> Vec<Arc<Server>> {
    let ids = 1..;
    options.iter().zip(ids).map(|(o, id)| server(&format!("s{id}"), id, o.clone())).collect()
}

/// A backend named `b`.
pub fn section(balance: Balance, servers: Vec<Arc<Server>>) -> Proxy {
    Proxy {
        name: "b".into(),
        id: 2,
        kind: ProxyKind::Backend,
        pos: Pos::default(),
        mode: Mode::Http,
        disabled: false,
        description: None,
        binds: Vec::new(),
        maxconn: None,
        fullconn: None,
        default_backend: None,
        servers,
        default_server: ServerOptions::default(),
        balance: Some(balance),
        hash_type: HashType::default(),
        cookie: None,
        timeouts: Timeouts::default(),
        retries: 3,
        redispatch: None,
        logs: Vec::new(),
        log_format: LogFormat::Default,
        dontlognull: false,
        dontlog_normal: false,
        logasap: false,
        log_health_checks: false,
        per_node_checks: false,
        connection_mode: ConnectionMode::KeepAlive,
        http_reuse: Default::default(),
        splice: Default::default(),
        forwardfor: None,
        allbackups: false,
        abortonclose: false,
        persist: false,
        clitcpka: false,
        srvtcpka: false,
        smart_accept: true,
        smart_connect: true,
        httpchk: None,
        errorfiles: Vec::new(),
        monitor_uri: None,
        stats: None,
        stick_table: None,
        stick_rules: Vec::new(),
        acls: Vec::new(),
        rules: Rules::default(),
        use_backend: Vec::new(),
        use_server: Vec::new(),
    }
}

/// A configuration of one section.
pub fn config(section: Proxy) -> Config {
    Config { proxies: vec![Arc::new(section)], ..Config::default() }
}
