//! Values that the vectors hold, and the files they are read from.

#![allow(dead_code, reason = "each test file uses a part")]

use dwcp_wire::{
    AbortCode, Control, FetchSummary, KnownPages, MissingPages, Offer, PageRange, PagesRead,
    RamBlockInfo, RefuseCode, RoundSummary, SourceStands, WantedPages,
};

/// The lines of a vector file: name and bytes.
pub(crate) fn read(file: &str) -> Vec<(String, Vec<u8>)> {
    let path = format!("{}/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let lines = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let (name, hex) = line.split_once(": ").expect("name: hex");
            (name.to_owned(), from_hex(hex))
        })
        .collect()
}

/// Compares a file with what this program makes of the same values; the message on a difference is
/// the file as it would be now, so that a deliberate change of the format is one copy away.
pub(crate) fn check(file: &str, now: &[(String, Vec<u8>)]) {
    let lines = |vectors: &[(String, Vec<u8>)]| {
        let lines = vectors
            .iter()
            .map(|(name, bytes)| format!("{name}: {}\n", to_hex(bytes)));
        lines.collect::<String>()
    };
    let (frozen, now) = (lines(&read(file)), lines(now));
    assert!(frozen == now, "vectors/{file} would now be\n{now}");
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "{text}");
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(digits).collect()
}

pub(crate) fn offer() -> Offer {
    Offer {
        migration: 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff,
        vm: "guest-1".into(),
        source_node: "north".into(),
        epoch: 7,
        vmm: "qemu".into(),
        ram: vec![
            RamBlockInfo {
                name: "pc.ram".into(),
                bytes: 2 << 30,
            },
            RamBlockInfo {
                name: "vga.vram".into(),
                bytes: 16 << 20,
            },
        ],
        streams: 4,
        fingerprint_seed: 0x1234_5678_9abc_def0,
        verify_full: false,
        sample_pages: 1024,
        ack_bytes: 1 << 20,
        peer_silence_ms: 2000,
        dry_run: false,
        reuse: false,
    }
}

pub(crate) const SUMMARY: RoundSummary = RoundSummary {
    frames: 3,
    wire_bytes: 300_000,
    pages: 70,
    marks_again: 1,
};

/// One message of each kind, by name.
pub(crate) fn messages() -> Vec<(&'static str, Control)> {
    let mut messages = agreement();
    messages.extend(movement());
    messages.extend(postcopy());
    messages.extend(recall());
    messages
}

fn found() -> KnownPages {
    let mut found = KnownPages::none(1, 4711, 12);
    for at in [0, 7, 11] {
        found.set(at);
    }
    found.root = 1 << 100;
    found
}

fn agreement() -> Vec<(&'static str, Control)> {
    let reason = || "RAM blocks differ: pc.ram".to_owned();
    vec![
        ("offer", Control::Offer(offer())),
        (
            "accept",
            Control::Accept {
                token: u128::MAX - 1,
                streams: 4,
                content_seed: Some(0x0102_0304_0506_0708),
            },
        ),
        (
            "refuse",
            Control::Refuse {
                code: RefuseCode::RamDiffers,
                reason: reason(),
            },
        ),
        ("ready", Control::Ready),
        (
            "abort",
            Control::Abort {
                code: AbortCode::ProofFailed,
                reason: reason(),
            },
        ),
        (
            "owner-query",
            Control::OwnerQuery {
                migration: 1 << 100,
                vm: "guest-1".into(),
                epoch: 8,
            },
        ),
        ("owner-answer-yes", Control::OwnerAnswer { committed: true }),
        ("owner-answer-no", Control::OwnerAnswer { committed: false }),
        ("alive", Control::Alive),
        (
            "wanted",
            Control::Wanted(WantedPages::new(
                1,
                4711,
                &[1, u64::MAX, 0, 0x0102_0304_0506_0708],
            )),
        ),
        ("found", Control::Found(found())),
        (
            "holds-baseline",
            Control::HoldsBaseline {
                migration: 1 << 100,
                is_all: true,
            },
        ),
        ("unchanged", Control::Unchanged(found())),
        (
            "rdma-listens",
            Control::RdmaListens {
                address: "192.0.2.7:41000".parse().expect("an address"),
            },
        ),
        (
            "rdma-listens-ipv6",
            Control::RdmaListens {
                address: "[2001:db8::7]:41000".parse().expect("an address"),
            },
        ),
        ("rdma-keys-gone", Control::RdmaKeysGone),
    ]
}

