//! The bytes under `vectors/` are the protocol. A program that makes other bytes of these values
//! cannot talk to one that is installed.

mod common;

use common::{check, messages, read};
use dwcp_wire::rdma::{PieceId, QueueHello, QueueMessage, QueueReply, RING_BYTES, RecordMark};
use dwcp_wire::{
    Capabilities, Control, FrameHeader, FrameKind, HEADER_BYTES, Hello, PageClass, PageEntry,
    PageRange, PageRequest, StreamHello, StreamRole, decode_control, encode_control,
};

fn headers() -> Vec<(&'static str, FrameHeader)> {
    let payload: Vec<u8> = (0..64).collect();
    let of = |kind, stream, bytes: usize| FrameHeader::covering(kind, stream, 9, &payload[..bytes]);
    let pages = FrameHeader {
        round: 3,
        ram_block: 1,
        entries: 2,
        payload_bytes: 40 + 4096,
        table_bytes: 40,
        table_crc32c: 0xdead_beef,
        ..FrameHeader::empty(FrameKind::Pages, 5, 77)
    };
    let new_window = FrameHeader {
        starts_window: true,
        delta_bytes: 77,
        ..pages
    };
    let shuffled = FrameHeader {
        shuffles_window: true,
        ..pages
    };
    let mark = FrameHeader {
        round: 3,
        ..FrameHeader::empty(FrameKind::RoundMark, 5, 78)
    };
    let ack = FrameHeader {
        position: 1 << 40,
        ..FrameHeader::empty(FrameKind::Ack, 5, 12)
    };
    vec![
        ("hello", of(FrameKind::Hello, 0, 64)),
        ("hello-reply", of(FrameKind::HelloReply, 0, 64)),
        ("control", of(FrameKind::Control, 0, 17)),
        ("stream-hello", of(FrameKind::StreamHello, 31, 24)),
        ("pages", pages),
        ("pages-new-window", new_window),
        ("pages-shuffled", shuffled),
        ("round-mark", mark),
        ("ack", ack),
        ("device", of(FrameKind::Device, 0, 64)),
        ("device-end", of(FrameKind::Device, 0, 0)),
        ("padding", of(FrameKind::Padding, 0, 32)),
        ("device-zstd", of(FrameKind::DeviceZstd, 0, 17)),
        ("page-request", of(FrameKind::PageRequest, 2, 24)),
    ]
}

fn named<T>(values: &[(&str, T)], bytes: impl Fn(&T) -> Vec<u8>) -> Vec<(String, Vec<u8>)> {
    let pair = |(name, value): &(&str, T)| ((*name).to_owned(), bytes(value));
    values.iter().map(pair).collect()
}

#[test]
fn headers_are_as_frozen() {
    check(
        "headers.hex",
        &named(&headers(), |header| header.to_bytes().to_vec()),
    );
    for ((_, bytes), (name, header)) in read("headers.hex").iter().zip(headers()) {
        let bytes: [u8; HEADER_BYTES] = bytes[..].try_into().expect("64 bytes");
        assert_eq!(FrameHeader::from_bytes(&bytes), Ok(header), "{name}");
    }
}

#[test]
fn hellos_are_as_frozen() {
    let later = Hello {
        version_oldest: 2,
        version_newest: 0x0102,
        offered: Capabilities(u64::MAX),
        required: Capabilities::DEVICE_STATE,
    };
    let hellos = [("own", Hello::own()), ("later", later)];
    check(
        "hello.hex",
        &named(&hellos, |hello| hello.to_bytes().to_vec()),
    );
    for ((_, bytes), (name, hello)) in read("hello.hex").iter().zip(hellos) {
        let bytes: [u8; Hello::BYTES] = bytes[..].try_into().expect("64 bytes");
        assert_eq!(Hello::from_bytes(&bytes), hello, "{name}");
    }
}

#[test]
fn stream_hellos_are_as_frozen() {
    let hello = |role, index| StreamHello {
        token: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10,
        index,
        role,
        generation: index / 2,
    };
    let hellos = [
        ("data", hello(StreamRole::Data, 0x1f)),
        ("device", hello(StreamRole::Device, 0)),
    ];
    check(
        "stream-hello.hex",
        &named(&hellos, |hello| hello.to_bytes().to_vec()),
    );
    for ((_, bytes), (name, hello)) in read("stream-hello.hex").iter().zip(hellos) {
        let bytes: [u8; StreamHello::BYTES] = bytes[..].try_into().expect("24 bytes");
        assert_eq!(StreamHello::from_bytes(&bytes), Ok(hello), "{name}");
    }
}

#[test]
fn page_tables_are_as_frozen() {
    let entry = |page, count, class, data_bytes| PageEntry {
        page,
        count,
        class,
        data_bytes,
    };
    let table = [
        entry(0, 65_535, PageClass::Zero, 0),
        entry(0x0001_0000, 2, PageClass::Raw, 8192),
        entry(0xffff_fff0, 4, PageClass::Zstd, 1234),
        entry(0xffff_fff4, 1, PageClass::Window, 0),
    ];
    let fingerprints: [u64; 7] = [1, 2, 3, u64::MAX, 5, 0x0102_0304_0506_0708, 7];
    let mut bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_bytes()).collect();
    bytes.extend(fingerprints.iter().flat_map(|print| print.to_le_bytes()));
    assert_eq!(bytes.len(), dwcp_wire::table_bytes(table.len(), 7));
    check("page-table.hex", &[("table".to_owned(), bytes)]);
    let (_, bytes) = &read("page-table.hex")[0];
    for (index, (bytes, entry)) in bytes.chunks_exact(16).zip(table).enumerate() {
        let bytes: [u8; 16] = bytes.try_into().expect("16 bytes");
        assert_eq!(PageEntry::from_bytes(index, &bytes), Ok(entry));
    }
}

