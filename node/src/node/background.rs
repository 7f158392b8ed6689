//! Going to the background with an exit code that tells the truth.
//!
//! `-D` forks before any thread exists; but the ports are bound later, by the child. So the parent
//! waits until the child says that it is ready, or why it is not.

use std::io::{self, PipeWriter, Read, Write};
use std::process::ExitCode;

use phalanx_sys::process::{self, Forked};

/// The child's way to speak to the waiting parent; says nothing when the process has stayed in the
/// foreground.
#[derive(Debug, Default)]
pub(super) struct Ready(Option<PipeWriter>);

const READY: u8 = 0;

impl Ready {
    /// The process serves.
    pub(super) fn ready(&mut self) {
        if let Some(mut pipe) = self.0.take() {
            let _ = pipe.write_all(&[READY]);
        }
    }

    /// It does not: `text` is shown by the parent.
    pub(super) fn failed(&mut self, text: &str) {
        match self.0.take() {
            Some(mut pipe) => drop(pipe.write_all(text.as_bytes())),
            None => eprintln!("{text}"),
        }
    }
}

/// Forks; in the parent, waits for the child's word and returns the code to exit with.
///
/// # Errors
/// What `pipe` or `fork` said.
pub(super) fn enter() -> io::Result<Result<Ready, ExitCode>> {
    let (mut reader, writer) = io::pipe()?;
    match process::fork_to_background()? {
        Forked::Child => {
            drop(reader);
            Ok(Ok(Ready(Some(writer))))
        }
        Forked::Parent(_) => {
            drop(writer);
            let mut said = Vec::new();
            reader.read_to_end(&mut said)?;
            if said == [READY] {
                return Ok(Err(ExitCode::SUCCESS));
            }
            let text = String::from_utf8_lossy(&said);
            eprintln!(
                "{}",
                if text.is_empty() { "the background process died while starting" } else { &text }
            );
            Ok(Err(ExitCode::FAILURE))
        }
    }
}
