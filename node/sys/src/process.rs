//! The process itself: identity, capabilities, limits, background, CPUs.
//!
//! What changes identity or forks must be called by `main` while the process has one thread; each
//! such function says so and refuses otherwise.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{ForkResult, Gid, Group, Pid, Uid, User};

/// A Linux capability that we ask for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// `CAP_NET_BIND_SERVICE`: ports below 1024.
    NetBindService,
    /// `CAP_NET_ADMIN`: addresses, nftables, transparent sockets.
    NetAdmin,
    /// `CAP_NET_RAW`: packet sockets, binding to an interface.
    NetRaw,
}

impl Capability {
    fn bit(self) -> u64 {
        1 << match self {
            Capability::NetBindService => 10,
            Capability::NetAdmin => 12,
            Capability::NetRaw => 13,
        }
    }

    /// Name as the manuals write it.
    pub fn name(self) -> &'static str {
        match self {
            Capability::NetBindService => "CAP_NET_BIND_SERVICE",
            Capability::NetAdmin => "CAP_NET_ADMIN",
            Capability::NetRaw => "CAP_NET_RAW",
        }
    }

    /// Whether the calling thread has it in effect.
    pub fn effective(self) -> bool {
        effective_capabilities().is_ok_and(|mask| mask & self.bit() != 0)
    }
}

/// Who to become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `user`/`uid`.
    pub uid: Option<u32>,
    /// `group`/`gid`.
    pub gid: Option<u32>,
}

/// Changes group, supplementary groups and user, keeping the named capabilities (those that the
/// process has) across the change.
///
/// # Errors
/// With the step that failed; `Unsupported` when other threads run already, because capabilities
/// belong to threads.
pub fn become_identity(identity: Identity, keep: &[Capability]) -> io::Result<()> {
    if identity == Identity::default() {
        return Ok(());
    }
    single_threaded("changing the user")?;
    let keep: u64 = keep.iter().filter(|c| c.effective()).map(|c| c.bit()).sum();
    if keep != 0 {
        // SAFETY: PR_SET_KEEPCAPS takes one integer and touches no memory of ours.
        check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) })
            .map_err(at("prctl(PR_SET_KEEPCAPS)"))?;
    }
    if let Some(gid) = identity.gid {
        let gid = Gid::from_raw(gid);
        if Uid::effective().is_root() {
            nix::unistd::setgroups(&[gid]).map_err(at("setgroups"))?;
        }
        nix::unistd::setgid(gid).map_err(at("setgid"))?;
    }
    if let Some(uid) = identity.uid {
        if identity.gid.is_none() && Uid::effective().is_root() {
            nix::unistd::setgroups(&[]).map_err(at("setgroups"))?;
        }
        nix::unistd::setuid(Uid::from_raw(uid)).map_err(at("setuid"))?;
    }
    if keep != 0 && identity.uid.is_some_and(|uid| uid != 0) {
        set_capabilities(keep).map_err(at("capset"))?;
        // Ambient, so that the guardian, which is executed anew, has them too.
        for bit in (0..64).filter(|bit| keep & (1 << bit) != 0) {
            // SAFETY: PR_CAP_AMBIENT takes integers and touches no memory of ours.
            check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, bit, 0, 0) })
                .map_err(at("prctl(PR_CAP_AMBIENT_RAISE)"))?;
        }
    }
    Ok(())
}

/// Changes the root directory, and the working directory to it.
///
/// # Errors
/// What `chroot` or `chdir` said.
pub fn chroot(dir: &Path) -> io::Result<()> {
    nix::unistd::chroot(dir)?;
    Ok(nix::unistd::chdir("/")?)
}

/// A user's id and primary group, by name.
///
/// # Errors
/// What the user database said; `Ok(None)` when there is no such user.
pub fn user(name: &str) -> io::Result<Option<(u32, u32)>> {
    Ok(User::from_name(name)?.map(|u| (u.uid.as_raw(), u.gid.as_raw())))
}

/// A group's id, by name.
///
/// # Errors
/// What the group database said; `Ok(None)` when there is no such group.
pub fn group(name: &str) -> io::Result<Option<u32>> {
    Ok(Group::from_name(name)?.map(|g| g.gid.as_raw()))
}

/// User that the process acts as.
pub fn effective_uid() -> u32 {
    Uid::effective().as_raw()
}

/// The machine's host name, else `localhost`.
pub fn hostname() -> String {
    nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_else(|| "localhost".into())
}

/// Limits of open files: soft, hard.
///
/// # Errors
/// What `getrlimit` said.
pub fn nofile() -> io::Result<(u64, u64)> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?)
}

