//! Drives the parse: file after file, line after line, words to keywords to a [`Draft`].
//!
//! Owns the position and the list of diagnostics. A faulty line is reported and left out, and
//! reading goes on, so that one run shows every error. The draft becomes a [`crate::Config`] in
//! `finish`.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use crate::condition;
use crate::diagnostic::{Diagnostic, Severity};
use crate::draft::{ClusterDraft, Draft, Placed, ProxyDraft, Settings};
use crate::expr::{self, Maps};
use crate::format;
use crate::keyword::{self, Arity, Keyword};
use crate::keywords::rules;
use crate::line::{Args, Fault, Polarity};
use crate::model::{Consul, Expr, Format, Global, PatternUse, Peers, Piece, Pos, ProxyKind, Resolvers};
use crate::pattern::{self, Columns, FileUse, Inline, Method, Output};
use crate::words::{self, Word};
use crate::{Env, Outcome, Source, known, section};

/// Reads configuration files, in order, into a checked configuration.
///
/// Everything wrong is reported, not only the first error; with an alert there is no configuration.
pub fn parse(sources: &[Source], env: &dyn Env) -> Outcome {
    let mut parser = Parser::new(env);
    parser.files = sources.iter().map(|source| source.name.clone()).collect();
    for (index, source) in sources.iter().enumerate() {
        if parser.alert_count >= MAX_DIAGNOSTICS {
            break;
        }
        parser.read_file(index as u32, source);
    }
    parser.finish()
}

/// Which section a line belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// Before the first section of a file.
    Nowhere,
    /// In a section whose head was refused: its lines are passed over.
    Refused,
    Global,
    /// Index into [`Draft::defaults`].
    Defaults(usize),
    /// Index into [`Draft::proxies`].
    Proxy(usize),
    /// Index into [`Draft::clusters`].
    Cluster(usize),
    /// The last of [`Draft::resolvers`].
    Resolvers,
    /// The last of [`Draft::consuls`].
    Consul,
    /// The last of [`Draft::peers`].
    Peers,
}

/// One level of `.if`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Branch {
    /// Lines count.
    Taken,
    /// Lines do not count, a later branch may.
    NotYet,
    /// Lines do not count, nor do later branches.
    Done,
}

/// The state of a parse.
pub(crate) struct Parser<'a> {
    pub(crate) env: &'a dyn Env,
    pub(crate) draft: Draft,
    pub(crate) at: At,
    pub(crate) files: Vec<String>,
    pub(crate) diagnostics: Vec<Diagnostic>,
    pos: Pos,
    alert_count: usize,
    remark_count: usize,
    /// The line being read, for excerpts.
    line: Vec<u8>,
    /// Levels of `.if`, with the line that opened each and whether `.else` was seen.
    branches: Vec<(Branch, Pos, bool)>,
    /// What `setenv` and its like changed: `None` is removed.
    pub(crate) overlay: HashMap<String, Option<String>>,
    /// `resetenv`: variables of the environment that stay visible.
    pub(crate) only_env: Option<Vec<String>>,
    /// Names of the sections whose heads were refused.
    pub(crate) refused_heads: HashSet<String>,
}

/// So many errors, and so many other remarks, are made about one configuration: nobody reads more,
/// and the input may be anything.
const MAX_DIAGNOSTICS: usize = 1_000;

/// Longest message and excerpt in bytes: a word may be as long as a file.
const MAX_TEXT: usize = 1_000;

/// Deepest nesting of `.if`, as in HAProxy.
const MAX_BRANCHES: usize = 16;

