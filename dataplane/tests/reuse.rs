//! What the destination's RAM holds already is not sent again: neither after a connection that broke,
//! nor when the memory was in use before.

mod common;

use std::time::Duration;

use common::proxy::{CONTROL, Harm, Plan, Proxy, Way};
use common::{Random, TestGuest, TestNode, TwoNodes, busy, log, settings, wait};
use dwcp_api::{
    MigrationId, MigrationReport, RunResult, StoreRequest, StoreState, TransferSettings,
};
use dwcp_testbed::synthetic::SyntheticOptions;
use dwcp_wire::Control;

fn reusing() -> TransferSettings {
    TransferSettings {
        reuse: true,
        ..settings()
    }
}

/// 64 MiB that change slowly.
fn calm(seed: u64, incoming: bool) -> SyntheticOptions {
    SyntheticOptions {
        rate: 50,
        seed,
        ..busy(incoming)
    }
}

fn migrate(from: &TestNode, to: &String, id: u128, settings: TransferSettings) -> MigrationReport {
    let id = MigrationId(id);
    from.node
        .start_migration(id, "vm", to, settings, false)
        .unwrap();
    wait(&from.node, id)
}

/// Waits until the destination has seen the end of the first attempt, too.
fn given_up(destination: &TestNode) {
    common::until("the destination has given up", || {
        let there = destination.node.migration(MigrationId(1));
        there.is_none_or(|there| there.status().report.is_some())
    });
}

fn check_moved(nodes: &TwoNodes, report: &MigrationReport, place: &str) {
    assert_eq!(
        report.result,
        RunResult::Completed,
        "{place}: {}",
        report.reason
    );
    assert!(report.verified, "{place}");
    assert!(nodes.new.is_running() && !nodes.old.is_running(), "{place}");
    assert_eq!(nodes.new.bad_pages(), 0, "{place}");
}

/// Bytes of a transfer that nothing breaks.
fn whole_bytes(seed: u64) -> u64 {
    let nodes = TwoNodes::start(&reusing(), |incoming| calm(seed, incoming));
    let report = migrate(&nodes.a, &nodes.b.address, 1, reusing());
    check_moved(&nodes, &report, "whole");
    assert_eq!(report.pages.known, 0);
    report.wire_bytes
}

#[test]
fn a_transfer_that_broke_off_goes_on_where_it_was() {
    log::keep();
    let whole = whole_bytes(1);
    let mut broken = 0;
    for seed in 0..12 {
        let random = &mut Random::new(seed);
        let nodes = TwoNodes::start(&reusing(), |incoming| calm(1, incoming));
        let plan = Plan {
            connections: 1..3,
            way: Way::ToDestination,
            harm: Harm::Sever {
                bytes: random.below(whole / 2),
            },
        };
        let proxy = Proxy::start(&nodes.b.address, plan);
        let first = migrate(&nodes.a, &proxy.address, 1, reusing());
        let place = format!("seed {seed}: {}", first.reason);
        if first.result == RunResult::Completed {
            continue;
        }
        broken += 1;
        assert!(nodes.old.is_running(), "{place}");
        given_up(&nodes.b);
        let second = migrate(&nodes.a, &nodes.b.address, 2, reusing());
        check_moved(&nodes, &second, &place);
        // What was under way when it broke is lost: the window, at most.
        let window = settings().window_bytes;
        let both = first.wire_bytes + second.wire_bytes;
        assert!(
            both < whole + window + whole / 10,
            "{place}: {both} bytes, whole {whole}"
        );
        let held = first.wire_bytes.saturating_sub(window) / 4096;
        assert!(
            second.pages.known >= held * 9 / 10,
            "{place}: {:?}",
            second.pages
        );
    }
    assert!(broken >= 4, "{broken}");
}

#[test]
fn without_reuse_nothing_stays_of_a_broken_transfer() {
    let nodes = TwoNodes::start(&settings(), |incoming| calm(1, incoming));
    let plan = Plan {
        connections: 1..3,
        way: Way::ToDestination,
        harm: Harm::Sever { bytes: 10 << 20 },
    };
    let proxy = Proxy::start(&nodes.b.address, plan);
    let first = migrate(&nodes.a, &proxy.address, 1, settings());
    assert_eq!(first.result, RunResult::Aborted, "{}", first.reason);
    given_up(&nodes.b);
    let second = migrate(&nodes.a, &nodes.b.address, 2, reusing());
    check_moved(&nodes, &second, &first.reason);
    assert_eq!(second.pages.known, 0);
}

