//! What the process may use and who it is: descriptors, user, root directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use phalanx_config::{Announce, Config};
use phalanx_engine::log;
use phalanx_engine::time::Now;
use phalanx_sys::process::{self, Capability, Identity};

/// Descriptors that a node needs besides those of its connections.
const BASE_FDS: u64 = 200;

/// Connections assumed where neither the configuration nor the limits say a number.
const MAX_DERIVED_MAXCONN: u64 = 1 << 20;

/// Raises the limit of open files to what `maxconn` needs and returns the `maxconn` to use where the
/// configuration gives none: two descriptors a connection, as HAProxy counts them.
///
/// # Errors
/// One line, when the limit is too low for the configured `maxconn`.
pub(super) fn descriptors(config: &Config) -> Result<u32, String> {
    let describe = |e: io::Error| format!("cannot read the limit of open files: {e}");
    let (_, hard) = process::nofile().map_err(describe)?;
    let wanted = match (config.global.ulimit_n, config.global.maxconn) {
        (Some(n), _) => n,
        // A pipe has two as well; those that nobody asked for make do with what is left.
        (None, Some(maxconn)) => {
            2 * (u64::from(maxconn) + u64::from(config.global.maxpipes.unwrap_or(0))) + BASE_FDS
        }
        (None, None) => hard,
    };
    let have = process::raise_nofile(wanted)
        .map_err(|e| format!("cannot raise the limit of open files to {wanted}: {e}"))?;
    if have < wanted {
        return Err(format!(
            "the limit of open files is {have}, but maxconn {} needs {wanted}: raise the limit or lower maxconn",
            config.global.maxconn.unwrap_or_default()
        ));
    }
    let derived = (have.saturating_sub(BASE_FDS) / 2).clamp(1, MAX_DERIVED_MAXCONN);
    Ok(derived as u32)
}

/// Creates what must exist before the process gives up its rights: the data directory. Returns it as the
/// process will see it after `chroot`.
///
/// # Errors
/// One line naming what could not be made.
pub(super) fn data_dir(config: &Config) -> Result<PathBuf, String> {
    let Some(cluster) = &config.cluster else { return Ok(PathBuf::new()) };
    let dir = cluster.data_dir.clone();
    fs::create_dir_all(&dir).map_err(|e| format!("data-dir '{}': {e}", dir.display()))?;
    if process::effective_uid() == 0 && (config.global.uid.is_some() || config.global.gid.is_some()) {
        std::os::unix::fs::chown(&dir, config.global.uid, config.global.gid).map_err(|e| {
            format!("data-dir '{}': cannot give it to the configured user: {e}", dir.display())
        })?;
    }
    if let Some(root) = &config.global.chroot {
        let real = |path: &Path| path.canonicalize().map_err(|e| format!("'{}': {e}", path.display()));
        let (real_dir, real_root) = (real(&dir)?, real(root)?);
        let below = real_dir.strip_prefix(&real_root).map_err(|_| outside(&dir, root))?;
        return Ok(Path::new("/").join(below));
    }
    Ok(dir)
}

/// Whether a process could start below `root` with its data in `dir`, as one sees it whose configuration says
/// `running`: a push whose `chroot` leaves out the data directory would end every node at its next start.
///
/// # Errors
/// What is wrong with the two.
pub(crate) fn fits_below(running: Option<&Path>, root: Option<&Path>, dir: &Path) -> Result<(), String> {
    let Some(root) = root else { return Ok(()) };
    // Who is below one already can't see what lies where; and it has started with this one.
    if running == Some(root) || dir.starts_with(root) && running.is_some() {
        return Ok(());
    }
    let real = |path: &Path| path.canonicalize().map_err(|e| format!("chroot '{}': {e}", root.display()));
    let inside = match running {
        Some(_) => false,
        None => dir.canonicalize().unwrap_or_else(|_| dir.to_owned()).starts_with(real(root)?),
    };
    if inside { Ok(()) } else { Err(outside(dir, root)) }
}

fn outside(dir: &Path, root: &Path) -> String {
    format!(
        "data-dir '{}' lies outside chroot '{}', where the process cannot reach it: expects a directory below, \
         such as '{}'",
        dir.display(),
        root.display(),
        root.join("data").display()
    )
}

/// Carries out `chroot`, `group` and `user`. Capabilities that the configuration needs later are
/// kept: low ports at a reload, addresses of VIPs.
///
/// # Errors
/// One line naming the step.
pub(super) fn confine(config: &Config, now: Now) -> Result<(), String> {
    let global = &config.global;
    if let Some(dir) = &global.chroot {
        // Log lines are in local time, and the zone's data lies outside.
        log::remember_zone(now.unix_us / 1_000_000);
        process::chroot(dir).map_err(|e| format!("cannot chroot to '{}': {e}", dir.display()))?;
    }
    let mut keep = Vec::new();
    if config.proxies.iter().flat_map(|p| &p.binds).any(|b| b.addr.port() < 1024) {
        keep.push(Capability::NetBindService);
    }
    let vips = config.cluster.iter().flat_map(|c| &c.vips);
    if vips.clone().any(|v| matches!(v.announce, Announce::HealthPort(port) if port < 1024)) {
        keep.push(Capability::NetBindService);
    }
    if vips.clone().any(|v| v.announce == Announce::Arp) {
        keep.extend([Capability::NetAdmin, Capability::NetRaw]);
    }
    if config.proxies.iter().flat_map(|p| &p.binds).any(|b| b.interface.is_some() || b.transparent) {
        keep.extend([Capability::NetAdmin, Capability::NetRaw]);
    }
    let identity = Identity { uid: global.uid, gid: global.gid };
    process::become_identity(identity, &keep).map_err(|e| {
        let user = global.uid.map_or("-".to_owned(), |u| u.to_string());
        let group = global.gid.map_or("-".to_owned(), |g| g.to_string());
        format!("cannot become user {user}, group {group}: {e}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_that_leaves_out_the_data_is_refused_before_it_is_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("root/data")).unwrap();
        fs::create_dir_all(at("other")).unwrap();
        std::os::unix::fs::symlink(at("root"), at("link")).unwrap();
        let fits = |running: Option<&str>, root: Option<&str>| {
            fits_below(running.map(at).as_deref(), root.map(at).as_deref(), &at("root/data"))
        };
        assert_eq!(fits(None, None), Ok(()));
        assert_eq!(fits(None, Some("root")), Ok(()));
        assert_eq!(fits(None, Some("link")), Ok(()));
        let why = fits(None, Some("other")).unwrap_err();
        assert!(why.contains("lies outside chroot") && why.contains("/other/data'"), "{why}");
        assert!(fits(None, Some("nowhere")).unwrap_err().contains("/nowhere"));
        // Who lives below one already goes by names.
        assert!(fits(Some("root"), Some("other")).is_err());
        assert_eq!(fits(Some("link"), Some("link")), Ok(()));
        assert_eq!(fits(Some("other"), Some("root")), Ok(()));
    }
}
