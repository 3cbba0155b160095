//! Writes the corpora that the fuzzers start from: golden vectors, real frames, built-in profiles.
//!
//! Usage: `cargo run --bin seeds -- FOLDER`

use std::io;
use std::path::Path;

use dwcp_api::codec::{PREFIX_BYTES, encode};
use dwcp_api::dataplane::{Reply, Request};
use dwcp_api::{Attachment, Codec, ErrorCode, MigrationId, NodeIdentity, Role};
use dwcp_controlplane::profile;
use dwcp_dataplane::path::Encoder;
use dwcp_fuzz::{WORDS, real_frames};
use dwcp_wire::HEADER_BYTES;

/// Bytes of one seed. Larger ones make every run slower and teach nothing.
const SEED_BYTES_MAX: usize = 12 * 1024;

fn main() -> io::Result<()> {
    let folder = std::env::args()
        .nth(1)
        .ok_or_else(|| io::Error::other("name a folder"))?;
    let folder = Path::new(&folder);
    vectors(folder)?;
    frames(folder)?;
    messages(folder)?;
    profiles(folder)?;
    journal(folder)
}

fn write(folder: &Path, target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    assert!(
        bytes.len() <= SEED_BYTES_MAX,
        "{target}/{name} has {} bytes",
        bytes.len()
    );
    let folder = folder.join(target);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(name), bytes)
}

fn vectors(folder: &Path) -> io::Result<()> {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dataplane/wire/vectors");
    for (file, target) in [
        ("headers.hex", "header"),
        ("control.hex", "control_message"),
        ("page-request.hex", "page_request"),
        ("queue-pair.hex", "queue_pair"),
    ] {
        let text = std::fs::read_to_string(vectors.join(file))?;
        let lines = text.lines().filter_map(|line| line.split_once(": "));
        for (name, hex) in lines.filter(|(name, _)| !name.starts_with('#')) {
            let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).map_err(io::Error::other);
            let bytes: Vec<u8> = (0..hex.len())
                .step_by(2)
                .map(digits)
                .collect::<Result<_, _>>()?;
            let seed = [queue_pair_case(target, name), &bytes].concat();
            write(folder, target, name, &seed)?;
        }
    }
    Ok(())
}

/// The byte by which the target `queue_pair` knows what it is given.
fn queue_pair_case(target: &str, name: &str) -> &'static [u8] {
    match (target, name) {
        ("queue_pair", "hello") => &[0],
        ("queue_pair", "reply") => &[1],
        ("queue_pair", "mark") => &[2],
        ("queue_pair", _) => &[3],
        _ => &[],
    }
}

/// One frame each: the payload behind the four bytes that `page_frame` reads.
fn frames(folder: &Path) -> io::Result<()> {
    let kinds: [(&str, &[u8]); 5] = [
        ("zero", &[0; 40]),
        ("text", &[1; 33]),
        ("mixed", &[0, 0, 1, 4, 0, 7, 1, 1, 0, 0]),
        ("random", &[2]),
        ("words", &[WORDS, 1, WORDS]),
    ];
    for (name, pages) in kinds {
        let window = Codec::Window {
            level: 1,
            window_bytes: 1 << 20,
        };
        let codecs = [
            ("raw", 0, Codec::Raw),
            ("zstd", 0, Codec::Zstd { level: 1 }),
            ("window", 16, window),
            ("shuffled", 16 | 64, window),
        ];
        for (codec, flags, by) in codecs {
            let frame = real_frames(pages, 2, Encoder::new(by, 1).shuffling(flags & 64 != 0));
            let shuffles = frame[10] & 2 != 0;
            if shuffles != (flags & 64 != 0) {
                continue;
            }
            if frame.len() > SEED_BYTES_MAX - 128 {
                continue;
            }
            let mut input = vec![2 | flags, frame[28] - 1, frame[44], frame[45]];
            input.extend_from_slice(&frame[HEADER_BYTES..]);
            let name = format!("{name}-{codec}");
            write(folder, "frame", &name, &input)?;
            receiver(folder, &name, &input)?;
        }
    }
    Ok(())
}

/// Two frames and a mark.
fn receiver(folder: &Path, name: &str, frame: &[u8]) -> io::Result<()> {
    if frame.len() > SEED_BYTES_MAX / 3 {
        return Ok(());
    }
    let length = (frame.len() as u16).to_le_bytes();
    let mut input = vec![7];
    for _ in 0..2 {
        input.extend_from_slice(&[1, length[0], length[1]]);
        input.extend_from_slice(frame);
    }
    input.extend_from_slice(&[2, 0, 0]);
    write(folder, "receiver", name, &input)
}

