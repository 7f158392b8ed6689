//! The node as a service: what it tells the service manager, and the unit file that it is run by.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cluster_tests::{Signal, kill, phalanx};

const SOON: Duration = Duration::from_secs(10);

const CONFIG: &str = "\
global
    nbthread 2
defaults
    mode http
    timeout connect 2s
    timeout client 5s
    timeout server 5s
frontend web
    bind 127.0.0.1:PORT
    http-request return status 200
";

/// A node, and the socket of the service manager that started it.
struct Service {
    child: Child,
    manager: UnixDatagram,
    port: u16,
    dir: tempfile::TempDir,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Service {
    /// With an abstract socket, or one in the file system.
    fn start(abstract_name: bool, watchdog: Option<Duration>) -> Service {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let file = dir.path().join("phalanx.cfg");
        fs::write(&file, CONFIG.replace("PORT", &port.to_string())).unwrap();
        let path = dir.path().join("notify");
        let name = format!("phalanx-test-{}-{port}", std::process::id());
        let (manager, env) = if abstract_name {
            let addr = SocketAddr::from_abstract_name(&name).unwrap();
            (UnixDatagram::bind_addr(&addr).unwrap(), format!("@{name}"))
        } else {
            (UnixDatagram::bind(&path).unwrap(), path.display().to_string())
        };
        let mut command = Command::new(phalanx());
        command.arg("-Ws").arg("-f").arg(&file).env("NOTIFY_SOCKET", env).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(watchdog) = watchdog {
            command.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        }
        Service { child: command.spawn().unwrap(), manager, port, dir }
    }

    /// Reads until a message with this line comes, for so long; what came last.
    fn hears_within(&self, line: &str, limit: Duration) -> Option<String> {
        let deadline = Instant::now() + limit;
        let mut buf = [0; 4096];
        while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
            self.manager.set_read_timeout(Some(left)).unwrap();
            if let Ok(n) = self.manager.recv(&mut buf) {
                let message = String::from_utf8(buf[..n].to_vec()).unwrap();
                if message.lines().any(|l| l.starts_with(line)) {
                    return Some(message);
                }
            }
        }
        None
    }

    fn hears(&self, line: &str) -> String {
        self.hears_within(line, SOON).unwrap_or_else(|| panic!("the manager did not hear '{line}'"))
    }

    fn forget_what_came(&self) {
        self.manager.set_nonblocking(true).unwrap();
        while self.manager.recv(&mut [0; 4096]).is_ok() {}
        self.manager.set_nonblocking(false).unwrap();
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn answers(&self) -> bool {
        cluster_tests::get(&format!("127.0.0.1:{}", self.port), "/", &[]).is_ok()
    }
}

#[test]
fn a_service_says_when_it_serves_reloads_and_stops() {
    for abstract_name in [false, true] {
        let mut service = Service::start(abstract_name, None);
        service.hears("READY=1");
        assert!(service.answers(), "it is ready when its listeners are open");
        service.hears("STATUS=Forwarding");

        kill(service.pid(), Signal::SIGUSR2);
        let reloading = service.hears("RELOADING=1");
        let since = reloading.lines().find_map(|l| l.strip_prefix("MONOTONIC_USEC="));
        assert!(since.is_some_and(|us| us.parse::<u64>().unwrap() > 0), "{reloading}");
        service.hears("READY=1");

        // A reload that fails leaves it ready.
        fs::write(service.dir.path().join("phalanx.cfg"), "nonsense\n").unwrap();
        kill(service.pid(), Signal::SIGUSR2);
        service.hears("RELOADING=1");
        service.hears("READY=1");
        assert!(service.answers());

        kill(service.pid(), Signal::SIGTERM);
        service.hears("STOPPING=1");
        assert!(service.child.wait().unwrap().success());
    }
}

/// The thread of a worker.
fn worker_of(pid: u32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let is_worker = |task: &Path| fs::read_to_string(task.join("comm")).is_ok_and(|c| c.trim() == "worker-1");
    let task = tasks.map(|t| t.unwrap().path()).find(|t| is_worker(t)).expect("a worker");
    task.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_worker_that_stands_still_ends_the_feeding_of_the_watchdog() {
    let service = Service::start(true, Some(Duration::from_millis(600)));
    service.hears("READY=1");
    service.hears("WATCHDOG=1");
    service.hears("WATCHDOG=1");

    // It waits for events only after seven seconds, each time.
    let late = [
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "inject=epoll_wait,epoll_pwait,epoll_pwait2:delay_enter=7000000",
        "-p",
    ];
    let strace = Command::new("strace").args(late).arg(worker_of(service.pid())).spawn();
    let Ok(mut strace) = strace else {
        eprintln!("not run to its end: it needs the program 'strace'");
        return;
    };
    let status = service.hears("STATUS=Not well");
    assert!(status.contains("a worker does not carry out an order"), "{status}");
    service.forget_what_came();
    assert_eq!(service.hears_within("WATCHDOG=1", Duration::from_secs(2)), None);

    // It goes on: so does the feeding.
    kill(strace.id(), Signal::SIGTERM);
    strace.wait().unwrap();
    service.hears("WATCHDOG=1");
    service.hears("STATUS=Forwarding");
}

#[test]
fn a_manager_that_is_not_there_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("phalanx.cfg");
    // It ends before it listens.
    fs::write(&file, CONFIG.replace("PORT", "65535")).unwrap();
    let socket = dir.path().join("socket");
    let _manager = UnixDatagram::bind(&socket).unwrap();
    let run = |name: &str, value: &str| {
        let mut command = Command::new(phalanx());
        command.arg("-Ws").arg("-f").arg(&file).env("NOTIFY_SOCKET", &socket).env(name, value);
        let out = command.stdin(Stdio::null()).output().unwrap();
        assert!(!out.status.success());
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    assert!(run("NOTIFY_SOCKET", "/nowhere/notify").contains("NOTIFY_SOCKET '/nowhere/notify'"));
    assert!(run("WATCHDOG_USEC", "soon").contains("WATCHDOG_USEC 'soon': expects a number"));
}

/// The unit file, with the program that these tests run.
#[test]
fn systemd_finds_no_fault_with_the_unit() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/phalanx.service");
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(unit).unwrap();
    let file = dir.path().join("phalanx.service");
    fs::write(&file, text.replace("/usr/local/sbin/phalanx", &phalanx().display().to_string())).unwrap();
    let analyze = |args: &[&str]| Command::new("systemd-analyze").args(args).arg(&file).output();
    let Ok(verified) = analyze(&["verify", "--man=no"]) else {
        eprintln!("not run: it needs the program 'systemd-analyze'");
        return;
    };
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(verified.status.success() && !said.contains("phalanx.service"), "{said}");
    // Up to 10.0; what is left are the address families and capabilities that floating IPs need.
    let secure = analyze(&["security", "--offline=yes", "--threshold=25"]).unwrap();
    assert!(secure.status.success(), "{}", String::from_utf8_lossy(&secure.stdout));
}
