//! Where changes of servers are decided: by the cluster, or by this process alone.

use std::sync::Arc;

use parking_lot::Mutex;
use phalanx_cluster::Cluster;
use phalanx_engine::registry::{Command, Registry, Reply};

/// Takes commands and answers once they count.
pub(crate) enum Authority {
    /// A configuration without a `cluster` section: a registry in memory.
    Local(Local),
    /// Agreed on by the nodes, answered after the commit.
    Cluster(Cluster),
}

/// A registry of this process alone.
pub(crate) struct Local {
    registry: Mutex<Arc<Registry>>,
    changed: Box<dyn Fn(&Registry) + Send + Sync>,
}

impl Local {
    /// An empty one. `changed` is called after every change, one at a time, and must bring the
    /// engine's state in line before it returns.
    pub(crate) fn new(changed: impl Fn(&Registry) + Send + Sync + 'static) -> Local {
        Local { registry: Mutex::default(), changed: Box::new(changed) }
    }
}

impl Authority {
    /// Carries out a command and waits until it counts.
    ///
    /// # Errors
    /// Why it could not be decided.
    pub(crate) async fn propose(&self, command: Command) -> Result<Reply, String> {
        match self {
            Authority::Local(local) => {
                let mut registry = local.registry.lock();
                let reply = Arc::make_mut(&mut registry).apply(&command);
                // Also after a refusal: a command on several keys may have changed some before it.
                (local.changed)(&registry);
                Ok(reply)
            }
            Authority::Cluster(_) if super::remote::only_here() => Err(super::remote::NOT_LOCAL.to_owned()),
            Authority::Cluster(cluster) => cluster.propose(command).await.map_err(|e| e.to_string()),
        }
    }

    /// What the commands so far have changed.
    pub(crate) fn registry(&self) -> Arc<Registry> {
        match self {
            Authority::Local(local) => local.registry.lock().clone(),
            Authority::Cluster(cluster) => cluster.registry(),
        }
    }

    /// The cluster, if there is one.
    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        match self {
            Authority::Local(_) => None,
            Authority::Cluster(cluster) => Some(cluster),
        }
    }
}