fn messages(folder: &Path) -> io::Result<()> {
    let settings = profile::load("hybrid").map_err(|error| io::Error::other(error.to_string()))?;
    let socket = "/run/guest.sock".to_owned();
    let requests = [
        (
            "hello",
            Request::Hello(NodeIdentity {
                name: "a".into(),
                id: "0f".repeat(16),
            }),
        ),
        (
            "attach",
            Request::AttachVm {
                name: "web".into(),
                attachment: Attachment::Process { socket },
            },
        ),
        ("detach", Request::DetachVm { name: "web".into() }),
        ("list", Request::ListVms),
        (
            "start",
            Request::StartMigration {
                id: MigrationId(7),
                vm: "web".into(),
                destination: "127.0.0.1:7400".into(),
                destination_name: Some("b".into()),
                settings,
                dry_run: false,
            },
        ),
        ("status", Request::Status { id: MigrationId(7) }),
    ];
    for (name, request) in requests {
        let frame = encode(&request).map_err(io::Error::other)?;
        write(folder, "api_codec", name, &frame[PREFIX_BYTES..])?;
    }
    let error = dwcp_api::ApiError::new(ErrorCode::Busy, "VM web is being moved").with_hint("wait");
    for (name, reply) in [("error", Reply::Error(error)), ("done", Reply::Done)] {
        let frame = encode(&reply).map_err(io::Error::other)?;
        write(folder, "api_codec", name, &frame[PREFIX_BYTES..])?;
    }
    Ok(())
}

fn profiles(folder: &Path) -> io::Result<()> {
    for name in profile::built_in_names() {
        let settings = profile::load(name).map_err(|error| io::Error::other(error.to_string()))?;
        write(
            folder,
            "profile",
            name,
            profile::to_toml(&settings).as_bytes(),
        )?;
    }
    let faulty = "mode = \"hybrid\"\n[transfer]\nstreems = 4\nstreams = \"four\"\n\u{e4} = [1,\n";
    write(folder, "profile", "faulty", faulty.as_bytes())
}

fn journal(folder: &Path) -> io::Result<()> {
    use dwcp_journal::{FILE_NAME, GuestMemory, Journal, MemoryBlock, Record, RecordKind};
    /// Of this migration it is the destination's journal.
    const DESTINATION: u128 = 4;
    let state = tempfile::tempdir()?;
    let journal = Journal::open(state.path()).map_err(io::Error::other)?;
    let attachment = Attachment::Process {
        socket: "/run/guest.sock".into(),
    };
    let memory = GuestMemory {
        pid: 7,
        blocks: vec![MemoryBlock {
            name: "ram".into(),
            bytes: 1 << 20,
            address: 1 << 40,
        }],
        ..GuestMemory::default()
    };
    let kinds = [
        (
            1,
            RecordKind::Begin {
                attachment: attachment.clone(),
            },
        ),
        (1, RecordKind::Prepared),
        (
            1,
            RecordKind::Aborted {
                reason: "cancelled".into(),
            },
        ),
        (
            2,
            RecordKind::Begin {
                attachment: attachment.clone(),
            },
        ),
        (2, RecordKind::Prepared),
        (2, RecordKind::Committed),
        (
            3,
            RecordKind::Begin {
                attachment: attachment.clone(),
            },
        ),
        (3, RecordKind::PreparedPostcopy),
        (3, RecordKind::Serving),
        (DESTINATION, RecordKind::Begin { attachment }),
        (DESTINATION, RecordKind::Fetching { memory }),
        (DESTINATION, RecordKind::Committed),
        (DESTINATION, RecordKind::Whole),
    ];
    for (migration, kind) in kinds {
        let record = Record {
            sequence: 0,
            migration: MigrationId(migration),
            vm: "web".into(),
            role: match migration {
                DESTINATION => Role::Destination,
                _ => Role::Source,
            },
            peer_node: "b".into(),
            peer_address: "127.0.0.1:7400".into(),
            tls: false,
            epoch: u64::from(kind == RecordKind::Committed) * migration as u64,
            wall_ms: 1_700_000_000_000,
            kind,
        };
        journal.append(&record).map_err(io::Error::other)?;
    }
    let file = std::fs::read_to_string(state.path().join(FILE_NAME))?;
    let records: Vec<&str> = file.lines().skip(1).collect();
    let bodies: Vec<&str> = records.iter().map(|line| &line[18..]).collect();
    let sealed = format!("\u{1}{}", bodies.join("\n"));
    write(folder, "journal", "sealed", sealed.as_bytes())?;
    let raw = format!("\0{}\n", records.join("\n"));
    write(folder, "journal", "raw", raw.as_bytes())?;
    write(folder, "journal", "torn", &raw.as_bytes()[..raw.len() - 30])
}
