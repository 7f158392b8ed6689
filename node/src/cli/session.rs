//! One connection to the Runtime API: lines in, answers out.
//!
//! Non-interactive by default, as scripts and plain `nc` want it: one line, every answer ends with an
//! empty line, then the connection closes. Bounded in every direction: length of a line, size of a
//! payload, time without progress.

use std::sync::Arc;
use std::time::Duration;

use phalanx_config::Level;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::keyword::{self, Answer, Effect, Mode, Severity, SeverityOutput};
use super::remote::{self, Elsewhere, Pieces, Place};
use super::socket::Stream;
use super::{Context, words};

/// Longest line: HAProxy's default buffer.
const MAX_LINE: usize = 16_384;
/// Longest payload, as `tune.cli.max-payload-size`'s default.
const MAX_PAYLOAD: usize = 128 * 1024;
/// `stats timeout`'s default.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to notice that the connection is closed.
const LINGER: Duration = Duration::from_secs(1);

/// One connection.
pub(super) struct Session<'c> {
    stream: Box<dyn Stream>,
    ctx: &'c Arc<Context>,
    /// Received and not handled yet.
    buffer: Vec<u8>,
    eof: bool,
    mode: Mode,
    timed: bool,
    level: Level,
    timeout: Duration,
    severity: SeverityOutput,
    /// Where commands without a prefix run.
    at: Place,
}

/// Why a connection ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It is done, or the client is.
    Done,
    /// A line or payload is too long; the client is told.
    TooLong(&'static str),
    /// The client did nothing for too long, or the socket failed.
    Gone,
}

