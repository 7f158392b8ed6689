//! `server` and `default-server` lines and their options (manual section 5.2), and the same words as
//! `add server` of the Runtime API takes them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::Env;
use crate::draft::ServerDraft;
use crate::keyword::{Arity, BACK, BACKEND, Keyword, LISTEN};
use crate::keywords::discovery;
use crate::known;
use crate::line::{Args, Fault};
use crate::model::{Family, Pos, Server, ServerOptions};
use crate::options::{self, OptionKeyword};
use crate::parser::Parser;
use crate::value::{self, PortRule, Unit};
use crate::words::Word;

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[
    Keyword::new(
        "server",
        "<name> and <addr>[:<port>]",
        LISTEN | BACKEND,
        Arity::AtLeast(0),
        "A server of the backend.",
        server,
    ),
    Keyword::new(
        "server-template",
        "<prefix> and <num | range> and <fqdn>[:<port>]",
        LISTEN | BACKEND,
        Arity::AtLeast(0),
        "Servers that share a host name, an SRV label or a service of Consul.",
        server_template,
    ),
    Keyword::new(
        "default-server",
        "<options>",
        BACK,
        Arity::AtLeast(0),
        "Options for the servers that follow.",
        default_server,
    ),
];

/// What the options of a server fill in.
pub(crate) struct Fields {
    options: ServerOptions,
    id: Option<u32>,
}

fn server(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    let [name, address, rest @ ..] = args.words else {
        return Err(args.named(usize::MAX, "expects <name> and <addr>[:<port>] as arguments"));
    };
    let subject = format!("'server {}/{}'", parser.proxy().name, name.text);
    declare(parser, &Line { subject, name, names: vec![name.text.clone()], address, rest });
    Ok(())
}

fn server_template(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    let [prefix, numbers, address, rest @ ..] = args.words else {
        return Err(args.named(usize::MAX, "expects <prefix> <nb | range> <addr>[:<port>] as arguments"));
    };
    let Some((low, high)) = discovery::range(&numbers.text) else {
        let message = format!("Wrong server-template number or range arg '{}'", numbers.text);
        let most = discovery::MAX_TEMPLATE;
        let hint = format!("expects <num> or <low>-<high>, for at most {most} servers");
        return Err(Fault::about(numbers, message).hint(hint));
    };
    if let Some(id) = rest.iter().find(|word| word.text == "id") {
        return Err(Fault::about(id, "'server-template' does not take 'id': no two servers may share one"));
    }
    let subject = format!("'server-template {}/{}'", parser.proxy().name, prefix.text);
    let names = (low..=high).map(|number| format!("{}{number}", prefix.text)).collect();
    declare(parser, &Line { subject, name: prefix, names, address, rest });
    Ok(())
}

/// A line that declares servers.
struct Line<'a> {
    /// How messages begin.
    subject: String,
    /// The word for the name.
    name: &'a Word,
    names: Vec<String>,
    address: &'a Word,
    rest: &'a [Word],
}

