//! RAM for codecs to be tried on.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use dwcp_dataplane::ram::{RamBlock, RamLayout};
use dwcp_simd::PAGE_BYTES;
use dwcp_testbed::guests::{GuestKind, QemuGuest, Workload, WorkloadGuest};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Pages that no codec makes smaller: what encrypted memory looks like from outside.
    Random,
    /// A guest of `dwcp bench wan`, as it was saved when it was warm.
    Workload(Workload),
    /// A file with a guest's pages, one behind the other.
    File(PathBuf),
}

/// Of random pages.
const RANDOM_BYTES: u64 = 512 << 20;

/// Looked at for zeros at once.
const PIECE_BYTES: usize = 64 << 10;

const WORKLOADS: [Workload; 3] = [Workload::Database, Workload::Store, Workload::Idle];

impl Source {
    /// All that need no file.
    pub(super) fn all() -> Vec<Self> {
        let workloads = WORKLOADS.into_iter().map(Self::Workload);
        [Self::Random].into_iter().chain(workloads).collect()
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let workload = WORKLOADS.into_iter().find(|one| one.name() == text);
        Ok(match (text, workload) {
            ("random", _) => Self::Random,
            (_, Some(workload)) => Self::Workload(workload),
            _ if Path::new(text).is_file() => Self::File(text.into()),
            _ => {
                let why = "is neither random, database, store, idle nor a file";
                return Err(format!("{text} {why}"));
            }
        })
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::Random => "random".into(),
            Self::Workload(workload) => workload.name().into(),
            Self::File(path) => path.display().to_string(),
        }
    }

    pub(super) fn read(&self) -> anyhow::Result<RamLayout> {
        match self {
            Self::Random => copy(File::open("/dev/urandom")?.take(RANDOM_BYTES), RANDOM_BYTES),
            Self::File(path) => {
                let words = || path.display().to_string();
                let file = File::open(path).with_context(words)?;
                let bytes = file.metadata()?.len() / PAGE_BYTES as u64 * PAGE_BYTES as u64;
                copy(file, bytes).with_context(words)
            }
            Self::Workload(workload) => saved(*workload),
        }
    }
}

/// RAM of a guest that was saved. It runs for a moment: QEMU continues what it restores.
fn saved(workload: Workload) -> anyhow::Result<RamLayout> {
    let which = WorkloadGuest { workload, seed: 1 };
    let state = which.warm(&mut |words| eprintln!("{words}"))?;
    let folder = tempfile::tempdir()?;
    let mut guest = QemuGuest::builder("codec", folder.path())
        .guest(GuestKind::Linux)
        .workload(which)
        .incoming()
        .paused()
        .spawn()?;
    guest.restore(&state)?;
    guest.qmp()?.stop()?;
    let path = guest
        .ram_path()
        .ok_or_else(|| anyhow!("the guest's RAM is no file"))?;
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    copy(file, bytes)
}

/// Memory with the bytes of `from`; zeros take none.
fn copy(mut from: impl Read, bytes: u64) -> anyhow::Result<RamLayout> {
    let memory = File::from(memfd_create("dwcp-codec-ram", MFdFlags::MFD_CLOEXEC)?);
    memory.set_len(bytes)?;
    let (mut piece, mut at) = (vec![0; PIECE_BYTES], 0);
    while at < bytes {
        let count = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        let count = count.min((bytes - at) as usize);
        if piece[..count].iter().any(|&byte| byte != 0) {
            memory.write_all_at(&piece[..count], at)?;
        }
        at += count as u64;
    }
    let block = RamBlock::map("ram".into(), memory.into(), bytes, 0)?;
    Ok(RamLayout::new(vec![block])?)
}
