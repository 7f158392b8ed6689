//! Text in, text out: every `tests/data/*.cfg` is parsed, and what is said about it must be what
//! stands in the `.out` file beside it. `UPDATE_EXPECTED=1` writes these files anew.
//!
//! Also: whatever is done to a valid file, the parser answers and does not panic.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use phalanx_config::*;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn env() -> StaticEnv {
    let mut env = StaticEnv::default();
    for (name, value) in [
        ("NODE_ADDR", "127.0.0.11"),
        ("OPTS", "check inter 1s"),
        ("EMPTY", ""),
        ("SERVER", "s1 127.0.0.1:81"),
    ] {
        env.vars.insert(name.into(), value.into());
    }
    env.users.insert("nobody".into(), 65534);
    env.groups.insert("nogroup".into(), 65534);
    let resolv_conf = "# local\nsearch x\nnameserver 192.0.2.53\nnameserver bad\n";
    env.files.insert("/etc/resolv.conf".into(), resolv_conf.into());
    env.files.insert("blocked.lst".into(), b"192.0.2.0/24\n# none\n198.51.100.7\n".to_vec());
    env.files.insert("routes.map".into(), b"/api api\n/ app\n".to_vec());
    env.hosts.insert("app.example".into(), IpAddr::from([192, 0, 2, 7]));
    env
}

fn cases() -> Vec<(String, Vec<u8>)> {
    let mut cases: Vec<(String, Vec<u8>)> = std::fs::read_dir(data())
        .expect("test data")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "cfg"))
        .map(|path| {
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            (name, std::fs::read(&path).expect("readable"))
        })
        .collect();
    cases.sort();
    cases
}

fn load(name: &str) -> Outcome {
    let text = std::fs::read(data().join(name)).expect(name);
    parse(&[Source::new(name, text)], &env())
}

/// The configuration of a file that has no error.
fn config(name: &str) -> Config {
    let outcome = load(name);
    let said: Vec<String> = outcome.diagnostics.iter().map(ToString::to_string).collect();
    outcome.config.unwrap_or_else(|| panic!("{name} is refused: {said:#?}"))
}

