//! Each fetch, converter and matching method on one request, and rule sets on a whole state.

use std::sync::Arc;

use phalanx_config::{Action, Source, StaticEnv, parse};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::h1::{self, Head, Parsed, Rewrite};
use crate::memory::Memory;
use crate::sample::{World, evaluate};
use crate::state::{Setup, State};
use crate::stick::Tables;
use crate::testing::at as moment;

const REQUEST: &str = "GET /a/B%20c?x=1&y=Two&x=3 HTTP/1.1\r\nHost: www.Example.com:8080\r\n\
    X-S: a, \"b,c\" , D\r\nX-S: last, Er\r\nX-Int: 12\r\nX-Ip: 10.1.2.3, 2001:db8::1\r\n\
    Cookie: k=1; n=2\r\nCookie: k=3\r\nContent-Length: 7\r\n\
    Authorization: Basic dXNlcjpwYTpzcw==\r\nX-Empty:\r\n\r\n";

/// A node with one frontend `f`, these lines in it, and a request that has come.
struct Node {
    state: Arc<State>,
    buf: Vec<u8>,
    head: Head,
    session: Memory,
    memory: Memory,
}

impl Node {
    fn new(lines: &str) -> Node {
        let text = format!(
            "defaults\n mode http\n timeout client 1s\n timeout connect 1s\n timeout server 1s\n\
             frontend f\n bind 127.0.0.1:1\n\
             stick-table type ip size 100 expire 1m store gpc0,gpc1,gpt0,http_req_rate(10s),conn_cnt,bytes_in_cnt\n\
             {lines}\n\
             backend b\n balance roundrobin\n server s1 127.0.0.1:2 maxconn 5\n server s2 127.0.0.1:3 weight 7 maxconn 6\n\
             backend names\n stick-table type string len 20 size 10 store gpc(3)\n"
        );
        let mut env = StaticEnv::default();
        env.files.insert("m".into(), b"/a one\n/b 2\n10.0.0.0/8 3\n12 4.4.4.4\n".to_vec());
        env.files.insert("ips".into(), b"10.0.0.0/8 7\n".to_vec());
        env.files.insert("re".into(), b"^/(.)/(.) got-\\2-\\1\n".to_vec());
        let outcome = parse(&[Source::new("t.cfg", text.as_bytes())], &env);
        let said: Vec<String> = outcome.diagnostics.iter().map(ToString::to_string).collect();
        let config = outcome.config.unwrap_or_else(|| panic!("{said:#?}"));
        let setup = Setup { workers: 1, seed: 1, default_maxconn: 100, node: "n1".into() };
        let state = State::new(config, setup, Tables::new("n1", 1, 1), moment(0));
        let (mut buf, mut head) = (REQUEST.as_bytes().to_vec(), Head::default());
        assert!(matches!(h1::request(&mut buf, &mut head), Ok(Parsed::Complete(_))));
        Node { state, buf, head, session: Memory::default(), memory: Memory::default() }
    }

