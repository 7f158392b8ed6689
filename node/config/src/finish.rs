//! The last step: references are resolved, ids given, defaults and modes applied, and the draft
//! becomes a [`Config`].
//!
//! Checks here concern more than one line. A complaint that only follows from a line refused before
//! (a table that is missing because its line was faulty) is not made a second time.

mod rules;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::diagnostic::Severity;
use crate::draft::{ClusterDraft, HttpCheckSend, LogLine, ProxyDraft, Settings};
use crate::keywords::{resolvers, server};
use crate::known;
use crate::model::*;
use crate::parser::Parser;
use crate::{Outcome, model};

impl Parser<'_> {
    /// Checks the whole and makes the configuration of it.
    pub(crate) fn finish(mut self) -> Outcome {
        let cluster = self.draft.clusters.pop().map(|draft| self.finish_cluster(draft));
        let mut drafts = std::mem::take(&mut self.draft.proxies);
        if cluster.is_none() {
            self.share_no_places(&mut drafts);
        }
        let mut tables = stick_tables(&drafts);
        self.check_binds(&drafts);
        self.check_references(&drafts, cluster.as_ref(), &mut tables);
        self.check_discovery(&drafts);
        let ids = proxy_ids(&drafts);
        let proxies = drafts.into_iter().zip(ids).map(|(draft, id)| {
            let table =
                tables.iter().position(|(name, _)| *name == draft.name).map(|at| tables.swap_remove(at).1);
            Arc::new(self.finish_proxy(draft, id, table))
        });
        let proxies: Vec<Arc<Proxy>> = proxies.collect();
        let warned = self.diagnostics.iter().any(|d| d.severity == Severity::Warning);
        if warned && self.draft.zero_warning {
            let message = "some warnings were found and 'zero-warning' is set".to_owned();
            self.alert_at(Pos::default(), message, None);
        }
        self.say_what_was_left_out();
        let refused = self.diagnostics.iter().any(|d| d.severity == Severity::Alert);
        let patterns = self.draft.patterns.finish();
        let (global, peers) = (self.draft.global, self.draft.peers);
        let resolvers = self.draft.resolvers.into_iter().map(Arc::new).collect();
        let consuls = self.draft.consuls.into_iter().map(Arc::new).collect();
        let config = (!refused).then_some(Config {
            files: self.files,
            global,
            proxies,
            cluster,
            peers,
            patterns,
            resolvers,
            consuls,
        });
        Outcome { config, diagnostics: self.diagnostics }
    }

    /// A node alone: the limit of all nodes together is its own.
    fn share_no_places(&mut self, drafts: &mut [ProxyDraft]) {
        for draft in drafts {
            for server in draft.servers.iter_mut().map(|s| &mut s.server) {
                if std::mem::take(&mut server.options.maxconn_cluster) {
                    let message = format!(
                        "'server {}/{}' : 'maxconn ... cluster' without a 'cluster' section limits this node only",
                        draft.name, server.name
                    );
                    self.report_at(Severity::Warning, server.pos, message, None);
                }
            }
        }
    }

    fn finish_cluster(&mut self, draft: ClusterDraft) -> Cluster {
        let name = &draft.name;
        let clean = draft.refused.is_empty();
        if draft.nodes.is_empty() && clean {
            let hint = Some("'node <name> <addr>:<port>' for each".to_owned());
            self.alert_at(draft.pos, format!("cluster '{name}' has no nodes"), hint);
        }
        if draft.data_dir.is_none() && clean {
            let hint = Some("'data-dir <directory>', where the agreed state is kept".to_owned());
            self.alert_at(draft.pos, format!("cluster '{name}' has no 'data-dir'"), hint);
        }
        if draft.nodes.len() == 2 && clean {
            let message = format!("cluster '{name}' has two nodes: the loss of either stops decisions");
            let hint = Some("a third as 'witness' keeps a majority".to_owned());
            self.report_at(Severity::Warning, draft.pos, message, hint);
        }
        if let (Some(_), Some(peer)) = (&draft.ssl, draft.peers.first()) {
            let message = format!(
                "cluster '{name}' : 'peer {}' beside 'ssl': HAProxy's peers protocol is spoken without TLS here",
                peer.name
            );
            let hint =
                Some("put the HAProxys into a 'peers' section, which has a port of its own".to_owned());
            self.alert_at(peer.pos, message, hint);
        }
        for vip in &draft.vips {
            let Some(prefer) = &vip.prefer else { continue };
            let subject = format!("cluster '{name}' : vip '{}'", vip.name);
            match draft.nodes.iter().find(|node| node.name == *prefer) {
                Some(node) if node.witness => {
                    let message =
                        format!("{subject} : preferred node '{prefer}' is a witness, which holds no vip");
                    self.alert_at(vip.pos, message, None);
                }
                Some(_) => {}
                None if !clean => {}
                None => {
                    let names = draft.nodes.iter().map(|node| node.name.as_str());
                    let hint = known::nearest(prefer, names).map(known::did_you_mean);
                    self.alert_at(
                        vip.pos,
                        format!("{subject} : preferred node '{prefer}' is not in the cluster"),
                        hint,
                    );
                }
            }
        }
        let data_dir = draft.data_dir.unwrap_or_default();
        Cluster {
            name: draft.name,
            nodes: draft.nodes,
            peers: draft.peers,
            data_dir,
            join: draft.join,
            vips: draft.vips,
            vip_lease: draft.vip_lease,
            vip_drain: draft.vip_drain,
            ssl: draft.ssl,
            pos: draft.pos,
        }
    }

    /// Everything that names another proxy, a table or the cluster.
    fn check_references(
        &mut self,
        drafts: &[ProxyDraft],
        cluster: Option<&Cluster>,
        tables: &mut [(String, StickTable)],
    ) {
        // As in HAProxy, what is disabled may refer to what is not there.
        for draft in drafts.iter().filter(|draft| !draft.settings.disabled) {
            self.check_default_backend(drafts, draft);
            for rule in &draft.stick_rules {
                self.check_table(drafts, tables, draft, &rule.value.table, rule.pos, "stick");
                // What the rule stores must have room, as HAProxy gives it.
                if let Some((_, table)) = tables.iter_mut().find(|(name, _)| *name == rule.value.table) {
                    for data in [DataType::ServerId, DataType::ServerKey] {
                        if !table.store.contains(&data) {
                            table.store.push(data);
                        }
                    }
                }
            }
            self.check_rules(drafts, tables, draft);
            let Some(table) = &draft.stick_table else { continue };
            self.check_write_to(tables, draft, table);
            if let Some(peers) = &table.peers
                && cluster.is_none_or(|cluster| cluster.name != *peers)
                && !self.draft.peers.iter().any(|section| section.name == *peers)
            {
                let hint = match cluster {
                    Some(cluster) => format!("the cluster is named '{}'", cluster.name),
                    None => format!("a section 'cluster {peers}' or 'peers {peers}' is missing"),
                };
                let message =
                    format!("{} '{}': unable to find sync peers '{peers}'", draft.kind_name(), draft.name);
                self.alert_at(table.pos, message, Some(hint));
            }
        }
    }

    /// Servers name `resolvers` and `consul` sections; `resolvers default` is there by itself.
    fn check_discovery(&mut self, drafts: &[ProxyDraft]) {
        let sources = |drafts: &[ProxyDraft]| -> Vec<(String, Pos, Arc<Discovery>)> {
            let active = drafts.iter().filter(|draft| !draft.settings.disabled);
            let servers = active.flat_map(|draft| draft.servers.iter().map(move |s| (draft, &s.server)));
            let mut found: Vec<(String, Pos, Arc<Discovery>)> = servers
                .filter_map(|(draft, server)| {
                    let subject = format!("{} '{}', server '{}'", draft.kind_name(), draft.name, server.name);
                    Some((subject, server.pos, server.discovered.clone()?))
                })
                .collect();
            // One complaint for all servers of a template.
            found.dedup_by_key(|(_, pos, _)| (pos.file, pos.line));
            found
        };
        let sources = sources(drafts);
        let wants_default =
            |s: &Discovery| matches!(s, Discovery::Dns { resolvers, .. } if resolvers == "default");
        if sources.iter().any(|(.., source)| wants_default(source))
            && !self.draft.resolvers.iter().any(|r| r.name == "default")
            && let Ok(nameservers) = resolvers::from_system(self.env)
        {
            let default = Resolvers { nameservers, ..Resolvers::new("default", Pos::default()) };
            self.draft.resolvers.push(default);
        }
        for (subject, pos, source) in &sources {
            let (kind, name) = match &**source {
                Discovery::Dns { resolvers, .. } => ("resolvers", resolvers),
                Discovery::Consul { consul, .. } => ("consul", consul),
            };
            let names: Vec<String> = match &**source {
                Discovery::Dns { .. } => self.draft.resolvers.iter().map(|r| r.name.clone()).collect(),
                Discovery::Consul { .. } => self.draft.consuls.iter().map(|c| c.name.clone()).collect(),
            };
            if names.contains(name) || self.refused_heads.contains(name) {
                continue;
            }
            let hint = known::nearest(name, names.iter().map(String::as_str)).map(known::did_you_mean);
            self.alert_at(*pos, format!("{subject}: unable to find required {kind} '{name}'"), hint);
        }
        let refused = self.diagnostics.iter().any(|d| d.severity == Severity::Alert);
        for resolvers in self.draft.resolvers.clone() {
            if resolvers.nameservers.is_empty() && !refused {
                let message = format!("resolvers '{}' has no name server", resolvers.name);
                self.report_at(Severity::Warning, resolvers.pos, message, None);
            }
        }
        for consul in self.draft.consuls.clone() {
            if consul.addresses.is_empty() && !refused {
                let message = format!("consul '{}' has no 'address'", consul.name);
                let hint = Some("'address http://127.0.0.1:8500' is that of an agent's default".to_owned());
                self.alert_at(consul.pos, message, hint);
            } else if !consul.https && (consul.ca_file.is_some() || consul.crt.is_some()) && !refused {
                let message = format!("consul '{}' has a 'ca-file' or 'crt' and no TLS", consul.name);
                self.alert_at(consul.pos, message, Some("expects 'address https://...'".to_owned()));
            }
        }
    }

    /// With SO_REUSEPORT nothing else would tell that two listeners share an address.
    fn check_binds(&mut self, drafts: &[ProxyDraft]) {
        let mut seen: HashMap<(SocketAddr, Option<&str>), Pos> = HashMap::new();
        let active = drafts.iter().filter(|draft| !draft.settings.disabled);
        for bind in active.flat_map(|draft| &draft.binds).map(|draft| &draft.bind) {
            match seen.entry((bind.addr, bind.interface.as_deref())) {
                Entry::Vacant(entry) => drop(entry.insert(bind.pos)),
                Entry::Occupied(entry) => {
                    let place = self.place(*entry.get());
                    let message = format!("'bind {}' : this address is bound already at {place}", bind.addr);
                    let hint = Some("its connections would be spread over both".to_owned());
                    self.report_at(Severity::Warning, bind.pos, message, hint);
                }
            }
        }
    }

    fn check_default_backend(&mut self, drafts: &[ProxyDraft], draft: &ProxyDraft) {
        let (true, Some(wanted)) = (draft.kind.is_frontend(), &draft.settings.default_backend) else {
            return;
        };
        self.check_backend(drafts, draft, &wanted.value, wanted.pos, "default_backend");
    }

    /// A backend that `default_backend` or `use_backend` names.
    fn check_backend(&mut self, drafts: &[ProxyDraft], draft: &ProxyDraft, name: &str, pos: Pos, what: &str) {
        let Some(backend) = drafts.iter().find(|other| other.name == name && other.kind.is_backend()) else {
            if self.refused_heads.contains(name) {
                return;
            }
            let names =
                drafts.iter().filter(|other| other.kind.is_backend()).map(|other| other.name.as_str());
            let hint = known::nearest(name, names).map(known::did_you_mean);
            let message = format!("Proxy '{}': unable to find required {what}: '{name}'", draft.name);
            return self.alert_at(pos, message, hint);
        };
        let places = (self.place(draft.pos), self.place(backend.pos));
        match (draft.settings.mode, backend.settings.mode) {
            (Mode::Http, Mode::Tcp) => {
                let role =
                    if what == "use_backend" { "in a 'use_backend' rule" } else { "as its default backend" };
                let message = format!(
                    "http frontend '{}' ({}) tries to use incompatible tcp backend '{name}' ({}) {role} \
                     (see 'mode')",
                    draft.name, places.0, places.1
                );
                self.alert_at(pos, message, None);
            }
            (Mode::Tcp, Mode::Http) => {
                let what = format!("tcp frontend '{}' with http backend '{name}' ({})", draft.name, places.1);
                self.alert_at(pos, known::unsupported(&what), Some("give both the same 'mode'".to_owned()));
            }
            _ => {}
        }
    }

    pub(crate) fn check_table(
        &mut self,
        drafts: &[ProxyDraft],
        tables: &[(String, StickTable)],
        draft: &ProxyDraft,
        table: &str,
        pos: Pos,
        what: &str,
    ) {
        if tables.iter().any(|(name, _)| name == table) || self.refused_heads.contains(table) {
            return;
        }
        let owner = drafts.iter().find(|other| other.name == table);
        if owner.is_some_and(|owner| owner.settings.refused.iter().any(|word| word == "stick-table")) {
            return;
        }
        let hint = match owner {
            Some(owner) => Some(format!("{} '{table}' has no 'stick-table' line", owner.kind_name())),
            None => {
                known::nearest(table, tables.iter().map(|(name, _)| name.as_str())).map(known::did_you_mean)
            }
        };
        let message = format!("Proxy '{}': '{what}' rule : unable to find stick-table '{table}'", draft.name);
        self.alert_at(pos, message, hint);
    }

    /// `write-to` names another table with the same keys.
    fn check_write_to(&mut self, tables: &[(String, StickTable)], draft: &ProxyDraft, table: &StickTable) {
        let Some(target) = &table.write_to else { return };
        let name = &draft.name;
        let fault = match tables.iter().find(|(other, _)| other == target) {
            None => format!("unable to find stick-table '{target}'"),
            Some((other, _)) if other == name => "a table cannot be written to itself".to_owned(),
            Some((_, other)) if other.key != table.key => {
                format!("stick-table '{target}' does not have the same key type and length")
            }
            Some(_) => return,
        };
        self.alert_at(table.pos, format!("Proxy '{name}': stick-table: 'write-to' : {fault}"), None);
    }

    fn finish_proxy(&mut self, mut draft: ProxyDraft, id: u32, table: Option<StickTable>) -> Proxy {
        if !draft.settings.disabled {
            self.check_shape(&draft);
        }
        self.drop_what_needs_http(&mut draft);
        drop_the_other_side(&mut draft);
        let ProxyDraft { name, kind, pos, description, settings, binds, servers, .. } = draft;
        let logs = self.logs(&settings);
        let silent = kind.is_frontend() && logs.is_empty() && !settings.disabled;
        if let (true, Some(format)) = (silent, &settings.log_format) {
            let message = format!("log format ignored for frontend '{name}' since it has no log address");
            let hint = Some("'log global', or 'log <address> <facility>'".to_owned());
            self.report_at(Severity::Warning, format.pos, message, hint);
        }
        Proxy {
            id,
            kind,
            pos,
            mode: settings.mode,
            disabled: settings.disabled,
            description,
            binds: number_binds(binds),
            maxconn: settings.maxconn,
            fullconn: settings.fullconn,
            default_backend: settings.default_backend.map(|name| name.value),
            servers: number_servers(servers),
            default_server: {
                let mut options = settings.default_server;
                server::settle(&mut options);
                options
            },
            balance: settings.balance,
            hash_type: settings.hash_type,
            cookie: settings.cookie,
            timeouts: settings.timeouts,
            retries: settings.retries.unwrap_or(3),
            redispatch: settings.redispatch,
            logs,
            log_format: settings.log_format.map(|format| format.value).unwrap_or_default(),
            dontlognull: settings.dontlognull,
            dontlog_normal: settings.dontlog_normal,
            logasap: settings.logasap,
            log_health_checks: settings.log_health_checks,
            per_node_checks: settings.per_node_checks,
            connection_mode: settings.connection_mode.unwrap_or_default(),
            http_reuse: settings.http_reuse,
            splice: settings.splice,
            forwardfor: settings.forwardfor,
            allbackups: settings.allbackups,
            abortonclose: settings.abortonclose,
            persist: settings.persist,
            clitcpka: kind.is_frontend() && (settings.tcpka || settings.clitcpka),
            srvtcpka: kind.is_backend() && (settings.tcpka || settings.srvtcpka),
            smart_accept: settings.smart_accept.unwrap_or(settings.mode == Mode::Http),
            smart_connect: settings.smart_connect.unwrap_or(true),
            httpchk: settings.httpchk.map(|check| sent(check, settings.http_check_send.unwrap_or_default())),
            errorfiles: settings.errorfiles,
            monitor_uri: settings.monitor_uri,
            stats: settings.stats,
            stick_table: table,
            stick_rules: draft.stick_rules.into_iter().map(|rule| rule.value).collect(),
            acls: draft.acls,
            rules: draft.rules,
            use_backend: draft.use_backend.into_iter().map(|rule| rule.value).collect(),
            use_server: draft.use_server.into_iter().map(|rule| rule.value).collect(),
            name,
        }
    }

    /// What is accepted but hardly meant.
    fn check_shape(&mut self, draft: &ProxyDraft) {
        let (kind, name) = (draft.kind_name(), &draft.name);
        let settings = &draft.settings;
        let refused = |word: &str| settings.refused.iter().any(|refused| refused == word);
        if draft.kind.is_frontend() && draft.binds.is_empty() && !refused("bind") {
            let message = format!("{kind} '{name}' has no 'bind' directive");
            let hint = Some("please declare it as a backend if this was intended".to_owned());
            self.report_at(Severity::Warning, draft.pos, message, hint);
        }
        let serves = draft.kind.is_backend() && !draft.servers.is_empty();
        let timeouts = &settings.timeouts;
        let missing: Vec<&str> = [
            ("client", draft.kind.is_frontend() && timeouts.client.is_none()),
            ("connect", serves && timeouts.connect.is_none()),
            ("server", serves && timeouts.server.is_none()),
        ]
        .into_iter()
        .filter_map(|(name, missing)| missing.then_some(name))
        .collect();
        if !missing.is_empty() && !refused("timeout") {
            let names: Vec<String> = missing.iter().map(|name| format!("'timeout {name}'")).collect();
            let message = format!("missing timeouts for {kind} '{name}'");
            let hint = format!("without {} a silent peer holds its connection for ever", names.join(", "));
            self.report_at(Severity::Warning, draft.pos, message, Some(hint));
        }
        if draft.kind.is_backend()
            && draft.servers.len() > 1
            && settings.balance.is_none()
            && !refused("balance")
        {
            let message =
                format!("{kind} '{name}' has no 'balance' line: the better of two random servers is used");
            let hint = Some("as in HAProxy since 3.3; before that it was 'roundrobin'".to_owned());
            self.report_at(Severity::Notice, draft.pos, message, hint);
        }
    }

    /// In TCP mode, what needs HTTP is ignored with a warning, as in HAProxy.
    fn drop_what_needs_http(&mut self, draft: &mut ProxyDraft) {
        if draft.kind.is_backend()
            && draft.settings.httpchk.is_none()
            && draft.settings.http_check_send.is_some()
        {
            let (kind, name) = (draft.kind_name(), &draft.name);
            let message = format!("'http-check send' ignored for {kind} '{name}' without 'option httpchk'");
            self.report_at(Severity::Warning, draft.pos, message, None);
        }
        if draft.settings.mode == Mode::Http {
            return;
        }
        let pos = draft.pos;
        let (kind, name) = (draft.kind_name(), draft.name.clone());
        let mut warnings: Vec<(Pos, String)> = Vec::new();
        let settings = &mut draft.settings;
        if draft.kind.is_backend() {
            if settings.cookie.take().is_some() {
                warnings
                    .push((pos, format!("cookie will be ignored for {kind} '{name}' (needs 'mode http')")));
            }
            if let Some(Balance::Hdr { .. } | Balance::Uri { .. } | Balance::UrlParam(_)) = settings.balance {
                let message = format!(
                    "layer 7 hash not possible for {kind} '{name}' (needs 'mode http'), falling back to round robin"
                );
                warnings.push((pos, message));
                settings.balance = Some(Balance::RoundRobin);
            }
        }
        if draft.kind.is_frontend()
            && let Some(format) = &mut settings.log_format
            && format.value == LogFormat::Http
        {
            let message = format!(
                "'option httplog' not usable with {kind} '{name}' (needs 'mode http'), falling back to 'option tcplog'"
            );
            warnings.push((format.pos, message));
            format.value = LogFormat::Tcp;
        }
        let mut ignored = |what: &str| {
            warnings.push((pos, format!("'{what}' ignored for {kind} '{name}' as it requires HTTP mode")));
        };
        if settings.stats.take().is_some() {
            ignored("stats");
        }
        if settings.forwardfor.take().is_some() {
            ignored("option forwardfor");
        }
        if draft.kind.is_frontend() && settings.monitor_uri.take().is_some() {
            ignored("monitor-uri");
        }
        let rules = &mut draft.rules;
        for (what, list) in [
            ("http-request", &mut rules.http_request),
            ("http-response", &mut rules.http_response),
            ("http-after-response", &mut rules.http_after_response),
            ("redirect", &mut rules.redirect),
        ] {
            if !list.is_empty() {
                ignored(what);
                list.clear();
            }
        }
        settings.connection_mode = None;
        settings.default_server.cookie = None;
        for server in &mut draft.servers {
            if server.server.options.cookie.take().is_some() {
                let server = &server.server;
                let message = format!(
                    "{kind} '{name}' : ignoring cookie for server '{}' as HTTP mode is disabled",
                    server.name
                );
                warnings.push((server.pos, message));
            }
        }
        for (pos, message) in warnings {
            self.report_at(Severity::Warning, pos, message, None);
        }
    }

    /// A proxy's log targets, with those of `global` in the place of `log global`.
    fn logs(&self, settings: &Settings) -> Vec<LogTarget> {
        let mut logs: Vec<LogTarget> = Vec::new();
        for line in &settings.logs {
            match line {
                LogLine::Target(target) => logs.push(target.clone()),
                LogLine::Global => logs.extend(self.draft.global.logs.iter().cloned()),
            }
        }
        logs
    }
}