/// The waiting VM's RAM holds pages of the guest, pages of another one, and pages where the guest has
/// none.
#[test]
fn foreign_memory_is_told_apart() {
    for seed in 0..5 {
        let random = &mut Random::new(seed);
        let nodes = TwoNodes::start(&reusing(), |incoming| calm(seed, incoming));
        let ram = |attachment| {
            dwcp_dataplane::vmm::open(attachment)
                .unwrap()
                .ram()
                .unwrap()
        };
        let (from, to) = (ram(&nodes.old.attachment), ram(&nodes.new.attachment));
        let (from, to) = (&from.blocks()[0], &to.blocks()[0]);
        let mut copied = 0;
        for page in 0..from.pages() {
            let mut content = [0; 4096];
            match random.below(4) {
                0 => {
                    from.read_page(page, &mut content);
                    to.write_page(page, &content);
                    copied += u64::from(content != [0; 4096]);
                }
                1 => to.write_page(page, &[0x5E; 4096]),
                2 => to.write_page(page, &content),
                _ => {}
            }
        }
        let report = migrate(&nodes.a, &nodes.b.address, 1, reusing());
        let there = wait(&nodes.b.node, MigrationId(1));
        let place = format!("seed {seed}: {}", there.reason);
        check_moved(&nodes, &report, &place);
        // The guest has written some of them since.
        let known = report.pages.known;
        assert!(
            known <= copied && known > copied * 8 / 10,
            "{place}: {known} of {copied}"
        );
    }
}

/// The VM leaves a node, works elsewhere, and comes back.
#[test]
fn a_vm_that_comes_back_sends_what_changed() {
    log::keep();
    let nodes = TwoNodes::start(&reusing(), |incoming| calm(3, incoming));
    let first = migrate(&nodes.a, &nodes.b.address, 1, reusing());
    check_moved(&nodes, &first, "there");
    wait_kept(&nodes, ["a", "b"]);
    nodes.a.node.detach("vm").unwrap();
    let back = TestGuest::start(nodes.folder(), "back", &calm(3, true));
    nodes.a.node.attach("vm", back.attachment.clone()).unwrap();
    let second = migrate(&nodes.b, &nodes.a.address, 2, reusing());
    assert_eq!(second.result, RunResult::Completed, "{}", second.reason);
    assert!(back.is_running() && !nodes.new.is_running());
    assert_eq!(back.bad_pages(), 0);
    let (there, here) = (first.wire_bytes, second.wire_bytes);
    assert!(here < there / 4, "{here} bytes, {there} on the way there");
    is_by_bits(&second);

    // And there again: each node has what it needs for it from the time before.
    wait_kept(&nodes, ["b", "a"]);
    nodes.b.node.detach("vm").unwrap();
    let again = TestGuest::start(nodes.folder(), "again", &calm(3, true));
    nodes.b.node.attach("vm", again.attachment.clone()).unwrap();
    // A bit rots meanwhile: all of its chunk is sent.
    rot(&nodes.folder().join("b/store"));
    let third = migrate(&nodes.a, &nodes.b.address, 3, reusing());
    assert_eq!(third.result, RunResult::Completed, "{}", third.reason);
    assert_eq!(again.bad_pages(), 0);
    assert!(is_by_bits(&third) < is_by_bits(&second));
}

/// Round 0 does not wait for what the destination has of its baseline; of a chunk that it does not have after all, nothing is
/// lost.
#[test]
fn pages_are_sent_while_answers_are_on_their_way() {
    let nodes = TwoNodes::start(&reusing(), |incoming| calm(4, incoming));
    let first = migrate(&nodes.a, &nodes.b.address, 1, reusing());
    check_moved(&nodes, &first, "there");
    wait_kept(&nodes, ["a", "b"]);
    rot(&nodes.folder().join("a/store"));
    nodes.a.node.detach("vm").unwrap();
    let back = TestGuest::start(nodes.folder(), "back", &calm(4, true));
    nodes.a.node.attach("vm", back.attachment.clone()).unwrap();
    let plan = Plan {
        connections: CONTROL..CONTROL + 1,
        way: Way::ToSource,
        harm: Harm::Before {
            message: |message| matches!(message, Control::Found(_)),
            act: |_| std::thread::sleep(Duration::from_millis(700)),
        },
    };
    let proxy = Proxy::start(&nodes.a.address, plan);
    let second = migrate(&nodes.b, &proxy.address, 2, reusing());
    assert_eq!(second.result, RunResult::Completed, "{}", second.reason);
    assert!(proxy.has_harmed() && second.verified);
    assert_eq!(back.bad_pages(), 0);
    assert!(is_by_bits(&second) > 0);
    // The chunk that rotted was left out of the first round.
    assert!(
        second.round_reports[0].suspect_pages > 0,
        "{:?}",
        second.round_reports
    );
}

