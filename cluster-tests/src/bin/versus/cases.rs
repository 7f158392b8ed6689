//! The cases: what is asked of the proxies in each, and how they are set up for it.

use crate::config::{Config, HTTP, Nginx, Security, TCP};
use crate::generator::{LARGE, MIDDLE, SMALL, Service};
use crate::proxies::Site;

/// One thing to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) id: &'static str,
    pub(crate) what: &'static str,
    pub(crate) config: Config,
    pub(crate) service: Service,
    pub(crate) load: Load,
    /// Connections take up the keys of earlier ones.
    pub(crate) resumes: bool,
    /// Our CPU time by the best peer's (memory: by HAProxy's) is to be at most this.
    pub(crate) goal: f64,
}

/// How it is loaded, and so what is counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Load {
    /// Requests, the next after each answer.
    Requests(Requests),
    /// Bytes without end.
    Bulk,
    /// Connections that exchange one byte each way.
    Knocks,
    /// Requests that are each due at a time of their own, at this part of HAProxy's maximum; times count
    /// from there.
    Paced(f64, Requests),
    /// Requests on connections of their own, while the proxy reloads every second.
    Reloads,
    /// HTTP/2 requests by a program of its own.
    Streams,
    /// Memory of connections at rest.
    Idle,
    /// Memory of entries of a table.
    Entries,
}

/// Requests of one kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Requests {
    pub(crate) connections: usize,
    /// On each connection; 0: no end.
    pub(crate) exchanges: u32,
    /// Distinct client addresses; 0: one.
    pub(crate) sources: u32,
    pub(crate) body: u64,
    pub(crate) upload: u64,
    /// CPU time is shown by bytes.
    pub(crate) by_bytes: bool,
}

/// The plainest.
pub(crate) const PLAIN: Requests =
    Requests { connections: 64, exchanges: 0, sources: 0, body: SMALL, upload: 0, by_bytes: false };

impl Load {
    /// Units of throughput, and of what CPU time is divided by.
    pub(crate) fn units(&self) -> [&'static str; 2] {
        match self {
            Load::Requests(requests) if requests.by_bytes => ["GB/s", "GB"],
            Load::Requests(_) | Load::Paced(..) | Load::Streams => ["requests/s", "request"],
            Load::Reloads => ["requests/s", ""],
            Load::Bulk => ["GB/s", "GB"],
            Load::Knocks => ["connections/s", "connection"],
            Load::Idle => ["bytes/connection", ""],
            Load::Entries => ["bytes/entry", ""],
        }
    }
}

impl Case {
    /// Whether its rounds take turns with those of the case before it, to be compared.
    pub(crate) fn beside(&self, before: &Case) -> bool {
        self.config.replicated && self.id.starts_with(before.id)
    }

    /// The quantile that is shown beside the median.
    pub(crate) fn tail(&self) -> f64 {
        if matches!(self.load, Load::Paced(..)) { 0.999 } else { 0.99 }
    }

    /// What costs memory and no CPU time.
    pub(crate) fn is_memory(&self) -> bool {
        matches!(self.load, Load::Idle | Load::Entries)
    }
}

/// Entries of the table of case i, and addresses of case h.
pub(crate) const ENTRIES: u64 = 1_000_000;
const SOURCES: u32 = 100_000;
/// Keys of the map of case g2.
const KEYS: u32 = 100_000;

const A: Case = Case {
    id: "a",
    what: "HTTP keep-alive, 100 bytes, 64 connections",
    config: HTTP,
    service: Service::Http,
    load: Load::Requests(PLAIN),
    resumes: false,
    goal: 0.9,
};

const B1: Case = Case {
    id: "b1",
    what: "a client connection per request, server connections pooled",
    config: Config { back: pooled, ..HTTP },
    load: Load::Requests(Requests { exchanges: 1, ..PLAIN }),
    ..A
};

const BULKY: Requests = Requests { connections: 16, by_bytes: true, ..PLAIN };
const C_1M: Case = Case {
    id: "c-1m",
    what: "responses of 1 MiB",
    load: Load::Requests(Requests { body: LARGE, ..BULKY }),
    ..A
};
const D_BULK: Case = Case {
    id: "d-bulk",
    what: "TCP, bytes from server to client, 4 connections",
    config: TCP,
    service: Service::Source,
    load: Load::Bulk,
    resumes: false,
    goal: 1.0,
};
const E: Case = Case {
    id: "e-keep",
    what: "TLS 1.3 keep-alive, 100 bytes, 64 connections",
    config: Config { security: Security::Tls, back: pooled, ..HTTP },
    goal: 1.0,
    ..A
};
const H: Case = Case {
    id: "h",
    what: "track-sc0 src and a rate rule, 100,000 sources, 10 requests each",
    config: Config { front: track, back: pooled, sections: table, nginx: Some(limit_rate), ..HTTP },
    load: Load::Requests(TRACKED),
    ..A
};
const TRACKED: Requests = Requests { exchanges: 10, sources: SOURCES, ..PLAIN };
const I_HTTP: Case = Case {
    id: "i-http",
    what: "memory of an idle HTTP connection, 10,000",
    config: Config { many: true, ..HTTP },
    load: Load::Idle,
    goal: 0.8,
    ..A
};

