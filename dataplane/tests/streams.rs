//! Data streams that break while a guest is moved: they are replaced, and nothing is lost.

mod common;

use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use common::pki::{peer, with_certificate};
use common::proxy::{self, Harm, Plan, Progress, Proxy, Way};
use common::{Random, TwoNodes, busy, log, settings, wait};
use dwcp_api::{
    Codec, IoPath, MigrationId, MigrationReport, RunResult, TlsChoice, TransferSettings,
};
use dwcp_wire::Control;

const ID: MigrationId = MigrationId(7);

/// Moves a busy guest by way of a proxy with this plan.
fn moves(settings: &TransferSettings, plan: &Plan) -> (MigrationReport, TwoNodes, Proxy) {
    let (nodes, proxy) = begins(settings, plan);
    (wait(&nodes.a.node, ID), nodes, proxy)
}

/// Begins to.
fn begins(settings: &TransferSettings, plan: &Plan) -> (TwoNodes, Proxy) {
    log::keep();
    let is_tls = settings.tls == TlsChoice::On;
    let nodes = TwoNodes::start_with(settings, busy, |folder, options| match is_tls {
        true => with_certificate(folder, options),
        false => options,
    });
    let proxy = Proxy::start(&nodes.b.address, plan.clone());
    let destination = peer("b", &proxy.address);
    let start = nodes
        .a
        .node
        .start_migration(ID, "vm", destination, settings.clone(), false);
    start.unwrap();
    (nodes, proxy)
}

fn check_moved(report: &MigrationReport, nodes: &TwoNodes, place: &str) {
    let place = format!("{place}: {} {:?}", report.reason, report.notes);
    assert_eq!(report.result, RunResult::Completed, "{place}");
    assert!(report.verified, "{place}");
    assert!(nodes.new.is_running() && !nodes.old.is_running(), "{place}");
    assert_eq!(nodes.new.bad_pages(), 0, "{place}");
}

/// Given back, and whole.
fn check_stays(report: &MigrationReport, nodes: &TwoNodes) {
    assert_eq!(report.result, RunResult::Aborted, "{}", report.reason);
    assert!(nodes.old.is_running() && !nodes.new.is_running());
    assert_eq!(nodes.old.bad_pages(), 0);
}

/// While the guest runs the other side may be silent for half a minute.
fn patient() -> TransferSettings {
    TransferSettings {
        peer_silence_ms: 30_000,
        ..settings()
    }
}

/// Something is done before a word on the control connection goes on.
const fn at_word(way: Way, message: fn(&Control) -> bool, act: fn(&Progress)) -> Plan {
    Plan {
        connections: proxy::CONTROL..proxy::CONTROL + 1,
        way,
        harm: Harm::Before { message, act },
    }
}

#[test]
fn a_stream_that_breaks_before_all_are_there_is_replaced() {
    // Its hello does not arrive; it arrives, and that is all.
    for bytes in [1, 88] {
        let (report, nodes, proxy) = cut_first(TlsChoice::Off, bytes);
        check_moved(&report, &nodes, &format!("{bytes} bytes"));
        assert!(proxy.has_harmed());
    }
}

#[test]
fn a_stream_whose_handshake_breaks_is_dialled_again() {
    // The device connection may have come first, which is not dialled again.
    let is_moved = (0..4).any(|_| {
        let (report, nodes, proxy) = cut_first(TlsChoice::On, 100);
        assert!(proxy.has_harmed());
        if report.result == RunResult::Completed {
            check_moved(&report, &nodes, "handshake");
        }
        report.result == RunResult::Completed
    });
    assert!(is_moved);
}

/// Cuts the first connection after the control connection, once.
fn cut_first(tls: TlsChoice, bytes: u64) -> (MigrationReport, TwoNodes, Proxy) {
    let settings = TransferSettings {
        streams: 4,
        tls,
        ..settings()
    };
    let first = proxy::data(0);
    let plan = Plan {
        connections: first..first + 1,
        way: Way::ToDestination,
        harm: Harm::Cut { bytes },
    };
    moves(&settings, &plan)
}

