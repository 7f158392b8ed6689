//! The program under test: `PHALANX_BIN`, or what cargo builds beside the tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Path of the `phalanx` binary, up to date with the sources.
///
/// # Panics
/// When it can't be built.
pub fn phalanx() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("PHALANX_BIN") {
        Some(path) => PathBuf::from(path),
        None => build(),
    })
}

/// `cargo test` builds the tests of other packages and not this package's program, so it is asked
/// for here: in the same target directory and profile, where most of it is ready. Cargo's own lock
/// keeps several test binaries from building at once.
fn build() -> PathBuf {
    let exe = std::env::current_exe().expect("a test has a file");
    // TARGET/PROFILE/deps/local-0123, or TARGET/PROFILE/versus.
    let mut profile_dir = exe.parent().expect("a file lies in a directory");
    if profile_dir.ends_with("deps") {
        profile_dir = profile_dir.parent().expect("deps lies in a directory");
    }
    let target_dir = profile_dir.parent().expect("a profile's directory lies in a directory");
    let profile = match profile_dir.file_name().and_then(|n| n.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let workspace =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace");
    // The whole workspace, because that is how its dependencies' features were chosen for the tests.
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(workspace)
        .args(["build", "--quiet", "--workspace", "--bin", "phalanx", "--profile", profile, "--target-dir"])
        .arg(target_dir)
        .status()
        .expect("cargo runs");
    assert!(status.success(), "cannot build the phalanx binary");
    profile_dir.join("phalanx")
}