fn queue_messages() -> Vec<(&'static str, QueueMessage)> {
    let piece = PieceId {
        ram_block: 3,
        piece: 0x0102_0304,
    };
    let credit = QueueMessage::Credit {
        ring_bytes: 0x0102_0304_0506_0708,
        records: 77,
    };
    let granted = QueueMessage::PieceGranted {
        piece,
        address: 0x7f00_1234_5678_9000,
        key: 0xdead_beef,
    };
    let fingerprints = QueueMessage::PieceFingerprints {
        piece,
        address: 0x7f00_1234_5678_9008,
        key: 0xfeed_f00d,
    };
    vec![
        ("credit", credit),
        ("piece-wanted", QueueMessage::PieceWanted(piece)),
        ("piece-granted", granted),
        ("piece-refused", QueueMessage::PieceRefused(piece)),
        ("piece-returned", QueueMessage::PieceReturned(piece)),
        ("piece-fingerprints", fingerprints),
    ]
}

#[test]
fn words_between_queue_pairs_are_as_frozen() {
    let hello = QueueHello {
        stream: StreamHello {
            token: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10,
            index: 0x1f,
            role: StreamRole::Data,
            generation: 0,
        },
        piece_bytes_max: 16 << 20,
    };
    let reply = QueueReply {
        ring_address: 0x7f00_1234_5678_9000,
        ring_key: 0xdead_beef,
        ring_bytes: RING_BYTES,
        piece_bytes: 1 << 20,
    };
    let mark = RecordMark {
        ring_bytes: 0x1_2345,
        pages: 128,
    };
    let mut words = vec![
        ("hello".to_owned(), hello.to_bytes().to_vec()),
        ("reply".to_owned(), reply.to_bytes().to_vec()),
        (
            "mark".to_owned(),
            mark.to_immediate().to_be_bytes().to_vec(),
        ),
    ];
    words.extend(named(&queue_messages(), |message| {
        message.to_bytes().to_vec()
    }));
    check("queue-pair.hex", &words);
    let read = read("queue-pair.hex");
    assert_eq!(QueueHello::from_bytes(&read[0].1), Ok(hello));
    assert_eq!(QueueReply::from_bytes(&read[1].1), Ok(reply));
    let number: [u8; 4] = read[2].1[..].try_into().expect("4 bytes");
    assert_eq!(
        RecordMark::from_immediate(u32::from_be_bytes(number)),
        Ok(mark)
    );
    for ((_, bytes), (name, message)) in read[3..].iter().zip(queue_messages()) {
        let bytes: [u8; 32] = bytes[..].try_into().expect("32 bytes");
        assert_eq!(QueueMessage::from_bytes(&bytes), Ok(message), "{name}");
    }
}

#[test]
fn control_messages_are_as_frozen() {
    let messages = messages();
    let bytes = |message: &Control| encode_control(message).expect("within limits");
    check("control.hex", &named(&messages, bytes));
    for ((_, bytes), (name, message)) in read("control.hex").iter().zip(messages) {
        assert_eq!(decode_control(bytes).expect(name), message);
    }
}

#[test]
fn page_requests_are_as_frozen() {
    let range = |ram_block, page, count| PageRange {
        ram_block,
        page,
        count,
    };
    let request = PageRequest {
        ranges: vec![range(0, 4711, 1), range(0, 4712, 15), range(3, u32::MAX, 2)],
    };
    let bytes = request.to_bytes();
    check("page-request.hex", &[("request".to_owned(), bytes)]);
    let (_, bytes) = &read("page-request.hex")[0];
    assert_eq!(PageRequest::from_bytes(bytes), Ok(request));
}

/// A variant that is added must be added to the vectors.
#[test]
fn every_control_message_has_a_vector() {
    let count = |message: &Control| match message {
        Control::Offer(_) => 0,
        Control::Accept { .. } => 1,
        Control::Refuse { .. } => 2,
        Control::Ready => 3,
        Control::RoundEnd { .. } => 4,
        Control::RoundReport { .. } => 5,
        Control::SwitchoverStart => 6,
        Control::DeviceLoaded => 7,
        Control::Handover { .. } => 8,
        Control::Committed { .. } => 9,
        Control::Resumed => 10,
        Control::Abort { .. } => 11,
        Control::OwnerQuery { .. } => 12,
        Control::OwnerAnswer { .. } => 13,
        Control::Alive => 14,
        Control::Wanted(_) => 15,
        Control::Found(_) => 16,
        Control::PostcopyStart => 17,
        Control::PostcopyReady => 18,
        Control::PostcopyRefused { .. } => 19,
        Control::Missing(_) => 20,
        Control::Fetched => 21,
        Control::RamRoot { .. } => 22,
        Control::Whole { .. } => 23,
        Control::PostcopyResume { .. } => 24,
        Control::PostcopyGoOn { .. } => 25,
        Control::MissingAhead => 26,
        Control::MissingAheadTaken => 27,
        Control::RdmaListens { .. } => 28,
        Control::RdmaKeysGone => 29,
        Control::SourceListens { .. } => 30,
        Control::TakenBack { .. } => 31,
        Control::RecallQuery { .. } => 32,
        Control::RecallAnswer { .. } => 33,
        Control::HoldsBaseline { .. } => 34,
        Control::Unchanged(_) => 35,
        Control::PagesRead(_) => 36,
    };
    let mut seen = [false; 37];
    for (name, message) in messages() {
        let index = count(&message);
        seen[index] = true;
        let bytes = encode_control(&message).expect(name);
        assert_eq!(
            usize::from(bytes[0]),
            index,
            "the first byte names the message"
        );
    }
    assert_eq!(seen, [true; 37]);
}
