//! The client against a real QEMU. Without one the test says so and does nothing.

use dwcp_qmp::{MigrationStatus, QmpClient, QmpError};
use serde_json::Value;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// Ends the child whatever the test does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(folder: &std::path::Path) -> Option<Running> {
    let binary = std::env::var("DWCP_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".into());
    let ram = format!(
        "memory-backend-file,id=ram0,size=8M,share=on,mem-path={}",
        folder.join("ram").display()
    );
    let qmp = format!("unix:{},server=on,wait=off", folder.join("qmp").display());
    let child = Command::new(&binary)
        .args(["-machine", "none", "-nodefaults", "-display", "none", "-S"])
        .args([
            "-object",
            &ram,
            "-object",
            "memory-backend-ram,id=ram1,size=4M",
        ])
        .args(["-qmp", &qmp])
        .stdin(Stdio::null())
        .spawn();
    match child {
        Ok(child) => Some(Running(child)),
        Err(error) => {
            eprintln!("SKIPPED: no QEMU to talk to ({binary}: {error}); set DWCP_QEMU");
            None
        }
    }
}

#[test]
fn a_real_qemu_is_understood() {
    let folder = tempfile::tempdir().expect("folder");
    let Some(mut qemu) = start(folder.path()) else {
        return;
    };
    let mut qmp = QmpClient::connect(folder.path().join("qmp"), LIMIT).expect("connect");
    assert!(
        qmp.version().at_least(7, 2),
        "DWCP needs QEMU 7.2, this is {}",
        qmp.version()
    );
    assert_eq!(
        qmp.peer_pid().expect("pid"),
        i32::try_from(qemu.0.id()).expect("pid")
    );

    assert!(!qmp.query_status().expect("status").running);
    let stop = qmp.cont().and_then(|()| qmp.stop());
    stop.expect("cont and stop");
    let resume = qmp.wait_event_named("RESUME", LIMIT).expect("event");
    let stop = qmp.wait_event_named("STOP", LIMIT).expect("event");
    assert!(resume.timestamp_us > 0 && stop.timestamp_us >= resume.timestamp_us);

    let backends = qmp.query_memdev().expect("memdev");
    let file = backends
        .iter()
        .find(|backend| backend.id == "ram0")
        .expect("ram0");
    assert_eq!(
        (file.qom_type.as_str(), file.size_bytes),
        ("memory-backend-file", 8 << 20)
    );
    assert_eq!(file.mem_path.as_deref(), folder.path().join("ram").to_str());
    let plain = backends
        .iter()
        .find(|backend| backend.id == "ram1")
        .expect("ram1");
    assert!(file.share && !plain.share && plain.mem_path.is_none());

    qmp.set_migration_capabilities(&[("x-ignore-shared", true), ("events", true)])
        .expect("caps");
    let refused = qmp.set_migration_capabilities(&[("no-such-thing", true)]);
    assert!(matches!(refused, Err(QmpError::Command { .. })));
    qmp.migrate_set_parameters(serde_json::json!({ "max-bandwidth": 1 << 30 }))
        .expect("params");
    assert_eq!(
        qmp.query_migrate().expect("migrate").status,
        MigrationStatus::None
    );
    qmp.migrate_cancel().expect("cancel of nothing");
    assert!(qmp.migrate_continue("pre-switchover").is_err());

    let (_ours, theirs) = UnixStream::pair().expect("pair");
    qmp.getfd("m", theirs.as_fd()).expect("getfd");
    let schema = qmp
        .execute("query-qmp-schema", Value::Null)
        .expect("the longest answer fits");
    assert!(schema.as_array().is_some_and(|list| list.len() > 100));

    qmp.quit().expect("quit");
    qemu.0.wait().expect("QEMU ends");
}
