//! Many synthetic guests moved at once between two nodes.

use std::path::Path;
use std::time::{Duration, Instant};

use dwcp_api::node::{Reply, Request};
use dwcp_api::{MigrationId, MigrationReport, TransferSettings};

use super::{Binaries, GuestPair, GuestSpec, LabError, LabNode, Usage};

/// All of a fleet are moved within this time, or it hangs.
const FLEET_TIME: Duration = Duration::from_secs(900);

/// Two nodes and guests of one kind.
#[derive(Debug)]
pub struct Fleet {
    a: LabNode,
    b: LabNode,
    guests: Vec<(String, GuestPair)>,
}

/// How it went.
#[derive(Clone, Debug)]
pub struct MovedFleet {
    /// Reports, as they ended.
    pub reports: Vec<MigrationReport>,
    /// Guests that did not find their memory whole.
    pub bad_guests: usize,
    /// From the first request to the last resume.
    pub seconds: f64,
    /// CPU seconds of both data planes.
    pub dataplane_cpu_s: f64,
    /// Most memory of its own that a data plane had; guest RAM that it maps does not count.
    pub dataplane_bytes_max: u64,
    /// What the four daemons held before and after, data plane first, at the one node and at the other.
    pub usage: [[Usage; 4]; 2],
}

impl Fleet {
    /// Starts two nodes and `count` guests.
    ///
    /// # Errors
    /// [`LabError`]: whatever did not start.
    pub fn start(
        spec: &GuestSpec,
        count: usize,
        settings: &TransferSettings,
        folder: &Path,
    ) -> Result<Self, LabError> {
        let binaries = Binaries::find()?;
        let mut a = LabNode::start("node-a", folder, &binaries, settings)?;
        let mut b = LabNode::start("node-b", folder, &binaries, settings)?;
        let mut guests = vec![];
        for index in 0..count {
            let name = format!("guest{index}");
            let folder = folder.join(&name);
            std::fs::create_dir_all(&folder).map_err(LabError::system("guest folder"))?;
            let pair = GuestPair::start(spec, &folder, &binaries)?;
            for (node, attachment) in [(&mut a, pair.source()), (&mut b, pair.destination())] {
                let name = name.clone();
                node.ask(&Request::AttachVm { name, attachment })?;
            }
            guests.push((name, pair));
        }
        Ok(Self { a, b, guests })
    }

    /// CPU seconds of the data plane and of the control plane of the node that has the guests.
    #[must_use]
    pub fn cpu_s(&self) -> [f64; 2] {
        [self.a.dataplane_cpu_s(), self.a.controlplane_cpu_s()]
    }

    fn usage(&self) -> [Usage; 4] {
        let ([data, control], [data_there, control_there]) = (self.a.usage(), self.b.usage());
        [data, control, data_there, control_there]
    }

    /// Moves all of them at once, then lets each look at its memory.
    ///
    /// # Errors
    /// [`LabError`]; a migration that ends badly is a result, not an error.
    pub fn run(&mut self, settings: &TransferSettings) -> Result<MovedFleet, LabError> {
        let cpu = |fleet: &Self| fleet.a.dataplane_cpu_s() + fleet.b.dataplane_cpu_s();
        let usage = self.usage();
        let (before, began) = (cpu(self), Instant::now());
        let mut open: Vec<MigrationId> = vec![];
        for (name, _) in &self.guests {
            let request = Request::Migrate {
                vm: name.clone(),
                to: self.b.address().to_owned(),
                settings: settings.clone(),
                dry_run: false,
            };
            match self.a.ask(&request)? {
                Reply::Started { id } => open.push(id),
                other => return Err(unexpected("migration", &other)),
            }
        }
        let (mut reports, mut most_bytes) = (vec![], 0);
        // To ask about many takes the nodes' time, too.
        let look = Duration::from_millis(2 + self.guests.len() as u64 / 4);
        while !open.is_empty() {
            if began.elapsed() > FLEET_TIME {
                return Err(LabError::Timeout("moving the fleet".into()));
            }
            std::thread::sleep(look);
            most_bytes = most_bytes
                .max(self.a.dataplane_bytes())
                .max(self.b.dataplane_bytes());
            let statuses = match self.a.ask(&Request::Status { which: None })? {
                Reply::Migrations(list) => list,
                other => return Err(unexpected("status", &other)),
            };
            for status in statuses {
                let Some(report) = status.report else {
                    continue;
                };
                if open.contains(&status.id) {
                    open.retain(|id| *id != status.id);
                    reports.push(report);
                }
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        let dataplane_cpu_s = cpu(self) - before;
        let mut bad_guests = 0;
        for (_, guest) in &mut self.guests {
            bad_guests += usize::from(guest.verify_at_destination()?.is_err());
        }
        Ok(MovedFleet {
            reports,
            bad_guests,
            seconds,
            dataplane_cpu_s,
            dataplane_bytes_max: most_bytes,
            usage: [usage, self.usage()],
        })
    }
}

fn unexpected(what: &str, reply: &Reply) -> LabError {
    LabError::Start {
        what: what.into(),
        detail: format!("{reply:?}"),
    }
}
