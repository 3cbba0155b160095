//! `dwcp pki`: certificates of nodes, by a small private CA. Needs no node.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use dwcp_api::{ApiError, ErrorCode};
use dwcp_pki::{
    Authority, AuthorityOptions, CertificateFacts, NodeFiles, NodeOptions, PkiError,
    SECONDS_PER_DAY, Shown, date_of,
};
use serde_json::json;

use crate::context::Context;
use crate::failure::Failure;
use crate::show;

const HELP: &str = "\
The CA's folder belongs on a machine that is well kept, not on the nodes: who has ca-key.pem can be any \
node. A node needs the three files of its own folder, FOLDER/nodes/NODE; its data plane takes them by \
--tls-ca, --tls-certificate and --tls-key, and reads them again when they change.

A new CA: `rotate FOLDER --ca`, bring each node its ca.pem; then `rotate FOLDER`, bring each node its \
certificate and key; then `rotate FOLDER --drop-old`, and the ca.pem again. No node is cut off meanwhile, \
however often a new CA is made: the trust in those before it ends by --drop-old alone, which refuses \
while a node's certificate is of one of them.

A command that was interrupted leaves a CA that works: give it again. What is wrong in the folder is \
said on standard error, and in JSON by `warnings`.

Exit codes: 0 done, 1 failed, 2 it is there already, cannot be named so, or is still needed, 3 there is \
no such CA or node.

Examples:
  dwcp pki init /root/dwcp-pki --name example.org
  dwcp pki issue /root/dwcp-pki node-a --address 192.0.2.1
  dwcp pki rotate /root/dwcp-pki node-a --days 90
  dwcp pki show /root/dwcp-pki --json";

const INIT_HELP: &str = "\
--force ends the CA that is there: afterwards renew each node's certificate by `dwcp pki rotate FOLDER`, \
and bring it its three files. A node that has them trusts none that has not. To renew a CA without that: \
`dwcp pki rotate FOLDER --ca`.

Examples:
  dwcp pki init /root/dwcp-pki
  dwcp pki init /root/dwcp-pki --name 'Example, Inc.' --days 1825
  dwcp pki init /root/dwcp-pki --force";

const ISSUE_HELP: &str = "\
Examples:
  dwcp pki issue /root/dwcp-pki node-a
  dwcp pki issue /root/dwcp-pki node-b --address 192.0.2.2 --dns b.example.org --days 90
  dwcp pki issue /root/dwcp-pki node-a --force --json";

const ROTATE_HELP: &str = "\
What a node's certificate says besides its end stays. Bring the files to the node, the key first.

Examples:
  dwcp pki rotate /root/dwcp-pki
  dwcp pki rotate /root/dwcp-pki node-a node-b --days 90
  dwcp pki rotate /root/dwcp-pki --ca
  dwcp pki rotate /root/dwcp-pki --drop-old";

const SHOW_HELP: &str = "\
A node whose certificate is of no CA that nodes trust is marked NOT TRUSTED, in JSON by `is_trusted`.

Examples:
  dwcp pki show /root/dwcp-pki
  dwcp pki show /root/dwcp-pki --json";

/// `dwcp pki`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Begin a CA in a folder.
    #[command(after_help = INIT_HELP)]
    Init {
        /// The CA's folder.
        folder: PathBuf,
        /// Its name, for people.
        #[arg(long, default_value = "DWCP")]
        name: String,
        /// Days that it is good.
        #[arg(long, default_value_t = 3650, value_parser = days())]
        days: i64,
        /// Replace a CA that is there: no node will trust its certificates any more, and each needs a new one.
        #[arg(long)]
        force: bool,
    },
    /// Issue a certificate to a node, under a key of its own.
    #[command(after_help = ISSUE_HELP)]
    Issue {
        /// The CA's folder.
        folder: PathBuf,
        /// The node's name, as its daemons have it.
        node: String,
        /// Days that it is good.
        #[arg(long, default_value_t = 365, value_parser = days())]
        days: i64,
        /// An address that others reach it by without its name; may be given again.
        #[arg(long = "address", value_name = "IP")]
        addresses: Vec<IpAddr>,
        /// A DNS name that others reach it by; may be given again.
        #[arg(long = "dns", value_name = "NAME")]
        dns_names: Vec<String>,
        /// Replace what is there.
        #[arg(long)]
        force: bool,
    },
    /// Renew certificates of nodes, or the CA itself.
    #[command(after_help = ROTATE_HELP)]
    Rotate {
        /// The CA's folder.
        folder: PathBuf,
        /// Nodes; all of them when none is named.
        nodes: Vec<String>,
        /// Days that what is made is good [default: 365, of a CA 3650].
        #[arg(long, value_parser = days())]
        days: Option<i64>,
        /// A new CA; nodes trust those before it as well.
        #[arg(long, conflicts_with_all = ["nodes", "drop_old"])]
        ca: bool,
        /// End the trust in the CAs before this one.
        #[arg(long, conflicts_with_all = ["nodes", "days"])]
        drop_old: bool,
    },
    /// What is there, and until when it is good.
    #[command(after_help = SHOW_HELP)]
    Show {
        /// The CA's folder.
        folder: PathBuf,
    },
}

