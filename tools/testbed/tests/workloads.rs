//! Workloads in a real QEMU, saved, gone on with, and moved by QEMU itself. Without the disk
//! (`tools/setup --workloads`) the tests say so and do nothing.

use dwcp_testbed::guests::{Backend, QemuGuest, Workload, WorkloadGuest, workload_disk};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

fn goes_on_from_its_state(workload: Workload) {
    if let Err(missing) = workload_disk() {
        eprintln!("SKIPPED: {missing}");
        return;
    }
    let guest = WorkloadGuest { workload, seed: 1 };
    let state = guest.warm(&mut |text| eprintln!("{text}")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    // Whatever RAM is made of: QEMU's own is moved by QEMU, a shared file by DWCP.
    for (name, backend) in [("private", Backend::Private), ("shared", Backend::Shared)] {
        let mut qemu = QemuGuest::builder(name, folder.path())
            .workload(guest)
            .backend(backend)
            .incoming()
            .paused()
            .spawn()
            .unwrap();
        qemu.restore(&state).unwrap();
        qemu.wait_work(3, LIMIT).unwrap();
        assert!(!qemu.serial().is_warm(), "{name}: it was booted anew");
    }
}

#[test]
fn an_idle_debian_goes_on_from_its_saved_state() {
    goes_on_from_its_state(Workload::Idle);
}

#[test]
#[ignore = "boots for minutes where no guest is saved yet"]
fn a_database_goes_on_from_its_saved_state() {
    goes_on_from_its_state(Workload::Database);
}

#[test]
#[ignore = "boots for minutes where no guest is saved yet"]
fn a_store_goes_on_from_its_saved_state() {
    goes_on_from_its_state(Workload::Store);
}
