//! What a matrix file says: guests, sizes, links, and rules for what becomes of each scenario.

use dwcp_api::RunResult;
use dwcp_testbed::Kind;
use dwcp_tools::lab::{GuestChoice, GuestSpec};

/// Guests, sizes and links; every combination is a scenario.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    pub(super) guests: Vec<Guest>,
    pub(super) rams: Vec<Ram>,
    pub(super) links: Vec<Link>,
    pub(super) rules: Vec<Rule>,
    pub(super) expectations: Vec<Expectation>,
}

#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub(super) name: String,
    pub(super) vmm: GuestChoice,
    pub(super) filled_percent: u64,
    pub(super) pages: Kind,
    pub(super) rewritten_per_mille_per_s: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Ram {
    pub(super) name: String,
    pub(super) mib: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) medium: Medium,
    /// 0: as fast as the machine.
    pub(super) rate_mbit_per_s: u64,
    pub(super) one_way_delay_ms: u64,
    pub(super) profile: String,
    /// Keys of the profile that differ, `KEY=VALUE`.
    pub(super) set: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    Loopback,
    Veth,
    Rdma,
}

/// The scenarios that a rule is for; an empty list stands for all.
#[derive(Clone, Debug, Default)]
pub(super) struct Where {
    pub(super) guests: Vec<String>,
    pub(super) rams: Vec<String>,
    pub(super) links: Vec<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) of: Where,
    pub(super) needs: Need,
    pub(super) otherwise: Otherwise,
}

/// What a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// RAM of both ends.
    Memory,
    /// QEMU, and the guest's image.
    Qemu,
    /// Network namespaces and a veth pair.
    Veth,
    /// A veth pair that `tbf` makes slower.
    RateLimit,
    /// A veth pair that `netem` makes longer.
    Delay,
    /// An RDMA device, and a transport for it.
    Rdma,
}

/// What becomes of a scenario whose need is not met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Otherwise {
    Refuse,
    Simulate,
}

/// Scenarios that may end otherwise than completed.
#[derive(Clone, Debug)]
pub(super) struct Expectation {
    pub(super) of: Where,
    pub(super) results: Vec<RunResult>,
    /// What is said of one that ended so.
    pub(super) why: String,
}

/// One combination.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scenario<'a> {
    /// From 1, in the order of the file: links change fastest.
    pub(super) number: usize,
    pub(super) guest: &'a Guest,
    pub(super) ram: &'a Ram,
    pub(super) link: &'a Link,
}

impl Matrix {
    /// Every combination.
    pub(super) fn scenarios(&self) -> Vec<Scenario<'_>> {
        let mut all = vec![];
        for guest in &self.guests {
            for ram in &self.rams {
                for link in &self.links {
                    let number = all.len() + 1;
                    all.push(Scenario {
                        number,
                        guest,
                        ram,
                        link,
                    });
                }
            }
        }
        all
    }

    /// Whether a scenario may end so; where it is not completed, why it may.
    pub(super) fn may_end(&self, scenario: &Scenario<'_>, result: RunResult) -> Option<&str> {
        if result == RunResult::Completed {
            return Some("");
        }
        let mut rules = self.expectations.iter();
        let rule = rules.find(|rule| rule.of.holds(scenario))?;
        rule.results.contains(&result).then_some(&rule.why)
    }
}

impl Where {
    pub(super) fn holds(&self, scenario: &Scenario<'_>) -> bool {
        let fits = |names: &[String], name: &str| {
            names.is_empty() || names.iter().any(|wanted| wanted == name)
        };
        fits(&self.guests, &scenario.guest.name)
            && fits(&self.rams, &scenario.ram.name)
            && fits(&self.links, &scenario.link.name)
    }
}

impl Scenario<'_> {
    /// `guest/size/link`.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.guest.name, self.case())
    }

    /// What all guests of a table have in common.
    pub(super) fn case(&self) -> String {
        format!("{}/{}", self.ram.name, self.link.name)
    }

    /// The guest, for the lab.
    pub(super) fn guest_spec(&self) -> GuestSpec {
        const PAGES_PER_MIB: u64 = 256;
        let fill_mib = self.ram.mib * self.guest.filled_percent / 100;
        let pages = self.ram.mib * PAGES_PER_MIB;
        GuestSpec {
            choice: self.guest.vmm,
            ram_mib: self.ram.mib,
            fill_mib,
            hot_mib: fill_mib.max(1),
            dirty_pages_per_s: pages * self.guest.rewritten_per_mille_per_s / 1000,
            checked_pages_per_s: match self.guest.vmm {
                GuestChoice::Synthetic => 0,
                _ => dwcp_testbed::guests::GuestOptions::default().verify_rate,
            },
            kind: self.guest.pages,
            backing: dwcp_testbed::wire::Backing::Allocated,
        }
    }

    /// What it takes beside others, to begin with the cheap ones: MiB on a link of 10 Gbit/s.
    pub(super) fn cost(&self) -> u64 {
        const FAST_MBIT_PER_S: u64 = 10_000;
        let rate = match self.link.rate_mbit_per_s {
            0 => FAST_MBIT_PER_S,
            rate => rate.min(FAST_MBIT_PER_S),
        };
        self.ram.mib * FAST_MBIT_PER_S / rate
    }
}
