//! The arbiter's book: who has how many places on which server, and who should have them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::message::{Ballot, Key, Line};
use super::{GRACE, Peer};
use crate::time::Now;
use crate::verdict::NodeName;

/// While somebody waits for places, the others are asked so often what they have.
const ASK: Duration = Duration::from_millis(10);
/// An order that is not carried out is sent again.
const RETRY: Duration = Duration::from_millis(100);

/// As [`Message::Order`](super::Message::Order), and for whom.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) to: NodeName,
    pub(super) incarnation: u64,
    pub(super) number: u64,
    pub(super) key: Key,
    pub(super) held: u32,
    pub(super) cap: u32,
}

#[derive(Debug)]
pub(super) struct Book {
    pub(super) ballot: Ballot,
    pub(super) orders: VecDeque<Order>,
    /// Orders so far, to whomever.
    numbers: u64,
    nodes: BTreeMap<NodeName, Member>,
    asked_at: Option<Duration>,
    /// Since when every node has reported or was found dead at some time.
    complete: Option<Duration>,
    short: bool,
}

/// What is known of a node.
#[derive(Debug, Default)]
struct Member {
    incarnation: u64,
    /// Number of its last report; 0 = it has not told what it holds.
    reports: u64,
    accounts: BTreeMap<Key, Account>,
    /// Places of earlier runs, until the servers have seen their connections end.
    ghosts: Vec<(Key, u32, Duration)>,
    lives: bool,
    /// It holds nothing, and nothing can come from it.
    dead: bool,
}

#[derive(Clone, Debug, Default)]
struct Account {
    /// The node holds no more than this.
    upper: u32,
    /// What it should come to.
    target: u32,
    /// Number of the last order, what it said, and when it was sent.
    number: u64,
    cap: u32,
    sent_at: Duration,
    applied: u64,
    limit: u32,
    served: u32,
    waiting: u32,
}

impl Account {
    fn demand(&self) -> u32 {
        self.served.saturating_add(self.waiting)
    }

    fn is_short(&self) -> bool {
        self.waiting > 0 && self.demand() > self.upper
    }
}

