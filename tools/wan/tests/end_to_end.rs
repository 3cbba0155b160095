//! Real namespaces, real packets. No time and no speed is asserted from below: the machine may be busy.
#![allow(missing_docs)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use dwcp_wan::control::{Request, Status};
use dwcp_wan::link::{self, Link, LinkError, LinkName, TemporaryLink};
use dwcp_wan::namespace::{self, within};
use dwcp_wan::params::{Direction, LinkParams, TraceSource, WayParams};
use dwcp_wan::{needs, traffic};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PROGRAM: &str = env!("CARGO_BIN_EXE_dwcp-wan");
const MS: u64 = 1_000_000;
/// What arrives at all arrives within this.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a packet is waited for that should not come.
const IMPATIENCE: Duration = Duration::from_millis(300);

fn is_skipped() -> bool {
    let missing = needs::missing();
    if !missing.is_empty() {
        println!("skipped: no WAN link: it needs {}", missing.join("; "));
    }
    !missing.is_empty()
}

fn up(test: &str, params: &LinkParams) -> TemporaryLink {
    let link = link::up(&own_name(test), None, params, 1500, Path::new(PROGRAM));
    link.unwrap_or_else(|error| panic!("{error}")).into()
}

fn show(link: &Link) -> Status {
    link::ask(&link.name, &Request::Show).unwrap()
}

fn round_trip(link: &Link, limit: Duration) -> Option<Duration> {
    traffic::round_trips(link, 1, limit).unwrap()[0]
}

fn own_name(test: &str) -> LinkName {
    format!("test-{test}-{}", std::process::id())
        .parse()
        .unwrap()
}

fn both(change: impl Fn(&mut WayParams)) -> LinkParams {
    let mut params = LinkParams::default();
    params.ways.iter_mut().for_each(change);
    params
}

fn is_gone(name: &LinkName) -> bool {
    let namespaces = name.namespaces();
    !name.folder().exists()
        && !namespaces
            .iter()
            .any(|namespace| namespace::path(namespace).exists())
        && !link::list().contains(name)
}

