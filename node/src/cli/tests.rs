//! The Runtime API over a real socket: framing, levels, replies, changes of servers.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use phalanx_config::{Source, StaticEnv, StatsAddr, StatsSocket};
use phalanx_engine::state::Setup;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::*;

mod patterns;

const CONFIG: &str = "
global
    stats socket ipv4@127.0.0.1:9999 level admin
    maxconn 100
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend web
    bind 127.0.0.1:8080
    default_backend webservers
backend webservers
    balance roundrobin
    cookie SRV insert indirect nocache
    server s1 127.0.0.1:9801 check cookie s1
    server s2 127.0.0.1:9802 cookie s2 weight 10
backend static
    balance static-rr
    server a 127.0.0.1:9803
listen sticky
    bind 127.0.0.1:8081
    mode tcp
    stick-table type ip size 1k expire 30m store server_id,gpc0,http_req_rate(10s)
    stick on src
    server s1 127.0.0.1:9801 maxconn 10
";

/// A Runtime API on a port of its own, without workers behind it.
struct Api {
    runtime: Runtime,
    state: Arc<State>,
    port: u16,
    stop: watch::Sender<Option<phalanx_config::Level>>,
}

impl Api {
    fn start(level: phalanx_config::Level) -> Api {
        Api::with(level, |_| {})
    }

    fn with(level: phalanx_config::Level, change: impl FnOnce(&mut phalanx_config::Config)) -> Api {
        let env = StaticEnv::default();
        let outcome = phalanx_config::parse(&[Source::new("test.cfg", CONFIG)], &env);
        let mut config = outcome.config.unwrap_or_else(|| panic!("{:?}", outcome.diagnostics));
        change(&mut config);
        let clock = Clock::new();
        let now = Now { mono: clock.mono(), unix_us: 1_700_000_000_000_000 };
        let setup = Setup { workers: 2, seed: 1, default_maxconn: 1000, node: "n1".into() };
        let logs = Sink::new(&config.global);
        let state = State::new(config, setup, Tables::new("n1", 1, 1), now);
        let changed = {
            let state = state.clone();
            move |registry: &phalanx_engine::registry::Registry| {
                let _ = state.reconcile(registry, Now { mono: clock.mono(), unix_us: 0 });
            }
        };
        let (reload, mut reloads) = mpsc::channel::<ReloadRequest>(1);
        let ctx = Arc::new(Context {
            state: state.clone(),
            authority: Authority::Local(Local::new(changed)),
            clock,
            logs,
            reload,
            apply_listeners: Box::new(|| Ok(())),
            startup_logs: Arc::default(),
            resolve: |host| match host {
                "app.example" => Ok(std::net::Ipv4Addr::new(192, 0, 2, 7).into()),
                _ => Err(format!("could not resolve address '{host}'")),
            },
            load: Load::default(),
            haproxys: Vec::new(),
            warnings: AtomicU64::new(0),
            discovery: crate::discovery::Handle::default(),
            held: Arc::new(Held::open(
                Arc::new(crate::load::Files::open(&[], false, false).expect("no files")),
                "n1",
                None,
            )),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (stop, stopped) = watch::channel(Some(level));
        let socket = StatsSocket {
            addr: StatsAddr::Tcp("127.0.0.1:0".parse().expect("an address")),
            mode: None,
            uid: None,
            gid: None,
            level,
            expose_fd: false,
            pos: Default::default(),
        };
        let listener = listen(&socket).expect("a free port");
        let port = listener.port().expect("TCP");
        runtime.spawn(serve(listener, ctx, stopped));
        runtime.spawn(async move {
            while let Some(reply) = reloads.recv().await {
                let _ = reply.send(Ok("configuration is valid\n\n".into()));
            }
        });
        Api { runtime, state, port, stop }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket option");
        stream
    }

    /// Sends bytes as plain `nc` does, without half-closing, and reads to the end.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).expect("write");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the server closes");
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn ask(&self, line: &str) -> String {
        self.raw(format!("{line}\n").as_bytes())
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.stop.send_replace(None);
    }
}

fn admin() -> Api {
    Api::start(phalanx_config::Level::Admin)
}

/// Lines `> command`, each followed by the answer without the empty line that ends it.
fn play(api: &Api, script: &str) {
    let mut played = String::new();
    for command in script.lines().filter_map(|l| l.strip_prefix("> ")) {
        let answer = api.ask(command);
        let body = answer.strip_suffix('\n').unwrap_or_else(|| panic!("no empty line after {command}"));
        played.push_str(&format!("> {command}\n{body}"));
    }
    assert_eq!(played, script);
}

#[test]
fn replies_are_haproxys() {
    play(&admin(), include_str!("tests/replies.txt"));
}

#[test]
fn servers_come_and_go_at_run_time() {
    let api = admin();
    play(&api, include_str!("tests/dynamic.txt"));
    let added = api.ask(
        "add server webservers/s4 127.0.0.1:9804 check cookie s4; enable server webservers/s4; \
         enable health webservers/s4",
    );
    assert_eq!(added, "New server registered.\n\n\n\n");
    let backend = api.state.plan().backend("webservers").cloned().expect("configured");
    let server = backend.server("s4").expect("added");
    assert!(server.is_up() && server.check_runs() && server.has_cookie(b"s4"));
    assert_eq!(server.id(), 3, "above the configured ids");
    assert_eq!(api.ask("disable server webservers/s4; del server webservers/s4"), "\nServer deleted.\n\n");
    assert!(backend.server("s4").is_none());
    let help = api.ask("add server help");
    assert!(
        help.contains("\n\tcheck\n") && help.contains("\n\tcookie ") && !help.contains("\tnon-stick"),
        "{help}"
    );
}

#[test]
fn idle_connections_delay_a_deletion_and_busy_ones_refuse_it() {
    use std::sync::atomic::Ordering::SeqCst;
    let api = admin();
    let server = api.state.plan().backend("webservers").and_then(|b| b.server("s2")).expect("configured");
    server.idle.store(1, SeqCst);
    api.ask("disable server webservers/s2");
    let refused = api.ask("del server webservers/s2");
    assert_eq!(refused, "Server still has connections attached to it, cannot remove it.\n\n");
    let pool = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        server.idle.store(0, SeqCst);
    });
    assert_eq!(api.ask("del server webservers/s2"), "Server deleted.\n\n");
    pool.join().expect("the pool's thread");
}

