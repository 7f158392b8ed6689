//! The ring of consistent hashing, point for point as HAProxy lays it.
//!
//! A server of weight w has w·16 points whose places depend on its id alone; a key goes to the
//! point nearest to its hash, on a tie to the one before. So a server that comes or goes moves only
//! the keys next to its points, and every node with the same ids and weights agrees.

use std::sync::Arc;

use crate::hash::avalanche;
use crate::server::Server;

#[derive(Debug)]
pub(super) struct Ring {
    /// Points in rising order, each with the index of its server.
    points: Vec<(u32, u32)>,
}

impl Ring {
    /// With so many points for each server.
    pub(super) fn new(servers: &[Arc<Server>], weights: &[u32]) -> Ring {
        let mut points: Vec<(u32, u32, u32)> = Vec::new();
        for (index, (server, &weight)) in servers.iter().zip(weights).enumerate() {
            let key = server.id().wrapping_mul(4096);
            for n in 0..weight {
                points.push((avalanche(key.wrapping_add(n)), server.id(), index as u32));
            }
        }
        // The id settles points that fall together, not the order of the servers.
        points.sort_unstable();
        Ring { points: points.into_iter().map(|(hash, _, index)| (hash, index)).collect() }
    }

    pub(super) fn len(&self) -> usize {
        self.points.len()
    }

    pub(super) fn server_at(&self, point: usize) -> u32 {
        self.points[point].1
    }

    /// The point closest to a hash.
    pub(super) fn nearest(&self, hash: u32) -> usize {
        let next = self.points.partition_point(|&(point, _)| point < hash) % self.points.len();
        let prev = (next + self.points.len() - 1) % self.points.len();
        let after = self.points[next].0.wrapping_sub(hash);
        let before = hash.wrapping_sub(self.points[prev].0);
        if before <= after { prev } else { next }
    }

    /// From a point on, the first server that is wanted; the starting one if none is.
    pub(super) fn walk(&self, from: usize, wanted: impl Fn(u32) -> bool) -> usize {
        (0..self.points.len())
            .map(|step| self.points[(from + step) % self.points.len()].1)
            .find(|&server| wanted(server))
            .unwrap_or(self.points[from].1) as usize
    }
}
