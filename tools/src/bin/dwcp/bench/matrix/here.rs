//! What this machine can do, looked at when it is first asked for, and what becomes of a scenario here.

use std::cell::OnceCell;
use std::process::Command;

use dwcp_testbed::guests::{GuestKind, qemu_binary};
use dwcp_testbed::link::VethLink;
use dwcp_testbed::synthetic::RAM_MIB_MAX;
use dwcp_tools::lab::GuestChoice;

use super::super::machine::memory_available_mib;
use super::definition::{Matrix, Need, Otherwise, Scenario};

/// Left to the rest of the machine, MiB.
const SPARE_MIB: u64 = 1024;

/// A VMM's own memory, MiB: of a process that plays a guest, and of QEMU.
const PROCESS_MIB: u64 = 8;
const QEMU_MIB: u64 = 256;

/// Good, or why not.
type Found = Result<(), String>;

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Here {
    pub(super) memory_mib: OnceCell<Option<u64>>,
    pub(super) bare: OnceCell<Found>,
    pub(super) linux: OnceCell<Found>,
    pub(super) veth: OnceCell<Found>,
    pub(super) rate_limit: OnceCell<Found>,
    pub(super) delay: OnceCell<Found>,
    pub(super) rdma: OnceCell<Found>,
}

/// What becomes of a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Moved for real.
    Run,
    /// By the deterministic simulation, and why.
    Simulated(String),
    /// Why not.
    Refused(String),
}

impl Class {
    /// As `--list` says it.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Run => "run".into(),
            Self::Simulated(why) => format!("simulated: {why}"),
            Self::Refused(why) => format!("refused: {why}"),
        }
    }
}

impl Here {
    /// The first refusal, else the first simulation, else a run.
    pub(super) fn class(&self, matrix: &Matrix, scenario: &Scenario<'_>) -> Class {
        let mut simulated = None;
        for rule in matrix.rules.iter().filter(|rule| rule.of.holds(scenario)) {
            let Err(why) = self.has(rule.needs, scenario) else {
                continue;
            };
            match rule.otherwise {
                Otherwise::Refuse => return Class::Refused(why),
                Otherwise::Simulate => simulated = simulated.or(Some(why)),
            }
        }
        simulated.map_or(Class::Run, Class::Simulated)
    }

    fn has(&self, need: Need, scenario: &Scenario<'_>) -> Found {
        let found = |cell: &OnceCell<Found>, look: fn() -> Found| cell.get_or_init(look).clone();
        match need {
            Need::Memory => self.has_memory(scenario),
            Need::Qemu => match scenario.guest.vmm {
                GuestChoice::Synthetic => Ok(()),
                GuestChoice::Qemu => found(&self.bare, || guest(GuestKind::Bare)),
                GuestChoice::Linux | GuestChoice::Workload(_) => {
                    found(&self.linux, || guest(GuestKind::Linux))
                }
            },
            Need::Veth => found(&self.veth, || link(None)),
            Need::RateLimit => found(&self.rate_limit, || link(Some(0))),
            Need::Delay => found(&self.delay, || link(Some(1))),
            Need::Rdma => found(&self.rdma, rdma),
        }
    }

    fn has_memory(&self, scenario: &Scenario<'_>) -> Found {
        let is_synthetic = scenario.guest.vmm == GuestChoice::Synthetic;
        let own_mib = if is_synthetic { PROCESS_MIB } else { QEMU_MIB };
        let wanted = 2 * (scenario.ram.mib + own_mib) + SPARE_MIB;
        match *self.memory_mib.get_or_init(memory_available_mib) {
            Some(free) if wanted > free => Err(format!(
                "both ends need {:.1} GiB of RAM, {:.1} are available here",
                wanted as f64 / 1024.0,
                free as f64 / 1024.0
            )),
            _ if is_synthetic && scenario.ram.mib > RAM_MIB_MAX => {
                let most = RAM_MIB_MAX / 1024;
                Err(format!("a synthetic guest has at most {most} GiB of RAM"))
            }
            _ => Ok(()),
        }
    }
}

/// QEMU runs, and the guest's image is there.
fn guest(kind: GuestKind) -> Found {
    let binary = qemu_binary();
    let version = Command::new(&binary).arg("--version").output();
    if !version.is_ok_and(|output| output.status.success()) {
        let name = binary.to_string_lossy();
        return Err(format!("{name} does not run (tools/setup installs QEMU)"));
    }
    let images = kind.images().map_err(|error| error.to_string());
    images.map(drop)
}

/// A link as it would be made, taken down at once.
fn link(one_way_delay_ms: Option<u64>) -> Found {
    const RATE_MBIT_PER_S: u64 = 1000;
    let link = VethLink::up().map_err(|error| format!("no link of its own (root?): {error}"))?;
    let Some(delay_ms) = one_way_delay_ms else {
        return Ok(());
    };
    let shaped = link.shape(RATE_MBIT_PER_S, delay_ms);
    shaped.map_err(|error| {
        let words = error.to_string();
        let discipline = if delay_ms > 0 { "netem" } else { "tbf" };
        // What tc says of a discipline that the kernel has neither built in nor as a module.
        match words.contains("qdisc kind is unknown") {
            true => format!("this kernel cannot shape a link: no `{discipline}`"),
            false => words,
        }
    })
}

fn rdma() -> Found {
    let devices = std::fs::read_dir("/sys/class/infiniband").map_or(0, Iterator::count);
    Err(match devices {
        0 => "no RDMA device".into(),
        _ => "a link over RDMA is not built here: `dwcp bench rdma`".into(),
    })
}
