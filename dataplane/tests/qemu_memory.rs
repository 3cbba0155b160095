//! Guest RAM in several backends of a real QEMU, wherever their files lie: each is found, and moved.

mod common;

use std::path::{Path, PathBuf};

use common::{node, settings, wait};
use dwcp_api::{Attachment, MigrationId, RunResult};
use dwcp_testbed::guests::{Backend, GuestError, GuestOptions, QemuGuest, qemu_binary};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const TIME: std::time::Duration = std::time::Duration::from_secs(120);

/// A tmpfs of its own; gone when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: PathBuf) -> nix::Result<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let options = Some("size=200M,mode=700");
        mount(
            Some("dwcp-test"),
            &at,
            Some("tmpfs"),
            MsFlags::empty(),
            options,
        )?;
        Ok(Self(at))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn qemu(
    name: &str,
    folder: &Path,
    ram: Vec<PathBuf>,
    incoming: bool,
) -> Result<QemuGuest, GuestError> {
    let builder = QemuGuest::builder(name, folder)
        .memory_mib(192)
        .backend(Backend::Nodes(ram))
        .options(GuestOptions {
            fill_mib: 150,
            hot_mib: 120,
            rate: 2000,
            verify_rate: 40_000,
            ..GuestOptions::default()
        });
    let builder = match preload() {
        Some(library) => builder
            .env("LD_PRELOAD", library)
            .env("DWCP_UFFD_SOCKET", folder.join(format!("{name}.uffd"))),
        None => builder,
    };
    if incoming {
        builder.incoming().paused().spawn()
    } else {
        builder.spawn()
    }
}

/// The library that hands out a userfaultfd, when it was built: beside the folder of the tests.
fn preload() -> Option<PathBuf> {
    let tests = std::env::current_exe().ok()?;
    let library = tests.parent()?.parent()?.join("libdwcp_preload.so");
    library.exists().then_some(library)
}

fn attachment(guest: &QemuGuest) -> Attachment {
    let uffd_socket = guest.qmp_path().with_extension("uffd");
    Attachment::Qemu {
        qmp_socket: guest.qmp_path().to_string_lossy().into_owned(),
        uffd_socket: preload().map(|_| uffd_socket.to_string_lossy().into_owned()),
    }
}

/// Moves a guest whose RAM is in two backends at `places` of each end.
fn moves(folder: &Path, places: impl Fn(&str) -> Vec<PathBuf>) {
    if let Err(error) = std::process::Command::new(qemu_binary())
        .arg("--version")
        .output()
    {
        return println!("skipped: no QEMU: {error}");
    }
    let mut old = match qemu("old", folder, places("old"), false) {
        Err(GuestError::NoImage { what, hint }) => return println!("skipped: no {what}: {hint}"),
        started => started.unwrap(),
    };
    let mut new = qemu("new", folder, places("new"), true).unwrap();
    old.wait_ready(TIME).unwrap();
    old.wait_ticks(1, TIME).unwrap();
    drop(new.qmp().unwrap());
    let a = node(folder, "a", &settings());
    let b = node(folder, "b", &settings());
    a.node.attach("vm", attachment(&old)).unwrap();
    b.node.attach("vm", attachment(&new)).unwrap();
    let id = MigrationId(7);
    a.node
        .start_migration(id, "vm", &b.address, settings(), false)
        .unwrap();
    let report = wait(&a.node, id);
    assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
    assert!(report.verified);
    // A backend at the wrong address is not tracked: the sample finds that, and all of RAM is compared.
    let missed = report.notes.iter().find(|note| note.contains("missed"));
    assert_eq!(missed, None);
    if report.tracker != "userfaultfd" {
        println!(
            "skipped: addresses of the backends: the tracker is {}",
            report.tracker
        );
    }
    assert_eq!(report.ram_bytes, 192 << 20);
    let verdict = new.verify_against(old.serial(), TIME);
    assert!(verdict.ok && verdict.full_pass, "{:?}", verdict.reason);
}

/// The first file of every tmpfs has the same inode number.
#[test]
fn ram_on_two_file_systems() {
    let folder = tempfile::tempdir().unwrap();
    let mut mounted = vec![];
    for place in ["old0", "old1", "new0", "new1"] {
        match Tmpfs::mount(folder.path().join(place)) {
            Ok(tmpfs) => mounted.push(tmpfs),
            Err(errno) => return println!("skipped: cannot mount a tmpfs: {errno}"),
        }
    }
    moves(folder.path(), |end| {
        (0..2)
            .map(|n| folder.path().join(format!("{end}{n}")).join("ram"))
            .collect()
    });
}

/// QEMU makes a file without a name for each.
#[test]
fn ram_in_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    let ram = tempfile::tempdir_in("/dev/shm").unwrap();
    moves(folder.path(), |_| vec![ram.path().to_owned(); 2]);
}
