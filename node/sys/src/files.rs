//! Files read again after the process has changed its root directory or user.
//!
//! A reload reads the configuration files that the process started with. `chroot` would hide them;
//! a handle of the directory that each lies in, taken before, still finds them, also when an editor
//! or a configuration tool replaced the file by renaming.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
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
}
