//! A peer that may say anything: bytes of its own making, and what it hears back.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use dwcp_wire::{
    Control, FrameHeader, FrameKind, HEADER_BYTES, Hello, Offer, RamBlockInfo, decode_control,
};

use super::{TestNode, log, until};

pub(crate) fn frame(kind: FrameKind, sequence: u64, payload: &[u8]) -> Vec<u8> {
    let mut frame = FrameHeader::covering(kind, 0, sequence, payload)
        .to_bytes()
        .to_vec();
    frame.extend_from_slice(payload);
    frame
}

/// A hello whose header says something else at `offset`, under a checksum that is right.
pub(crate) fn header_with(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame(FrameKind::Hello, 1, &Hello::own().to_bytes());
    frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    let checksum = dwcp_simd::kernels().crc32c(0, &frame[..60]);
    frame[60..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    frame
}

pub(crate) fn hello() -> Vec<u8> {
    frame(FrameKind::Hello, 1, &Hello::own().to_bytes())
}

/// A message as it would be sent by a program that does not check what it sends.
pub(crate) fn unchecked(message: &Control) -> Vec<u8> {
    let body = dwcp_api::codec::encode(message).unwrap();
    frame(
        FrameKind::Control,
        2,
        &body[dwcp_api::codec::PREFIX_BYTES + 1..],
    )
}

pub(crate) fn offer(vm: &str) -> Offer {
    Offer {
        migration: 1,
        vm: vm.into(),
        source_node: "stranger".into(),
        epoch: 0,
        vmm: "process".into(),
        ram: vec![RamBlockInfo {
            name: "ram0".into(),
            bytes: 4 << 20,
        }],
        streams: 2,
        fingerprint_seed: 1,
        verify_full: false,
        sample_pages: 16,
        ack_bytes: 1 << 20,
        peer_silence_ms: 5000,
        dry_run: false,
        reuse: false,
    }
}

/// A connection of somebody who may say anything.
pub(crate) struct Stranger {
    pub(crate) stream: TcpStream,
    port: String,
}

impl Stranger {
    pub(crate) fn connect(node: &TestNode) -> Self {
        let stream = TcpStream::connect(&node.address).unwrap();
        let time = Some(Duration::from_secs(60));
        stream.set_read_timeout(time).unwrap();
        let port = stream.local_addr().unwrap().to_string();
        Self { stream, port }
    }

    /// The node may have refused before it has read all.
    pub(crate) fn say(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub(crate) fn hear(&mut self) -> Option<(FrameHeader, Vec<u8>)> {
        let mut header = [0; HEADER_BYTES];
        self.stream.read_exact(&mut header).ok()?;
        let header = FrameHeader::from_bytes(&header).unwrap();
        let mut payload = vec![0; header.payload_len()];
        self.stream.read_exact(&mut payload).ok()?;
        Some((header, payload))
    }

    pub(crate) fn hear_control(&mut self) -> Option<Control> {
        loop {
            let (header, payload) = self.hear()?;
            let message = (header.kind == FrameKind::Control).then(|| decode_control(&payload));
            match message.transpose().unwrap() {
                None | Some(Control::Alive) => {}
                message => return message,
            }
        }
    }

    /// The node ends the connection, and its log says why.
    pub(crate) fn expect_refusal(mut self, why: &str) {
        while self.hear().is_some() {}
        until(&format!("{why}: not said of {}", self.port), || {
            log::with(&self.port).iter().any(|line| line.contains(why))
        });
    }

    /// Offers, and returns the answer.
    pub(crate) fn offers(node: &TestNode, offer: Offer) -> (Self, Control) {
        let mut stranger = Self::connect(node);
        stranger.say(&hello());
        stranger.say(&unchecked(&Control::Offer(offer)));
        let answer = stranger.hear_control().expect("an answer");
        (stranger, answer)
    }
}