/// Settings that a `defaults` section gave, but that this side of a proxy has no use for.
fn drop_the_other_side(draft: &mut ProxyDraft) {
    let settings = &mut draft.settings;
    if !draft.kind.is_backend() {
        settings.fullconn = None;
        settings.default_server = ServerOptions::default();
        settings.balance = None;
        settings.hash_type = HashType::default();
        settings.cookie = None;
        settings.retries = None;
        settings.redispatch = None;
        settings.httpchk = None;
        settings.http_check_send = None;
        settings.log_health_checks = false;
        settings.per_node_checks = false;
        settings.allbackups = false;
        settings.persist = false;
        let timeouts = &mut settings.timeouts;
        (timeouts.server, timeouts.connect, timeouts.queue, timeouts.check) = (None, None, None, None);
        (timeouts.tunnel, timeouts.server_fin) = (None, None);
    }
    if !draft.kind.is_frontend() {
        settings.maxconn = None;
        settings.default_backend = None;
        settings.monitor_uri = None;
        settings.dontlognull = false;
        settings.dontlog_normal = false;
        settings.logasap = false;
        (settings.timeouts.client, settings.timeouts.client_fin) = (None, None);
    }
}

/// `option httpchk` with what `http-check send` changes of it.
fn sent(mut check: HttpCheck, send: HttpCheckSend) -> HttpCheck {
    check.method = send.method.unwrap_or(check.method);
    check.uri = send.uri.unwrap_or(check.uri);
    check.version = send.version.unwrap_or(check.version);
    check.host = send.host.or(check.host);
    check
}

