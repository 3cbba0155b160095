//! Guests in a real QEMU, moved by QEMU itself. Without a QEMU the tests say so and do nothing.

use dwcp_qmp::MigrationStatus;
use dwcp_testbed::Kind;
use dwcp_testbed::guests::{GuestError, GuestKind, GuestOptions, Program, QemuGuest, qemu_binary};
use dwcp_testbed::peers::{PeerError, PeerOptions, PeerSystem, run_peer};
use std::fs;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);

fn is_skipped() -> bool {
    let mut command = Command::new(qemu_binary());
    let missing = command
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_err();
    if missing {
        eprintln!("SKIPPED: no QEMU; run tools/setup or set DWCP_QEMU");
    }
    missing
}

fn load(kind: Kind) -> GuestOptions {
    GuestOptions {
        fill_mib: 64,
        hot_mib: 8,
        rate: 1000,
        verify_rate: 40_000,
        kind,
    }
}

/// How often a move by QEMU is tried until one verifies. What is tested here is the harness: QEMU's own
/// migration loses writes under TCG on a busy host (see `peers`), and the guest says so, rightly.
const ATTEMPTS: usize = 3;

fn move_by_qemu(system: PeerSystem, guest: GuestKind, kind: Kind) {
    for attempt in 1..=ATTEMPTS {
        let folder = tempfile::tempdir().expect("folder");
        let options = PeerOptions {
            guest,
            load: load(kind),
            memory_mib: 256,
            ..PeerOptions::new(folder.path())
        };
        let run = match run_peer(system, &options) {
            Ok(run) => run,
            Err(PeerError::Guest(GuestError::NoImage { what, hint })) => {
                eprintln!("SKIPPED: no {what}: {hint}");
                return;
            }
            Err(error) => panic!("{}: {error}", system.name()),
        };
        println!("{run:?}");
        assert!(
            run.guest.full_pass,
            "the whole of RAM was looked at: {run:?}"
        );
        assert!(run.downtime_ms > 0.0 && run.total_ms >= run.downtime_ms);
        assert!(run.wire_bytes > 1 << 20 && run.cpu_s > 0.0);
        assert_eq!(run.guest_verified, run.guest.reason.is_none());
        if run.guest_verified {
            return;
        }
        eprintln!(
            "QEMU lost a write, attempt {attempt}: {:?}",
            run.guest.reason
        );
    }
    panic!("{}: no move in {ATTEMPTS} verified", system.name());
}

#[test]
fn the_bare_guest_is_moved_by_every_peer() {
    if is_skipped() {
        return;
    }
    for (system, kind) in
        PeerSystem::ALL
            .into_iter()
            .zip([Kind::Text, Kind::Random, Kind::Text, Kind::Sparse])
    {
        move_by_qemu(system, GuestKind::Bare, kind);
    }
}

#[test]
fn the_linux_guest_is_moved() {
    if !is_skipped() {
        move_by_qemu(PeerSystem::Plain, GuestKind::Linux, Kind::Text);
    }
}

/// The guest must notice what a bad mover does to RAM that it shares.
#[test]
fn a_page_damaged_from_outside_is_reported() {
    if is_skipped() {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let mut guest = QemuGuest::builder("damaged", folder.path())
        .options(load(Kind::Text))
        .memory_mib(128)
        .spawn()
        .expect("spawn");
    assert_eq!(guest.wait_ready(LIMIT).expect("ready"), 64);
    assert_eq!(guest.wait_ticks(1, LIMIT).expect("tick").bad, 0);
    let ram = guest.ram_path().expect("shared").to_owned();
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&ram)
        .expect("open");
    let mut word = [0; 8];
    file.read_exact_at(&mut word, 50 << 20).expect("read");
    assert_eq!(
        u64::from_le_bytes(word),
        dwcp_guest_page::MAGIC,
        "RAM is seen from outside"
    );
    file.write_all_at(&[0], 50 << 20).expect("write");
    let before = guest.serial().ticks().len();
    guest.wait_ticks(before + 4, LIMIT).expect("ticks");
    assert!(guest.serial().latest().expect("tick").bad > 0);
    drop(guest);
    assert!(!ram.exists(), "the RAM file is removed");
}

