//! What does not belong on the node's port: each is refused in words of its own, and the node goes
//! on serving.

mod common;

use std::net::Shutdown;

use common::stranger::{Stranger, frame, header_with, hello, offer, unchecked};
use common::{TestGuest, TestNode, log, node, settings, small, wait};
use dwcp_api::{MigrationId, Role, RunResult};
use dwcp_journal::{Record, RecordKind};
use dwcp_wire::{
    AbortCode, Capabilities, Control, FrameKind, HEADER_BYTES, Hello, Offer, RefuseCode,
    StreamHello, StreamRole,
};

/// Growth of this process that two nodes, their guests and good manners explain. A node that
/// believed an announced length would take gigabytes.
const GROWTH_BYTES_MAX: u64 = 256 << 20;

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// First words, and what the log says of them.
fn first_words() -> Vec<(Vec<u8>, &'static str)> {
    let http = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n";
    let versions = Hello {
        version_oldest: 9,
        version_newest: 9,
        ..Hello::own()
    };
    let turned = Hello {
        version_oldest: 2,
        version_newest: 1,
        ..Hello::own()
    };
    let required = Hello {
        required: Capabilities(1 << 63),
        ..Hello::own()
    };
    let token = StreamHello {
        generation: 0,
        token: 12345,
        index: 0,
        role: StreamRole::Data,
    };
    let mut role = token.to_bytes();
    role[18] = 9;
    let mut damaged = hello();
    damaged[9] ^= 1;
    let mut payload = hello();
    payload[HEADER_BYTES + 3] ^= 1;
    let hello_frame = |hello: Hello| frame(FrameKind::Hello, 1, &hello.to_bytes());
    vec![
        (http.to_vec(), "peer does not speak DWCP"),
        (
            hello_frame(versions),
            "no common wire version: peer speaks 9 to 9",
        ),
        (hello_frame(turned), "malformed hello"),
        (
            hello_frame(required),
            "peer requires capability bits 0x8000000000000000",
        ),
        (
            header_with(40, &[0xff; 4]),
            "announces 4294967295 payload bytes",
        ),
        (
            header_with(6, &99_u16.to_le_bytes()),
            "frame of unknown kind 99",
        ),
        (header_with(6, &[0; 2]), "frame of unknown kind 0"),
        (
            header_with(4, &9_u16.to_le_bytes()),
            "frame of wire version 9",
        ),
        (header_with(10, &[1, 0]), "header field flags has value 1"),
        (
            header_with(8, &32_u16.to_le_bytes()),
            "header field stream has value 32",
        ),
        (
            header_with(52, &[1]),
            "header field delta_bytes has value 1",
        ),
        (header_with(59, &[1]), "header field reserved"),
        (damaged, "header checksum is"),
        (payload, "payload checksum of a Hello frame does not match"),
        (
            frame(FrameKind::StreamHello, 1, &token.to_bytes()),
            "no migration has this token",
        ),
        (
            frame(FrameKind::StreamHello, 1, &role),
            "malformed stream hello",
        ),
        (
            frame(FrameKind::Device, 1, b"device"),
            "Device frame before a hello",
        ),
        (frame(FrameKind::Ack, 1, &[]), "Ack frame before a hello"),
        (
            unchecked(&Control::Offer(offer("vm"))),
            "Control frame before a hello",
        ),
        (
            hello()[..70].to_vec(),
            "the other side closed the connection",
        ),
    ]
}

/// What comes after a good hello, and what the log says of it.
fn second_words() -> Vec<(Vec<u8>, &'static str)> {
    let malformed = frame(FrameKind::Control, 2, &[0xff; 40]);
    let mut trailing = unchecked(&Control::Ready)[HEADER_BYTES..].to_vec();
    trailing.push(0);
    let of_bytes = |bytes| {
        let mut offer = offer("vm");
        offer.ram[0].bytes = bytes;
        unchecked(&Control::Offer(offer))
    };
    let of_streams = Offer {
        streams: 33,
        ..offer("vm")
    };
    vec![
        (vec![0x5a; 200], "peer does not speak DWCP"),
        (malformed, "malformed control message"),
        (
            frame(FrameKind::Control, 2, &trailing),
            "1 bytes after the control message",
        ),
        (
            unchecked(&Control::Ready),
            "neither an offer nor a question came first",
        ),
        (hello(), "Hello frame where Control was expected"),
        (of_bytes(4097), "field ram.bytes is out of range (4097)"),
        (of_bytes(1 << 60), "field ram.bytes is out of range"),
        (
            unchecked(&Control::Offer(of_streams)),
            "field streams is out of range (33)",
        ),
    ]
}

