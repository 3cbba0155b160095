//! The synthetic guest end to end: moved by hand, lied to, killed.

use dwcp_testbed::Kind;
use dwcp_testbed::synthetic::{
    ClientError, SyntheticClient, SyntheticGuest, SyntheticOptions, run_synthetic_guest,
};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

fn options(socket: &Path) -> SyntheticOptions {
    SyntheticOptions {
        socket: socket.into(),
        ram_mib: 8,
        hot_mib: 2,
        rate: 20_000,
        zero_percent: 30,
        ..SyntheticOptions::default()
    }
}

fn ram_of(client: &SyntheticClient) -> File {
    File::from(client.ram_descriptors()[0].try_clone().expect("clone"))
}

fn wait_until(client: &mut SyntheticClient, done: impl Fn(&mut SyntheticClient) -> bool) {
    for _ in 0..2000 {
        if done(client) {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("it never happened: {:?}", client.status());
}

/// Copies all of RAM and the device state of a paused guest.
fn move_by_hand(from: &mut SyntheticClient, to: &mut SyntheticClient) {
    let mut ram = vec![0; usize::try_from(from.ram()[0].bytes).expect("small")];
    ram_of(from).read_exact_at(&mut ram, 0).expect("read RAM");
    ram_of(to).write_all_at(&ram, 0).expect("write RAM");
    let (near, far) = UnixStream::pair().expect("pair");
    let loaded = thread::scope(|scope| {
        let loading = scope.spawn(|| to.load(far.as_fd()));
        let saved = from.save(near.as_fd()).expect("save");
        drop(near);
        (saved, loading.join().expect("thread").expect("load"))
    });
    assert_eq!(loaded.0, loaded.1);
}

#[test]
fn a_guest_goes_on_where_it_was_moved_from() {
    for kind in [Kind::Random, Kind::Text, Kind::Sparse] {
        let folder = tempfile::tempdir().expect("folder");
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let first = SyntheticGuest::start(SyntheticOptions {
            kind,
            ..options(&a)
        })
        .expect("start");
        let incoming = SyntheticOptions {
            incoming: true,
            rate: 0,
            ..options(&b)
        };
        let second = SyntheticGuest::start(incoming).expect("start");
        let mut from = SyntheticClient::connect(&a, LIMIT).expect("connect");
        let mut to = SyntheticClient::connect(&b, LIMIT).expect("connect");
        assert!(!from.incoming() && to.incoming());
        assert!(matches!(to.resume(), Err(ClientError::Refused { .. })));
        assert!(matches!(to.verify(), Err(ClientError::Refused { .. })));

        wait_until(&mut from, |guest| {
            guest
                .status()
                .is_ok_and(|s| s.writes > 1000 && s.passes > 0)
        });
        let paused_us = from.pause().expect("pause");
        let before = from.status().expect("status");
        assert!(!before.running && before.bad == 0);
        move_by_hand(&mut from, &mut to);
        let resumed_us = to.resume().expect("resume");
        assert!(resumed_us >= paused_us);

        wait_until(&mut to, |guest| {
            guest
                .status()
                .is_ok_and(|s| s.writes > before.writes && s.passes > before.passes + 1)
        });
        let after = to.status().expect("status");
        assert!(after.running && !after.incoming && after.bad == 0);
        assert!(
            after.max_gap_ms * 1000 + 1000 >= resumed_us - paused_us,
            "{after:?}"
        );
        assert_eq!(to.verify().expect("verify").bad, 0);
        assert_eq!(from.verify().expect("verify").bad, 0);
        to.quit().expect("quit");
        second.wait();
        drop(first);
    }
}

/// One stale page, one lost page, one page in a wrong place: three bad pages, no more and no less.
#[test]
fn what_a_bad_mover_does_is_found() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("g");
    let idle = SyntheticOptions {
        rate: 0,
        zero_percent: 0,
        ..options(&path)
    };
    let _guest = SyntheticGuest::start(idle).expect("start");
    let mut client = SyntheticClient::connect(&path, LIMIT).expect("connect");
    let ram = ram_of(&client);
    let mut page = vec![0; 4096];
    ram.write_all_at(&page, 100 * 4096).expect("lose");
    ram.read_exact_at(&mut page, 200 * 4096).expect("read");
    ram.write_all_at(&page, 201 * 4096).expect("misplace");
    ram.read_exact_at(&mut page, 300 * 4096).expect("read");
    page[2048] ^= 1;
    ram.write_all_at(&page, 300 * 4096).expect("damage");
    let report = client.verify().expect("verify");
    assert_eq!((report.bad, report.pages), (3, 2048));
    wait_until(&mut client, |guest| {
        guest.status().is_ok_and(|status| status.bad >= 3)
    });
}

#[test]
fn pausing_stops_writes_and_is_idempotent() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("g");
    let _guest = SyntheticGuest::start(options(&path)).expect("start");
    assert_eq!(
        std::fs::metadata(&path).expect("socket").mode() & 0o777,
        0o600
    );
    let mut client = SyntheticClient::connect(&path, LIMIT).expect("connect");
    let mut other = SyntheticClient::connect(&path, LIMIT).expect("a second client");
    let (_near, far) = UnixStream::pair().expect("pair");
    assert!(matches!(
        client.save(far.as_fd()),
        Err(ClientError::Refused { .. })
    ));
    assert!(matches!(
        client.load(far.as_fd()),
        Err(ClientError::Refused { .. })
    ));
    let paused_us = client.pause().expect("pause");
    assert_eq!(other.pause().expect("pause again"), paused_us);
    let before = other.status().expect("status").writes;
    thread::sleep(Duration::from_millis(30));
    assert_eq!(other.status().expect("status").writes, before);
    assert!(other.resume().expect("resume") > paused_us);
    wait_until(&mut client, |guest| {
        guest.status().is_ok_and(|status| status.writes > before)
    });
}

