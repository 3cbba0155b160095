//! The control plane daemon: options, signals, exit codes.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use dwcp_controlplane::config::{NodeConfig, STATE_FOLDER};
use dwcp_controlplane::node::{Node, Options, Reloadable, StartError};
use dwcp_controlplane::profile;
use tokio::signal::unix::{SignalKind, signal};

const HELP: &str = "\
Exit codes: 0 ended by SIGTERM or SIGINT, 1 failed, 2 wrong option or configuration, \
3 socket or state folder in use.
SIGHUP reads the peers and the default profile again.

Examples:
  dwcp-controlplane --config /etc/dwcp/node.toml
  dwcp-controlplane --name a --state-folder /var/lib/dwcp --peer b=192.0.2.2:7440";

/// Control plane of a node: serves the dwcp command, directs the data plane.
#[derive(Parser, Debug)]
#[command(version, after_help = HELP)]
struct Flags {
    /// Node configuration file (TOML; keys: dwcp config explain).
    #[arg(long, env = "DWCP_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of this node, unique among its peers [default: the host name].
    #[arg(long, value_parser = dwcp_api::parse_node_name)]
    name: Option<String>,
    /// State folder, the same as the data plane's [default: /var/lib/dwcp].
    #[arg(long, value_name = "PATH")]
    state_folder: Option<PathBuf>,
    /// Socket to serve [default: node.sock in the state folder].
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Socket of the data plane [default: dataplane.sock in the state folder].
    #[arg(long, value_name = "PATH")]
    dataplane_socket: Option<PathBuf>,
    /// A peer and its data plane, NAME=HOST:PORT; may be given again.
    #[arg(long = "peer", value_name = "NAME=HOST:PORT", value_parser = peer)]
    peers: Vec<(String, String)>,
    /// Profile of migrations that name none: datacenter, hybrid, internet, or a file.
    #[arg(long, value_name = "PROFILE")]
    default_profile: Option<String>,
}

fn peer(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, address)) if dwcp_controlplane::is_address(address) => {
            Ok((dwcp_api::parse_node_name(name)?, address.to_owned()))
        }
        _ => Err("write NAME=HOST:PORT".to_owned()),
    }
}

fn main() -> ExitCode {
    dwcp_api::use_few_heaps();
    let flags = Flags::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("DWCP_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(dwcp_api::stderr_takes_colours())
        // What cannot be written cannot be complained of there either: that would be a panic.
        .log_internal_errors(false)
        .init();
    let options = match options(&flags) {
        Ok(options) => options,
        Err(report) => {
            eprintln!("{report:?}");
            return ExitCode::from(2);
        }
    };
    match run(&flags, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dwcp-controlplane: {}", dwcp_api::in_words(error.as_ref()));
            let in_use = error.downcast_ref().is_some_and(StartError::is_in_use);
            ExitCode::from(if in_use { 3 } else { 1 })
        }
    }
}

fn options(flags: &Flags) -> miette::Result<Options> {
    let file = load(flags)?;
    let reloadable = reloadable(flags, &file)?;
    let state_folder = flags.state_folder.clone().or(file.state_folder);
    let state_folder = state_folder.unwrap_or_else(|| STATE_FOLDER.into());
    let in_folder = |name: &str| state_folder.join(name);
    let socket = flags.socket.clone().or(file.socket);
    let dataplane_socket = flags.dataplane_socket.clone().or(file.dataplane_socket);
    Ok(Options {
        name: match flags.name.clone().or(file.name) {
            Some(name) => name,
            None => host_name()?,
        },
        socket: socket.unwrap_or_else(|| in_folder("node.sock")),
        dataplane_socket: dataplane_socket.unwrap_or_else(|| in_folder("dataplane.sock")),
        state_folder,
        reloadable,
    })
}

fn host_name() -> miette::Result<String> {
    let name = nix::unistd::gethostname().ok();
    let name = name.and_then(|name| name.into_string().ok());
    let name = name.ok_or_else(|| miette::miette!("this node has no host name: give --name"))?;
    dwcp_api::parse_node_name(&name)
        .map_err(|why| miette::miette!("the host name: {why}: give --name"))
}

fn load(flags: &Flags) -> miette::Result<NodeConfig> {
    flags
        .config
        .as_deref()
        .map_or_else(|| Ok(NodeConfig::default()), NodeConfig::load)
}

fn reloadable(flags: &Flags, file: &NodeConfig) -> miette::Result<Reloadable> {
    let mut peers = flags.peers.clone();
    for (name, address) in &file.peers {
        if !peers.iter().any(|(given, _)| given == name) {
            peers.push((name.clone(), address.clone()));
        }
    }
    let profile = flags
        .default_profile
        .as_deref()
        .or(file.default_profile.as_deref());
    Ok(Reloadable {
        peers,
        default_settings: profile::load(profile.unwrap_or("datacenter"))?,
    })
}

fn run(flags: &Flags, options: Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("tokio runtime")?;
    runtime.block_on(async {
        let mut hang_up = signal(SignalKind::hangup())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let socket = options.socket.clone();
        let running = Node::start(options)?;
        tracing::info!(socket = %socket.display(), "serving");
        let node = running.node();
        let end = async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => return,
                    _ = interrupt.recv() => return,
                    _ = hang_up.recv() => match load(flags).and_then(|file| reloadable(flags, &file)) {
                        Ok(reloadable) => {
                            node.reload(reloadable);
                            tracing::info!("peers and default profile read again");
                        }
                        Err(report) => {
                            tracing::error!("configuration not read again: {report:?}");
                        }
                    },
                }
            }
        };
        running.run(end).await;
        Ok(())
    })
}