/// The node `b` with VMs that wait, and the node `a` with a VM that runs.
struct Scene {
    folder: tempfile::TempDir,
    a: TestNode,
    b: TestNode,
    old: TestGuest,
    new: TestGuest,
}

impl Scene {
    fn new() -> Self {
        log::keep();
        let folder = tempfile::tempdir().unwrap();
        let a = node(folder.path(), "a", &settings());
        let b = node(folder.path(), "b", &settings());
        let old = TestGuest::start(folder.path(), "old", &small(1, false));
        let new = TestGuest::start(folder.path(), "new", &small(1, true));
        a.node.attach("vm", old.attachment.clone()).unwrap();
        b.node.attach("vm", new.attachment.clone()).unwrap();
        Self {
            folder,
            a,
            b,
            old,
            new,
        }
    }

    /// The node still does what it is for.
    fn a_good_migration_succeeds(&self) {
        let id = MigrationId(u128::MAX);
        let started = self
            .a
            .node
            .start_migration(id, "vm", &self.b.address, settings(), false);
        started.unwrap();
        let report = wait(&self.a.node, id);
        assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
        wait(&self.b.node, id);
        assert!(self.new.is_running() && !self.old.is_running());
        assert_eq!(self.new.bad_pages(), 0);
    }
}

#[test]
fn strangers_are_refused_in_words_of_their_own() {
    let scene = Scene::new();
    let before = resident_bytes();
    for (words, why) in first_words() {
        let mut stranger = Stranger::connect(&scene.b);
        stranger.say(&words);
        let _ = stranger.stream.shutdown(Shutdown::Write);
        stranger.expect_refusal(why);
    }
    for (words, why) in second_words() {
        let mut stranger = Stranger::connect(&scene.b);
        stranger.say(&hello());
        let (header, _) = stranger.hear().expect("a reply to a hello");
        assert_eq!(header.kind, FrameKind::HelloReply);
        stranger.say(&words);
        stranger.expect_refusal(why);
    }
    assert_eq!(scene.b.node.migrations().len(), 0);
    let growth = resident_bytes().saturating_sub(before);
    assert!(growth < GROWTH_BYTES_MAX, "grew by {growth} bytes");
    scene.a_good_migration_succeeds();
}

#[test]
fn offers_that_do_not_fit_are_refused_by_code() {
    let scene = Scene::new();
    let (attachment, b) = (scene.new.attachment.clone(), &scene.b.node);
    b.attach("handed-over", attachment.clone()).unwrap();
    for (epoch, kind) in [
        (6, RecordKind::Begin { attachment }),
        (7, RecordKind::Committed),
    ] {
        let record = Record {
            sequence: 0,
            migration: MigrationId(99),
            vm: "handed-over".into(),
            role: Role::Destination,
            peer_node: "a".into(),
            peer_address: "127.0.0.1:1".into(),
            tls: false,
            epoch,
            wall_ms: 0,
            kind,
        };
        b.journal().append(&record).unwrap();
    }
    let mut larger = offer("vm");
    larger.ram[0].bytes *= 2;
    let mut renamed = offer("vm");
    renamed.ram[0].name = "pc.ram".into();
    let mut more = offer("vm");
    more.ram.push(renamed.ram[0].clone());
    let mut other = offer("vm");
    other.vmm = "qemu".into();
    let cases = [
        (
            larger,
            RefuseCode::RamDiffers,
            "RAM differs: source has [ram0 8 MiB]",
        ),
        (
            renamed,
            RefuseCode::RamDiffers,
            "source has [pc.ram 4 MiB], destination [ram0 4 MiB]",
        ),
        (more, RefuseCode::RamDiffers, "ram0 4 MiB, pc.ram 4 MiB"),
        (
            other,
            RefuseCode::VmmDiffers,
            "vm is a process here, a qemu there",
        ),
        (
            offer("nobody"),
            RefuseCode::NoSuchVm,
            "no VM nobody is attached",
        ),
        (
            offer("handed-over"),
            RefuseCode::StaleEpoch,
            "epoch 0 is older than 7",
        ),
    ];
    for (migration, (offer, expected, words)) in (1..).zip(cases) {
        let offer = Offer { migration, ..offer };
        let (_, answer) = Stranger::offers(&scene.b, offer);
        let Control::Refuse { code, reason } = answer else {
            panic!("{words}: {answer:?}");
        };
        assert_eq!(code, expected, "{reason}");
        assert!(reason.contains(words), "{reason}");
        wait(b, MigrationId(migration));
    }
    scene.a_good_migration_succeeds();
}

