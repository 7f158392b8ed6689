//! Where a cluster lives: its directory, and the lock that says that its supervisor is alive.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use phalanx_sys::process::effective_uid;

/// The directory of the cluster of this user that has no name.
fn default_dir() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if Path::new(&dir).is_dir() => Path::new(&dir).join("phalanx"),
        _ => PathBuf::from(format!("/tmp/phalanx-{}", effective_uid())),
    }
}

/// The directory for a new cluster, made if need be and fit to be trusted.
pub(super) fn create(dir: Option<&Path>) -> Result<PathBuf, String> {
    let named = dir.is_some();
    let dir = dir.map_or_else(default_dir, Path::to_owned);
    let failed = |e: std::io::Error| format!("cannot create directory '{}': {e}", dir.display());
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed)?;
    check_owner(&dir, named)?;
    dir.canonicalize().map_err(failed)
}

/// The directory of a cluster that should exist.
pub(super) fn existing(dir: Option<&Path>) -> Result<PathBuf, String> {
    let named = dir.is_some();
    let dir = dir.map_or_else(default_dir, Path::to_owned);
    let found = dir.canonicalize().map_err(|_| not_running(&dir))?;
    check_owner(&dir, named)?;
    Ok(found)
}

/// What to say when nothing runs in `dir`.
pub(super) fn not_running(dir: &Path) -> String {
    format!("no cluster is running in '{}' (start one with 'phalanx cluster up')", dir.display())
}

/// /tmp is everybody's: a directory that another user made there could hold their sockets, and a link
/// that they made there could lead to a directory of ours that is not to be emptied. A directory
/// that was named on the command line may be reached by links.
fn check_owner(dir: &Path, named: bool) -> Result<(), String> {
    let meta = if named { fs::metadata(dir) } else { fs::symlink_metadata(dir) };
    let meta = meta.map_err(|e| format!("'{}': {e}", dir.display()))?;
    if !meta.is_dir() {
        return Err(format!("'{}' is not a directory", dir.display()));
    }
    if meta.uid() != effective_uid() {
        return Err(format!("directory '{}' belongs to another user", dir.display()));
    }
    Ok(())
}

/// Held for as long as the supervisor lives; the kernel lets go of it whatever happens.
#[derive(Debug)]
pub(super) struct Lock(#[allow(dead_code, reason = "held, never read")] File);

/// Takes the directory for a supervisor.
pub(super) fn lock(dir: &Path) -> Result<Lock, String> {
    let path = dir.join("lock");
    let file = File::create(&path).map_err(|e| format!("cannot create '{}': {e}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(format!(
            "a cluster is running in '{}' already (see 'phalanx cluster status', '… down', or use --dir)",
            dir.display()
        )),
        Err(TryLockError::Error(e)) => Err(format!("cannot lock '{}': {e}", path.display())),
    }
}

/// Waits for a supervisor to have left `dir`.
pub(super) fn wait_until_free(dir: &Path) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while dir.join("lock").exists() {
        if Instant::now() > deadline {
            return Err(format!("the supervisor of '{}' does not end", dir.display()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Removes what is only of use while the cluster runs, or all of it unless it is to be kept. The lock
/// goes last: its absence says that the rest is done.
pub(super) fn remove(dir: &Path, keep: bool) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let socket = entry.file_type().is_ok_and(|t| t.is_socket());
        let of_use = !socket && entry.file_name() != "cluster.json";
        if entry.file_name() == "lock" || (keep && of_use) {
            continue;
        }
        let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
    let _ = fs::remove_file(dir.join("lock"));
    if !keep {
        let _ = fs::remove_dir(dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_directory_loses_only_what_is_of_no_use_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = create(Some(&dir.path().join("c"))).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(cluster.join("n1.sock")).unwrap();
        fs::create_dir(cluster.join("data")).unwrap();
        for name in ["cluster.json", "n1.log", "phalanx.cfg"] {
            fs::write(cluster.join(name), "").unwrap();
        }
        let held = lock(&cluster).unwrap();
        assert!(lock(&cluster).unwrap_err().contains("already"));
        drop(held);
        remove(&cluster, true);
        let mut left: Vec<_> = fs::read_dir(&cluster).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["data", "n1.log", "phalanx.cfg"]);
        remove(&cluster, false);
        assert!(!cluster.exists());
    }

    #[test]
    fn a_link_in_the_place_of_the_default_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(check_owner(&link, false).unwrap_err().contains("is not a directory"));
        assert!(check_owner(&link, true).is_ok());
    }
}