impl<'a> Parser<'a> {
    pub(crate) fn new(env: &'a dyn Env) -> Parser<'a> {
        Parser {
            env,
            draft: Draft::default(),
            at: At::Nowhere,
            files: Vec::new(),
            diagnostics: Vec::new(),
            pos: Pos::default(),
            alert_count: 0,
            remark_count: 0,
            line: Vec::new(),
            branches: Vec::new(),
            overlay: HashMap::new(),
            only_env: None,
            refused_heads: HashSet::new(),
        }
    }

    /// Where the parser stands.
    pub(crate) fn pos(&self) -> Pos {
        self.pos
    }

    fn read_file(&mut self, index: u32, source: &Source) {
        // A section does not go on in the next file.
        self.at = At::Nowhere;
        let mut lines = source.text.split(|&b| b == b'\n').enumerate().peekable();
        while let Some((number, line)) = lines.next() {
            let last = lines.peek().is_none();
            if last && line.is_empty() {
                break;
            }
            self.pos = Pos { file: index, line: number as u32 + 1 };
            self.line = line.to_vec();
            if last {
                let at = line.len();
                let message = "missing LF on last line, file might have been truncated";
                self.alert(Fault { at: Some(at), message: message.into(), ..Fault::default() });
            }
            self.read_line();
            if self.alert_count >= MAX_DIAGNOSTICS {
                self.branches.clear();
                return;
            }
        }
        for (_, pos, _) in std::mem::take(&mut self.branches) {
            self.alert_at(pos, "unterminated '.if'".to_owned(), Some("'.endif' is missing".to_owned()));
        }
    }

    fn read_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        // The environment may be asked many times by one line: the closure only borrows.
        let variables = RefCell::new(&mut *self);
        let cut = words::split(&line, &|name| variables.borrow().variable(name));
        self.line = line;
        let skipping = self.branches.iter().any(|(branch, ..)| *branch != Branch::Taken);
        let mut words = match cut {
            Ok(words) => words,
            // What is left out need not be well-formed.
            Err(_) if skipping => return,
            Err(fault) => {
                let message = format!("{} at position {}", fault.message, fault.at + 1);
                return self.alert(Fault { at: Some(fault.at), message, ..Fault::default() });
            }
        };
        let Some(first) = words.first().filter(|word| !word.text.is_empty()) else { return };
        if first.text.starts_with('.') {
            if let Err(fault) = self.directive(&words, skipping) {
                self.alert(fault);
            }
            return;
        }
        if skipping {
            return;
        }
        // An empty argument ends the list, so that `server … "${OPTIONS}"` works without options.
        if let Some(end) = words.iter().position(|word| word.text.is_empty()) {
            if words[end + 1..].iter().any(|word| !word.text.is_empty()) {
                let message =
                    format!("argument number {end} is empty and marks the end of the argument list");
                self.warn(Fault::about(&words[end], message).hint("subsequent arguments are ignored"));
            }
            words.truncate(end);
        }
        self.statement(&words);
    }