#[test]
fn hostile_lines_are_refused_and_the_guest_stays() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("g");
    let _guest = SyntheticGuest::start(options(&path)).expect("start");
    let mut raw = UnixStream::connect(&path).expect("connect");
    let mut lines = BufReader::new(raw.try_clone().expect("clone"));
    let mut line = String::new();
    lines.read_line(&mut line).expect("greeting");
    let deep = "[".repeat(10_000);
    let long = format!("{{\"execute\":\"{}\"}}", "x".repeat(10_000));
    for hostile in [
        "",
        "{}",
        "7",
        "\u{0}",
        r#"{"execute":5}"#,
        r#"{"execute":"save"}"#,
        &deep,
        &long,
    ] {
        raw.write_all(format!("{hostile}\n").as_bytes())
            .expect("write");
        line.clear();
        lines.read_line(&mut line).expect("read");
        assert!(
            line.starts_with(r#"{"error":"#) && line.len() < 200,
            "{hostile:.20}: {line}"
        );
    }
    // A line without end costs the client its connection, nothing more.
    let _ = raw.write_all(&vec![b'x'; 100_000]);
    let mut rest = Vec::new();
    let _ = lines.read_to_end(&mut rest);
    let mut client = SyntheticClient::connect(&path, LIMIT).expect("connect");
    assert_eq!(client.status().expect("status").bad, 0);
}

#[test]
fn a_damaged_device_state_is_refused_and_a_good_one_still_taken() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("g");
    let incoming = SyntheticOptions {
        incoming: true,
        ..options(&path)
    };
    let _guest = SyntheticGuest::start(incoming).expect("start");
    let mut client = SyntheticClient::connect(&path, LIMIT).expect("connect");
    for bytes in [0, 5, 5000, 100_000] {
        let (mut near, far) = UnixStream::pair().expect("pair");
        let giving = thread::spawn(move || near.write_all(&vec![7; bytes]));
        assert!(matches!(
            client.load(far.as_fd()),
            Err(ClientError::Refused { .. })
        ));
        drop(far);
        // Refused midway when it was too long.
        let _ = giving.join().expect("thread");
    }
    assert!(matches!(client.resume(), Err(ClientError::Refused { .. })));
}

/// Ends the child whatever the test does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const CHILD: &str = "DWCP_TESTBED_CHILD_SOCKET";

/// Not a test: what `a_guest_in_another_process` starts. Alone it does nothing.
#[test]
fn child() {
    if let Some(socket) = std::env::var_os(CHILD) {
        run_synthetic_guest(options(Path::new(&socket))).expect("guest");
    }
}

#[test]
fn a_guest_in_another_process() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("g");
    let start = || {
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        command.args(["--exact", "child"]).env(CHILD, &path);
        Running(
            command
                .stdout(std::process::Stdio::null())
                .spawn()
                .expect("spawn"),
        )
    };
    let mut process = start();
    let mut client = SyntheticClient::connect(&path, LIMIT).expect("connect");
    assert_eq!(client.pid(), i32::try_from(process.0.id()).expect("pid"));
    assert_eq!(client.ram()[0].bytes, 8 << 20);
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", client.pid())).expect("maps");
    assert!(
        maps.contains(&format!("{:x}-", client.ram()[0].va)),
        "the address is real"
    );
    client.quit().expect("quit");
    assert!(process.0.wait().expect("wait").success());

    // Killed, it leaves a stale socket, which the next one replaces.
    let mut process = start();
    let mut client = SyntheticClient::connect(&path, LIMIT).expect("connect");
    process.0.kill().expect("kill");
    process.0.wait().expect("wait");
    assert!(matches!(client.status(), Err(ClientError::Closed { .. })));
    let _third = start();
    let mut client = SyntheticClient::connect(&path, LIMIT).expect("connect");
    assert_eq!(client.verify().expect("verify").bad, 0);
}
