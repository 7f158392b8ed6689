//! The configurations: one text for Phalanx and HAProxy, and what means the same to nginx.
//!
//! A case says what of its own it needs; what all have in common is here. Where the two that share a
//! language differ by default, the text says so.

use std::fmt::Write as _;

use cluster_tests::Authority;

use crate::machine;
use crate::proxies::{Kind, Site};

/// What a case adds to the common text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    /// `tcp` in place of `http`.
    pub(crate) tcp: bool,
    /// Lines of the frontend, backend, and sections of their own.
    pub(crate) front: fn(&Site) -> String,
    pub(crate) back: fn(&Site) -> String,
    pub(crate) sections: fn(&Site) -> String,
    /// Lines of nginx's `http`, `server` and `location`; `None`: it has nothing of the kind.
    pub(crate) nginx: Option<fn(&Site) -> Nginx>,
    /// Another node takes part.
    pub(crate) replicated: bool,
    /// As many connections as there are descriptors for.
    pub(crate) many: bool,
    /// With a master process, where the proxy has such.
    pub(crate) master: bool,
    /// What clients speak to the proxy.
    pub(crate) security: Security,
}

/// What lies between clients and proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Security {
    None,
    /// TLS 1.3.
    Tls,
    /// TLS 1.3 and in it HTTP/2.
    TlsH2,
}

impl Security {
    /// After `bind ADDR`.
    fn haproxy(self, site: &Site) -> String {
        let alpn = match self {
            Security::None => return String::new(),
            Security::Tls => "",
            Security::TlsH2 => " alpn h2,http/1.1",
        };
        format!(" ssl crt {} ssl-min-ver TLSv1.3{alpn}", certificate(site))
    }

    /// After `listen ADDR`, and lines of the server.
    fn nginx(self, site: &Site) -> (&'static str, String) {
        let options = match self {
            Security::None => return ("", String::new()),
            Security::Tls => " ssl",
            Security::TlsH2 => " ssl http2",
        };
        let pem = certificate(site);
        let lines = format!(
            "    ssl_certificate {pem};\n    ssl_certificate_key {pem};\n    ssl_protocols TLSv1.3;\n\
             \x20   ssl_session_tickets on;\n    ssl_session_cache shared:tls:32m;\n"
        );
        (options, lines)
    }
}

/// The proxy's certificate and key, made when it is first asked for.
fn certificate(site: &Site) -> String {
    let file = site.file("proxy.pem");
    if !std::path::Path::new(&file).exists() {
        // What can't be written shows when the proxy can't read it.
        let _ = std::fs::write(&file, Authority::new().certify(&["*.example.com"]));
    }
    file
}

/// Lines for nginx.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nginx {
    pub(crate) http: String,
    pub(crate) server: String,
    pub(crate) location: String,
    /// Server connections are closed after each request.
    pub(crate) closes: bool,
}

/// Nothing.
pub(crate) fn none(_: &Site) -> String {
    String::new()
}

/// HTTP with nothing else.
pub(crate) const HTTP: Config = Config {
    tcp: false,
    front: none,
    back: none,
    sections: none,
    nginx: Some(|_| Nginx::default()),
    replicated: false,
    many: false,
    master: false,
    security: Security::None,
};

/// TCP with nothing else.
pub(crate) const TCP: Config = Config { tcp: true, ..HTTP };

impl Config {
    /// What the proxy is started with; `peer`: the node that it replicates to.
    pub(crate) fn text(&self, site: &Site, peer: bool) -> Option<String> {
        match site.kind {
            Kind::Floor => None,
            Kind::Nginx => Some(self.for_nginx(site, self.nginx?(site))),
            Kind::Phalanx | Kind::Haproxy => Some(self.for_haproxy(site, peer)),
        }
    }

    /// That of the other node, where there is one.
    pub(crate) fn peer(&self, site: &Site) -> Option<String> {
        self.replicated.then(|| self.for_haproxy(site, true))
    }

