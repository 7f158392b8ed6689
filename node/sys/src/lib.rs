//! Every unsafe line and Linux-only call of Phalanx, behind safe functions.
//!
//! The lowest layer: it knows none of our other crates and decides nothing. File descriptors go in
//! and out as `OwnedFd`/`BorrowedFd` or std's socket types, never as numbers.

pub mod clock;
pub mod epoll;
pub mod files;
pub mod neighbour;
pub mod net;
pub mod netlink;
pub mod process;
pub mod splice;
pub mod unix;
pub mod waker;
