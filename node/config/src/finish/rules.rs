//! What rules and expressions name: proxies, tables, servers.

use crate::draft::{Placed, ProxyDraft};
use crate::keywords::rules::{Reference, references};
use crate::known;
use crate::model::{Action, BackendName, Link, Mode, PatternAction, PatternEdit, Pos, StickTable};
use crate::parser::Parser;
use crate::pattern::Columns;

impl Parser<'_> {
    /// Checks the names in the rules of a proxy.
    pub(super) fn check_rules(
        &mut self,
        drafts: &[ProxyDraft],
        tables: &[(String, StickTable)],
        draft: &ProxyDraft,
    ) {
        let rules = &draft.rules;
        let sets = [
            ("tcp-request connection", &rules.tcp_connection),
            ("tcp-request session", &rules.tcp_session),
            ("tcp-request content", &rules.tcp_content),
            ("http-request", &rules.http_request),
            ("http-response", &rules.http_response),
        ];
        for (what, rule) in sets.iter().flat_map(|(what, set)| set.iter().map(move |rule| (*what, rule))) {
            match &rule.action {
                Action::Track(track) => {
                    place(drafts, &track.table);
                    self.check_table(drafts, tables, draft, track.table.name(), rule.pos, what);
                }
                Action::Pattern(action) => self.check_file(draft, action, rule.pos, what),
                _ => {}
            }
        }
        for Placed { value: (what, text), pos } in &draft.needs_http {
            if draft.settings.mode == Mode::Tcp {
                let message = format!(
                    "Proxy '{}': '{what}' rule : fetch method '{text}' needs HTTP, which a proxy with 'mode tcp' does not parse",
                    draft.name
                );
                self.alert_at(*pos, message, Some("use 'mode http', or a fetch such as 'src'".to_owned()));
            }
        }
        for Placed { value: expr, pos } in &draft.referring {
            for reference in references(expr) {
                let what = expr.text.as_str();
                match reference {
                    Reference::Table(link) => {
                        let name = link.map_or(&*draft.name, |link| place(drafts, link));
                        self.check_table(drafts, tables, draft, name, *pos, what);
                    }
                    Reference::Backend(link) => {
                        self.check_side(drafts, draft, place(drafts, link), *pos, what, "backend");
                    }
                    Reference::Frontend(link) => {
                        self.check_side(drafts, draft, place(drafts, link), *pos, what, "frontend");
                    }
                    Reference::Server(proxy, server) => {
                        let proxy = proxy.map_or(&*draft.name, |link| place(drafts, link));
                        self.check_server(drafts, draft, proxy, server, *pos, what);
                    }
                }
            }
        }
        for Placed { value: rule, pos } in &draft.use_backend {
            if let BackendName::Fixed(link) = &rule.backend {
                self.check_backend(drafts, draft, place(drafts, link), *pos, "use_backend");
            }
        }
        for Placed { value: rule, pos } in &draft.use_server {
            self.check_server(drafts, draft, &draft.name, &rule.server, *pos, "use-server");
        }
    }

    /// A file that a rule edits must be looked into by something.
    fn check_file(&mut self, draft: &ProxyDraft, action: &PatternAction, pos: Pos, what: &str) {
        let (columns, kind) = match action.edit {
            PatternEdit::SetMap(_) | PatternEdit::DelMap => (Columns::Two, "map"),
            PatternEdit::AddAcl | PatternEdit::DelAcl => (Columns::One, "acl"),
        };
        if !self.draft.patterns.has_file(&action.file, columns) {
            let message =
                format!("Proxy '{}': '{what}' rule : no {kind} uses the file '{}'", draft.name, action.file);
            let hint = match kind {
                "map" => "a 'map' converter must name it",
                _ => "an ACL must name it with '-f'",
            };
            self.alert_at(pos, message, Some(hint.to_owned()));
        }
    }

    /// A proxy that an expression names must exist and have that side.
    fn check_side(
        &mut self,
        drafts: &[ProxyDraft],
        draft: &ProxyDraft,
        name: &str,
        pos: Pos,
        what: &str,
        side: &str,
    ) {
        let fits = |other: &&ProxyDraft| match side {
            "backend" => other.kind.is_backend(),
            _ => other.kind.is_frontend(),
        };
        if drafts.iter().filter(fits).any(|other| other.name == name) || self.refused_heads.contains(name) {
            return;
        }
        let near = known::nearest(name, drafts.iter().filter(fits).map(|other| other.name.as_str()));
        let message = format!("Proxy '{}': '{what}' : unable to find {side} '{name}'", draft.name);
        self.alert_at(pos, message, near.map(known::did_you_mean));
    }

    fn check_server(
        &mut self,
        drafts: &[ProxyDraft],
        draft: &ProxyDraft,
        proxy: &str,
        server: &Link,
        pos: Pos,
        what: &str,
    ) {
        self.check_side(drafts, draft, proxy, pos, what, "backend");
        let Some(backend) = drafts.iter().find(|other| other.name == proxy && other.kind.is_backend()) else {
            return;
        };
        let names = || backend.servers.iter().map(|other| other.server.name.as_str());
        if let Some(place) = names().position(|name| name == server.name()) {
            return server.stands_at(place);
        }
        let server = server.name();
        let refused = backend.settings.refused.iter().any(|word| word == "server");
        if !refused {
            let message =
                format!("Proxy '{}': '{what}' : unable to find server '{proxy}/{server}'", draft.name);
            self.alert_at(pos, message, known::nearest(server, names()).map(known::did_you_mean));
        }
    }
}

/// Tells a link where its proxy stands, which is where the configuration will have it. Gives the name.
fn place<'a>(drafts: &[ProxyDraft], link: &'a Link) -> &'a str {
    if let Some(place) = drafts.iter().position(|draft| draft.name == link.name()) {
        link.stands_at(place);
    }
    link.name()
}
