//! One request: decide where it goes, carry it there, bring the response back, count and log.

mod rules;

use std::future::Future;
use std::ops::RangeInclusive;
use std::sync::Arc;

use phalanx_config::{Balance, ConnectionMode, CookieMode, VarScope};
use phalanx_engine::backend::{self, Backend};
use phalanx_engine::balance;
use phalanx_engine::cookie::{self, Age, Answer};
use phalanx_engine::counters::bump;
use phalanx_engine::end::{Cause, End, Phase, RequestCookie, ResponseCookie};
use phalanx_engine::h1::{self, Body, Persistence, RequestFraming, ResponseFraming};
use phalanx_engine::log::{INFO, STATS, Timers};
use phalanx_engine::memory::Memory;
use phalanx_engine::plan::ProxyPlan;
use phalanx_engine::rules::Reply;
use phalanx_engine::sample::Context;
use phalanx_engine::state::sessions;
use phalanx_engine::time::Now;

use super::exchange::{Exchange, Limits, Stop, Upload};
use super::forward::Flow;
use super::message::{self, Scratch};
use super::{Next, Request, capture, reply};
use crate::buffer::{SIZE, Text};
use crate::connect::{Dispatch, Established, Towards, establish};
use crate::deadline::within;
use crate::front::Front;
use crate::pipes::{self, Conduit, Splicing};
use crate::pool::{Connection, Reuse};
use crate::report::{self, Report};
use crate::runtime;
use crate::session::Session;
use crate::stream::Stream;
use crate::tunnel::{self, Pipe};
use crate::worker::View;
use crate::{rules as session_rules, stats_page};

/// Lengths of bodies of which the next response on their connection is read in larger pieces from its
/// start on: head and body at once.
const BULK: RangeInclusive<u64> = 8 * 1024..=120 * 1024;

/// A request under way.
struct Transaction<'a> {
    session: &'a Session,
    plan: &'a View,
    proxy: &'a ProxyPlan,
    front: &'a mut Front,
    scratch: Box<Scratch>,
    framing: RequestFraming,
    began: Now,
    received: Now,
    first: bool,
    /// The request line, if it will be logged.
    line: Text,
    is_11: bool,
    method: Method,
    back: Option<(&'a ProxyPlan, &'a Arc<Backend>)>,
    dispatch: Dispatch,
    responded: Option<Now>,
    status: Option<u16>,
    end: End,
    request_cookie: RequestCookie,
    response_cookie: ResponseCookie,
    /// Dates of the cookie that was followed.
    dates: (Option<u64>, Option<u64>),
    bytes_in: u64,
    bytes_out: u64,
    /// In place of the server's name in the log.
    answered_by: Option<&'static str>,
    /// Not to be logged (`monitor-uri`).
    silent: bool,
    /// What rules track, and variables.
    memory: Memory,
    /// The time to wait for content is over.
    waited: bool,
    /// Level that it is logged at.
    log_level: u8,
    /// A rule closed the connection without an answer.
    unanswered: bool,
    /// A rule held it (`tarpit`).
    held: bool,
    /// What a rule answers in the place of the server's response.
    own_answer: Option<Reply>,
}

/// The final response, once its head is there.
struct Response {
    framing: ResponseFraming,
    /// The client connection may carry another request.
    keep: bool,
}

/// What later decisions need of the method, once the head has left the buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Get,
    Head,
    Post,
    Connect,
    /// May be repeated without harm (RFC 9110 section 9.2.2).
    Idempotent,
    Other,
}

impl Method {
    fn of(name: &[u8]) -> Method {
        match name {
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            b"POST" => Method::Post,
            b"CONNECT" => Method::Connect,
            b"PUT" | b"DELETE" | b"OPTIONS" | b"TRACE" => Method::Idempotent,
            _ => Method::Other,
        }
    }

    fn name(self) -> &'static [u8] {
        match self {
            Method::Head => b"HEAD",
            Method::Connect => b"CONNECT",
            _ => b"GET",
        }
    }
}

