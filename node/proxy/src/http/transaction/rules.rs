//! The rules of a request and its response carried out (`phalanx_engine::rules` decides).
//!
//! Order, as in HAProxy: `tcp-request content`, `http-request` and `redirect` of the frontend, then of the
//! backend; `http-response` of the backend, then of the frontend; `http-after-response` on whatever
//! the client gets.

use std::future::poll_fn;
use std::task::Poll;

use phalanx_config::{Action, Rule};
use phalanx_engine::counters::bump;
use phalanx_engine::end::{Cause, End, Phase};
use phalanx_engine::h1::{self, Edits, Head, Parsed, Rewrite};
use phalanx_engine::plan::ProxyPlan;
use phalanx_engine::rules::{self, Cursor, Reply, Step};
use phalanx_engine::sample::{Context, Message};

use super::Transaction;
use crate::buffer::Text;
use crate::http::exchange::Stop;
use crate::http::{Next, message, reply};
use crate::report;
use crate::rules::{Around, inspect};

impl<'a> Transaction<'a> {
    /// The request as it is now.
    pub(super) fn message(&self) -> Message<'_> {
        (self.scratch.request_bytes(self.front.buf.bytes()), &self.scratch.request)
    }

    /// What the rules of `proxy` may look at.
    pub(super) fn context<'c>(&'c self, proxy: &'c ProxyPlan) -> Context<'c> {
        Context { request: Some(self.message()), ..self.surroundings(proxy) }
    }

    fn surroundings<'c>(&'c self, proxy: &'c ProxyPlan) -> Context<'c> {
        let backend = self.back.map(|back| back.1);
        let around = Around { session: self.session, plan: self.plan, front: self.proxy, proxy, backend };
        let mut at = around.context(self.received);
        at.memory = &self.memory;
        at.first = self.first;
        at.waited = self.waited;
        if let Some(world) = &mut at.world {
            world.server = self.dispatch.server.as_ref();
        }
        at
    }

    /// Carries out the rules that `proxy` has for requests; `Some` = that was the end of it.
    pub(super) async fn request_rules(&mut self, proxy: &'a ProxyPlan) -> Option<Next> {
        let set = &proxy.config.rules;
        if !set.tcp_content.is_empty() {
            self.waited = set.inspect_delay.is_none();
            if let Some(next) = self.carry_out(&set.tcp_content, proxy).await {
                return Some(next);
            }
            self.waited = true;
        }
        for rules in [&set.http_request, &set.redirect] {
            if !rules.is_empty()
                && let Some(next) = self.carry_out(rules, proxy).await
            {
                return Some(next);
            }
        }
        None
    }

    async fn carry_out(&mut self, set: &'a [Rule], proxy: &'a ProxyPlan) -> Option<Next> {
        let mut cursor = Cursor::default();
        loop {
            let action = match self.walk(set, &mut cursor, proxy) {
                Step::Done | Step::Act(Action::Accept) => return None,
                Step::Wait => {
                    inspect(self.front, proxy.config.rules.inspect_delay.unwrap_or_default()).await;
                    self.waited = true;
                    continue;
                }
                Step::Act(action) => action,
            };
            match action {
                Action::Deny(answer) => {
                    let reply = rules::answer(answer, &self.context(proxy));
                    self.count_denied(End::new(Cause::Proxy, Phase::Request));
                    return Some(match answer.page {
                        true => self.reply(answer.status).await,
                        false => self.send_reply(reply).await,
                    });
                }
                Action::Tarpit(answer) => {
                    let reply = rules::answer(answer, &self.context(proxy));
                    self.count_denied(End::new(Cause::Proxy, Phase::Tarpit));
                    // Boxed: rare.
                    return Some(match Box::pin(self.tarpit()).await {
                        true if answer.page => self.reply(answer.status).await,
                        true => self.send_reply(reply).await,
                        false => Next::Close,
                    });
                }
                Action::Return(answer) => {
                    let reply = rules::answer(answer, &self.context(proxy));
                    return Some(self.answer_locally(reply).await);
                }
                Action::Redirect(redirect) => {
                    if let Some(reply) = rules::redirect(redirect, &self.context(proxy)) {
                        return Some(self.answer_locally(reply).await);
                    }
                }
                Action::Reject => {
                    self.count_denied(End::new(Cause::Proxy, Phase::Request));
                    self.unanswered = true;
                    return Some(Next::Close);
                }
                Action::SilentDrop => {
                    self.count_denied(End::new(Cause::Proxy, Phase::Request));
                    self.unanswered = true;
                    crate::rules::leave_silently(self.front);
                    return Some(Next::Close);
                }
                // Those that change the request are carried out on the way.
                _ => {}
            }
        }
    }

    /// Walks over a set, changing the request and how it is logged, up to what may end the walk.
    fn walk(&mut self, set: &'a [Rule], cursor: &mut Cursor, proxy: &ProxyPlan) -> Step<'a> {
        use Action::{Accept, Deny, Redirect, Reject, Return, SilentDrop, Tarpit};
        loop {
            let at = self.context(proxy);
            let step = rules::next(set, cursor, proxy, &at);
            let action = match step {
                Step::Act(Action::SetLogLevel(level)) => {
                    self.set_log_level(*level);
                    continue;
                }
                Step::Act(Accept | Deny(_) | Tarpit(_) | Return(_) | Redirect(_) | Reject | SilentDrop)
                | Step::Done
                | Step::Wait => return step,
                Step::Act(action) => action,
            };
            let mut room = Text::take();
            if let Some(edit) = rules::prepare(action, &at, &mut room) {
                let (scratch, buf) = (&mut *self.scratch, self.front.buf.bytes());
                edit.apply(&mut Rewrite::new(buf, &mut scratch.request, &mut scratch.request_text));
            }
        }
    }

    fn set_log_level(&mut self, level: Option<u8>) {
        match level {
            Some(level) => self.log_level = level,
            None => self.silent = true,
        }
    }

    /// Answers in the server's place.
    async fn answer_locally(&mut self, reply: Reply) -> Next {
        self.end = End::new(Cause::Local, Phase::Request);
        let worker = self.session.worker.id;
        bump(&self.session.frontend().counters().shard(worker).intercepted, 1);
        self.send_reply(reply).await
    }

    /// Holds the client for a while; whether it is still there.
    async fn tarpit(&mut self) -> bool {
        let timeouts = &self.proxy.config.timeouts;
        let back = self.back.map(|back| &back.0.config.timeouts);
        let limit = timeouts.tarpit.or(timeouts.connect).or(back.and_then(|t| t.tarpit.or(t.connect)));
        self.front.deadline.set(limit);
        let front = &mut *self.front;
        let stays = poll_fn(|cx| match front.poll_gone(cx) {
            Poll::Ready(_) => Poll::Ready(false),
            Poll::Pending => front.deadline.poll(cx).map(|()| true),
        });
        let stays = stays.await;
        self.held = true;
        stays
    }

    fn count_denied(&mut self, end: End) {
        self.end = end;
        for shard in report::shards(self.session, self.back.map(|back| back.1), None) {
            bump(&shard.dreq, 1);
        }
    }

    /// Carries out `http-response` of the backend and the frontend on the head of a response in `buf`;
    /// the changed head is in the scratch memory.
    ///
    /// # Errors
    /// A rule answers in its place: the answer is kept for [`Transaction::fail`].
    pub(super) fn response_rules(&mut self, plan: &'a ProxyPlan, buf: &[u8]) -> Result<(), Stop> {
        let front = (!std::ptr::eq(plan, self.proxy)).then_some(self.proxy);
        for proxy in [Some(plan), front].into_iter().flatten() {
            let set = &proxy.config.rules.http_response;
            let mut cursor = Cursor::default();
            while !set.is_empty() {
                let message = (self.scratch.response_bytes(buf), &self.scratch.response);
                let at = Context { response: Some(message), ..self.surroundings(proxy) };
                let (cause, answer) = match rules::next(set, &mut cursor, proxy, &at) {
                    Step::Done | Step::Wait | Step::Act(Action::Accept) => break,
                    Step::Act(Action::SetLogLevel(level)) => {
                        self.set_log_level(*level);
                        continue;
                    }
                    Step::Act(Action::Deny(answer)) => (Cause::Proxy, answer),
                    Step::Act(Action::Return(answer)) => (Cause::Local, answer),
                    Step::Act(action) => {
                        let mut room = Text::take();
                        if let Some(edit) = rules::prepare(action, &at, &mut room) {
                            let scratch = &mut *self.scratch;
                            edit.apply(&mut Rewrite::new(
                                buf,
                                &mut scratch.response,
                                &mut scratch.response_text,
                            ));
                        }
                        continue;
                    }
                };
                let status = answer.status;
                if !answer.page {
                    self.own_answer = Some(rules::answer(answer, &at));
                }
                if cause == Cause::Proxy {
                    let server = self.dispatch.server.as_ref();
                    for shard in report::shards(self.session, self.back.map(|back| back.1), server) {
                        bump(&shard.dresp, 1);
                    }
                }
                return Err(Stop::End(End::new(cause, Phase::Headers), Some(status)));
            }
        }
        Ok(())
    }

    /// Whether the rules of either proxy look at responses of servers.
    pub(super) fn has_response_rules(&self, plan: &ProxyPlan) -> bool {
        [plan, self.proxy].iter().any(|p| !p.config.rules.http_response.is_empty())
    }

    /// Carries out `http-after-response` on a finished head, which may have its body behind it.
    pub(super) fn after_response(&self, text: &mut Text) {
        let back = self.back.map(|back| back.0).filter(|back| !std::ptr::eq(*back, self.proxy));
        let proxies = || [back, Some(self.proxy)].into_iter().flatten();
        if proxies().all(|proxy| proxy.config.rules.http_after_response.is_empty()) {
            return;
        }
        let (mut head, mut changed) = (Head::default(), Vec::new());
        let Ok(Parsed::Complete(length)) = h1::response(text, &mut head) else { return };
        // It is the connection's, and comes last.
        let connection = head.last(text, b"connection").map(<[u8]>::to_vec);
        let mut rewrite = Rewrite::new(text, &mut head, &mut changed);
        rewrite.remove(|name| name == b"connection");
        for proxy in proxies() {
            let set = &proxy.config.rules.http_after_response;
            let mut cursor = Cursor::default();
            loop {
                let at = Context { response: Some((&changed, &head)), ..self.surroundings(proxy) };
                let Step::Act(action) = rules::next(set, &mut cursor, proxy, &at) else { break };
                if *action == Action::Accept {
                    break;
                }
                let mut room = Text::take();
                if let Some(edit) = rules::prepare(action, &at, &mut room) {
                    edit.apply(&mut Rewrite::new(text, &mut head, &mut changed));
                }
            }
        }
        if let Some(value) = connection {
            Rewrite::new(text, &mut head, &mut changed).add(b"connection", &value);
        }
        let mut out = Text::take();
        h1::write_response(&changed, &head, &Edits::default(), &mut out);
        out.extend_from_slice(text.get(length..).unwrap_or(&[]));
        *text = out;
    }

    /// Sends an answer of a rule.
    pub(super) async fn send_reply(&mut self, answer: Reply) -> Next {
        self.status = Some(answer.status);
        let keep = self.whole() && !self.front.eof && self.keeps(self.proxy.config.connection_mode);
        let mut text = Text::take();
        let connection = message::response_connection(&self.framing, self.is_11, true, keep);
        let with_body = self.method != super::Method::Head;
        reply::write_answer(&answer, with_body, connection, &mut text);
        self.send_local(text, keep).await
    }
}