fn proxy<'a>(config: &'a Config, name: &str) -> &'a Proxy {
    config.proxies.iter().find(|proxy| proxy.name == name).expect(name)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn diagnostics_are_as_expected() {
    let update = std::env::var_os("UPDATE_EXPECTED").is_some();
    let mut failures = String::new();
    for (name, text) in cases() {
        let outcome = parse(&[Source::new(name.as_str(), text)], &env());
        let mut said = String::new();
        for diagnostic in &outcome.diagnostics {
            let _ = writeln!(said, "{diagnostic}");
        }
        let _ = writeln!(said, "{}", if outcome.config.is_some() { "valid" } else { "refused" });
        let expected_path = data().join(&name).with_extension("out");
        if update {
            std::fs::write(&expected_path, &said).expect("writable");
            continue;
        }
        let expected = std::fs::read_to_string(&expected_path).unwrap_or_default();
        if said != expected {
            let _ = writeln!(failures, "--- {name}: expected\n{expected}--- got\n{said}");
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn long_lived_tcp() {
    let config = config("tcp_nc.cfg");
    let socket = &config.global.stats_sockets[0];
    assert_eq!(socket.addr, StatsAddr::Unix("/tmp/phalanx.sock".into()));
    assert_eq!((socket.mode, socket.level), (Some(0o600), Level::Admin));
    let chat = proxy(&config, "chat");
    assert_eq!((chat.kind, chat.mode, chat.id), (ProxyKind::Listen, Mode::Tcp, 2));
    assert_eq!(chat.balance, Some(Balance::LeastConn));
    assert_eq!(chat.binds[0].addr, "127.0.0.1:9000".parse().unwrap());
    assert_eq!(chat.timeouts.client, Some(Duration::from_secs(3600)));
    assert_eq!(chat.timeouts.queue, Some(Duration::from_secs(30)));
    let servers: Vec<(&str, u32, SocketAddr, u32, bool)> = (chat.servers.iter())
        .map(|s| (s.name.as_str(), s.id, s.addr, s.options.maxconn, s.options.check))
        .collect();
    assert_eq!(servers[0], ("nc1", 1, "127.0.0.1:9001".parse().unwrap(), 1, true));
    assert_eq!(servers[1], ("nc2", 2, "127.0.0.1:9002".parse().unwrap(), 1, true));
}

#[test]
fn discovered_servers() {
    let config = config("discovery.cfg");
    let dns = &config.resolvers[0];
    let servers: Vec<(&str, bool)> = dns.nameservers.iter().map(|n| (n.name.as_str(), n.tcp)).collect();
    assert_eq!(servers, [("ns1", false), ("ns2", true), ("192.0.2.53", false)]);
    assert_eq!(
        (dns.retries, dns.payload_size, dns.hold.nx, dns.hold.other),
        (5, 4096, seconds(3), seconds(30))
    );
    assert_eq!(config.resolvers[1].name, "default");
    let consul = &config.consuls[0];
    assert_eq!(consul.addresses, ["127.0.0.1:8500", "consul.example:8500"]);
    assert!(!consul.https && consul.ca_file.is_none());
    assert_eq!(consul.token, Some(ConsulToken::Literal("s3cr3t-127.0.0.11".into())));
    assert!(!format!("{consul:?}").contains("s3cr3t"));
    let secure = config.consuls.last().unwrap();
    assert!(secure.https && secure.crt.is_some());
    assert_eq!(secure.addresses, ["consul.example:8501"]);
    assert_eq!(secure.ca_file.as_deref(), Some(std::path::Path::new("/etc/ca.pem")));
    let list = |name: &str| -> Vec<(String, u32, String, Option<String>)> {
        let servers = &proxy(&config, name).servers;
        let of = |s: &std::sync::Arc<Server>| {
            (s.name.clone(), s.id, s.addr.to_string(), s.discovered.as_ref().map(|d| d.to_string()))
        };
        servers.iter().map(of).collect()
    };
    let row = |name: &str, id, addr: &str, source: &str| {
        (name.to_owned(), id, addr.to_owned(), Some(source.to_owned()))
    };
    assert_eq!(
        list("dns"),
        [
            row("w1", 1, "0.0.0.0:80", "dns(dns)/web.example?prefer=ipv4"),
            row("w2", 2, "0.0.0.0:80", "dns(dns)/web.example?prefer=ipv4"),
            row("w3", 3, "0.0.0.0:80", "dns(dns)/web.example?prefer=ipv4"),
            row("s5", 4, "0.0.0.0:0", "dns(dns)/_http._tcp.web.example"),
            row("s6", 5, "0.0.0.0:0", "dns(dns)/_http._tcp.web.example"),
            row("s7", 6, "0.0.0.0:0", "dns(dns)/_http._tcp.web.example"),
            row("x", 7, "0.0.0.0:81", "dns(dns)/app.example"),
        ]
    );
    assert_eq!(
        list("consul")[1],
        row("c2", 2, "0.0.0.0:0", "consul(prod)/web?tag=blue&tag=v2&health=warning")
    );
    assert_eq!(list("system")[1], row("d2", 2, "192.0.2.7:80", "dns(default)/app.example"));
}

#[test]
fn sticky_web_by_cookie() {
    let config = config("web_cookie.cfg");
    let target = &config.global.logs[0];
    assert_eq!((&target.to, target.format, target.facility), (&LogReceiver::Stdout, LogFraming::Raw, 16));
    let web = proxy(&config, "web");
    assert_eq!((web.log_format, web.logs.len()), (LogFormat::Http, 1));
    assert_eq!(web.default_backend.as_deref(), Some("webservers"));
    assert_eq!(web.timeouts.server, None, "a frontend has no server side");
    let servers = proxy(&config, "webservers");
    let cookie = servers.cookie.as_ref().expect("cookie");
    assert_eq!((cookie.name.as_str(), cookie.mode), ("SRV", CookieMode::Insert));
    assert!(cookie.indirect && cookie.nocache && !cookie.postonly);
    let check = servers.httpchk.as_ref().expect("httpchk");
    assert_eq!(
        (check.method.as_str(), check.uri.as_str(), check.version.as_str()),
        ("GET", "/healthz", "HTTP/1.0")
    );
    assert_eq!(servers.servers[2].options.cookie.as_deref(), Some("s3"));
    assert_eq!(servers.timeouts.tunnel, Some(Duration::from_secs(3600)));
}

#[test]
fn sticky_web_by_consistent_hash() {
    let config = config("web_hash.cfg");
    let servers = proxy(&config, "webservers");
    assert_eq!(servers.balance, Some(Balance::Hdr { name: "x-session-id".into(), domain_only: false }));
    let expected = HashType { method: HashMethod::Consistent, function: HashFunction::Sdbm, avalanche: true };
    assert_eq!(servers.hash_type, expected);
}

#[test]
fn pasted_with_odd_indentation() {
    let config = config("pasted.cfg");
    assert_eq!((config.global.uid, config.global.gid), (Some(65534), Some(65534)));
    assert_eq!(config.global.maxconn, Some(2000));
    let target = &config.global.logs[0];
    assert_eq!((&target.to, target.level), (&LogReceiver::Udp("127.0.0.1:514".parse().unwrap()), 5));
    let app = proxy(&config, "appname");
    assert_eq!(app.binds[0].addr, "0.0.0.0:80".parse().unwrap());
    let stats = app.stats.as_ref().expect("stats");
    assert_eq!((stats.uri.as_str(), stats.realm.as_str()), ("/haproxy?stats", "Strictly Private"));
    let accounts = [("A_Username", "YourPassword"), ("Another_User", "passwd")];
    assert_eq!(stats.auth, accounts.map(|(user, password)| (user.to_owned(), password.to_owned())));
    assert_eq!(app.connection_mode, ConnectionMode::Close);
    assert_eq!(app.forwardfor.as_ref().map(|f| f.header.as_str()), Some("X-Forwarded-For"));
    assert_eq!((app.retries, app.redispatch, app.maxconn), (3, Some(-1), Some(3000)));
    assert_eq!(app.timeouts.connect, Some(Duration::from_secs(5)));
    assert_eq!(app.timeouts.http_keep_alive, Some(Duration::from_secs(10)));
    assert!(app.dontlognull);
}

#[test]
fn a_cluster_with_everything() {
    let config = config("cluster.cfg");
    let cluster = config.cluster.as_ref().expect("cluster");
    let nodes: Vec<(&str, &str, bool)> =
        cluster.nodes.iter().map(|n| (n.name.as_str(), n.addr.as_str(), n.witness)).collect();
    assert_eq!(nodes[0], ("n1", "10.0.0.1:7100", false));
    assert_eq!(nodes[2], ("n3", "n3.example:7100", true));
    let announces = cluster.vips.iter().map(|v| (v.prefix, &v.announce, v.hold)).collect::<Vec<_>>();
    let exec = Announce::Exec("/etc/phalanx/move-route".into());
    assert_eq!(
        announces,
        [
            (24, &Announce::Arp, false),
            (128, &Announce::Listen, false),
            (32, &Announce::HealthPort(7080), true),
            (32, &exec, false),
        ]
    );
    let seconds = |at: usize| cluster.vips[at].exec_timeout.as_secs();
    assert_eq!((seconds(0), seconds(3)), (10, 30));
    assert_eq!(cluster.vip_lease, Some(std::time::Duration::from_millis(80)));
    assert_eq!(cluster.vip_drain, Some(std::time::Duration::from_secs(2 * 3600)));
    assert_eq!(cluster.vips[0].prefer.as_deref(), Some("n1"));
    let app = proxy(&config, "app");
    let table = app.stick_table.as_ref().expect("table");
    assert_eq!((table.size, table.peers.as_deref()), (1 << 20, Some("prod")));
    let period = Duration::from_secs(10);
    // `stick on` needs the server's id, so that it is stored without being asked for.
    assert_eq!(
        table.store,
        [DataType::HttpReqRate(period), DataType::Gpc0, DataType::ServerId, DataType::ServerKey]
    );
    assert_eq!(app.stick_rules[0].table, "app");
    let fe = proxy(&config, "fe");
    let track = |rules: &[Rule]| match &rules[0].action {
        Action::Track(track) => (track.table.name().to_owned(), track.expr.text.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(track(&fe.rules.tcp_connection).0, "counts");
    assert_eq!(track(&fe.rules.http_request).1, "req.hdr(X-Key)");
    assert_eq!(fe.binds.iter().map(|b| b.id).collect::<Vec<_>>(), [1, 2, 9, 3, 4]);
    assert_eq!(fe.binds[0].addr, "127.0.0.11:80".parse().unwrap());
    let ids: Vec<u32> = app.servers.iter().map(|s| s.id).collect();
    assert_eq!(ids, [1, 7, 2]);
    assert_eq!(app.servers[2].options.inter, Duration::from_secs(1));
    assert_eq!(proxy(&config, "counts").id, 4);
}

#[test]
fn every_field_can_be_set() {
    let config = config("everything.cfg");
    let global = &config.global;
    assert_eq!((global.maxconn, global.nbthread, global.ulimit_n), (Some(1000), Some(4), Some(4096)));
    assert_eq!((global.uid, global.gid, global.spread_checks), (Some(1000), Some(1001), 5));
    assert_eq!(global.log_send_hostname, Some(Some("edge".into())));
    assert_eq!((global.stats_timeout, global.hard_stop_after), (Some(seconds(30)), Some(seconds(30))));
    assert_eq!((global.bufsize, global.daemon, global.log_tag.as_deref()), (Some(32768), true, Some("lb")));
    assert_eq!((global.maxpipes, global.pipesize, global.nosplice), (Some(10), Some(128 << 10), true));
    assert_eq!((global.node.as_deref(), global.description.as_deref()), (Some("edge-1"), Some("two words")));
    assert_eq!(global.localpeer.as_deref(), Some("me"));
    let first = LogTarget {
        to: LogReceiver::Unix("/dev/log".into()),
        format: LogFraming::Rfc5424,
        len: 2048,
        facility: 17,
        level: 6,
        min_level: 3,
    };
    assert_eq!(global.logs[0], first);
    assert_eq!(global.logs[1].to, LogReceiver::Udp("[::1]:5514".parse().unwrap()));
    assert_eq!(global.logs[2].to, LogReceiver::Stderr);
    let [tcp, unix] = &global.stats_sockets[..] else { panic!("two sockets") };
    assert_eq!((tcp.level, tcp.expose_fd), (Level::Operator, true));
    assert_eq!((unix.mode, unix.uid, unix.gid), (Some(0o660), Some(65534), Some(65534)));

    let all = proxy(&config, "all");
    assert_eq!((all.id, all.description.as_deref()), (20, Some("all of it")));
    assert_eq!((all.maxconn, all.fullconn, all.retries, all.redispatch), (Some(100), Some(200), 5, Some(2)));
    let t = &all.timeouts;
    let timeouts =
        [t.client, t.server, t.connect, t.queue, t.check, t.http_request, t.http_keep_alive, t.tunnel];
    assert_eq!(timeouts, [10, 11, 12, 13, 14, 15, 16, 17].map(|s| Some(seconds(s))));
    assert_eq!([t.client_fin, t.server_fin, t.tarpit], [18, 19, 20].map(|s| Some(seconds(s))));
    assert_eq!((all.binds.len(), all.binds[2].addr), (3, "127.0.0.1:8002".parse().unwrap()));
    let bind = &all.binds[2];
    assert_eq!(
        (bind.id, bind.name.as_deref(), bind.maxconn, bind.backlog),
        (3, Some("range"), Some(10), Some(11))
    );
    assert!(bind.transparent);
    assert!(all.dontlognull && all.dontlog_normal && all.logasap && all.log_health_checks);
    assert!(all.per_node_checks);
    assert!(all.allbackups && all.abortonclose && all.persist && all.clitcpka && all.srvtcpka);
    assert!(all.smart_accept && !all.smart_connect);
    assert_eq!((all.log_format, all.logs.len()), (LogFormat::Tcp, 3));
    assert_eq!(all.monitor_uri.as_deref(), Some("/alive"));
    assert_eq!((all.connection_mode, all.http_reuse), (ConnectionMode::ServerClose, HttpReuse::Never));
    assert_eq!(all.splice, Splice { auto: Some(false), request: true, response: true });
    let forwarded = all.forwardfor.as_ref().unwrap();
    assert_eq!((forwarded.header.as_str(), forwarded.if_none), ("X-Client", true));
    assert_eq!(forwarded.except, Some((IpAddr::from([127, 0, 0, 0]), 8)));
    let uri = Balance::Uri { len: Some(20), depth: Some(3), whole: true, path_only: true };
    assert_eq!(all.balance, Some(uri));
    let hash = HashType { method: HashMethod::MapBased, function: HashFunction::Djb2, avalanche: true };
    assert_eq!(all.hash_type, hash);
    let cookie = all.cookie.as_ref().unwrap();
    assert!(cookie.indirect && cookie.postonly && cookie.httponly && cookie.secure && !cookie.nocache);
    assert_eq!(
        (cookie.mode, cookie.maxidle, cookie.maxlife),
        (CookieMode::Prefix, Some(seconds(600)), Some(seconds(3600)))
    );
    assert_eq!(
        (&cookie.domains[..], &cookie.attrs[..]),
        (&[".a.example".into()][..], &["SameSite=Lax".into()][..])
    );
    let stats = all.stats.as_ref().unwrap();
    assert!(stats.hide_version && stats.show_legends);
    assert_eq!((stats.refresh, stats.show_node.as_deref()), (Some(seconds(5)), Some("here")));
    assert_eq!(stats.scope, ["."]);
}

#[test]
fn every_server_option_can_be_set() {
    let config = config("everything.cfg");
    let all = proxy(&config, "all");
    let [a, b, c, d] = &all.servers[..] else { panic!("four servers") };
    assert_eq!(a.addr, "192.0.2.1:0".parse().unwrap());
    let o = &a.options;
    assert_eq!((o.weight, o.maxconn, o.minconn, o.maxqueue), (7, 8, 2, 9));
    assert!(o.backup && o.disabled && o.non_stick && o.check);
    assert_eq!((o.cookie.as_deref(), o.inter, o.rise, o.fall), (Some("ca"), seconds(3), 4, 5));
    let o = &b.options;
    assert_eq!((b.host.as_str(), b.addr), ("app.example", "192.0.2.7:81".parse().unwrap()));
    assert_eq!((o.inter, o.fastinter, o.downinter), (seconds(1), Some(seconds(2)), Some(seconds(3))));
    assert_eq!(
        (o.rise, o.fall, o.check_port, o.check_addr),
        (1, 1, Some(82), Some(IpAddr::from([192, 0, 2, 9])))
    );
    let o = &c.options;
    assert!(!o.check && c.addr.is_ipv6());
    assert_eq!((o.pool_max_conn, o.pool_purge_delay, o.max_reuse), (Some(5), seconds(60), Some(6)));
    assert_eq!(o.slowstart, Some(seconds(60)));
    let o = &d.options;
    assert!(o.shutdown_sessions_on_down);
    assert_eq!((o.pool_max_conn, o.max_reuse), (None, None));
    assert_eq!(all.default_server.inter, seconds(3), "what servers start from");
}

#[test]
fn defaults_can_be_undone() {
    let config = config("everything.cfg");
    let check = proxy(&config, "all").httpchk.as_ref().unwrap();
    assert_eq!(
        (check.method.as_str(), check.uri.as_str(), check.version.as_str()),
        ("GET", "/up", "HTTP/1.1")
    );
    assert_eq!(check.host.as_deref(), Some("www.example"));
    let plain = proxy(&config, "plain");
    assert_eq!((plain.connection_mode, &plain.forwardfor), (ConnectionMode::KeepAlive, &None));
    assert_eq!((plain.clitcpka, plain.srvtcpka), (false, true));
    assert_eq!((plain.smart_accept, plain.smart_connect), (false, true));
    let check = plain.httpchk.as_ref().unwrap();
    assert_eq!((check.method.as_str(), check.version.as_str()), ("HEAD", "HTTP/1.1\r\nHost: old.example"));
    assert_eq!(check.host.as_deref(), Some("new.example"));
    assert_eq!(plain.balance, Some(Balance::Random(3)));
    assert!(
        plain.cookie.as_ref().is_some_and(|cookie| cookie.preserve && cookie.mode == CookieMode::Rewrite)
    );
    let tiny = proxy(&config, "tiny");
    assert_eq!((tiny.id, &tiny.balance), (3, &Some(Balance::UrlParam("id".into()))), "2 is taken by 'plain'");
    let hash = HashType { method: HashMethod::Consistent, function: HashFunction::Crc32, avalanche: false };
    assert_eq!(tiny.hash_type, hash);
    assert!(proxy(&config, "off").disabled && !proxy(&config, "on").disabled);
    let backups: Vec<bool> = proxy(&config, "on").servers.iter().map(|s| s.options.backup).collect();
    assert_eq!(backups, [false, true]);
    let table = proxy(&config, "by_source").stick_table.as_ref().unwrap();
    assert_eq!(
        (table.key, &table.store[..], table.expire),
        (KeyType::Ipv6, &[DataType::ServerId, DataType::ServerKey][..], None)
    );
    let kinds: Vec<StickKind> =
        proxy(&config, "by_source").stick_rules.iter().map(|rule| rule.kind).collect();
    assert_eq!(kinds, [StickKind::Match, StickKind::StoreRequest]);
    let numbers = proxy(&config, "numbers");
    let table = numbers.stick_table.as_ref().unwrap();
    assert_eq!((table.key, table.expire), (KeyType::Integer, Some(Duration::from_millis(5))));
    assert_eq!(numbers.balance, Some(Balance::Hdr { name: "host".into(), domain_only: true }));
}

#[test]
fn several_files_are_one_configuration_but_a_section_ends_with_its_file() {
    let first = Source::new("1.cfg", "defaults\n mode http\n timeout client 1s\nfrontend f\n bind :80\n");
    let second = Source::new("2.cfg", " maxconn 5\nfrontend g\n bind :81\n");
    let outcome = parse(&[first.clone(), second], &env());
    assert!(outcome.config.is_none());
    assert_eq!(outcome.diagnostics.len(), 1, "{:?}", outcome.diagnostics);
    let said = &outcome.diagnostics[0];
    assert_eq!(
        (said.file.as_str(), said.line, said.column, said.word.as_deref()),
        ("2.cfg", 1, 2, Some("maxconn"))
    );

    let second = Source::new("2.cfg", "frontend g\n bind :81\n");
    let outcome = parse(&[first, second], &env());
    let config = outcome.config.expect("valid");
    assert_eq!(proxy(&config, "g").mode, Mode::Http, "defaults go on in the next file");
    assert_eq!(config.files[proxy(&config, "g").pos.file as usize], "2.cfg");
}

#[test]
fn rendering_is_haproxys() {
    let outcome = parse(&[Source::new("a.cfg", "listen l\n\tblance roundrobin\n")], &env());
    let expected = "[ALERT]    (42) : config : parsing [a.cfg:2] : unknown keyword 'blance' in 'listen' section; \
                    did you mean 'balance' maybe ?\n  \tblance roundrobin\n  \t^";
    assert_eq!(outcome.diagnostics[0].render(42), expected);
}

#[test]
fn every_keyword_is_documented_once_per_section() {
    let mut seen = std::collections::HashSet::new();
    for keyword in keywords() {
        assert!(!keyword.doc.is_empty() && keyword.doc.ends_with('.'), "{}", keyword.name);
        for section in keyword.sections() {
            assert!(seen.insert((section, keyword.name)), "'{}' twice in {section}", keyword.name);
        }
    }
    assert!(seen.len() > 200);
    let mut seen = std::collections::HashSet::new();
    for option in option_keywords() {
        assert!(option.doc.ends_with('.') && seen.insert((option.of, option.name)), "{}", option.name);
    }
}

/// xorshift: the test needs repeatable noise, not good noise.
struct Noise(u64);

impl Noise {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }
}

#[test]
fn mutated_configurations_never_panic() {
    const PIECES: &[&[u8]] = &[
        b"\0",
        b"\"",
        b"'",
        b"\\",
        b"\\x",
        b"\\xff",
        b"${",
        b"\"${A-",
        b"$",
        b"#",
        b"\r\n",
        b"\n",
        b" ",
        b"\t",
        b"-1",
        b"99999999999999999999",
        b"\xff\xfe",
        b"no ",
        b"default ",
        b".if ",
        b".endif\n",
        b"(",
        b")",
        b",",
        b"[",
        b"]:",
        b"\xe4\xbd\xa0",
        b"from",
        b"global\n",
        b"backend x\n",
        b"cluster c\n",
        b"/",
        b"@",
        b"0",
    ];
    let cases = cases();
    let rounds = if cfg!(debug_assertions) { 1_500 } else { 200_000 };
    for seed in 1..=rounds {
        let mut noise = Noise(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
        let mut text = cases[noise.below(cases.len())].1.clone();
        for _ in 0..=noise.below(6) {
            let at = noise.below(text.len() + 1);
            match noise.below(4) {
                0 => {
                    let end = (at + noise.below(20)).min(text.len());
                    text.drain(at..end);
                }
                1 => {
                    let piece = PIECES[noise.below(PIECES.len())];
                    text.splice(at..at, piece.iter().copied());
                }
                2 if at < text.len() => text[at] = noise.below(256) as u8,
                // A part of it again, somewhere else.
                _ => {
                    let from = noise.below(text.len() + 1);
                    let to = (from + noise.below(60)).min(text.len());
                    let part = text[from..to].to_vec();
                    text.splice(at..at, part);
                }
            }
        }
        let input = text.clone();
        let result = std::panic::catch_unwind(move || {
            let outcome = parse(&[Source::new("m.cfg", text)], &env());
            let alerts = outcome.diagnostics.iter().any(|d| d.severity == Severity::Alert);
            assert_eq!(outcome.config.is_none(), alerts);
            outcome.diagnostics.iter().for_each(|d| drop(d.render(1)));
        });
        assert!(result.is_ok(), "seed {seed} panics on {:?}", String::from_utf8_lossy(&input));
    }
}

#[test]
fn long_lines_and_files_are_read_in_time() {
    let long = format!("listen l\n bind :80\n description {}\n", "x".repeat(1 << 20));
    assert!(parse(&[Source::new("l.cfg", long)], &env()).config.is_some());
    let noise = parse(&[Source::new("n.cfg", "listen l\n nonsense\n".repeat(100_000))], &env());
    let alerts = noise.diagnostics.iter().filter(|d| d.severity == Severity::Alert).count();
    assert_eq!(alerts, 1_001, "it gives up at some point");
    let warnings = "listen l\n bind :80\n".to_owned() + &" bind :80\n".repeat(5_000);
    let outcome = parse(&[Source::new("w.cfg", warnings)], &env());
    assert!(outcome.config.is_some() && outcome.diagnostics.len() == 1_001, "warnings do not refuse");
    let word = parse(&[Source::new("w.cfg", format!("listen l\n {}\n", "é".repeat(1 << 20)))], &env());
    assert!(word.diagnostics[0].render(1).len() < 2_000);
    let ranges = format!("listen l\n bind {}\n", vec![":1-65535"; 2_000].join(","));
    assert!(parse(&[Source::new("l.cfg", ranges)], &env()).config.is_none());
    let mut many = String::from("backend b\n balance leastconn\n");
    for index in 0..2_000 {
        let _ = writeln!(many, " server s{index} 127.0.0.1:80 check weight 5");
    }
    let config = parse(&[Source::new("m.cfg", many)], &env()).config.expect("valid");
    assert_eq!(config.proxies[0].servers.len(), 2_000);
}