/// Serves one request whose head is at the start of the client's buffer.
#[allow(clippy::manual_async_fn, reason = "an async fn has room for its arguments twice")]
pub(crate) fn run<'a>(
    session: &'a Session,
    plan: &'a View,
    index: usize,
    front: &'a mut Front,
    request: Request,
) -> impl Future<Output = Next> + 'a {
    let head = &request.scratch.request;
    let (buf, start) = (front.buf.bytes(), &head.start);
    let mut line = Text::default();
    if !plan.proxies[index].config.logs.is_empty() {
        line = Text::take();
        // As it is sent on: with single spaces.
        for part in [start.first.of(buf), b" ", start.second.of(buf), b" ", start.third.of(buf)] {
            line.extend_from_slice(part);
        }
    }
    let mut transaction = Transaction {
        session,
        plan,
        proxy: &plan.proxies[index],
        is_11: head.is_11(),
        method: Method::of(head.method(front.buf.bytes())),
        front,
        scratch: request.scratch,
        framing: request.framing,
        began: request.began,
        received: request.received,
        first: request.first,
        line,
        back: None,
        dispatch: Dispatch { asked: request.received, ..Dispatch::default() },
        responded: None,
        status: None,
        end: End::NORMAL,
        request_cookie: RequestCookie::None,
        response_cookie: ResponseCookie::None,
        dates: (None, None),
        bytes_in: 0,
        bytes_out: 0,
        answered_by: None,
        silent: false,
        memory: Memory::default(),
        waited: true,
        log_level: INFO,
        unanswered: false,
        held: false,
        own_answer: None,
    };
    async move {
        let next = transaction.serve().await;
        transaction.scratch.give();
        next
    }
}

impl<'a> Transaction<'a> {
    async fn serve(&mut self) -> Next {
        let worker = self.session.worker.id;
        let process = self.session.worker.shared.state.process();
        self.session.frontend().counters().count_request(worker, self.received);
        process.counters().count_request(worker, self.received);
        for tracked in self.session.memory.all_tracked() {
            tracked.http_req(self.received);
        }
        if self.is_monitored() {
            self.silent = true;
            let next = self.reply(200).await;
            self.finish(None);
            return next;
        }
        if let Some(next) = self.request_rules(self.proxy).await {
            self.finish(None);
            return next;
        }
        if self.proxy.config.stats.is_some()
            && let Some(next) = self.statistics(self.proxy).await
        {
            self.finish(None);
            return next;
        }
        let back = session_rules::backend(self.plan, self.proxy, || self.context(self.proxy));
        self.back = back.and_then(|p| Some((p, p.backend.as_ref()?)));
        let stream = self.back.map(|(_, backend)| backend.enter());
        if let Some((plan, _)) = self.back
            && !std::ptr::eq(plan, self.proxy)
        {
            let mut answered = self.request_rules(plan).await;
            if answered.is_none() {
                answered = self.statistics(plan).await;
            }
            if let Some(next) = answered {
                self.finish(stream);
                return next;
            }
        }
        let next = match self.back {
            Some((plan, backend)) => self.forward(plan, backend).await,
            None => Err(Stop::End(End::new(Cause::ServerAbort, Phase::Connect), None)),
        };
        let next = match next {
            Ok(next) => next,
            Err(stop) => self.fail(stop).await,
        };
        self.finish(stream);
        next
    }

    /// Whether it asks for `monitor-uri`.
    fn is_monitored(&self) -> bool {
        let (buf, head) = self.message();
        let uri = self.proxy.config.monitor_uri.as_ref();
        uri.is_some_and(|uri| uri.as_bytes() == head.target(buf))
    }

