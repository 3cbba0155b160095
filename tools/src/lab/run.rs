//! One migration from the boot to the guest's own verdict.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use dwcp_api::node::{Reply, Request};
use dwcp_api::{
    MigrationId, MigrationReport, MigrationStatus, RunResult, StreamPath, TransferSettings,
};

use dwcp_testbed::link::{Side, VethLink};

use super::{Binaries, GuestPair, GuestSpec, LabError, LabNode, Place};

/// A migration of the lab takes seconds, unless it is said to take longer.
const MIGRATION_TIME: Duration = Duration::from_secs(600);

/// A migration that is cancelled ends within this time, or it hangs.
const CANCEL_TIME: Duration = Duration::from_secs(60);

/// Name of the lab's VM.
const VM: &str = "guest";

/// What is to be moved, and how.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// The guest.
    pub guest: GuestSpec,
    /// How it is moved.
    pub settings: TransferSettings,
}

/// Where the two nodes of a lab are: their namespaces, if not ours, and their addresses there.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    namespaces: [Option<&'a str>; 2],
    addresses: [&'a str; 2],
    /// Further ways from the one to the other, by other addresses there.
    further: &'a [[IpAddr; 2]],
}

impl<'a> Ends<'a> {
    /// Both at one address of this machine.
    #[must_use]
    pub const fn at(address: &'a str) -> Self {
        Self {
            namespaces: [None; 2],
            addresses: [address; 2],
            further: &[],
        }
    }

    /// With these addresses, too: migrations take all ways.
    #[must_use]
    pub const fn with_further(self, further: &'a [[IpAddr; 2]]) -> Self {
        Self { further, ..self }
    }
}

impl<'a> From<&'a VethLink> for Ends<'a> {
    fn from(link: &'a VethLink) -> Self {
        let sides = [Side::A, Side::B];
        Self {
            namespaces: sides.map(|side| Some(link.namespace(side))),
            addresses: sides.map(|side| link.address(side)),
            further: &[],
        }
    }
}

impl<'a> From<&'a dwcp_wan::link::Link> for Ends<'a> {
    fn from(link: &'a dwcp_wan::link::Link) -> Self {
        Self {
            namespaces: link.namespaces.each_ref().map(|name| Some(name.as_str())),
            addresses: link.addresses.each_ref().map(String::as_str),
            further: &[],
        }
    }
}

/// All ways between the nodes, where there are several.
fn ways(ends: Ends<'_>) -> Vec<[IpAddr; 2]> {
    if ends.further.is_empty() {
        return vec![];
    }
    let parse = |address: &str| address.parse().ok();
    let [from, to] = ends.addresses.map(parse);
    let first = from.zip(to).map(|(from, to)| [from, to]);
    first
        .into_iter()
        .chain(ends.further.iter().copied())
        .collect()
}

/// Two nodes and a guest.
#[derive(Debug)]
pub struct Lab {
    /// The node that the guest runs on at first.
    pub a: LabNode,
    /// The node that waits for it.
    pub b: LabNode,
    /// The guest.
    pub guest: GuestPair,
    /// A migration that takes longer is cancelled.
    pub limit: Duration,
    /// The ways of its streams, if there are several.
    ways: Vec<[IpAddr; 2]>,
}

/// How it went.
#[derive(Clone, Debug)]
pub struct MovedGuest {
    /// The source's report, with the guest's own verdict.
    pub report: MigrationReport,
    /// What the guest found, if not well.
    pub guest_says: Option<String>,
    /// CPU seconds of both data planes and of both VMMs during the migration, the guest's own work
    /// included.
    pub cpu_s: f64,
    /// CPU seconds of both data planes alone.
    pub dataplane_cpu_s: f64,
}

