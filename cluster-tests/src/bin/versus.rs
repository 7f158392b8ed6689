//! First figures beside Debian's HAProxy, with one configuration for both.
//!
//! `cargo run --release -p cluster-tests --bin versus`. Each proxy has one worker on CPU 0; the
//! generator and the origin share CPU 1. Rounds alternate, A B A B, so that whatever else the machine
//! does hits both; shown are medians with least and most, and Phalanx's median by HAProxy's.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use cluster_tests::bench::{Running, Spread, find};
use cluster_tests::{Base, phalanx};
use serde_json::json;

/// Measures Phalanx beside HAProxy with the same configuration.
#[derive(Debug, Parser)]
struct Args {
    /// Length of one measurement
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Measurements of each proxy in each case
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Cases: a keep-alive, small; b keep-alive, 16 kB; c a connection each; d TCP bulk
    #[arg(long, value_delimiter = ',', value_parser = ["a", "b", "c", "d"])]
    only: Vec<String>,
    /// Write the figures here too
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Words that the other process is started with.
const PINNED: &str = "PHALANX_VERSUS_PINNED";
const PROXY_CPU: &str = "0";
const LOAD_CPU: &str = "1";
const CONNECTIONS: usize = 64;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("versus: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    for (program, package) in
        [("haproxy", "haproxy"), ("nginx", "nginx"), ("wrk", "wrk"), ("taskset", "util-linux")]
    {
        if find(program).is_none() {
            return Err(format!("needs the program '{program}': apt-get install {package}"));
        }
    }
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 && std::env::var_os(PINNED).is_none() {
        return Err("needs two CPUs: one for the proxy, one for generator and origin".into());
    }
    let binary = phalanx();
    if std::env::var_os(PINNED).is_none() {
        // This process is the bulk case's client and server, so it moves to the load's CPU as a whole.
        let own = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut pinned = Command::new("taskset");
        pinned.args(["-c", LOAD_CPU]).arg(own).args(std::env::args_os().skip(1)).env(PINNED, "1");
        return Err(format!("cannot run taskset: {}", pinned.exec()));
    }
    if cfg!(debug_assertions) {
        eprintln!("versus: this is a debug build: the figures mean little, use --release");
    }
    let bench = Bench::prepare(args, binary)?;
    println!("{}", bench.versions()?);
    println!(
        "{} rounds of {} s each, A B A B; proxy on CPU {PROXY_CPU} with nbthread 1, load and origin on CPU {LOAD_CPU}\n",
        args.rounds, args.seconds
    );
    let mut results = Vec::new();
    for case in CASES.iter().filter(|c| args.only.is_empty() || args.only.iter().any(|o| o == c.letter)) {
        results.push(bench.compare(case)?);
    }
    if let Some(path) = &args.json {
        let text = json!({ "seconds": args.seconds, "rounds": args.rounds, "versions": bench.versions()?, "results": results });
        std::fs::write(path, format!("{text:#}\n"))
            .map_err(|e| format!("cannot write '{}': {e}", path.display()))?;
    }
    Ok(())
}

/// One thing to measure.
struct Case {
    letter: &'static str,
    name: &'static str,
    load: Load,
    /// Of the first figure, and of CPU time by work done.
    units: [&'static str; 2],
}

enum Load {
    /// Path, and whether each request has a connection of its own.
    Http {
        path: &'static str,
        close: bool,
    },
    Bulk,
}

const CASES: [Case; 4] = [
    Case {
        letter: "a",
        name: "HTTP keep-alive, small responses",
        load: Load::Http { path: "/small", close: false },
        units: ["requests/s", "us CPU/request"],
    },
    Case {
        letter: "b",
        name: "HTTP keep-alive, 16 kB responses",
        load: Load::Http { path: "/16k", close: false },
        units: ["requests/s", "us CPU/request"],
    },
    Case {
        letter: "c",
        name: "HTTP, a connection for each request",
        load: Load::Http { path: "/small", close: true },
        units: ["requests/s", "us CPU/request"],
    },
    Case { letter: "d", name: "TCP bulk", load: Load::Bulk, units: ["MB/s", "s CPU/GB"] },
];

struct Bench {
    base: Base,
    dir: tempfile::TempDir,
    phalanx: PathBuf,
    seconds: u64,
    rounds: u32,
    _origin: Running,
    _source: Source,
}

/// What one measurement gave: speed, and CPU time by work.
type Figures = [f64; 2];

impl Bench {
    fn prepare(args: &Args, phalanx: &Path) -> Result<Bench, String> {
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let base = Base::free();
        let html = dir.path().join("html");
        std::fs::create_dir(&html).map_err(|e| e.to_string())?;
        // nginx may give its rights away: what it serves must be readable by all.
        let open =
            |p: &Path| std::fs::set_permissions(p, std::os::unix::fs::PermissionsExt::from_mode(0o755));
        open(dir.path()).and_then(|()| open(&html)).map_err(|e| e.to_string())?;
        std::fs::write(html.join("16k"), [b'x'; 16 * 1024]).map_err(|e| e.to_string())?;
        let origin_addr = base.at(1, 8100);
        let conf = dir.path().join("nginx.conf");
        std::fs::write(&conf, nginx_conf(&dir.path().display().to_string(), &origin_addr))
            .map_err(|e| e.to_string())?;
        let origin =
            Running::start(Command::new("nginx").arg("-p").arg(dir.path()).arg("-c").arg(&conf), dir.path())?;
        origin.wait_for(&origin_addr);
        let source = Source::start(&base.at(1, 8101))?;
        std::fs::write(dir.path().join("proxy.cfg"), proxy_cfg(&base)).map_err(|e| e.to_string())?;
        Ok(Bench {
            base,
            dir,
            phalanx: phalanx.to_owned(),
            seconds: args.seconds,
            rounds: args.rounds,
            _origin: origin,
            _source: source,
        })
    }