impl Book {
    pub(super) fn new(ballot: Ballot) -> Book {
        let (orders, nodes) = (VecDeque::new(), BTreeMap::new());
        Book { ballot, orders, numbers: 0, nodes, asked_at: None, complete: None, short: false }
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&NodeName) -> bool) {
        self.nodes.retain(|name, _| keep(name));
    }

    /// Whether somebody waits for places that others may have.
    pub(super) fn is_short(&self) -> bool {
        self.short
    }

    /// The servers that it has accounts of.
    #[cfg(test)]
    pub(super) fn servers(&self) -> usize {
        self.nodes.values().map(|m| m.accounts.len()).max().unwrap_or(0)
    }

    /// Places of a server that are or may be somebody's.
    pub(super) fn total(&self, key: &Key) -> u32 {
        sum(self.nodes.values().map(|m| m.reserved(key)))
    }

    /// Whether the nodes should be asked for reports now.
    pub(super) fn wants_reports(&mut self, now: Now, beat: bool) -> bool {
        let often = self.short || self.nodes.values().any(|m| !m.is_known());
        let due = self.asked_at.is_none_or(|at| now.mono >= at + ASK);
        let ask = beat || (often && due);
        if ask {
            self.asked_at = Some(now.mono);
        }
        ask
    }

    /// Who is there, and who is known to be dead.
    pub(super) fn presence(&mut self, me: &NodeName, peers: &BTreeMap<NodeName, Peer>, now: Now) {
        self.nodes.entry(me.clone()).or_default().lives = true;
        for name in peers.keys().filter(|name| !self.nodes.contains_key(*name)).cloned().collect::<Vec<_>>() {
            self.nodes.insert(name, Member::default());
        }
        let gone = |name: &NodeName| peers.get(name).and_then(|p| p.gone);
        let complete = self.nodes.iter().all(|(name, m)| m.reports > 0 || gone(name).is_some());
        self.complete = self.complete.or(Some(now.mono)).filter(|_| complete);
        for (name, peer) in peers {
            let Some(member) = self.nodes.get_mut(name) else { continue };
            member.lives = peer.lives(now.mono);
            member.dead = peer.gone.is_some_and(|(first, last)| {
                now.mono >= first + GRACE && self.complete.is_some_and(|since| last > since)
            });
            if member.dead {
                *member = Member { incarnation: member.incarnation, dead: true, ..Member::default() };
            }
        }
        for member in self.nodes.values_mut() {
            member.ghosts.retain(|(_, _, until)| now.mono < *until);
        }
    }

    pub(super) fn report(
        &mut self,
        from: &NodeName,
        incarnation: u64,
        number: u64,
        full: bool,
        lines: Vec<Line>,
        now: Now,
    ) {
        let member = self.nodes.entry(from.clone()).or_default();
        if incarnation < member.incarnation {
            return;
        }
        if incarnation > member.incarnation {
            // The process before is dead; its connections end about now.
            let accounts = std::mem::take(&mut member.accounts);
            let ghosts = accounts.into_iter().filter(|(_, a)| a.upper > 0);
            member.ghosts.extend(ghosts.map(|(key, a)| (key, a.upper, now.mono + GRACE)));
            (member.incarnation, member.reports) = (incarnation, 0);
        }
        // The first must be full, or something that it holds could be missing.
        if number <= member.reports || (member.reports == 0 && !full) {
            return;
        }
        let first = member.reports == 0;
        (member.reports, member.dead) = (number, false);
        if full {
            let named: BTreeSet<&Key> = lines.iter().map(|line| &line.key).collect();
            // What it does not name it holds nothing of, unless it has yet to hear an order.
            for (_, account) in member.accounts.iter_mut().filter(|(key, _)| !named.contains(key)) {
                (account.limit, account.served, account.waiting) = (0, 0, 0);
                if account.applied >= account.number {
                    account.upper = 0;
                }
            }
        }
        for line in lines {
            let account = member.accounts.entry(line.key).or_default();
            if first {
                account.target = line.held;
            }
            (account.limit, account.served, account.waiting) = (line.limit, line.served, line.waiting);
            account.applied = line.applied;
            // It may have heard a later one, of a server of this name before.
            if account.applied >= account.number {
                account.upper = line.held;
            }
        }
        member.accounts.retain(|_, a| a.limit > 0 || a.upper > 0 || a.applied < a.number);
    }

    /// Decides who should have how many places, and orders what can be done about it now.
    pub(super) fn settle(&mut self, now: Now) {
        self.short = false;
        let keys: BTreeSet<Key> = self.nodes.values().flat_map(|m| m.accounts.keys().cloned()).collect();
        for key in keys {
            self.settle_one(&key, now);
        }
    }

    fn settle_one(&mut self, key: &Key, now: Now) {
        let complete = self.nodes.values().all(Member::is_known);
        let limits = self.nodes.values().filter_map(|m| m.accounts.get(key)).map(|a| a.limit);
        // Nodes may run different configurations for a while: the lowest counts.
        let limit = limits.filter(|l| *l > 0).min().unwrap_or(0);
        let sharing = |m: &Member| m.lives && m.accounts.get(key).is_some_and(|a| a.limit > 0);
        let lost = sum(self.nodes.values().filter(|m| !sharing(m)).map(|m| m.reserved(key)));
        let ghosts = sum(self.nodes.values().filter(|m| sharing(m)).map(|m| m.ghosts(key)));
        let gone = lost.saturating_add(ghosts);
        let reserved = self.total(key);
        let available = match complete {
            true => limit.saturating_sub(gone),
            // Somebody may hold what is missing in the sum: only what is known can be moved.
            false => reserved.saturating_sub(gone).min(limit),
        };
        let mut shares: Vec<&mut Account> =
            self.nodes.values_mut().filter(|m| sharing(m)).filter_map(|m| m.accounts.get_mut(key)).collect();
        let targets = sum(shares.iter().map(|a| a.target));
        let short = shares.iter().any(|a| a.is_short());
        self.short |= short;
        if targets != available || short {
            let demands: Vec<u32> = shares.iter().map(|a| a.demand()).collect();
            for (account, target) in shares.iter_mut().zip(fair(available, &demands)) {
                account.target = target;
            }
        }
        // Who takes none is not given what it has just given back.
        for account in self.nodes.values_mut().filter_map(|m| m.accounts.get_mut(key)) {
            if account.limit == 0 {
                account.target = 0;
            }
        }
        let mut free = if complete { limit.saturating_sub(reserved) } else { 0 };
        for (name, member) in &mut self.nodes {
            let Some(account) = member.accounts.get_mut(key).filter(|_| member.lives) else { continue };
            let more = account.target.saturating_sub(account.upper).min(free);
            let cap = account.target.min(account.upper + more);
            let repeat = account.applied < account.number && now.mono >= account.sent_at + RETRY;
            if more > 0 || cap != account.cap || repeat {
                free -= more;
                account.upper += more;
                (account.cap, account.sent_at) = (cap, now.mono);
                self.numbers += 1;
                account.number = self.numbers;
                self.orders.push_back(Order {
                    to: name.clone(),
                    incarnation: member.incarnation,
                    number: account.number,
                    key: key.clone(),
                    held: account.upper,
                    cap,
                });
            }
        }
        debug_assert!(self.total(key) <= limit.max(reserved), "{key:?}: more than there are");
    }
}

