//! What a run does to its nodes, their link, their disks and their memory.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dwcp_api::{Attachment, MigrationId, Role};
use dwcp_journal::{FILE_NAME, Journal, Record, RecordKind};
use dwcp_tools::lab::{Lab, LabNode, MemoryCage, Plane, Proxy, SmallDisk, Way};
use nix::sys::signal::Signal;

use super::plan::{Cell, Fault, Mode, Phase};
use crate::bench::draws::Draws;
use crate::failure::Failure;

/// A page of a file in memory: what a disk of it gives at once.
const PAGE_BYTES: u64 = 4096;

/// Holds a node's state folder: journal, log, sockets.
const DISK_BYTES: u64 = 1 << 20;

/// So long a disk stays full.
const FULL_TIME: Duration = Duration::from_secs(2);

/// What a data plane may still have when it gets no more.
const MEMORY_LEFT_BYTES: u64 = 128 << 10;

/// So long it gets no more, if it does not die of it.
const NO_MEMORY_TIME: Duration = Duration::from_secs(1);

/// Bytes of the records that a node writes in a migration that nothing disturbs, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct RecordBytes(Vec<u64>);

impl RecordBytes {
    /// Those in the journal of a node that has made one migration.
    pub(super) fn read(node: &LabNode) -> Result<Self, Failure> {
        let text = std::fs::read(node.folder().join(FILE_NAME)).map_err(Failure::other)?;
        let lines = text.split_inclusive(|&byte| byte == b'\n').skip(1);
        Ok(Self(lines.map(|line| line.len() as u64).collect()))
    }

    /// Room for the records before number `record`, and a half of that one.
    fn room(&self, record: usize) -> u64 {
        let before: u64 = self.0[..record].iter().sum();
        before + self.0[record] / 2
    }

    /// Which of them can be written after a phase has begun: the first of those, and how many.
    fn after(&self, cell: Cell) -> (usize, usize) {
        let is_source = cell.fault == Fault::FullDiskSource;
        let first = match (cell.phase, cell.mode, is_source) {
            (Phase::Setup, _, false) => 0,
            (Phase::Setup | Phase::Precopy, ..) => 1,
            (Phase::Switchover | Phase::Handover, Mode::PreCopy, false) => 1,
            (Phase::Switchover | Phase::Handover, ..) => 2,
            (Phase::Postcopy, ..) => self.0.len() - 1,
        };
        (first, self.0.len() - first)
    }
}

/// What a run needs before its nodes are started, and takes away after they have ended.
#[derive(Debug, Default)]
pub(super) struct Ground {
    disk: Option<SmallDisk>,
}

impl Ground {
    /// Makes it. `records` are those of the node whose disk gets full.
    pub(super) fn prepare(
        cell: Cell,
        folder: &Path,
        records: &RecordBytes,
        draws: &mut Draws,
    ) -> Result<Self, Failure> {
        let node = match cell.fault {
            Fault::FullDiskSource => "node-a",
            Fault::FullDiskDestination => "node-b",
            _ => return Ok(Self::default()),
        };
        let folder = folder.join(node);
        let disk = SmallDisk::mount(&folder, DISK_BYTES).map_err(Failure::other)?;
        let (first, count) = records.after(cell);
        let record = first + draws.below(count as u64) as usize;
        pad_journal(&folder, records.room(record))?;
        Ok(Self { disk: Some(disk) })
    }
}

/// Fills a journal with what has ended long ago, so that its last page has so much room. A page that a file has
/// begun is its own: only the next one can be refused.
fn pad_journal(folder: &Path, room: u64) -> Result<(), Failure> {
    let journal = Journal::open(folder).map_err(Failure::other)?;
    let write = |migration: u128, kind: RecordKind| {
        let record = Record {
            sequence: 0,
            migration: MigrationId(migration),
            vm: "earlier".into(),
            role: Role::Source,
            peer_node: "b".into(),
            peer_address: "192.0.2.2:7440".into(),
            tls: false,
            epoch: 0,
            wall_ms: 0,
            kind,
        };
        journal.append(&record).map_err(Failure::other)
    };
    let bytes = || std::fs::metadata(journal.path()).map(|file| file.len());
    let begin = || RecordKind::Begin {
        attachment: Attachment::Process {
            socket: "/run/earlier.sock".into(),
        },
    };
    let aborted = |reason: String| RecordKind::Aborted { reason };
    write(1, begin())?;
    let before = bytes().map_err(Failure::other)?;
    write(1, aborted(String::new()))?;
    let shortest = bytes().map_err(Failure::other)? - before;
    write(2, begin())?;
    let begun = bytes().map_err(Failure::other)?;
    let end = (begun + shortest + room).next_multiple_of(PAGE_BYTES) - room;
    let reason = "x".repeat((end - begun - shortest) as usize);
    write(2, aborted(reason)).map(drop)
}

