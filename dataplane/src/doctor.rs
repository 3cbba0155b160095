//! What this node has, what it lacks, and what to do about it. Each line is found by trying.

use std::fs;

use dwcp_api::dataplane::{Finding, FindingLevel};
use dwcp_numa::{DeviceKind, Topology};
use dwcp_pki::{CertificateFacts, date_of};
use nix::sys::resource::{Resource, getrlimit};
use socket2::{Domain, Socket, Type};

use crate::tls::KernelTls;
use crate::transport::hasten_losses;
use crate::vmm::tracker::soft_dirty;

/// Looks at everything, a line each.
#[must_use]
pub fn findings() -> Vec<Finding> {
    vec![
        io_uring(),
        userfaultfd(),
        soft_dirty_bits(),
        huge_pages(),
        numa(),
        memlock(),
        rdma(),
        kernel_tls(),
        lost_packets(),
        privileges(),
        kernels(),
        qemu(),
    ]
}

/// A certificate that ends within so many days is to be renewed.
const RENEW_DAYS: i64 = 14;

/// A node's certificate for TLS, and what is to be said of its files.
#[must_use]
pub fn certificate(facts: Option<&CertificateFacts>, doubts: &[String]) -> Finding {
    const SUBJECT: &str = "TLS certificate";
    let Some(facts) = facts else {
        return finding(
            SUBJECT,
            FindingLevel::Fallback,
            "none: connections are plain text",
            "mode internet is refused; `dwcp pki init` and `dwcp pki issue` make one, \
             dwcp-dataplane --tls-certificate takes it",
        );
    };
    let found = format!(
        "of {}, good until {}",
        facts.dns_names.join(", "),
        date_of(facts.not_after)
    );
    let renew = "`dwcp pki rotate` renews it; its files are read again by themselves";
    match facts.days_left() {
        ..0 => finding(
            SUBJECT,
            FindingLevel::Missing,
            format!("{found}: EXPIRED"),
            format!("no other node takes it: {renew}"),
        ),
        days @ ..RENEW_DAYS => finding(
            SUBJECT,
            FindingLevel::Fallback,
            format!("{found}: {days} days left"),
            renew,
        ),
        _ if doubts.is_empty() => good(SUBJECT, found),
        _ => finding(
            SUBJECT,
            FindingLevel::Fallback,
            format!("{found}; {}", doubts.join("; ")),
            "mend the files: they are read again by themselves",
        ),
    }
}

fn finding(
    subject: &str,
    level: FindingLevel,
    found: impl Into<String>,
    advice: impl Into<String>,
) -> Finding {
    Finding {
        subject: subject.into(),
        level,
        found: found.into(),
        advice: advice.into(),
    }
}

fn good(subject: &str, found: impl Into<String>) -> Finding {
    finding(subject, FindingLevel::Good, found, "")
}

fn io_uring() -> Finding {
    match io_uring::IoUring::new(8) {
        Ok(_) => good("io_uring", "works"),
        Err(error) => finding(
            "io_uring",
            FindingLevel::Fallback,
            format!("refused: {error}"),
            "poll is used instead, at more CPU per byte; check sysctl kernel.io_uring_disabled \
             and the container's seccomp profile",
        ),
    }
}

fn userfaultfd() -> Finding {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (6, 7) {
        return finding(
            "userfaultfd",
            FindingLevel::Fallback,
            format!("kernel {release} has no PAGEMAP_SCAN"),
            "Linux 6.7 or newer tracks writes exactly; fingerprints are compared instead",
        );
    }
    let unprivileged = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    let open = unprivileged.is_ok_and(|value| value.trim() == "1");
    let device = fs::File::open("/dev/userfaultfd").is_ok();
    let root = nix::unistd::geteuid().is_root();
    if root || open || device {
        return good(
            "userfaultfd",
            format!("kernel {release}, write tracking by PAGEMAP_SCAN, post-copy"),
        );
    }
    finding(
        "userfaultfd",
        FindingLevel::Fallback,
        "only faults of user mode, which suffices for tracking and not for post-copy",
        "for post-copy let the VMM's group open /dev/userfaultfd (a udev rule)",
    )
}

fn soft_dirty_bits() -> Finding {
    if soft_dirty::is_supported() {
        return good("soft-dirty", "the kernel has soft-dirty bits");
    }
    finding(
        "soft-dirty",
        FindingLevel::Fallback,
        "the kernel has no soft-dirty bits",
        "only needed where userfaultfd tracking is missing: fingerprints are compared then",
    )
}

fn huge_pages() -> Finding {
    let free = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let free: u64 = free
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    if free > 0 {
        return good("huge pages", format!("{free} free of 2 MiB"));
    }
    finding(
        "huge pages",
        FindingLevel::Fallback,
        "none reserved",
        "workers use 4 KiB pages for their buffers; reserve some with sysctl vm.nr_hugepages=64",
    )
}

fn numa() -> Finding {
    match Topology::detect() {
        Ok(topology) => good("NUMA", nodes_in_words(&topology)),
        Err(error) => finding(
            "NUMA",
            FindingLevel::Fallback,
            format!("topology unknown: {error}"),
            "workers run where the kernel puts them",
        ),
    }
}

/// Counts; where there is a choice, also where the network cards are.
fn nodes_in_words(topology: &Topology) -> String {
    let (nodes, cores) = (topology.nodes().len(), topology.cores().len());
    let mut words = format!("{nodes} node(s), {cores} core(s)");
    if nodes > 1 {
        let cards = topology.devices().iter();
        for card in cards.filter(|device| device.kind == DeviceKind::Network) {
            let place = card
                .node
                .map_or_else(|| "all".to_owned(), |node| format!("node {node}"));
            words.push_str(&format!(", {} near {place}", card.name));
        }
    }
    words
}