impl Member {
    fn is_known(&self) -> bool {
        self.reports > 0 || self.dead
    }

    fn ghosts(&self, key: &Key) -> u32 {
        sum(self.ghosts.iter().filter(|(k, ..)| k == key).map(|(_, upper, _)| *upper))
    }

    fn reserved(&self, key: &Key) -> u32 {
        self.accounts.get(key).map_or(0, |a| a.upper).saturating_add(self.ghosts(key))
    }
}

/// Adds up what nodes have told: whatever that is, a sum that does not fit is more than there is.
fn sum(places: impl Iterator<Item = u32>) -> u32 {
    places.fold(0, u32::saturating_add)
}

/// Shares `total` out: each gets what it asks for as far as it goes, nobody more than others that ask
/// for more than they get; what is left is spread evenly, for what comes next.
pub(super) fn fair(total: u32, demands: &[u32]) -> Vec<u32> {
    let mut shares = vec![0; demands.len()];
    let mut left = total;
    loop {
        let wanting: Vec<usize> = (0..demands.len()).filter(|i| shares[*i] < demands[*i]).collect();
        if wanting.is_empty() || left == 0 {
            break;
        }
        let each = left / wanting.len() as u32;
        for i in wanting {
            // Less than one for each: one for the first ones.
            let more = each.max(1).min(demands[i] - shares[i]).min(left);
            shares[i] += more;
            left -= more;
        }
    }
    let count = shares.len() as u32;
    for (i, share) in shares.iter_mut().enumerate() {
        *share += left / count + u32::from((i as u32) < left % count);
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::super::{Ballot, Key, Line, Message, Part, Permits};
    use super::fair;
    use crate::time::Now;

    #[test]
    fn what_peers_tell_is_never_more_than_can_be_counted() {
        let at = |ms: u64| Now { mono: std::time::Duration::from_millis(ms), unix_us: ms * 1000 };
        let key = Key { backend: "b".into(), server: "s".into() };
        let mut permits = Permits::new("a", 1, at(0));
        permits.set_peers(["b", "c"].into_iter());
        permits.set_part(Part::Member);
        let ballot = Ballot { counter: u64::MAX, node: "b".into() };
        permits.handle("b", 1, Message::Claim { ballot }, at(1));
        for ms in (1000..3000).step_by(50) {
            permits.observe(&key, 10, 0, 5);
            permits.tick(at(ms));
            while permits.poll_output().is_some() {}
            let Some(ballot) = permits.book.as_ref().map(|book| book.ballot.clone()) else { continue };
            for name in ["b", "c"] {
                let most = u32::MAX;
                let (key, applied) = (key.clone(), 0);
                let line = Line { key, limit: 10, held: most, served: most, waiting: most, applied };
                let report =
                    Message::Report { ballot: ballot.clone(), number: ms, full: true, lines: vec![line] };
                permits.handle(name, 1 + ms / 1500, report, at(ms));
            }
        }
        assert_eq!(permits.view(&key).2, Some(u32::MAX), "it keeps the book, and all are taken");
        assert_eq!(permits.places(&key), 0);
    }

    #[test]
    fn shares_are_fair_and_all_of_it() {
        for (total, demands, shares) in [
            (30, &[0, 0, 0][..], &[10, 10, 10][..]),
            (30, &[90, 90, 90], &[10, 10, 10]),
            (30, &[90, 0, 0], &[30, 0, 0]),
            (30, &[90, 5, 0], &[25, 5, 0]),
            (30, &[14, 5, 5], &[16, 7, 7]),
            (30, &[90, 90, 5], &[13, 12, 5]),
            (2, &[1, 1, 1], &[1, 1, 0]),
            (0, &[1, 1], &[0, 0]),
            (5, &[], &[]),
            (1, &[u32::MAX, u32::MAX], &[1, 0]),
        ] {
            assert_eq!(fair(total, demands), shares, "{total} {demands:?}");
        }
    }
}
