//! Post-copy between two nodes: a guest that outruns its link runs at the destination before its pages are there.

mod common;

use std::time::Duration;

use common::pki::{peer, with_certificate};
use common::proxy::{self, Harm, Plan, Proxy, Way};
use common::{TwoNodes, log, outruns, settings, until, wait};
use dwcp_api::{
    Codec, MigrationId, MigrationReport, NotConverged, PhaseName, PostcopyReport, RunResult,
    TlsChoice, TrackerChoice, TransferSettings, Tune,
};
use dwcp_testbed::synthetic::SyntheticOptions;
use dwcp_wire::Control;

const ID: MigrationId = MigrationId(7);

fn slow() -> TransferSettings {
    TransferSettings {
        bandwidth_limit_mbit: 200,
        if_not_converged: NotConverged::PostCopy,
        ..settings()
    }
}

fn check(nodes: &TwoNodes, report: &MigrationReport) -> PostcopyReport {
    let place = format!("{} {:?}", report.reason, report.notes);
    assert_eq!(report.result, RunResult::Completed, "{place}");
    assert!(report.verified, "{place}");
    let there = wait(&nodes.b.node, ID);
    assert_eq!(there.result, RunResult::Completed, "{}", there.reason);
    assert!(there.verified, "{:?}", there.notes);
    assert_eq!(there.postcopy, report.postcopy);
    assert!(!nodes.old.is_running(), "the source runs on");
    assert!(nodes.new.is_running(), "the destination does not run");
    assert_eq!(nodes.new.bad_pages(), 0);
    assert!(report.downtime_ms > 0.0, "{report:?}");
    report.postcopy.expect("it was post-copied")
}

fn moves(settings: &TransferSettings, change: impl Fn(&TwoNodes)) -> PostcopyReport {
    log::keep();
    let nodes = TwoNodes::start(settings, outruns);
    let (node, there) = (&nodes.a.node, &nodes.b.address);
    node.start_migration(ID, "vm", there, settings.clone(), false)
        .unwrap();
    change(&nodes);
    let report = wait(node, ID);
    // Foretold when all of RAM had been sent once, where that can be.
    if report.tracker == "userfaultfd" {
        let ahead = report.forecast.expect("a forecast");
        assert!(!ahead.converges && ahead.after_round == 0, "{ahead:?}");
    }
    assert!(report.rounds < 10, "{} rounds", report.rounds);
    check(&nodes, &report)
}

#[test]
fn a_guest_that_outruns_its_link_is_post_copied() {
    let postcopy = moves(&slow(), |_| {});
    assert!(postcopy.pages > 1000, "{postcopy:?}");
}

#[test]
fn compressed() {
    let postcopy = moves(
        &TransferSettings {
            codec: Codec::Window {
                level: 1,
                window_bytes: 8 << 20,
            },
            remember_bytes: 16 << 20,
            bandwidth_limit_mbit: 50,
            ..slow()
        },
        |_| {},
    );
    assert!(postcopy.pages > 1000, "{postcopy:?}");
}

/// A tracker that is not exact says nothing of pages that were not written.
#[test]
fn with_fingerprints_everything_follows() {
    let postcopy = moves(
        &TransferSettings {
            tracker: TrackerChoice::Fingerprint,
            ..slow()
        },
        |_| {},
    );
    assert!(postcopy.pages > 10_000, "{postcopy:?}");
}

#[test]
fn when_the_operator_says_so() {
    let settings = TransferSettings {
        if_not_converged: NotConverged::SwitchOver,
        ..slow()
    };
    moves(&settings, |nodes| {
        nodes.a.node.tune(ID, Tune::PostCopy).unwrap();
    });
}

/// What nobody waits for keeps the limit; what somebody waits for passes, and is counted.
#[test]
fn what_follows_the_guest_keeps_the_limit() {
    log::keep();
    let calm = |incoming| SyntheticOptions {
        rate: 50,
        verify_rate: 50,
        ..outruns(incoming)
    };
    let limit = TransferSettings {
        tracker: TrackerChoice::Fingerprint,
        ..slow()
    };
    let nodes = TwoNodes::start(&limit, calm);
    let (node, there) = (&nodes.a.node, &nodes.b.address);
    node.start_migration(ID, "vm", there, limit.clone(), false)
        .unwrap();
    node.tune(ID, Tune::PostCopy).unwrap();
    let postcopy = check(&nodes, &wait(node, ID));
    let least_ms = postcopy.pages * 4096 * 8 / (u64::from(limit.bandwidth_limit_mbit) * 1000);
    assert!(least_ms > 1500, "{postcopy:?}");
    // What was waited for last may not have been paid for.
    let kept = postcopy.fetch_ms > least_ms * 9 / 10;
    assert!(kept, "{postcopy:?}, at least {least_ms} ms");
    assert!(postcopy.fault_p50_us < 20_000, "{postcopy:?}");
}

#[test]
fn a_limit_is_lifted_while_pages_follow() {
    log::keep();
    let limit = TransferSettings {
        tracker: TrackerChoice::Fingerprint,
        ..slow()
    };
    let calm = |incoming| SyntheticOptions {
        rate: 50,
        verify_rate: 50,
        ..outruns(incoming)
    };
    let nodes = TwoNodes::start(&limit, calm);
    let (node, there) = (&nodes.a.node, &nodes.b.address);
    node.start_migration(ID, "vm", there, limit, false).unwrap();
    node.tune(ID, Tune::PostCopy).unwrap();
    until("it is not post-copied", || {
        node.status(ID).unwrap().phase == PhaseName::Postcopy
    });
    // Four minutes.
    node.tune(ID, Tune::BandwidthLimitMbit(2)).unwrap();
    let again = node.tune(ID, Tune::PostCopy).unwrap_err();
    assert!(again.message.contains("in post-copy already"), "{again}");
    node.tune(ID, Tune::BandwidthLimitMbit(0)).unwrap();
    let postcopy = check(&nodes, &wait(node, ID));
    assert!(postcopy.fetch_ms < 60_000, "{postcopy:?}");
}