    /// With room for what else needs descriptors, as pipes do.
    fn maxconn(&self) -> u64 {
        if self.many { machine::maxconn() } else { machine::maxconn().min(4_000) }
    }

    fn for_haproxy(&self, site: &Site, peer: bool) -> String {
        let mode = if self.tcp { "tcp" } else { "http" };
        let socket = site.file(if peer { "sock2" } else { "sock" });
        let mut text = format!(
            "global\n    nbthread 1\n    maxconn {}\n    stats socket {socket} mode 600 level admin expose-fd listeners\n",
            self.maxconn()
        );
        if self.replicated {
            text += &cluster(site, if peer { "data2" } else { "data" });
        }
        let bind = if peer { site.peer_web() } else { site.web() };
        let _ = write!(
            text,
            "defaults\n    mode {mode}\n    timeout connect 5s\n    timeout client 120s\n    timeout server 120s\n\
             frontend web\n    bind {bind}{}\n{}    default_backend origin\n\
             backend origin\n{}    server o1 {}\n{}",
            self.security.haproxy(site),
            (self.front)(site),
            (self.back)(site),
            site.origin(),
            (self.sections)(site),
        );
        text
    }

    fn for_nginx(&self, site: &Site, lines: Nginx) -> String {
        let dir = site.dir.display();
        let (web, origin) = (site.web(), site.origin());
        let (bind, tls) = self.security.nginx(site);
        let head = format!(
            "daemon off;\nmaster_process {};\nworker_processes 1;\n\n\
             error_log {dir}/error.log;\npid {dir}/nginx.pid;\n",
            if self.master { "on" } else { "off" }
        );
        if self.tcp {
            return format!(
                "load_module {};\n{head}events {{ worker_connections {}; }}\nstream {{\n\
                 access_log off;\n  server {{\n    listen {web}{bind} backlog=4096;\n    proxy_timeout 120s;\n{}\
                 \x20   proxy_pass {origin};\n  }}\n}}\n",
                machine::STREAM_MODULE,
                self.maxconn() * 2,
                lines.server
            );
        }
        let (pool, connection) = if lines.closes {
            ("", "")
        } else {
            (
                "keepalive 128; keepalive_requests 1000000000;",
                "proxy_http_version 1.1; proxy_set_header Connection \"\";",
            )
        };
        let log = if lines.http.contains("access_log") { "" } else { "access_log off;" };
        format!(
            "{head}events {{ worker_connections {}; }}\nhttp {{\n  {log}\n  keepalive_requests 1000000000;\n\
             keepalive_timeout 120s;\n  client_max_body_size 0;\n  proxy_request_buffering off;\n\
             proxy_max_temp_file_size 0;\n  proxy_buffers 8 16k;\n  client_body_temp_path {dir}/t1;\n\
             proxy_temp_path {dir}/t2;\n  fastcgi_temp_path {dir}/t3;\n  uwsgi_temp_path {dir}/t4;\n\
             scgi_temp_path {dir}/t5;\n{}  upstream origin {{ server {origin}; {pool} }}\n\
             server {{\n    listen {web}{bind} backlog=4096;\n{tls}{}    location / {{\n      {connection}\n{}\
             proxy_pass http://origin;\n    }}\n  }}\n}}\n",
            self.maxconn() * 2,
            lines.http,
            lines.server,
            lines.location
        )
    }
}

/// How the two nodes find each other.
fn cluster(site: &Site, data: &str) -> String {
    let (one, two) = (site.peer(1), site.peer(2));
    match site.kind {
        Kind::Phalanx => {
            let data = site.file(data);
            format!("cluster bench\n    node n1 {one}\n    node n2 {two}\n    data-dir {data}\n")
        }
        _ => format!("peers bench\n    peer n1 {one}\n    peer n2 {two}\n"),
    }
}
