//! The rules of a request carried out: `tcp-request content`, `http-request`, `use_backend`.

use phalanx_config::{Action, Answer, Rule};
use phalanx_engine::counters::bump;
use phalanx_engine::end::{Cause, End, Phase};
use phalanx_engine::plan::ProxyPlan;
use phalanx_engine::rules::{self, Cursor, Step};
use phalanx_engine::sample::{Context, Message};

use super::Transaction;
use crate::http::Next;
use crate::report;
use crate::rules::{Around, inspect};

impl<'a> Transaction<'a> {
    /// The request as it is now.
    pub(super) fn message(&self) -> Message<'_> {
        (self.front.buf.bytes(), &self.scratch.request)
    }

    /// What the rules of `proxy` may look at.
    pub(super) fn context<'c>(&'c self, proxy: &'c ProxyPlan) -> Context<'c> {
        let backend = self.back.map(|back| back.1);
        let around = Around { session: self.session, plan: self.plan, front: self.proxy, proxy, backend };
        Context {
            request: Some(self.message()),
            memory: &self.memory,
            first: self.first,
            waited: self.waited,
            ..around.context(self.front, self.received)
        }
    }

    /// Carries out the rules that `proxy` has for requests; `Some` = that was the end of it.
    pub(super) async fn request_rules(&mut self, proxy: &'a ProxyPlan) -> Option<Next> {
        let set = &proxy.config.rules;
        if !set.tcp_content.is_empty() {
            self.waited = set.inspect_delay.is_none();
            if let Some(next) = self.carry_out(&set.tcp_content, proxy).await {
                return Some(next);
            }
        }
        self.waited = true;
        if set.http_request.is_empty() {
            return None;
        }
        self.carry_out(&set.http_request, proxy).await
    }

    async fn carry_out(&mut self, set: &'a [Rule], proxy: &'a ProxyPlan) -> Option<Next> {
        let mut cursor = Cursor::default();
        loop {
            match rules::next(set, &mut cursor, proxy, &self.context(proxy)) {
                Step::Done | Step::Act(Action::Accept) => return None,
                Step::Wait => {
                    inspect(self.front, proxy.config.rules.inspect_delay.unwrap_or_default()).await;
                    self.waited = true;
                }
                Step::Act(Action::Deny(answer)) => return Some(self.deny(answer).await),
                Step::Act(Action::Reject) => {
                    self.count_denied(End::new(Cause::Proxy, Phase::Request));
                    return Some(Next::Close);
                }
                // The parser lets nothing else into these sets.
                Step::Act(_) => {}
            }
        }
    }

    /// Refuses the request.
    async fn deny(&mut self, answer: &Answer) -> Next {
        self.count_denied(End::new(Cause::Proxy, Phase::Request));
        self.reply(answer.status).await
    }

    fn count_denied(&mut self, end: End) {
        self.end = end;
        for shard in report::shards(self.session, self.back.map(|back| back.1), None) {
            bump(&shard.dreq, 1);
        }
    }
}