/// Cuts data streams after seeded numbers of bytes.
fn cut(tls: TlsChoice, io: IoPath, seeds: std::ops::Range<u64>) -> u32 {
    let mut replaced = 0;
    for seed in seeds {
        let random = &mut Random::new(seed);
        let window = Codec::Window {
            level: 1,
            window_bytes: 1 << 20,
        };
        let codec = random.pick(&[Codec::Raw, Codec::Raw, Codec::Zstd { level: 1 }, window]);
        let settings = TransferSettings {
            tls,
            io,
            codec,
            streams: 4,
            ..settings()
        };
        let first = proxy::data(0);
        let plan = Plan {
            // Under TLS control comes first, and device state carries less.
            connections: match tls {
                TlsChoice::On => 1..6,
                _ => first..first + random.below(4) as usize + 1,
            },
            way: Way::ToDestination,
            harm: Harm::Cut {
                bytes: 400_000 + random.below(12 << 20),
            },
        };
        let (report, nodes, proxy) = moves(&settings, &plan);
        let place = format!("seed {seed}, {plan:?}, {codec:?}, {io:?}");
        check_moved(&report, &nodes, &place);
        let there = wait(&nodes.b.node, ID);
        // A break that comes late is nobody's concern.
        if proxy.has_harmed() && report.streams_replaced > 0 {
            assert_eq!(there.result, RunResult::Completed, "{place}");
            assert!(
                report
                    .notes
                    .iter()
                    .any(|note| note.contains("was replaced"))
            );
        }
        replaced += report.streams_replaced;
    }
    replaced
}

#[test]
fn a_stream_that_breaks_is_replaced_and_nothing_is_lost() {
    for io in [IoPath::Poll, IoPath::Auto] {
        let replaced = cut(TlsChoice::Off, io, 0..8);
        assert!(replaced >= 4, "{io:?}: {replaced}");
    }
}

#[test]
fn a_stream_of_records_that_breaks_is_replaced_and_nothing_is_lost() {
    for io in [IoPath::Poll, IoPath::Auto] {
        let replaced = cut(TlsChoice::On, io, 0..6);
        assert!(replaced >= 3, "{io:?}: {replaced}");
    }
}

fn round_ends(message: &Control, of: impl Fn(u32, bool) -> bool) -> bool {
    matches!(message, Control::RoundEnd { round, paused, .. } if of(*round, *paused))
}

fn report_comes(message: &Control, of: impl Fn(u32) -> bool) -> bool {
    matches!(message, Control::RoundReport { round, .. } if of(*round))
}

