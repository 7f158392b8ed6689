//! What an earlier run of this node may have granted for: after a restart with a shorter `vip-lease`, the
//! node waits for the longer one before it votes.
//!
//! One line in the data directory, written at the start and before the first vote.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use phalanx_engine::lease::Timing;
use tracing::warn;

const FILE: &str = "vip-lease";
const FILE_NEW: &str = "vip-lease.new";

/// Writes this run's term down and returns that of the run before. A node without the file may have
/// run an earlier program, which had another default. Without a directory (in tests) there was no earlier run.
pub(super) fn remember(dir: &Path, lease: Duration) -> Duration {
    if dir.as_os_str().is_empty() {
        return lease;
    }
    let path = dir.join(FILE);
    let before = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
    let before = before.map_or(Timing::FORMER_DEFAULT, Duration::from_micros);
    if before != lease
        && let Err(error) = store(dir, lease)
    {
        warn!(
            "{}: {error}: before 'vip-lease' is made shorter again, let this node be down for {:?}",
            path.display(),
            lease.max(before)
        );
    }
    before
}

fn store(dir: &Path, lease: Duration) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let new = dir.join(FILE_NEW);
    let mut file = File::create(&new)?;
    writeln!(file, "{}", lease.as_micros())?;
    file.sync_all()?;
    fs::rename(&new, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_term_of_the_run_before_is_known_and_without_one_the_former_default() {
        let dir = tempfile::tempdir().unwrap();
        let ms = Duration::from_millis;
        assert_eq!(remember(dir.path(), ms(2000)), Timing::FORMER_DEFAULT);
        assert_eq!(remember(dir.path(), ms(80)), ms(2000));
        assert_eq!(remember(dir.path(), ms(80)), ms(80));
        fs::write(dir.path().join(FILE), "junk").unwrap();
        assert_eq!(remember(dir.path(), ms(80)), Timing::FORMER_DEFAULT);
        assert_eq!(Timing::of(ms(80)).after(ms(2000)).start_wait, ms(2250));
        assert_eq!(Timing::of(ms(80)).after(ms(60)).start_wait, ms(90));
    }
}