    /// `stats uri`.
    async fn statistics(&mut self, proxy: &ProxyPlan) -> Option<Next> {
        let (buf, head) = self.message();
        let target = head.target(buf);
        let config = &self.proxy.config;
        let section = &proxy.config;
        let stats = section.stats.as_ref().filter(|stats| stats_page::matches(stats, target))?;
        let authorization = head.last(buf, b"authorization");
        let worker = &self.session.worker;
        let page =
            stats_page::respond(&worker.shared.state, stats, section, target, authorization, self.received);
        let keep = self.keeps(config.connection_mode) && self.whole();
        let mut text = Text::take();
        text.extend_from_slice(format!("HTTP/1.1 {} {}\r\n", page.status, page.reason).as_bytes());
        let length = ("content-length", page.body.len().to_string());
        for (name, value) in page.headers.iter().chain([&length]) {
            text.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        if let Some(value) = message::response_connection(&self.framing, self.is_11, true, keep) {
            text.extend_from_slice(format!("connection: {value}\r\n").as_bytes());
        }
        text.extend_from_slice(b"\r\n");
        if self.method != Method::Head {
            text.extend_from_slice(&page.body);
        }
        bump(&self.session.frontend().counters().shard(worker.id).intercepted, 1);
        self.status = Some(page.status);
        self.answered_by = Some(STATS);
        self.end = End::new(Cause::Local, Phase::Request);
        Some(self.send_local(text, keep).await)
    }

    /// Carries the request to a server and the response back.
    async fn forward(&mut self, plan: &'a ProxyPlan, backend: &'a Arc<Backend>) -> Result<Next, Stop> {
        let (session, worker) = (self.session, &*self.session.worker);
        let config = &*plan.config;
        let mode = message::mode(self.proxy.config.connection_mode, config.connection_mode);
        backend.counters().count_session(worker.id, self.received);
        backend.counters().count_request(worker.id, self.received);
        self.direct(plan, backend);
        let head = self.request_head(plan, mode);
        let base = self.scratch.request.len;
        let global = &self.plan.config.global;
        let ways = Splicing::of(global, &self.proxy.config, config);
        let mut up = Upload::new(head, Flow::new(self.framing.body), base, Conduit::new(ways.0, global));
        let mut reuse = Reuse::of(config.http_reuse, self.first, &session.entry);
        let owner = reuse.owner();
        loop {
            let entry = &session.entry;
            let first = up.first();
            let towards = Towards { worker, session: entry, backend, config, reuse, first };
            let mut established = establish(&towards, self.front, &mut self.dispatch)
                .await
                .map_err(|end| Stop::End(end, None))?;
            up.began(established.sent);
            if !up.is_rewound() {
                self.reached(plan, backend);
            }
            let result = self.exchange(plan, mode, &mut up, &mut established).await;
            if established.reusable
                && let Some(server) = &self.dispatch.server
            {
                let connection = Connection { owner, ..established.connection };
                worker.pool.put(server, connection, runtime::instant());
            }
            match result {
                Err(Stop::Retry) if matches!(self.method, Method::Post | Method::Other | Method::Connect) => {
                    // It may have been acted upon. As HAProxy: the client, whose connection was kept
                    // as well, sees it closed and decides.
                    return Err(Stop::End(End::new(Cause::ServerAbort, Phase::Headers), Some(0)));
                }
                Err(Stop::Retry) => {
                    reuse = Reuse::No;
                    up.rewind(Flow::new(self.framing.body));
                }
                result => return result,
            }
        }
    }

    /// Finds out where a cookie or a stick entry leads, and what is hashed.
    fn direct(&mut self, plan: &ProxyPlan, backend: &Arc<Backend>) {
        let config = &plan.config;
        if !config.use_server.is_empty() {
            let server = session_rules::server(plan, backend, &self.context(plan));
            self.dispatch.directed = server;
        }
        let scratch = &self.scratch;
        let (buf, head) = (scratch.request_bytes(self.front.buf.bytes()), &scratch.request);
        if let Some(cookie) = &config.cookie {
            let mut seen = RequestCookie::Absent;
            for presented in cookie::presented(cookie, buf, head, self.received.unix_us / 1_000_000) {
                if seen == RequestCookie::Absent {
                    seen = RequestCookie::Invalid;
                }
                let Some(server) = backend.server_by_cookie(presented.key) else { continue };
                seen = match presented.age {
                    Age::Fresh if server.accepts_persistent() => RequestCookie::Valid,
                    Age::Fresh => RequestCookie::Down,
                    Age::Expired => RequestCookie::Expired,
                    Age::Old => RequestCookie::Old,
                };
                if presented.age == Age::Fresh && (seen == RequestCookie::Valid || config.persist) {
                    self.dates = (presented.last, presented.first);
                    self.dispatch.directed = Some(server);
                    break;
                }
            }
            if cookie.mode != CookieMode::Passive {
                self.request_cookie = seen;
            }
        }
        if self.dispatch.directed.is_none() && !plan.stick_rules.is_empty() {
            let at = self.context(plan);
            let directed = session_rules::stick_match(plan, &at, backend, config.persist);
            self.dispatch.directed = directed;
        }
        if let Some(balance @ (Balance::Hdr { .. } | Balance::Uri { .. } | Balance::UrlParam(_))) =
            &config.balance
        {
            let first = |name: &str| {
                let named = head.fields.iter().find(|f| f.name.of(buf) == name.as_bytes());
                named.map(|f| f.value.of(buf))
            };
            self.dispatch.key = balance::key::of(balance, head.target(buf), first).map(<[u8]>::to_vec);
        }
    }

    /// The request's head as the server gets it.
    fn request_head(&mut self, plan: &ProxyPlan, mode: ConnectionMode) -> Text {
        let Scratch { request: head, edits, request_text, .. } = &mut *self.scratch;
        let buf = if request_text.is_empty() { self.front.buf.bytes() } else { request_text };
        edits.clear();
        if let Some(cookie) = &plan.config.cookie {
            cookie::clean(cookie, buf, head, edits);
        }
        let option = plan.config.forwardfor.as_ref().or(self.proxy.config.forwardfor.as_ref());
        if let Some(option) = option {
            message::forward_for(option, buf, head, self.session.src().ip(), edits);
        }
        message::edit_request(buf, head, &self.framing, mode, edits);
        let mut text = Text::take();
        h1::write_request(buf, head, edits, &mut text);
        text
    }

    /// The server is reached: note, count and stick.
    fn reached(&mut self, plan: &ProxyPlan, backend: &Arc<Backend>) {
        let Some(server) = &self.dispatch.server else { return };
        let worker = &self.session.worker;
        let now = self.dispatch.connected.unwrap_or(self.received);
        server.counters().count_session(worker.id, now);
        server.counters().count_request(worker.id, now);
        let entry = &self.session.entry;
        entry.note(Some(backend), Some(server), sessions::Phase::Response);
        if !plan.stick_rules.is_empty() && !server.options().non_stick {
            let at = Context { now, ..self.context(plan) };
            session_rules::stick_store(plan, &at, server);
        }
        if let Some(directed) = &self.dispatch.directed
            && !Arc::ptr_eq(directed, server)
            && self.request_cookie == RequestCookie::Valid
        {
            // It was led there, but the server did not take it.
            self.request_cookie = RequestCookie::Down;
        }
    }

    /// Sends the request over a connection and brings the response back.
    async fn exchange(
        &mut self,
        plan: &'a ProxyPlan,
        mode: ConnectionMode,
        up: &mut Upload,
        established: &mut Established,
    ) -> Result<Next, Stop> {
        let limits =
            Limits { client: self.proxy.config.timeouts.client, server: plan.config.timeouts.server };
        let global = &self.plan.config.global;
        let mut exchange = Exchange::new(
            self.session,
            &established.connection.stream,
            up,
            limits,
            plan.config.abortonclose,
            established.reused,
            self.plan.config.global.bufsize.unwrap_or(SIZE).max(1024),
            established.connection.bulk,
            Conduit::new(Splicing::of(global, &self.proxy.config, &plan.config).1, global),
        );
        let result = match self.response(plan, &mut exchange).await {
            Ok(response) => {
                self.log_early(exchange.out.len());
                Ok((response, exchange.body(self.front).await))
            }
            Err(stop) => Err(stop),
        };
        pipes::count(self.session, exchange.conduit.bytes);
        self.bytes_in += exchange.bytes_up;
        self.bytes_out += exchange.bytes_down;
        established.connection.bulk = exchange.bulk;
        let (reply, refused) = (exchange.reply, exchange.refused);
        match result {
            Err(stop) => {
                if let Some(at) = refused {
                    capture::response(self.session, self.dispatch.slot.as_ref(), at, reply.bytes());
                }
                if !matches!(stop, Stop::End(End { cause: Cause::Proxy, .. }, _)) {
                    give_up(&established.connection.stream);
                }
                Err(stop)
            }
            // The response has begun: all that is left is to close.
            Ok((_, Err(Stop::End(end, _)))) => {
                self.end = end;
                give_up(&established.connection.stream);
                Ok(Next::Close)
            }
            Ok((_, Err(Stop::Retry))) => Err(Stop::Retry),
            Ok((Response { framing, .. }, Ok(()))) if framing.body == Body::Tunnel => {
                self.front.buf.consume(up.used());
                // Boxed: a tunnel is rare, and every request would have room for it.
                Box::pin(self.tunnel(plan, &established.connection.stream, reply)).await;
                Ok(Next::Close)
            }
            Ok((response, Ok(()))) => {
                let complete = up.done && !up.broken;
                self.front.buf.consume(up.used());
                established.reusable = response.framing.persistence == Persistence::KeepAlive
                    && response.framing.body != Body::UntilClose
                    && mode == ConnectionMode::KeepAlive
                    && complete
                    && reply.is_empty();
                self.front.abandoned |= !complete;
                // After a body some send a line end too many.
                self.front.said_last =
                    self.framing.persistence == Persistence::Close && self.framing.body == Body::None;
                Ok(if response.keep && complete { Next::Request } else { Next::Close })
            }
        }
    }

    /// Waits for the head of the final response and prepares what the client gets of it. Interim
    /// ones are passed on.
    async fn response(&mut self, plan: &'a ProxyPlan, exchange: &mut Exchange<'_>) -> Result<Response, Stop> {
        loop {
            self.scratch.response.clear();
            let len = exchange.head(self.front, &mut self.scratch.response).await?;
            let buf = exchange.reply.bytes();
            let head = &self.scratch.response;
            let framing = match h1::response_framing(buf, head, self.method.name(), self.framing.upgrade) {
                Ok(framing) => framing,
                Err(e) => {
                    exchange.refused = Some(e.at);
                    head.restore_names(exchange.reply.bytes_mut());
                    return Err(Stop::End(End::new(Cause::Proxy, Phase::Headers), None));
                }
            };
            let status = head.start.status;
            if status < 200 && status != 101 {
                self.scratch.edits.clear();
                if self.is_11 {
                    let mut out = Text::take();
                    h1::write_response(buf, head, &self.scratch.edits, &mut out);
                    exchange.out = out;
                }
                exchange.reply.consume(len);
                exchange.down = Flow::Length(0);
                exchange.body(self.front).await?;
                continue;
            }
            self.memory.end(VarScope::Req);
            if self.has_response_rules(plan) {
                self.scratch.response_text.clear();
                self.response_rules(plan, buf)?;
            }
            self.responded = Some(self.session.worker.now());
            self.status = Some(self.scratch.response.start.status);
            // The backend's own mode is about the server's connection.
            let keep = self.keeps(self.proxy.config.connection_mode)
                && !matches!(framing.body, Body::UntilClose | Body::Tunnel);
            exchange.out = self.response_head(plan, buf, &framing, keep);
            exchange.reply.consume(len);
            exchange.down = Flow::new(framing.body);
            exchange.closes = !keep && framing.body != Body::Tunnel;
            exchange.bulk = matches!(framing.body, Body::Length(n) if BULK.contains(&n));
            return Ok(Response { framing, keep });
        }
    }

    /// The response's head as the client gets it.
    fn response_head(&mut self, plan: &ProxyPlan, buf: &[u8], framing: &ResponseFraming, keep: bool) -> Text {
        let Scratch { response: head, edits, response_text, .. } = &mut *self.scratch;
        let buf = if response_text.is_empty() { buf } else { response_text };
        edits.clear();
        if framing.drop_length {
            edits.drop_named(buf, head, b"content-length");
        }
        if let Some(cookie) = &plan.config.cookie {
            let config = self.dispatch.server.as_ref().map(|s| s.config());
            let with = Answer {
                key: config.as_ref().and_then(|c| c.options.cookie.as_deref()),
                direct: self.request_cookie == RequestCookie::Valid,
                last: self.dates.0,
                first: self.dates.1,
                post: self.method == Method::Post,
                now: self.received.unix_us / 1_000_000,
            };
            self.response_cookie = cookie::answer(cookie, buf, head, &with, edits);
        }
        if framing.body != Body::Tunnel {
            edits.drop_named(buf, head, b"connection");
            let connection = message::response_connection(&self.framing, self.is_11, head.is_11(), keep);
            if let Some(value) = connection {
                edits.add(b"connection", &[value.as_bytes()]);
            }
        }
        let mut out = Text::take();
        h1::write_response(buf, head, edits, &mut out);
        self.after_response(&mut out);
        out
    }

    /// `option logasap`: the line comes with the head of the response, of `bytes`.
    fn log_early(&mut self, bytes: usize) {
        if !self.proxy.config.logasap || self.silent {
            return;
        }
        self.silent = true;
        let now = self.responded.unwrap_or(self.received);
        let timers = timers(self.began, self.received, self.responded, &self.dispatch, now);
        self.log(timers, bytes as u64, true);
    }

    /// Forwards both ways after an upgrade or CONNECT.
    async fn tunnel(&mut self, plan: &ProxyPlan, server: &Stream, reply: crate::buffer::Buffer) {
        let ahead = std::mem::replace(&mut self.front.buf, crate::buffer::Buffer::new(SIZE));
        let global = &self.plan.config.global;
        let ways = Splicing::of(global, &self.proxy.config, &plan.config);
        let mut up = Pipe::new(ahead, self.front.eof, Conduit::new(ways.0, global));
        let mut down = Pipe::new(reply, false, Conduit::new(ways.1, global));
        let limits = tunnel::Limits::new(&self.proxy.config.timeouts, &plan.config.timeouts);
        let entry = &self.session.entry;
        entry.note(self.back.map(|b| b.1), self.dispatch.server.as_ref(), sessions::Phase::Tunnel);
        if self.front.stream.watch().is_err() {
            self.end = End::new(Cause::Resource, Phase::Data);
            return;
        }
        let Front { stream, deadline, .. } = &mut *self.front;
        self.end = tunnel::run(stream, server, &mut up, &mut down, limits, deadline, entry).await;
        pipes::count(self.session, down.spliced());
        self.bytes_in += up.bytes;
        self.bytes_out += down.bytes;
    }

    /// Tells the client that its request failed, if it can still be told.
    async fn fail(&mut self, stop: Stop) -> Next {
        let Stop::End(end, status) = stop else { return Next::Close };
        self.end = end;
        if let Some(answer) = self.own_answer.take() {
            return self.send_reply(answer).await;
        }
        let worker = self.session.worker.id;
        if end.phase == Phase::Headers && self.response_cookie == ResponseCookie::None {
            let mode = self.back.and_then(|b| b.0.config.cookie.as_ref()).map(|c| c.mode);
            if mode.is_some_and(|m| m != CookieMode::Passive) {
                self.response_cookie = ResponseCookie::Absent;
            }
        }
        let status = status.or(end.status());
        match status {
            Some(0) | None => Next::Close,
            // Nobody may be there to be told; HAProxy tells and logs it where a server was reached.
            Some(_) if end.cause == Cause::ClientAbort && end.phase != Phase::Headers => Next::Close,
            Some(status) => {
                if status == 400 {
                    bump(&self.session.frontend().counters().shard(worker).ereq, 1);
                }
                self.reply(status).await
            }
        }
    }

    /// Sends one of the proxy's own pages.
    async fn reply(&mut self, status: u16) -> Next {
        self.status = Some(status);
        let keep = self.whole() && !self.front.eof && self.keeps(self.proxy.config.connection_mode);
        let mut text = Text::take();
        let with_body = self.method != Method::Head;
        let proxies = [self.back.map(|back| back.0), Some(self.proxy)].into_iter().flatten();
        let mut files = proxies.filter_map(|proxy| reply::own_page(&proxy.config, status));
        if let Some(file) = files.next() {
            let keep = keep && file.has_length;
            let connection = message::response_connection(&self.framing, self.is_11, file.is_11, keep);
            reply::write_file(file, with_body, connection, &mut text);
            return self.send_local(text, keep).await;
        }
        let connection = message::response_connection(&self.framing, self.is_11, true, keep);
        reply::write(status, with_body, connection, &mut text);
        self.send_local(text, keep).await
    }

    async fn send_local(&mut self, mut text: Text, keep: bool) -> Next {
        self.after_response(&mut text);
        let limit = self.proxy.config.timeouts.client.unwrap_or(reply::PATIENCE);
        let written = within(limit, self.front.stream.send_all(&text)).await;
        if !matches!(written, Some(Ok(()))) {
            return Next::Close;
        }
        self.bytes_out += text.len() as u64;
        if keep {
            self.front.buf.consume(self.scratch.request.len + self.body_length());
            return Next::Request;
        }
        self.front.abandoned |= self.framing.body != Body::None;
        Next::Close
    }

    /// Length of a body of known length.
    fn body_length(&self) -> usize {
        match self.framing.body {
            Body::Length(n) => usize::try_from(n).unwrap_or(usize::MAX),
            _ => 0,
        }
    }

    /// Whether the request lies in the buffer with its whole body, so that what follows is the next one.
    fn whole(&self) -> bool {
        let end = self.scratch.request.len.saturating_add(self.body_length());
        matches!(self.framing.body, Body::None | Body::Length(_)) && self.front.buf.len() >= end
    }

    fn keeps(&self, mode: ConnectionMode) -> bool {
        keeps(self.session, self.plan, &self.framing, mode)
    }

    /// Writes the log line; `asap` before the end.
    fn log(&self, timers: Timers, bytes: u64, asap: bool) {
        report::log(&Report {
            session: self.session,
            client: self.session.src(),
            destination: self.session.dst(),
            config: &self.proxy.config,
            backend: self.back.map(|b| b.1),
            dispatch: &self.dispatch,
            unix_us: self.began.unix_us,
            timers,
            status: self.status,
            bytes,
            termination: self.end.http_code(self.request_cookie, self.response_cookie),
            request: &self.line,
            server: self.answered_by,
            asap,
            level: self.log_level,
        });
    }

    /// Counts the request's outcome in what is tracked.
    fn count_tracked(&self, received: u64, now: Now) {
        let tracked = || self.memory.all_tracked().chain(self.session.memory.all_tracked());
        if tracked().next().is_none() {
            return;
        }
        let status = self.status.unwrap_or(0);
        let refused = self.end.cause == Cause::Proxy && self.end.phase == Phase::Request;
        let answered = self.responded.is_some();
        let slow = status == 408 && !answered;
        let invalid = self.end.cause == Cause::Proxy && self.end.phase == Phase::Headers;
        for tracked in tracked() {
            if (matches!(status, 400..=499) || refused) && !slow {
                tracked.http_err(now);
            }
            // Only what a server did: not being able to reach one is not its failure.
            if invalid || answered && matches!(status, 500..=599) && !matches!(status, 501 | 505) {
                tracked.http_fail(now);
            }
        }
        report::track_bytes(tracked(), (received, self.bytes_out), now);
    }

    /// Counts, gives the place back, logs.
    fn finish(&mut self, stream: Option<backend::Stream>) {
        self.dispatch.slot = None;
        let now = self.session.worker.now();
        let mut timers = timers(self.began, self.received, self.responded, &self.dispatch, now);
        if self.held || self.unanswered {
            // As HAProxy: the time in the tarpit is that of a queue, and of the request nothing is said.
            timers.request = None;
            timers.queue = self.held.then_some(timers.total);
        }
        let (session, dispatch) = (self.session, &self.dispatch);
        let backend = self.back.map(|b| b.1);
        // A request that reached no server was received all the same.
        let received = self.bytes_in.max(self.scratch.request.len as u64);
        for shard in report::shards(session, backend, dispatch.server.as_ref()) {
            bump(&shard.bin, received);
            bump(&shard.bout, self.bytes_out);
            match self.status {
                Some(status) => shard.response(status),
                None if self.unanswered => {}
                None => bump(&shard.hrsp_other, 1),
            }
            shard.ttime.add(u64::from(timers.total));
            timers.queue.into_iter().for_each(|ms| shard.qtime.add(u64::from(ms)));
            timers.connect.into_iter().for_each(|ms| shard.ctime.add(u64::from(ms)));
            timers.response.into_iter().for_each(|ms| shard.rtime.add(u64::from(ms)));
            report::count_end(shard, self.end);
        }
        self.count_tracked(received, now);
        let config = &self.proxy.config;
        let normal = self.end == End::NORMAL && dispatch.retries == 0 && !dispatch.redispatched;
        let fine = normal && self.status.is_some_and(|s| s < 500);
        if !(config.logs.is_empty() || self.silent || config.dontlog_normal && fine) {
            self.log(timers, self.bytes_out, false);
        }
        drop(stream);
    }
}

/// The timers as they stand at `now`.
fn timers(began: Now, received: Now, responded: Option<Now>, dispatch: &Dispatch, now: Now) -> Timers {
    let ms = report::since;
    Timers {
        request: Some(ms(began)(received)),
        queue: dispatch.queued.map(ms(received)),
        connect: dispatch.connected.map(ms(dispatch.queued.unwrap_or(received))),
        response: responded.map(ms(dispatch.connected.unwrap_or(received))),
        total: ms(began)(now),
    }
}

/// Makes the close of a server connection in the middle of an exchange a reset, as HAProxy does: the
/// server sees that nobody waits any more, and no port is left in TIME_WAIT.
fn give_up(server: &Stream) {
    server.reset_on_close();
}

/// Whether the client connection may carry another request after this one.
fn keeps(session: &Session, plan: &View, framing: &RequestFraming, mode: ConnectionMode) -> bool {
    let state = &session.worker.shared.state;
    framing.persistence == Persistence::KeepAlive
        && mode != ConnectionMode::Close
        && !state.process().is_stopping()
        && session.worker.still_has(session.frontend(), plan)
}
