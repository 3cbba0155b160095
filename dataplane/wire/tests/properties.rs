//! What holds for every value and every byte string.

mod common;

use common::{messages, offer};
use dwcp_wire::limits::{
    CONTROL_BYTES_MAX, FRAME_DATA_PAGES_MAX, FRAME_ENTRIES_MAX, NAME_BYTES_MAX, PAGE_BYTES,
    RAM_BLOCK_BYTES_MAX, RAM_BLOCKS_MAX, REASON_BYTES_MAX, STREAMS_MAX, SUSPECT_RANGES_MAX,
    TABLE_BYTES_MAX,
};
use dwcp_wire::{
    AbortCode, Control, ENTRY_BYTES, FrameHeader, FrameKind, HEADER_BYTES, Hello, Offer, PageClass,
    PageEntry, PageRange, RamBlockInfo, StreamHello, StreamRole, cover, decode_control,
    encode_control, negotiate, table_bytes,
};
use proptest::prelude::*;

fn pages_header() -> impl Strategy<Value = FrameHeader> {
    let table = ENTRY_BYTES..=TABLE_BYTES_MAX;
    (
        0..STREAMS_MAX as u16,
        any::<u32>(),
        any::<u64>(),
        0..RAM_BLOCKS_MAX as u32,
        1..=FRAME_ENTRIES_MAX as u32,
        table,
        0..=FRAME_DATA_PAGES_MAX * PAGE_BYTES,
        any::<u32>(),
        any::<(bool, bool)>(),
    )
        .prop_map(
            |(stream, round, sequence, ram_block, entries, table, data, crc, flags)| {
                let (starts_window, shuffles_window) = flags;
                FrameHeader {
                    round,
                    ram_block,
                    entries,
                    payload_bytes: (table + data) as u32,
                    table_bytes: table as u32,
                    table_crc32c: crc,
                    starts_window,
                    shuffles_window,
                    delta_bytes: if starts_window { data as u32 / 2 } else { 0 },
                    ..FrameHeader::empty(FrameKind::Pages, stream, sequence)
                }
            },
        )
}

fn whole_header() -> impl Strategy<Value = FrameHeader> {
    (
        0..4_usize,
        0..STREAMS_MAX as u16,
        any::<u64>(),
        any::<[u8; 64]>(),
    )
        .prop_map(|(kind, stream, sequence, payload)| {
            let (kind, bytes) = [
                (FrameKind::Hello, 64),
                (FrameKind::Control, 33),
                (FrameKind::StreamHello, 24),
                (FrameKind::Device, 64),
            ][kind];
            FrameHeader::covering(kind, stream, sequence, &payload[..bytes])
        })
}

fn entry() -> impl Strategy<Value = PageEntry> {
    let most = FRAME_DATA_PAGES_MAX as u16;
    prop_oneof![
        (any::<u32>(), 1..=u16::MAX).prop_map(|(page, count)| (page, count, PageClass::Zero, 0)),
        (any::<u32>(), 1..=most).prop_map(|(page, count)| {
            (
                page,
                count,
                PageClass::Raw,
                u32::from(count) * PAGE_BYTES as u32,
            )
        }),
        (any::<u32>(), 1..=most, any::<u32>()).prop_map(|(page, count, bytes)| {
            let most = u32::from(count) * PAGE_BYTES as u32 - 1;
            (page, count, PageClass::Zstd, 1 + bytes % most)
        }),
        (any::<u32>(), 1..=most).prop_map(|(page, count)| (page, count, PageClass::Window, 0)),
    ]
    .prop_map(|(page, count, class, data_bytes)| PageEntry {
        page,
        count,
        class,
        data_bytes,
    })
}

fn any_offer() -> impl Strategy<Value = Offer> {
    let block = ("[a-z./]{1,40}", 1..=RAM_BLOCK_BYTES_MAX / PAGE_BYTES as u64);
    let blocks = proptest::collection::vec(block, 1..=RAM_BLOCKS_MAX);
    (
        any::<u128>(),
        "\\PC{1,60}",
        0..u64::MAX,
        blocks,
        1..=STREAMS_MAX as u16,
        any::<(u64, bool, u32, bool)>(),
    )
        .prop_map(
            |(migration, vm, epoch, blocks, streams, (seed, full, sample, dry))| {
                let block = |(name, pages): (String, u64)| RamBlockInfo {
                    name,
                    bytes: pages * PAGE_BYTES as u64,
                };
                Offer {
                    migration,
                    vm,
                    epoch,
                    ram: blocks.into_iter().map(block).collect(),
                    streams,
                    fingerprint_seed: seed,
                    verify_full: full,
                    sample_pages: sample,
                    dry_run: dry,
                    reuse: dry,
                    ..offer()
                }
            },
        )
}

