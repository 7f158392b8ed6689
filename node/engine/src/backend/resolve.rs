//! Servers whose addresses are found at run time: what was agreed about them is taken over.
//!
//! A server without an address is in maintenance for that reason alone (`MAINT (resolution)`), beside
//! whatever commands say. It gets an address before it leaves maintenance and loses it after it has
//! entered, so that nothing is ever sent to no address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use phalanx_config::model::{self, Discovery};

use crate::discovery;
use crate::registry::{Effective, Placed, Registry};
use crate::server::{Admin, Server, Start};
use crate::time::Now;

use super::{Backend, Effects, Standing, lines};

/// The address that a line gives a server, if it gives one.
fn configured(line: &model::Server) -> Option<SocketAddr> {
    Some(line.addr).filter(|addr| !addr.ip().is_unspecified())
}

/// What was agreed about a server; `None` if its address is not found at run time.
pub(super) fn placed<'a>(registry: &'a Registry, backend: &str, line: &model::Server) -> Option<Placed<'a>> {
    let source = discovery::source(line, backend, registry.names())?.to_string();
    Some(registry.discovered().place(&source, backend, &line.name))
}

/// Where a server of this line is; `None` = nowhere.
fn address(placed: Placed<'_>, line: &model::Server, eff: &Effective) -> Option<SocketAddr> {
    match placed {
        Placed::Unknown => {
            let port = eff.port.unwrap_or(line.addr.port());
            let ip = eff.ip.or(configured(line).map(|addr| addr.ip()))?;
            Some(SocketAddr::new(ip, port))
        }
        Placed::Nothing(_) => None,
        Placed::At(place) => {
            let port = if place.port > 0 { place.port } else { eff.port.unwrap_or(line.addr.port()) };
            Some(SocketAddr::new(place.ip?, port))
        }
    }
}

/// The weight that was found for a server, unless its line does not care.
pub(super) fn weight(placed: Option<Placed<'_>>, line: &model::Server) -> Option<u32> {
    match placed? {
        Placed::At(place) if !line.options.ignore_weight => place.weight,
        _ => None,
    }
}

impl Start {
    /// As it is to start, given what was agreed about it.
    pub(super) fn placed(
        mut self,
        registry: &Registry,
        backend: &str,
        eff: &Effective,
    ) -> (Start, Option<SocketAddr>) {
        let Some(placed) = placed(registry, backend, &self.config) else { return (self, None) };
        let addr = address(placed, &self.config, eff);
        let resolves = if addr.is_some() { 0 } else { Admin::RMAINT };
        self.admin = Admin(self.admin.0 & !Admin::RMAINT | resolves | from_srv(placed));
        (self, addr)
    }
}

/// HAProxy notes that a name came from an SRV record, and never forgets.
fn from_srv(placed: Placed<'_>) -> u8 {
    match placed {
        Placed::At(place) if !place.host.is_empty() => Admin::HMAINT,
        _ => 0,
    }
}

impl Backend {
    /// Takes over what was agreed about the server's address.
    pub(super) fn resolve(
        &self,
        server: &Arc<Server>,
        registry: &Registry,
        eff: &Effective,
        standing: &mut Standing,
        now: Now,
        effects: &mut Effects,
    ) {
        let line = server.config().clone();
        let Some(placed) = placed(registry, &self.name, &line) else {
            // Its line has an address of its own by now.
            if server.admin().0 & Admin::RMAINT != 0 {
                let admin = Admin(server.admin().0 & !Admin::RMAINT);
                self.regain(server, admin, (&line, ""), standing, now, effects);
            }
            return;
        };
        let renamed = registry.names().of(&self.name, server.name(), &line.host);
        if matches!(placed, Placed::Unknown) && renamed.is_some() && !server.addr().ip().is_unspecified() {
            // Until its new name is known it stays where it is, as in HAProxy.
            return;
        }
        let flagged = Admin(server.admin().0 | from_srv(placed));
        server.set_admin(flagged);
        match address(placed, &line, eff) {
            Some(addr) => {
                self.move_to(server, addr, &line, effects);
                if flagged.0 & Admin::RMAINT != 0 {
                    let admin = Admin(flagged.0 & !Admin::RMAINT);
                    let host = match placed {
                        Placed::At(place) if !place.host.is_empty() => place.host.as_str(),
                        _ => renamed.unwrap_or_default(),
                    };
                    self.regain(server, admin, (&line, host), standing, now, effects);
                }
            }
            None => {
                let gone = Admin(flagged.0 | Admin::RMAINT);
                if gone != flagged && flagged.maint() {
                    server.set_admin(gone);
                } else if gone != flagged {
                    let why = format!(" ({})", reason(placed, &line));
                    self.enter_maintenance(server, gone, &why, standing, now, effects);
                }
                let port = match placed {
                    Placed::At(place) if place.port > 0 => place.port,
                    _ => line.addr.port(),
                };
                server.set_addr(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port));
            }
        }
        self.announce_if_empty(standing, effects);
    }

    fn move_to(&self, server: &Arc<Server>, addr: SocketAddr, line: &model::Server, effects: &mut Effects) {
        let old = server.addr();
        if old == addr {
            return;
        }
        server.set_addr(addr);
        effects.checks = true;
        let was = if old.ip().is_unspecified() { "(none)".to_owned() } else { old.ip().to_string() };
        let mut text = format!("{}/{} changed its ", self.name, server.name());
        match (old.ip() == addr.ip(), old.port() == addr.port() || was == "(none)") {
            (false, true) => text.push_str(&format!("IP from {was} to {}", addr.ip())),
            (true, _) => text.push_str(&format!("port from {} to {}", old.port(), addr.port())),
            (false, false) => text.push_str(&format!("IP from {was}:{} to {addr}", old.port())),
        }
        let by = match line.discovered.as_deref() {
            Some(Discovery::Dns { resolvers, .. }) => format!("{resolvers}/cluster"),
            Some(Discovery::Consul { consul, .. }) => format!("consul/{consul}"),
            None => "its line".to_owned(),
        };
        effects.line(lines::NOTICE, format!("{text} by {by}."));
    }

    /// It has an address again.
    fn regain(
        &self,
        server: &Arc<Server>,
        admin: Admin,
        (line, host): (&model::Server, &str),
        standing: &mut Standing,
        now: Now,
        effects: &mut Effects,
    ) {
        if admin.maint() {
            server.set_admin(admin);
            return;
        }
        self.leave_maintenance(server, admin, now);
        self.publish(standing, now, effects);
        let subject = lines::subject(server);
        let host = if host.is_empty() { &line.host } else { host };
        let mode = if admin.drain() { "DRAIN" } else { "READY" };
        effects.line(lines::NOTICE, format!("{subject} ('{host}') is UP/{mode} (resolves again)."));
        if matches!(line.discovered.as_deref(), Some(Discovery::Dns { .. })) {
            let text = format!("{subject} administratively READY thanks to valid DNS answer.");
            effects.line(lines::NOTICE, text);
        }
    }
}

/// Why a server has no address, in HAProxy's words.
fn reason(placed: Placed<'_>, line: &model::Server) -> String {
    let of_srv = line.discovered.as_ref().is_some_and(|d| d.is_srv());
    let of_consul = matches!(line.discovered.as_deref(), Some(Discovery::Consul { .. }));
    match placed {
        Placed::Nothing(Some(why)) => why.to_owned(),
        Placed::Nothing(None) if of_srv => "entry removed from SRV record".to_owned(),
        Placed::Nothing(None) if of_consul => "instance removed from Consul".to_owned(),
        _ => "No IP for server ".to_owned(),
    }
}
