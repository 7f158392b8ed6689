//! Heads of sections: `global`, `defaults`, `frontend`, `backend`, `listen`, `cluster`, `resolvers` and
//! `consul`.

use crate::draft::{ClusterDraft, Defaults, ProxyDraft, Settings};
use crate::keywords::bind;
use crate::known;
use crate::line::Fault;
use crate::model::{Consul, Peers, Pos, ProxyKind, Resolvers};
use crate::parser::{At, Parser};
use crate::value;
use crate::words::Word;

const HEADS: &[&str] =
    &["global", "defaults", "frontend", "backend", "listen", "cluster", "resolvers", "consul", "peers"];

/// The heads, for messages.
pub(crate) const HEADS_TEXT: &str =
    "'global', 'defaults', 'frontend', 'backend', 'listen', 'resolvers', 'consul', 'peers' or 'cluster'";

/// Whether the word begins a section, here or in HAProxy.
pub(crate) fn is_head(word: &str) -> bool {
    HEADS.contains(&word) || known::SECTIONS.has(word)
}

/// Begins a section.
pub(crate) fn open(parser: &mut Parser<'_>, words: &[Word]) -> Result<(), Fault> {
    match words[0].text.as_str() {
        "global" => {
            refuse_more(words, 1)?;
            parser.at = At::Global;
            Ok(())
        }
        "defaults" => open_defaults(parser, words),
        "frontend" => open_proxy(parser, words, ProxyKind::Frontend),
        "backend" => open_proxy(parser, words, ProxyKind::Backend),
        "listen" => open_proxy(parser, words, ProxyKind::Listen),
        "cluster" => open_cluster(parser, words),
        "resolvers" => {
            let others = parser.draft.resolvers.iter().map(|r| (r.name.clone(), r.pos)).collect();
            let (name, pos) = open_source(parser, words, others)?;
            parser.draft.resolvers.push(Resolvers::new(name, pos));
            parser.at = At::Resolvers;
            Ok(())
        }
        "consul" => {
            let others = parser.draft.consuls.iter().map(|c| (c.name.clone(), c.pos)).collect();
            let (name, pos) = open_source(parser, words, others)?;
            parser.draft.consuls.push(Consul::new(name, pos));
            parser.at = At::Consul;
            Ok(())
        }
        "peers" => open_peers(parser, words),
        other => Err(Fault::about(&words[0], known::unsupported(&format!("the '{other}' section")))),
    }
}

fn refuse_more(words: &[Word], allowed: usize) -> Result<(), Fault> {
    match words.get(allowed) {
        None => Ok(()),
        Some(extra) => {
            let message = format!("'{}' cannot handle unexpected argument '{}'", words[0].text, extra.text);
            Err(Fault::about(extra, message))
        }
    }
}

fn check_name(words: &[Word]) -> Result<(), Fault> {
    let Some(word) = words.get(1) else {
        return Err(Fault::about(&words[0], format!("'{}' expects an <id> argument", words[0].text)));
    };
    match value::invalid_name_char(&word.text) {
        None => Ok(()),
        Some(c) => {
            let message =
                format!("character '{c}' is not permitted in '{}' name '{}'", words[0].text, word.text);
            Err(Fault::about(word, message).hint("letters, digits, '-', '_', '.' and ':' are"))
        }
    }
}

/// The settings that a section starts from: `from NAME`, or the latest `defaults` section.
fn inherited(parser: &Parser<'_>, words: &[Word], from_at: usize) -> Result<Settings, Fault> {
    let Some(name) = words.get(from_at + 1) else {
        let message = format!("'{}' expects the name of a 'defaults' section after 'from'", words[0].text);
        return Err(Fault::about(&words[from_at], message));
    };
    let named: Vec<&Defaults> = parser.draft.defaults.iter().filter(|d| d.name == name.text).collect();
    match named.as_slice() {
        [one] => Ok(one.settings.clone()),
        [] => {
            let of = words.get(1).map_or("", |word| word.text.as_str());
            let message = format!("defaults section '{}' not found for {} '{of}'", name.text, words[0].text);
            let names = parser.draft.defaults.iter().map(|d| d.name.as_str()).filter(|n| !n.is_empty());
            let fault = Fault::about(name, message);
            Err(match known::nearest(&name.text, names) {
                Some(near) => fault.hint(known::did_you_mean(near)),
                None => fault,
            })
        }
        [first, second, ..] => {
            let (first, second) = (parser.place(first.pos), parser.place(second.pos));
            let message =
                format!("ambiguous defaults section name '{}' (declared at {first} and {second})", name.text);
            Err(Fault::about(name, message))
        }
    }
}

fn open_defaults(parser: &mut Parser<'_>, words: &[Word]) -> Result<(), Fault> {
    let from_at = words.iter().skip(1).position(|w| w.text == "from").map(|i| i + 1);
    let name = if from_at == Some(1) || words.len() == 1 {
        String::new()
    } else {
        check_name(words)?;
        words[1].text.clone()
    };
    let settings = match from_at {
        Some(at) => {
            refuse_more(words, at + 2)?;
            inherited(parser, words, at)?
        }
        None => {
            refuse_more(words, 2)?;
            Settings::default()
        }
    };
    parser.draft.defaults.push(Defaults { name, pos: parser.pos(), settings });
    parser.at = At::Defaults(parser.draft.defaults.len() - 1);
    Ok(())
}