    /// Value of a variable, the parser's own included.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        match name {
            ".FILE" => self.files.get(self.pos.file as usize).cloned(),
            ".LINE" => Some(self.pos.line.to_string()),
            ".SECTION" => Some(match self.at {
                At::Nowhere | At::Refused => String::new(),
                At::Global => "global".to_owned(),
                At::Defaults(i) if self.draft.defaults[i].name.is_empty() => "defaults".to_owned(),
                At::Defaults(i) => self.draft.defaults[i].name.clone(),
                At::Proxy(i) => self.draft.proxies[i].name.clone(),
                At::Cluster(i) => self.draft.clusters[i].name.clone(),
                At::Resolvers => self.draft.resolvers.last().map_or_else(String::new, |r| r.name.clone()),
                At::Consul => self.draft.consuls.last().map_or_else(String::new, |c| c.name.clone()),
                At::Peers => self.draft.peers.last().map_or_else(String::new, |p| p.name.clone()),
            }),
            "HAPROXY_BRANCH" => Some(condition::COMPATIBLE_WITH.to_owned()),
            _ => match self.overlay.get(name) {
                Some(changed) => changed.clone(),
                None if self.only_env.as_ref().is_some_and(|kept| !kept.iter().any(|k| k == name)) => None,
                None => self.env.var(name),
            },
        }
    }

    /// `.if` and its like (manual section 2.4).
    fn directive(&mut self, words: &[Word], skipping: bool) -> Result<(), Fault> {
        let name = &words[0];
        let rest: Vec<&str> = words[1..].iter().map(|word| word.text.as_str()).collect();
        let text = rest.join(" ");
        let condition = |parser: &Parser<'_>| -> Result<bool, Fault> {
            let seen = |name: &str| parser.variable(name).is_some();
            condition::evaluate(&text, &seen).map_err(|message| {
                let at = words.get(1).map_or(name.at, |word| word.at);
                let message = format!("'{}': {message}", name.text);
                Fault { at: Some(at), word: Some(text.clone()), message, hint: None }
            })
        };
        match name.text.as_str() {
            ".if" => {
                if self.branches.len() == MAX_BRANCHES {
                    let message = format!("too many nested '.if' (at most {MAX_BRANCHES})");
                    return Err(Fault::about(name, message));
                }
                // A condition in a skipped block may use what is not there: it is not looked at.
                let branch = if skipping { Branch::Done } else { Branch::NotYet };
                self.branches.push((branch, self.pos, false));
                if !skipping && condition(self)? {
                    self.set_branch(Branch::Taken);
                }
            }
            ".elif" => match self.branches.last().copied() {
                None | Some((_, _, true)) => {
                    return Err(Fault::about(name, "lone '.elif' with no matching '.if'"));
                }
                Some((Branch::Taken | Branch::Done, ..)) => self.set_branch(Branch::Done),
                Some((Branch::NotYet, ..)) => {
                    if condition(self)? {
                        self.set_branch(Branch::Taken);
                    }
                }
            },
            ".else" => match self.branches.last_mut() {
                None | Some((_, _, true)) => {
                    return Err(Fault::about(name, "lone '.else' with no matching '.if'"));
                }
                Some((branch, _, else_seen)) => {
                    *else_seen = true;
                    *branch = if *branch == Branch::NotYet { Branch::Taken } else { Branch::Done };
                }
            },
            ".endif" => {
                if self.branches.pop().is_none() {
                    return Err(Fault::about(name, "lone '.endif' with no matching '.if'"));
                }
            }
            ".diag" | ".notice" | ".warning" | ".alert" if skipping => {}
            // Only shown in diagnostic mode, which there is none of here.
            ".diag" => {}
            ".notice" => self.report(Severity::Notice, Fault { message: text, ..Fault::default() }),
            ".warning" => self.report(Severity::Warning, Fault { message: text, ..Fault::default() }),
            ".alert" => return Err(Fault { message: text, ..Fault::default() }),
            other => {
                let message = format!("unknown directive '{other}'");
                let hint =
                    "expects '.if', '.elif', '.else', '.endif', '.diag', '.notice', '.warning' or '.alert'";
                return Err(Fault::about(name, message).hint(hint));
            }
        }
        Ok(())
    }

    fn set_branch(&mut self, branch: Branch) {
        if let Some(last) = self.branches.last_mut() {
            last.0 = branch;
        }
    }

    /// A line that counts: the head of a section, or a keyword in one.
    fn statement(&mut self, words: &[Word]) {
        if section::is_head(&words[0].text) {
            if let Err(fault) = section::open(self, words) {
                self.at = At::Refused;
                self.refused_heads.extend(words.get(1).map(|word| word.text.clone()));
                self.alert(fault);
            }
            return;
        }
        match self.at {
            At::Refused => {}
            At::Nowhere => {
                let message = format!("unknown keyword '{}' out of section", words[0].text);
                let fault = Fault::about(&words[0], message);
                self.alert(fault.hint(format!("a file begins with a section: {}", section::HEADS_TEXT)));
            }
            _ => {
                let before = self.alert_count;
                if let Err(fault) = self.keyword(words) {
                    self.alert(fault);
                }
                if self.alert_count > before {
                    self.note_refused(&words[0].text);
                }
            }
        }
    }

    fn note_refused(&mut self, word: &str) {
        let list = match self.at {
            At::Defaults(_) | At::Proxy(_) => &mut self.settings().refused,
            At::Cluster(_) => &mut self.cluster().refused,
            At::Nowhere | At::Refused | At::Global | At::Resolvers | At::Consul | At::Peers => return,
        };
        if !list.iter().any(|known| known == word) {
            list.push(word.to_owned());
        }
    }

    fn keyword(&mut self, words: &[Word]) -> Result<(), Fault> {
        let (polarity, words) = match words[0].text.as_str() {
            "no" => (Polarity::No, &words[1..]),
            "default" => (Polarity::Default, &words[1..]),
            _ => (Polarity::Set, words),
        };
        if words.is_empty() {
            let message =
                format!("'{}' expects a keyword", if polarity == Polarity::No { "no" } else { "default" });
            return Err(Fault { message, ..Fault::default() });
        }
        let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
        let Some((keyword, length)) = keyword::find(&texts, self.mask()) else {
            return Err(self.unknown(words));
        };
        let args = Args { name: keyword.name, polarity, own: &words[..length], words: &words[length..] };
        if keyword.sections & self.mask() == 0 {
            return self.misplaced(keyword, &args);
        }
        if polarity != Polarity::Set && !keyword.negatable {
            let message = format!("negation/default is not supported for '{}'", keyword.name);
            return Err(Fault::about(&words[0], message));
        }
        // The arguments of something switched off do not matter.
        if polarity == Polarity::Set {
            check_arity(keyword, &args)?;
        }
        (keyword.apply)(self, &args)
    }

    /// A keyword in a section that it cannot stand in.
    fn misplaced(&mut self, keyword: &Keyword, args: &Args<'_>) -> Result<(), Fault> {
        let mask = self.mask();
        let name = keyword.name;
        let word = &args.own[0];
        let belongs: Vec<String> = keyword.sections().map(|s| format!("'{s}'")).collect();
        let belongs = format!("it belongs to {}", belongs.join(", "));
        if mask & (keyword::GLOBAL | keyword::CLUSTER | keyword::RESOLVERS | keyword::CONSUL | keyword::PEERS)
            != 0
            || keyword.sections & (keyword::FRONTEND | keyword::BACKEND) == 0
        {
            let message = format!("unknown keyword '{name}' in '{}' section", self.section_name());
            return Err(Fault::about(word, message).hint(belongs));
        }
        let At::Proxy(index) = self.at else {
            return Err(
                Fault::about(word, format!("'{name}' not allowed in 'defaults' section")).hint(belongs)
            );
        };
        let proxy = &self.draft.proxies[index];
        let lacks = if proxy.kind == ProxyKind::Frontend { "backend" } else { "frontend" };
        let because = format!("because {} '{}' has no {lacks} capability", proxy.kind_name(), proxy.name);
        // As in HAProxy: a server line that goes nowhere is an error, a setting that has no effect is not.
        if matches!(name, "server" | "default-server" | "server-template") {
            return Err(Fault::about(word, format!("'{name}' not allowed {because}")));
        }
        let mut fault = Fault::about(word, format!("'{name}' ignored {because}"));
        if name == "maxconn" {
            fault = fault.hint("maybe you want 'fullconn' instead ?");
        }
        self.warn(fault);
        Ok(())
    }

    /// A line whose keyword is in no table.
    fn unknown(&self, words: &[Word]) -> Fault {
        let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
        let (first, mask) = (texts[0], self.mask());
        // A quoted word with a space in it is not two words.
        let plain: Vec<&str> = texts.iter().copied().take_while(|text| !text.contains(' ')).collect();
        let two = plain.iter().take(2).copied().collect::<Vec<_>>().join(" ");
        if mask & (keyword::GLOBAL | keyword::PROXY) != 0
            && let Some((gone, instead)) = known::removed(&two).or_else(|| known::removed(first))
        {
            let message = format!("the '{gone}' directive is not supported anymore since HAProxy removed it");
            return Fault::about(&words[gone.split(' ').count() - 1], message).hint(instead);
        }
        let names = match self.at {
            At::Global => Some(known::GLOBAL),
            At::Cluster(_) | At::Resolvers | At::Consul | At::Peers => None,
            _ => Some(known::PROXY),
        };
        let family: Vec<&str> = (keyword::family(first).iter())
            .filter(|keyword| keyword.sections & mask != 0)
            .filter_map(|keyword| keyword.name.strip_prefix(first)?.strip_prefix(' '))
            .collect();
        if let Some(name) = names.and_then(|names| names.longest(plain.iter().copied()))
            && (family.is_empty() || name != first)
            // `tcp-request content` is the name of a rule set, some of whose actions are built.
            && !family.iter().any(|rest| format!("{first} {rest}").starts_with(&format!("{name} ")))
        {
            let length = name.split(' ').count();
            return Fault::about(&words[length - 1], known::unsupported(&format!("'{name}'")));
        }
        if family.is_empty() {
            let message = format!("unknown keyword '{first}' in '{}' section", self.section_name());
            let fault = Fault::about(&words[0], message);
            let all = keyword::keywords().filter(|keyword| keyword.sections & mask != 0);
            let all = all.map(|keyword| keyword.name.split(' ').next().unwrap_or_default());
            let others = names.into_iter().flat_map(|names| names.iter()).filter(|name| !name.contains(' '));
            return match known::nearest(first, all.chain(others)) {
                Some(near) => fault.hint(known::did_you_mean(near)),
                None => fault,
            };
        }
        self.unknown_in_family(words, &family, names)
    }

    /// `timeout foo`, `option foo`, `tcp-request content foo`: the first words are known.
    fn unknown_in_family(&self, words: &[Word], family: &[&str], names: Option<known::Names>) -> Fault {
        let first = words[0].text.as_str();
        let mut seconds: Vec<&str> = family.iter().filter_map(|rest| rest.split(' ').next()).collect();
        seconds.dedup();
        let Some(second) = words.get(1) else {
            return Fault::about(&words[0], format!("'{first}' expects {}", one_of(&seconds)));
        };
        // Rule sets have a third word: the action.
        let actions: Vec<&str> = family
            .iter()
            .filter_map(|rest| rest.strip_prefix(second.text.as_str())?.strip_prefix(' '))
            .collect();
        let (what, got, candidates) = match (actions.is_empty(), words.get(2)) {
            (true, _) => (first.to_owned(), second, seconds),
            (false, None) => {
                let message = format!("'{first} {}' expects {}", second.text, one_of(&actions));
                return Fault::about(second, message);
            }
            (false, Some(third)) => (format!("{first} {}", second.text), third, actions),
        };
        let action = got.text.split('(').next().unwrap_or_default();
        if !matches!(first, "option" | "timeout" | "stats") && known::ACTIONS.has(action) {
            return Fault::about(got, known::unsupported(&format!("'{what} {action}'")));
        }
        let fault = match first {
            "option" => Fault::about(got, format!("unknown option '{}'", got.text)),
            _ => Fault::about(got, format!("'{what}' expects {} (got '{}')", one_of(&candidates), got.text)),
        };
        let others = names.into_iter().flat_map(|names| names.iter());
        let others = others.filter_map(|name| name.strip_prefix(first)?.strip_prefix(' '));
        match known::nearest(&got.text, candidates.iter().copied().chain(others)) {
            Some(near) => fault.hint(known::did_you_mean(near)),
            None => fault,
        }
    }

    /// Reads a sample expression.
    pub(crate) fn expr(&mut self, text: &str) -> Result<Expr, String> {
        let expr = expr::parse(text, self)?;
        self.note_references(&expr);
        Ok(expr)
    }

    /// Reads a log-format string.
    pub(crate) fn format(&mut self, text: &str) -> Result<Format, String> {
        let format = format::parse(text, self)?;
        for piece in &format.pieces {
            if let Piece::Expr { expr, .. } = piece {
                self.note_references(expr);
            }
        }
        Ok(format)
    }

    /// What an expression names is looked for at the end, when all of it is known.
    fn note_references(&mut self, expr: &Expr) {
        let pos = self.pos;
        if !rules::references(expr).is_empty() && matches!(self.at, At::Proxy(_)) {
            self.proxy().referring.push(Placed { value: expr.clone(), pos });
        }
    }

    /// The set of a file of patterns.
    pub(crate) fn pattern_file(&mut self, file: &FileUse<'_>) -> Result<PatternUse, String> {
        let name = self.files.get(self.pos.file as usize).map_or("", String::as_str);
        self.draft.patterns.file(self.env, file, pattern::At { file: name, line: self.pos.line })
    }

    /// The set of the patterns of an ACL itself.
    pub(crate) fn inline_patterns(&mut self, inline: &Inline<'_>) -> Result<PatternUse, String> {
        let name = self.files.get(self.pos.file as usize).map_or("", String::as_str);
        self.draft.patterns.inline(self.env, inline, pattern::At { file: name, line: self.pos.line })
    }

    /// Bit of the section that the parser is in.
    pub(crate) fn mask(&self) -> keyword::Sections {
        match self.at {
            At::Nowhere | At::Refused => 0,
            At::Global => keyword::GLOBAL,
            At::Defaults(_) => keyword::DEFAULTS,
            At::Cluster(_) => keyword::CLUSTER,
            At::Resolvers => keyword::RESOLVERS,
            At::Consul => keyword::CONSUL,
            At::Peers => keyword::PEERS,
            At::Proxy(index) => match self.draft.proxies[index].kind {
                ProxyKind::Frontend => keyword::FRONTEND,
                ProxyKind::Listen => keyword::LISTEN,
                ProxyKind::Backend => keyword::BACKEND,
            },
        }
    }

    /// Keyword of the section that the parser is in.
    pub(crate) fn section_name(&self) -> &'static str {
        keyword::section_names(self.mask()).next().unwrap_or("no")
    }

    /// The `global` section.
    pub(crate) fn global(&mut self) -> &mut Global {
        &mut self.draft.global
    }

    /// The settings of the proxy or `defaults` section that the parser is in.
    pub(crate) fn settings(&mut self) -> &mut Settings {
        match self.at {
            At::Defaults(index) => &mut self.draft.defaults[index].settings,
            At::Proxy(index) => &mut self.draft.proxies[index].settings,
            _ => unreachable!("only keywords of proxy sections ask for it, and masks keep them there"),
        }
    }

    /// The proxy that the parser is in.
    pub(crate) fn proxy(&mut self) -> &mut ProxyDraft {
        match self.at {
            At::Proxy(index) => &mut self.draft.proxies[index],
            _ => unreachable!("only keywords of proxy sections ask for it, and masks keep them there"),
        }
    }

    /// The cluster that the parser is in.
    pub(crate) fn cluster(&mut self) -> &mut ClusterDraft {
        match self.at {
            At::Cluster(index) => &mut self.draft.clusters[index],
            _ => unreachable!("only keywords of the cluster section ask for it, and masks keep them there"),
        }
    }

    /// The `resolvers` section that the parser is in.
    pub(crate) fn resolvers(&mut self) -> &mut Resolvers {
        self.draft.resolvers.last_mut().expect("only keywords of the section ask, and its head made one")
    }

    /// The `consul` section that the parser is in.
    pub(crate) fn consul(&mut self) -> &mut Consul {
        self.draft.consuls.last_mut().expect("only keywords of the section ask, and its head made one")
    }

    /// The `peers` section that the parser is in.
    pub(crate) fn peers(&mut self) -> &mut Peers {
        self.draft.peers.last_mut().expect("only keywords of the section ask, and its head made one")
    }

    /// Reports an error about the current line.
    pub(crate) fn alert(&mut self, fault: Fault) {
        self.report(Severity::Alert, fault);
    }

    /// Reports something questionable about the current line.
    pub(crate) fn warn(&mut self, fault: Fault) {
        self.report(Severity::Warning, fault);
    }

    /// Reports about the current line.
    pub(crate) fn report(&mut self, severity: Severity, fault: Fault) {
        let at = fault.at.map(|at| at.min(self.line.len()));
        let column = at.map_or(0, |at| String::from_utf8_lossy(&self.line[..at]).chars().count() as u32 + 1);
        let excerpt = at.filter(|_| self.line.len() <= MAX_TEXT);
        let excerpt = excerpt.map(|_| String::from_utf8_lossy(&self.line).trim_end().to_owned());
        self.push(Diagnostic {
            severity,
            file: self.files.get(self.pos.file as usize).cloned().unwrap_or_default(),
            line: self.pos.line,
            column,
            word: fault.word.map(clipped),
            message: clipped(fault.message),
            hint: fault.hint,
            excerpt,
        });
    }

    fn push(&mut self, diagnostic: Diagnostic) {
        let count = match diagnostic.severity {
            Severity::Alert => &mut self.alert_count,
            Severity::Warning | Severity::Notice => &mut self.remark_count,
        };
        *count += 1;
        if *count <= MAX_DIAGNOSTICS {
            self.diagnostics.push(diagnostic);
        }
    }

    /// Tells, at the end, that there was more to say than is said.
    pub(crate) fn say_what_was_left_out(&mut self) {
        let (alerts, remarks) = (self.alert_count, self.remark_count);
        for (count, severity, what) in
            [(alerts, Severity::Alert, "errors"), (remarks, Severity::Notice, "warnings")]
        {
            if count >= MAX_DIAGNOSTICS {
                self.diagnostics.push(Diagnostic {
                    severity,
                    file: String::new(),
                    line: 0,
                    column: 0,
                    word: None,
                    message: format!("too many {what}, only the first {MAX_DIAGNOSTICS} are shown"),
                    hint: None,
                    excerpt: None,
                });
            }
        }
    }

    /// Reports an error about a line read before.
    pub(crate) fn alert_at(&mut self, pos: Pos, message: String, hint: Option<String>) {
        self.report_at(Severity::Alert, pos, message, hint);
    }

    /// Reports about a line read before; about none when `pos` is the default.
    pub(crate) fn report_at(&mut self, severity: Severity, pos: Pos, message: String, hint: Option<String>) {
        self.push(Diagnostic {
            severity,
            file: self.files.get(pos.file as usize).cloned().unwrap_or_default(),
            line: pos.line,
            column: 0,
            word: None,
            message,
            hint,
            excerpt: None,
        });
    }

    /// `file:line`, for messages that name another place.
    pub(crate) fn place(&self, pos: Pos) -> String {
        format!("{}:{}", self.files.get(pos.file as usize).map_or("", String::as_str), pos.line)
    }
}

impl Maps for Parser<'_> {
    fn map(&mut self, file: &str, method: Method, output: Output) -> Result<PatternUse, String> {
        let columns = Columns::Two;
        let output = Some(output);
        let file = FileUse { name: file, columns, method, ignore_case: false, output, resolve: true };
        self.pattern_file(&file)
    }
}

fn clipped(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    text
}

/// `'a', 'b' or 'c'`.
pub(crate) fn one_of(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
    match quoted.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
    }
}

fn check_arity(keyword: &Keyword, args: &Args<'_>) -> Result<(), Fault> {
    let (low, high) = match keyword.arity {
        Arity::Exact(n) => (n, n),
        Arity::Between(low, high) => (low, high),
        Arity::AtLeast(low) => (low, usize::MAX),
    };
    if args.words.len() < low {
        return Err(args.named(usize::MAX, format!("expects {} as argument", keyword.usage)));
    }
    if let Some(extra) = args.words.get(high) {
        let message = format!("'{}' cannot handle unexpected argument '{}'", keyword.name, extra.text);
        let fault = Fault::about(extra, message);
        return Err(match keyword.usage {
            "" => fault,
            usage => fault.hint(format!("expects {usage}")),
        });
    }
    Ok(())
}