#[test]
fn one_line_is_answered_and_the_connection_closes() {
    let api = admin();
    let version = format!("{}\n\n", phalanx_engine::stats::info::VERSION);
    for (sent, want) in [
        ("show version\n", version.clone()),
        ("show version\r\n", version.clone()),
        ("show version;show version\n", version.repeat(2)),
        ("show version; ;\n", version.clone()),
        ("echo a\\;b\n", "a;b\n\n".to_owned()),
        // A here-document that begins with an empty line.
        ("\nshow version\nshow version\n", version.repeat(2)),
        ("quit;show version\n", String::new()),
        ("operator;show cli level\n", "\noperator\n\n".to_owned()),
        ("show version <<\nsome\npayload\n\n", version.clone()),
        ("show version <<END\n\nEND\n", version.clone()),
    ] {
        assert_eq!(api.raw(sent.as_bytes()), want, "{sent:?}");
    }
}

#[test]
fn a_client_that_half_closes_without_a_line_end_is_answered() {
    let api = admin();
    let mut stream = api.connect();
    stream.write_all(b"show cli level").expect("write");
    stream.shutdown(Shutdown::Write).expect("half-close");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the server closes");
    assert_eq!(answer, "admin\n\n");
}

#[test]
fn prompt_keeps_the_connection_and_shows_where_to_type() {
    let api = admin();
    assert_eq!(api.raw(b"prompt\necho a\nquit\n"), "\n> a\n\n> ");
    assert_eq!(api.raw(b"prompt i\necho a\necho b\nquit\n"), "\na\n\nb\n\n");
    assert_eq!(api.raw(b"prompt\nprompt n\n"), "\n> \n");
    assert_eq!(api.raw(b"prompt\necho a <<\nx\n\nquit\n"), "\n> + + a\n\n> ");
    let timed = api.raw(b"prompt timed\nquit\n");
    assert!(timed.starts_with("\n[0:00:00:") && timed.ends_with("]> "), "{timed:?}");
}