fn suspects() -> impl Strategy<Value = Vec<PageRange>> {
    let range = (0..3_u32, 0..500_u32, 1..9_u32).prop_map(|(ram_block, page, count)| PageRange {
        ram_block,
        page,
        count,
    });
    // Some at the very end of a block that is as large as a block may be.
    let last = (0..40_u32).prop_map(|back| PageRange {
        ram_block: 3,
        page: u32::MAX - back * 3 - 1,
        count: 1,
    });
    prop::collection::vec(prop_oneof![9 => range, 1 => last], 0..300)
}

fn pages(ranges: &[PageRange]) -> std::collections::BTreeSet<(u32, u64)> {
    let of = |range: &PageRange| {
        let (block, page) = (range.ram_block, u64::from(range.page));
        (page..page + u64::from(range.count)).map(move |page| (block, page))
    };
    ranges.iter().flat_map(of).collect()
}

proptest! {
    /// Every suspect is covered, nothing lies beyond the outermost suspects of its block, and what is
    /// sent again for nothing is no more than it must be.
    #[test]
    fn few_ranges_cover_all_suspects(suspects in suspects(), most in 4..40_usize) {
        let covering = cover(suspects.clone(), most);
        prop_assert!(covering.len() <= most);
        let (wanted, covered) = (pages(&suspects), pages(&covering));
        prop_assert!(wanted.is_subset(&covered));
        for pair in covering.windows(2) {
            let end = u64::from(pair[0].page) + u64::from(pair[0].count);
            let follows = pair[0].ram_block < pair[1].ram_block
                || (pair[0].ram_block == pair[1].ram_block && end < u64::from(pair[1].page));
            prop_assert!(follows, "{pair:?}");
        }
        for range in &covering {
            let (block, first) = (range.ram_block, u64::from(range.page));
            let last = first + u64::from(range.count) - 1;
            prop_assert!(wanted.contains(&(block, first)) && wanted.contains(&(block, last)));
        }
        let exact = cover(suspects, usize::MAX);
        prop_assert_eq!(pages(&exact), wanted);
        let mut gaps: Vec<_> = exact
            .windows(2)
            .filter(|pair| pair[0].ram_block == pair[1].ram_block)
            .map(|pair| (pair[1].page - pair[0].page - pair[0].count) as usize)
            .collect();
        gaps.sort_unstable();
        let surplus = exact.len().saturating_sub(most);
        let fewest: usize = gaps.iter().take(surplus).sum();
        prop_assert_eq!(covered.len() - pages(&exact).len(), fewest);
    }

    #[test]
    fn page_headers_come_back(header in pages_header()) {
        prop_assert_eq!(FrameHeader::from_bytes(&header.to_bytes()), Ok(header));
    }

    #[test]
    fn other_headers_come_back_and_cover_their_payload(header in whole_header()) {
        prop_assert_eq!(FrameHeader::from_bytes(&header.to_bytes()), Ok(header));
    }

    #[test]
    fn any_single_bit_that_flips_is_noticed(header in pages_header()) {
        let bytes = header.to_bytes();
        for bit in 0..HEADER_BYTES * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(FrameHeader::from_bytes(&bytes).is_err(), "bit {}", bit);
        }
    }

    #[test]
    fn hostile_bytes_are_refused_or_read_but_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        header in any::<[u8; HEADER_BYTES]>(),
        entry in any::<[u8; ENTRY_BYTES]>(),
        stream in any::<[u8; StreamHello::BYTES]>(),
    ) {
        let _ = decode_control(&bytes);
        prop_assert!(FrameHeader::from_bytes(&header).is_err());
        let _ = negotiate(Hello::own(), Hello::from_bytes(&header));
        let _ = StreamHello::from_bytes(&stream);
        if let Ok(entry) = PageEntry::from_bytes(0, &entry) {
            prop_assert!(entry.pages_with_data() <= FRAME_DATA_PAGES_MAX);
        }
    }

    /// Lengths that lie: a message whose bytes were changed is another message or an error.
    #[test]
    fn damaged_messages_never_panic(
        index in 0..17_usize,
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<proptest::sample::Index>(),
    ) {
        let (_, message) = &messages()[index];
        let mut bytes = encode_control(message).expect("within limits");
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(message) = decode_control(&bytes) {
            prop_assert!(encode_control(&message).is_ok());
        }
        let _ = decode_control(&bytes[..cut.index(bytes.len())]);
    }

    #[test]
    fn entries_come_back(entry in entry()) {
        prop_assert_eq!(PageEntry::from_bytes(3, &entry.to_bytes()), Ok(entry));
    }

    #[test]
    fn offers_come_back(offer in any_offer()) {
        let message = Control::Offer(offer);
        let bytes = encode_control(&message).expect("within limits");
        prop_assert!(bytes.len() <= CONTROL_BYTES_MAX);
        prop_assert_eq!(decode_control(&bytes).expect("as sent"), message);
    }

    #[test]
    fn stream_hellos_come_back(token in any::<u128>(), index in any::<u16>(), data in any::<bool>(), generation in any::<u16>()) {
        let role = if data { StreamRole::Data } else { StreamRole::Device };
        let hello = StreamHello { token, index, role, generation };
        prop_assert_eq!(StreamHello::from_bytes(&hello.to_bytes()), Ok(hello));
    }

    /// What two nodes agree on does not depend on which of them asks.
    #[test]
    fn both_sides_come_to_the_same_version(a in any::<(u16, u16, u64)>(), b in any::<(u16, u16, u64)>()) {
        let hello = |(oldest, newest, offered)| Hello {
            version_oldest: oldest,
            version_newest: newest,
            offered: dwcp_wire::Capabilities(offered),
            required: dwcp_wire::Capabilities(0),
        };
        let (a, b) = (hello(a), hello(b));
        prop_assume!(a.version_oldest <= a.version_newest && b.version_oldest <= b.version_newest);
        prop_assert_eq!(negotiate(a, b).ok(), negotiate(b, a).ok());
        if let Ok((version, _)) = negotiate(a, b) {
            prop_assert!((a.version_oldest..=a.version_newest).contains(&version));
            prop_assert!((b.version_oldest..=b.version_newest).contains(&version));
        }
    }
}

