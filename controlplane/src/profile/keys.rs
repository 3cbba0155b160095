//! Every key of a profile.

use dwcp_api::STREAMS_MAX;

use crate::config::{Dimension, Key, Kind, Reload};

/// The built-in profiles, which are also the modes.
pub(super) const MODES: &[&str] = &["datacenter", "hybrid", "internet"];

/// Congestion control that leaves the choice to the host.
pub(super) const HOST: &str = "host";

const fn key(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key {
        name,
        kind,
        reload: Reload::NextMigration,
        doc,
    }
}

const fn integer(min: i64, max: i64) -> Kind {
    Kind::Integer { min, max }
}

const fn bytes(min: u64, max: u64) -> Kind {
    let dimension = Dimension::Bytes;
    Kind::Quantity {
        dimension,
        min,
        max,
    }
}

const fn time(min: u64, max: u64) -> Kind {
    let dimension = Dimension::Milliseconds;
    Kind::Quantity {
        dimension,
        min,
        max,
    }
}

/// The table, in the order of the files.
pub(super) const KEYS: &[Key] = &[
    key(
        "mode",
        Kind::Choice(MODES),
        "What kind of path the profile is for. Also names the built-in profile that gives the keys \
         which a file leaves out. Required in a profile file.",
    ),
    key(
        "transfer.streams",
        Kind::IntegerOrAuto {
            min: 1,
            max: STREAMS_MAX as i64,
        },
        "Data streams between the nodes. One stream fills a short link; several fill a long one, \
         and let more workers send at once. auto opens 32 and finds by measurement how many of them \
         carry pages, four at first: more where a path gives each connection only so much or loses packets.",
    ),
    key(
        "transfer.workers",
        integer(0, 256),
        "Worker threads at each end. 0 lets the data plane choose from the node's cores and the \
         number of streams.",
    ),
    key(
        "transfer.at_once",
        integer(0, 1000),
        "Migrations that leave a node at once. One that would be one more waits for its turn, its \
         guest running: few at a time are each short, and all together sooner done. 0 lets the \
         data plane choose: enough to keep its cores busy, four at most.",
    ),
    key(
        "transfer.priority",
        integer(1, 100),
        "Of migrations that wait for their turn the one of the highest priority is next. Where the node limits \
         what leaves it (dwcp-dataplane --outgoing-mbit), those under way share that by their priorities: one of 20 \
         has twice as much as one of 10, and all that others leave.",
    ),
    key(
        "transfer.tls",
        Kind::Choice(&["auto", "on", "off"]),
        "TLS 1.3 on all connections of the migration, each node with a certificate. auto when this node \
         has one (dwcp-dataplane --tls-certificate); on, or not at all; off is plain text, faster by what \
         the cipher costs, and taken only by nodes without a certificate or with --allow-plain-text. In \
         mode internet TLS is demanded whatever stands here, and off is refused. The other node has no \
         say in it.",
    ),
    key(
        "transfer.kernel_tls",
        Kind::Choice(&["off", "auto"]),
        "Whether the kernel seals the pages that leave by TLS (its module tls), rather than the data plane. \
         auto where it can: pages are then sent from guest RAM itself, as without TLS; where it cannot, a \
         note says so. What is on the wire is the same, and the other node chooses for itself: dwcp-dataplane \
         --kernel-tls for what comes in. Measure it with `dwcp bench tls --kernel` before it is used.",
    ),
    key(
        "transfer.rdma",
        Kind::Choice(&["auto", "off", "required"]),
        "Data streams as RDMA queue pairs: the network adapter of the source writes pages where they belong \
         at the destination. auto where both nodes have a device on a common network, with TCP for every \
         stream that breaks; required makes TCP an error. Never where the migration is TLS, nor in mode \
         internet: RDMA is neither encrypted nor authenticated.",
    ),
    key(
        "transfer.io",
        Kind::Choice(&["auto", "uring", "poll"]),
        "Transport loop of the workers. auto takes io_uring when the kernel allows it, and poll \
         otherwise; uring makes its absence an error.",
    ),
    key(
        "transfer.send",
        Kind::Choice(&["auto", "zero-copy", "vmsplice", "sendfile", "write", "copy"]),
        "How guest pages that are sent as they are get into the socket. auto tries \
         zero-copy (io_uring, out as soon as the kernel says that it copied), vmsplice, sendfile and \
         write on the first frames of each stream and keeps the fastest, or the one that costs the \
         least CPU when the link is the limit. These send straight from guest RAM: \
         a page that the guest writes meanwhile arrives torn, is recognised and sent again. copy \
         copies each page first.",
    ),
    key(
        "transfer.window",
        bytes(1 << 20, 4 << 30),
        "Bytes that may be on the way and not yet acknowledged, over all streams. At least \
         bandwidth times round-trip time, or the link stays partly idle: 10 Gbit/s at 50 ms needs \
         64MiB.",
    ),
    key(
        "transfer.congestion_control",
        Kind::Choice(&[HOST, "cubic", "bbr", "reno", "dctcp"]),
        "TCP congestion control of the data streams. bbr keeps its rate when packets are lost; the \
         kernel must have it (module tcp_bbr). host leaves the choice to the host's setting.",
    ),
    key(
        "transfer.bandwidth_limit_mbit",
        integer(0, 1_000_000),
        "Bits that a migration sends in a second at most, in millions, over all of its streams; 0 is no \
         limit. `dwcp tune` changes it while the guest is moved. What a paused guest waits for, or one in \
         post-copy, is not limited.",
    ),
    key(
        "transfer.follow_path",
        Kind::Boolean,
        "Watch round trip, loss and rate of the path while the guest is moved, and take the congestion \
         control of the mode that it is found to be of. `--profile auto` sets it.",
    ),
    key(
        "transfer.pin",
        Kind::Boolean,
        "Pin each worker to a core near the guest's memory. Better rates on a node with cores to \
         spare; worse when guests own every core.",
    ),
    key(
        "transfer.busy_poll_us",
        integer(0, 1000),
        "Microseconds for which a worker of this node looks for completions before it sleeps for \
         them, at most. It looks for as long as that has paid, and not at all once it has nothing to \
         do. Worth a try where workers are pinned to cores of their own; on a busy node it takes \
         time from the guests. 0 sleeps at once. For incoming migrations: dwcp-dataplane \
         --busy-poll-us.",
    ),
    key(
        "pages.codec",
        Kind::Choice(&["raw", "zstd", "window", "auto"]),
        "How pages that are neither zero nor unchanged are encoded. raw sends them as they are; \
         zstd compresses runs of 16 pages; window compresses all that a stream carries as one, so \
         that a page is found again in what went before: fewest bytes, most memory; auto is window at \
         a level, or raw, that follows what the link and the CPU make of it. All send raw what does \
         not get smaller.",
    ),
    key(
        "pages.prefer",
        Kind::Choice(&["time", "bytes"]),
        "What pages.codec auto is chosen for where fewer bytes would take longer, as the CPU is slower than \
         the link. time is sooner done; bytes spares a link that others use, or that is paid for, and never tries \
         less hard than level 1. Over a slow link both are the same.",
    ),
    key(
        "pages.zstd_level",
        integer(-7, 19),
        "Level of the codecs zstd and window: lower is faster, higher is smaller. Without effect when \
         pages.codec is raw.",
    ),
    key(
        "pages.zstd_window",
        bytes(1 << 20, 128 << 20),
        "How far back the codecs window and auto look, over all streams together: each looks back over its \
         share, rounded down to a power of two, and both ends keep as much in memory. Without \
         effect with another codec.",
    ),
    key(
        "pages.reuse",
        Kind::Boolean,
        "Send only what the destination does not have already: it is asked by the hashes of pages, \
         and looks in what a lost connection left in the waiting VM's RAM, in the RAM of VMs that left \
         its node, and in disk images that were added there (dwcp store). Costs a read of RAM and 8 bytes \
         a page, and nothing where the destination has nothing; on a fast link the pages themselves are \
         sooner sent.",
    ),
    key(
        "pages.remember",
        bytes(0, 64 << 30),
        "Memory of a migration's source for pages as they were sent. One that the guest writes again is then \
         sent as what changed: about a third of the bytes. What does not fit is sent whole. With \
         pages.codec window or auto; 0 remembers nothing.",
    ),
    key(
        "tracker.prefer",
        Kind::Choice(&["auto", "userfaultfd", "soft-dirty", "fingerprint"]),
        "How pages that the guest wrote are found. auto takes the first that works: userfaultfd \
         (needs the preload library), soft-dirty (needs a kernel with it), fingerprint (reads all \
         of RAM every round, needs nothing). Another value makes its absence an error.",
    ),
    key(
        "switchover.downtime_limit",
        time(1, 60_000),
        "The guest is paused for the switchover only when what its last pages are forecast to take fits this. Two \
         round trips to the other node come on top: no migration has less.",
    ),
    key(
        "switchover.downtime_limit_at_last",
        time(0, 600_000),
        "The pause that is accepted when switchover.rounds_max is reached. In the second half of the rounds the \
         limit grows evenly from downtime_limit to this one, so that the shortest pause that can be had is \
         taken. Less than downtime_limit, as 0 is, leaves the limit as it is.",
    ),
    key(
        "switchover.rounds_max",
        integer(1, 1000),
        "Pre-copy rounds at most. Then switchover.if_not_converged decides.",
    ),
    key(
        "switchover.if_not_converged",
        Kind::Choice(&["abort", "switch-over", "post-copy"]),
        "What becomes of a guest that dirties its pages faster than they leave, so that the pause \
         would still be longer than downtime_limit when the rounds are used up. abort leaves it \
         running at the source; switch-over accepts the longer pause; post-copy, as soon as rounds \
         get no shorter, runs it at the destination before all of its pages are there. Each page \
         follows when the guest needs it, or sooner; until the last is there, to lose either node \
         is to lose the guest. Needs the preload library at the destination.",
    ),
    key(
        "switchover.throttle_percent_max",
        integer(0, 99),
        "So much of the guest's CPU time may be taken while rounds get no shorter and the pause does not fit: 20% \
         of what it used, and 20% more after each such round. It has all of it again when it is paused or given \
         back, and when a data plane that was killed is started again. By the cgroup of the VMM, in which it has \
         to be alone. 0 takes none.",
    ),
    key(
        "verify.mode",
        Kind::Choice(&["sample", "full"]),
        "How much of RAM is read again before the guest runs at the destination. Both modes \
         compare the proof over all of RAM; sample reads verify.sample_pages pages again, full \
         reads every page again and makes the pause longer by that.",
    ),
    key(
        "verify.sample_pages",
        integer(0, 1 << 20),
        "Pages read again at the pause in sample mode: they catch a tracker that missed a write.",
    ),
    key(
        "timeouts.connect",
        time(100, 600_000),
        "Time limit for connecting to the other node and negotiating. Once connected, timeouts.peer_silence \
         counts where that is shorter.",
    ),
    key(
        "timeouts.deadline",
        time(0, 604_800_000),
        "Time from when both nodes have agreed (waiting for a turn at either does not count) within which the guest is paused for the \
         switchover. Then it is given back at once where switchover.if_not_converged is abort; else the round that \
         is under way is the last one. 0 takes as long as it takes.",
    ),
    key(
        "timeouts.peer_silence",
        time(100, 3_600_000),
        "A peer that says nothing for so long counts as lost. Before the handover the guest then \
         runs on at the source. While it stands, until the handover is sent, a destination that says nothing and a \
         connection that breaks are waited for no longer than 2 s or twice switchover.downtime_limit, whichever is more, and never longer \
         than this. Queue pairs, post-copy until RAM is proven and destinations of an older version have this time.",
    ),
];
