//! Checks that the nodes share out: where the forwarding plane and the cluster meet.
//!
//! Both work on the engine's board; beside it, a node asks another one for a second opinion, and
//! answers when it is asked.

use std::sync::{Arc, OnceLock};

use phalanx_cluster::Cluster;
use phalanx_proxy::check::{Checker, Sharing};

/// What the checks need of the cluster.
pub(super) fn sharing(cluster: &Cluster) -> Sharing {
    let share = cluster.share().clone();
    Sharing {
        board: share.board().clone(),
        ask: Arc::new(move |node, subject, limit| {
            let (share, node, subject) = (share.clone(), node.to_owned(), subject.clone());
            Box::pin(async move { share.ask(&node, &subject, limit).await })
        }),
    }
}

/// Lets other nodes ask this one.
pub(super) fn answer(cluster: &Cluster, checker: &Arc<OnceLock<Checker>>) {
    let checker = checker.clone();
    cluster.share().set_probe(Box::new(move |subject| {
        let probe = checker.get().map(|checker| checker.probe(subject));
        Box::pin(async move { probe?.await })
    }));
}
