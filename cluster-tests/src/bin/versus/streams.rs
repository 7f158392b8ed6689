//! HTTP/2 over TLS: `h2load` asks, as a process beside the servers, on the same CPU.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cluster_tests::bench::ran_and_waited;

use crate::generator::{Generator, Histogram};
use crate::machine::Tools;
use crate::measure::{Sample, is_void};
use crate::proxies::Started;

/// One round.
///
/// # Errors
/// `h2load` can't be run, or requests failed.
pub(crate) fn round(
    side: &Started,
    tools: &Tools,
    generator: &mut Generator,
    time: Duration,
) -> Result<Sample, String> {
    let program =
        tools.h2load.as_ref().ok_or("needs the program 'h2load': apt-get install nghttp2-client")?;
    let times = side.site.file("h2load.log");
    let _ = std::fs::remove_file(&times);
    let out = std::fs::File::create(side.site.file("h2load.out")).map_err(|e| e.to_string())?;
    let pid = side.running.pid().to_string();
    let before = [ran_and_waited(&pid)?, ran_and_waited("self")?];
    let began = Instant::now();
    let mut child = Command::new(program)
        .args([
            "-c",
            "4",
            "-m",
            "100",
            "-t",
            "1",
            "-D",
            &time.as_secs().max(1).to_string(),
            "--log-file",
            &times,
        ])
        .arg(format!("https://{}/s", side.site.web()))
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("h2load: {e}"))?;
    let asker = child.id().to_string();
    let mut asked = [0.0; 2];
    let limit = time + Duration::from_secs(20);
    while child.try_wait().map_err(|e| e.to_string())?.is_none() {
        generator.run(Duration::from_millis(20))?;
        asked = ran_and_waited(&asker).unwrap_or(asked);
        if began.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            return Err("h2load does not end".into());
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let after = [ran_and_waited(&pid)?, ran_and_waited("self")?];
    let text = std::fs::read_to_string(side.site.file("h2load.out")).map_err(|e| e.to_string())?;
    let (done, failed) = outcome(&text).ok_or_else(|| format!("h2load said:\n{text}"))?;
    if done == 0 || failed > 0 {
        return Err(format!("{failed} requests failed, {done} did not:\n{text}"));
    }
    let log = std::fs::read_to_string(&times).map_err(|e| format!("{times}: {e}"))?;
    let histogram = histogram(&log);
    let took = |i: usize, what: usize| (after[i][what] - before[i][what]) / seconds;
    let load = took(1, 0) + asked[0] / seconds;
    let proxy_wanted = took(0, 0) + took(0, 1);
    Ok(Sample {
        throughput: done as f64 / seconds,
        cpu_us: Some(took(0, 0) * seconds * 1e6 / done as f64),
        p50_ms: histogram.quantile_ms(0.5),
        p99_ms: histogram.quantile_ms(0.99),
        busy: Some([took(0, 0), load]),
        // Two processes share that CPU: that each waits for the other says nothing of its being full.
        void: is_void(proxy_wanted, load, None),
        ..Sample::default()
    })
}

/// Requests that were answered well, and all others.
fn outcome(text: &str) -> Option<(u64, u64)> {
    let line = text.lines().find_map(|line| line.strip_prefix("requests: "))?;
    let count = |what: &str| {
        let part = line.split(", ").find(|part| part.ends_with(what))?;
        part.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some((count(" succeeded")?, count(" failed")? + count(" errored")? + count(" timeout")?))
}

/// Times of all requests: when it began, status, and how long it took, in microseconds.
fn histogram(log: &str) -> Histogram {
    let mut histogram = Histogram::default();
    for line in log.lines() {
        if let Some(time) = line.split('\t').nth(2).and_then(|word| word.trim().parse().ok()) {
            histogram.record(Duration::from_micros(time));
        }
    }
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_h2load_says_is_understood() {
        let text = "finished in 1.00s, 10 req/s\nrequests: 512 total, 520 started, 512 done, 510 succeeded, \
                    1 failed, 1 errored, 0 timeout\nstatus codes: 510 2xx, 0 3xx, 0 4xx, 0 5xx\n";
        assert_eq!(outcome(text), Some((510, 2)));
        assert_eq!(outcome("the connection was refused\n"), None);
        let log =
            "1700000000000000\t200\t1000\n1700000000000000\t200\t2000\nbad\n1700000000000000\t200\t3000\n";
        let median = histogram(log).quantile_ms(0.5).unwrap();
        assert!((1.9..2.1).contains(&median), "{median}");
    }
}