fn dwcp_wan(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

#[test]
fn delay_and_rate_hold_and_nothing_is_left() {
    if is_skipped() {
        return;
    }
    let params = both(|way| {
        way.rate_bit_per_s = Some(20_000_000);
        way.delay_ns = 20 * MS;
    });
    let link = up("rate", &params);
    for trip in traffic::round_trips(&link, 5, PATIENCE).unwrap() {
        assert!(trip.unwrap() >= Duration::from_millis(40), "{trip:?}");
    }
    let transfer = traffic::transfer(&link, "cubic", Duration::from_secs(2)).unwrap();
    let goodput = transfer.goodput_mbit_per_s();
    assert!(transfer.bytes > 0 && goodput <= 20.0, "{goodput} Mbit/s");
    let status = show(&link);
    assert_eq!(status.pid, link.pid);
    assert!(status.ways[0].counters.passed_bytes >= transfer.bytes);
    let name = link.name.clone();
    drop(link);
    assert!(is_gone(&name));
    assert!(
        !link::down(&name).unwrap(),
        "a second time there is nothing"
    );
}

#[test]
fn a_running_link_is_changed_and_cut() {
    if is_skipped() {
        return;
    }
    let link = up("set", &both(|way| way.delay_ns = 2 * MS));
    assert!(round_trip(&link, PATIENCE).is_some());
    let name = link.name.to_string();
    let output = dwcp_wan(&["set", &name, "--delay", "60ms", "--back-delay", "30ms"]);
    assert!(output.status.success(), "{output:?}");
    assert!(round_trip(&link, PATIENCE).unwrap() >= Duration::from_millis(90));

    assert!(
        dwcp_wan(&["cut", &name, "--way", "b-to-a"])
            .status
            .success()
    );
    assert_eq!(round_trip(&link, IMPATIENCE), None);
    let [there, back] = show(&link).ways;
    assert_eq!((there.counters.dropped_by_cut, there.is_cut), (0, false));
    assert_eq!((back.counters.dropped_by_cut, back.is_cut), (1, true));
    assert!(dwcp_wan(&["mend", &name]).status.success());
    assert!(round_trip(&link, PATIENCE).is_some());

    assert!(dwcp_wan(&["cut", &name, "--for", "400ms"]).status.success());
    let deadline = Instant::now() + PATIENCE;
    while round_trip(&link, IMPATIENCE).is_none() {
        assert!(Instant::now() < deadline, "the cut does not end");
    }
    let shown = dwcp_wan(&["show", &name, "--json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["status"]["ways"][0]["params"]["delay_ns"], 60 * MS);
    assert_eq!(shown["link"]["addresses"][1], "10.213.8.2");
}

#[test]
fn a_killed_emulator_leaves_nothing_that_down_does_not_take() {
    if is_skipped() {
        return;
    }
    let name = own_name("killed");
    let up = ["up", "--name", &name.to_string(), "--rate", "10mbit"];
    let output = dwcp_wan(&up);
    assert!(output.status.success(), "{output:?}");
    let again = dwcp_wan(&up);
    assert_eq!(again.status.code(), Some(1), "there is one of that name");
    let link = link::find(&name).unwrap();
    kill(Pid::from_raw(link.pid.cast_signed()), Signal::SIGKILL).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !matches!(
        link::ask(&name, &Request::Show),
        Err(LinkError::Ended { .. })
    ) {
        assert!(Instant::now() < deadline, "it still answers");
    }
    assert!(dwcp_wan(&["down", &name.to_string()]).status.success());
    assert!(is_gone(&name));
}

#[test]
fn run_gives_the_commands_exit_code_and_takes_the_link_down() {
    if is_skipped() {
        return;
    }
    let name = own_name("run");
    let script = "ip netns exec $DWCP_WAN_A_NETNS ip -o addr show wan0 | grep -q $DWCP_WAN_B_ADDRESS \
                  && ip netns exec $DWCP_WAN_B_NETNS ip -o addr show wan0 | grep -q $DWCP_WAN_A_ADDRESS \
                  && exit 7";
    let text = name.to_string();
    let output = dwcp_wan(&["run", "--name", &text, "--", "sh", "-c", script]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert!(is_gone(&name));

    // As shells have it.
    let plain = tempfile::NamedTempFile::new().unwrap();
    let plain = plain.path().to_str().unwrap();
    for (command, code) in [("/no/such/command", 127), (plain, 126), ("/", 126)] {
        let output = dwcp_wan(&["run", "--name", &text, "--", command]);
        assert_eq!(output.status.code(), Some(code), "{command}: {output:?}");
        assert!(is_gone(&name));
    }
}

#[test]
fn run_takes_the_link_down_when_it_is_told_to_end() {
    if is_skipped() {
        return;
    }
    for signal in [
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGHUP,
    ] {
        ends_by(signal);
    }
}

fn ends_by(signal: Signal) {
    let name = own_name("ended");
    let mut command = Command::new(PROGRAM);
    let arguments = [
        "run",
        "--name",
        &name.to_string(),
        "--",
        "sh",
        "-c",
        "echo up; exec sleep 60",
    ];
    let mut run = command
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = [0; 3];
    run.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    kill(Pid::from_raw(run.id().cast_signed()), signal).unwrap();
    let status = run.wait().unwrap();
    assert_eq!(status.code(), Some(128 + signal as i32));
    assert!(is_gone(&name));
}

/// Every byte is its own position's: a segment in the wrong place is found.
fn pattern(length: usize) -> Vec<u8> {
    let words = (0..length.div_ceil(8) as u64).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    words.flat_map(u64::to_le_bytes).take(length).collect()
}

#[test]
fn tcp_arrives_whole_through_loss_jitter_and_reordering() {
    if is_skipped() {
        return;
    }
    let mut params = both(|way| {
        way.delay_ns = 2 * MS;
        way.jitter_ns = MS;
        way.loss = 0.01;
        way.reorder = 0.01;
    });
    params.ways[0].rate_bit_per_s = Some(200_000_000);
    let link = up("whole", &params);
    let sent = pattern((4 << 20) + 123);
    let [a, b] = &link.namespaces;
    let listener = within(b, || TcpListener::bind("10.213.8.2:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let received = thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut received = vec![];
            stream.read_to_end(&mut received).unwrap();
            received
        });
        let mut stream = within(a, || TcpStream::connect(address)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        receiver.join().unwrap()
    });
    assert!(
        received == sent,
        "{} bytes of {}",
        received.len(),
        sent.len()
    );
    let counters = show(&link).ways[0].counters;
    assert!(
        counters.dropped_by_loss > 0 && counters.held_back > 0,
        "{counters:?}"
    );
}

#[test]
fn a_link_beside_another_is_a_way_of_its_own() {
    if is_skipped() {
        return;
    }
    let first = up("first", &LinkParams::default());
    let params = both(|way| way.delay_ns = 20 * MS);
    let name = own_name("second");
    let beside = |other: &LinkName| link::up(&name, Some(other), &params, 1500, Path::new(PROGRAM));
    let missing = beside(&own_name("none")).unwrap_err();
    assert!(
        missing.to_string().contains("there is no link"),
        "{missing}"
    );
    let second = beside(&first.name).unwrap();
    assert_eq!(second.namespaces, first.namespaces);
    assert!(round_trip(&second, PATIENCE).unwrap() >= Duration::from_millis(40));
    // A cut takes one of the ways.
    let both_ways = Request::Cut {
        ways: Direction::BOTH.to_vec(),
        for_ns: None,
    };
    link::ask(&first.name, &both_ways).unwrap();
    assert!(round_trip(&first, Duration::from_millis(100)).is_none());
    assert!(round_trip(&second, PATIENCE).is_some());
    let third = link::up(
        &own_name("third"),
        Some(&name),
        &params,
        1500,
        Path::new(PROGRAM),
    );
    let third = third.unwrap_err().to_string();
    assert!(third.contains("itself beside"), "{third}");
    // It goes with the namespaces.
    let first_name = first.name.clone();
    drop(first);
    assert!(is_gone(&first_name) && is_gone(&name));
}

#[test]
fn a_link_beside_another_goes_alone() {
    if is_skipped() {
        return;
    }
    let first = up("stays", &LinkParams::default());
    let name = own_name("goes");
    let params = LinkParams::default();
    for _ in 0..2 {
        // The same addresses are free again.
        let again = link::up(&name, Some(&first.name), &params, 1500, Path::new(PROGRAM)).unwrap();
        assert_eq!(again.addresses[0], "10.213.9.1");
        assert!(link::down(&name).unwrap() && is_gone(&name));
    }
    assert!(round_trip(&first, PATIENCE).is_some());
}

/// Numbers of the packets that arrive, of 1000.
fn survivors(params: &LinkParams) -> Vec<u32> {
    let link = up("seed", params);
    let [a, b] = &link.namespaces;
    let sender = within(a, || UdpSocket::bind("10.213.8.1:0")).unwrap();
    let receiver = within(b, || UdpSocket::bind("10.213.8.2:0")).unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let address = receiver.local_addr().unwrap();
    let mut arrived = vec![];
    for number in 0..1000_u32 {
        sender.send_to(&number.to_le_bytes(), address).unwrap();
        // One by one, so that no buffer is ever full.
        let counters = loop {
            let counters = show(&link).ways[0].counters;
            if counters.packets > u64::from(number) {
                break counters;
            }
        };
        if counters.passed_packets > arrived.len() as u64 {
            let mut payload = [0; 4];
            receiver.recv(&mut payload).unwrap();
            arrived.push(u32::from_le_bytes(payload));
        }
    }
    arrived
}

#[test]
fn the_same_seed_loses_the_same_packets() {
    if is_skipped() {
        return;
    }
    let mut params = both(|way| way.loss = 0.05);
    params.seed = 42;
    let first = survivors(&params);
    assert!((900..990).contains(&first.len()), "{}", first.len());
    assert_eq!(first, survivors(&params));
    params.seed = 43;
    assert_ne!(first, survivors(&params));
}

#[test]
fn an_emulator_whose_folder_is_gone_ends() {
    if is_skipped() {
        return;
    }
    let link = up("orphan", &LinkParams::default());
    std::fs::remove_dir_all(link.name.folder()).unwrap();
    let stat = format!("/proc/{}/stat", link.pid);
    let is_running = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
    let deadline = Instant::now() + PATIENCE;
    while is_running() {
        assert!(Instant::now() < deadline, "it runs on");
        thread::sleep(Duration::from_millis(20));
    }
    let again = link::up(
        &link.name,
        None,
        &LinkParams::default(),
        1500,
        Path::new(PROGRAM),
    );
    assert!(
        matches!(again, Err(LinkError::Exists(_))),
        "its namespaces are left: {again:?}"
    );
}

#[test]
fn a_trace_is_the_rate() {
    if is_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rate.csv");
    std::fs::write(&path, "t_s,mbps\n0,20\n0.5,4\n1.0,12\n").unwrap();
    let trace = TraceSource { path, name: None };
    let link = up("trace", &both(|way| way.trace = Some(trace.clone())));
    let transfer = traffic::transfer(&link, "cubic", Duration::from_secs(3)).unwrap();
    let goodput = transfer.goodput_mbit_per_s();
    // 12 Mbit/s on average; it starts anywhere in the period of 1.5 s.
    assert!(transfer.bytes > 0 && goodput <= 14.0, "{goodput} Mbit/s");
}