/// There is no answer, which would be a promise, and nothing is remembered: neither an epoch that would outdo the
/// real one, nor a record.
#[test]
fn questions_about_inventions_change_nothing() {
    let scene = Scene::new();
    let journal = scene.b.node.journal();
    for epoch in [1, 1000, u64::MAX] {
        let mut stranger = Stranger::connect(&scene.b);
        stranger.say(&hello());
        stranger.say(&unchecked(&Control::OwnerQuery {
            migration: u128::from(epoch),
            vm: "vm".into(),
            epoch,
        }));
        let answer = stranger.hear_control();
        let Some(Control::Refuse { reason, .. }) = answer else {
            panic!("{answer:?}");
        };
        assert!(
            reason.contains("knows nothing of this migration"),
            "{reason}"
        );
    }
    assert_eq!(journal.state().epoch_of("vm"), 0);
    assert_eq!(journal.state().ownership(), []);
    scene.a_good_migration_succeeds();
}

#[test]
fn a_migration_under_way_bears_no_intruder() {
    let scene = Scene::new();
    let of = |migration| Offer {
        migration,
        ..offer("vm")
    };
    let (mut first, answer) = Stranger::offers(&scene.b, of(1));
    assert!(
        matches!(answer, Control::Accept { streams: 2, .. }),
        "{answer:?}"
    );
    let (_, answer) = Stranger::offers(&scene.b, of(2));
    let busy = RefuseCode::Busy;
    assert!(
        matches!(&answer, Control::Refuse { code, reason } if *code == busy
            && reason.contains("earlier migration of VM vm is under way on b, or still being")),
        "{answer:?}"
    );
    let mut twin = Stranger::connect(&scene.b);
    twin.say(&hello());
    twin.say(&unchecked(&Control::Offer(of(1))));
    twin.expect_refusal("is under way already");
    // An offer after an offer.
    first.say(&unchecked(&Control::Offer(of(1))));
    expect_abort(&mut first, "unexpected message Offer");
    wait(&scene.b.node, MigrationId(1));

    // Streams that were not granted, and one that joins twice.
    for (migration, indexes) in [(3, vec![5]), (4, vec![1, 1])] {
        let (mut source, answer) = Stranger::offers(&scene.b, of(migration));
        let Control::Accept { token, .. } = answer else {
            panic!("{answer:?}");
        };
        let join = |index| {
            let role = StreamRole::Data;
            let hello = StreamHello {
                token,
                index,
                role,
                generation: 0,
            };
            let mut stream = Stranger::connect(&scene.b);
            stream.say(&frame(FrameKind::StreamHello, 1, &hello.to_bytes()));
            stream
        };
        let _streams: Vec<_> = indexes.into_iter().map(join).collect();
        expect_abort(&mut source, "joins twice or unasked");
        wait(&scene.b.node, MigrationId(migration));
    }

    // Garbage, and silence, after an offer that was accepted.
    for (migration, garbage) in [(5, vec![0xa5; 300]), (6, vec![])] {
        let (mut source, _) = Stranger::offers(&scene.b, of(migration));
        source.say(&garbage);
        let _ = source.stream.shutdown(Shutdown::Write);
        let report = wait(&scene.b.node, MigrationId(migration));
        assert_eq!(report.result, RunResult::Aborted);
        assert!(
            report.reason.contains("control connection: "),
            "{}",
            report.reason
        );
    }
    assert!(!scene.new.is_running());
    assert!(scene.folder.path().exists());
    scene.a_good_migration_succeeds();
}

fn expect_abort(source: &mut Stranger, words: &str) {
    let answer = source.hear_control().expect("an answer");
    let Control::Abort { code, reason } = &answer else {
        panic!("{answer:?}");
    };
    assert_eq!(*code, AbortCode::Protocol);
    assert!(reason.contains(words), "{reason}");
}
