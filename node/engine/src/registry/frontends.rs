//! What commands have changed of frontends: whether they accept, and their `maxconn`.
//!
//! As with servers, each stands beside what the configuration said: a configuration that later says
//! something else (another `maxconn`; other ports, for whether it accepts) wins.

use std::collections::BTreeMap;

use phalanx_config::model;
use serde::{Deserialize, Serialize};

use super::Reply;
use crate::stick::hash;

/// A command on one frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendCommand {
    /// Its name.
    pub name: String,
    /// What its configuration says on the node that takes the command.
    pub base: FrontendBase,
    /// What to do.
    pub change: FrontendChange,
}

/// What a configuration says of what commands can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendBase {
    /// Digest of the ports that it binds; addresses are often each node's own.
    pub binds: u64,
    /// `maxconn`; `None` = that of the process.
    pub maxconn: Option<u32>,
}

impl FrontendBase {
    /// What a section says.
    pub fn of(section: &model::Proxy) -> FrontendBase {
        let digest = |sum: u64, bind: &model::Bind| hash::word(sum, u64::from(bind.addr.port()));
        FrontendBase {
            binds: section.binds.iter().fold(1, digest),
            maxconn: section.maxconn.filter(|n| *n > 0),
        }
    }
}

/// What a command does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FrontendChange {
    /// `enable`, `disable`, `shutdown frontend`.
    Accepts(Accepts),
    /// `set maxconn frontend`.
    Maxconn(u32),
    /// A reload: what the configuration says now.
    Rebase(FrontendBase),
}

/// Whether a frontend accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Accepts {
    /// As configured.
    #[default]
    Open,
    /// `disable frontend`.
    Paused,
    /// `shutdown frontend`.
    Stopped,
}

/// What counts for a frontend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EffectiveFrontend {
    /// Whether it accepts.
    pub accepts: Accepts,
    /// `maxconn`; `None` = as configured.
    pub maxconn: Option<u32>,
}

/// What commands have changed of all frontends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontends(BTreeMap<String, Changed>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Changed {
    accepts: Option<Over<Accepts, u64>>,
    maxconn: Option<Over<u32, Option<u32>>>,
}

/// A value beside the configured one that it replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Over<T, C> {
    value: T,
    config: C,
    /// Some node's configuration has moved away from `config`. It ends when one comes back to it.
    left: bool,
}

impl<T: Copy, C: Copy + PartialEq> Over<T, C> {
    fn new(value: T, config: C) -> Option<Self> {
        Some(Over { value, config, left: false })
    }

    fn rebase(slot: &mut Option<Self>, from: C, to: C) {
        let Some(over) = slot else { return };
        match (from == over.config, to == over.config) {
            (true, false) => over.left = true,
            (false, true) if over.left => *slot = None,
            _ => {}
        }
    }

    fn current(slot: &Option<Self>, config: C) -> Option<T> {
        slot.as_ref().filter(|o| o.config == config).map(|o| o.value)
    }
}

impl Frontends {
    /// What counts for a frontend whose configuration says `base`.
    pub fn effective(&self, name: &str, base: &FrontendBase) -> EffectiveFrontend {
        let Some(changed) = self.0.get(name) else { return EffectiveFrontend::default() };
        EffectiveFrontend {
            accepts: Over::current(&changed.accepts, base.binds).unwrap_or_default(),
            maxconn: Over::current(&changed.maxconn, base.maxconn),
        }
    }

    /// The commands that tell the cluster what a reload changed of frontends that commands have changed.
    pub fn rebase_commands(&self, old: &model::Config, new: &model::Config) -> Vec<FrontendCommand> {
        let base = |config: &model::Config, name: &str| {
            let section = config.proxies.iter().find(|p| p.kind.is_frontend() && p.name == name)?;
            Some(FrontendBase::of(section))
        };
        let rebase = |name: &String| {
            let (from, to) = (base(old, name)?, base(new, name)?);
            let change = FrontendChange::Rebase(to);
            (from != to).then(|| FrontendCommand { name: name.clone(), base: from, change })
        };
        self.0.keys().filter_map(rebase).collect()
    }

    pub(super) fn apply(&mut self, command: &FrontendCommand) -> Reply {
        let base = &command.base;
        let changed = self.0.entry(command.name.clone()).or_default();
        match command.change {
            FrontendChange::Accepts(Accepts::Open) => changed.accepts = None,
            FrontendChange::Accepts(accepts) => changed.accepts = Over::new(accepts, base.binds),
            FrontendChange::Maxconn(maxconn) => changed.maxconn = Over::new(maxconn, base.maxconn),
            FrontendChange::Rebase(to) => {
                Over::rebase(&mut changed.accepts, base.binds, to.binds);
                Over::rebase(&mut changed.maxconn, base.maxconn, to.maxconn);
            }
        }
        if *changed == Changed::default() {
            self.0.remove(&command.name);
        }
        Reply::Ok
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(base: FrontendBase, change: FrontendChange) -> FrontendCommand {
        FrontendCommand { name: "f".into(), base, change }
    }

    #[test]
    fn the_configuration_wins_where_it_changed() {
        let old = FrontendBase { binds: 1, maxconn: Some(10) };
        let new = FrontendBase { binds: 1, maxconn: Some(20) };
        let mut f = Frontends::default();
        f.apply(&command(old, FrontendChange::Accepts(Accepts::Paused)));
        f.apply(&command(old, FrontendChange::Maxconn(5)));
        let both = EffectiveFrontend { accepts: Accepts::Paused, maxconn: Some(5) };
        assert_eq!(f.effective("f", &old), both);
        assert_eq!(f.effective("f", &new), EffectiveFrontend { accepts: Accepts::Paused, maxconn: None });
        f.apply(&command(old, FrontendChange::Rebase(new)));
        assert_eq!(f.effective("f", &old), both, "nodes that have not reloaded go on");
        f.apply(&command(new, FrontendChange::Rebase(old)));
        assert_eq!(f.effective("f", &old), EffectiveFrontend { accepts: Accepts::Paused, maxconn: None });
        f.apply(&command(old, FrontendChange::Accepts(Accepts::Open)));
        assert_eq!(f, Frontends::default());
    }
}