/// The stick tables by the name of their proxy.
fn stick_tables(drafts: &[ProxyDraft]) -> Vec<(String, StickTable)> {
    let tables = drafts.iter().filter_map(|draft| Some((draft.name.clone(), draft.stick_table.clone()?)));
    tables.collect()
}

/// Gives every proxy its id: the one asked for, or the next free one from 2 (1 is HAProxy's own).
fn proxy_ids(drafts: &[ProxyDraft]) -> Vec<u32> {
    number(2, drafts.iter().map(|draft| draft.id))
}

/// Fills in missing ids with the next that nobody asked for.
fn number(first: u32, ids: impl Iterator<Item = Option<u32>> + Clone) -> Vec<u32> {
    let taken: HashSet<u32> = ids.clone().flatten().collect();
    let mut next = first;
    let ids = ids.map(|id| {
        id.unwrap_or_else(|| {
            while taken.contains(&next) {
                next += 1;
            }
            next += 1;
            next - 1
        })
    });
    ids.collect()
}

fn number_binds(binds: Vec<crate::draft::BindDraft>) -> Vec<Bind> {
    let ids = number(1, binds.iter().map(|bind| bind.id));
    binds.into_iter().zip(ids).map(|(draft, id)| Bind { id, ..draft.bind }).collect()
}

fn number_servers(servers: Vec<crate::draft::ServerDraft>) -> Vec<Arc<model::Server>> {
    let ids = number(1, servers.iter().map(|server| server.id));
    let servers = servers.into_iter().zip(ids).map(|(draft, id)| {
        let mut server = draft.server;
        server.id = id;
        server::settle(&mut server.options);
        Arc::new(server)
    });
    servers.collect()
}
