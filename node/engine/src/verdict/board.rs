//! The machine where the check tasks and the streams to the peers meet.
//!
//! One lock around it, never held for more than a computation, and two wakers: one for who carries
//! messages, one for who probes. The request path never comes here.

use std::fmt;
use std::sync::OnceLock;

use parking_lot::{Mutex, MutexGuard};

use super::{Claim, Duty, Message, NodeName, Subject, Verdict, Verdicts};
use crate::time::Now;

type Wake = Box<dyn Fn() + Send + Sync>;

/// Shared by the check tasks and the cluster.
pub struct Board {
    machine: Mutex<Verdicts>,
    carrier: OnceLock<Wake>,
    prober: OnceLock<Wake>,
}

impl Board {
    /// The board of a node.
    pub fn new(me: &str, incarnation: u64, now: Now) -> Board {
        let machine = Mutex::new(Verdicts::new(me, incarnation, now));
        Board { machine, carrier: OnceLock::new(), prober: OnceLock::new() }
    }

    /// `wake` is called when there may be messages to carry. Only the first one counts.
    pub fn wake_carrier(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.carrier.set(Box::new(wake));
    }

    /// `wake` is called when duties or claims have changed. Only the first one counts.
    pub fn wake_prober(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.prober.set(Box::new(wake));
    }

    /// The other nodes.
    pub fn set_peers<'a>(&self, names: impl Iterator<Item = &'a str>, now: Now) {
        let mut machine = self.machine.lock();
        machine.set_peers(names, now);
        self.changed(machine);
    }

    /// What this node would probe if it were alone.
    pub fn set_subjects(&self, subjects: impl Iterator<Item = Subject>, now: Now) {
        self.machine.lock().set_subjects(subjects, now);
        self.carry();
    }

    /// What to do about a subject.
    pub fn duty(&self, subject: &Subject) -> Duty {
        self.machine.lock().duty(subject)
    }

    /// The claim of another node that probes a subject.
    pub fn claim(&self, subject: &Subject, now: Now) -> Option<(NodeName, Claim)> {
        self.machine.lock().claim(subject, now).map(|(node, claim)| (node.clone(), claim.clone()))
    }

    /// Tells what this node knows of a subject that it probes.
    pub fn observe(&self, subject: &Subject, verdict: Verdict) {
        self.machine.lock().observe(subject, verdict);
        self.carry();
    }

    /// This node alone cannot reach the server, or can again.
    pub fn set_apart(&self, subject: &Subject, apart: bool, now: Now) {
        let mut machine = self.machine.lock();
        machine.set_apart(subject, apart, now);
        self.changed(machine);
        self.carry();
    }

    /// The node to ask before a server counts as down.
    pub fn second(&self, subject: &Subject, now: Now) -> Option<NodeName> {
        self.machine.lock().second(subject, now)
    }

    /// Whether the verdicts of the others are known as far as they can be.
    pub fn is_taught(&self, now: Now) -> bool {
        self.machine.lock().is_taught(now)
    }

    /// The nodes that are heard from.
    pub fn live(&self, now: Now) -> Vec<NodeName> {
        self.machine.lock().live(now).cloned().collect()
    }

    /// Takes a message of a peer.
    pub fn handle(&self, from: &str, incarnation: u64, message: Message, now: Now) {
        let mut machine = self.machine.lock();
        machine.handle(from, incarnation, message, now);
        self.changed(machine);
        self.carry();
    }

    /// Lets time pass.
    pub fn tick(&self, now: Now) {
        let mut machine = self.machine.lock();
        machine.tick(now);
        self.changed(machine);
    }

    /// The next message to send.
    pub fn poll_output(&self) -> Option<(NodeName, Message)> {
        self.machine.lock().poll_output()
    }

    fn changed(&self, mut machine: MutexGuard<'_, Verdicts>) {
        let changed = machine.take_changed();
        drop(machine);
        if let Some(wake) = self.prober.get().filter(|_| changed) {
            wake();
        }
    }

    fn carry(&self) {
        if let Some(wake) = self.carrier.get() {
            wake();
        }
    }
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").finish_non_exhaustive()
    }
}
