//! `dwcp-dataplane`: reads options, starts the node, serves.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use dwcp_api::{
    Codec, IoPath, KernelTlsChoice, NotConverged, RdmaChoice, SendChoice, TlsChoice, TrackerChoice,
    TransferSettings, Verify,
};
use dwcp_dataplane::migration::{Listener, Node, NodeError, NodeOptions, recover};
use dwcp_dataplane::tls::TlsFiles;
use dwcp_dataplane::vmm::give_back_all;
use dwcp_journal::JournalError;

/// Moves the memory of running VMs between nodes. Started beside `dwcp-controlplane`, which gives
/// the orders over STATE/dataplane.sock.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  dwcp-dataplane --name node-a --state-folder /var/lib/dwcp --listen 0.0.0.0:7440"
)]
struct Options {
    /// Name of this node, unique among its peers
    #[arg(long, value_parser = dwcp_api::parse_node_name)]
    name: String,
    /// Folder of the sockets and of the handover journal
    #[arg(
        long = "state-folder",
        alias = "state",
        value_name = "PATH",
        default_value = "/var/lib/dwcp"
    )]
    state: PathBuf,
    /// Address for other nodes' data planes; port 0 takes a free one
    #[arg(long, default_value = "0.0.0.0:7440")]
    listen: String,
    /// Address of this node's RDMA device, for queue pairs of other nodes; port 0 takes a free one. By default that of
    /// --listen; `none` takes none
    #[arg(long, value_name = "ADDRESS")]
    rdma_listen: Option<String>,
    /// Transport loop for incoming migrations: auto, uring or poll
    #[arg(long, default_value = "auto", value_parser = parse_io)]
    io: IoPath,
    /// Workers for incoming migrations; 0 chooses
    #[arg(long, default_value_t = 0)]
    workers: u16,
    /// Pin workers to cores
    #[arg(long)]
    pin: bool,
    /// Microseconds for which workers of incoming migrations look for completions before they sleep
    /// for them, at most; 0 sleeps at once
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=1000))]
    busy_poll_us: u16,
    /// Disk, in MiB, for the RAM of VMs that left this node: one that comes back sends what changed. 0
    /// keeps none. A tenth of the file system stays free in any case
    #[arg(long, value_name = "MIB", default_value_t = 16 * 1024)]
    store_mib: u64,
    /// This node's certificate, PEM; with --tls-key and --tls-ca, connections to other nodes are TLS.
    /// The files are read again when they change
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    tls_certificate: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// CAs whose certificates other nodes may have, PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_ca: Option<PathBuf>,
    /// Whether the kernel opens the pages of incoming migrations that are TLS: auto (where it can), off
    #[arg(long, default_value = "off", value_parser = parse_kernel_tls)]
    kernel_tls: KernelTlsChoice,
    /// Take migrations in plain text too, though this node has a certificate: who can reach the port can
    /// then offer one, and who is on the way can read it
    #[arg(long, requires = "tls_certificate")]
    allow_plain_text: bool,
    /// Mbit/s that all migrations that leave this node send at most, together: each has its share by
    /// transfer.priority, and what one does not use the others have. What a paused guest waits for, or
    /// one in post-copy, is not limited. 0 is no limit
    #[arg(long, default_value_t = 0, value_name = "MBIT")]
    outgoing_mbit: u32,
    /// Migrations that come in at once; one that would be one more waits, its guest running. 0 is no limit
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    incoming_at_once: usize,
}

impl Options {
    fn tls(&self) -> Option<TlsFiles> {
        let (certificate, key) = (self.tls_certificate.as_ref()?, self.tls_key.as_ref()?);
        Some(TlsFiles {
            ca: self.tls_ca.clone()?,
            certificate: certificate.clone(),
            key: key.clone(),
        })
    }
}

