//! Rules carried out on connections: what may pass, what is tracked, where entries stick.
//!
//! The engine decides (`phalanx_engine::rules`); rules of requests are carried out by
//! `http::transaction`.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use phalanx_config::{Action, BackendName, Rule, ServerKey, StickKind};
use phalanx_engine::backend::Backend;
use phalanx_engine::plan::{Plan, ProxyPlan, Stick};
use phalanx_engine::rules::{self, Cursor, Step};
use phalanx_engine::sample::{self, Context, World, with_key};
use phalanx_engine::server::Server;
use phalanx_engine::stick::Data;
use phalanx_engine::time::Now;

use crate::front::Front;
use crate::session::Session;
use crate::worker::View;

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passage {
    /// It goes on.
    Free,
    /// It is closed.
    Rejected,
    /// It is left without the client's being told.
    Dropped,
}

/// What a context is made of that is not the message.
pub(crate) struct Around<'a> {
    pub(crate) session: &'a Session,
    pub(crate) plan: &'a View,
    /// The frontend's.
    pub(crate) front: &'a ProxyPlan,
    /// Whose rules they are.
    pub(crate) proxy: &'a ProxyPlan,
    pub(crate) backend: Option<&'a Arc<Backend>>,
}

impl<'a> Around<'a> {
    /// A context without a message.
    pub(crate) fn context(&self, now: Now) -> Context<'a> {
        let worker = &self.session.worker;
        let world = World {
            state: &worker.shared.state,
            plan: self.plan,
            proxy: self.proxy,
            front: self.front,
            backend: self.backend,
            server: None,
        };
        Context {
            src: self.session.src(),
            dst: self.session.dst(),
            request: None,
            response: None,
            world: Some(world),
            session: &self.session.memory,
            memory: &self.session.memory,
            first: true,
            waited: true,
            now,
            draw: worker.draw(),
        }
    }
}

/// `tcp-request connection` and `tcp-request session`.
pub(crate) fn connection(rules: &[Rule], around: &Around<'_>) -> Passage {
    if rules.is_empty() {
        return Passage::Free;
    }
    let at = around.context(around.session.accepted());
    verdict(rules, &mut Cursor::default(), around.proxy, &at).unwrap_or(Passage::Free)
}

/// `tcp-request content` of a TCP session; waits where a rule waits for the end of the inspection.
pub(crate) async fn content(around: &Around<'_>, client: &mut Front) -> Passage {
    let set = &around.proxy.config.rules;
    if set.tcp_content.is_empty() {
        return Passage::Free;
    }
    let mut cursor = Cursor::default();
    let mut waited = set.inspect_delay.is_none();
    loop {
        let at = Context { waited, ..around.context(around.session.worker.now()) };
        if let Some(passage) = verdict(&set.tcp_content, &mut cursor, around.proxy, &at) {
            return passage;
        }
        inspect(client, set.inspect_delay.unwrap_or_default()).await;
        waited = true;
    }
}

/// Waits for the inspection time, or until no more can come.
pub(crate) async fn inspect(client: &mut Front, delay: Duration) {
    client.deadline.set(Some(delay));
    poll_fn(|cx| {
        if client.poll_gone(cx).is_ready() || client.eof || client.buf.is_full() {
            return Poll::Ready(());
        }
        client.deadline.poll(cx)
    })
    .await;
}

/// Makes the close of a connection one that its client does not learn of: the reset does not get
/// beyond the first router. IPv6 has no such limit here, so that its clients see a reset.
pub(crate) fn leave_silently(client: &Front) {
    client.stream.set_ttl(1);
    client.stream.reset_on_close();
}

/// What rules that change no message come to; `None` = they wait.
fn verdict(set: &[Rule], cursor: &mut Cursor, proxy: &ProxyPlan, at: &Context<'_>) -> Option<Passage> {
    loop {
        match rules::next(set, cursor, proxy, at) {
            Step::Wait => return None,
            Step::Act(Action::Reject) => return Some(Passage::Rejected),
            Step::Act(Action::SilentDrop) => return Some(Passage::Dropped),
            Step::Done | Step::Act(Action::Accept) => return Some(Passage::Free),
            // The parser lets nothing else into these sets.
            Step::Act(_) => {}
        }
    }
}

/// The proxy whose back side takes a session: that of the first `use_backend` whose condition holds. Only
/// where there are such is the context made.
pub(crate) fn backend<'p, 'c>(
    plan: &'p Plan,
    front: &'p ProxyPlan,
    at: impl FnOnce() -> Context<'c>,
) -> Option<&'p ProxyPlan> {
    let default = || front.default_backend.map(|index| &plan.proxies[index]);
    if front.config.use_backend.is_empty() {
        return default();
    }
    let at = &at();
    for rule in &front.config.use_backend {
        if !rules::holds(rule.condition.as_ref(), front, at) {
            continue;
        }
        let named = match &rule.backend {
            BackendName::Fixed(link) => plan.linked(link),
            BackendName::Dynamic(format) => {
                let mut name = Vec::new();
                sample::render(format, at, &mut name);
                std::str::from_utf8(&name).ok().and_then(|name| plan.proxy(name))
            }
        };
        if let Some(proxy) =
            named.filter(|proxy| proxy.backend.is_some() && proxy.config.mode == front.config.mode)
        {
            return Some(proxy);
        }
    }
    default()
}

/// The server of the first `use-server` whose condition holds and that can be used.
pub(crate) fn server(back: &ProxyPlan, backend: &Backend, at: &Context<'_>) -> Option<Arc<Server>> {
    let named = back.config.use_server.iter().filter(|rule| rules::holds(rule.condition.as_ref(), back, at));
    let mut found = named.filter_map(|rule| backend.linked(&rule.server));
    found.find(|server| server.accepts_persistent() || back.config.persist)
}

/// The server that the first rule with a usable entry leads to.
pub(crate) fn stick_match(
    back: &ProxyPlan,
    at: &Context<'_>,
    backend: &Backend,
    persist: bool,
) -> Option<Arc<Server>> {
    let looking = back.stick_rules.iter().filter(|s| s.rule.kind != StickKind::StoreRequest);
    looking.filter(|s| rules::holds(s.rule.condition.as_ref(), back, at)).find_map(|s| {
        let stuck = with_key(&s.rule.expr, at, &s.table, |key| s.table.stuck(key, at.now))??;
        let server = backend.stuck_server(&stuck, s.table.server_key_is())?;
        (server.accepts_persistent() || persist).then_some(server)
    })
}

/// Stores the server that was reached, once per table.
pub(crate) fn stick_store(back: &ProxyPlan, at: &Context<'_>, server: &Server) {
    let stores =
        |s: &Stick| s.rule.kind != StickKind::Match && rules::holds(s.rule.condition.as_ref(), back, at);
    for (n, s) in back.stick_rules.iter().enumerate().filter(|(_, s)| stores(s)) {
        let same = |other: &Stick| Arc::ptr_eq(&other.table, &s.table) && stores(other);
        if back.stick_rules[..n].iter().any(same) {
            continue;
        }
        let stick = |text: &str| {
            with_key(&s.rule.expr, at, &s.table, |key| s.table.stick(key, server.id(), text, at.now));
        };
        match s.table.server_key_is() {
            _ if !s.table.stores(Data::SERVER_KEY) => stick(""),
            ServerKey::Name => stick(server.name()),
            ServerKey::Address => stick(&server.addr().to_string()),
        }
    }
}
