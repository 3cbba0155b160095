//! `dwcp tune`: change how a VM is moved while it is.

use dwcp_api::node::Request;

use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "At the source of the migration. It holds from the next frame on, and for this \
migration alone; `transfer.bandwidth_limit_mbit` in a profile is where one begins. While the guest is \
paused nothing is limited.

Examples:
  dwcp tune web --bandwidth-limit 200mbit
  dwcp tune web --bandwidth-limit 2gbit
  dwcp tune web --bandwidth-limit none";

/// `dwcp tune`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// VM name, or migration id (32 hex digits).
    #[arg(value_name = "VM|ID")]
    which: String,
    /// Bits sent in a second at most, over all streams, or `none`.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    bandwidth_limit: u32,
}

/// A rate in Mbit/s, 0 for none.
fn rate(text: &str) -> Result<u32, String> {
    let wrong = || format!("`{text}` is no rate: 200mbit, 2gbit, or none");
    if text == "none" {
        return Ok(0);
    }
    let (number, times) = match (text.strip_suffix("mbit"), text.strip_suffix("gbit")) {
        (Some(number), _) => (number, 1),
        (_, Some(number)) => (number, 1000),
        _ => return Err(wrong()),
    };
    let number: u32 = number.parse().map_err(|_| wrong())?;
    number
        .checked_mul(times)
        .filter(|mbit| *mbit > 0)
        .ok_or_else(wrong)
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let request = Request::Tune {
        which: args.which.clone(),
        bandwidth_limit_mbit: args.bandwidth_limit,
    };
    context.node.ask(&request)?;
    let done = serde_json::json!({
        "tuned": args.which,
        "bandwidth_limit_mbit": args.bandwidth_limit,
    });
    context.print(&done, || match args.bandwidth_limit {
        0 => format!("{}: bandwidth is not limited", args.which),
        mbit => format!("{}: {mbit} Mbit/s at most", args.which),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read() {
        assert_eq!(rate("200mbit"), Ok(200));
        assert_eq!(rate("2gbit"), Ok(2000));
        assert_eq!(rate("none"), Ok(0));
        for wrong in ["200", "0mbit", "-1mbit", "5000000gbit", "fast"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