#[test]
fn levels_forbid_what_is_above_them() {
    let api = Api::start(phalanx_config::Level::User);
    play(&api, include_str!("tests/user.txt"));
    let api = Api::start(phalanx_config::Level::Operator);
    assert_eq!(api.ask("clear counters"), "\n");
    assert_eq!(api.ask("clear counters all"), "Permission denied\n\n");
    assert_eq!(api.ask("disable server webservers/s1"), "Permission denied\n\n");
}

#[test]
fn prefixes_name_the_node_and_keep_the_level() {
    let api = admin();
    for (sent, want) in [
        ("@n1 echo a", "a\n\n"),
        ("@n2 echo a", "No such node 'n2'; the nodes are: n1.\n\n"),
        ("@ echo a", "'@' expects the name of a node behind it, or 'all'.\n\n"),
        ("local", "'local' expects a command behind it.\n\n"),
        ("@n1; echo a; @; echo b", "\na\n\n\nb\n\n"),
        ("@all; echo a; @local; echo b", "\n@n1: ok\na\n\n\nb\n\n"),
        ("@n2; echo a", "No such node 'n2'; the nodes are: n1.\n\na\n\n"),
        ("@all echo @b", "@n1: ok\n@@b\n\n"),
        ("@all set weight x/y 1", "@n1: refused\nNo such backend.\n\n"),
        (
            "@all quit; echo b",
            "@n1: refused\n'quit' concerns this connection: it has no meaning on a node.\n\nb\n\n",
        ),
        ("@all @n1 echo a", "'@n1': a command has one prefix; it is not passed on from node to node.\n\n"),
        ("@n1 local echo a", "'local': a command has one prefix; it is not passed on from node to node.\n\n"),
        ("local echo a; echo b", "a\n\nb\n\n"),
        ("set severity-output number; @n1 set weight x/y 1", "\n[3]: No such backend.\n\n"),
        // Without a cluster there is nobody to agree with.
        ("local set weight webservers/s2 9; local get weight webservers/s2", "\n9 (initial 10)\n\n"),
    ] {
        assert_eq!(api.ask(sent), want, "{sent:?}");
    }
    assert_eq!(
        api.raw(b"prompt\n@all echo a\n@n1 echo b <<\nx\n\nquit\n"),
        "\n> @n1: ok\na\n\n> + + b\n\n> "
    );
    assert_eq!(
        api.raw(b"prompt\n@n1\nset severity-output none\necho a\n@all\necho a\n@\necho b\nquit\n"),
        "\n> \nn1> \nn1> a\n\nn1> \nall> @n1: ok\na\n\nall> \n> b\n\n> "
    );
    let user = Api::start(phalanx_config::Level::User);
    assert_eq!(user.ask("@n1 disable server webservers/s1"), "Permission denied\n\n");
    assert_eq!(user.ask("@all disable server webservers/s1"), "@n1: refused\nPermission denied\n\n");
}

#[test]
fn a_pointer_that_was_shown_names_its_entry() {
    let api = admin();
    api.ask("set table sticky key 1.2.3.4 data.gpc0 4; set table sticky key 1.2.3.5 data.gpc0 5");
    let shown = api.ask("show table sticky key 1.2.3.5");
    let ptr = shown.lines().find_map(|line| line.split_once(": key=1.2.3.5 ")).unwrap().0.to_owned();
    assert!(api.ask(&format!("show table sticky ptr {ptr}")).contains("key=1.2.3.5 "));
    assert_eq!(api.ask(&format!("set table sticky ptr {ptr} data.gpc0 9")), "\n");
    assert!(api.ask("show table sticky key 1.2.3.5").contains("gpc0=9"));
    assert_eq!(api.ask(&format!("clear table sticky ptr {ptr}")), "\n");
    let left = api.ask("show table sticky");
    assert!(left.contains("1.2.3.4") && !left.contains("1.2.3.5"), "{left}");
}

#[test]
fn severity_is_shown_when_asked_for() {
    let api = admin();
    assert_eq!(
        api.ask("set severity-output number; set weight x/y 1; get weight webservers/s2"),
        "\n[3]: No such backend.\n\n[6]: 10 (initial 10)\n\n"
    );
    assert_eq!(api.ask("set severity-output string; set weight x/y 1"), "\n[err]: No such backend.\n\n");
}

