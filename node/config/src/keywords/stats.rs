//! `stats …` of a proxy (manual section 4.2). Any of them turns the statistics page on.

use std::time::Duration;

use crate::keyword::{Apply, Arity, Keyword, PROXY};
use crate::model::Stats;
use crate::parser::Parser;
use crate::value::{self, Unit};

use Arity::{Between, Exact};

const fn kw(
    name: &'static str,
    usage: &'static str,
    arity: Arity,
    doc: &'static str,
    apply: Apply,
) -> Keyword {
    Keyword::new(name, usage, PROXY, arity, doc, apply)
}

/// The table.
pub(crate) const KEYWORDS: &[Keyword] = &[
    kw("stats enable", "", Exact(0), "Turns the statistics page on.", |p, _| {
        stats(p);
        Ok(())
    }),
    kw("stats uri", "<prefix>", Exact(1), "Where the page is.", |p, a| {
        if a.text(0).bytes().any(|b| b <= b' ' || b == 0x7f) {
            return Err(a.named(0, "takes no space or control character"));
        }
        stats(p).uri = a.text(0).to_owned();
        Ok(())
    }),
    kw("stats realm", "<realm>", Exact(1), "Realm of the authentication.", |p, a| {
        stats(p).realm = a.text(0).to_owned();
        Ok(())
    }),
    kw("stats auth", "<user>:<password>", Exact(1), "Asks for a password; may be repeated.", |p, a| {
        let (user, password) = a.text(0).split_once(':').unwrap_or((a.text(0), ""));
        if user.is_empty() {
            return Err(a.named(0, "expects a user name before the colon"));
        }
        let account = (user.to_owned(), password.to_owned());
        stats(p).auth.push(account);
        Ok(())
    }),
    kw("stats refresh", "<time>", Exact(1), "Lets browsers reload the page.", |p, a| {
        let time = value::time(a.text(0), Unit::Seconds, "'stats refresh'").map_err(|err| a.fault(0, err))?;
        stats(p).refresh = (time >= Duration::from_secs(1)).then_some(time);
        Ok(())
    }),
    kw("stats hide-version", "", Exact(0), "Does not tell the version.", |p, _| {
        stats(p).hide_version = true;
        Ok(())
    }),
    kw("stats show-version", "", Exact(0), "Tells the version, the default.", |p, _| {
        stats(p).hide_version = false;
        Ok(())
    }),
    kw("stats show-legends", "", Exact(0), "Adds more about proxies and servers.", |p, _| {
        stats(p).show_legends = true;
        Ok(())
    }),
    kw("stats show-node", "[<name>]", Between(0, 1), "Shows a name, by default the node's.", |p, a| {
        stats(p).show_node = Some(a.text(0).to_owned());
        Ok(())
    }),
    kw("stats scope", "<proxy>|.", Exact(1), "Shows this proxy only; may be repeated.", |p, a| {
        let name = a.text(0).to_owned();
        stats(p).scope.push(name);
        Ok(())
    }),
];

fn stats<'p>(parser: &'p mut Parser<'_>) -> &'p mut Stats {
    parser.settings().stats.get_or_insert_with(Stats::default)
}
