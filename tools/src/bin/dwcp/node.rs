//! `dwcp node`: who this node is.

use dwcp_api::node::{Reply, Request};

use crate::context::Context;
use crate::failure::Failure;
use crate::show;

/// `dwcp node`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  dwcp node\n  dwcp node --json | jq -r .node.id")]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args, context: &mut Context) -> Result<(), Failure> {
    let node = match context.node.ask(&Request::Node)? {
        Reply::Node(node) => node,
        other => return Err(Failure::unexpected(&other)),
    };
    context.print(&node, || {
        let dataplane = match (&node.dataplane, node.dataplane_pid) {
            (Some(listen), Some(pid)) => format!("listens on {listen}, pid {pid}"),
            _ => "down".to_owned(),
        };
        let peers: Vec<_> = node
            .peers
            .iter()
            .map(|(name, address)| format!("{name} = {address}"))
            .collect();
        show::facts([
            ("name", node.node.name.clone()),
            ("id", node.node.id.clone()),
            ("version", node.version.clone()),
            ("data plane", dataplane),
            (
                "peers",
                if peers.is_empty() {
                    "none".to_owned()
                } else {
                    peers.join(", ")
                },
            ),
            ("default profile", node.default_settings.mode.clone()),
        ])
    })
}