/// All, in the order in which they are shown.
pub(crate) const CASES: &[Case] = &[
    A,
    B1,
    Case {
        id: "b2",
        what: "a client and a server connection per request",
        config: Config {
            back: |_| "    option http-server-close\n".into(),
            nginx: Some(|_| Nginx { closes: true, ..Nginx::default() }),
            ..HTTP
        },
        service: Service::HttpClose,
        ..B1
    },
    Case {
        id: "c-64k",
        what: "responses of 64 KiB",
        load: Load::Requests(Requests { body: MIDDLE, connections: 32, ..BULKY }),
        ..A
    },
    C_1M,
    Case {
        id: "c-1m-splice",
        what: "responses of 1 MiB, option splice-auto",
        config: Config { front: splice, back: splice, nginx: None, ..HTTP },
        ..C_1M
    },
    Case {
        id: "c-up",
        what: "uploads of 1 MiB",
        load: Load::Requests(Requests { upload: LARGE, ..BULKY }),
        ..A
    },
    D_BULK,
    Case {
        id: "d-bulk-splice",
        what: "TCP, bytes from server to client, option splice-auto",
        config: Config { front: splice, back: splice, nginx: None, ..TCP },
        ..D_BULK
    },
    Case {
        id: "d-connect",
        what: "TCP, connect, a byte each way, close",
        service: Service::Knock,
        load: Load::Knocks,
        ..D_BULK
    },
    E,
    Case {
        id: "e-full",
        what: "TLS 1.3, a full handshake for each request",
        load: Load::Requests(Requests { exchanges: 1, ..PLAIN }),
        ..E
    },
    Case {
        id: "e-resumed",
        what: "TLS 1.3, a resumed handshake for each request",
        load: Load::Requests(Requests { exchanges: 1, ..PLAIN }),
        resumes: true,
        ..E
    },
    Case {
        id: "f",
        what: "HTTP/2 over TLS, 4 connections of 100 streams, to HTTP/1.1 servers",
        config: Config { security: Security::TlsH2, back: pooled, ..HTTP },
        load: Load::Streams,
        ..E
    },
    Case {
        id: "g",
        what: "httplog to a UDP socket, cookie insertion, forwardfor",
        config: Config {
            front: |site| {
                format!("    log {} local0\n    option httplog\n    option forwardfor\n", site.log())
            },
            back: |_| "    cookie SRV insert indirect nocache\n    default-server cookie o1\n".into(),
            nginx: Some(log_and_mark),
            ..HTTP
        },
        ..A
    },
    Case {
        id: "g2",
        what: "twenty http-request rules with ACLs and a map of 100,000 entries",
        config: Config { front: rules, nginx: Some(nginx_rules), ..HTTP },
        ..A
    },
    H,
    Case {
        id: "h-repl",
        what: "the same, replicated to one peer",
        config: Config { replicated: true, nginx: None, ..H.config },
        ..H
    },
    Case {
        id: "i-tcp",
        what: "memory of an idle TCP connection, 10,000",
        config: Config { many: true, ..TCP },
        service: Service::Echo,
        ..I_HTTP
    },
    I_HTTP,
    Case {
        id: "i-tls",
        what: "memory of an idle HTTP connection over TLS, 10,000",
        config: Config { many: true, ..E.config },
        ..I_HTTP
    },
    Case {
        id: "i-entry",
        what: "memory of a stick-table entry, 1,000,000",
        config: Config { front: track_many, sections: big_table, nginx: None, ..HTTP },
        load: Load::Entries,
        ..I_HTTP
    },
    Case {
        id: "j",
        what: "p99.9 at 70 % of HAProxy's maximum, each request due at a time of its own",
        load: Load::Paced(0.7, PLAIN),
        goal: 1.0,
        ..A
    },
    Case {
        id: "j-h",
        what: "the same with the requests of case h",
        load: Load::Paced(0.7, TRACKED),
        goal: 1.0,
        ..H
    },
    Case {
        id: "k",
        what: "reload every second under the load of b1",
        config: Config { master: true, ..B1.config },
        load: Load::Reloads,
        ..B1
    },
];

/// By default a session's first request has a connection of its own.
fn pooled(_: &Site) -> String {
    "    http-reuse always\n".into()
}

fn splice(_: &Site) -> String {
    "    option splice-auto\n".into()
}

