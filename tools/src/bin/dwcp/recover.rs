//! `dwcp recover`: what is half done, why, and how it is brought to an end.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dwcp_api::node::{Reply, Request};
use dwcp_api::{HalfDone, HalfDoneState, RecoverRequest, Recovery, Role, SettledOwner};
use serde::Serialize;

use crate::context::Context;
use crate::failure::Failure;
use crate::show;

const HELP: &str = "Without a VM: every migration that has not reached its end at this node, and every VM whose \
owner is in doubt. With one: asks the other node now, waits, and says how it ended.

A guest in doubt stands here and may run at the destination. If that node is gone for good an operator decides:
--owner here takes the guest back and runs it here, --owner there gives it up and ends its VMM here. MAKE SURE \
FIRST that the other node can never run it: power it off, or take its disks away. The decision is refused while \
the other node answers, since its journal knows better.

Exit codes: 0 nothing is left that waits for another node or a person; 8 something is.

Examples:
  dwcp recover
  dwcp recover web --timeout-s 60
  dwcp recover web --owner here --the-other-node-is-gone --dry-run
  dwcp recover --json | jq '.half_done[] | select(.state == \"in-doubt\") | .vm'";

/// Something is left that waits for another node, a VMM, or a person.
const EXIT_LEFT: u8 = 8;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(200);