/// Declares the servers of a line, or says what is wrong with it.
fn declare(parser: &mut Parser<'_>, line: &Line<'_>) {
    let Line { subject, name, names, address, rest } = line;
    let mut faults = Vec::new();
    if let Some(c) = value::invalid_name_char(&name.text) {
        let message = format!("character '{c}' is not permitted in server name '{}'", name.text);
        faults.push(Fault::about(name, message).hint("letters, digits, '-', '_', '.' and ':' are"));
    }
    let declared: HashMap<&str, Pos> =
        parser.proxy().servers.iter().map(|s| (s.server.name.as_str(), s.server.pos)).collect();
    let twice = names.iter().find_map(|name| Some((name, *declared.get(name.as_str())?)));
    if let Some((twice, pos)) = twice.map(|(name, pos)| (name.clone(), pos)) {
        let place = parser.place(pos);
        let message = format!("{subject} : a server named '{twice}' is declared already at {place}");
        faults.push(Fault::about(name, message));
    }
    let env = parser.env;
    let options = parser.settings().default_server.clone();
    let mut fields = Fields { options, id: None };
    faults.extend(options::apply_all(OPTIONS, rest, &mut fields, env, subject, known::SERVER));
    if let Some(missing) = missing_port(&name.text, &fields.options).filter(|_| faults.is_empty()) {
        faults.push(Fault::about(name, format!("{subject} : {missing}")).hint("'agent-port <port>' sets it"));
    }
    let resolve = |host: &str| env.resolve(host);
    let target = discovery::target(&address.text, &fields.options, &resolve)
        .map_err(|err| faults.insert(0, Fault::about(address, format!("{subject} : {err}"))));
    if let Some(id) = fields.id
        && let Some(other) = parser.proxy().servers.iter().find(|s| s.id == Some(id)).cloned()
    {
        let at = rest.iter().position(|word| word.text == "id").map_or(*name, |i| &rest[i + 1]);
        let place = parser.place(other.server.pos);
        let message = format!(
            "{subject} : 'id' : custom id {id} already used at {place} ('server {}')",
            other.server.name
        );
        faults.push(Fault::about(at, message));
    }
    let clean = faults.is_empty();
    faults.into_iter().for_each(|fault| parser.alert(fault));
    let (true, Ok(target)) = (clean, target) else { return };
    if let Some(warning) = target.warning {
        parser.warn(Fault::about(address, format!("{subject} : {warning}")));
    }
    let pos = parser.pos();
    for name in names {
        let server = Server {
            name: name.clone(),
            id: 0,
            pos,
            host: target.host.clone(),
            addr: target.addr,
            discovered: target.discovered.clone(),
            options: fields.options.clone(),
        };
        parser.proxy().servers.push(ServerDraft { server, id: fields.id });
    }
}

fn default_server(parser: &mut Parser<'_>, args: &Args<'_>) -> Result<(), Fault> {
    let options = parser.settings().default_server.clone();
    let mut fields = Fields { options, id: None };
    if let Some(id) = args.words.iter().position(|word| word.text == "id") {
        return Err(args.named(id, "does not take 'id': no two servers may share one"));
    }
    let faults =
        options::apply_all(OPTIONS, args.words, &mut fields, parser.env, "'default-server'", known::SERVER);
    if faults.is_empty() {
        parser.settings().default_server = fields.options;
    }
    for fault in faults {
        let looks_like_address = fault.word.as_deref().is_some_and(|word| word.contains([':', '.']));
        parser.alert(match looks_like_address {
            true => fault.hint("no name and address were expected for a default server"),
            false => fault,
        });
    }
    Ok(())
}

/// Environment of the Runtime API: only names resolve.
struct Resolver<'a>(value::Resolve<'a>);

impl Env for Resolver<'_> {
    fn var(&self, _: &str) -> Option<String> {
        None
    }

    fn user(&self, _: &str) -> Option<u32> {
        None
    }

    fn group(&self, _: &str) -> Option<u32> {
        None
    }

    fn resolve(&self, host: &str) -> Result<IpAddr, String> {
        (self.0)(host)
    }
}

/// A server from the words of `add server <backend>/<name> <addr> <args>...`.
///
/// `defaults` is what it starts from. The id is 0 unless the words ask for one.
///
/// # Errors
/// The Runtime API's reply, naming the word that is at fault.
pub fn server_from_args(
    name: &str,
    addr: &str,
    args: &[&str],
    defaults: &ServerOptions,
    resolve: &dyn Fn(&str) -> Result<IpAddr, String>,
) -> Result<Server, String> {
    if name.is_empty() || addr.is_empty() {
        return Err("'server' expects <name> and <addr>[:<port>] as arguments.".to_owned());
    }
    if let Some(c) = value::invalid_name_char(name) {
        return Err(format!("character '{c}' is not permitted in server name '{name}'."));
    }
    if addr.starts_with("consul(") {
        return Err("'consul(...)' is not accepted for dynamic server".to_owned());
    }
    let discovery::Target { host, addr, .. } = discovery::target(addr, &ServerOptions::default(), resolve)?;
    for word in args {
        if STATIC_ONLY.contains(word) {
            return Err(format!("'{word}' option is not accepted for dynamic server"));
        }
    }
    let words: Vec<Word> = args.iter().map(|text| Word { text: (*text).to_owned(), at: 0 }).collect();
    let mut fields = Fields { options: defaults.clone(), id: None };
    let faults = options::apply_all(OPTIONS, &words, &mut fields, &Resolver(resolve), "", known::SERVER);
    if let Some(fault) = faults.into_iter().next() {
        let message = fault.message.trim_start_matches(" : ").to_owned();
        return Err(match fault.hint {
            Some(hint) => format!("{message}; {hint}"),
            None => message,
        });
    }
    let mut options = fields.options;
    if let Some(missing) = missing_port(name, &options) {
        return Err(missing);
    }
    settle(&mut options);
    Ok(Server {
        name: name.to_owned(),
        id: fields.id.unwrap_or(0),
        pos: Pos::default(),
        host,
        addr,
        discovered: None,
        options,
    })
}