fn open_proxy(parser: &mut Parser<'_>, words: &[Word], kind: ProxyKind) -> Result<(), Fault> {
    check_name(words)?;
    let name = words[1].text.clone();
    if let Some(other) = parser.draft.proxies.iter().find(|proxy| proxy.name == name) {
        let other = format!("{} '{name}' declared at {}", section_word(other.kind), parser.place(other.pos));
        parser.alert(Fault::about(
            &words[1],
            format!("{} '{name}' has the same name as {other}", words[0].text),
        ));
    }
    // `listen name addr:port`: from before there was a `bind` keyword.
    let legacy = match words.get(2) {
        Some(word) if word.text != "from" && kind.is_frontend() => Some(word.clone()),
        _ => None,
    };
    let from_at = 2 + usize::from(legacy.is_some());
    let settings = match words.get(from_at) {
        Some(word) if word.text == "from" => {
            refuse_more(words, from_at + 2)?;
            inherited(parser, words, from_at)?
        }
        _ => {
            refuse_more(words, from_at)?;
            parser.draft.defaults.last().map(|d| d.settings.clone()).unwrap_or_default()
        }
    };
    let mut proxy = ProxyDraft::new(name.clone(), kind, parser.pos(), settings);
    // Named for those who read the defaults; a proxy's own `description` is never inherited.
    proxy.description = None;
    parser.draft.proxies.push(proxy);
    parser.at = At::Proxy(parser.draft.proxies.len() - 1);
    if let Some(address) = legacy {
        match bind::addresses(parser, &address) {
            Ok(binds) => {
                let message = format!("address '{}' on the '{}' line", address.text, words[0].text);
                let fault = Fault::about(&address, format!("{message} is deprecated"));
                parser.warn(fault.hint(format!("please use the 'bind' keyword: 'bind {}'", address.text)));
                parser.proxy().binds.extend(binds);
            }
            // The section itself is fine: its lines are worth reading.
            Err(message) => {
                parser.settings().refused.push("bind".to_owned());
                parser.alert(Fault::about(&address, format!("'{} {name}' : {message}", words[0].text)));
            }
        }
    }
    Ok(())
}

fn section_word(kind: ProxyKind) -> &'static str {
    match kind {
        ProxyKind::Frontend => "frontend",
        ProxyKind::Backend => "backend",
        ProxyKind::Listen => "listen",
    }
}

/// Name and place of a section that servers are discovered by.
fn open_source(
    parser: &Parser<'_>,
    words: &[Word],
    others: Vec<(String, Pos)>,
) -> Result<(String, Pos), Fault> {
    check_name(words)?;
    refuse_more(words, 2)?;
    let name = words[1].text.clone();
    if let Some((_, pos)) = others.iter().find(|(other, _)| *other == name) {
        let place = parser.place(*pos);
        let message =
            format!("{} '{name}' has the same name as another (declared at {place})", words[0].text);
        return Err(Fault::about(&words[1], message));
    }
    Ok((name, parser.pos()))
}

fn open_cluster(parser: &mut Parser<'_>, words: &[Word]) -> Result<(), Fault> {
    check_name(words)?;
    refuse_more(words, 2)?;
    if let Some(other) = parser.draft.clusters.first() {
        let place = parser.place(other.pos);
        let message = format!(
            "cluster '{}' : there is a cluster section already, '{}' at {place}",
            words[1].text, other.name
        );
        return Err(Fault::about(&words[1], message).hint("a node belongs to one cluster"));
    }
    let name = words[1].text.clone();
    let pos = parser.pos();
    parser.draft.clusters.push(ClusterDraft {
        name,
        pos,
        nodes: Vec::new(),
        peers: Vec::new(),
        data_dir: None,
        join: false,
        vips: Vec::new(),
        vip_lease: None,
        vip_drain: None,
        ssl: None,
        refused: Vec::new(),
    });
    parser.at = At::Cluster(parser.draft.clusters.len() - 1);
    Ok(())
}

fn open_peers(parser: &mut Parser<'_>, words: &[Word]) -> Result<(), Fault> {
    check_name(words)?;
    refuse_more(words, 2)?;
    let name = words[1].text.clone();
    let clusters = parser.draft.clusters.iter().map(|c| (&c.name, c.pos));
    let peers = parser.draft.peers.iter().map(|p| (&p.name, p.pos));
    if let Some((_, other)) = clusters.chain(peers).find(|(known, _)| **known == name) {
        let place = parser.place(other);
        return Err(Fault::about(&words[1], format!("peers section '{name}' declared already at {place}")));
    }
    let pos = parser.pos();
    parser.draft.peers.push(Peers { name, peers: Vec::new(), bind: None, disabled: false, pos });
    parser.at = At::Peers;
    Ok(())
}
