//! The Runtime API: the same commands in the same order, and what is answered.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::normal;
use crate::side::{BOTH, Side, haproxy};

/// A purposeful difference: what HAProxy shows, what Phalanx shows, and why.
type Difference = (&'static str, &'static str, &'static str);

/// One connection to the Runtime API.
struct Call {
    /// Which socket: `sock` for admin, `user`, `operator`.
    socket: &'static str,
    /// Everything that is sent.
    sent: &'static str,
    /// How the answers are compared.
    view: View,
    differs: &'static [Difference],
    /// What Phalanx answers in all, and why.
    instead: Option<(&'static str, &'static str)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum View {
    /// Byte for byte.
    Whole,
    /// Only the first line.
    First,
    /// Names before the first colon; Phalanx may have more.
    Names,
    /// The columns of HAProxy's CSV, with the values that do not depend on time.
    Csv,
}

const fn call(sent: &'static str) -> Call {
    Call { socket: "sock", sent, view: View::Whole, differs: &[], instead: None }
}

impl Call {
    const fn at(self, socket: &'static str) -> Call {
        Call { socket, ..self }
    }

    const fn view(self, view: View) -> Call {
        Call { view, ..self }
    }

    const fn differs(self, differs: &'static [Difference]) -> Call {
        Call { differs, ..self }
    }

    const fn instead(self, all: &'static str, why: &'static str) -> Call {
        Call { instead: Some((all, why)), ..self }
    }
}

const HTTPCLIENT_ACLS: &str = "\
8 () acl 'var' file 'httpclient' line 0. curr_ver=0 next_ver=0 entry_cnt=1
9 () acl 'var' file 'httpclient' line 0. curr_ver=0 next_ver=0 entry_cnt=1
";

const CONFIG: &str = "\
global
    stats socket DIR/sock level admin
    stats socket DIR/user level user
    stats socket DIR/operator level operator
    maxconn 1000
defaults
    mode http
    timeout connect 1s
    timeout client 10s
    timeout server 10s
resolvers dns
    nameserver ns 127.0.0.1:1
    hold timeout 1h
    hold refused 1h
    hold other 1h
    hold nx 1h
frontend gone
    bind 127.0.0.1:20001
frontend fe
    bind 127.0.0.1:20000
    maxconn 100
    acl mapped path,map_beg(DIR/m.map) -m found
    acl net src -f DIR/l.acl
    acl inl path_beg /x /y
    acl named hdr(host) -i one
    acl some path,lower -m found
    acl both path -u 50 -f DIR/k.acl /z
    http-request deny if inl named some both
    default_backend be
backend be
    balance roundrobin
    option redispatch
    server s1 127.0.0.1:30001 weight 10 cookie c1
    server s2 127.0.0.1:30002 disabled
    server s3 127.0.0.1:30003 backup maxconn 5
    server s4 127.0.0.1:30004 check inter 1h
backend named
    balance roundrobin
    server s1 localhost:30006 resolvers dns init-addr libc
    server s3 127.0.0.1:30001
backend static
    balance static-rr
    server s1 127.0.0.1:30001 weight 10
backend empty
    balance roundrobin
backend st
    balance roundrobin
    stick-table type ip size 100 expire 1h store gpc0,conn_cnt,conn_rate(10s)
backend sti
    balance roundrobin
    stick-table type integer size 100 store gpc0
backend sts
    balance roundrobin
    stick-table type string len 8 size 100 store server_id
";

/// Why a text is another.
const NEWER: &str = "as HAProxy says since";
const SHARD: &[Difference] = &[("exp=N ", "exp=N shard=0 ", NEWER)];
/// Why what is no number is refused.
const NUMBERS: &str = "HAProxy takes it for 0";

const CALLS: &[Call] = &[
    // Framing.
    call("\n").view(View::First),
    call("nonsense\n").view(View::First).differs(&[("Unknown command, but maybe one of the following ones is a better match:", "Unknown command. Please enter one of the following commands only:", "nothing that begins like it is a better match")]),
    call("get weight be/s1;get weight be/s2\n"),
    call("get weight be/s1\\;x\n"),
    call("   get    weight   be/s1  \n"),
    call("get weight be/s1\r\n"),
    call("prompt\nget weight be/s1;get weight be/s2\nquit\n"),
    call("prompt\nprompt\nget weight be/s1\nquit\n"),
    call("quit\nget weight be/s1\n"),
    call("get\n").view(View::First).differs(&[("Unknown command, but", "Unknown command: 'get', but", NEWER)]),
    call("get weight\n"),
    call("get weight be\n"),
    call("get weight be/\n"),
    call("get weight be/nope\n"),
    call("get weight nope/s1\n"),
    call("get weight be/s1\n"),
    call("get weight be/s2\n"),
    call("get weight be/s3\n"),
    // Maps and ACLs.
    call("show acl\n").differs(&[(HTTPCLIENT_ACLS, "", "its own ACLs")]),
    call("show map\n"),
    call("show map DIR/m.map\n"),
    call("show acl DIR/l.acl\n"),
    call("show map nope\n"),
    call("get map DIR/m.map /abcd\n"),
    call("get map DIR/m.map x\n"),
    call("get acl DIR/l.acl 10.1.2.3\n"),
    call("get map\n"),
    call("add map DIR/m.map\n"),
    call("add map DIR/m.map k\n"),
    call("add map DIR/m.map knew v new words\n"),
    call("add map nope a b\n"),
    call("add map DIR/m.map knew second\n"),
    call("set map DIR/m.map knew xx\n"),
    call("set map DIR/m.map nokey v\n"),
    call("set map DIR/m.map knew\n"),
    call("set map DIR/m.map #0x1 v\n"),
    call("show map DIR/m.map\n"),
    call("del map DIR/m.map knew\n"),
    call("del map DIR/m.map knew\n"),
    call("del map DIR/m.map\n"),
    call("add acl DIR/l.acl foo\n"),
    call("add acl DIR/l.acl 9.9.9.9\n"),
    call("add acl DIR/l.acl\n"),
    call("add acl DIR/m.map x\n"),
    call("add map DIR/m.map <<\n/p1 pay load\n/p2 q\n\n"),
    call("add map DIR/m.map <<\n/p3\n\n"),
    call("prepare map DIR/m.map\n"),
    call("prepare map nope\n"),
    call("add map @1 DIR/m.map /n new\n"),
    call("show map @1 DIR/m.map\n"),
    call("show map @7 DIR/m.map\n"),
    call("commit map DIR/m.map\n"),
    call("commit map @9 DIR/m.map\n"),
    call("show map DIR/m.map\n"),
    call("commit map @1 DIR/m.map\n"),
    call("show map\n"),
    call("show map DIR/m.map\n"),
    // Patterns that stand in an ACL, or could.
    call("show acl #3\n"),
    call("show acl #4\n"),
    call("add acl #4 /new\n"),
    call("add acl #4 /new\n"),
    call("show acl #4\n"),
    call("get acl #4 /newer\n"),
    call("get acl #4 /other\n"),
    call("del acl #4 /x\n"),
    call("del acl #4 /x\n"),
    call("del acl #4 #zz\n"),
    call("del acl #4 #\n"),
    call("del acl #4 #0x1\n"),
    call("del acl #4 #0xzz\n"),
    call("show acl #4\n"),
    call("prepare acl #4\n"),
    call("add acl @1 #4 /v1\n"),
    call("show acl @1 #4\n"),
    call("commit acl @1 #4\n"),
    call("show acl #4\n"),
    call("clear acl #4\n"),
    call("show acl #4\n"),
    call("add acl #3 10.9.0.0/16\n"),
    call("add acl #3 foo\n"),
    call("get acl #3 10.9.1.1\n"),
    call("add acl #6 any\n"),
    call("show acl #6\n"),
    call("add acl # x\n"),
    call("add acl #99 x\n"),
    call("add acl #zz x\n"),
    call("show acl #50\n"),
    call("show acl DIR/m.map\n"),
    call("clear acl DIR/m.map\n"),
    call("prepare acl DIR/m.map\n"),
    call("get acl DIR/m.map key2\n"),
    call("set map DIR/m.map #zz v\n"),
    call("set map DIR/m.map # v\n"),
    call("set map DIR/m.map #0xffffffffffffffffff v\n"),
    call("clear map\n"),
    call("clear acl DIR/l.acl\n"),
    call("show acl DIR/l.acl\n"),
    // Weights.
    call("set weight be/s1\n"),
    call("set weight be/s1 x\n"),
    call("set weight be/s1 -1\n"),
    call("set weight be/s1 257\n"),
    call("set weight be/s1 256\nget weight be/s1\n"),
    call("set weight be/s1 50%\n"),
    call("get weight be/s1\n"),
    call("set weight be/s1 101%\n"),
    call("get weight be/s1\n"),
    call("set weight be/s1 5000%\n"),
    call("set weight be/s1 0\n"),
    call("get weight be/s1\n"),
    call("set weight be/s1 100%\n"),
    call("set weight nope/s1 1\n"),
    call("set weight be/nope 1\n"),
    call("set weight static/s1 5\n"),
    call("set weight static/s1 0\n"),
    call("set weight static/s1 100%\n"),
    call("set server be/s1 weight 7\n"),
    call("set server be/s1 weight\n"),
    call("set server be/s1 weight 900\n"),
    call("get weight be/s1\n"),
    call("set server be/s1 weight 10\n"),
    // States.
    call("set server\n"),
    call("set server be/s1\n"),
    call("set server be/s1 foo\n"),
    call("set server be/nope state ready\n"),
    call("set server nope/s1 state ready\n"),
    call("set server be/s1 state\n"),
    call("set server be/s1 state foo\n"),
    call("set server be/s1 state drain\n"),
    call("set server be/s1 state maint\n"),
    call("set server be/s1 state ready\n"),
    call("set server be/s1 health\n"),
    call("set server be/s1 health foo\n"),
    call("set server be/s1 health up\n"),
    call("set server be/s4 health down\n"),
    call("set server be/s4 health stopping\n"),
    call("set server be/s4 health up\n"),
    call("set server be/s1 agent up\n"),
    call("set server be/s1 agent-send x\n"),
    call("set server be/s1 agent-port 4\n"),
    call("set server be/s1 agent-addr 127.0.0.1\n"),
    call("enable agent be/s1\n"),
    call("enable agent be/nope\n"),
    call("disable agent be/s1\n"),
    call("set server be/s1 addr\n"),
    call("set server be/s1 addr foo.invalid.\n"),
    call("set server be/s1 addr 127.0.0.1\n"),
    call("set server be/s1 addr 127.0.0.1 port 30009\n"),
    call("set server be/s1 addr 127.0.0.1 port 30009\n"),
    call("set server be/s1 addr 127.0.0.1 port x\n").instead("provided port is not valid ('x') by 'stats socket command'\n", "a port is a port"),
    call("set server be/s1 addr 127.0.0.1 port 70000\n").instead("provided port is not valid ('70000') by 'stats socket command'\n", "HAProxy wraps it around"),
    call("set server be/s1 addr 127.0.0.1 port 30001\n").differs(&[("4464", "30009", "HAProxy took 70000 for 4464")]),
    call("set server be/s1 fqdn foo\n"),
    call("set server be/s1 ssl on\n"),
    call("disable server be/s1\n"),
    call("disable server be/s1\n"),
    call("enable server be/s1\n"),
    call("disable server\n"),
    call("disable server be\n"),
    call("disable server be/nope\n"),
    call("disable server nope/s1\n"),
    call("enable server be/nope\n"),
    call("disable health be/s1\n"),
    call("enable health be/s1\n"),
    call("disable health be/s4\n"),
    call("enable health be/s4\n"),
    call("disable\n").view(View::First).differs(&[("Unknown command, but", "Unknown command: 'disable', but", NEWER)]),
    call("shutdown sessions server be/s1\n"),
    call("shutdown sessions server be/nope\n"),
    call("shutdown session nope\n"),
    // Frontends.
    call("disable frontend nope\n"),
    call("disable frontend\n"),
    call("disable frontend fe\n"),
    call("disable frontend fe\n"),
    call("enable frontend fe\n"),
    call("enable frontend fe\n"),
    call("enable frontend be\n"),
    call("set maxconn frontend fe\n"),
    call("set maxconn frontend fe x\n").instead("Integer value expected.\n", NUMBERS),
    call("set maxconn frontend nope 5\n"),
    call("set maxconn frontend fe 50\n"),
    call("set maxconn server be/s3 7\n"),
    call("set maxconn server be/s3 x\n"),
    call("set maxconn server be/s3\n"),
    call("set maxconn server be/nope 1\n"),
    call("set maxconn global\n"),
    call("set maxconn global x\n").instead("Expects an integer value.\n", NUMBERS),
    call("set maxconn global 900\n"),
    call("set timeout cli\n"),
    call("set timeout cli x\n"),
    call("set timeout cli 20s\n"),
    call("set timeout foo 20s\n").view(View::First),
    call("set severity-output number\n"),
    call("set severity-output foo\n"),
    call("set severity-output number;get weight be/nope\n"),
    call("set severity-output string;get weight be/nope\n"),
    // Servers that come and go.
    call("add server\n"),
    call("add server be\n"),
    call("add server be/n1\n"),
    call("add server nope/n1 127.0.0.1:30010\n"),
    call("add server be/s1 127.0.0.1:30010\n"),
    call("add server be/n1 127.0.0.1:30010 foo\n").differs(&[("; did you mean 'tfo' maybe ?", "", "'tfo' is no keyword of ours")]),
    call("add server be/n1 127.0.0.1:30010 weight 300\n").instead("'weight' must be between 0 and 256, but got '300'\n", "the same text for every number"),
    call("add server be/n1 127.0.0.1:30010 check maxconn 5\n"),
    call("add server be/n1 127.0.0.1:30010\n"),
    call("add server static/n1 127.0.0.1:30010\n"),
    call("get weight be/n1\n"),
    call("enable health be/n1\n"),
    call("enable server be/n1\n"),
    call("del server be/n1\n"),
    call("disable server be/n1\n"),
    call("del server be/n1\n"),
    call("del server be/n1\n"),
    call("del server be/s1\n"),
    call("del server nope/n1\n"),
    call("del server\n"),
    call("del server be\n"),
    // Stick tables.
    call("show table\n").differs(&[("# table: sts, type: string, size:100, used:0\n# table: sti, type: integer, size:100, used:0\n# table: st, type: ip, size:100, used:0", "# table: st, type: ip, size:100, used:0\n# table: sti, type: integer, size:100, used:0\n# table: sts, type: string, size:100, used:0", "in the order of the configuration")]),
    call("show table nope\n"),
    call("show table be\n"),
    call("show table st\n"),
    call("set table st key 10.0.0.1 data.gpc0 5\n"),
    call("set table st key 10.0.0.1\n"),
    call("set table st\n").instead("Required arguments: <table> { key <key> | ptr <ptr> } [data.<store_data_type> <value>]*\n", "HAProxy says nothing"),
    call("set table st key\n"),
    call("set table nope key 10.0.0.1 data.gpc0 5\n"),
    call("set table st key x data.gpc0 5\n").instead("Invalid key value, the table's keys are of type 'ip'.\n", "HAProxy takes it for 0.0.0.0"),
    call("clear table st key 0.0.0.0\n").view(View::First),
    call("set table st key 10.0.0.1 data.nope 5\n"),
    call("set table st key 10.0.0.1 data.http_req_cnt 5\n"),
    call("set table st key 10.0.0.1 data.gpc0 x\n"),
    call("set table st key 10.0.0.1 data.gpc0\n"),
    call("set table st key 10.0.0.2 data.conn_rate 5\n"),
    call("set table st key 10.0.0.1 data.gpc0 5\n"),
    call("show table st key 10.0.0.1\n").differs(SHARD),
    call("show table st key 10.0.0.9\n"),
    call("show table st data.gpc0 gt 4\n").differs(SHARD),
    call("show table st data.gpc0 gt 5\n"),
    call("show table st data.gpc0 foo 5\n"),
    call("show table st data.nope gt 5\n"),
    call("show table st data.gpc0 gt x\n"),
    call("show table st foo\n"),
    call("clear table st key 10.0.0.9\n"),
    call("clear table st key 10.0.0.1\n"),
    call("clear table st\n"),
    call("clear table nope\n"),
    call("clear table\n"),
    call("set table sti key 17 data.gpc0 1\n"),
    call("show table sti\n").differs(&[("exp=0 ", "exp=0 shard=0 ", NEWER)]),
    call("set table sti key x data.gpc0 1\n").instead("Invalid key value, the table's keys are of type 'integer'.\n", "it says what would be accepted"),
    call("set table sts key abcdefghijk data.server_id 1\n"),
    call("show table sts\n").differs(&[("exp=0 ", "exp=0 shard=0 ", NEWER)]),
    // Levels.
    call("disable server be/s1\n").at("user"),
    call("disable server be/s1\n").at("operator"),
    call("add server be/x 127.0.0.1:1\n").at("operator"),
    call("set weight be/s1 10\n").at("user"),
    call("clear counters\n").at("user"),
    call("clear counters\n").at("operator"),
    call("clear counters all\n").at("operator"),
    call("clear table st\n").at("user").instead("Permission denied\n", "it is the administrator's"),
    call("show errors\n").at("user"),
    call("show sess\n").at("user"),
    call("show cli level\n").at("user"),
    call("show cli level\n").at("operator"),
    call("show cli level\n"),
    call("operator;show cli level;user;show cli level\n"),
    call("set maxconn frontend fe 90\n").at("operator"),
    call("get weight be/s1\n").at("user"),
    call("set timeout cli 20s\n").at("user"),
    // Reports.
    call("clear counters\n"),
    call("clear counters all\n"),
    call("clear counters foo\n").instead(
        "'clear counters' expects nothing, 'all' or 'server', not 'foo'.\n",
        "HAProxy takes it for 'clear counters'",
    ),
    call("clear\n").view(View::First).differs(&[("Unknown command, but", "Unknown command: 'clear', but", NEWER)]),
    call("show info\n").view(View::Names),
    call("show stat\n").view(View::Csv),
    call("show stat -1 2 -1\n").view(View::Csv),
    call("show stat be 4 -1\n").view(View::Csv),
    call("show stat nope 4 -1\n"),
    call("show servers state\n"),
    call("show servers state be\n"),
    call("show servers state nope\n"),
    call("show backend\n"),
    call("show errors\n").view(View::First),
    call("show errors nope\n"),
    call("show errors fe junk\n"),
    call("show errors request\n"),
    call("show errors response\n"),
    call("show errors be request more\n"),
    call("show errors -1 junk\n"),
    call("show errors 99 response\n"),
    call("show errors 0\n"),
    call("show peers\n"),
    call("show peers nope\n"),
    call("show cli sockets\n"),
    call("show env FOO_NOT_THERE\n"),
    call("show nonsense\n")
        .view(View::First)
        .differs(&[("Unknown command, but", "Unknown command: 'show nonsense', but", NEWER)]),
    // Agents, and where checks go.
    call("set server be/s1 agent-port\n"),
    call("disable agent\n"),
    call("disable agent be\n"),
    call("disable agent nope/s1\n"),
    call("set server be/s4 check-addr\n"),
    call("set server be/s4 check-addr x.invalid.\n"),
    call("set server be/s4 check-addr 127.0.0.1\n"),
    call("set server be/s4 check-addr 127.0.0.1 port 5\n"),
    call("set server be/s4 check-addr 127.0.0.1 port x\n"),
    call("set server be/s4 check-addr 127.0.0.1 foo\n").instead("'set server <b>/<s> check-addr' expects 'port', not 'foo'.\n", "HAProxy ignores it"),
    call("set server be/s4 check-port\n"),
    call("set server be/s4 check-port x\n"),
    call("set server be/s4 check-port -1\n"),
    call("set server be/s4 check-port 70000\n"),
    call("set server be/s4 check-port 0\n").instead("provided port is invalid\n", "nothing listens there"),
    call("set server be/s4 check-port 30004\n"),
    call("set server be/s1 check-port 30004\n"),
    call("set server be/s1 check-addr 127.0.0.1\n"),
    call("show servers state be\n"),
    // Host names.
    call("set server named/s1 fqdn\n"),
    call("set server named/s3 fqdn\n"),
    call("set server named/s3 fqdn a.example\n"),
    call("set server named/s1 fqdn a.example\n"),
    call("set server named/s1 fqdn a.example\n"),
    call("set server named/s1 fqdn B_c.example\n"),
    call("set server named/s1 fqdn a..b\n"),
    call("set server named/s1 fqdn a!b\n"),
    call("set server named/s1 fqdn d.example junk\n"),
    call("set server named/s1 fqdn localhost\n"),
    call("set server named/s1 fqdn e.example\n").at("operator"),
    // More of maps, and of frontends that go.
    call("set map DIR/m.map #0xzz v\n"),
    call("del map DIR/m.map #0xzz\n"),
    call("del acl DIR/l.acl #0x1\n"),
    call("del acl nope x\n").instead("Unknown ACL identifier. Please use #<id> or <file>.\n", "HAProxy says map"),
    call("commit map @1\n"),
    call("commit acl @1\n"),
    call("commit map @1 nope\n"),
    call("clear map nope\n"),
    call("prepare acl nope\n"),
    call("get acl nope x\n"),
    call("get map nope x\n"),
    call("show map nope\n"),
    call("enable health nope/s1\n"),
    call("set weight be\n"),
    call("shutdown session 0x1\n"),
    call("shutdown session\n"),
    call("shutdown sessions server\n"),
    call("shutdown sessions server be\n"),
    call("shutdown frontend\n"),
    call("shutdown frontend nope\n"),
    call("shutdown frontend be\n"),
    call("shutdown frontend gone\n").at("operator"),
    call("shutdown frontend gone\n"),
    call("shutdown frontend gone\n"),
    call("disable frontend gone\n"),
    call("set maxconn frontend gone 4\n"),
    call("enable frontend gone\n").instead("", "a shutdown outlives reloads, so there must be a way back"),
    call("show resolvers nope\n"),
    call("show env HOME\n").at("operator"),
    call("show sess 0x1\n"),
    call("show startup-logs\n").view(View::First),
];

/// Commands of HAProxy that are none here.
const NOT_BUILT: &[&str] = &[
    "abort ssl cert x",
    "add ssl crt-list x y",
    "commit ssl cert x",
    "debug dev fd",
    "del ssl cert x",
    "disable dynamic-cookie backend be",
    "enable dynamic-cookie backend be",
    "experimental-mode on",
    "expert-mode on",
    "get var proc.x",
    "httpclient GET http://127.0.0.1/",
    "new ssl cert x",
    "set dynamic-cookie-key backend be k",
    "set profiling tasks on",
    "set rate-limit sessions global 5",
    "set ssl cert x y",
    "set var proc.x str(a)",
    "show cache",
    "show events",
    "show fd",
    "show pools",
    "show profiling",
    "show schema json",
    "show ssl cert",
    "show tasks",
    "show threads",
    "show tls-keys",
    "show trace",
    "trace 0",
];

/// What is not built says so, by name, and is no typing error: nothing else is proposed in its place.
fn refused(side: &Side) -> Vec<String> {
    let is_said = |command: &&&str| {
        let answer = asked(side, "sock", &format!("{command}\n"));
        let named = answer.strip_prefix('\'').and_then(|a| a.split_once("' is not built: "));
        !named.is_some_and(|(name, why)| command.starts_with(name) && why.trim_end().ends_with('.'))
    };
    NOT_BUILT.iter().filter(is_said).map(|c| format!("{c}: not said to be not built")).collect()
}

#[test]
fn runtime_api_answers_as_haproxy_does() {
    if haproxy().is_none() {
        return;
    }
    let sides = BOTH.map(|kind| {
        let mut side = Side::new(kind);
        side.file("m.map", "key1 value one\nkey2 v2\nkey1 again\nkey3\n/a v1\n/abc v2\n");
        side.file("l.acl", "10.1.0.0/16\n# none\n192.0.2.1\n");
        side.file("k.acl", "/q\n");
        let checked = TcpListener::bind(side.at(30_004)).expect("an address of its own");
        side.run(CONFIG);
        (side, checked)
    });
    let only = std::env::var("CASE").ok();
    let mut failed = Vec::new();
    for (at, call) in CALLS.iter().enumerate() {
        let [expected, got] = [&sides[0].0, &sides[1].0].map(|side| seen(side, call));
        let (mut wanted, mut got) = (expected, got);
        match call.view {
            View::Whole => {}
            View::First => {
                for text in [&mut wanted, &mut got] {
                    *text = text.lines().next().unwrap_or_default().to_owned();
                }
            }
            View::Names => {
                wanted = wanted.lines().filter(|l| !is_absent(l)).map(|l| l.to_owned() + "\n").collect();
                got = names_in(&got, &wanted);
            }
            View::Csv => got = columns_of(&got, &wanted),
        }
        for (theirs, ours, why) in call.differs {
            if !wanted.contains(theirs) {
                failed.push(format!("{at} {:?}: no longer so in HAProxy ({why}): {theirs}", call.sent));
            }
            wanted = wanted.replace(theirs, ours);
        }
        if let Some((all, _)) = call.instead {
            wanted = all.into();
        }
        let shown = format!("== {at} {} {:?}\n{}", call.socket, call.sent, normal::difference(&wanted, &got));
        if only.as_deref().is_some_and(|o| call.sent.contains(o)) {
            println!("{shown}");
        }
        if wanted != got {
            failed.push(shown);
        }
    }
    failed.extend(refused(&sides[1].0));
    assert!(failed.is_empty(), "{} of {} differ:\n{}", failed.len(), CALLS.len(), failed.join("\n"));
}

/// All that is answered.
fn asked(side: &Side, socket: &str, sent: &str) -> String {
    let path = side.socket().replace("/sock", &format!("/{socket}"));
    let mut stream = UnixStream::connect(path).expect("the Runtime API listens");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout can be set");
    stream.write_all(side.moved(sent).as_bytes()).expect("commands can be sent");
    let mut answer = Vec::new();
    let end = match stream.read_to_end(&mut answer) {
        Ok(_) => "",
        Err(_) => "<NOT CLOSED>",
    };
    side.unmoved(&String::from_utf8_lossy(&answer)) + end
}

/// All that is answered, with what depends on the moment taken out.
fn seen(side: &Side, call: &Call) -> String {
    let text = asked(side, call.socket, call.sent);
    match call.view {
        View::Csv => csv(&text),
        View::Names => text.lines().map(|l| l.split(':').next().unwrap_or(l).to_owned() + "\n").collect(),
        // Some of HAProxy's refusals lack the empty line that ends an answer (management guide, 9.3).
        _ => text.trim_end_matches('\n').lines().map(|l| line(l) + "\n").collect(),
    }
}

/// Pointers, expiries and ages.
fn line(line: &str) -> String {
    if line.starts_with("0x") {
        let words = line.split(' ').map(|w| match w.split_once('=') {
            Some(("exp", n)) if n != "0" => "exp=N".into(),
            _ if w.starts_with("0x") => "0xPTR:".into(),
            _ => w.to_owned(),
        });
        return words.collect::<Vec<_>>().join(" ");
    }
    if let (Some((head, _)), Some((_, tail))) = (line.split_once(" on ["), line.split_once("] : ")) {
        return format!("{head} on [DATE] : {tail}");
    }
    let fields: Vec<&str> = line.split(' ').collect();
    if fields.len() >= 25 && fields[0].parse::<u32>().is_ok() {
        // srv_time_since_last_change of `show servers state`.
        let mut fields: Vec<String> = fields.iter().map(|f| (*f).to_owned()).collect();
        fields[9] = "AGE".into();
        if fields[13] == "0" {
            // Not checked: what maintenance left.
            fields[12] = "HEALTH".into();
        }
        return fields.join(" ");
    }
    line.to_owned()
}

/// What counts things that Phalanx does not have: TLS, HTTP/2, compression, pipes, its own scheduler.
fn is_absent(name: &str) -> bool {
    [
        "Ssl",
        "MaxSsl",
        "CurrSsl",
        "CumSsl",
        "Compress",
        "Pipes",
        "Maxpipes",
        "Tasks",
        "Run_queue",
        "ssl_",
        "h1_",
        "h2_",
    ]
    .iter()
    .any(|p| name.starts_with(p))
        || ["TotalSplicdedBytesOut", "BytesOutRate", "DebugCommandsIssued"].contains(&name)
}

/// The lines of `ours` that have a namesake in `theirs`.
fn names_in(ours: &str, theirs: &str) -> String {
    let known: Vec<&str> = theirs.lines().collect();
    ours.lines().filter(|l| known.contains(l)).map(|l| l.to_owned() + "\n").collect()
}

/// One `object column=value` a line.
fn csv(text: &str) -> String {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap_or_default().trim_start_matches("# ").split(',').collect();
    let mut out = String::new();
    for line in lines.filter(|l| !l.is_empty()) {
        let values: Vec<&str> = line.split(',').collect();
        for (name, value) in names.iter().zip(&values).skip(2).filter(|(n, _)| !is_absent(n)) {
            if *name == "intercepted" && values[1] == "BACKEND" {
                // Management guide, 9.1: for frontends and backends.
                continue;
            }
            let timed = [
                "need_conn_est",
                "chkdown",
                "check_health",
                "lastchg",
                "downtime",
                "pid",
                "check_duration",
                "rate_max",
                "last_chk",
                "check_desc",
                "last_agt",
            ];
            let value = if timed.contains(name) && !value.is_empty() { "N" } else { value };
            out += &format!("{}/{} {name}={value}\n", values[0], values[1]);
        }
    }
    out
}

/// The lines of `ours` whose object and column `theirs` has, too.
fn columns_of(ours: &str, theirs: &str) -> String {
    let key = |l: &str| l.split('=').next().unwrap_or(l).to_owned();
    let known: std::collections::HashSet<String> = theirs.lines().map(key).collect();
    ours.lines().filter(|l| known.contains(&key(l))).map(|l| l.to_owned() + "\n").collect()
}