/// Options that HAProxy refuses in `add server`.
const STATIC_ONLY: &[&str] = &[
    "enabled",
    "init-addr",
    "max-reuse",
    "no-agent-check",
    "no-check",
    "non-stick",
    "resolve-net",
    "resolve-opts",
    "resolve-prefer",
    "resolvers",
    "stick",
];

/// An agent is asked at a port of its own.
fn missing_port(name: &str, options: &ServerOptions) -> Option<String> {
    let missing = options.agent_check && options.agent_port.is_none();
    missing.then(|| format!("server {name} does not have agent port"))
}

/// What is only known once all options are read.
pub(crate) fn settle(options: &mut ServerOptions) {
    // A floor above the ceiling is the ceiling: there is nothing left to vary.
    if options.minconn > options.maxconn {
        options.maxconn = options.minconn;
    }
}

fn time(text: &str, name: &str) -> Result<Duration, String> {
    // The messages of `value::time` carry the name; the caller puts it in front as well.
    match value::time(text, Unit::Milliseconds, &format!("'{name}'")) {
        Ok(time) if time.is_zero() => Err(format!(": invalid value {text}, it must be at least 1 ms")),
        Ok(time) => Ok(time),
        Err(err) => Err(format!(": {err}")),
    }
}

/// -1 is no limit.
fn limit(text: &str) -> Result<Option<u32>, String> {
    let number = value::number(text, -1..=i64::from(i32::MAX))
        .map_err(|_| format!("must be >= -1, but got '{text}'"))?;
    Ok(u32::try_from(number).ok())
}

const fn opt(
    name: &'static str,
    usage: &'static str,
    doc: &'static str,
    apply: fn(&mut Fields, &str, &dyn Env) -> Result<(), String>,
) -> OptionKeyword<Fields> {
    OptionKeyword { name, usage, doc, apply }
}

