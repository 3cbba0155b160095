//! Which way data streams take, where there are several.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Paths that one migration takes at most.
pub const PATHS_MAX: usize = 8;

/// A way of data streams: from an address of the source, to an address of the destination's data plane. Written
/// `FROM=TO`, `TO` where the kernel chooses the first, `FROM=` to where the control connection has led.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPath {
    /// The local address that its connections have.
    pub from: Option<IpAddr>,
    /// Where they lead.
    pub to: Option<SocketAddr>,
}

impl fmt::Display for StreamPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(from) = self.from {
            write!(f, "{from}=")?;
        }
        match self.to {
            Some(to) => to.fmt(f),
            None => Ok(()),
        }
    }
}

impl FromStr for StreamPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (from, to) = match text.split_once('=') {
            Some((from, to)) => (Some(from), Some(to).filter(|to| !to.is_empty())),
            None => (None, Some(text)),
        };
        let wrong = |part: &str, what: &str, example: &str| {
            format!("`{part}` is no {what} such as {example}; a path is FROM=TO, TO, or FROM=")
        };
        let ip = |part: &str| {
            part.parse::<IpAddr>()
                .map_err(|_| wrong(part, "address", "192.0.2.1"))
        };
        let socket = |part: &str| {
            part.parse::<SocketAddr>().map_err(|_| {
                wrong(
                    part,
                    "address and port",
                    "192.0.2.2:7440 or [2001:db8::2]:7440",
                )
            })
        };
        let path = Self {
            from: from.map(ip).transpose()?,
            to: to.map(socket).transpose()?,
        };
        match (path.from, path.to) {
            (Some(from), Some(to)) if from.is_ipv4() != to.is_ipv4() => {
                Err(format!("{from} and {to} are not of one version of IP"))
            }
            _ => Ok(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for text in [
            "192.0.2.1=192.0.2.2:7440",
            "192.0.2.2:7440",
            "192.0.2.1=",
            "2001:db8::1=[2001:db8::2]:7440",
        ] {
            let path: StreamPath = text.parse().unwrap();
            assert_eq!(path.to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, why) in [
            ("", "`` is no address and port"),
            ("192.0.2.2", "`192.0.2.2` is no address and port"),
            ("b=192.0.2.2:7440", "`b` is no address such as"),
            ("=192.0.2.2:7440", "`` is no address such as"),
            ("192.0.2.1=[2001:db8::2]:7440", "not of one version"),
        ] {
            let error = text.parse::<StreamPath>().unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
