//! Of the process: the `global` section, where logs go and where the Runtime API listens.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::Pos;

/// Process-wide parameters (manual section 3).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Global {
    /// `maxconn`: concurrent frontend connections of the process; `None` = derived from the
    /// file-descriptor limit.
    pub maxconn: Option<u32>,
    /// `nbthread`: workers; `None` = one per CPU that the process may run on.
    pub nbthread: Option<u32>,
    /// `log` targets.
    pub logs: Vec<LogTarget>,
    /// `log-tag`, default `phalanx` as program name in syslog headers (HAProxy: `haproxy`).
    pub log_tag: Option<String>,
    /// `log-send-hostname`: `Some(None)` = the system's host name.
    pub log_send_hostname: Option<Option<String>>,
    /// `stats socket` lines.
    pub stats_sockets: Vec<StatsSocket>,
    /// `stats timeout`, default 10 s.
    pub stats_timeout: Option<Duration>,
    /// `user` resolved or `uid`.
    pub uid: Option<u32>,
    /// `group` resolved or `gid`.
    pub gid: Option<u32>,
    /// `chroot`.
    pub chroot: Option<PathBuf>,
    /// `daemon`.
    pub daemon: bool,
    /// `pidfile`.
    pub pidfile: Option<PathBuf>,
    /// `localpeer`; `-L` wins over it.
    pub localpeer: Option<String>,
    /// `node`: shown by `show info` and the stats page.
    pub node: Option<String>,
    /// `description`.
    pub description: Option<String>,
    /// `ulimit-n`.
    pub ulimit_n: Option<u64>,
    /// `hard-stop-after`.
    pub hard_stop_after: Option<Duration>,
    /// `spread-checks`, percent 0..=50.
    pub spread_checks: u32,
    /// `tune.bufsize` in bytes, default 16384.
    pub bufsize: Option<usize>,
    /// `maxpipes`: pipes for splicing, of the process; `None` = a quarter of `maxconn`.
    pub maxpipes: Option<u32>,
    /// `tune.pipesize` in bytes; `None` = our default, as far as the system grants it.
    pub pipesize: Option<usize>,
    /// `nosplice`: bytes are always copied.
    pub nosplice: bool,
}

/// Where a `log` line sends to (`log` in section 4.2).
#[derive(Clone, Debug, PartialEq)]
pub struct LogTarget {
    /// The receiver.
    pub to: LogReceiver,
    /// `format`, default `local` for UDP and `rfc3164`'s local form; see manual.
    pub format: LogFraming,
    /// `len`: longest line in bytes, default 1024.
    pub len: usize,
    /// Syslog facility 0..=23.
    pub facility: u8,
    /// Least important level sent, 0 emerg ..= 7 debug; default 7.
    pub level: u8,
    /// Messages more important than this are sent at this level; default 0.
    pub min_level: u8,
}

/// The receiver of a log line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LogReceiver {
    /// UDP syslog, default port 514.
    Udp(SocketAddr),
    /// A datagram unix socket such as `/dev/log`.
    Unix(PathBuf),
    /// `stdout` or `fd@1`.
    Stdout,
    /// `stderr` or `fd@2`.
    Stderr,
}

/// The header put before the message (`format` of a `log` line).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFraming {
    /// `<pri>date tag[pid]: ` (the default).
    Local,
    /// As `Local` with the host name.
    Rfc3164,
    /// RFC 5424.
    Rfc5424,
    /// `<pri>` only, as syslog over a pipe wants it.
    Priority,
    /// `<level>` in brackets only.
    Short,
    /// `date tag[pid]: ` without priority.
    Timed,
    /// As `Timed` with an ISO date.
    Iso,
    /// The message only.
    Raw,
}

/// A Runtime API socket (`stats socket`).
#[derive(Clone, Debug, PartialEq)]
pub struct StatsSocket {
    /// Where it listens.
    pub addr: StatsAddr,
    /// Permissions of the unix socket.
    pub mode: Option<u32>,
    /// Owner of the unix socket.
    pub uid: Option<u32>,
    /// Group of the unix socket.
    pub gid: Option<u32>,
    /// What the commands of this socket may do.
    pub level: Level,
    /// `expose-fd listeners`.
    pub expose_fd: bool,
    /// Where it was declared.
    pub pos: Pos,
}

/// Address of a Runtime API socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StatsAddr {
    /// A stream unix socket.
    Unix(PathBuf),
    /// TCP.
    Tcp(SocketAddr),
}

/// Rights on the Runtime API, in rising order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Reads that tell nothing sensitive.
    User,
    /// All reads (the default).
    #[default]
    Operator,
    /// Everything.
    Admin,
}
