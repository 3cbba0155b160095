//! `dwcp tune`: change how a VM is moved while it is.

use dwcp_api::node::Request;

use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "At the source of the migration. It holds from the next frame on, and for this \
migration alone; `transfer.bandwidth_limit_mbit` in a profile is where one begins. What a \
paused guest waits for, or one in post-copy, is not limited.

With --post-copy the guest runs at the destination when the round under way has ended, before all of its \
pages are there: for one that writes faster than the link takes. It cannot be taken back then, and until \
the last page is there, to lose either node is to lose the guest; a lost link is waited for.

Examples:
  dwcp tune web --bandwidth-limit 200mbit
  dwcp tune web --bandwidth-limit none
  dwcp tune web --post-copy";

/// `dwcp tune`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP, group(
    clap::ArgGroup::new("change").args(["bandwidth_limit", "post_copy"]).required(true).multiple(true)
))]
pub(crate) struct Args {
    /// VM name, or migration id (32 hex digits).
    #[arg(value_name = "VM|ID")]
    which: String,
    /// Bits sent in a second at most, over all streams, or `none`.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    bandwidth_limit: Option<u32>,
    /// Run the guest at the destination after this round.
    #[arg(long)]
    post_copy: bool,
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
        post_copy: args.post_copy,
    };
    context.node.ask(&request)?;
    let done = serde_json::json!({
        "tuned": args.which,
        "bandwidth_limit_mbit": args.bandwidth_limit,
        "post_copy": args.post_copy,
    });
    context.print(&done, || {
        let limit = args.bandwidth_limit.map(|mbit| match mbit {
            0 => "bandwidth is not limited".to_owned(),
            mbit => format!("{mbit} Mbit/s at most"),
        });
        let post_copy = args
            .post_copy
            .then(|| "post-copy after this round".to_owned());
        let said: Vec<_> = limit.into_iter().chain(post_copy).collect();
        format!("{}: {}", args.which, said.join(", "))
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