/// Its name, and the message before which it is.
type Moment = (&'static str, Way, fn(&Control) -> bool);

/// At each turn of a migration, also while the guest is paused.
#[test]
fn a_stream_may_break_in_any_round_and_in_the_pause() {
    let moments: [Moment; 7] = [
        ("end of round 0", Way::ToDestination, |m| {
            round_ends(m, |round, _| round == 0)
        }),
        ("end of round 1", Way::ToDestination, |m| {
            round_ends(m, |round, _| round == 1)
        }),
        ("report of round 0", Way::ToSource, |m| {
            report_comes(m, |round| round == 0)
        }),
        ("report of round 1", Way::ToSource, |m| {
            report_comes(m, |round| round == 1)
        }),
        ("switchover", Way::ToDestination, |m| {
            matches!(m, Control::SwitchoverStart)
        }),
        ("end of the paused round", Way::ToDestination, |m| {
            round_ends(m, |_, paused| paused)
        }),
        ("device state is loaded", Way::ToSource, |m| {
            matches!(m, Control::DeviceLoaded)
        }),
    ];
    for (name, way, message) in moments {
        for io in [IoPath::Poll, IoPath::Auto] {
            let act = |progress: &Progress| progress.close(|number| number == proxy::data(1));
            let plan = Plan {
                connections: proxy::CONTROL..proxy::CONTROL + 1,
                way,
                harm: Harm::Before { message, act },
            };
            let settings = TransferSettings { io, ..settings() };
            let (report, nodes, proxy) = moves(&settings, &plan);
            check_moved(&report, &nodes, &format!("{name}, {io:?}"));
            assert!(proxy.has_harmed(), "{name}");
        }
    }
}

/// Nobody says that a stream is gone: it only takes nothing any more.
#[test]
fn a_stream_that_swallows_is_replaced() {
    let settings = TransferSettings {
        peer_silence_ms: 1500,
        ..settings()
    };
    let plan = Plan {
        connections: proxy::data(1)..proxy::data(2),
        way: Way::ToDestination,
        harm: Harm::Swallow { bytes: 4 << 20 },
    };
    let (report, nodes, proxy) = moves(&settings, &plan);
    assert!(proxy.has_harmed());
    check_moved(&report, &nodes, "swallowed");
    assert_eq!(report.streams_replaced, 1);
}

#[test]
fn a_stream_that_cannot_be_replaced_ends_the_migration_at_the_source() {
    let settings = TransferSettings {
        peer_silence_ms: 1000,
        ..settings()
    };
    let plan = Plan {
        connections: proxy::data(1)..proxy::data(2),
        way: Way::ToDestination,
        harm: Harm::Last { bytes: 4 << 20 },
    };
    let (report, nodes, _proxy) = moves(&settings, &plan);
    assert!(
        report.reason.contains("could not be replaced in 1000 ms"),
        "{}",
        report.reason
    );
    assert!(report.connection_lost);
    check_stays(&report, &nodes);
}

#[test]
fn in_the_pause_the_guest_does_not_wait_long_for_a_stream() {
    let plan = at_word(
        Way::ToDestination,
        |message| matches!(message, Control::SwitchoverStart),
        |progress| {
            progress.refuse();
            progress.close(|number| number == proxy::data(1));
        },
    );
    // The stream may have carried all that it was to carry before it was closed: then nothing waits for it.
    let waits = (0..8).any(|_| {
        let (report, nodes, _proxy) = moves(&patient(), &plan);
        if report.result == RunResult::Completed {
            return false;
        }
        let reason = "could not be replaced in 2000 ms";
        assert!(report.reason.contains(reason), "{}", report.reason);
        check_stays(&report, &nodes);
        true
    });
    assert!(waits);
}

/// A way that carries nothing any more and does not say so. The destination may be silent for half a minute, but not while
/// the guest stands.
#[test]
fn in_the_pause_the_guest_does_not_wait_long_for_a_word() {
    let plan = at_word(
        Way::ToSource,
        |message| matches!(message, Control::DeviceLoaded),
        |_| loop {
            std::thread::park();
        },
    );
    let (report, nodes, proxy) = moves(&patient(), &plan);
    assert!(proxy.has_harmed());
    let reason = &report.reason;
    let silent_ms = reason
        .strip_prefix("destination silent for ")
        .and_then(|rest| rest.strip_suffix(" ms while the guest stood"))
        .and_then(|ms| ms.parse::<u32>().ok());
    assert!(silent_ms.is_some_and(|ms| ms < 15_000), "{reason}");
    assert!(report.connection_lost);
    check_stays(&report, &nodes);
}

/// One that speaks is waited for, however long what it waits for takes.
#[test]
fn in_the_pause_a_destination_that_speaks_is_waited_for() {
    let plan = at_word(
        Way::ToDestination,
        |message| matches!(message, Control::RoundEnd { paused: true, .. }),
        |_| std::thread::sleep(Duration::from_secs(3)),
    );
    let (report, nodes, proxy) = moves(&patient(), &plan);
    assert!(proxy.has_harmed());
    check_moved(&report, &nodes, "held for 3 s");
    assert!(report.downtime_ms > 3000.0);
}

/// The end of the device connection overtakes the destination's last message.
#[test]
fn the_source_reports_what_a_destination_that_gives_up_says() {
    let settings = TransferSettings {
        bandwidth_limit_mbit: 50,
        ..settings()
    };
    let plan = at_word(
        Way::ToSource,
        |message| matches!(message, Control::Abort { .. }),
        |progress| {
            progress.close(|number| number == proxy::DEVICE);
            std::thread::sleep(Duration::from_millis(40));
        },
    );
    let (nodes, _proxy) = begins(&settings, &plan);
    let is_under_way = || {
        let status = nodes.b.node.status(ID);
        status.is_ok_and(|status| status.progress.wire_bytes > 1 << 20)
    };
    let began = Instant::now();
    while !is_under_way() {
        assert!(began.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    nodes.b.node.cancel(ID).unwrap();
    let report = wait(&nodes.a.node, ID);
    assert_eq!(report.result, RunResult::Aborted, "{}", report.reason);
    assert!(report.reason.contains("cancel"), "{}", report.reason);
    assert!(nodes.old.is_running() && !nodes.new.is_running());
}

/// A way on which the further connections of a migration are carried when all of them are there.
fn all_or_none(destination: &str, further: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let destination = destination.to_owned();
    std::thread::spawn(move || {
        let accept = || listener.accept().unwrap().0;
        carry(accept(), &destination);
        let all: Vec<_> = (0..further).map(|_| accept()).collect();
        all.into_iter()
            .for_each(|source| carry(source, &destination));
    });
    address
}

fn carry(source: TcpStream, destination: &str) {
    let target = TcpStream::connect(destination).unwrap();
    let back = (target.try_clone().unwrap(), source.try_clone().unwrap());
    for (mut from, mut to) in [(source, target), back] {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
}

/// A handshake needs answers: one after the other would wait for ever.
#[test]
fn all_connections_are_made_at_once_and_resume() {
    let settings = TransferSettings {
        tls: TlsChoice::On,
        streams: 4,
        ..settings()
    };
    let nodes = TwoNodes::start_with(&settings, busy, with_certificate);
    let destination = peer("b", &all_or_none(&nodes.b.address, 5));
    let start = nodes
        .a
        .node
        .start_migration(ID, "vm", destination, settings, false);
    start.unwrap();
    let report = wait(&nodes.a.node, ID);
    check_moved(&report, &nodes, "at once");
    assert_eq!(report.tls.unwrap().resumed, 5);
}