fn parse_io(text: &str) -> Result<IoPath, String> {
    match text {
        "auto" => Ok(IoPath::Auto),
        "uring" => Ok(IoPath::Uring),
        "poll" => Ok(IoPath::Poll),
        other => Err(format!("{other} is none of auto, uring, poll")),
    }
}

fn parse_kernel_tls(text: &str) -> Result<KernelTlsChoice, String> {
    match text {
        "auto" => Ok(KernelTlsChoice::Auto),
        "off" => Ok(KernelTlsChoice::Off),
        other => Err(format!("{other} is none of auto, off")),
    }
}

fn main() -> ExitCode {
    dwcp_api::use_few_heaps();
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("DWCP_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(dwcp_api::stderr_takes_colours())
        // What cannot be written cannot be complained of there either: that would be a panic.
        .log_internal_errors(false)
        .init();
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dwcp-dataplane: {}", dwcp_api::in_words(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> anyhow::Result<()> {
    let settings = incoming_settings(&options);
    std::fs::create_dir_all(&options.state)
        .with_context(|| format!("cannot make {}", options.state.display()))?;
    let node = Node::new(NodeOptions {
        tls: options.tls(),
        allow_plain_text: options.allow_plain_text,
        name: options.name,
        state_folder: options.state.clone(),
        listen: options.listen,
        rdma_listen: options.rdma_listen,
        store_bytes_max: options.store_mib << 20,
        outgoing_bytes_per_s: u64::from(options.outgoing_mbit) * 1_000_000 / 8,
        incoming_at_once: options.incoming_at_once,
    });
    give_cpu_time_back(&node, &options.state);
    let node = Arc::new(node?);
    let control = dwcp_api::Listener::bind(&options.state.join("dataplane.sock"))?;
    let listener = Listener::bind(&node)?;
    let address = listener.address()?.to_string();
    tracing::info!(address, pid = std::process::id(), "data plane serves");
    recover(&node, &settings);
    let accepting = Arc::clone(&node);
    std::thread::Builder::new()
        .name("dwcp-accept".into())
        .spawn(move || listener.run(&accepting, &settings))?;
    dwcp_dataplane::control::serve(&control, &node, &address);
    Ok(())
}

/// Whatever stands in this one's way: a guest is not slow for it. Not beside another data plane, which may have taken
/// the time just now.
fn give_cpu_time_back(node: &Result<Node, NodeError>, state_folder: &Path) {
    if matches!(node, Err(NodeError::Journal(JournalError::InUse { .. }))) {
        return;
    }
    for pid in give_back_all(state_folder) {
        tracing::warn!(
            pid,
            "a VMM was short of CPU time since the data plane ended; it has all of it again"
        );
    }
}

/// What this node grants to migrations that come in; the rest is the source's to choose.
fn incoming_settings(options: &Options) -> TransferSettings {
    TransferSettings {
        mode: "incoming".into(),
        streams: dwcp_api::STREAMS_MAX,
        measure_streams: false,
        workers: options.workers,
        at_once: 0,
        priority: 0,
        tls: TlsChoice::Auto,
        kernel_tls: options.kernel_tls,
        rdma: RdmaChoice::Auto,
        io: options.io,
        send: SendChoice::Auto,
        window_bytes: 0,
        codec: Codec::Raw,
        reuse: false,
        remember_bytes: 0,
        tracker: TrackerChoice::Auto,
        verify: Verify::Sample,
        sample_pages: 0,
        downtime_limit_ms: 0,
        downtime_limit_at_last_ms: 0,
        rounds_max: 0,
        if_not_converged: NotConverged::SwitchOver,
        throttle_percent_max: 0,
        deadline_ms: 0,
        connect_timeout_ms: 0,
        peer_silence_ms: 0,
        congestion_control: None,
        bandwidth_limit_mbit: 0,
        follow_path: false,
        paths: vec![],
        pin_workers: options.pin,
        busy_poll_us: options.busy_poll_us,
    }
}
