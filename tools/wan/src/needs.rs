//! What a link needs of the machine, asked before anything is made.

use std::fs::{self, OpenOptions};
use std::process::{Command, Stdio};

use crate::tun::TUN_PATH;

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// What is missing here, each with what helps; empty when links can be made.
#[must_use]
pub fn missing() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut missing = missing_capabilities(&status);
    // As root, so that a device that is there but not permitted is not said to be missing.
    if let Err(error) = OpenOptions::new().read(true).write(true).open(TUN_PATH) {
        missing.push(format!(
            "{TUN_PATH} ({error}): `modprobe tun`; in a container, pass the device in \
             (`--device {TUN_PATH}`)"
        ));
    }
    let mut ip = Command::new("ip");
    let ip = ip.arg("-V").stdout(Stdio::null()).stderr(Stdio::null());
    if let Err(error) = ip.status() {
        missing.push(format!("ip ({error}): install iproute2"));
    }
    missing
}

fn missing_capabilities(status: &str) -> Vec<String> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = line.and_then(|held| u64::from_str_radix(held.trim(), 16).ok());
    let held = held.unwrap_or(0);
    [
        (CAP_NET_ADMIN, "CAP_NET_ADMIN", "to make network devices"),
        (CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "to make network namespaces"),
    ]
    .iter()
    .filter(|(bit, ..)| held & (1 << bit) == 0)
    .map(|(_, name, why)| format!("{name}, {why}: run it as root (sudo)"))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_process_status() {
        assert!(missing_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n").is_empty());
        let none = missing_capabilities("CapEff:\t0000000000000000\n");
        assert_eq!(none.len(), 2);
        assert!(none[0].contains("CAP_NET_ADMIN") && none[0].contains("root"));
        let no_sys_admin = missing_capabilities("CapEff:\t0000000000001000\n");
        assert!(no_sys_admin.len() == 1 && no_sys_admin[0].contains("CAP_SYS_ADMIN"));
    }
}