/// Raises the limit of open files to `wanted`; the hard limit too when that is allowed. Returns the
/// soft limit that now holds, which may be lower than `wanted`.
///
/// # Errors
/// What `setrlimit` said even about the present hard limit.
pub fn raise_nofile(wanted: u64) -> io::Result<u64> {
    let (soft, hard) = nofile()?;
    if soft >= wanted {
        return Ok(soft);
    }
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).is_ok() {
        return Ok(wanted);
    }
    let reachable = wanted.min(hard);
    setrlimit(Resource::RLIMIT_NOFILE, reachable, hard)?;
    Ok(reachable)
}

/// CPUs that the process may run on; at least 1.
pub fn cpus() -> usize {
    match sched_getaffinity(Pid::from_raw(0)) {
        Ok(set) => (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).count().max(1),
        Err(_) => std::thread::available_parallelism().map_or(1, |n| n.get()),
    }
}

/// Binds the calling thread to one CPU, counted among those the process may run on (modulo).
///
/// # Errors
/// What `sched_setaffinity` said.
pub fn pin_thread(index: usize) -> io::Result<()> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).collect();
    let Some(&cpu) = cpus.get(index % cpus.len().max(1)) else { return Ok(()) };
    let mut one = CpuSet::new();
    one.set(cpu)?;
    Ok(nix::sched::sched_setaffinity(Pid::from_raw(0), &one)?)
}

/// Which of the two processes came back from [`fork_to_background`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// The one that was started; it is to exit. Carries the child's pid.
    Parent(i32),
    /// The one in the background: a session of its own, standard streams on /dev/null.
    Child,
}

/// Goes on in the background (`-D`, `daemon`). Call it after everything that may fail at start, so
/// that the parent's exit code tells the truth, and before any thread starts.
///
/// # Errors
/// What `fork` or `setsid` said; `Unsupported` when other threads run already.
pub fn fork_to_background() -> io::Result<Forked> {
    single_threaded("going to the background")?;
    // SAFETY: the process has one thread (checked above), so the child's memory is consistent and no
    // lock is held by a thread that does not exist there.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Forked::Parent(child.as_raw())),
        ForkResult::Child => {
            nix::unistd::setsid()?;
            silence_standard_streams()?;
            Ok(Forked::Child)
        }
    }
}

/// Points standard input, output and error to /dev/null.
///
/// # Errors
/// What `open` or `dup2` said.
pub fn silence_standard_streams() -> io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    // A descriptor that happened to be 0..2 itself must stay open.
    if null.as_raw_fd() <= 2 {
        std::mem::forget(null);
    }
    Ok(())
}

/// Keeps the kernel from giving this process huge pages, which the allocator asks for: one costs
/// clearing two megabytes at the first touch, under whatever lock the thread holds then.
///
/// # Errors
/// What `prctl` said.
pub fn small_pages() -> io::Result<()> {
    // SAFETY: PR_SET_THP_DISABLE takes integers and touches no memory of ours.
    check(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) })
}

/// Gives the calling thread turns of this length on a CPU, in place of milliseconds: where it wakes up
/// beside a thread with longer ones, it goes first. Its share of the CPU stays what it was. Kernels
/// before 6.12 take no notice; a thread that somebody gave another policy keeps it.
///
/// # Errors
/// What `sched_setattr` said.
pub fn short_turns(of: std::time::Duration) -> io::Result<()> {
    // SAFETY: takes a thread (0 = this one) and touches no memory of ours.
    if unsafe { libc::sched_getscheduler(0) } != libc::SCHED_OTHER {
        return Ok(());
    }
    // SAFETY: plain integers, for which all zeroes are a valid value.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    attr.size = size_of::<libc::sched_attr>() as u32;
    attr.sched_policy = libc::SCHED_OTHER as u32;
    // SAFETY: takes integers and touches no memory of ours; -1 is a nice value like any other.
    attr.sched_nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    attr.sched_runtime = of.as_nanos() as u64;
    // SAFETY: the kernel reads `size` bytes of `attr`, which lives until the call returns.
    let rc = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
    check(rc as libc::c_int)
}

/// Asks the kernel to kill this process when the thread that started it ends; for demo servers and
/// the local cluster, never for the guardian.
///
/// # Errors
/// What `prctl` said.
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes one integer and touches no memory of ours.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })
}

/// Ignores the signals that a terminal or a service manager sends to a whole group of processes: the
/// guardian ends when its worker has, not before.
pub fn ignore_stop_signals() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    for number in
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2]
    {
        // SAFETY: ignoring installs no handler, so no code of ours runs in signal context.
        let _ = unsafe { signal(number, SigHandler::SigIgn) };
    }
}

/// Asks a HAProxy-like process to finish its sessions and leave.
pub const SIGUSR1: i32 = libc::SIGUSR1;

