//! `phalanx ctl`: a client of the Runtime API for people and scripts.
//!
//! Finds the socket, sends one line, prints the answer as it comes, and says by its exit code whether
//! the command was refused: 0 done, 1 refused (with `@all`: on any node), 2 not reached. The file named
//! after `config push` and `config check` is read here and sent along.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use phalanx_config::{Level, StatsAddr};
use phalanx_engine::registry::epochs::MAX_TEXT;

use crate::load::Files;
use crate::local;

/// Run a command of the Runtime API
#[derive(Debug, Parser)]
#[command(name = "phalanx ctl", after_help = HELP)]
struct Options {
    #[command(flatten)]
    place: Place,
    /// The command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    words: Vec<String>,
}

/// Where the Runtime API is.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// The stats socket: a path, or ADDRESS:PORT
    #[arg(short = 'S', long, value_name = "SOCKET")]
    socket: Option<String>,
    /// Take the socket from this configuration; may be repeated
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The local cluster in this directory ('phalanx cluster up --dir')
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Give up when nothing comes for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
}

const HELP: &str = "\
The socket is -S, else a 'stats socket' of -f, else $PHALANX_SOCKET, else a node of the local
cluster, else /run/phalanx/admin.sock, /run/haproxy/admin.sock or that of /etc/haproxy/haproxy.cfg.

  phalanx ctl show info               phalanx ctl @n2 show stat        phalanx ctl '@all show info'
  phalanx ctl config check FILE       phalanx ctl config push FILE     phalanx ctl show config status
  phalanx ctl config diff FILE        phalanx ctl config diff 3 4      (an epoch, or between two)

The exit code is 0 when the command was carried out, 1 when it was refused, 2 on trouble; that of
config diff is diff's: 0 equal, 1 different, 2 trouble.";

/// Where sockets are by custom.
const CUSTOMARY: [&str; 4] = [
    "/run/phalanx/admin.sock",
    "/run/haproxy/admin.sock",
    "/var/run/haproxy/admin.sock",
    "/var/run/haproxy.sock",
];

/// Where configurations are by custom.
const CUSTOMARY_FILES: [&str; 2] = ["/etc/phalanx/phalanx.cfg", "/etc/haproxy/haproxy.cfg"];

/// How long connecting over TCP may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// Longest line of an answer that is looked at as a whole.
const MAX_LINE: u64 = 1 << 20;

/// Runs `phalanx ctl` with the words that follow `ctl`.
pub(crate) fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let options = Options::parse_from(std::iter::once("phalanx ctl".into()).chain(args));
    carry_out("ctl", &options.place, &options.words)
}

/// Carries a command out for the subcommand `name`, and prints the answer.
pub(crate) fn carry_out(name: &str, place: &Place, words: &[String]) -> ExitCode {
    match ask(place, words) {
        Ok(code) => ExitCode::from(code),
        Err(why) => {
            eprintln!("phalanx {name}: {why}");
            ExitCode::from(2)
        }
    }
}

/// The exit code.
fn ask(place: &Place, given: &[String]) -> Result<u8, String> {
    let request = request(given)?;
    let (place, mut stream) = connect(place)?;
    let failed = |e: io::Error| format!("socket '{place}': {e}");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut reader = BufReader::new(stream);
    let printed = print(&mut reader, &mut io::stdout().lock()).map_err(failed)?;
    Ok(match (command(&words(given)), printed) {
        (["config", "diff", ..], Printed { done: false, .. }) => 2,
        (["config", "diff", ..], Printed { said, .. }) => said.into(),
        (_, Printed { done, .. }) => (!done).into(),
    })
}

fn words(words: &[String]) -> Vec<&str> {
    words.iter().flat_map(|word| word.split_ascii_whitespace()).collect()
}

/// The words of a command without the prefix that says where it runs.
fn command<'a, 'w>(words: &'a [&'w str]) -> &'a [&'w str] {
    match words.split_first() {
        Some((first, rest)) if first.starts_with('@') || *first == "local" => rest,
        _ => words,
    }
}

