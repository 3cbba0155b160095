//! The machine that a figure was measured on.

use serde::Serialize;

/// Memory that could be had now, MiB; `None` where the kernel does not say.
pub(crate) fn memory_available_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib / 1024)
}

/// What a reader needs to judge a figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// Processor.
    pub(crate) cpu: String,
    /// Cores that this process may use.
    pub(crate) cores: usize,
    /// RAM.
    pub(crate) ram_mib: u64,
    /// Kernel release.
    pub(crate) kernel: String,
    /// TCP congestion control that a socket gets unless it asks for another: QEMU's own migration does
    /// not ask.
    pub(crate) congestion_control: String,
    /// QEMU in use.
    pub(crate) qemu: String,
    /// This package's version.
    pub(crate) dwcp: String,
}

impl Machine {
    /// Describes this machine.
    pub(crate) fn here() -> Self {
        let field = |path: &str, key: &str| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            line.map(|value| value.trim_start_matches([' ', '\t', ':']).to_owned())
                .unwrap_or_default()
        };
        let setting = |path: &str| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.trim().to_owned()
        };
        let ram = field("/proc/meminfo", "MemTotal:");
        let qemu = std::process::Command::new(dwcp_testbed::guests::qemu_binary())
            .arg("--version")
            .output()
            .map(|output| {
                String::from_utf8_lossy(&output.stdout)
                    .lines()
                    .next()
                    .unwrap_or("")
                    .to_owned()
            });
        Self {
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            ram_mib: ram
                .trim_end_matches(" kB")
                .trim()
                .parse::<u64>()
                .unwrap_or(0)
                / 1024,
            kernel: setting("/proc/sys/kernel/osrelease"),
            congestion_control: setting("/proc/sys/net/ipv4/tcp_congestion_control"),
            qemu: qemu.unwrap_or_else(|_| "none".into()),
            dwcp: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        format!(
            "{}, {} cores, {} MiB, Linux {}, {} by default, {}",
            self.cpu, self.cores, self.ram_mib, self.kernel, self.congestion_control, self.qemu
        )
    }
}