fn track(_: &Site) -> String {
    "    http-request track-sc0 src table st\n\
     \x20   http-request deny deny_status 429 if { sc_http_req_rate(0) gt 1000000 }\n"
        .into()
}

fn table(site: &Site) -> String {
    table_of(site, 200_000)
}

fn table_of(site: &Site, size: u64) -> String {
    // Peers only where the case has some: the section is named by the table alone.
    let peers = if site.replicated { " peers bench" } else { "" };
    format!("backend st\n    stick-table type ip size {size} expire 10m store http_req_rate(10s){peers}\n")
}

fn limit_rate(_: &Site) -> Nginx {
    Nginx {
        http: "  limit_req_zone $binary_remote_addr zone=st:32m rate=100000r/s;\n".into(),
        location: "      limit_req zone=st burst=100000 nodelay;\n".into(),
        ..Nginx::default()
    }
}

fn track_many(_: &Site) -> String {
    "    http-request track-sc0 req.hdr(a) table st\n    http-request track-sc1 req.hdr(b) table st\n\
     \x20   http-request track-sc2 req.hdr(c) table st\n\
     \x20   http-request return status 200 content-type text/plain string ok\n"
        .into()
}

fn big_table(site: &Site) -> String {
    table_of(site, ENTRIES * 5 / 4)
}

fn log_and_mark(site: &Site) -> Nginx {
    Nginx {
        // The fields of httplog, as far as nginx has them.
        http: format!(
            "  log_format httplog '$remote_addr:$remote_port [$time_local] web origin/o1 $request_time/\
             $upstream_connect_time/$upstream_header_time/$upstream_response_time $status $bytes_sent \
             $connections_active \"$request\"';\n  access_log syslog:server={},nohostname httplog;\n",
            site.log()
        ),
        location: "      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
                   \x20     add_header Set-Cookie \"SRV=o1; path=/\";\n      add_header Cache-Control private;\n"
            .into(),
        ..Nginx::default()
    }
}

/// What the twenty rules look at; the requests of the case match none of the refusals.
fn rules(site: &Site) -> String {
    let map = hosts(site, "");
    let mut text = format!("    http-request set-header X-Pool %[req.hdr(host),lower,map_str({map},none)]\n");
    for n in 0..5 {
        text += &format!(
            "    acl path{n} path_beg /private{n}/ /internal{n}/\n    acl agent{n} hdr_sub(user-agent) -i badbot{n} scraper{n}\n\
             \x20   acl net{n} src 10.{n}.0.0/16 192.168.{n}.0/24\n    acl end{n} path_end .php{n} .cgi{n}\n"
        );
    }
    for n in 0..5 {
        text += &format!(
            "    http-request deny if path{n}\n    http-request deny deny_status 429 if agent{n} !net{n}\n\
             \x20   http-request set-header X-Inside {n} if net{n}\n"
        );
    }
    text += "    http-request deny if end0 or end1 or end2\n    http-request deny if { req.hdr_cnt(x-evil) gt 0 }\n\
             \x20   http-request del-header X-Debug\n    http-request set-var(txn.path) path,lower\n";
    text
}

/// Writes the map; what can't be written shows when the proxy can't read it.
fn hosts(site: &Site, end: &str) -> String {
    let file = site.file("hosts.map");
    let lines: String = (0..KEYS).map(|n| format!("host{n}.example.com pool{}{end}\n", n % 100)).collect();
    let _ = std::fs::write(&file, lines);
    file
}

fn nginx_rules(site: &Site) -> Nginx {
    let map = hosts(site, ";");
    let words = |what: &str| (0..5).map(|n| format!("    ~*{what}{n} 1;\n")).collect::<String>();
    let nets = (0..5).map(|n| format!("    10.{n}.0.0/16 {n};\n    192.168.{n}.0/24 {n};\n"));
    Nginx {
        http: format!(
            "  map_hash_max_size 400000;\n  map_hash_bucket_size 128;\n  map $host $pool {{\n    default none;\n\
             include {map};\n  }}\n  map $uri $private {{\n    default 0;\n    ~^/(private|internal)[0-4]/ 1;\n\
             ~[.](php|cgi)[0-2]$ 1;\n  }}\n  map $http_user_agent $robot {{\n    default 0;\n{}{}  }}\n\
             geo $inside {{\n    default \"\";\n{}  }}\n",
            words("badbot"),
            words("scraper"),
            nets.collect::<String>()
        ),
        server: "    if ($private) { return 403; }\n    if ($robot) { return 429; }\n    if ($http_x_evil) { return 403; }\n".into(),
        location: "      proxy_set_header X-Pool $pool;\n      proxy_set_header X-Inside $inside;\n\
                   \x20     proxy_set_header X-Debug \"\";\n      proxy_set_header Host $host;\n"
            .into(),
        ..Nginx::default()
    }
}