/// What is sent: the words as one line, and the file that `config push`, `check` or `diff` names as its
/// payload.
fn request(given: &[String]) -> Result<String, String> {
    const SEVERITY: &str = "set severity-output number; ";
    let line = given.join(" ");
    if line.contains('\n') {
        return Err("a command is one line".to_owned());
    }
    let split = words(given);
    let plain = || Ok(format!("{SEVERITY}{line}\n"));
    let ["config", verb @ ("push" | "check" | "diff"), file] = command(&split) else { return plain() };
    // A number is an epoch, unless there is such a file.
    if *verb == "diff" && file.parse::<u64>().is_ok() && !Path::new(file).exists() {
        return plain();
    }
    let text = if *file == "-" {
        io::read_to_string(io::stdin()).map_err(|e| format!("standard input: {e}"))?
    } else {
        std::fs::read_to_string(file).map_err(|e| format!("file '{file}': {e}"))?
    };
    if text.len() > MAX_TEXT {
        let (has, most) = (text.len(), MAX_TEXT);
        return Err(format!("'{file}' has {has} bytes: a configuration of the cluster may have {most}"));
    }
    let mut end = String::from("END");
    while text.lines().any(|l| l == end) {
        end.push('D');
    }
    let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    Ok(format!("{SEVERITY}{line} <<{end}\n{text}{newline}{end}\n"))
}

/// What an answer was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Printed {
    /// Nothing in it was refused.
    done: bool,
    /// There was any text.
    said: bool,
}

/// Prints an answer without the marks that were asked for.
fn print(answer: &mut impl BufRead, out: &mut impl Write) -> io::Result<Printed> {
    let (mut done, mut said) = (true, false);
    // The answer to the severity comes first, and is empty.
    let (mut begins, mut first, mut gap) = (true, true, false);
    let mut line = Vec::new();
    loop {
        line.clear();
        if answer.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            out.flush()?;
            return Ok(Printed { done, said });
        }
        if line == b"\n" {
            gap = !std::mem::take(&mut first);
            begins = true;
            continue;
        }
        if std::mem::take(&mut gap) {
            out.write_all(b"\n")?;
        }
        let mut text: &[u8] = &line;
        if std::mem::take(&mut begins) {
            for mark in [b"[3]: ", b"[5]: ", b"[6]: "] {
                if let Some(rest) = text.strip_prefix(mark) {
                    text = rest;
                    done &= mark != b"[3]: ";
                    break;
                }
            }
            done &= !text.starts_with(b"Unknown command") && !text.starts_with(b"Permission denied");
        }
        if text.starts_with(b"@") && !text.starts_with(b"@@") {
            let heading = String::from_utf8_lossy(text);
            done &= !heading.contains(": refused") && !heading.contains(": unreachable: ");
        }
        said = true;
        out.write_all(text)?;
    }
}

/// A connection of either kind.
trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// Connects to the socket that the options mean, or to the first that answers where it is customary.
fn connect(options: &Place) -> Result<(String, Box<dyn Stream>), String> {
    let limit = Duration::from_secs(options.timeout.max(1));
    let open = |place: &str| {
        let stream = open(place, limit).map_err(|e| format!("socket '{place}': {e}"))?;
        Ok((place.to_owned(), stream))
    };
    if let Some(socket) = &options.socket {
        return open(socket);
    }
    if !options.files.is_empty() {
        return open(&configured(&options.files)?);
    }
    if let (None, Some(socket)) = (&options.dir, std::env::var_os("PHALANX_SOCKET")) {
        return open(&socket.to_string_lossy());
    }
    let cluster = local::runtime_apis(options.dir.as_deref());
    let mut places = match (&options.dir, cluster) {
        (Some(_), cluster) => cluster?,
        (None, cluster) => cluster.unwrap_or_default(),
    };
    if options.dir.is_none() {
        places.extend(CUSTOMARY.into_iter().filter(|p| Path::new(p).exists()).map(str::to_owned));
        let files = CUSTOMARY_FILES.into_iter().map(PathBuf::from).filter(|f| f.exists());
        places.extend(files.filter_map(|f| configured(&[f]).ok()));
    }
    let mut last = "no stats socket found: name one with -S, or a configuration with -f".to_owned();
    for place in places {
        match open(&place) {
            Ok(found) => return Ok(found),
            Err(why) => last = why,
        }
    }
    Err(last)
}

