//! `budget`: counts the hot pieces and fails where one takes more instructions than `budget.txt` allows.
//!
//! Runs `cargo bench` with the harness's JSON output; needs valgrind and `gungraun-runner` in the path.
//! With `UPDATE_BUDGET=1` it writes the file anew.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use phalanx_bench::{Budget, Counts, RENEW, Verdict, count};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("budget: {why}");
            ExitCode::from(2)
        }
    }
}

/// Counts, judges, tells; whether all is within its limits.
fn run() -> Result<bool, String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("budget.txt");
    let renew = std::env::var_os("UPDATE_BUDGET").is_some_and(|v| v == "1");
    let text = match std::fs::read_to_string(&file) {
        Err(error) if !renew => return Err(format!("{}: {error}", file.display())),
        text => text.unwrap_or_default(),
    };
    let budget = Budget::parse(&text).map_err(|why| format!("{}: {why}", file.display()))?;
    let compiler = compiler()?;
    let counts = counts()?;
    if renew {
        let renewed = budget.renewed(&counts, &compiler);
        std::fs::write(&file, renewed.to_string()).map_err(|e| format!("{}: {e}", file.display()))?;
        renewed.judge(&counts, &compiler).iter().for_each(|finding| println!("{finding}"));
        return Ok(true);
    }
    let findings = budget.judge(&counts, &compiler);
    findings.iter().for_each(|finding| println!("{finding}"));
    if budget.compiler != compiler {
        println!("limits are of {}, this is {compiler}: 20 % more were allowed", budget.compiler);
    }
    let failed = findings.iter().any(|finding| finding.verdict.fails());
    if failed {
        eprintln!(
            "budget: a piece takes more instructions than it may. `cargo bench -p phalanx-bench` keeps"
        );
        eprintln!("callgrind's profiles in the target directory. If it is worth it, say why and renew:");
        eprintln!("    {RENEW}");
    } else if findings.iter().any(|finding| finding.verdict == Verdict::Low) {
        println!("to renew: {RENEW}");
    }
    Ok(!failed)
}

/// `rustc 1.95`.
fn compiler() -> Result<String, String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let out = Command::new(rustc).arg("-V").output().map_err(|e| format!("rustc: {e}"))?;
    let text = String::from_utf8_lossy(&out.stdout);
    let version = text.split_whitespace().nth(1).unwrap_or_default();
    let minor: Vec<&str> = version.split('.').take(2).collect();
    Ok(format!("rustc {}", minor.join(".")))
}

/// What each piece takes.
fn counts() -> Result<Counts, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", ".."].iter().collect();
    let out = Command::new(cargo)
        .current_dir(workspace)
        .args(["bench", "--locked", "-p", "phalanx-bench", "--bench", "hot", "--"])
        .args(["--output-format=json"])
        // Incremental builds cut crates into many units, and inline less.
        .env("CARGO_INCREMENTAL", "0")
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("cargo bench: {e}"))?;
    let text = String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        return Err(format!("the count failed ({})\n{text}", out.status));
    }
    let mut counts = Counts::new();
    for line in text.lines().filter(|line| line.starts_with('{')) {
        let summary = serde_json::from_str(line).map_err(|e| format!("'{line}': {e}"))?;
        counts.extend(count(&summary)?);
    }
    if counts.is_empty() {
        return Err(format!("nothing was counted:\n{text}"));
    }
    Ok(counts)
}
