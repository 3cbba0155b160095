//! What an adapter can do, by perftest's `ib_write_bw`.

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;

use crate::failure::Failure;

pub(super) const PERFTEST: &str = "ib_write_bw";

/// What perftest finds, in bytes per second; `None` without it.
pub(super) fn write_bandwidth(address: IpAddr) -> Result<Option<f64>, Failure> {
    let devices = dwcp_rdma::devices().map_err(Failure::other)?;
    let Some(device) = devices.first() else {
        return Ok(None);
    };
    let start = |peer: Option<String>| {
        Command::new(PERFTEST)
            .args([
                "-d",
                &device.name,
                "-x",
                "1",
                "-F",
                "-s",
                "262144",
                "-n",
                "1000",
            ])
            .args(peer)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
    };
    let Ok(mut server) = start(None) else {
        return Ok(None);
    };
    // It says nothing when it listens: the client tries until somebody does.
    let mut found = None;
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(200));
        let client = start(Some(address.to_string())).map_err(Failure::other)?;
        let output = client.wait_with_output().map_err(Failure::other)?;
        found = bandwidth(&String::from_utf8_lossy(&output.stdout));
        if found.is_some() {
            break;
        }
    }
    let _ = server.kill();
    let _ = server.wait();
    found
        .context("ib_write_bw did not say how fast it was")
        .map(Some)
        .map_err(Failure::other)
}

/// The fourth number of the line of figures, MiB per second.
fn bandwidth(text: &str) -> Option<f64> {
    let figures = text.lines().find(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("262144")
    })?;
    let average: f64 = figures.split_whitespace().nth(3)?.parse().ok()?;
    Some(average * 1024.0 * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_is_read_from_the_line_of_figures() {
        let text = " #bytes     #iterations    BW peak[MiB/sec]    BW average[MiB/sec]   MsgRate[Mpps]\n \
                    262144     1000           170.11              165.93             0.000664\n";
        let rate = bandwidth(text).unwrap() / f64::from(1 << 20);
        assert!((rate - 165.93).abs() < 1e-9);
        assert_eq!(bandwidth("no such device"), None);
    }
}
