//! Files read again after the process has changed its root directory or user, and files replaced as a whole.
//!
//! A reload reads the configuration files that the process started with. `chroot` would hide them;
//! a handle of the directory that each lies in, taken before, still finds them, also when an editor
//! or a configuration tool replaced the file by renaming.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

/// A directory held open.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
}

impl Dir {
    /// Opens the directory `path`; an empty path is the working directory.
    ///
    /// # Errors
    /// What `open` said.
    pub fn open(path: &Path) -> io::Result<Dir> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Dir { fd: nix::fcntl::open(path, flags, Mode::empty())? })
    }

    /// Reads the file `name` of this directory, at most `max` bytes of it.
    ///
    /// # Errors
    /// What `open` or `read` said; `InvalidData` when the file is longer than `max`.
    pub fn read(&self, name: &OsStr, max: u64) -> io::Result<Vec<u8>> {
        let fd = openat(&self.fd, Path::new(name), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut text = Vec::new();
        File::from(fd).take(max + 1).read_to_end(&mut text)?;
        if text.len() as u64 > max {
            let message = format!("longer than the {max} bytes that a configuration file may have");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(text)
    }

    /// Names in this directory, in byte order.
    ///
    /// # Errors
    /// What `readdir` said.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let mut dir =
            nix::dir::Dir::openat(&self.fd, ".", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            names.push(OsString::from_vec(entry?.file_name().to_bytes().to_vec()));
        }
        names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        Ok(names)
    }
}

/// Replaces the file `name` in `dir` by one with these `parts`, or leaves it as it is: written beside, as
/// `name` with `.new`, and on the disk before it takes the name. Only the owner may read it with `secret`.
///
/// # Errors
/// What the system said; after an error in syncing the directory, either file may be there.
pub fn replace(dir: &Path, name: &str, parts: &[&[u8]], secret: bool) -> io::Result<()> {
    let new = dir.join(format!("{name}.new"));
    let mode = if secret { 0o600 } else { 0o666 };
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
    if secret {
        // One that was left there may have another mode.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    parts.iter().try_for_each(|part| file.write_all(part))?;
    file.sync_all()?;
    fs::rename(&new, dir.join(name))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_read_anew() {
        let path = std::env::temp_dir().join(format!("phalanx-files-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("b"), "old").unwrap();
        std::fs::write(path.join("a"), "x").unwrap();
        let dir = Dir::open(&path).unwrap();
        assert_eq!(dir.read(OsStr::new("b"), 10).unwrap(), b"old");
        std::fs::write(path.join("new"), "new").unwrap();
        std::fs::rename(path.join("new"), path.join("b")).unwrap();
        assert_eq!(dir.read(OsStr::new("b"), 10).unwrap(), b"new");
        assert_eq!(dir.read(OsStr::new("b"), 2).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let names: Vec<_> = dir.names().unwrap().into_iter().filter(|n| n != "." && n != "..").collect();
        assert_eq!(names, ["a", "b"]);
        std::fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_or_not_at_all() {
        let path = std::env::temp_dir().join(format!("phalanx-replace-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let names = || {
            let names = fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            names.collect::<Vec<_>>()
        };
        // What a crash left beside it, readable for all.
        fs::write(path.join("f.new"), "something longer").unwrap();
        replace(&path, "f", &[b"a", b"bc"], true).unwrap();
        assert_eq!(fs::read(path.join("f")).unwrap(), b"abc");
        assert_eq!(fs::metadata(path.join("f")).unwrap().permissions().mode() & 0o777, 0o600);
        replace(&path, "f", &[b"d"], false).unwrap();
        assert_eq!((fs::read(path.join("f")).unwrap(), names()), (b"d".to_vec(), vec!["f".to_owned()]));
        // It cannot be written beside: what is there stays.
        fs::create_dir(path.join("f.new")).unwrap();
        assert!(replace(&path, "f", &[b"e"], false).is_err());
        assert_eq!(fs::read(path.join("f")).unwrap(), b"d");
        fs::remove_dir_all(&path).unwrap();
    }
}
