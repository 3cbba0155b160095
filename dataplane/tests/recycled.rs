//! Memory that the destination has from a guest before: none of it survives, whatever the source says.

mod common;

use common::stranger::{Stranger, frame, offer};
use common::{TestGuest, log, node, settings, small};
use dwcp_simd::kernels;
use dwcp_wire::{
    Control, FrameHeader, FrameKind, HEADER_BYTES, Offer, PageClass, PageEntry, RoundSummary,
    StreamHello, StreamRole,
};

const SECRET: [u8; 4096] = [0x5E; 4096];

fn join(node: &common::TestNode, token: u128, role: StreamRole) -> Stranger {
    let hello = StreamHello {
        generation: 0,
        token,
        index: 0,
        role,
    };
    let hello = hello.to_bytes();
    let mut stream = Stranger::connect(node);
    stream.say(&FrameHeader::covering(FrameKind::StreamHello, 0, 1, &hello).to_bytes());
    stream.say(&hello);
    stream
}

fn control(sequence: u64, message: &Control) -> Vec<u8> {
    let body = dwcp_api::codec::encode(message).unwrap();
    let body = &body[dwcp_api::codec::PREFIX_BYTES + 1..];
    frame(FrameKind::Control, sequence, body)
}

/// One zero page, and the end of the round: the source names nothing else.
fn send_round(control_stream: &mut Stranger, data: &mut Stranger, round: u32) {
    let entry = PageEntry {
        page: 0,
        count: 1,
        class: PageClass::Zero,
        data_bytes: 0,
    };
    let table = entry.to_bytes();
    let header = FrameHeader {
        round,
        entries: 1,
        payload_bytes: table.len() as u32,
        table_bytes: table.len() as u32,
        table_crc32c: kernels().crc32c(0, &table),
        ..FrameHeader::empty(FrameKind::Pages, 0, 1)
    };
    data.say(&header.to_bytes());
    data.say(&table);
    let mut mark = FrameHeader::empty(FrameKind::RoundMark, 0, 2);
    mark.round = round;
    data.say(&mark.to_bytes());
    let end = Control::RoundEnd {
        round,
        sent: RoundSummary {
            frames: 1,
            wire_bytes: (HEADER_BYTES + table.len()) as u64,
            pages: 1,
            marks_again: 0,
        },
        paused: false,
        root: 0,
    };
    control_stream.say(&control(3, &end));
}

#[test]
fn memory_of_a_guest_before_does_not_survive_the_first_round() {
    log::keep();
    for first_round in [0, 1, 7] {
        let folder = tempfile::tempdir().unwrap();
        let b = node(folder.path(), "b", &settings());
        let new = TestGuest::start(folder.path(), "new", &small(1, true));
        b.node.attach("vm", new.attachment.clone()).unwrap();
        let vm = dwcp_dataplane::vmm::open(&new.attachment);
        let ram = vm.unwrap().ram().unwrap();
        let block = &ram.blocks()[0];
        (0..block.pages()).for_each(|page| block.write_page(page, &SECRET));
        let offer = Offer {
            migration: 7,
            streams: 1,
            ..offer("vm")
        };
        let (mut source, answer) = Stranger::offers(&b, offer);
        let Control::Accept { token, .. } = answer else {
            panic!("{answer:?}")
        };
        let mut data = join(&b, token, StreamRole::Data);
        let _device = join(&b, token, StreamRole::Device);
        assert_eq!(source.hear_control(), Some(Control::Ready));
        send_round(&mut source, &mut data, first_round);
        let answer = source.hear_control();
        let is_taken = matches!(answer, Some(Control::RoundReport { .. }));
        let is_refused = matches!(answer, Some(Control::Abort { .. }));
        let is_first = first_round == 0;
        assert!(is_taken == is_first && is_refused != is_first, "{answer:?}");
        let mut copy = [0; 4096];
        for page in 0..block.pages() {
            block.read_page(page, &mut copy);
            assert!(
                copy == [0; 4096],
                "round {first_round}: page {page} survived"
            );
        }
    }
}