#[test]
fn a_table_entry_that_contradicts_itself_is_refused() {
    let good = PageEntry {
        page: 1,
        count: 2,
        class: PageClass::Raw,
        data_bytes: 8192,
    };
    let bytes = |change: fn(&mut PageEntry)| {
        let mut entry = good;
        change(&mut entry);
        entry.to_bytes()
    };
    let mut bad = vec![
        bytes(|entry| entry.count = 0),
        bytes(|entry| entry.data_bytes = 8191),
        bytes(|entry| entry.class = PageClass::Zero),
        bytes(|entry| entry.class = PageClass::Zstd),
        bytes(|entry| {
            entry.count = FRAME_DATA_PAGES_MAX as u16 + 1;
            entry.data_bytes = u32::from(entry.count) * PAGE_BYTES as u32;
        }),
    ];
    for (at, byte) in [(6, 0), (6, 4), (6, 255), (7, 1), (12, 1), (15, 1)] {
        let mut bytes = good.to_bytes();
        bytes[at] = byte;
        bad.push(bytes);
    }
    for bytes in bad {
        assert!(PageEntry::from_bytes(0, &bytes).is_err(), "{bytes:?}");
    }
    assert_eq!(PageEntry::from_bytes(0, &good.to_bytes()), Ok(good));
    assert_eq!(
        table_bytes(FRAME_ENTRIES_MAX, FRAME_DATA_PAGES_MAX),
        TABLE_BYTES_MAX
    );
}

#[test]
fn a_header_beyond_a_limit_is_refused() {
    let pages = FrameHeader {
        entries: 1,
        payload_bytes: 16,
        table_bytes: 16,
        ..FrameHeader::empty(FrameKind::Pages, 0, 1)
    };
    assert!(FrameHeader::from_bytes(&pages.to_bytes()).is_ok());
    let changes: [fn(&mut FrameHeader); 9] = [
        |header| header.version = 0,
        |header| header.version = 2,
        |header| header.stream = STREAMS_MAX as u16,
        |header| header.entries = 0,
        |header| header.entries = FRAME_ENTRIES_MAX as u32 + 1,
        |header| header.ram_block = RAM_BLOCKS_MAX as u32,
        |header| header.position = 1,
        |header| header.payload_bytes = u32::MAX,
        |header| header.table_bytes = 17,
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut header = pages;
        change(&mut header);
        assert!(
            FrameHeader::from_bytes(&header.to_bytes()).is_err(),
            "change {index}"
        );
    }
}

