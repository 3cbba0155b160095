//! The client against a server that plays a script: the order of lines is under our control here,
//! which it never is with a real QEMU.

use dwcp_qmp::{LINE_BYTES_MAX, MigrationStatus, QmpClient, QmpError};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const GREETING: &str = r#"{"QMP":{"version":{"qemu":{"micro":2,"minor":0,"major":10},"package":""},"capabilities":[]}}"#;
const LIMIT: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(60);

/// A connected pair: the client's end, and the server's with its greeting said and
/// `qmp_capabilities` answered by a thread that then plays `script`.
fn play(
    script: impl FnOnce(&mut Server) + Send + 'static,
) -> (Result<QmpClient, QmpError>, JoinHandle<()>) {
    let (near, far) = UnixStream::pair().expect("pair");
    let server = thread::spawn(move || {
        let mut server = Server {
            lines: BufReader::new(far.try_clone().expect("clone")),
            out: far,
        };
        server.say(GREETING);
        server.answer(&json!({}));
        script(&mut server);
    });
    (QmpClient::from_stream(near, LIMIT), server)
}

struct Server {
    lines: BufReader<UnixStream>,
    out: UnixStream,
}

impl Server {
    fn say(&mut self, line: &str) {
        // The client may hang up on purpose.
        let _ = self.out.write_all(format!("{line}\r\n").as_bytes());
    }

    fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("read");
        serde_json::from_str(&line).expect("the client sends JSON")
    }

    fn answer(&mut self, value: &Value) -> Value {
        let heard = self.hear();
        self.say(&json!({ "return": value, "id": heard["id"] }).to_string());
        heard
    }
}

fn event(name: &str, us: u64) -> String {
    json!({ "timestamp": { "seconds": 1, "microseconds": us }, "event": name }).to_string()
}

#[test]
fn events_before_an_answer_are_queued_in_order() {
    let (client, server) = play(|server| {
        server.say(&event("STOP", 1));
        server.say(&event("MIGRATION", 2));
        server.answer(&json!({ "status": "paused", "running": false }));
        server.say(&event("RESUME", 3));
    });
    let mut client = client.expect("connect");
    assert_eq!(client.version().to_string(), "10.0.2");
    assert_eq!(client.query_status().expect("status").status, "paused");
    let resume = client.wait_event_named("RESUME", LIMIT).expect("event");
    assert_eq!(resume.timestamp_us, 1_000_003);
    let names: Vec<String> = (0..2)
        .map(|_| {
            client
                .next_event(LIMIT)
                .expect("event")
                .expect("queued")
                .name
        })
        .collect();
    assert_eq!(names, ["STOP", "MIGRATION"]);
    server.join().expect("server");
    assert!(matches!(
        client.next_event(LIMIT),
        Err(QmpError::Closed { .. })
    ));
}

#[test]
fn a_refusal_carries_qemus_words_and_the_connection_stays() {
    let (client, server) = play(|server| {
        let heard = server.hear();
        let error = json!({ "class": "GenericError", "desc": "not now" });
        server.say(&json!({ "error": error, "id": heard["id"] }).to_string());
        let heard = server.answer(&json!({}));
        assert_eq!(heard["execute"], "stop");
        assert!(heard.get("arguments").is_none());
    });
    let mut client = client.expect("connect");
    match client.cont() {
        Err(QmpError::Command {
            command,
            class,
            desc,
        }) => {
            assert_eq!((command.as_str(), class.as_str()), ("cont", "GenericError"));
            assert_eq!(desc, "not now");
        }
        other => panic!("{other:?}"),
    }
    client.stop().expect("stop");
    server.join().expect("server");
}

#[test]
fn a_late_answer_is_not_taken_for_the_next_one() {
    let (client, server) = play(|server| {
        let first = server.hear();
        let second = server.hear();
        server.say(&json!({ "return": "late", "id": first["id"] }).to_string());
        server.say(&json!({ "return": "right", "id": second["id"] }).to_string());
    });
    let mut client = client.expect("connect");
    client.set_timeout(SHORT);
    assert!(matches!(
        client.execute("slow", Value::Null),
        Err(QmpError::Timeout { .. })
    ));
    client.set_timeout(LIMIT);
    assert_eq!(
        client.execute("next", Value::Null).expect("answer"),
        "right"
    );
    server.join().expect("server");
}