/// The run's nodes, and what stands between them.
pub(super) struct Scene<'a> {
    pub(super) lab: &'a mut Lab,
    pub(super) proxy: &'a Proxy,
    pub(super) ground: &'a Ground,
    /// Around the destination's data plane.
    pub(super) cage: Option<&'a MemoryCage>,
    /// How long a daemon that is stopped stays so.
    pub(super) stop_time: Duration,
}

impl Scene<'_> {
    /// Does it while the link is stopped at its moment, lets that go on, and mends what was harmed.
    pub(super) fn harm(mut self, fault: Fault, draws: &mut Draws) -> Result<(), Failure> {
        let between = |low_ms: u64, high_ms: u64, draws: &mut Draws| {
            Duration::from_millis(low_ms + draws.below(high_ms - low_ms))
        };
        match fault {
            Fault::KillSourceDataPlane
            | Fault::KillSourceControlPlane
            | Fault::KillDestinationDataPlane
            | Fault::KillDestinationControlPlane => {
                let (node, plane) = self.daemon(fault);
                node.kill(plane);
                self.proxy.go_on();
                std::thread::sleep(between(0, 1000, draws));
            }
            Fault::KillDestinationVmm => {
                self.lab.guest.kill_destination();
                self.proxy.go_on();
            }
            Fault::StopSourceDataPlane
            | Fault::StopSourceControlPlane
            | Fault::StopDestinationDataPlane
            | Fault::StopDestinationControlPlane => {
                let time = self.stop_time;
                let (node, plane) = self.daemon(fault);
                node.signal(plane, Signal::SIGSTOP)
                    .map_err(Failure::other)?;
                self.proxy.go_on();
                std::thread::sleep(time);
                let (node, plane) = self.daemon(fault);
                node.signal(plane, Signal::SIGCONT)
                    .map_err(Failure::other)?;
            }
            Fault::CutLink => {
                self.proxy.cut();
                self.proxy.go_on();
                std::thread::sleep(between(100, 4000, draws));
            }
            Fault::HoldToDestination | Fault::HoldToSource => {
                self.proxy.hold(if fault == Fault::HoldToSource {
                    Way::ToSource
                } else {
                    Way::ToDestination
                });
                self.proxy.go_on();
                std::thread::sleep(between(300, 6000, draws));
            }
            Fault::Corrupt => {
                let way = [Way::ToDestination, Way::ToSource][draws.below(2) as usize];
                self.proxy.flip(way, draws.next());
                self.proxy.go_on();
                std::thread::sleep(between(50, 300, draws));
            }
            Fault::FullDiskSource | Fault::FullDiskDestination => self.fill_disk()?,
            Fault::OutOfMemoryDestination => self.take_memory()?,
            Fault::ClockJump => self.jump(draws)?,
        }
        self.proxy.mend();
        self.lab.a.revive().map_err(Failure::other)?;
        self.lab.b.revive().map_err(Failure::other)
    }

    fn daemon(&mut self, fault: Fault) -> (&mut LabNode, Plane) {
        match fault {
            Fault::KillSourceDataPlane | Fault::StopSourceDataPlane => {
                (&mut self.lab.a, Plane::Data)
            }
            Fault::KillSourceControlPlane | Fault::StopSourceControlPlane => {
                (&mut self.lab.a, Plane::Control)
            }
            Fault::KillDestinationDataPlane | Fault::StopDestinationDataPlane => {
                (&mut self.lab.b, Plane::Data)
            }
            _ => (&mut self.lab.b, Plane::Control),
        }
    }

    fn fill_disk(&self) -> Result<(), Failure> {
        let disk = self.ground.disk.as_ref();
        let filler: PathBuf = disk
            .map(|disk| disk.folder().join("filler"))
            .unwrap_or_default();
        let mut file = File::create(&filler).map_err(Failure::other)?;
        let page = [0; PAGE_BYTES as usize];
        // Until there is no room for another.
        while file.write_all(&page).is_ok() {}
        self.proxy.go_on();
        std::thread::sleep(FULL_TIME);
        std::fs::remove_file(filler).map_err(Failure::other)
    }

    fn take_memory(&self) -> Result<(), Failure> {
        if let Some(cage) = self.cage {
            cage.close(MEMORY_LEFT_BYTES).map_err(Failure::other)?;
        }
        self.proxy.go_on();
        std::thread::sleep(NO_MEMORY_TIME);
        if let Some(cage) = self.cage {
            cage.open().map_err(Failure::other)?;
        }
        Ok(())
    }

    /// By hours, in both directions, at either node.
    fn jump(&self, draws: &mut Draws) -> Result<(), Failure> {
        let node = [&self.lab.a, &self.lab.b][draws.below(2) as usize];
        let seconds = [-86_400 * 365, -3600, 3600, 86_400 * 365][draws.below(4) as usize];
        node.jump_clock(seconds).map_err(Failure::other)?;
        self.proxy.go_on();
        Ok(())
    }
}
