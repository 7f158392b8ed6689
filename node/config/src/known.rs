//! HAProxy's own vocabulary: names that exist there, built here or not, and names that it removed.
//!
//! Only consulted once a word was not found in a keyword table, to tell a typing error from a
//! keyword that is yet to come, and a keyword that is yet to come from one that went long ago.

/// One of HAProxy's name spaces, as a list with one name per line.
#[derive(Clone, Copy)]
pub(crate) struct Names(&'static str);

/// Keywords of `global`.
pub(crate) const GLOBAL: Names = Names(include_str!("known/global.txt"));
/// Keywords of `defaults`, `frontend`, `listen` and `backend`, options included.
pub(crate) const PROXY: Names = Names(include_str!("known/proxy.txt"));
/// Options of `bind`.
pub(crate) const BIND: Names = Names(include_str!("known/bind.txt"));
/// Options of `server` and `default-server`.
pub(crate) const SERVER: Names = Names(include_str!("known/server.txt"));
/// Actions of the rule sets.
pub(crate) const ACTIONS: Names = Names(include_str!("known/actions.txt"));
/// Sample fetches.
pub(crate) const FETCHES: Names = Names(include_str!("known/fetches.txt"));
/// Converters.
pub(crate) const CONVERTERS: Names = Names(include_str!("known/converters.txt"));
/// Sections.
pub(crate) const SECTIONS: Names = Names(include_str!("known/sections.txt"));

impl Names {
    /// Whether HAProxy has exactly this name.
    pub(crate) fn has(self, name: &str) -> bool {
        self.iter().any(|known| known == name)
    }

    /// The names, sorted.
    pub(crate) fn iter(self) -> impl Iterator<Item = &'static str> {
        self.0.lines()
    }

    /// The longest name that these words begin with, as the words it has.
    pub(crate) fn longest<'a>(self, words: impl Iterator<Item = &'a str>) -> Option<String> {
        let mut joined = String::new();
        let mut found = None;
        for word in words.take(3) {
            if !joined.is_empty() {
                joined.push(' ');
            }
            joined.push_str(word);
            if self.has(&joined) {
                found = Some(joined.clone());
            }
        }
        found
    }
}

/// Keywords that HAProxy removed, and what to write instead.
const REMOVED: &[(&str, &str)] = &[
    ("appsession", "use 'stick on' with a 'stick-table'"),
    ("bind-process", "use 'thread' on the 'bind' line"),
    ("block", "use 'http-request deny'"),
    ("cliexp", "use 'http-request replace-path'"),
    ("clitimeout", "use 'timeout client'"),
    ("contimeout", "use 'timeout connect'"),
    ("dispatch", "use 'server'"),
    ("grace", "use 'hard-stop-after' in 'global'"),
    ("nbproc", "use 'nbthread'"),
    ("option forceclose", "use 'option httpclose'"),
    ("option http-tunnel", "remove it, or use 'timeout tunnel'"),
    ("option http_proxy", "use 'http-request set-dst'"),
    ("option tcpsplice", "use 'option splice-auto'"),
    ("option transparent", "use 'server' with an address of 0.0.0.0"),
    ("redisp", "use 'option redispatch'"),
    ("redispatch", "use 'option redispatch'"),
    ("reqadd", "use 'http-request add-header'"),
    ("reqallow", "use 'http-request allow'"),
    ("reqdel", "use 'http-request del-header'"),
    ("reqdeny", "use 'http-request deny'"),
    ("reqiallow", "use 'http-request allow'"),
    ("reqidel", "use 'http-request del-header'"),
    ("reqideny", "use 'http-request deny'"),
    ("reqipass", "use 'http-request'"),
    ("reqirep", "use 'http-request replace-path' or 'http-request replace-header'"),
    ("reqitarpit", "use 'http-request tarpit'"),
    ("reqpass", "use 'http-request'"),
    ("reqrep", "use 'http-request replace-path' or 'http-request replace-header'"),
    ("reqtarpit", "use 'http-request tarpit'"),
    ("rspadd", "use 'http-response add-header'"),
    ("rspdel", "use 'http-response del-header'"),
    ("rspdeny", "use 'http-response deny'"),
    ("rspidel", "use 'http-response del-header'"),
    ("rspideny", "use 'http-response deny'"),
    ("rspirep", "use 'http-response replace-header'"),
    ("rsprep", "use 'http-response replace-header'"),
    ("srvexp", "use 'http-response replace-header'"),
    ("srvtimeout", "use 'timeout server'"),
    ("timeout clitimeout", "use 'timeout client'"),
    ("timeout contimeout", "use 'timeout connect'"),
    ("timeout srvtimeout", "use 'timeout server'"),
    ("transparent", "use 'server' with an address of 0.0.0.0"),
];

/// A removed keyword (`name` is one word, or two) and what to write instead.
pub(crate) fn removed(name: &str) -> Option<(&'static str, &'static str)> {
    REMOVED.iter().find(|(gone, _)| *gone == name).copied()
}

/// The candidate nearest to a mistyped word, if any is near enough to be meant.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = word.chars().count();
    // A name longer than any keyword cannot be a slip of the finger, and the distance is quadratic.
    if length > 64 {
        return None;
    }
    let mut completion = None;
    let scored = candidates.into_iter().map(|c| {
        if length >= 4 && c.starts_with(word) {
            completion = completion.or(Some(c));
        }
        (strsim::damerau_levenshtein(word, c), c)
    });
    let (distance, best) = scored.min_by_key(|&(distance, _)| distance)?;
    let allowed = match length {
        0..=2 => 0,
        3..=4 => 1,
        5..=8 => 2,
        _ => 3,
    };
    if distance <= allowed { Some(best) } else { completion }
}

/// `did you mean 'x' maybe ?`, as HAProxy puts it.
pub(crate) fn did_you_mean(name: &str) -> String {
    format!("did you mean '{name}' maybe ?")
}

/// The text for something of HAProxy's that is not built.
pub(crate) fn unsupported(what: &str) -> String {
    format!("{what} is not supported by Phalanx yet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_and_nothing_else() {
        let names = ["balance", "bind", "backlog", "default_backend", "mode"];
        let table = [
            ("blance", Some("balance")),
            ("balanec", Some("balance")),
            ("defaultbackend", Some("default_backend")),
            ("mde", Some("mode")),
            ("xyzzy", None),
            ("bi", None),
            ("defa", Some("default_backend")),
        ];
        for (word, expected) in table {
            assert_eq!(nearest(word, names), expected, "{word}");
        }
        assert_eq!(nearest(&"a".repeat(100_000), names), None);
    }

    #[test]
    fn lists_are_sorted_and_whole() {
        for (list, at_least) in [
            (GLOBAL, 300),
            (PROXY, 190),
            (BIND, 80),
            (SERVER, 120),
            (ACTIONS, 80),
            (FETCHES, 400),
            (CONVERTERS, 100),
        ] {
            let names: Vec<&str> = list.iter().collect();
            assert!(names.len() >= at_least, "{} names", names.len());
            assert!(names.is_sorted());
        }
        assert_eq!(
            PROXY.longest(["option", "splice-auto", "x"].into_iter()).as_deref(),
            Some("option splice-auto")
        );
        assert_eq!(removed("reqadd"), Some(("reqadd", "use 'http-request add-header'")));
    }
}