fn memlock() -> Finding {
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    let root = nix::unistd::geteuid().is_root();
    if root || limit >= 64 << 20 {
        return good(
            "memlock",
            if root {
                "root, no limit".into()
            } else {
                format!("{} MiB", limit >> 20)
            },
        );
    }
    finding(
        "memlock",
        FindingLevel::Fallback,
        format!("{} KiB", limit >> 10),
        "buffers are not registered with the ring; set LimitMEMLOCK=infinity for the service",
    )
}

fn rdma() -> Finding {
    match dwcp_rdma::devices() {
        Ok(devices) => {
            let names: Vec<_> = devices.iter().map(|device| device.name.clone()).collect();
            good("RDMA", names.join(", "))
        }
        Err(error) if error.is_absence() => {
            finding("RDMA", FindingLevel::Fallback, "no device", "TCP is used")
        }
        Err(error) => finding(
            "RDMA",
            FindingLevel::Fallback,
            error.to_string(),
            "TCP is used; check permissions on /dev/infiniband",
        ),
    }
}

fn kernel_tls() -> Finding {
    const SUBJECT: &str = "kernel TLS";
    match KernelTls::find() {
        Ok(kernel) => good(SUBJECT, kernel.names().collect::<Vec<_>>().join(", ")),
        Err(why) => finding(
            SUBJECT,
            FindingLevel::Fallback,
            format!("none: {why}"),
            "the data plane seals pages itself, also with transfer.kernel_tls = \"auto\"; `modprobe tls`, \
             where the kernel has it (CONFIG_TLS)",
        ),
    }
}

fn lost_packets() -> Finding {
    const SUBJECT: &str = "lost packets";
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None);
    match socket.and_then(|socket| hasten_losses(&socket)) {
        Ok(()) => good(SUBJECT, "noticed after a round trip and 50 ms"),
        Err(error) => finding(
            SUBJECT,
            FindingLevel::Fallback,
            format!("noticed after a round trip and 200 ms: {error}"),
            "a pause over a link that loses packets may be longer; Linux 6.15, or `ip route change … rto_min 50ms`",
        ),
    }
}

fn privileges() -> Finding {
    if nix::unistd::geteuid().is_root() {
        return good("privileges", "root");
    }
    finding(
        "privileges",
        FindingLevel::Fallback,
        format!("uid {}", nix::unistd::geteuid()),
        "VMs of this user can be moved if ptrace of them is allowed (kernel.yama.ptrace_scope=0 or \
         CAP_SYS_PTRACE); run the daemons as root to move any VM",
    )
}

fn kernels() -> Finding {
    let kernels = dwcp_simd::kernels();
    let found = format!("page kernels: {}", kernels.name());
    match kernels.note() {
        None => good("CPU", found),
        Some(note) => finding("CPU", FindingLevel::Fallback, found, note),
    }
}

fn qemu() -> Finding {
    let binary = std::env::var_os("DWCP_QEMU").unwrap_or_else(|| "qemu-system-x86_64".into());
    match std::process::Command::new(&binary)
        .arg("--version")
        .output()
    {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            good("QEMU", text.lines().next().unwrap_or_default())
        }
        _ => finding(
            "QEMU",
            FindingLevel::Missing,
            format!("{} does not run", binary.display()),
            "install qemu-system-x86 to move QEMU guests; synthetic guests need nothing",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_named_where_there_is_a_choice_of_nodes() {
        let server = include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../numa/tests/topologies/servers/supermicro-2x-xeon-e5-2650-2-nodes.xml"
        ));
        let words = nodes_in_words(&Topology::from_xml(server).unwrap());
        assert_eq!(
            words,
            "2 node(s), 16 core(s), eth0 near node 1, eth1 near node 1, ib0 near node 1"
        );
        let one = Topology::from_synthetic("pack:1 [numa] core:4 pu:2").unwrap();
        assert_eq!(nodes_in_words(&one), "1 node(s), 4 core(s)");
    }

    #[test]
    fn a_certificate_is_renewed_before_it_ends() {
        let now = std::time::SystemTime::now();
        let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        let looked_at = |days: i64, doubts: Vec<String>| {
            let facts = CertificateFacts {
                subject: "CN=a".into(),
                issuer: "CN=ca".into(),
                dns_names: vec!["a".into()],
                addresses: vec![],
                not_before: 0,
                not_after: now + days * 24 * 60 * 60 + 60,
                is_ca: false,
                key_id: None,
                issuer_key_id: None,
            };
            certificate(Some(&facts), &doubts)
        };
        assert_eq!(looked_at(14, vec![]).level, FindingLevel::Good);
        let soon = looked_at(13, vec![]);
        assert_eq!(soon.level, FindingLevel::Fallback);
        assert!(soon.found.contains("13 days left"), "{soon:?}");
        assert_eq!(looked_at(-1, vec![]).level, FindingLevel::Missing);
        let doubtful = looked_at(14, vec!["key.pem may be read by others".into()]);
        assert_eq!(doubtful.level, FindingLevel::Fallback);
        assert!(doubtful.found.ends_with("read by others"), "{doubtful:?}");
        assert_eq!(certificate(None, &[]).level, FindingLevel::Fallback);
    }
}