    fn versions(&self) -> Result<String, String> {
        let first = |program: &Path| {
            let out = Command::new(program)
                .arg("-v")
                .output()
                .map_err(|e| format!("{}: {e}", program.display()))?;
            Ok::<_, String>(
                String::from_utf8_lossy(&out.stdout).lines().next().unwrap_or_default().to_owned(),
            )
        };
        Ok(format!("A: {}\nB: {}", first(&self.phalanx)?, first(Path::new("haproxy"))?))
    }

    fn compare(&self, case: &Case) -> Result<serde_json::Value, String> {
        println!("{}) {}", case.letter, case.name);
        let mut figures: [Vec<Figures>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..self.rounds {
            figures[0].push(self.measure(&self.phalanx, case)?);
            figures[1].push(self.measure(Path::new("haproxy"), case)?);
        }
        let mut results = Vec::new();
        for (index, unit) in case.units.iter().enumerate() {
            let [ours, theirs] = &figures;
            let ours = Spread::of(ours.iter().map(|f| f[index]));
            let theirs = Spread::of(theirs.iter().map(|f| f[index]));
            let ratio = ours.median / theirs.median;
            println!("   {unit:>16}  phalanx {ours}  haproxy {theirs}  ratio {ratio:.2}");
            results.push(
                json!({ "unit": unit, "phalanx": ours.json(), "haproxy": theirs.json(), "ratio": ratio }),
            );
        }
        println!();
        Ok(json!({ "case": case.letter, "name": case.name, "figures": results }))
    }

    fn measure(&self, proxy: &Path, case: &Case) -> Result<Figures, String> {
        let mut command = Command::new("taskset");
        command
            .args(["-c", PROXY_CPU])
            .arg(proxy)
            .arg("-f")
            .arg(self.dir.path().join("proxy.cfg"))
            .arg("-db");
        let running = Running::start(&mut command, self.dir.path())?;
        running.wait_for(&self.base.at(1, 8200));
        running.wait_for(&self.base.at(1, 8201));
        let result = match case.load {
            Load::Http { path, close } => self.http(&running, path, close),
            Load::Bulk => self.bulk(&running),
        };
        result.map_err(|e| format!("{} with {}: {e}\n{}", case.name, proxy.display(), running.output()))
    }

    fn http(&self, proxy: &Running, path: &str, close: bool) -> Result<Figures, String> {
        let url = format!("http://{}{path}", self.base.at(1, 8200));
        let wrk = |seconds: u64| {
            let mut command = Command::new("wrk");
            command.args(["-t", "1", "-c", &CONNECTIONS.to_string(), "-d", &format!("{seconds}s")]);
            if close {
                command.args(["-H", "Connection: close"]);
            }
            let out = command.arg(&url).output().map_err(|e| format!("wrk: {e}"))?;
            Ok::<_, String>(String::from_utf8_lossy(&out.stdout).into_owned())
        };
        wrk(1)?;
        let before = proxy.cpu()?;
        let text = wrk(self.seconds)?;
        let cpu = proxy.cpu()? - before;
        let word =
            |line: &str, index: usize| line.split_whitespace().nth(index).and_then(|w| w.parse::<f64>().ok());
        let rate = text.lines().find_map(|l| l.starts_with("Requests/sec:").then(|| word(l, 1))).flatten();
        let count = text.lines().find_map(|l| l.contains(" requests in ").then(|| word(l, 0))).flatten();
        if text.contains("Non-2xx") {
            return Err(format!("not all answers were 200:\n{text}"));
        }
        let (Some(rate), Some(count)) = (rate, count) else { return Err(format!("wrk said:\n{text}")) };
        Ok([rate, cpu * 1e6 / count])
    }

    /// Reads from the source through the proxy, on a few connections.
    fn bulk(&self, proxy: &Running) -> Result<Figures, String> {
        let addr = self.base.at(1, 8201);
        let before = proxy.cpu()?;
        let began = Instant::now();
        let end = began + Duration::from_secs(self.seconds);
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let addr = addr.clone();
                std::thread::spawn(move || -> std::io::Result<u64> {
                    let mut stream = TcpStream::connect(addr)?;
                    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                    let (mut buffer, mut total) = (vec![0; 256 * 1024], 0);
                    while Instant::now() < end {
                        match stream.read(&mut buffer)? {
                            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                            n => total += n as u64,
                        }
                    }
                    Ok(total)
                })
            })
            .collect();
        let mut bytes = 0;
        for reader in readers {
            bytes += reader.join().map_err(|_| "a reader panicked")?.map_err(|e| e.to_string())?;
        }
        let (elapsed, cpu) = (began.elapsed().as_secs_f64(), proxy.cpu()? - before);
        Ok([bytes as f64 / 1e6 / elapsed, cpu * 1e9 / bytes as f64])
    }
}

/// Sends to whoever connects, as fast as it is taken.
struct Source;

impl Source {
    fn start(addr: &str) -> Result<Source, String> {
        let listener = TcpListener::bind(addr).map_err(|e| format!("{addr}: {e}"))?;
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let block = vec![b'x'; 256 * 1024];
                    while stream.write_all(&block).is_ok() {}
                });
            }
        });
        Ok(Source)
    }
}

