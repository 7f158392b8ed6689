//! What commands have changed of agent checks: `enable|disable agent`, `set server … agent…`.
//!
//! Part of a server's record. Unlike other overrides these stay whatever the configuration says later.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A change of a server's agent check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentChange {
    /// `enable agent`, `disable agent`.
    Enabled(bool),
    /// `set server … agent up|down`.
    Force(bool),
    /// `set server … agent-addr` and `agent-port`: what was given.
    Addr {
        /// The address that the agent is asked at.
        ip: Option<IpAddr>,
        /// Its port.
        port: Option<u16>,
    },
    /// `set server … agent-send`.
    Send(String),
}

/// What all changes come to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentEffective {
    /// Whether the agent is asked; `None` = as configured (added servers: no).
    pub enabled: Option<bool>,
    /// Where; `None` = as configured.
    pub ip: Option<IpAddr>,
    /// Its port; `None` = as configured.
    pub port: Option<u16>,
    /// What is sent first; `None` = as configured.
    pub send: Option<String>,
    /// The last `set server … agent up|down`, carried out once, and its revision.
    pub forced: Option<(bool, u64)>,
}

impl AgentEffective {
    pub(super) fn apply(&mut self, change: AgentChange, revision: u64) {
        match change {
            AgentChange::Enabled(enabled) => self.enabled = Some(enabled),
            AgentChange::Force(up) => self.forced = Some((up, revision)),
            AgentChange::Addr { ip, port } => {
                self.ip = ip.or(self.ip);
                self.port = port.or(self.port);
            }
            AgentChange::Send(text) => self.send = Some(text),
        }
    }
}