/// Options of `server` and `default-server`.
pub(crate) const OPTIONS: &[OptionKeyword<Fields>] = &[
    opt("addr", "<address>", "Address for checks.", |f, text, env| {
        let resolve = |host: &str| env.resolve(host);
        let address = value::address(text, PortRule::Optional, &resolve).map_err(|err| format!(": {err}"))?;
        f.options.check_addr = Some(address.ip);
        if let Some((port, _)) = address.ports {
            f.options.check_port = Some(port);
        }
        Ok(())
    }),
    opt("agent-addr", "<address>", "Address of the agent.", |f, text, env| {
        let ip = text.parse().or_else(|_| env.resolve(text));
        f.options.agent_addr = Some(ip.map_err(|err| format!(": '{text}' {err}"))?);
        Ok(())
    }),
    opt("agent-check", "", "Asks an agent about the server.", |f, _, _| {
        f.options.agent_check = true;
        Ok(())
    }),
    opt("no-agent-check", "", "Undoes 'agent-check'.", |f, _, _| {
        f.options.agent_check = false;
        Ok(())
    }),
    opt("agent-inter", "<delay>", "Interval of agent checks.", |f, text, _| {
        f.options.agent_inter = time(text, "agent-inter")?;
        Ok(())
    }),
    opt("agent-port", "<port>", "Port of the agent.", |f, text, _| {
        f.options.agent_port = Some(value::number(text, 1..=65535)? as u16);
        Ok(())
    }),
    opt("agent-send", "<string>", "What is sent to the agent first.", |f, text, _| {
        f.options.agent_send = Some(text.to_owned());
        Ok(())
    }),
    opt("backup", "", "Only used when no other server is usable.", |f, _, _| {
        f.options.backup = true;
        Ok(())
    }),
    opt("no-backup", "", "Undoes 'backup'.", |f, _, _| {
        f.options.backup = false;
        Ok(())
    }),
    opt("check", "", "Checks the server's health.", |f, _, _| {
        f.options.check = true;
        Ok(())
    }),
    opt("no-check", "", "Undoes 'check'.", |f, _, _| {
        f.options.check = false;
        Ok(())
    }),
    opt("cookie", "<value>", "Value of the persistence cookie.", |f, text, _| {
        // It is sent as it is.
        if text.bytes().any(|b| b <= b' ' || b == 0x7f || matches!(b, b';' | b',' | b'"' | b'\\')) {
            return Err(format!(
                "takes no space, quote, comma, semicolon or control character, but got '{text}'"
            ));
        }
        f.options.cookie = Some(text.to_owned());
        Ok(())
    }),
    opt("disabled", "", "Starts in maintenance.", |f, _, _| {
        f.options.disabled = true;
        Ok(())
    }),
    opt("enabled", "", "Undoes 'disabled'.", |f, _, _| {
        f.options.disabled = false;
        Ok(())
    }),
    opt("downinter", "<delay>", "Interval of checks while it is down.", |f, text, _| {
        f.options.downinter = Some(time(text, "downinter")?);
        Ok(())
    }),
    opt("fall", "<count>", "Failed checks until it is down.", |f, text, _| {
        f.options.fall = value::count(text, 1)?;
        Ok(())
    }),
    opt("fastinter", "<delay>", "Interval of checks while its state is changing.", |f, text, _| {
        f.options.fastinter = Some(time(text, "fastinter")?);
        Ok(())
    }),
    opt("id", "<number>", "Numeric id of the server.", |f, text, _| {
        f.id = Some(value::count(text, 1).map_err(|err| format!(": custom id {err}"))?);
        Ok(())
    }),
    opt("inter", "<delay>", "Interval of checks.", |f, text, _| {
        f.options.inter = time(text, "inter")?;
        Ok(())
    }),
    opt("init-addr", "<methods>", "How its address is found at the start.", |f, text, _| {
        f.options.init_addr = discovery::init_addr(text)?;
        Ok(())
    }),
    opt(
        "maxconn",
        "<number> [cluster]",
        "Concurrent connections, or requests in HTTP; from all nodes together with 'cluster'.",
        |f, text, _| {
            let (number, of_all) = match text.strip_suffix(" cluster") {
                Some(number) => (number, true),
                None => (text, false),
            };
            f.options.maxconn = value::count(number, 0)?;
            f.options.maxconn_cluster = of_all;
            Ok(())
        },
    ),
    opt("maxqueue", "<number>", "Longest queue of the server.", |f, text, _| {
        f.options.maxqueue = value::count(text, 0)?;
        Ok(())
    }),
    opt("max-reuse", "<number>", "Times that a connection is reused; -1 = any.", |f, text, _| {
        f.options.max_reuse = limit(text)?;
        Ok(())
    }),
    opt("minconn", "<number>", "Lower limit of connections under little load.", |f, text, _| {
        f.options.minconn = value::count(text, 0)?;
        Ok(())
    }),
    opt("non-stick", "", "Never stored in a stick table.", |f, _, _| {
        f.options.non_stick = true;
        Ok(())
    }),
    opt("stick", "", "Undoes 'non-stick'.", |f, _, _| {
        f.options.non_stick = false;
        Ok(())
    }),
    opt("on-marked-down", "'shutdown-sessions'", "What happens when it goes down.", |f, text, _| {
        if text != "shutdown-sessions" {
            return Err(format!("expects 'shutdown-sessions' but got '{text}'"));
        }
        f.options.shutdown_sessions_on_down = true;
        Ok(())
    }),
    opt("pool-max-conn", "<number>", "Idle connections kept; -1 = no limit.", |f, text, _| {
        f.options.pool_max_conn = limit(text)?;
        Ok(())
    }),
    opt("pool-purge-delay", "<delay>", "Interval at which idle connections are given up.", |f, text, _| {
        let delay = value::time(text, Unit::Milliseconds, "'pool-purge-delay'");
        f.options.pool_purge_delay = delay.map_err(|err| format!(": {err}"))?;
        Ok(())
    }),
    opt("port", "<port>", "Port for checks.", |f, text, _| {
        f.options.check_port = Some(value::number(text, 1..=65535)? as u16);
        Ok(())
    }),
    opt("resolve-net", "<networks>", "Networks whose addresses are preferred.", |f, text, _| {
        f.options.resolve_net = discovery::networks(text)?;
        Ok(())
    }),
    opt("resolve-opts", "<options>", "Options of the resolution.", |f, text, _| {
        discovery::resolve_opts(&mut f.options, text)
    }),
    opt("resolve-prefer", "'ipv4' or 'ipv6'", "Which family is preferred.", |f, text, _| {
        f.options.resolve_prefer = match text {
            "ipv4" => Family::V4,
            "ipv6" => Family::V6,
            _ => return Err(format!("expects either ipv4 or ipv6 as argument, but got '{text}'")),
        };
        Ok(())
    }),
    opt("resolvers", "<name>", "Section that resolves its name at run time.", |f, text, _| {
        f.options.resolvers = Some(text.to_owned());
        Ok(())
    }),
    opt("rise", "<count>", "Good checks until it is up.", |f, text, _| {
        f.options.rise = value::count(text, 1)?;
        Ok(())
    }),
    opt("slowstart", "<delay>", "Time in which its weight grows after it came up.", |f, text, _| {
        let delay = value::time(text, Unit::Milliseconds, "'slowstart'").map_err(|err| format!(": {err}"))?;
        f.options.slowstart = (!delay.is_zero()).then_some(delay);
        Ok(())
    }),
    opt("weight", "<0..256>", "Share of the load.", |f, text, _| {
        f.options.weight = value::number(text, 0..=256)? as u32;
        Ok(())
    }),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn add(name: &str, addr: &str, args: &str) -> Result<Server, String> {
        let resolve = |host: &str| match host {
            "podinfo4" => Ok(IpAddr::from([10, 0, 0, 4])),
            _ => Err("name not known".to_owned()),
        };
        let args: Vec<&str> = args.split_whitespace().collect();
        server_from_args(name, addr, &args, &ServerOptions::default(), &resolve)
    }

    #[test]
    fn add_server_takes_the_words_of_a_server_line() {
        let server = add("s4", "127.0.0.1:9804", "check cookie s4 weight 3 inter 1s id 9").unwrap();
        assert_eq!(server.addr, "127.0.0.1:9804".parse().unwrap());
        assert_eq!((server.id, server.options.weight, server.options.check), (9, 3, true));
        assert_eq!(server.options.cookie.as_deref(), Some("s4"));
        let named = add("s5", "podinfo4:9898", "").unwrap();
        assert_eq!((named.host.as_str(), named.addr), ("podinfo4", "10.0.0.4:9898".parse().unwrap()));
        assert_eq!(named.id, 0);
    }

    #[test]
    fn add_server_answers_as_the_runtime_api() {
        let table = [
            ("s", "127.0.0.1:1", "wieght 3", "unknown keyword 'wieght'; did you mean 'weight' maybe ?"),
            ("s", "127.0.0.1:99999", "", "invalid port '99999'"),
            ("s", "127.0.0.1:1-4", "", "port range not permitted here in '127.0.0.1:1-4'"),
            ("s", "", "", "'server' expects <name> and <addr>[:<port>] as arguments."),
            ("s$", "127.0.0.1:1", "", "character '$' is not permitted in server name 's$'."),
            ("s", "127.0.0.1:1", "max-reuse 4", "'max-reuse' option is not accepted for dynamic server"),
            (
                "s",
                "127.0.0.1:1",
                "on-marked-down x",
                "'on-marked-down' expects 'shutdown-sessions' but got 'x'",
            ),
            ("s", "127.0.0.1:1", "weight 300", "'weight' must be between 0 and 256, but got '300'"),
            ("s", "127.0.0.1:1", "weight", "'weight' expects <0..256> as argument"),
            ("s", "127.0.0.1:1", "ssl", "'ssl' is not supported by Phalanx yet"),
            ("s", "127.0.0.1:1", "inter 0", "'inter' : invalid value 0, it must be at least 1 ms"),
            ("s", "none.example:1", "", "could not resolve address 'none.example' (name not known)"),
        ];
        for (name, addr, args, reply) in table {
            assert_eq!(add(name, addr, args), Err(reply.to_owned()), "{name} {addr} {args}");
        }
    }

    #[test]
    fn a_floor_above_the_ceiling_raises_it() {
        let options = add("s", "127.0.0.1:1", "maxconn 3 minconn 5").unwrap().options;
        assert_eq!((options.minconn, options.maxconn), (5, 5));
    }
}