/// Asks a process to leave at once.
pub const SIGTERM: i32 = libc::SIGTERM;

/// Sends a signal to a process.
///
/// # Errors
/// What `kill` said, or `InvalidInput` for a signal that does not exist or a pid that is not one
/// process.
pub fn signal(pid: u32, signal: i32) -> io::Result<()> {
    let signal = nix::sys::signal::Signal::try_from(signal)?;
    let pid = i32::try_from(pid).ok().filter(|&p| p > 0).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(nix::sys::signal::kill(Pid::from_raw(pid), signal)?)
}

/// Sends a signal to all processes of a group.
///
/// # Errors
/// As [`signal`].
pub fn signal_group(group: u32, signal: i32) -> io::Result<()> {
    let signal = nix::sys::signal::Signal::try_from(signal)?;
    // 0 and 1 would be this process's own group, and everybody.
    let group = i32::try_from(group).ok().filter(|&g| g > 1).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(nix::sys::signal::killpg(Pid::from_raw(group), signal)?)
}

/// Whether a process with this pid exists, and not only as what its parent has not waited for yet.
pub fn alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
    let ended = matches!(fields.next(), Some("Z" | "X") | None);
    // Field 20. The first thread may be gone while others still hold the process's sockets open.
    let threads = fields.nth(16).and_then(|threads| threads.parse::<u32>().ok());
    !ended || threads.is_some_and(|threads| threads > 1)
}

fn single_threaded(what: &str) -> io::Result<()> {
    match status_field("Threads:").as_deref() {
        Some("1") | None => Ok(()),
        Some(n) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("{what} needs a process with one thread, not {n}"),
        )),
    }
}

fn status_field(name: &str) -> Option<String> {
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    status.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_owned())
}

/// What `capget` and `capset` take: version 3, the calling thread.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAP_HEADER: CapHeader = CapHeader { version: 0x2008_0522, pid: 0 };

/// Asked of the kernel and not of `/proc`, which a process after `chroot` does not see.
fn effective_capabilities() -> io::Result<u64> {
    let mut header = CAP_HEADER;
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 reads one header and writes exactly two data words, which both outlive the call.
    let rc = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    check(rc as libc::c_int)?;
    Ok(u64::from(data[0].effective) | u64::from(data[1].effective) << 32)
}

fn set_capabilities(mask: u64) -> io::Result<()> {
    let mut header = CAP_HEADER;
    let half = |word: u32| CapData { effective: word, permitted: word, inheritable: word };
    let data = [half(mask as u32), half((mask >> 32) as u32)];
    // SAFETY: version 3 reads one header and exactly two data words, which both outlive the call.
    let rc = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    check(rc as libc::c_int)
}

fn check(rc: libc::c_int) -> io::Result<()> {
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> io::Error {
    move |e| {
        let e = e.into();
        io::Error::new(e.kind(), format!("{step}: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_by_name() {
        assert_eq!(user("root").unwrap(), Some((0, 0)));
        assert_eq!(group("root").unwrap(), Some(0));
        assert_eq!(user("no-such-user-here").unwrap(), None);
        assert_eq!(group("no-such-group-here").unwrap(), None);
    }

    #[test]
    fn huge_pages_can_be_done_without() {
        small_pages().unwrap();
        assert_eq!(status_field("THP_enabled:").as_deref(), Some("0"));
    }

    #[test]
    fn short_turns_keep_the_nice_value() {
        // SAFETY: takes integers and touches no memory of ours.
        let nice = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let before = nice();
        short_turns(std::time::Duration::from_micros(100)).unwrap();
        assert_eq!(nice(), before);
    }

    #[test]
    fn limits_never_go_down() {
        let (soft, _) = nofile().unwrap();
        assert_eq!(raise_nofile(1).unwrap(), soft);
        assert!(raise_nofile(soft + 1).unwrap() >= soft);
    }

    #[test]
    fn cpus_and_pinning_agree() {
        let before = cpus();
        assert!(before >= 1);
        std::thread::spawn(|| {
            pin_thread(0).unwrap();
            assert_eq!(cpus(), 1);
        })
        .join()
        .unwrap();
        assert_eq!(cpus(), before);
    }

    #[test]
    fn liveness_follows_the_process() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(alive(child.id()));
        signal(child.id(), libc::SIGKILL).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while alive(child.id()) {
            assert!(std::time::Instant::now() < deadline, "a zombie is not alive");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!alive(child.id()));
        assert!(signal(0, libc::SIGTERM).is_err());
    }

    #[test]
    fn forking_is_refused_among_threads() {
        // The test harness runs this in a thread of its own.
        assert_eq!(fork_to_background().unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
}
