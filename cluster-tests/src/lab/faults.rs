//! Faults inside a node: a small library in C that is preloaded into it and steps its wall clock,
//! makes its syncs slow or lets them fail, as a file tells that the harness writes.
//!
//! A namespace has no wall clock of its own and a disk cannot be slowed for one process, so this is
//! how a step of the clock looks to one machine of several on one. Only calls through libc are seen,
//! which is how Rust's standard library makes them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Program;

/// The library, built.
#[derive(Clone, Debug)]
pub struct Shim(PathBuf);

impl Shim {
    /// Builds it with the C compiler, in `dir`.
    ///
    /// # Errors
    /// There is no C compiler.
    pub fn build(dir: &Path) -> Result<Shim, String> {
        let (source, library) = (dir.join("faults.c"), dir.join("faults.so"));
        std::fs::write(&source, include_str!("faults.c")).map_err(|e| e.to_string())?;
        let out = Command::new("cc")
            .args(["-O2", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .output()
            .map_err(|e| format!("no C compiler 'cc' for clock steps and sync faults: {e}"))?;
        match out.status.success() {
            true => Ok(Shim(library)),
            false => Err(format!("cc: {}", String::from_utf8_lossy(&out.stderr))),
        }
    }
}

/// The faults of one node.
#[derive(Debug)]
pub struct Faults {
    file: File,
    path: PathBuf,
}

impl Faults {
    /// None yet, told by a file at `path`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(path: &Path) -> Result<Faults, String> {
        let file = File::create(path).map_err(|e| format!("cannot write '{}': {e}", path.display()))?;
        let faults = Faults { file, path: path.to_owned() };
        faults.clear();
        Ok(faults)
    }

    /// The program with the library in it.
    #[must_use]
    pub fn inject(&self, program: Program, shim: &Shim) -> Program {
        program.env("LD_PRELOAD", shim.0.display()).env("LAB_FAULTS", self.path.display())
    }

    /// The node's wall clock is so far ahead, or behind.
    pub fn step_clock(&self, milliseconds: i64) {
        self.set(0, milliseconds);
    }

    /// Each sync takes so much longer.
    pub fn slow_sync(&self, milliseconds: u32) {
        self.set(1, milliseconds.into());
    }

    /// Syncs fail with `EIO`.
    pub fn fail_sync(&self, fail: bool) {
        self.set(2, fail.into());
    }

    /// Undoes all.
    pub fn clear(&self) {
        (0..3).for_each(|field| self.set(field, 0));
    }

    fn set(&self, field: u64, value: i64) {
        self.file.write_all_at(&value.to_ne_bytes(), field * 8).expect("24 bytes of a file of ours");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preloaded_program_sees_another_time_and_cannot_sync() {
        let dir = tempfile::tempdir().unwrap();
        let Ok(shim) = Shim::build(dir.path()) else {
            eprintln!("not run: it needs a C compiler");
            return;
        };
        let faults = Faults::new(&dir.path().join("faults")).unwrap();
        let run = |words: &[&str]| {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).env("LD_PRELOAD", &shim.0).env("LAB_FAULTS", &faults.path);
            command.output().unwrap()
        };
        let year = || {
            String::from_utf8(run(&["date", "-u", "+%s%N"]).stdout).unwrap().trim().parse::<i64>().unwrap()
        };
        let now = year();
        faults.step_clock(-3_600_500);
        let before = year();
        assert!((-3_601_000_000_000..-3_590_000_000_000).contains(&(before - now)), "{}", before - now);
        let file = faults.path.display().to_string();
        assert!(run(&["sync", "-d", &file]).status.success());
        faults.fail_sync(true);
        assert!(!run(&["sync", "-d", &file]).status.success());
    }
}
