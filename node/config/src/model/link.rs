//! Names that expressions and rules hold of proxies and servers.
//!
//! A rule may name a section that comes further down, so the place is filled in when all is read.
//! Whoever follows the link while a request waits goes by the place and compares no names of proxies.

use std::fmt;
use std::sync::{Arc, OnceLock};

/// The name of a proxy or of a server, and where it stands: a proxy in
/// [`Config::proxies`](super::Config::proxies), a server in its [`servers`](super::Proxy::servers).
///
/// Copies share the place. Two are equal that hold the same name.
#[derive(Clone)]
pub struct Link(Arc<(Box<str>, OnceLock<usize>)>);

impl Link {
    /// A link to what is called so.
    pub fn new(name: &str) -> Link {
        Link(Arc::new((name.into(), OnceLock::new())))
    }

    /// The name; `None` if it is empty, which stands for none.
    pub(crate) fn some(name: Option<&str>) -> Option<Link> {
        name.filter(|name| !name.is_empty()).map(Link::new)
    }

    /// What it names.
    pub fn name(&self) -> &str {
        &self.0.0
    }

    /// Where it stands; `None` if nobody looked, as for links of sections that are `disabled`.
    pub fn place(&self) -> Option<usize> {
        self.0.1.get().copied()
    }

    /// Tells the place. The first to tell it is believed.
    pub(crate) fn stands_at(&self, place: usize) {
        let _ = self.0.1.set(place);
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name().fmt(f)
    }
}

impl PartialEq for Link {
    fn eq(&self, other: &Link) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Link {}

#[cfg(test)]
mod tests {
    use crate::{Action, BackendName, Source, StaticEnv, parse};

    #[test]
    fn rules_know_where_what_they_name_stands() {
        let text = "frontend f\n bind 127.0.0.1:1\n timeout client 1s\n tcp-request connection track-sc0 src table t\n \
                    use_backend b\n\
                    backend b\n timeout connect 1s\n timeout server 1s\n balance roundrobin\n use-server s2\n \
                    server s1 127.0.0.1:2\n server s2 127.0.0.1:3\n\
                    backend t\n stick-table type ip size 10\n\
                    backend off\n disabled\n use-server s9\n";
        let outcome = parse(&[Source::new("t.cfg", text.as_bytes())], &StaticEnv::default());
        let config = outcome.config.unwrap_or_else(|| panic!("{:#?}", outcome.diagnostics));
        let front = &config.proxies[0];
        let Action::Track(track) = &front.rules.tcp_connection[0].action else { panic!("{front:?}") };
        assert_eq!((track.table.name(), track.table.place()), ("t", Some(2)));
        let BackendName::Fixed(backend) = &front.use_backend[0].backend else { panic!("{front:?}") };
        assert_eq!((backend.name(), backend.place()), ("b", Some(1)));
        assert_eq!(config.proxies[1].use_server[0].server.place(), Some(1));
        assert_eq!(config.proxies[3].use_server[0].server.place(), None, "nobody looks at what is disabled");
    }
}