#[test]
fn a_peer_that_goes_away_is_closed_and_quit_is_content() {
    let (client, server) = play(|server| drop(server.hear()));
    let mut client = client.expect("connect");
    client.quit().expect("quit");
    assert!(client.query_status().expect_err("gone").is_closed());
    server.join().expect("server");
}

#[test]
fn hostile_answers_are_errors() {
    let deep = "[".repeat(50_000);
    for said in [
        "nonsense",
        r#"{"return": {}, "id": 99}"#,
        r#"{"return": {}, "error": {"class": "a", "desc": "b"}}"#,
        r#"{"error": {"class": 1}}"#,
        deep.as_str(),
    ] {
        let said = said.to_owned();
        let (client, server) = play(move |server| {
            server.hear();
            server.say(&said);
        });
        let error = client
            .expect("connect")
            .query_status()
            .expect_err("hostile");
        assert!(matches!(error, QmpError::Protocol { .. }), "{error:?}");
        server.join().expect("server");
    }
}

#[test]
fn a_line_without_end_stops_at_the_limit() {
    let (client, server) = play(|server| {
        server.hear();
        let chunk = vec![b' '; 1 << 20];
        for _ in 0..=LINE_BYTES_MAX / chunk.len() {
            // Refused midway: the client has hung up by then.
            let _ = server.out.write_all(&chunk);
        }
    });
    let mut client = client.expect("connect");
    assert!(matches!(
        client.query_status(),
        Err(QmpError::Protocol { .. })
    ));
    drop(client);
    server.join().expect("server");
}

#[test]
fn an_answer_of_another_shape_is_refused() {
    let (client, server) = play(|server| {
        server.answer(&json!({ "status": 5 }));
        server.answer(&json!({ "status": "brand-new", "ram": { "transferred": 7 } }));
        server.answer(&json!({}));
    });
    let mut client = client.expect("connect");
    assert!(matches!(
        client.query_migrate(),
        Err(QmpError::Protocol { .. })
    ));
    let info = client.query_migrate().expect("unknown status is no error");
    assert_eq!(info.status, MigrationStatus::Other);
    assert_eq!(info.ram.map(|ram| ram.transferred), Some(7));
    assert_eq!(
        client.query_migrate().expect("empty").status,
        MigrationStatus::None
    );
    server.join().expect("server");
}

#[test]
fn a_descriptor_travels_with_the_command() {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, RecvMsg, recvmsg};
    use std::io::IoSliceMut;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    let (client, server) = play(|server| {
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let mut bytes = [0_u8; 4096];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let got: RecvMsg<'_, '_, ()> =
            recvmsg(server.out.as_raw_fd(), &mut parts, Some(&mut space), flags).expect("recvmsg");
        let fds: Vec<i32> = got
            .cmsgs()
            .expect("control")
            .flat_map(|control| match control {
                ControlMessageOwned::ScmRights(fds) => fds,
                _ => Vec::new(),
            })
            .collect();
        let count = got.bytes;
        let heard: Value = serde_json::from_slice(&bytes[..count]).expect("json");
        assert_eq!(heard["arguments"]["fdname"], "m");
        // SAFETY: the kernel just gave us this descriptor and nobody else knows it.
        let mut passed = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fds[0]) });
        passed.write_all(b"hello").expect("write");
        server.say(&json!({ "return": {}, "id": heard["id"] }).to_string());
    });
    let mut client = client.expect("connect");
    let (mut ours, theirs) = UnixStream::pair().expect("pair");
    client.getfd("m", theirs.as_fd()).expect("getfd");
    drop(theirs);
    let mut text = String::new();
    ours.read_to_string(&mut text).expect("read");
    assert_eq!(text, "hello");
    server.join().expect("server");
}

#[test]
fn a_missing_socket_and_a_silent_one_are_told_apart() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("qmp");
    assert!(matches!(
        QmpClient::connect(&path, SHORT),
        Err(QmpError::Connect { .. })
    ));
    let _silent = UnixListener::bind(&path).expect("bind");
    assert!(matches!(
        QmpClient::connect(&path, SHORT),
        Err(QmpError::Timeout { .. })
    ));
}
