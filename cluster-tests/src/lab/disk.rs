//! A disk of limited size for a node's data: a `tmpfs`, which can be filled to the last byte.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Mounted while it lives.
#[derive(Debug)]
pub struct Disk {
    at: PathBuf,
}

impl Disk {
    /// Mounts one of so many MiB at `at`, which is made.
    ///
    /// # Errors
    /// What failed.
    pub fn mount(at: &Path, mebibytes: u32) -> Result<Disk, String> {
        std::fs::create_dir_all(at).map_err(|e| format!("cannot make '{}': {e}", at.display()))?;
        let options = format!("size={mebibytes}m,mode=755");
        let out = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "phxlab"]).arg(at).output();
        let out = out.map_err(|e| format!("mount: {e}"))?;
        if !out.status.success() {
            return Err(format!("mount: {}", String::from_utf8_lossy(&out.stderr)));
        }
        Ok(Disk { at: at.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Writes until nothing more fits.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn fill(&self) -> Result<(), String> {
        let mut file = File::create(self.filler()).map_err(|e| e.to_string())?;
        let block = vec![b'x'; 64 * 1024];
        while file.write_all(&block).is_ok() {}
        while file.write_all(b"x").is_ok() {}
        Ok(())
    }

    /// Undoes [`Disk::fill`].
    pub fn free(&self) {
        let _ = std::fs::remove_file(self.filler());
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

/// Does to the end of a log what a crash in the middle of a write does: half of a record more, of
/// bytes that were never written as they are. What was synced before stays. Returns the file.
///
/// # Errors
/// There is none, or it cannot be written.
pub fn corrupt_tail(dir: &Path, random: u64) -> Result<PathBuf, String> {
    let mut newest: Option<(std::time::SystemTime, PathBuf)> = None;
    for entry in walk(dir) {
        let is_log = entry.extension().is_some_and(|e| e == "log" || e == "redb" || e == "wal");
        let modified = std::fs::metadata(&entry).and_then(|m| m.modified());
        if let (true, Ok(modified)) = (is_log, modified)
            && newest.as_ref().is_none_or(|(t, _)| *t <= modified)
        {
            newest = Some((modified, entry));
        }
    }
    let (_, path) = newest.ok_or_else(|| format!("no log in '{}'", dir.display()))?;
    let fail = |e: std::io::Error| format!("'{}': {e}", path.display());
    let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(fail)?;
    let end = file.seek(SeekFrom::End(0)).map_err(fail)?;
    let torn: Vec<u8> = (0..23u64).map(|i| (random.rotate_left(i as u32 * 7) ^ i) as u8).collect();
    file.write_all_at(&torn, end).map_err(fail)?;
    Ok(path)
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(walk(&entry.path())),
            _ => found.push(entry.path()),
        }
    }
    found
}