    fn with<T>(&self, f: impl FnOnce(&ProxyPlan, &Context<'_>) -> T) -> T {
        let plan = self.state.plan_owned();
        let front = plan.proxy("f").expect("it is there");
        let world =
            World { state: &self.state, plan: &plan, proxy: front, front, backend: None, server: None };
        f(
            front,
            &Context {
                src: "[::ffff:192.0.2.1]:1000".parse().unwrap(),
                dst: "127.0.0.1:80".parse().unwrap(),
                request: Some((&self.buf, &self.head)),
                response: None,
                world: Some(world),
                session: &self.session,
                memory: &self.memory,
                first: true,
                waited: false,
                now: moment(1_700_000_000_123),
                draw: u64::MAX,
            },
        )
    }

    /// What stays of the rules of `http-request`, by the names of what the caller had to do.
    fn run(&self) -> Vec<String> {
        self.with(|front, at| {
            let mut cursor = Cursor::default();
            let mut done = Vec::new();
            loop {
                match next(&front.config.rules.http_request, &mut cursor, front, at) {
                    Step::Done => return done,
                    Step::Wait => {
                        done.push("wait".into());
                        return done;
                    }
                    Step::Act(Action::Deny(answer)) => done.push(answer.status.to_string()),
                    Step::Act(other) => done.push(format!("{other:?}")),
                }
            }
        })
    }

    fn holds(condition: &str) -> bool {
        !Node::new(&format!(" http-request deny if {condition}")).run().is_empty()
    }
}

/// What an expression gives as text.
fn eval(text: &str) -> Option<String> {
    let node = Node::new(&format!(" http-request set-var(txn.v) {text}"));
    node.memory.set(&variable("k"), Value::Int(4));
    node.with(|front, at| {
        let Action::SetVar(_, ValueFrom::Expr(expr)) = &front.config.rules.http_request[0].action else {
            panic!("{text}");
        };
        evaluate(expr, at).map(|v| String::from_utf8_lossy(&v.to_text()).into_owned())
    })
}

fn variable(name: &str) -> phalanx_config::Variable {
    phalanx_config::Variable { scope: phalanx_config::VarScope::Txn, name: name.into() }
}

#[test]
fn fetches_and_converters() {
    let table: &[(&str, Option<&str>)] = &[
        ("src", Some("192.0.2.1")),
        ("src_port", Some("1000")),
        ("dst", Some("127.0.0.1")),
        ("dst_port", Some("80")),
        ("src_is_local", Some("0")),
        ("always_true", Some("1")),
        ("bool(no)", Some("0")),
        ("int(-4)", Some("-4")),
        ("str(a)", Some("a")),
        ("bin(6162)", Some("ab")),
        ("bin(0aff),hex", Some("0AFF")),
        ("ipv6(::1)", Some("::1")),
        ("date(1)", Some("1700000001")),
        ("date(0,ms)", Some("1700000000123")),
        ("rand(10)", Some("9")),
        ("var(txn.k)", Some("4")),
        ("var(txn.none)", None),
        ("req.hdr(x-s)", Some("Er")),
        ("req.hdr(x-s,1)", Some("a")),
        ("req.hdr(x-s,2)", Some("\"b,c\"")),
        ("req.hdr(x-s,-2)", Some("last")),
        ("req.hdr(x-s,9)", None),
        ("req.hdr(nope)", None),
        ("req.hdr(x-empty)", Some("")),
        ("req.fhdr(x-s,1)", Some("a, \"b,c\" , D")),
        ("req.hdr_cnt(x-s)", Some("5")),
        ("req.fhdr_cnt(x-s)", Some("2")),
        ("req.hdr_val(x-int)", Some("12")),
        ("req.hdr_ip(x-ip,1)", Some("10.1.2.3")),
        ("req.hdr_ip(x-ip)", Some("2001:db8::1")),
        ("req.cook(k)", Some("3")),
        ("req.cook_cnt(k)", Some("2")),
        ("path", Some("/a/B%20c")),
        ("pathq", Some("/a/B%20c?x=1&y=Two&x=3")),
        ("url", Some("/a/B%20c?x=1&y=Two&x=3")),
        ("query", Some("x=1&y=Two&x=3")),
        ("base", Some("www.Example.com:8080/a/B%20c")),
        ("method", Some("GET")),
        ("req.ver", Some("1.1")),
        ("urlp(x)", Some("1")),
        ("urlp(z)", None),
        ("urlp_val(x)", Some("1")),
        ("http_auth_user", Some("user")),
        ("http_auth_pass", Some("pa:ss")),
        ("http_auth_type", Some("Basic")),
        ("http_first_req", Some("1")),
        ("req.body_size", Some("7")),
        ("nbsrv(b)", Some("2")),
        ("srv_weight(b/s2)", Some("7")),
        ("be_conn_free(b)", Some("11")),
        ("srv_is_up(b/s1)", Some("1")),
        ("be_conn(b)", Some("0")),
        ("fe_name", Some("f")),
        ("table_cnt", Some("0")),
        ("table_avl(names)", Some("10")),
        ("sc_tracked(0)", Some("0")),
        ("sc_get_gpc0(0)", None),
        ("src_get_gpc0", Some("0")),
        ("src_inc_gpc0", Some("1")),
        ("src_clr_gpc0", Some("0")),
        ("str(x),table_clr_gpc(1,names)", Some("0")),
        ("src_http_err_rate", None),
        ("str(aBc),lower", Some("abc")),
        ("str(aBc),upper", Some("ABC")),
        ("str(abc),length", Some("3")),
        ("str(abcde),bytes(1,2)", Some("bc")),
        ("str(abcde),bytes(3)", Some("de")),
        ("str(abcde),bytes(9)", Some("")),
        ("str(xxabxx),ltrim(x)", Some("abxx")),
        ("str(xxabxx),rtrim(x)", Some("xxab")),
        ("path,field(2,/)", Some("a")),
        ("path,field(-1,/)", Some("B%20c")),
        ("path,field(1,/)", Some("")),
        ("path,field(2,/,0)", Some("a/B%20c")),
        ("path,word(1,/)", Some("a")),
        ("path,word(-1,/)", Some("B%20c")),
        ("path,word(9,/)", Some("")),
        ("path,url_dec", Some("/a/B c")),
        ("str(a+b),url_dec(1)", Some("a b")),
        ("str(%zz),url_dec", None),
        ("str(%+5),url_dec", None),
        ("str(a b/c),url_enc", Some("a%20b%2Fc")),
        ("query,param(y)", Some("Two")),
        ("query,param(q)", None),
        ("req.hdr(host),host_only", Some("www.Example.com")),
        ("req.hdr(host),port_only", Some("8080")),
        ("str([::1]:80),host_only", Some("[::1]")),
        ("str(abcabc),regsub(b,X)", Some("aXcabc")),
        ("str(abcabc),regsub(b,X,g)", Some("aXcaXc")),
        (r#"str(abc),regsub(\"(.)c\",<\\\\1>)"#, Some("a<b>")),
        ("str(a),concat(-,txn.k,!)", Some("a-4!")),
        ("str(4),strcmp(txn.k)", Some("0")),
        ("bool(1),iif(yes,no)", Some("yes")),
        ("int(255),hex", Some("00000000000000FF")),
        ("str(ff),hex2i", Some("255")),
        ("str(zz),hex2i", None),
        ("str(hello),base64", Some("aGVsbG8=")),
        ("str(aGVsbG8=),b64dec,hex", Some("68656C6C6F")),
        ("src,ipmask(24)", Some("192.0.2.0")),
        ("ipv6(2001:db8::1),ipmask(24,32)", Some("2001:db8::")),
        ("int(7),add(txn.k),mul(2),sub(1),div(3),mod(4)", Some("3")),
        ("int(9223372036854775807),add(1)", Some("9223372036854775807")),
        ("int(6),and(3),or(8),xor(1)", Some("11")),
        ("int(5),neg", Some("-5")),
        ("int(5),not", Some("0")),
        ("int(5),odd", Some("1")),
        ("str(12a),add(1)", Some("13")),
        ("str(hello),crc32", Some("907060870")),
        ("str(hello),djb2", Some("261238937")),
        ("date,http_date", Some("Tue, 14 Nov 2023 22:13:20 GMT")),
        ("date,utime(%Y-%m)", Some("2023-11")),
        ("date,utime(%Q%)", None),
        ("path,map_beg(m,none)", Some("one")),
        ("str(zzz),map(m,none)", Some("none")),
        ("str(zzz),map(m)", None),
        ("req.hdr_ip(x-ip,1),map_ip_int(ips)", Some("7")),
        ("path,map_regm(re)", Some("got-B-a")),
        ("src,in_table(f)", Some("0")),
        ("src,table_gpc0(f)", Some("0")),
        ("str(x),table_gpc(2,names)", Some("0")),
        ("src,table_http_err_cnt(f)", None),
    ];
    let mut wrong = Vec::new();
    for (text, expected) in table {
        let got = eval(&text.replace(' ', "\\ "));
        if got.as_deref() != *expected {
            wrong.push(format!("{text}: {got:?}, expected {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn conditions_hold_or_not() {
    for condition in [
        "TRUE",
        "!FALSE",
        "! FALSE",
        "!!TRUE",
        "FALSE or TRUE",
        "FALSE || TRUE TRUE",
        "{ path_beg /a } METH_GET HTTP_1.1",
        "{ path_beg -i /A }",
        "{ path -m beg /x /a }",
        "{ path_end c }",
        "{ path_sub B%20 }",
        "{ path_dir B%20c }",
        "{ path_reg ^/a/B.*c$ }",
        "{ path_len 8 }",
        "{ path,length 8 }",
        "{ hdr_dom(host) Example.com }",
        "{ hdr(x-s) D }",
        "{ hdr(x-s),upper LAST }",
        "{ hdr(x-empty) -m found }",
        "{ hdr_cnt(x-s) gt 4 lt 7 }",
        "{ hdr_cnt(x-s) 1 2 5 }",
        "{ hdr_val(x-int) ge 12 }",
        "{ str(12abc) -m int 12 }",
        "{ hdr_ip(x-ip) 10.0.0.0/8 }",
        "{ cook(k) 1 }",
        "{ urlp(x) 3 }",
        "{ src 192.0.2.0/24 }",
        "!{ src 192.0.3.0/24 } !LOCALHOST",
        "{ int(3) -m bool }",
        "{ bin(0aff) -m bin 0AFF }",
        "HTTP_CONTENT",
        "{ nbsrv(b) eq 2 }",
        "{ req.hdr(x-ip,1) -m ip 10.1.2.3 }",
    ] {
        assert!(Node::holds(condition), "{condition}");
    }
    for condition in [
        "FALSE",
        "TRUE FALSE",
        "FALSE or FALSE TRUE",
        "{ path_beg /A }",
        "{ path_beg }",
        "{ hdr(nope) -m found }",
        "{ hdr(x-s) d }",
        "{ hdr_cnt(x-s) gt 5 }",
        "{ sc_get_gpc0(0) ge 0 }",
        "{ src_get_gpc0 gt 0 }",
        "HTTP_URL_ABS",
        "METH_POST",
    ] {
        assert!(!Node::holds(condition), "{condition}");
    }
    assert_eq!(Node::new(" http-request deny unless TRUE").run(), [""; 0]);
    assert_eq!(Node::new(" http-request deny if WAIT_END").run(), ["wait"]);
    assert_eq!(Node::new(" http-request deny if WAIT_END FALSE").run(), [""; 0], "it cannot hold any more");
    assert_eq!(Node::new(" http-request deny if WAIT_END or TRUE").run(), ["403"], "it holds already");
    let acl = " acl a path /x\n acl a src 192.0.2.1\n acl a path /y\n http-request deny if a";
    assert_eq!(Node::new(acl).run(), ["403"], "lines of one name are alternatives");
}

#[test]
fn tracked_counters_are_changed_and_seen() {
    let node = Node::new(
        " http-request track-sc0 src\n http-request track-sc0 path table names\n http-request sc-inc-gpc0(0)\n\
         http-request sc-inc-gpc1(0) if { sc0_inc_gpc0 eq 2 }\n http-request sc-set-gpt0(0) int(5)\n\
         http-request deny deny_status 429 if { sc_http_req_rate(0) ge 3 } { sc0_get_gpt0 5 } { sc_get_gpc1(0) 3 }",
    );
    assert_eq!((node.run(), node.run()), (vec![], vec![]));
    let row = |node: &Node| {
        let mut rows = Vec::new();
        node.state
            .tables()
            .get("f")
            .unwrap()
            .dump(moment(1_700_000_000_123), |row| rows.push(row.values.to_vec()));
        rows
    };
    assert_eq!(row(&node).len(), 1, "the first rule for a counter wins");
    let other = Node { memory: Memory::default(), state: node.state.clone(), ..Node::new("") };
    assert_eq!(other.run(), [""; 0]);
    assert_eq!(node.with(|_, at| at.memory.tracked(0).unwrap().value(Data::CONN_CNT, at.now)), Some(2));
}

#[test]
fn edits_change_what_later_rules_see() {
    let mut node = Node::new(
        " http-request set-header x-new \"%[path,upper] %{+Q}[src] %% %HM\"\n http-request set-path /n%[path]\n\
         http-request replace-value x-s ^(l.*)$ <\\1>\n http-request replace-path /n/(.*) /m/\\1\n\
         http-request set-query q=1\n http-request del-header x-i -m beg\n\
         http-request del-header ^(co|transfer-) -m reg\n\
         http-request set-header x-evil %[req.hdr(x-s,1)]",
    );
    let (mut head, mut text) = (node.head.clone(), Vec::new());
    let rules = node.with(|front, _| front.config.rules.http_request.clone());
    for rule in &rules {
        let edit = node.with(|_, at| {
            let at =
                Context { request: Some((if text.is_empty() { &node.buf } else { &text }, &head)), ..*at };
            let mut room = Vec::new();
            let edit = prepare(&rule.action, &at, &mut room).expect("an edit");
            // The text it carries is its own.
            let mut other = (head.clone(), text.clone());
            edit.apply(&mut Rewrite::new(&node.buf, &mut other.0, &mut other.1));
            other
        });
        (head, text) = edit;
    }
    node.buf = text;
    node.head = head;
    let last =
        |name: &[u8]| String::from_utf8_lossy(node.head.last(&node.buf, name).unwrap_or(b"-")).into_owned();
    assert_eq!(last(b"x-new"), "/A/B%20C \"192.0.2.1\" % GET");
    assert_eq!(String::from_utf8_lossy(node.head.target(&node.buf)), "/m/a/B%20c?q=1");
    assert_eq!(last(b"x-s"), "<last>, Er");
    assert_eq!((last(b"x-int"), last(b"x-ip")), ("-".into(), "-".into()));
    assert_eq!(last(b"x-evil"), "a");
    let kept = (last(b"cookie"), last(b"content-length"));
    assert_eq!(kept, ("-".into(), "7".into()), "no rule takes away where the body ends");
}

#[test]
fn answers_are_put_together() {
    let node = Node::new(
        " http-request redirect location /new%[path] code 307 set-cookie A=1\n\
         http-request redirect prefix http://o.example drop-query append-slash\n\
         http-request redirect scheme https\n http-request redirect location %[req.hdr(nope)] ignore-empty\n\
         http-request return status 418 content-type text/plain lf-string \"you %[src]\" hdr x-a b%[path]\n\
         http-request return status 204\n http-request deny deny_status 429\n http-request deny status 410",
    );
    let texts = node.with(|front, at| {
        let text = |rule: &Rule| match &rule.action {
            Action::Redirect(to) => redirect(to, at),
            Action::Return(with) | Action::Deny(with) => Some(answer(with, at)),
            other => panic!("{other:?}"),
        };
        let shown = |reply: Reply| String::from_utf8([reply.head, b"|".into(), reply.body].concat()).unwrap();
        front.config.rules.http_request.iter().map(|rule| text(rule).map(shown)).collect::<Vec<_>>()
    });
    let expected = [
        Some(
            "HTTP/1.1 307 Temporary Redirect\r\ncontent-length: 0\r\nlocation: /new/a/B%20c\r\ncache-control: no-cache\r\nset-cookie: A=1; path=/;\r\n|",
        ),
        Some(
            "HTTP/1.1 302 Found\r\ncontent-length: 0\r\nlocation: http://o.example/a/B%20c/\r\ncache-control: no-cache\r\n|",
        ),
        Some(
            "HTTP/1.1 302 Found\r\ncontent-length: 0\r\nlocation: https://www.Example.com:8080/a/B%20c?x=1&y=Two&x=3\r\ncache-control: no-cache\r\n|",
        ),
        None,
        Some(
            "HTTP/1.1 418 I'm a teapot\r\nx-a: b/a/B%20c\r\ncontent-length: 13\r\ncontent-type: text/plain\r\n|you 192.0.2.1",
        ),
        Some("HTTP/1.1 204 No Content\r\n|"),
        Some(
            "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 117\r\ncache-control: no-cache\r\ncontent-type: text/html\r\n|<html><body><h1>429 Too Many Requests</h1>\nYou have sent too many requests in a given amount of time.\n</body></html>\n",
        ),
        Some("HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n|"),
    ];
    for (got, expected) in texts.iter().zip(expected) {
        assert_eq!(got.as_deref(), expected);
    }
}

/// Twenty rules as a site might have them: ACLs, a map, tracking in another proxy's table.
const TWENTY: &str = " acl static path_beg /static /img\n acl api path_beg /api /a/\n\
    acl busy sc_http_req_rate(0,ips) gt 1000000\n acl alive srv_is_up(b/s2)\n acl some nbsrv(b) ge 1\n\
    http-request track-sc0 src table ips\n http-request deny if busy\n\
    http-request deny if { src_http_req_rate(ips) gt 1000000 }\n\
    http-request deny if { src,table_http_req_rate(ips) gt 1000000 }\n\
    http-request deny unless { src,in_table(ips) }\n\
    http-request sc-inc-gpc0(0) if api\n http-request deny if { sc_get_gpc0(0,ips) lt 1 }\n\
    http-request deny if { sc_conn_cnt(0) gt 1000000 }\n http-request deny if !alive\n\
    http-request deny if !some\n http-request deny if { queue(b) gt 100 }\n\
    http-request deny if { srv_conn(b/s1) gt 100 }\n http-request deny if { be_conn(b) gt 100 }\n\
    http-request set-var(txn.m) path,map_beg(m,none)\n http-request deny if { var(txn.m) -m str none }\n\
    http-request deny if static !api\n http-request deny if { hdr(host) -m beg evil. }\n\
    http-request deny if { fe_conn(f) gt 1000 }\n http-request deny if { table_cnt(ips) gt 50 }\n\
    http-request deny if { method DELETE }\n\
    backend ips\n stick-table type ip size 100 expire 1m store gpc0,http_req_rate(10s),conn_cnt\n";

/// What twenty rules cost: run alone under `valgrind --tool=callgrind` with ROUNDS of 0 and 10000.
#[test]
#[ignore = "a measurement"]
fn twenty_rules() {
    let node = Node::new(TWENTY);
    let rounds = std::env::var("ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000u32);
    for _ in 0..rounds {
        assert!(node.run().is_empty());
    }
}

#[test]
fn a_link_follows_its_server() {
    let node = Node::new(" http-request set-var(txn.w) srv_iweight(b/s2)");
    let backend = node.state.plan_owned().backend("b").cloned().expect("it is there");
    let read = || {
        node.with(|front, at| {
            let Action::SetVar(_, ValueFrom::Expr(expr)) = &front.config.rules.http_request[0].action else {
                panic!("it is there");
            };
            evaluate(expr, at).and_then(|value| value.to_int())
        })
    };
    assert_eq!(read(), Some(7));
    // The place that the configuration gave it is another's now, or nobody's.
    let gone = |name: &str| backend.set_servers(backend.servers().iter().filter(|s| **s.name() != *name));
    gone("s1");
    assert_eq!(read(), Some(7));
    gone("s2");
    assert_eq!(read(), None);
}

/// Conditions of each kind that is tried ahead, and of others; true and false ones, some by the last byte.
const ATOMS: &[&str] = &[
    "path_beg /a",
    "path_beg /b /c",
    "path_beg -i /A/b",
    "path -m beg /a/B%20cd",
    "path_end c",
    "path_end -i C .php",
    "path /a/B%20c",
    "path /a/B",
    "path,lower -m beg /a/b",
    "path,length -m int gt 5",
    "path -m reg ^/a",
    "path,set-var(txn.k) -m beg /zz",
    "url /a/B%20c?x=1&y=Two&x=3",
    "url /a/B%20c?x=1&y=Two&x=4",
    "url_beg /a/B%20c?x=1&y=Two&x=4",
    "url_end &x=1&y=Two&x=3",
    "url_end B%20c?x=1&y=Two&x=3",
    "url_param(x) 3",
    "url_param(x) 2",
    "hdr(host) -i www.example.com:8080",
    "hdr(host) www.example.com:8080",
    "hdr_sub(x-s) -i B,C",
    "hdr_sub(x-s) er st",
    "hdr_sub(host) -i w.e nope",
    "hdr_sub(nope) x",
    "hdr_cnt(x-s) gt 1",
    "hdr_cnt(nope) gt 0",
    "hdr_val(x-int) 12",
    "hdr_val(x-int) 1:11",
    "hdr_ip(x-ip) 10.0.0.0/8",
    "hdr_ip(x-ip) 11.0.0.0/8 2001:db8::/32",
    "req.cook(k) 3",
    "src 192.0.2.0/24",
    "src 10.0.0.0/8",
    "src 10.0.0.0/8 2001:db8::/32",
    "var(txn.k) -m found",
];

#[test]
fn what_is_ruled_out_ahead_would_not_have_applied() {
    for seed in crate::testing::seeds(150) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut lines = String::new();
        for (n, atom) in ATOMS.iter().enumerate() {
            // Several lines of one name: one of them is enough.
            lines += &format!(" acl a{} {atom}\n", if rng.random_range(0..4) == 0 { n / 2 } else { n });
        }
        let used: Vec<usize> = (0..ATOMS.len()).filter(|n| lines.contains(&format!(" a{n} "))).collect();
        for n in 0..30 {
            let mut term = || {
                let not = if rng.random_range(0..3) == 0 { "!" } else { "" };
                let acl = used[rng.random_range(0..used.len())];
                format!("{not}a{acl} {}", if rng.random_range(0..4) == 0 { "or " } else { "" })
            };
            let terms: String = [term(), term(), term()].concat();
            let when = if rng.random_range(0..5) == 0 { "unless" } else { "if" };
            let terms = terms.trim_end().trim_end_matches("or").trim_end();
            lines += &format!(" http-request set-header x-{n} v {when} {terms}\n");
        }
        let node = Node::new(&lines);
        let one_by_one: Vec<String> = node.with(|front, at| {
            let rules = front.config.rules.http_request.iter();
            let apply = rules.filter(|rule| holds(rule.condition.as_ref(), front, at));
            apply.map(|rule| format!("{:?}", rule.action)).collect()
        });
        let k = node.memory.variable(&variable("k"));
        let other = Node { memory: Memory::default(), state: node.state.clone(), ..Node::new("") };
        assert_eq!(other.run(), one_by_one, "seed {seed}\n{lines}");
        assert_eq!(other.memory.variable(&variable("k")), k, "seed {seed}\n{lines}");
    }
}

#[test]
fn what_was_found_out_is_forgotten_when_the_caller_changes_it() {
    let node = Node::new(
        " acl on hdr(x-on) 1\n acl here path_beg /new\n http-request set-header x-early 1 if on or here\n\
         http-request set-header x-on 1\n http-request set-header x-late 1 if on\n\
         http-request set-path /new\n http-request set-method PUT if here",
    );
    let (mut head, mut text) = (node.head.clone(), Vec::new());
    let mut cursor = Cursor::default();
    node.with(|front, at| {
        loop {
            let request = Some((if text.is_empty() { &*node.buf } else { &*text }, &head));
            let at = Context { request, ..*at };
            let Step::Act(action) = next(&front.config.rules.http_request, &mut cursor, front, &at) else {
                return;
            };
            let mut room = Vec::new();
            let edit = prepare(action, &at, &mut room).expect("an edit");
            let (mut new_head, mut new_text) = (head.clone(), text.clone());
            edit.apply(&mut Rewrite::new(&node.buf, &mut new_head, &mut new_text));
            (head, text) = (new_head, new_text);
        }
    });
    assert_eq!(head.last(&text, b"x-early"), None);
    assert_eq!(head.last(&text, b"x-late"), Some(&b"1"[..]));
    assert_eq!(head.method(&text), b"PUT");
}

#[test]
fn a_command_that_changes_an_acl_counts_for_the_next_request() {
    a_change_counts();
    // As a worker, which holds what it looked into.
    crate::near::keep();
    a_change_counts();
}

fn a_change_counts() {
    use crate::registry::patterns::{KeyChange, KeyEdit, PatternAction, PatternCommand};
    use crate::registry::{Command, Registry, Reply};
    let node = Node::new(" acl private path_beg /private\n http-request deny if private");
    assert_eq!(node.run(), [""; 0]);
    let set = node.state.plan_owned().patterns[0].clone();
    let mut registry = Registry::new();
    for (change, wanted) in [(KeyChange::Add(None), &["403"][..]), (KeyChange::Delete, &[])] {
        let edit = KeyEdit { key: "/a/".into(), file: set.in_file("/a/"), change };
        let action = PatternAction::Edit { version: None, edits: vec![edit] };
        let command = PatternCommand { set: set.identity().into(), file: set.file(), action };
        assert_eq!(registry.apply(&Command::Patterns(command)), Reply::Ok);
        drop(node.state.reconcile(&registry, moment(1)));
        assert_eq!(node.run(), wanted);
    }
}
