//! A link of this machine's own: two network namespaces joined by a veth pair.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use dwcp_wan::namespace::{ip, run, within};

/// Two namespaces and the pair between them; dropping it takes them down.
#[derive(Debug)]
pub struct VethLink {
    namespaces: [String; 2],
}

/// One side of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

static LINKS: AtomicU32 = AtomicU32::new(0);

impl VethLink {
    /// Sets one up. Needs root, and `ip` of iproute2.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn up() -> io::Result<Self> {
        let number = LINKS.fetch_add(1, Ordering::Relaxed);
        let name = |side: char| format!("dwcp-{}-{number}{side}", std::process::id());
        let link = Self {
            namespaces: [name('a'), name('b')],
        };
        let [a, b] = &link.namespaces;
        for namespace in [a, b] {
            ip(&["netns", "add", namespace])?;
            ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        }
        ip(&[
            "-n", a, "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", b,
        ])?;
        for side in [Side::A, Side::B] {
            let (namespace, address) = (link.namespace(side), format!("{}/30", link.address(side)));
            ip(&["-n", namespace, "addr", "add", &address, "dev", "veth0"])?;
            ip(&["-n", namespace, "link", "set", "veth0", "up"])?;
        }
        Ok(link)
    }

    /// Makes it as slow, and as long, as a link between machines: by `tbf`, or by `netem` where there
    /// is a delay. Needs `tc` of iproute2, and a kernel that has them.
    ///
    /// # Errors
    /// What `tc` said.
    pub fn shape(&self, rate_mbit_per_s: u64, one_way_delay_ms: u64) -> io::Result<()> {
        let (rate, delay) = (
            format!("{rate_mbit_per_s}mbit"),
            format!("{one_way_delay_ms}ms"),
        );
        // A burst holds the largest packet that TCP gives to the interface at once.
        let slower = ["tbf", "rate", &rate, "burst", "256kb", "latency", "20ms"];
        // All that is on its way at once has to fit.
        let longer = ["netem", "delay", &delay, "rate", &rate, "limit", "100000"];
        let discipline = match one_way_delay_ms {
            0 => slower,
            _ => longer,
        };
        for namespace in &self.namespaces {
            let mut arguments = vec!["-n", namespace, "qdisc", "replace", "dev", "veth0", "root"];
            arguments.extend(discipline);
            run("tc", &arguments)?;
        }
        Ok(())
    }

    /// Name of a side's namespace.
    #[must_use]
    pub fn namespace(&self, side: Side) -> &str {
        match side {
            Side::A => &self.namespaces[0],
            Side::B => &self.namespaces[1],
        }
    }

    /// A side's address. The namespaces are the link's own, so every link may use the same.
    #[must_use]
    pub const fn address(&self, side: Side) -> &'static str {
        match side {
            Side::A => "10.213.7.1",
            Side::B => "10.213.7.2",
        }
    }

    /// Runs `work` on a thread of that side: sockets made there belong there.
    ///
    /// # Errors
    /// From the system, or `work`'s own.
    pub fn within<T: Send>(
        &self,
        side: Side,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        within(self.namespace(side), work)
    }
}

impl Drop for VethLink {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            // One that was never added is no loss.
            let _ = ip(&["netns", "del", namespace]);
        }
    }
}