/// `dwcp recover`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// VM name; without it all.
    vm: Option<String>,
    /// How long to wait for the end of it, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, requires = "vm")]
    timeout_s: u64,
    /// Decide who owns a VM whose other node is gone for good.
    #[arg(long, value_enum, requires_all = ["vm", "the_other_node_is_gone"], conflicts_with = "looked_after")]
    owner: Option<Owner>,
    /// I have made sure that the other node can never run the guest.
    #[arg(long, requires = "owner")]
    the_other_node_is_gone: bool,
    /// Say what the decision would do, and do nothing.
    #[arg(long, requires = "owner")]
    dry_run: bool,
    /// A person has looked after a migration that failed: it is not shown any more.
    #[arg(long, requires = "vm")]
    looked_after: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Owner {
    /// This node: the guest runs here.
    Here,
    /// The other node: what is here of the guest is ended.
    There,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Shown {
    schema: &'static str,
    /// What came of what was asked for; empty for a list.
    said: String,
    half_done: Vec<HalfDone>,
    /// How the migration of the VM that was named is, or ended; `null` for a list.
    end: Option<String>,
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let Some(vm) = &args.vm else {
        let Recovery { said, half_done } = ask(RecoverRequest::List, context)?;
        return show(&shown(said, half_done, None), context, list);
    };
    let before = ask(RecoverRequest::List, context)?.half_done;
    let request = match (args.owner, args.looked_after) {
        (Some(owner), _) => RecoverRequest::Settle {
            vm: vm.clone(),
            owner: match owner {
                Owner::Here => SettledOwner::Here,
                Owner::There => SettledOwner::There,
            },
            dry_run: args.dry_run,
        },
        (None, true) => RecoverRequest::Close { vm: vm.clone() },
        (None, false) => RecoverRequest::Try { vm: vm.clone() },
    };
    if !context.json && args.owner.is_none() {
        let of_it = before.iter().filter(|open| open.vm == *vm);
        of_it.for_each(|open| eprintln!("{}\n", detail(open)));
    }
    let Recovery { said, half_done } = ask(request, context)?;
    if args.dry_run {
        return context.print(&shown(said.clone(), half_done, None), || said);
    }
    let half_done = wait(vm, half_done, Duration::from_secs(args.timeout_s), context)?;
    let end = end(vm, context)?;
    show(&shown(said, half_done, Some(end)), context, outcome)
}

fn shown(said: String, half_done: Vec<HalfDone>, end: Option<String>) -> Shown {
    Shown {
        schema: "dwcp.recover/1",
        said,
        half_done,
        end,
    }
}

fn show(
    shown: &Shown,
    context: &Context,
    text: impl FnOnce(&Shown) -> String,
) -> Result<(), Failure> {
    context.print(shown, || text(shown))?;
    let left = |open: &HalfDone| open.state.needs_someone();
    if shown.half_done.iter().any(left) {
        return Err(Failure::Exit(EXIT_LEFT));
    }
    Ok(())
}

fn ask(request: RecoverRequest, context: &mut Context) -> Result<Recovery, Failure> {
    match context.node.ask(&Request::Recover(request))? {
        Reply::Recovery(recovery) => Ok(recovery),
        other => Err(Failure::unexpected(&other)),
    }
}

/// Waits until nothing of the VM is left that needs somebody, or the time is over.
fn wait(
    vm: &str,
    mut half_done: Vec<HalfDone>,
    time: Duration,
    context: &mut Context,
) -> Result<Vec<HalfDone>, Failure> {
    let until = Instant::now() + time;
    let is_left =
        |open: &HalfDone| open.state.needs_someone() && open.state != HalfDoneState::Failed;
    while half_done.iter().any(is_left) && Instant::now() < until {
        std::thread::sleep(PERIOD);
        half_done = ask(RecoverRequest::List, context)?.half_done;
        half_done.retain(|open| open.vm == vm);
    }
    Ok(half_done)
}

/// What the journal says of the VM now.
fn end(vm: &str, context: &mut Context) -> Result<String, Failure> {
    let list = match context.node.ask(&Request::Ownership)? {
        Reply::Ownership(list) => list,
        other => return Err(Failure::unexpected(&other)),
    };
    let of_it = list.into_iter().find(|entry| entry.vm == vm);
    Ok(of_it.map_or_else(String::new, |entry| {
        format!("{}, epoch {}: {}", entry.owner, entry.epoch, entry.note)
    }))
}

fn list(shown: &Shown) -> String {
    let down = match shown.said.as_str() {
        "" => String::new(),
        said => format!("{said}\n\n"),
    };
    if shown.half_done.is_empty() {
        return format!("{down}nothing is half done");
    }
    let details: Vec<_> = shown.half_done.iter().map(detail).collect();
    format!("{down}{}", details.join("\n\n"))
}

fn outcome(shown: &Shown) -> String {
    let mut lines = vec![shown.said.clone()];
    let vm = shown.half_done.first();
    if let Some(open) = vm.filter(|open| open.state.needs_someone()) {
        lines.push(format!("not finished: {}", state(open.state)));
        lines.push(format!("what to do: {}", open.advice));
    }
    lines.extend(shown.end.iter().map(|end| format!("owner: {end}")));
    lines.join("\n")
}

fn detail(open: &HalfDone) -> String {
    let role = match open.role {
        Role::Source => "source",
        Role::Destination => "destination",
    };
    let since = Duration::from_millis(open.since_ms);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let age_ms = now.unwrap_or_default().saturating_sub(since).as_secs_f64() * 1000.0;
    let rows = [
        ("vm", format!("{}: {}", open.vm, state(open.state))),
        (
            "migration",
            format!("{}, this node is its {role}", open.migration),
        ),
        ("other node", open.peer.clone()),
        (
            "reached",
            format!("{}, {} ago", open.reached, show::duration(age_ms)),
        ),
        ("guest", open.guest.clone()),
        ("now", open.doing.clone()),
        ("because", open.why.clone()),
        ("what to do", open.advice.clone()),
    ];
    show::facts(rows.into_iter().filter(|(_, text)| !text.is_empty()))
}

const fn state(state: HalfDoneState) -> &'static str {
    match state {
        HalfDoneState::UnderWay => "under way",
        HalfDoneState::InDoubt => "in doubt",
        HalfDoneState::CutOff => "post-copy, link lost",
        HalfDoneState::Silent => "its VMM does not answer",
        HalfDoneState::Stuck => "not ended",
        HalfDoneState::Untold => "taken back, the other node does not know it",
        HalfDoneState::Superseded => "superseded by a newer migration",
        HalfDoneState::Failed => "failed",
        _ => "unknown",
    }
}
