//! ACLs, sample expressions and rules: what they decide, change and answer, and the log line.

use crate::exchange::{Case, compare};
use crate::script::Step::{self, *};

const GET: Step = Send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
const PATH: Step = Send(
    "GET /a/b%20c?x=1&y=Two&x=3 HTTP/1.1\r\nHost: www.Example.com:8080\r\nX-S: a, \"b,c\" , D\r\n\
    X-S: last, Er\r\nX-Int: 12abc\r\nX-Ip: 10.1.2.3, 2001:db8::1\r\nCookie: k=1; n=2\r\nCookie: k=3\r\nX-Empty:\r\n\
    X-Re: xaYb\r\nX-Re: aYb\r\nAuthorization: Basic dXNlcjpwYTpzcw==\r\n\r\n",
);
const OK: Step = Serve(
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Case: Yes\r\nServer: s, t\r\nSet-Cookie: A=1; path=/\r\n\r\nok",
);

const CASES: &[Case] = &[
    Case::new("deny", &[&[GET, Message, Open(50)]]).front("http-request deny"),
    Case::new("deny in the backend", &[&[GET, Message, Open(50)]]).back("http-request deny\n server s1 SERVER"),
    Case::new("deny with a status", &[&[GET, Message, Open(50)]]).front("http-request deny deny_status 429"),
    Case::new("deny without a page", &[&[GET, Message, Open(50)]]).front("http-request deny status 410"),
    Case::new("deny with a body", &[&[GET, Message, Open(50)]])
        .front("http-request deny status 418 content-type text/plain string nope hdr x-a b%[path]"),
    Case::new("deny head", &[&[Send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"), Head, Open(50)]]).front("http-request deny"),
    Case::new("deny a post", &[&[Send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"), Message, Open(50)]])
        .front("http-request deny"),
    Case::new("deny 1.0", &[&[Send("GET / HTTP/1.0\r\n\r\n"), Message, Eof]]).front("http-request deny"),
    Case::new("allow ends the rules", &[&[GET, Message, Open(50)]])
        .front("http-request allow if TRUE\n http-request deny").servers(&[&[OK]]),
    Case::new("second request is denied", &[&[GET, Message, GET, Message, Open(50)]])
        .front("http-request deny unless { http_first_req }").servers(&[&[OK]]),
    Case::new("tarpit", &[&[GET, Message, Eof]]).front("timeout tarpit 100ms\n http-request tarpit"),
    Case::new("tarpit with a status", &[&[GET, Message, Eof]])
        .front("timeout tarpit 100ms\n http-request tarpit deny_status 429"),
    Case::new("reject", &[&[GET, Eof]]).front("http-request reject"),
    Case::new("return", &[&[GET, Message, GET, Message, Open(50)]])
        .front("http-request return status 200 content-type text/plain string hello hdr x-a 1"),
    Case::new("return head", &[&[Send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"), Head, Open(50)]])
        .front("http-request return status 200 content-type text/plain string hello"),
    Case::new("return 204", &[&[GET, Message, Open(50)]]).front("http-request return status 204"),
    Case::new("return nothing", &[&[GET, Message, Open(50)]]).front("http-request return status 503"),
    Case::new("redirect location", &[&[PATH, Message, Open(50)]]).front("http-request redirect location /n%[path] code 301"),
    Case::new("redirect prefix", &[&[PATH, Message, Open(50)]]).front("http-request redirect prefix http://o.example"),
    Case::new("redirect prefix, query dropped", &[&[PATH, Message, Open(50)]])
        .front("http-request redirect prefix http://o.example drop-query append-slash set-cookie A=1"),
    Case::new("redirect scheme", &[&[PATH, Message, Open(50)]]).front("redirect scheme https code 307 if !{ dst_port 443 }"),
    Case::new("redirect clears a cookie", &[&[PATH, Message, Open(50)]])
        .front("http-request redirect location / code 303 clear-cookie ID="),
    Case::new("redirect to nowhere", &[&[GET, Message]])
        .front("http-request redirect location %[req.hdr(nope)] ignore-empty").servers(&[&[OK]]),
    Case::new("legacy redirect in spite of allow", &[&[GET, Message, Open(50)]]).front("http-request allow\n redirect location /x"),
    // What is chosen.
    Case::new("use_backend", &[&[PATH, Message]]).front("acl a path_beg -i /A\n use_backend ub1 if a METH_GET\nbackend ub1\n http-request deny deny_status 404"),
    Case::new("use_backend, second rule", &[&[PATH, Message]])
        .front("use_backend ub2 if { path /x }\n use_backend ub3 unless { path /x }\nbackend ub2\n http-request deny deny_status 404\nbackend ub3\n http-request deny deny_status 405"),
    Case::new("use_backend by name", &[&[PATH, Message]])
        .front("use_backend ub4%[path,field(2,/)] if TRUE\nbackend ub4a\n http-request deny deny_status 404"),
    Case::new("use_backend by a name that is none", &[&[PATH, Message]]).front("use_backend %[path] if TRUE").servers(&[&[OK]]),
    Case::new("use-server", &[&[GET, Message]])
        .back("use-server s1 if { path / }\n balance roundrobin\n server s0 127.0.0.1:1\n server s1 SERVER").servers(&[&[OK]]),
    // What is changed.
    Case::new("headers of a request", &[&[PATH, Message]])
        .front("http-request set-header x-new \"%[path,upper] %HM %HP %HV %[src] %[hdr(x-s,1)]\"\n http-request add-header x-s more\n http-request del-header x-int\n http-request del-header x-e -m beg\n http-request set-header cookie k=9")
        .servers(&[&[OK]]),
    Case::new("replaced headers", &[&[PATH, Message]])
        .front("http-request replace-header x-re a(.*)b [\\1]\n http-request replace-value x-s ^(.)$ <\\1>\n http-request replace-header x-ip (.*),(.*) \\2-\\1-%[method]")
        .servers(&[&[OK]]),
    Case::new("set-path", &[&[PATH, Message]]).front("http-request set-path /n%[path]").servers(&[&[OK]]),
    Case::new("set-query", &[&[PATH, Message]]).front("http-request set-query z=%[urlp(y)]").servers(&[&[OK]]),
    Case::new("set-uri", &[&[PATH, Message]]).front("http-request set-uri /u?%[query]").servers(&[&[OK]]),
    Case::new("set-method", &[&[PATH, Message]]).front("http-request set-method PUT").servers(&[&[OK]]),
    Case::new("replace-path", &[&[PATH, Message]]).front("http-request replace-path /a/(.*) /z/\\1/y").servers(&[&[OK]]),
    Case::new("replace-path without a match", &[&[PATH, Message]]).front("http-request replace-path /q/(.*) /z").servers(&[&[OK]]),
    Case::new("replace-uri", &[&[PATH, Message]]).front("http-request replace-uri ^/a(.*) /z\\1").servers(&[&[OK]]),
    Case::new("a change is seen by later rules", &[&[PATH, Message]])
        .front("http-request set-path /new\n http-request set-header x-p %[path]\n http-request deny if !{ path /new } || !{ req.hdr(x-p) /new }")
        .servers(&[&[OK]]),
    Case::new("variables", &[&[PATH, Message]])
        .front("http-request set-var(txn.a) req.hdr_val(x-int),add(5)\n http-request set-var(txn.b) str(x),concat(<,txn.a,>)\n http-request set-header x-v \"%[var(txn.a)] %[var(txn.b)] %[var(txn.none)]\"\n http-response set-header x-w %[var(txn.b)]")
        .servers(&[&[OK]]),
    Case::new("headers of a response", &[&[GET, Message]])
        .front("http-response set-header x-status %[status]-%[res.hdr(server)]\n http-response del-header x-case\n http-after-response set-header x-after 1")
        .back("http-response add-header x-back 1\n server s1 SERVER").servers(&[&[OK]]),
    Case::new("set-status", &[&[GET, Message]])
        .front("http-response set-status 299 reason Foo if { res.hdr(x-case) Yes }").servers(&[&[OK]]),
    Case::new("deny a response", &[&[GET, Message, Open(50)]]).front("http-response deny").servers(&[&[OK]]),
    Case::new("deny a response with a status", &[&[GET, Message, Open(50)]]).front("http-response deny deny_status 403").servers(&[&[OK]]),
    Case::new("return for a response", &[&[GET, Message, Open(50)]])
        .front("http-response return status 200 content-type text/plain string hi").servers(&[&[OK]]),
    Case::new("after-response of an own answer", &[&[GET, Message, Open(50)]])
        .front("http-after-response set-header x-after 1\n http-after-response del-header cache-control\n http-request deny"),
    Case::new("after-response of a 503", &[&[GET, Message]]).front("http-after-response set-header x-after %[status]"),
    Case::new("silent log", &[&[GET, Message]]).front("http-request set-log-level silent").servers(&[&[OK]]),
    // Expressions.
    Case::new("fetches", &[&[PATH, Message]]).front(
        "http-request return content-type text/plain lf-string \"%[req.hdr(x-s)]|%[req.hdr(x-s,1)]|%[req.hdr(x-s,2)]|%[req.hdr(x-s,-2)]|\
         %[req.hdr(x-s,9)]|%[req.fhdr(x-s)]|%[req.fhdr(x-s,1)]|%[req.hdr_cnt(x-s)]|%[req.fhdr_cnt(x-s)]|%[req.hdr_val(x-int)]|\
         %[req.hdr_ip(x-ip)]|%[req.hdr_ip(x-ip,1)]|%[req.cook(k)]|%[req.cook_cnt(k)]|%[req.cook_val(n)]|%[path]|%[pathq]|%[url]|%[query]|%[base]|\
         %[base32]|%[method]|%[req.ver]|%[urlp(x)]|%[url_param(nope)]|%[urlp_val(x)]|%[http_first_req]|%[req.hdr_cnt(x-empty)]|%[req.hdr(x-empty)]|\
         %[req.hdr_cnt(nope)]|%[always_true]|%[bool(0)]|%[int(-3)]|%[str(a b)]|%[bin(0aff)]|%[ipv6(::1)]|%[meth(PUT)]\"",
    ),
    Case::new("converters", &[&[PATH, Message]]).front(
        "http-request return content-type text/plain lf-string \"%[path,lower]|%[path,upper]|%[path,length]|%[path,bytes(1,3)]|%[path,bytes(90)]|\
         %[path,field(2,/)]|%[path,field(-1,/)]|%[path,field(9,/)]|%[path,field(1,/,2)]|%[path,field(2,/,0)]|%[path,word(1,/)]|%[path,word(-1,/)]|%[path,word(2,/,0)]|\
         %[path,regsub(b,X)]|%[path,regsub([a-c],X,g)]|%[path,hex]|%[path,base64]|%[path,url_dec]|%[str(a+b),url_dec]|%[str(?a+b),url_dec]|%[str(a+b),url_dec(1)]|\
         %[int(7),add(3),mul(2),sub(1),div(4),mod(3)]|%[int(6),and(3)]|%[int(6),or(1)]|%[int(6),xor(3)]|%[int(6),cpl]|%[int(6),neg]|%[int(6),not]|%[int(6),bool]|%[int(6),even]|%[int(6),odd]|\
         %[int(9223372036854775807),add(1)]|%[int(255),hex]|%[str(ff),hex2i]|%[bool(1),iif(y,n)]|%[str(12a),add(1)]|%[str(x12),add(1)]|\
         %[str(hello),crc32]|%[str(hello),djb2]|%[str(hello),sdbm]|%[str(hello),sdbm(1)]|%[str(xxaxx),ltrim(x)]|%[str(xxaxx),rtrim(x)]|\
         %[ipv4(10.1.2.3),ipmask(8)]|%[ipv6(2001:db8::1),ipmask(24,32)]|%[int(0),http_date]|%[int(86400),utime(%Y-%m-%d)]|%[str(aGk=),b64dec]|%[str(a b/c?),url_enc]|%[ipv4(1.2.3.4),add(1)]\"",
    ),
    Case::new("matching", &[&[PATH, Message]]).front(
        "http-request add-header r 1 if { path_beg /a }\n http-request add-header r 2 if { path_end c }\n http-request add-header r 3 if { path_dir a }\n\
         http-request add-header r 4 if { path_dir /a/b%20c }\n http-request add-header r 5 if { hdr_dom(host) example.com }\n http-request add-header r 6 if { hdr_dom(host) -i example.com }\n\
         http-request add-header r 7 if { path_len 8 }\n http-request add-header r 8 if { hdr(x-s) D }\n http-request add-header r 9 if { hdr(x-s) d }\n\
         http-request add-header r 10 if { hdr(x-s) -i d }\n http-request add-header r 11 if { hdr(x-empty) -m found }\n http-request add-header r 12 if { hdr_cnt(x-s) gt 4 lt 6 }\n\
         http-request add-header r 13 if { hdr_cnt(x-s) 1:3 7 }\n http-request add-header r 14 if { hdr_ip(x-ip) 10.0.0.0/8 }\n http-request add-header r 15 if { hdr_ip(x-ip) 2001:db8::/32 }\n\
         http-request add-header r 16 if { cook(k) 1 }\n http-request add-header r 17 if { urlp(x) 3 }\n http-request add-header r 18 if { path_reg ^/a/.*c$ }\n\
         http-request add-header r 19 if { path_sub b%20 }\n http-request add-header r 20 if LOCALHOST HTTP_1.1\n http-request add-header r 21 if FALSE or TRUE\n\
         http-request add-header r 22 if !TRUE || !FALSE\n http-request add-header r 23 if { req.hdr(x-int) -m int 12 }\n http-request add-header r 24 if { hdr_val(x-int) 12 }\n\
         http-request add-header r 25 if { hdr(nope) -m found }\n http-request add-header r 26 if { hdr_cnt(nope) -m found }\n http-request add-header r 27 if { hdr_cnt(x-s) -m bool }\n\
         http-request add-header r 28 if { str(0) -m bool }\n http-request add-header r 29 if { path -m len gt 5 }\n http-request add-header r 30 unless { src 127.0.0.0/8 }",
    )
    .servers(&[&[OK]]),
    Case::new("rate limit", &[&[GET, Message, GET, Message, GET, Message, GET, Message]])
        .front("stick-table type ip size 100 expire 1m store http_req_rate(10s),gpc0\n http-request track-sc0 src\n http-request deny deny_status 429 if { sc_http_req_rate(0) gt 2 }")
        .servers(&[&[OK]]),
    Case::new("counters", &[&[GET, Message, GET, Message, GET, Message]])
        .front("stick-table type string len 20 size 100 expire 1m store gpc0,gpc1,gpt0,conn_cnt,conn_cur,http_req_cnt\n http-request track-sc0 path\n http-request sc-inc-gpc0(0)\n \
                http-request sc-inc-gpc1(0) if { sc0_get_gpc0 eq 2 }\n http-request sc-set-gpt0(0) 7\n \
                http-request set-header x-c \"%[sc0_get_gpc0] %[sc_get_gpc1(0)] %[sc0_get_gpt0] %[sc_conn_cnt(0)] %[sc_conn_cur(0)] %[sc_http_req_cnt(0)] %[sc_tracked(0)] %[sc_tracked(1)] %[sc_conn_cnt(1)] %[sc0_inc_gpc0] %[path,table_gpc0] %[str(no),table_gpc0] %[sc_trackers(0)] %[table_cnt] %[sc_http_req_rate(0)]\"")
        .servers(&[&[OK]]),
];

const TCP: &[Case] = &[
    Case::new("connection is rejected", &[&[Eof]]).front("tcp-request connection reject").servers(&[&[Eof]]),
    Case::new("connection is rejected by source", &[&[Eof]])
        .front("acl us src 127.0.0.0/8\n tcp-request connection reject if us").servers(&[&[Eof]]),
    Case::new("connection is accepted", &[&[Send("hello"), Bytes(5), Shut, Eof]])
        .front("tcp-request connection accept if LOCALHOST\n tcp-request connection reject")
        .servers(&[&[Bytes(5), Send("world"), Eof]]),
    Case::new("session is rejected", &[&[Eof]]).front("tcp-request session reject").servers(&[&[Eof]]),
    Case::new("content is rejected", &[&[Eof]]).front("tcp-request content reject").servers(&[&[Eof]]),
    Case::new("content is rejected in the backend", &[&[Eof]]).back("tcp-request content reject\n server s1 SERVER").servers(&[&[Eof]]),
    Case::new("content waits", &[&[Send("hello"), Bytes(5), Shut, Eof]])
        .front("tcp-request inspect-delay 150ms\n tcp-request content accept if WAIT_END\n tcp-request content reject")
        .servers(&[&[Bytes(5), Send("world"), Eof]]),
    Case::new("connections by rate", &[&[Send("hello"), Bytes(5), Shut, Eof], &[Send("hello"), Bytes(5), Shut, Eof], &[Eof]])
        .front("stick-table type ip size 10 expire 1m store conn_rate(10s)\n tcp-request connection track-sc0 src\n tcp-request connection reject if { sc_conn_rate(0) gt 2 }")
        .servers(&[&[Bytes(5), Send("world"), Eof]]),
    Case::new("use_backend", &[&[Send("hello"), Bytes(5), Shut, Eof]])
        .front("use_backend tb1 if { src 127.0.0.0/8 }\nbackend tb1\n tcp-request content reject")
        .servers(&[&[Bytes(5), Send("world"), Eof]]),
    Case::new("use-server", &[&[Send("hello"), Bytes(5), Shut, Eof]])
        .back("use-server s1 if { src 127.0.0.0/8 }\n balance roundrobin\n server s0 127.0.0.1:1\n server s1 SERVER")
        .servers(&[&[Bytes(5), Send("world"), Eof]]),
];

#[test]
fn rules_of_requests_are_haproxys() {
    compare(CASES, " mode http\n option httplog\n timeout http-keep-alive 2s\n");
}

#[test]
fn rules_of_connections_are_haproxys() {
    compare(TCP, " mode tcp\n option tcplog\n");
}
