//! Telling systemd how far the process is and that it is well (`sd_notify(3)`, used with `-Ws`).
//!
//! The socket is opened before the process gives up its rights, as `chroot` would hide it. What is sent
//! may be lost, never waited for: a service manager that does not read must not hold the node up.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use phalanx_sys::clock;

/// The service manager; silent when there is none.
#[derive(Debug, Default)]
pub(crate) struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// The one that the environment names.
    ///
    /// # Errors
    /// `NOTIFY_SOCKET` names what cannot be reached, or `WATCHDOG_USEC` is no number.
    pub(crate) fn from_env() -> Result<Notifier, String> {
        let var = |name: &str| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
        let Some(name) = var("NOTIFY_SOCKET") else { return Ok(Notifier::default()) };
        let socket =
            connect(&name).map_err(|e| format!("NOTIFY_SOCKET '{}': {e}", name.to_string_lossy()))?;
        let number = |name: &str| match var(name) {
            None => Ok(None),
            Some(text) => match text.to_string_lossy().parse::<u64>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(format!("{name} '{}': expects a number", text.to_string_lossy())),
            },
        };
        // With a pid it is for that process alone.
        let ours = number("WATCHDOG_PID")?.is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC")?.filter(|&us| us > 0 && ours).map(Duration::from_micros);
        Ok(Notifier { socket: Some(socket), watchdog })
    }

    /// Whether somebody listens.
    pub(crate) fn is_heard(&self) -> bool {
        self.socket.is_some()
    }

    /// How long it waits for [`Notifier::alive`] before it ends the process.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The node serves, for the first time or again after a reload.
    pub(crate) fn ready(&self) {
        self.send("READY=1");
    }

    /// A reload begins; [`Notifier::ready`] ends it.
    pub(crate) fn reloading(&self) {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", clock::monotonic_us()));
    }

    /// The node is about to end.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=Stopping.");
    }

    /// One line for people: `systemctl status` shows it.
    pub(crate) fn status(&self, text: &str) {
        let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.send(&format!("STATUS={line}"));
    }

    /// The node is well.
    pub(crate) fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, state: &str) {
        if let Some(socket) = &self.socket
            && let Err(e) = socket.send(state.as_bytes())
        {
            tracing::warn!("cannot tell the service manager '{}': {e}", state.lines().next().unwrap_or(""));
        }
    }
}

/// A socket to a path, or to an abstract name that begins with `@`.
fn connect(name: &OsString) -> io::Result<UnixDatagram> {
    let addr = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&addr)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
