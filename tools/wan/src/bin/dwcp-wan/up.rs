//! `dwcp-wan up`: a link that stays.

use dwcp_wan::link::{self, Link, LinkName, TemporaryLink};
use dwcp_wan::params::LinkParams;
use serde_json::json;

use crate::failure::Failure;
use crate::options::LinkOptions;
use crate::output;
use crate::signals::Held;

const HELP: &str =
    "Prints the namespaces and addresses. The same --seed gives the same losses to the same \
packets.

Examples:
  dwcp-wan up --rate 100mbit --delay 50ms
  dwcp-wan up --name lab-2 --rate 1gbit --delay 10ms --jitter 2ms --loss 0.1% --queue 50ms
  dwcp-wan up --rate 100mbit --delay 20ms --back-rate 10mbit
  dwcp-wan up --name second --beside wan --rate 50mbit --delay 20ms
  dwcp-wan up --trace lte.csv --delay 40ms --dry-run";

/// A link to be made.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct NewLink {
    #[command(flatten)]
    options: LinkOptions,
    /// Seed of loss, jitter and reordering.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Largest IP packet, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 1500,
          value_parser = clap::value_parser!(u32).range(576..=65_535))]
    mtu: u32,
}

/// `dwcp-wan up`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Name of the link.
    #[arg(long, default_value = "wan")]
    name: LinkName,
    /// A second way between the namespaces of this link; it has addresses of its own, and goes when that
    /// link goes.
    #[arg(long, value_name = "NAME")]
    beside: Option<LinkName>,
    /// Say what would be done; changes nothing, and needs no root but with --beside.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    link: NewLink,
}

impl NewLink {
    pub(crate) fn params(&self) -> Result<LinkParams, Failure> {
        self.options.params(self.seed)
    }

    /// Sets it up. A signal that came meanwhile has taken it down again.
    pub(crate) fn up(
        &self,
        name: &LinkName,
        beside: Option<&LinkName>,
        signals: &Held,
    ) -> Result<Link, Failure> {
        let program = std::env::current_exe()?;
        let link = link::up(name, beside, &self.params()?, self.mtu, &program)?;
        if let Some(number) = signals.pending()? {
            link::down(name)?;
            return Err(Failure::Signal(number));
        }
        Ok(link)
    }

    /// Sets it up for as long as the result lives.
    pub(crate) fn up_for_now(
        &self,
        name: &LinkName,
        signals: &Held,
    ) -> Result<TemporaryLink, Failure> {
        self.up(name, None, signals).map(TemporaryLink::from)
    }
}

pub(crate) fn run(args: &Args, json: bool) -> Result<(), Failure> {
    if args.dry_run {
        let beside = args.beside.as_ref();
        let steps = link::plan(&args.name, beside, &args.link.params()?, args.link.mtu)?;
        return output::print(json, &json!({ "steps": steps }), || steps.join("\n"));
    }
    let link = args
        .link
        .up(&args.name, args.beside.as_ref(), &Held::hold()?)?;
    output::print(json, &link, || {
        let sides = ["a", "b"].iter().zip(&link.namespaces).zip(&link.addresses);
        let sides = sides.map(|((side, namespace), address)| {
            format!("  {side}  {namespace}  {address}  (ip netns exec {namespace} COMMAND)\n")
        });
        format!("{}: up\n{}", link.name, sides.collect::<String>())
    })
}