impl Lab {
    /// Starts two nodes and the guest, attached on both.
    ///
    /// # Errors
    /// [`LabError`]: whatever did not start.
    pub fn start(
        spec: &RunSpec,
        folder: &Path,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self, LabError> {
        Self::start_over(spec, folder, None, say)
    }

    /// As [`Self::start`], with a link between the nodes instead of loopback.
    ///
    /// # Errors
    /// [`LabError`]: whatever did not start.
    pub fn start_over(
        spec: &RunSpec,
        folder: &Path,
        link: Option<Ends<'_>>,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self, LabError> {
        let binaries = Binaries::find()?;
        say("starting two nodes, a data plane and a control plane each");
        let settings = &spec.settings;
        let at = |side: usize| {
            link.map(|link| Place {
                namespace: link.namespaces[side],
                address: link.addresses[side],
                everywhere: !link.further.is_empty(),
            })
        };
        let a = LabNode::start_within("node-a", folder, &binaries, settings, at(0))?;
        let b = LabNode::start_within("node-b", folder, &binaries, settings, at(1))?;
        say("starting the guest at node-a, and its empty place at node-b");
        let guest = GuestPair::start(&spec.guest, folder, &binaries)?;
        let limit = MIGRATION_TIME;
        let ways = link.map(ways).unwrap_or_default();
        let mut lab = Self {
            a,
            b,
            guest,
            limit,
            ways,
        };
        lab.attach()?;
        Ok(lab)
    }

    /// Lets the wall clock of both nodes' daemons be changed; they are started anew for it.
    ///
    /// # Errors
    /// [`LabError`]: a daemon did not start.
    pub fn let_clocks_jump(&mut self) -> Result<(), LabError> {
        for node in [&mut self.a, &mut self.b] {
            node.let_clock_jump()?;
            node.wait_attached(VM)?;
        }
        Ok(())
    }

    fn attach(&mut self) -> Result<(), LabError> {
        let name = VM.to_owned();
        let attachment = self.guest.source();
        self.a.ask(&Request::AttachVm {
            name: name.clone(),
            attachment,
        })?;
        let attachment = self.guest.destination();
        self.b.ask(&Request::AttachVm { name, attachment })?;
        Ok(())
    }

    /// Gets everything ready for the way back of a guest that was moved: an empty place where it was,
    /// and the nodes have changed their parts.
    ///
    /// # Errors
    /// [`LabError`]: the place did not start, or a node refused.
    pub fn turn_round(&mut self, spec: &RunSpec, folder: &Path) -> Result<(), LabError> {
        self.guest
            .turn_round(&spec.guest, folder, &Binaries::find()?)?;
        std::mem::swap(&mut self.a, &mut self.b);
        self.ways.iter_mut().for_each(|way| way.reverse());
        let name = VM.to_owned();
        self.b.ask(&Request::DetachVm {
            name: name.clone(),
            attached_as: None,
        })?;
        let attachment = self.guest.destination();
        self.b.ask(&Request::AttachVm { name, attachment })?;
        Ok(())
    }

    fn dataplane_cpu_s(&self) -> f64 {
        self.a.dataplane_cpu_s() + self.b.dataplane_cpu_s()
    }

    /// Starts the migration. Returns its id.
    ///
    /// # Errors
    /// The source node's refusal.
    pub fn migrate(&mut self, settings: &TransferSettings) -> Result<MigrationId, LabError> {
        let to = self.b.address().to_owned();
        let mut settings = settings.clone();
        let port = to.parse::<SocketAddr>().map_or(0, |to| to.port());
        settings
            .paths
            .extend(self.ways.iter().map(|way| StreamPath {
                from: Some(way[0]),
                to: Some((way[1], port).into()),
            }));
        self.migrate_by(to, &settings)
    }

    /// As [`Self::migrate`], by another address than that of the node itself.
    ///
    /// # Errors
    /// The source node's refusal.
    pub fn migrate_by(
        &mut self,
        to: String,
        settings: &TransferSettings,
    ) -> Result<MigrationId, LabError> {
        let request = Request::Migrate {
            vm: VM.into(),
            to,
            settings: settings.clone(),
            dry_run: false,
        };
        match self.a.ask(&request)? {
            Reply::Started { id } => Ok(id),
            other => Err(LabError::Start {
                what: "migration".into(),
                detail: format!("{other:?}"),
            }),
        }
    }

    /// The migration as the source sees it.
    ///
    /// # Errors
    /// The source node's refusal.
    pub fn status(&mut self, id: MigrationId) -> Result<MigrationStatus, LabError> {
        match self.a.ask(&Request::Status {
            which: Some(id.to_string()),
        })? {
            Reply::Migrations(list) if !list.is_empty() => Ok(list
                .into_iter()
                .next_back()
                .unwrap_or_else(|| unreachable!("not empty"))),
            other => Err(LabError::Start {
                what: "status".into(),
                detail: format!("{other:?}"),
            }),
        }
    }

    /// Waits for the end of a migration, and cancels it when the time is up.
    pub(super) fn wait_report(
        &mut self,
        id: MigrationId,
        watch: &mut dyn FnMut(&MigrationStatus),
    ) -> Result<MigrationReport, LabError> {
        let mut deadline = Instant::now() + self.limit;
        let mut is_cancelled = false;
        loop {
            let status = self.status(id)?;
            watch(&status);
            if let Some(report) = status.report {
                return Ok(report);
            }
            if Instant::now() > deadline {
                if is_cancelled {
                    return Err(LabError::Timeout("the migration".into()));
                }
                let which = id.to_string();
                self.a.ask(&Request::Cancel { which })?;
                is_cancelled = true;
                deadline += CANCEL_TIME;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Moves the guest, and leaves it alone then.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_unseen(&mut self, settings: &TransferSettings) -> Result<MigrationReport, LabError> {
        let id = self.migrate(settings)?;
        self.wait_report(id, &mut |_| {})
    }

    /// Moves the guest and lets it look at its memory where it is then.
    ///
    /// # Errors
    /// [`LabError`]; a migration that ends badly is a result, not an error.
    pub fn run(
        &mut self,
        settings: &TransferSettings,
        watch: &mut dyn FnMut(&MigrationStatus),
        say: &mut dyn FnMut(&str),
    ) -> Result<MovedGuest, LabError> {
        let (dataplane, guest) = (self.dataplane_cpu_s(), self.guest.cpu_s());
        let id = self.migrate(settings)?;
        let mut report = self.wait_report(id, watch)?;
        let dataplane_cpu_s = self.dataplane_cpu_s() - dataplane;
        let cpu_s = dataplane_cpu_s + self.guest.cpu_s() - guest;
        say("the guest looks at all of its memory");
        let verdict = if report.result == RunResult::Completed {
            self.guest.verify_at_destination()?
        } else {
            self.guest.verify_at_source()?
        };
        report.guest_verified = Some(verdict.is_ok());
        Ok(MovedGuest {
            report,
            guest_says: verdict.err(),
            cpu_s,
            dataplane_cpu_s,
        })
    }
}
