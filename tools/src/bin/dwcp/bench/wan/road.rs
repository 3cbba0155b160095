//! A link that a bench asks for.

use std::process::Command;

use dwcp_tools::lab::Binaries;
use dwcp_wan::link::{self, LinkName, TemporaryLink};
use dwcp_wan::params::{LinkParams, WayParams};
use dwcp_wan::units;

use crate::failure::Failure;

/// Rate, round trip, loss.
const LINKS: [&str; 4] = [
    "100mbit,100ms",
    "500mbit,50ms",
    "900mbit,50ms,0.1%",
    "100mbit,200ms,1%",
];

/// A link that is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Road {
    pub(crate) name: String,
    way: WayParams,
}

impl Road {
    /// Those that are measured when none is asked for.
    pub(super) fn usual() -> Result<Vec<Self>, Failure> {
        Self::all(&LINKS)
    }

    /// Those that a bench has by itself.
    pub(crate) fn all(links: &[&str]) -> Result<Vec<Self>, Failure> {
        let roads = links.iter().map(|text| Self::parse(text));
        roads
            .collect::<Result<_, _>>()
            .map_err(|error| Failure::other(anyhow::anyhow!(error)))
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split(',').map(str::trim).collect();
        let (rate, round_trip, loss) = match parts[..] {
            [rate, round_trip] => (rate, round_trip, "0"),
            [rate, round_trip, loss] => (rate, round_trip, loss),
            _ => return Err("a link is RATE,RTT or RATE,RTT,LOSS, as in 100mbit,100ms,1%".into()),
        };
        let round_trip_ns = units::time(round_trip).map_err(|error| error.to_string())?;
        Ok(Self {
            name: parts.join(","),
            way: WayParams {
                rate_bit_per_s: units::rate(rate).map_err(|error| error.to_string())?,
                delay_ns: round_trip_ns / 2,
                loss: units::share(loss).map_err(|error| error.to_string())?,
                ..WayParams::default()
            },
        })
    }

    /// What it carries, headers of packets included.
    pub(crate) fn bytes_per_s(&self) -> Option<u64> {
        self.way.rate_bit_per_s.map(|rate| rate / 8)
    }

    /// From one end to the other and back, when nothing else is on the way.
    pub(crate) const fn rtt_us(&self) -> u64 {
        self.way.delay_ns * 2 / 1000
    }

    pub(super) fn is_lossy(&self) -> bool {
        self.way.loss > 0.0
    }

    /// Makes it, with `congestion_control` for all that chooses none.
    pub(crate) fn up(&self, seed: u64, congestion_control: &str) -> Result<TemporaryLink, Failure> {
        let mut links = self.up_times(1, seed, congestion_control)?;
        Ok(links.remove(0))
    }

    /// So many of it between the same two namespaces.
    pub(crate) fn up_times(
        &self,
        count: u8,
        seed: u64,
        congestion_control: &str,
    ) -> Result<Vec<TemporaryLink>, Failure> {
        let mut links = vec![self.link("", None, seed)?];
        for number in 1..count {
            let seed = seed + 1000 * u64::from(number);
            let link = self.link(&format!("-{number}"), Some(&links[0].name), seed)?;
            links.push(link);
        }
        for namespace in &links[0].namespaces {
            control(namespace, congestion_control)?;
        }
        Ok(links)
    }

    fn link(
        &self,
        suffix: &str,
        beside: Option<&LinkName>,
        seed: u64,
    ) -> Result<TemporaryLink, Failure> {
        let name: LinkName = format!("bench-{}{suffix}", std::process::id())
            .parse()
            .map_err(|error: String| Failure::other(anyhow::anyhow!(error)))?;
        let params = LinkParams {
            seed,
            ways: [self.way.clone(), self.way.clone()],
        };
        let program = Binaries::find().map_err(Failure::other)?.wan;
        let link = link::up(&name, beside, &params, 1500, &program);
        Ok(link.map_err(Failure::other)?.into())
    }
}

/// Changes the congestion control of a namespace by its routes: its setting takes only what the host
/// allows to everybody, which need not be more than the host's own default.
fn control(namespace: &str, congestion_control: &str) -> Result<(), Failure> {
    let ip = |words: &[&str]| {
        let mut command = Command::new("ip");
        command.args(["-n", namespace, "route"]).args(words);
        command.output().map_err(Failure::other)
    };
    let routes = String::from_utf8_lossy(&ip(&["show"])?.stdout).into_owned();
    for route in routes.lines() {
        let mut words = vec!["replace"];
        words.extend(route.split_whitespace());
        words.extend(["congctl", congestion_control]);
        let replaced = ip(&words)?;
        if !replaced.status.success() {
            return Err(Failure::other(anyhow::anyhow!(
                "no congestion control {congestion_control}, the kernel says: {}",
                String::from_utf8_lossy(&replaced.stderr).trim()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read_as_people_write_them() {
        let road = Road::parse("100mbit, 200ms, 1%").unwrap();
        assert_eq!(road.name, "100mbit,200ms,1%");
        assert_eq!(road.way.rate_bit_per_s, Some(100_000_000));
        assert_eq!(road.way.delay_ns, 100_000_000);
        assert!((road.way.loss - 0.01).abs() < 1e-9);
        for text in LINKS {
            Road::parse(text).unwrap();
        }
        for bad in ["", "100mbit", "100mbit,fast", "1,2,3,4"] {
            Road::parse(bad).unwrap_err();
        }
    }
}