const NODE_DAYS: i64 = 365;
const CA_DAYS: i64 = 3650;

fn days() -> clap::builder::RangedI64ValueParser<i64> {
    clap::value_parser!(i64).range(1..=36_500)
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    match &args.command {
        Command::Init {
            folder,
            name,
            days,
            force,
        } => {
            let options = AuthorityOptions {
                name: name.clone(),
                seconds: days * SECONDS_PER_DAY,
                force: *force,
            };
            let authority = Authority::init(folder, &options).map_err(refused)?;
            print_shown(context, &authority.show().map_err(refused)?)
        }
        Command::Issue {
            folder,
            node,
            days,
            addresses,
            dns_names,
            force,
        } => {
            let authority = Authority::open(folder).map_err(refused)?;
            let options = NodeOptions {
                dns_names: dns_names.clone(),
                addresses: addresses.clone(),
                seconds: days * SECONDS_PER_DAY,
                force: *force,
            };
            let files = authority.issue(node, &options).map_err(refused)?;
            print_files(context, &authority, &[(node.clone(), files)])
        }
        Command::Rotate {
            folder,
            nodes,
            days,
            ca,
            drop_old,
        } => {
            let authority = Authority::open(folder).map_err(refused)?;
            if *ca {
                let seconds = days.unwrap_or(CA_DAYS) * SECONDS_PER_DAY;
                authority.rotate(seconds).map_err(refused)?;
            } else if *drop_old {
                authority.drop_old().map_err(refused)?;
            } else {
                return renew(&authority, nodes, days.unwrap_or(NODE_DAYS), context);
            }
            print_shown(context, &authority.show().map_err(refused)?)
        }
        Command::Show { folder } => {
            let authority = Authority::open(folder).map_err(refused)?;
            print_shown(context, &authority.show().map_err(refused)?)
        }
    }
}

fn renew(
    authority: &Authority,
    nodes: &[String],
    days: i64,
    context: &Context,
) -> Result<(), Failure> {
    let nodes = match nodes {
        [] => authority.nodes().map_err(refused)?,
        nodes => nodes.to_vec(),
    };
    let renewed = nodes.into_iter().map(|node| {
        let files = authority.renew(&node, days * SECONDS_PER_DAY)?;
        Ok((node, files))
    });
    let renewed = renewed
        .collect::<Result<Vec<_>, PkiError>>()
        .map_err(refused)?;
    print_files(context, authority, &renewed)
}

fn refused(error: PkiError) -> Failure {
    let code = match error {
        PkiError::Exists { .. } | PkiError::Name { .. } | PkiError::StillNeeded { .. } => {
            ErrorCode::BadRequest
        }
        PkiError::Missing { .. } => ErrorCode::NotFound,
        _ => return Failure::other(error),
    };
    ApiError::new(code, error.to_string()).into()
}

/// Says what is wrong beside what was asked for: on standard error, so that it is seen whatever is printed.
fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("dwcp: warning: {warning}");
    }
}

fn print_files(
    context: &Context,
    authority: &Authority,
    nodes: &[(String, NodeFiles)],
) -> Result<(), Failure> {
    let warnings = authority.warnings();
    warn(&warnings);
    let list: Vec<_> = nodes
        .iter()
        .map(|(node, files)| json!({"node": node, "files": files, "warnings": warnings}))
        .collect();
    context.print(&list, || {
        let mut text = String::new();
        for (node, files) in nodes {
            let _ = writeln!(
                text,
                "{node}: bring these to it, the key secretly, and start its data plane with\n  \
                 --tls-ca {} --tls-certificate {} --tls-key {}",
                files.ca.display(),
                files.certificate.display(),
                files.key.display()
            );
        }
        text
    })
}

fn print_shown(context: &Context, shown: &Shown) -> Result<(), Failure> {
    warn(&shown.warnings);
    context.print(shown, || {
        let trusted = shown.trusted.iter();
        let trusted = trusted.map(|ca| row("CA", &ca.subject, ca, true));
        let nodes = shown.nodes.iter().map(|node| {
            let facts = &node.certificate;
            let addresses = facts.addresses.iter().map(ToString::to_string);
            let names: Vec<_> = facts.dns_names.iter().cloned().chain(addresses).collect();
            row("node", &names.join(", "), facts, node.is_trusted)
        });
        let rows: Vec<_> = trusted.chain(nodes).collect();
        show::table(["", "names", "good until", ""], rows)
    })
}

fn row(kind: &str, names: &str, facts: &CertificateFacts, is_trusted: bool) -> [String; 4] {
    let left = match facts.days_left() {
        _ if !is_trusted => "NOT TRUSTED".to_owned(),
        ..0 => "EXPIRED".to_owned(),
        days => format!("{days} days left"),
    };
    [
        kind.to_owned(),
        names.to_owned(),
        date_of(facts.not_after),
        left,
    ]
}