/// The configuration of both.
fn proxy_cfg(base: &Base) -> String {
    format!(
        "global\n    nbthread 1\n    maxconn 4000\n\
         defaults\n    mode http\n    timeout connect 5s\n    timeout client 60s\n    timeout server 60s\n\
         frontend web\n    bind {}\n    default_backend origin\n\
         backend origin\n    balance roundrobin\n    server o1 {}\n\
         listen bulk\n    mode tcp\n    bind {}\n    server o1 {}\n",
        base.at(1, 8200),
        base.at(1, 8100),
        base.at(1, 8201),
        base.at(1, 8101)
    )
}

fn nginx_conf(dir: &str, addr: &str) -> String {
    format!(
        "daemon off;\nmaster_process off;\nworker_processes 1;\nerror_log {dir}/nginx.err;\npid {dir}/nginx.pid;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  keepalive_requests 100000000;\n  client_body_temp_path {dir}/t1;\n\
         proxy_temp_path {dir}/t2;\n  fastcgi_temp_path {dir}/t3;\n  uwsgi_temp_path {dir}/t4;\n\
         scgi_temp_path {dir}/t5;\n  open_file_cache max=10;\n  server {{\n    listen {addr} backlog=4096;\n    root {dir}/html;\n\
         location = /small {{ return 200 \"hello, world\\n\"; }}\n  }}\n}}\n"
    )
}
