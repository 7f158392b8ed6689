//! The examples for clouds: configurations that are accepted, and programs that move what they say, only
//! forwards. The clouds' own programs are fakes, which write down what they were asked for.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cluster_tests::phalanx;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/cloud")
}

fn with_extension(wanted: Option<&str>) -> Vec<PathBuf> {
    let files = fs::read_dir(examples()).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().and_then(|e| e.to_str()) == wanted).collect()
}

#[test]
fn the_examples_for_clouds_are_valid() {
    let files = with_extension(Some("cfg"));
    assert!(files.len() >= 4, "{files:?}");
    for file in files {
        let out = Command::new(phalanx()).args(["-c", "-f"]).arg(&file).env("NODE", "n1").output().unwrap();
        assert!(out.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn the_programs_for_clouds_are_shell_programs_that_can_be_run() {
    let files = with_extension(None);
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        assert!(fs::metadata(&file).unwrap().permissions().mode() & 0o111 == 0o111, "{}", file.display());
        let out = Command::new("sh").arg("-n").arg(&file).output().unwrap();
        assert!(out.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&out.stderr));
        if let Ok(out) = Command::new("shellcheck").arg(&file).output() {
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
        }
    }
}

/// A cloud that answers what `answers`, the body of a shell `case` over the words, says.
struct Cloud(tempfile::TempDir);

impl Cloud {
    fn new(program: &str, answers: &str) -> Cloud {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(program);
        let log = dir.path().join("log");
        let text = format!("#!/bin/sh\necho \"$*\" >>{}\ncase \"$*\" in\n{answers}\nesac\n", log.display());
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        Cloud(dir)
    }

    fn run(&self, program: &str, action: &str, epoch: u64, vars: &[(&str, &str)]) -> Output {
        let path = format!("{}:{}", self.0.path().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(examples().join(program));
        command.env("PATH", path).env("PHALANX_ACTION", action).env("PHALANX_EPOCH", epoch.to_string());
        command.env("PHALANX_VIP", "web").env("PHALANX_ADDRESS", "10.9.0.7/32").env("PHALANX_NODE", "n1");
        command.env("PHALANX_CLUSTER", "cloud").env("PHALANX_REASON", "test").envs(vars.iter().copied());
        command.output().unwrap()
    }

    /// What was asked for that changes something.
    fn changes(&self) -> Vec<String> {
        let log = fs::read_to_string(self.0.path().join("log")).unwrap_or_default();
        let reads = ["describe", "list"];
        log.lines().filter(|l| !reads.iter().any(|r| l.contains(r))).map(str::to_owned).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_route_of_google_moves_forwards_only() {
    let vars = [("GCP_NETWORK", "default"), ("GCP_ZONE", "z1")];
    let cloud = |epoch: &str| Cloud::new("gcloud", &format!("*list*) echo '{epoch}';;"));
    let held = "phalanx web held by n2, epoch 41";

    let c = cloud(held);
    let out = c.run("gcp-route", "acquire", 42, &vars);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let changes = c.changes();
    assert!(changes[0].starts_with("compute routes delete phalanx-web"), "{changes:?}");
    assert!(changes[1].starts_with("compute routes create phalanx-web"), "{changes:?}");
    for word in ["--destination-range=10.9.0.7/32", "--next-hop-instance=n1", "epoch 42"] {
        assert!(changes[1].contains(word), "{changes:?}");
    }

    let c = cloud(held);
    let out = c.run("gcp-route", "acquire", 40, &vars);
    assert!(!out.status.success() && text(&out.stderr).contains("epoch 40 is over"), "{}", text(&out.stderr));
    assert_eq!(c.changes(), Vec::<String>::new());

    // There is none yet; it is there already; it is not deleted at a release.
    let c = cloud("");
    assert!(c.run("gcp-route", "acquire", 42, &vars).status.success());
    assert_eq!(c.changes().len(), 1);
    for (action, epoch) in [("acquire", 41), ("release", 41), ("release", 40)] {
        let c = cloud(held);
        assert!(c.run("gcp-route", action, epoch, &vars).status.success());
        assert_eq!(c.changes(), Vec::<String>::new(), "{action} {epoch}");
    }
    assert!(!cloud("").run("gcp-route", "steal", 42, &vars).status.success());
    assert!(!cloud("").run("gcp-route", "acquire", 42, &[]).status.success());
}

#[test]
fn an_alias_ip_is_taken_from_who_has_it_and_given_to_the_holder() {
    let vars = [("GCP_ZONE", "z1"), ("GCP_INSTANCES", "n1 n2 n3")];
    let answers = "*'describe n2'*metadata*) echo 41;;
        *'describe n2'*aliasIp*) echo '10.9.0.6/32;10.9.0.7/32;10.9.0.8/32';;
        *'describe n1'*aliasIp*) echo '10.9.0.5/32';;";
    let c = Cloud::new("gcloud", answers);
    let out = c.run("gcp-alias-ip", "acquire", 42, &vars);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let changes = c.changes();
    assert_eq!(changes.len(), 3, "{changes:?}");
    assert!(changes[0].contains("add-metadata n1") && changes[0].contains("phalanx-epoch-web=42"));
    assert!(changes[1].contains("update n2") && changes[1].ends_with("--aliases=10.9.0.6/32;10.9.0.8/32"));
    assert!(changes[2].contains("update n1") && changes[2].ends_with("--aliases=10.9.0.5/32;10.9.0.7/32"));

    let c = Cloud::new("gcloud", answers);
    let out = c.run("gcp-alias-ip", "acquire", 40, &vars);
    assert!(!out.status.success() && text(&out.stderr).contains("epoch 40 is over"), "{}", text(&out.stderr));
    assert_eq!(c.changes(), Vec::<String>::new());
}

#[test]
fn a_route_of_aws_moves_forwards_only() {
    let vars = [("AWS_ROUTE_TABLE", "rtb-1"), ("AWS_INTERFACE", "eni-1")];
    let c = Cloud::new("aws", "*describe-tags*) echo 41;;");
    let out = c.run("aws-route", "acquire", 42, &vars);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let changes = c.changes();
    assert_eq!(changes.len(), 2, "{changes:?}");
    assert!(changes[0].contains("Key=phalanx-epoch-web,Value=42"));
    assert!(changes[1].starts_with("ec2 replace-route") && changes[1].contains("10.9.0.7/32"));

    let c = Cloud::new("aws", "*describe-tags*) echo 43;;");
    assert!(!c.run("aws-route", "acquire", 42, &vars).status.success());
    assert_eq!(c.changes(), Vec::<String>::new());

    // The first time there is nothing to replace.
    let c = Cloud::new("aws", "*describe-tags*) echo None;;\n*replace-route*) exit 254;;");
    assert!(c.run("aws-route", "acquire", 42, &vars).status.success());
    assert!(c.changes().last().unwrap().starts_with("ec2 create-route"));
}
