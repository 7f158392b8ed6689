//! The manifests keep to the layers of the design, and unsafe code to its one crate.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Who may use what of ours; a crate that is not here may not exist.
const ALLOWED: [(&str, &[&str]); 9] = [
    ("phalanx-wire", &[]),
    ("phalanx-config", &[]),
    ("phalanx-sys", &[]),
    ("phalanx-engine", &["phalanx-config"]),
    ("phalanx-proxy", &["phalanx-config", "phalanx-engine", "phalanx-sys"]),
    ("phalanx-cluster", &["phalanx-engine", "phalanx-sys", "phalanx-wire"]),
    (
        "phalanx",
        &[
            "phalanx-wire",
            "phalanx-config",
            "phalanx-sys",
            "phalanx-engine",
            "phalanx-proxy",
            "phalanx-cluster",
        ],
    ),
    ("phalanx-bench", &["phalanx-config", "phalanx-engine", "phalanx-proxy", "phalanx-sys"]),
    ("cluster-tests", &["phalanx-wire"]),
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Packages of the workspace, each with its directory and the names of what it depends on, of any kind.
fn packages() -> Vec<(String, PathBuf, Vec<String>)> {
    let out = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(workspace())
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let package = |p: &serde_json::Value| {
        let dir = PathBuf::from(text(&p["manifest_path"])).parent().unwrap().to_owned();
        let depends = p["dependencies"].as_array().unwrap().iter().map(|d| text(&d["name"])).collect();
        (text(&p["name"]), dir, depends)
    };
    metadata["packages"].as_array().unwrap().iter().map(package).collect()
}

#[test]
fn crates_depend_only_downwards() {
    let packages = packages();
    let ours: Vec<&str> = packages.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(ours.len(), ALLOWED.len(), "{ours:?}");
    for (name, _, depends) in &packages {
        let allowed = ALLOWED.iter().find(|(n, _)| n == name);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("crate {name} has no layer"));
        for dependency in depends.iter().filter(|d| ours.contains(&d.as_str())) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn the_engine_has_no_runtime_and_the_configuration_no_io() {
    for (name, _, depends) in packages() {
        if matches!(name.as_str(), "phalanx-engine" | "phalanx-config" | "phalanx-sys") {
            let runtime =
                depends.iter().find(|d| d.starts_with("tokio") || *d == "tonic" || *d == "openraft");
            assert_eq!(runtime, None, "{name}");
        }
    }
}

#[test]
fn unsafe_code_is_in_sys_only_and_gives_its_reason() {
    let mut checked = 0;
    for (name, dir, _) in packages() {
        // The root package holds the others.
        let dirs =
            if name == "phalanx-wire" { vec![dir.join("proto"), dir.join("build.rs")] } else { vec![dir] };
        for file in dirs.iter().flat_map(|d| sources(d)) {
            let text = std::fs::read_to_string(&file).unwrap();
            checked += 1;
            let in_sys = file.starts_with(workspace().join("node/sys"));
            for (number, line) in code_lines(&text) {
                let is_unsafe = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                    .iter()
                    .any(|w| line.contains(w));
                assert!(!is_unsafe || in_sys, "{}:{number}: unsafe code outside node/sys", file.display());
            }
            if in_sys {
                each_unsafe_block_has_a_reason(&file, &text);
            }
        }
    }
    assert!(checked > 20, "the sources are not where they were: {checked} files");
}

fn each_unsafe_block_has_a_reason(file: &Path, text: &str) {
    let lines: Vec<&str> = text.lines().collect();
    for (number, line) in code_lines(text).filter(|(_, l)| l.contains("unsafe {")) {
        let above = &lines[number.saturating_sub(8)..number];
        let reason = above.iter().any(|l| l.contains("SAFETY:"));
        assert!(reason, "{}:{number}: no SAFETY comment: {line}", file.display());
    }
}

/// Lines that are not comments, numbered from 1.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let code = |line: &&str| !line.trim_start().starts_with("//") && !line.contains('"');
    text.lines().enumerate().map(|(i, l)| (i + 1, l)).filter(move |(_, l)| code(l))
}

/// Rust files below a directory, other packages and build output left out.
fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            let skip = path.ends_with("target") || path.join("Cargo.toml").exists();
            found.extend(if skip { Vec::new() } else { sources(&path) });
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}