impl<'c> Session<'c> {
    pub(super) fn new(stream: Box<dyn Stream>, ctx: &'c Arc<Context>, level: Level) -> Session<'c> {
        let timeout = ctx.state.plan().config.global.stats_timeout.unwrap_or(TIMEOUT);
        Session {
            stream,
            ctx,
            buffer: Vec::new(),
            eof: false,
            mode: Mode::Once,
            timed: false,
            level,
            timeout,
            severity: SeverityOutput::None,
            at: Place::Here,
        }
    }

    /// Serves the connection to its end.
    pub(super) async fn run(mut self) {
        let end = self.serve().await;
        if let Err(End::TooLong(what)) = &end {
            let _ = self.write(format!("{what}\n\n").as_bytes()).await;
        }
        if end == Err(End::Gone) {
            return;
        }
        // Closing with input unread would reset the connection and could destroy the answer on its
        // way. So the end is announced, and what still comes is read for a moment.
        let _ = self.stream.shutdown().await;
        let _ = timeout(LINGER, async {
            let mut rest = [0; 1024];
            while !self.eof && self.stream.read(&mut rest).await.is_ok_and(|n| n > 0) {}
        })
        .await;
    }

    async fn serve(&mut self) -> Result<(), End> {
        loop {
            let line = self.line(MAX_LINE, "Line too long.").await?;
            if self.mode == Mode::Once && line.trim().is_empty() && self.has_line() {
                // A here-document of commands begins with an empty line.
                continue;
            }
            let (line, payload) = match words::payload(&line) {
                Some((head, end)) => {
                    let (head, end) = (head.to_owned(), end.to_owned());
                    let limit = keyword::payload_limit(&head).unwrap_or(MAX_PAYLOAD);
                    let payload = self.payload(&end, limit).await?;
                    (head, Some(payload))
                }
                None => (line, None),
            };
            self.commands(&line, payload.as_deref()).await?;
            if self.mode == Mode::Once && !self.has_line() {
                return Ok(());
            }
        }
    }

    async fn commands(&mut self, line: &str, payload: Option<&str>) -> Result<(), End> {
        let commands = words::split(line);
        if commands.is_empty() {
            let answer = match self.mode {
                Mode::Once => Answer::error(keyword::unknown(&[], self.level)),
                _ => Answer::done(),
            };
            return self.answer(answer).await;
        }
        let last = commands.len() - 1;
        for (index, words) in commands.iter().enumerate() {
            let payload = payload.filter(|_| index == last);
            let (place, words) = remote::place(words);
            if words.is_empty() && matches!(place, Place::Node(_) | Place::All) {
                let answer = match remote::switched(self.ctx, place) {
                    Ok(at) => {
                        self.at = at;
                        Answer::done()
                    }
                    Err(why) => Answer::error(why),
                };
                self.answer(answer).await?;
                continue;
            }
            let here = place != Place::Here || keyword::concerns_connection(words);
            let place = if here { place } else { self.at.clone() };
            let elsewhere = Elsewhere { ctx: self.ctx, words, payload, level: self.level };
            let answer = match place {
                Place::Here => remote::here(self.ctx, words, payload, self.level).await,
                Place::Local => remote::local(self.ctx, words, payload, self.level).await,
                Place::Node(name) => {
                    let pieces = elsewhere.on_node(&name).await;
                    self.pass_on(pieces).await?;
                    continue;
                }
                Place::All => {
                    let pieces = elsewhere.on_all();
                    self.pass_on(pieces).await?;
                    continue;
                }
            };
            let effect = answer.effect;
            match effect {
                Some(Effect::Quit) => return Err(End::Done),
                Some(Effect::Mode(mode)) => self.mode = self.next_mode(mode),
                Some(Effect::Timed) => {
                    self.timed = !self.timed;
                    self.mode = Mode::Prompt;
                }
                Some(Effect::Level(level)) => self.level = level,
                Some(Effect::Timeout(timeout)) => self.timeout = timeout,
                Some(Effect::Severity(output)) => self.severity = output,
                None => {}
            }
            self.answer(answer).await?;
        }
        Ok(())
    }

    fn next_mode(&self, wanted: Mode) -> Mode {
        match (wanted, self.mode) {
            (Mode::Toggle, Mode::Prompt) => Mode::Once,
            (Mode::Toggle, _) => Mode::Prompt,
            (mode, _) => mode,
        }
    }

    /// Writes an answer, the empty line that ends it, and the prompt.
    async fn answer(&mut self, answer: Answer) -> Result<(), End> {
        let mut out = String::new();
        if let Some(severity) = answer.severity.filter(|_| !answer.text.is_empty()) {
            out.push_str(prefix(self.severity, severity));
        }
        out.push_str(&answer.text);
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        out.push('\n');
        self.prompt(&mut out);
        self.write(out.as_bytes()).await
    }

    /// As [`Session::answer`], as the pieces come.
    async fn pass_on(&mut self, mut pieces: Pieces) -> Result<(), End> {
        let severity = pieces.severity;
        let mut last = None;
        while let Some(piece) = pieces.next().await {
            if let (None, Some(severity), Some(_)) = (last, severity, piece.last()) {
                self.write(prefix(self.severity, severity).as_bytes()).await?;
            }
            last = piece.last().copied().or(last);
            self.write(&piece).await?;
        }
        let mut out = String::new();
        if last.is_some_and(|last| last != b'\n') {
            out.push('\n');
        }
        out.push('\n');
        self.prompt(&mut out);
        self.write(out.as_bytes()).await
    }

    /// In prompt mode, what invites to type.
    fn prompt(&self, out: &mut String) {
        if self.mode == Mode::Prompt {
            if self.timed {
                let up = self.ctx.now().mono.saturating_sub(self.ctx.state.process().started.mono).as_secs();
                let (days, rest) = (up / 86_400, up % 86_400);
                let (hours, minutes) = (rest / 3600, rest / 60 % 60);
                out.push_str(&format!("[{days}:{hours:02}:{minutes:02}:{:02}]", up % 60));
            }
            match &self.at {
                Place::Node(name) => out.push_str(name),
                Place::All => out.push_str("all"),
                Place::Here | Place::Local => {}
            }
            out.push_str("> ");
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), End> {
        // In pieces, so that the time limit is one on standing still and not on the whole dump.
        for piece in bytes.chunks(64 * 1024) {
            match timeout(self.timeout, self.stream.write_all(piece)).await {
                Ok(Ok(())) => {}
                _ => return Err(End::Gone),
            }
        }
        match timeout(self.timeout, self.stream.flush()).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(End::Gone),
        }
    }

    /// The lines up to the one that ends the payload, each with its line feed.
    async fn payload(&mut self, end: &str, limit: usize) -> Result<String, End> {
        let mut payload = String::new();
        loop {
            if self.mode == Mode::Prompt {
                self.write(b"+ ").await?;
            }
            let line = self.line(limit, "Payload too long.").await?;
            if line == end {
                return Ok(payload);
            }
            payload.push_str(&line);
            payload.push('\n');
            if payload.len() > limit {
                return Err(End::TooLong("Payload too long."));
            }
        }
    }

    fn has_line(&self) -> bool {
        self.buffer.contains(&b'\n')
    }

    /// The next line without its end. What is left when the client half-closes is a line, too.
    async fn line(&mut self, max: usize, too_long: &'static str) -> Result<String, End> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffer[searched..].iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=searched + at).collect();
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            searched = self.buffer.len();
            if searched > max {
                return Err(End::TooLong(too_long));
            }
            if self.eof {
                let rest = std::mem::take(&mut self.buffer);
                let rest = String::from_utf8_lossy(&rest).into_owned();
                return if rest.trim().is_empty() { Err(End::Done) } else { Ok(rest) };
            }
            match timeout(self.timeout, self.stream.read_buf(&mut self.buffer)).await {
                Ok(Ok(0)) => self.eof = true,
                Ok(Ok(_)) => {}
                _ => return Err(End::Gone),
            }
        }
    }
}

fn prefix(output: SeverityOutput, severity: Severity) -> &'static str {
    match (output, severity) {
        (SeverityOutput::None, _) => "",
        (SeverityOutput::Number, Severity::Error) => "[3]: ",
        (SeverityOutput::Number, Severity::Notice) => "[5]: ",
        (SeverityOutput::Number, Severity::Info) => "[6]: ",
        (SeverityOutput::Text, Severity::Error) => "[err]: ",
        (SeverityOutput::Text, Severity::Notice) => "[notice]: ",
        (SeverityOutput::Text, Severity::Info) => "[info]: ",
    }
}