fn open(place: &str, limit: Duration) -> io::Result<Box<dyn Stream>> {
    let path = place.strip_prefix("unix@");
    if path.is_some() || place.contains('/') {
        let stream = UnixStream::connect(path.unwrap_or(place))?;
        stream.set_read_timeout(Some(limit))?;
        return Ok(Box::new(stream));
    }
    let addr = place.strip_prefix("ipv4@").or(place.strip_prefix("ipv6@")).unwrap_or(place);
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "expects a path or ADDRESS:PORT");
    for addr in std::net::ToSocketAddrs::to_socket_addrs(addr)? {
        match TcpStream::connect_timeout(&addr, CONNECT_WITHIN) {
            Ok(stream) => {
                stream.set_read_timeout(Some(limit))?;
                return Ok(Box::new(stream));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The `stats socket` of a configuration that allows the most, one in the file system if it can be.
fn configured(files: &[PathBuf]) -> Result<String, String> {
    let loaded = Files::open(files, false, true)?.load()?;
    let Some(config) = loaded.config else {
        let text: Vec<&str> = loaded.messages.iter().map(|m| m.text.as_str()).collect();
        return Err(text.join("\n"));
    };
    let rank = |level: Level| match level {
        Level::User => 0,
        Level::Operator => 1,
        Level::Admin => 2,
    };
    let sockets = config.global.stats_sockets.iter();
    let best = sockets.max_by_key(|s| (rank(s.level), matches!(s.addr, StatsAddr::Unix(_))));
    match best.map(|s| &s.addr) {
        Some(StatsAddr::Unix(path)) => Ok(path.display().to_string()),
        Some(StatsAddr::Tcp(addr)) => Ok(addr.to_string()),
        None => Err("the configuration has no 'stats socket'".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(answer: &str) -> (String, bool) {
        let mut out = Vec::new();
        let done = print(&mut answer.as_bytes(), &mut out).unwrap();
        assert_eq!(done.said, !out.is_empty());
        (String::from_utf8(out).unwrap(), done.done)
    }

    #[test]
    fn answers_are_shown_without_marks_and_refusals_are_noticed() {
        for (answer, text, done) in [
            ("\nName: x\n\n", "Name: x\n", true),
            ("\n\n", "", true),
            ("\n[6]: a\n\n[5]: b\nc\n\n", "a\n\nb\nc\n", true),
            ("\n[3]: No such server.\n\n", "No such server.\n", false),
            ("\n[6]: Unknown command: 'x'\n  help\n\n", "Unknown command: 'x'\n  help\n", false),
            (
                "\n@n1: ok\n[3]: no mark\n@n2: ok\n@@n3: refused\n\n",
                "@n1: ok\n[3]: no mark\n@n2: ok\n@@n3: refused\n",
                true,
            ),
            ("\n@n1: ok\na\n@n2: unreachable: gone\n\n", "@n1: ok\na\n@n2: unreachable: gone\n", false),
            ("\n@n1: refused\nno\n\n", "@n1: refused\nno\n", false),
        ] {
            assert_eq!(shown(answer), (text.to_owned(), done), "{answer:?}");
        }
    }

    #[test]
    fn a_pushed_file_goes_along_as_payload() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.cfg");
        std::fs::write(&file, "global\nEND\n    maxconn 5").unwrap();
        let name = file.display().to_string();
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let sent = request(&words(&format!("config push {name}"))).unwrap();
        assert_eq!(
            sent,
            format!(
                "set severity-output number; config push {name} <<ENDD\nglobal\nEND\n    maxconn 5\nENDD\n"
            )
        );
        assert!(request(&words(&format!("@n2 config check {name}"))).unwrap().contains(" <<ENDD\n"));
        assert_eq!(request(&words("show info")).unwrap(), "set severity-output number; show info\n");
        assert!(request(&words(&format!("config diff {name}"))).unwrap().contains(" <<ENDD\n"));
        assert!(request(&words("config diff 3")).unwrap().ends_with("; config diff 3\n"));
        assert!(request(&words("config diff 3 4")).unwrap().ends_with("; config diff 3 4\n"));
        std::fs::write(&name, "#".repeat(MAX_TEXT + 1)).unwrap();
        assert!(request(&words(&format!("config push {name}"))).unwrap_err().ends_with(" may have 1048576"));
        assert!(request(&words("config push /nosuch/file")).unwrap_err().contains("'/nosuch/file'"));
        assert!(request(&["a\nb".to_owned()]).is_err());
    }
}