#[test]
fn a_qemu_that_does_not_start_says_why() {
    if is_skipped() {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let mut guest = QemuGuest::builder("wrong", folder.path())
        .args(["-no-such"])
        .spawn()
        .expect("spawn");
    match guest.qmp() {
        Err(GuestError::Ended { output, .. }) => assert!(output.contains("no-such"), "{output}"),
        other => panic!("{other:?}"),
    }
}

/// Moves the bare guest the way DWCP does it, only without pre-copy: at the pause a plain copy of the
/// shared RAM file, then QEMU's device state. Returns (guest verified, its reason when not).
fn move_by_copy(spoil: impl FnOnce(&mut Vec<u8>)) -> (bool, Option<String>) {
    let folder = tempfile::tempdir().expect("folder");
    let builder = |name: &str| {
        QemuGuest::builder(name, folder.path())
            .options(load(Kind::Text))
            .memory_mib(128)
    };
    let mut source = builder("copy-source").spawn().expect("spawn");
    source.wait_ready(LIMIT).expect("ready");
    source.wait_ticks(2, LIMIT).expect("ticks");
    let mut destination = builder("copy-destination")
        .incoming()
        .paused()
        .spawn()
        .expect("spawn");
    let (mut from, mut to) = (source.qmp().expect("qmp"), destination.qmp().expect("qmp"));
    let backends = from.query_memdev().expect("memdev");
    assert!(backends[0].share && backends[0].qom_type == "memory-backend-file");
    assert_eq!(
        backends[0].mem_path.as_deref(),
        source.ram_path().and_then(|path| path.to_str())
    );

    let both = [("x-ignore-shared", true), ("events", true)];
    from.set_migration_capabilities(&both)
        .expect("capabilities");
    from.set_migration_capabilities(&[("pause-before-switchover", true)])
        .expect("capabilities");
    to.set_migration_capabilities(&both).expect("capabilities");
    let uri = format!("unix:{}", folder.path().join("state").display());
    to.migrate_incoming(&uri).expect("incoming");
    from.migrate(&uri).expect("migrate");
    from.wait_migrate(|info| info.status == MigrationStatus::PreSwitchover, LIMIT)
        .expect("pause");
    let mut ram = fs::read(source.ram_path().expect("shared")).expect("read");
    spoil(&mut ram);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(destination.ram_path().expect("shared"));
    file.expect("open").write_all_at(&ram, 0).expect("write");
    from.migrate_continue("pre-switchover").expect("continue");
    let info = from
        .wait_migrate(|info| info.status.is_final(), LIMIT)
        .expect("end");
    assert_eq!(info.status, MigrationStatus::Completed);
    assert!(
        info.ram.is_some_and(|ram| ram.transferred < 2 << 20),
        "only device state: {info:?}"
    );
    to.wait_migrate(|info| info.status == MigrationStatus::Completed, LIMIT)
        .expect("loaded");
    to.cont().expect("cont");
    let verdict = destination.verify_against(source.serial(), LIMIT);
    (verdict.ok && verdict.full_pass, verdict.reason)
}

#[test]
fn a_guest_moved_by_copying_its_shared_ram_goes_on() {
    if !is_skipped() {
        assert_eq!(move_by_copy(|_| ()), (true, None));
    }
}

/// One page of RAM, of 32,768, as it was before the guest's last write to it.
#[test]
fn one_stale_page_does_not_pass_for_a_good_move() {
    if is_skipped() {
        return;
    }
    let (good, reason) = move_by_copy(|ram| {
        let generation_of = |page: &[u8]| u64::from_le_bytes(page[16..24].try_into().expect("8"));
        let magic = dwcp_guest_page::MAGIC.to_le_bytes();
        let page = ram
            .chunks_exact_mut(4096)
            .find(|page| page.starts_with(&magic) && generation_of(page) > 1)
            .expect("a page that was rewritten");
        let (index, generation) = (
            u64::from_le_bytes(page[8..16].try_into().expect("8")),
            generation_of(page),
        );
        let (before, _) = page.as_chunks_mut::<8>();
        assert!(index < 8 << 8, "in the hot window");
        // SAFETY: the slice is one whole page; a file read into memory is aligned to 8 or the
        // assertion stops us.
        unsafe {
            let start = before.as_mut_ptr().cast::<u64>();
            assert!(start.is_aligned());
            dwcp_guest_page::write_page(start, Kind::Text, index, 0, generation as u32 - 1);
        }
    });
    assert!(!good && reason.is_some_and(|reason| reason.contains("bad pages")));
}

/// What it prints and how it ends comes out of the guest.
#[test]
fn a_program_of_this_machine_runs_in_the_linux_guest() {
    if is_skipped() {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let program = Program::new("/bin/sh", ["-c", "$0", "nonsense"]);
    let guest = QemuGuest::builder("program", folder.path()).program(program);
    let mut guest = match guest.spawn() {
        Err(GuestError::NoImage { what, hint }) => {
            eprintln!("SKIPPED: no {what}: {hint}");
            return;
        }
        guest => guest.expect("a guest"),
    };
    // A shell says so when there is no such command.
    assert_eq!(guest.wait_exit(LIMIT).expect("an end"), 127);
    let text = guest.serial().text();
    assert!(text.contains("nonsense"), "{text}");
}