#[test]
fn dumps_have_haproxys_shape() {
    let api = admin();
    let stat = api.ask("show stat");
    let names: Vec<String> =
        stat.lines().skip(1).map(|l| l.split(',').take(2).collect::<Vec<_>>().join("/")).collect();
    assert_eq!(
        names,
        [
            "web/FRONTEND",
            "webservers/s1",
            "webservers/s2",
            "webservers/BACKEND",
            "static/a",
            "static/BACKEND",
            "sticky/FRONTEND",
            "sticky/s1",
            "sticky/BACKEND",
            ""
        ]
    );
    let columns = stat.lines().next().map(|l| l.matches(',').count());
    for line in stat.lines().filter(|l| !l.is_empty()) {
        assert_eq!(Some(line.matches(',').count()), columns, "{line}");
    }
    assert_eq!(api.ask("show stat web 1 -1").lines().count(), 3);
    assert_eq!(api.ask("show stat -1 4 1").lines().count(), 5);
    assert_eq!(api.ask("show stat nosuch 1 -1"), "No such proxy.\n\n");
    let info = api.ask("show info");
    assert!(info.starts_with("Name: HAProxy\nVersion: 3."), "{info}");
    for line in ["Nbproc: 1", "Process_num: 1", "Maxconn: 100", "CurrConns: 0", "node: n1"] {
        assert!(info.lines().any(|l| l == line), "{line} in {info}");
    }
    for json in ["show info json", "show stat json", "show cluster json"] {
        serde_json::from_str::<serde_json::Value>(&api.ask(json)).unwrap_or_else(|e| panic!("{json}: {e}"));
    }
    let user = Api::start(phalanx_config::Level::User).ask("show stat");
    assert!(stat.contains(",127.0.0.1:9801,s1,") && !user.contains("127.0.0.1:9801"));
}

#[test]
fn no_dump_has_an_empty_line_inside() {
    let api = admin();
    for keyword in keyword::all().filter(|k| k.words[0] == "show" || k.words[0] == "help") {
        let command = keyword.words.join(" ");
        let answer = api.ask(&command);
        let body = answer.strip_suffix('\n').unwrap_or_else(|| panic!("{command}: {answer:?}"));
        assert!(!body.contains("\n\n") && (body.is_empty() || body.ends_with('\n')), "{command}: {body:?}");
    }
}

#[test]
fn junk_is_answered_or_refused_and_the_api_lives_on() {
    let api = admin();
    let too_long = api.raw(&[b'x'; 40_000]);
    assert!(too_long.is_empty() || too_long == "Line too long.\n\n", "{too_long:?}");
    let words: Vec<&str> = keyword::all().flat_map(|k| k.words.iter().copied()).collect();
    let odd = [
        "webservers/s1",
        "x/",
        "/",
        "-1",
        "99999999999999999999",
        "\u{0}",
        "é%",
        "data.gpc0",
        "gt",
        "sticky",
        "key",
    ];
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut draw = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % n
    };
    for round in 0..300 {
        let line: Vec<&str> = (0..1 + draw(6))
            .map(|_| if draw(3) == 0 { odd[draw(odd.len())] } else { words[draw(words.len())] })
            .filter(|w| *w != "wait")
            .collect();
        let line = line.join(" ");
        let mut stream = api.connect();
        stream.write_all(format!("{line}\n").as_bytes()).expect("write");
        stream.shutdown(Shutdown::Write).expect("half-close");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap_or_else(|e| panic!("round {round}: {line:?}: {e}"));
    }
    for bytes in [&b"\xff\xfe\n"[..], b"\0\0\n", b"<<\n\n", b"\\\n", b"show stat \\\n", b"<<<<<<\n"] {
        let mut stream = api.connect();
        stream.write_all(bytes).expect("write");
        stream.shutdown(Shutdown::Write).expect("half-close");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an end");
    }
    assert_eq!(api.ask("show cli level"), "admin\n\n");
    drop(api.runtime.handle().clone());
}