fn offers_beyond_a_limit() -> Vec<Control> {
    let changes: [fn(&mut Offer); 12] = [
        |offer| offer.vm.clear(),
        |offer| offer.vm = "x".repeat(NAME_BYTES_MAX + 1),
        |offer| offer.epoch = u64::MAX,
        |offer| offer.ram.clear(),
        |offer| offer.ram = vec![offer.ram[0].clone(); RAM_BLOCKS_MAX + 1],
        |offer| offer.ram[0].bytes = 0,
        |offer| offer.ram[0].bytes = 4097,
        |offer| offer.ram[0].bytes = RAM_BLOCK_BYTES_MAX + PAGE_BYTES as u64,
        |offer| offer.streams = 0,
        |offer| offer.streams = STREAMS_MAX as u16 + 1,
        |offer| offer.peer_silence_ms = 0,
        |offer| offer.peer_silence_ms = u32::MAX,
    ];
    let changed = |change: fn(&mut Offer)| {
        let mut offer = offer();
        change(&mut offer);
        Control::Offer(offer)
    };
    changes.into_iter().map(changed).collect()
}

#[test]
fn messages_beyond_a_limit_are_refused_both_ways() {
    let report = |suspects| Control::RoundReport {
        round: 0,
        applied: common::SUMMARY,
        suspects,
        root: 0,
        pages_proven: None,
    };
    let range = |ram_block, page, count| PageRange {
        ram_block,
        page,
        count,
    };
    let reason = "x".repeat(REASON_BYTES_MAX + 1);
    let mut bad = offers_beyond_a_limit();
    bad.extend([
        Control::Accept {
            token: 0,
            streams: 0,
            content_seed: None,
        },
        Control::Abort {
            code: AbortCode::Other,
            reason,
        },
        Control::RdmaListens {
            address: "192.0.2.7:0".parse().expect("an address"),
        },
        Control::RdmaListens {
            address: "0.0.0.0:41000".parse().expect("an address"),
        },
        Control::SourceListens {
            address: "0.0.0.0:7440".parse().expect("an address"),
        },
        report(vec![range(0, 0, 1); SUSPECT_RANGES_MAX + 1]),
        report(vec![range(0, 0, 0)]),
        report(vec![range(0, u32::MAX, 1)]),
        report(vec![range(RAM_BLOCKS_MAX as u32, 0, 1)]),
    ]);
    for message in bad {
        assert!(encode_control(&message).is_err(), "{message:?}");
    }
    // The longest report that may be sent fits a frame.
    let longest = report(vec![range(63, u32::MAX - 1, 1); SUSPECT_RANGES_MAX]);
    assert!(encode_control(&longest).is_ok());
    assert!(decode_control(&[14, 0]).is_err(), "bytes after the message");
    assert!(decode_control(&[]).is_err());
    assert!(decode_control(&vec![0; CONTROL_BYTES_MAX + 1]).is_err());
}

/// What the other node says in words comes to terminals and logs.
#[test]
fn words_of_the_other_node_are_no_commands_to_a_terminal() {
    let said = |reason: &str| Control::Abort {
        code: AbortCode::Other,
        reason: reason.into(),
    };
    let bytes = encode_control(&said("no room\x1b[2J\nweb: completed\u{9b}31m")).unwrap();
    let heard = decode_control(&bytes).unwrap();
    assert_eq!(heard, said("no room [2J web: completed 31m"));
    let again = encode_control(&heard).unwrap();
    assert_eq!(decode_control(&again).unwrap(), heard);
    let query = Control::OwnerQuery {
        migration: 1,
        vm: "web\x1b[2J".into(),
        epoch: 1,
    };
    assert!(encode_control(&query).is_err());
}

/// A length that promises gigabytes must not be believed before the bytes are there.
#[test]
fn a_lying_length_allocates_nothing() {
    let mut bytes = encode_control(&messages()[0].1).expect("an offer");
    let name_length = bytes
        .iter()
        .position(|&byte| byte == 7)
        .expect("length of the VM name");
    bytes.splice(name_length..=name_length, [0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert!(decode_control(&bytes).is_err());
}