fn recall() -> Vec<(&'static str, Control)> {
    let answer = |stands| Control::RecallAnswer { stands };
    vec![
        (
            "source-listens",
            Control::SourceListens {
                address: "192.0.2.1:7440".parse().expect("an address"),
            },
        ),
        (
            "taken-back",
            Control::TakenBack {
                migration: 1 << 96,
                vm: "guest-1".into(),
                epoch: 9,
            },
        ),
        (
            "recall-query",
            Control::RecallQuery {
                migration: 1 << 96,
                vm: "guest-1".into(),
                epoch: 8,
            },
        ),
        ("recall-answer-here", answer(SourceStands::Here)),
        ("recall-answer-in-doubt", answer(SourceStands::InDoubt)),
        ("recall-answer-serving", answer(SourceStands::Serving)),
        ("recall-answer-pages-lost", answer(SourceStands::PagesLost)),
        ("recall-answer-given", answer(SourceStands::Given)),
    ]
}

fn postcopy() -> Vec<(&'static str, Control)> {
    let summary = FetchSummary {
        pages: 70_000,
        faults: 118,
        fault_p50_us: 90,
        fault_p99_us: 411,
        fault_max_us: 419,
        fetch_ms: 22_000,
        breaks: 1,
    };
    let read = PagesRead {
        pages: 1600,
        reads: 110,
        p50_us: 21,
        p99_us: 300,
        broke: None,
    };
    vec![
        ("postcopy-start", Control::PostcopyStart),
        ("postcopy-ready", Control::PostcopyReady),
        (
            "postcopy-refused",
            Control::PostcopyRefused {
                reason: "huge pages".into(),
            },
        ),
        (
            "missing",
            Control::Missing(MissingPages {
                ram_block: 1,
                page: 1 << 18,
                zstd: vec![0x28, 0xb5, 0x2f, 0xfd],
            }),
        ),
        ("fetched", Control::Fetched),
        ("ram-root", Control::RamRoot { root: 1 << 99 }),
        (
            "whole",
            Control::Whole {
                verified: Some(true),
                summary,
            },
        ),
        (
            "postcopy-resume",
            Control::PostcopyResume { migration: 1 << 98 },
        ),
        (
            "postcopy-go-on",
            Control::PostcopyGoOn {
                token: 1 << 97,
                fingerprint_seed: 5,
            },
        ),
        ("missing-ahead", Control::MissingAhead),
        ("missing-ahead-taken", Control::MissingAheadTaken),
        ("pages-read", Control::PagesRead(read.clone())),
        (
            "pages-read-until",
            Control::PagesRead(PagesRead {
                broke: Some("queue pair: flushed".into()),
                ..read
            }),
        ),
    ]
}

fn movement() -> Vec<(&'static str, Control)> {
    let suspects = vec![
        PageRange {
            ram_block: 0,
            page: 4096,
            count: 2,
        },
        PageRange {
            ram_block: 1,
            page: 0,
            count: 1,
        },
    ];
    let root = 0xfeed_face_cafe_beef_0123_4567_89ab_cdef;
    let report = |suspects, pages_proven| Control::RoundReport {
        round: 2,
        applied: SUMMARY,
        suspects,
        root,
        pages_proven,
    };
    vec![
        (
            "round-end",
            Control::RoundEnd {
                round: 2,
                sent: SUMMARY,
                paused: true,
                root,
            },
        ),
        ("round-report-suspects", report(suspects, None)),
        ("round-report-proven", report(vec![], Some(1024))),
        ("switchover-start", Control::SwitchoverStart),
        ("device-loaded", Control::DeviceLoaded),
        ("handover", Control::Handover { epoch: 8 }),
        ("committed", Control::Committed { epoch: 8 }),
        ("resumed", Control::Resumed),
    ]
}