/// Flips a bit of a page that the baseline there has.
fn rot(store: &std::path::Path) {
    let files = std::fs::read_dir(store).unwrap().flatten();
    let mut paths = files.map(|file| file.path());
    let baseline = paths.find(|path| path.extension().is_some_and(|end| end == "baseline"));
    let baseline = baseline.unwrap();
    let mut bytes = std::fs::read(&baseline).unwrap();
    let data = (64 << 10..bytes.len()).find(|at| bytes[*at] != 0).unwrap();
    bytes[data + 8] ^= 1;
    std::fs::write(&baseline, bytes).unwrap();
}

/// What has not changed was named by bits, and was there: so many MiB.
fn is_by_bits(report: &MigrationReport) -> u64 {
    let text = report.notes.join("\n");
    let (_, rest) = text
        .split_once("MiB have not changed since the VM left there")
        .expect(&text);
    let (_, rest) = rest.split_once("the destination has ").unwrap();
    let there: u64 = rest.split(' ').next().unwrap().parse().unwrap();
    assert!(there > 0, "{text}");
    assert!(!text.contains("that it was asked for"), "{text}");
    there
}

/// The first node has the baseline of the VM that left it, the second what it was when it came.
fn wait_kept(nodes: &TwoNodes, [left, came]: [&str; 2]) {
    let has = |node: &str, end: &str| {
        let store = nodes.folder().join(node).join("store");
        let files = std::fs::read_dir(store).unwrap().flatten();
        let mut names = files.map(|file| file.file_name());
        names.any(|name| name.to_string_lossy().ends_with(end))
    };
    common::until("what the way back needs is kept", || {
        has(left, ".baseline") && has(came, ".arrival")
    });
}

/// The node that a VM goes to has the disk image that it works on, and the RAM of a VM like it.
#[test]
fn pages_of_others_are_found_by_their_content() {
    let nodes = TwoNodes::start(&reusing(), |incoming| calm(5, incoming));
    let layout = dwcp_dataplane::vmm::open(&nodes.old.attachment)
        .unwrap()
        .ram()
        .unwrap();
    let ram = &layout.blocks()[0];
    // Every third page, in another order, and behind a block that is nobody's.
    let image = nodes.folder().join("disk.raw");
    let mut blocks = vec![[0x77; 4096]];
    for page in (0..ram.pages()).rev().step_by(3) {
        let mut content = [0; 4096];
        ram.read_page(page, &mut content);
        blocks.push(content);
    }
    std::fs::write(&image, blocks.as_flattened()).unwrap();
    let ask = |request| nodes.b.node.ask_store(&request).unwrap();
    ask(StoreRequest::AddImage {
        path: image.clone(),
    });
    common::until("the image is indexed", || {
        let entries = ask(StoreRequest::List);
        entries.iter().all(|entry| entry.state == StoreState::Ready) && entries.len() == 1
    });
    // Its blocks are not what the index says: they are sent.
    let mut bad = blocks.clone();
    bad[1..100].iter_mut().for_each(|block| block[17] ^= 1);
    std::fs::write(&image, bad.as_flattened()).unwrap();
    let report = migrate(&nodes.a, &nodes.b.address, 1, reusing());
    check_moved(&nodes, &report, "with an image");
    let there = blocks[100..]
        .iter()
        .filter(|block| **block != [0; 4096])
        .count() as u64;
    let known = report.pages.known;
    assert!(
        known <= there && known > there * 8 / 10,
        "{known} of {there}"
    );
    let notes = report.notes.join(", ");
    assert!(notes.contains("MiB that it was asked for"), "{notes}");
}

/// Nothing breaks, and nothing is heard: as if a link were cut in its middle.
#[test]
fn a_silent_link_is_a_lost_connection_too() {
    let settings = TransferSettings {
        peer_silence_ms: 500,
        ..reusing()
    };
    let nodes = TwoNodes::start(&settings, |incoming| calm(1, incoming));
    let plan = Plan {
        connections: 0..1,
        way: Way::ToSource,
        harm: Harm::Before {
            message: |message| matches!(message, Control::RoundReport { .. }),
            act: |_| std::thread::sleep(Duration::from_secs(2)),
        },
    };
    let proxy = Proxy::start(&nodes.b.address, plan);
    let first = migrate(&nodes.a, &proxy.address, 1, settings.clone());
    assert_eq!(first.result, RunResult::Aborted, "{}", first.reason);
    assert!(first.connection_lost, "{}", first.reason);
    given_up(&nodes.b);
    let second = migrate(&nodes.a, &nodes.b.address, 2, settings);
    check_moved(&nodes, &second, &first.reason);
    assert!(!second.connection_lost);
    assert!(second.pages.known > 0, "{:?}", second.pages);
}