/// Pages that were zero have memory there, and no digest: they are missing all the same once they are not.
#[test]
fn to_memory_that_was_there_before() {
    log::keep();
    let guest = |incoming| SyntheticOptions {
        prealloc: incoming,
        zero_percent: 60,
        ..outruns(incoming)
    };
    let nodes = TwoNodes::start(&slow(), guest);
    let (node, there) = (&nodes.a.node, &nodes.b.address);
    node.start_migration(ID, "vm", there, slow(), false)
        .unwrap();
    let report = wait(node, ID);
    check(&nodes, &report);
}

/// Moves it by way of a proxy that does `harm` to this link for missing pages.
fn harmed(
    tls: TlsChoice,
    index: u16,
    harm: Harm,
    meanwhile: impl Fn(&TwoNodes, &Proxy),
) -> PostcopyReport {
    log::keep();
    let settings = TransferSettings { tls, ..slow() };
    let is_tls = tls == TlsChoice::On;
    let nodes = TwoNodes::start_with(&settings, outruns, |folder, options| match is_tls {
        true => with_certificate(folder, options),
        false => options,
    });
    let plan = Plan {
        connections: proxy::missing(index)..proxy::missing(index) + 1,
        way: Way::ToDestination,
        harm,
    };
    let proxy = Proxy::start(&nodes.b.address, plan);
    let node = &nodes.a.node;
    node.start_migration(ID, "vm", peer("b", &proxy.address), settings, false)
        .unwrap();
    meanwhile(&nodes, &proxy);
    let report = wait(node, ID);
    assert!(proxy.has_harmed() || is_tls);
    check(&nodes, &report)
}

#[test]
fn a_connection_for_missing_pages_that_breaks_is_replaced() {
    let postcopy = harmed(TlsChoice::Off, 1, Harm::Cut { bytes: 1 << 20 }, |_, _| {});
    assert_eq!(postcopy.breaks, 1);
}

/// The connection of those that somebody waits for.
#[test]
fn the_first_connection_breaks_or_is_damaged_and_is_replaced() {
    let damage = |part| Harm::Flip {
        frame: 5,
        part,
        seed: 4711,
    };
    for harm in [
        Harm::Cut { bytes: 30_000 },
        damage(proxy::Part::Header),
        damage(proxy::Part::Table),
    ] {
        let postcopy = harmed(TlsChoice::Off, 0, harm, |_, _| {});
        assert!(postcopy.breaks >= 1, "{harm:?}: {postcopy:?}");
    }
}

#[test]
fn a_damaged_page_is_not_placed_and_comes_again() {
    let harm = Harm::Flip {
        frame: 3,
        part: proxy::Part::Data,
        seed: 4711,
    };
    let _ = harmed(TlsChoice::Off, 1, harm, |_, _| {});
}

#[test]
fn the_guest_waits_for_a_link_that_is_lost_and_runs_on_when_it_is_back() {
    let harm = Harm::Sever { bytes: 1 << 20 };
    let postcopy = harmed(TlsChoice::Off, 1, harm, |nodes, proxy| {
        let phase = || nodes.a.node.status(ID).unwrap().phase;
        until("the source is cut off", || {
            phase() == PhaseName::PostcopyPaused
        });
        // A guest that waits for a page is neither lost nor given back.
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(phase(), PhaseName::PostcopyPaused);
        assert!(!nodes.old.is_running());
        for node in [&nodes.a.node, &nodes.b.node] {
            let progress = node.status(ID).unwrap().progress;
            let some = 1..progress.pages_in_round;
            assert!(some.contains(&progress.pages_left), "{progress:?}");
            assert!(
                progress.forecast.is_none() && progress.eta_ms.is_some(),
                "{progress:?}"
            );
        }
        let refused = nodes.a.node.cancel(ID).unwrap_err();
        assert!(refused.message.contains("runs"), "{refused}");
        proxy.restore();
    });
    assert!(postcopy.breaks >= 1, "{postcopy:?}");
}

#[test]
fn sealed() {
    let harm = Harm::Cut { bytes: u64::MAX };
    let postcopy = harmed(TlsChoice::On, 1, harm, |_, _| {});
    assert_eq!(postcopy.breaks, 0);
}

/// The connection stands, and one end hears nothing of it any more: the other must learn that, or both wait for ever.
#[test]
fn a_message_that_is_damaged_on_the_way_ends_its_connection() {
    let from_source = |message: &Control| matches!(message, Control::RamRoot { .. });
    let from_destination = |message: &Control| matches!(message, Control::Fetched);
    for (way, message) in [
        (Way::ToDestination, from_source as fn(&Control) -> bool),
        (Way::ToSource, from_destination),
    ] {
        let nodes = TwoNodes::start(&slow(), outruns);
        let plan = Plan {
            connections: proxy::CONTROL..proxy::CONTROL + 1,
            way,
            harm: Harm::Spoil { message },
        };
        let proxy = Proxy::start(&nodes.b.address, plan);
        nodes
            .a
            .node
            .start_migration(ID, "vm", &proxy.address, slow(), false)
            .unwrap();
        let report = wait(&nodes.a.node, ID);
        assert!(proxy.has_harmed());
        check(&nodes, &report);
    }
}
