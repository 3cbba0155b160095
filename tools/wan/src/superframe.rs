//! What a TUN device with `IFF_VNET_HDR` gives: a 10-byte `virtio_net_hdr`, then an IP packet. One of
//! TCP over IPv4 may hold many segments (a superframe), which the link decides about one by one.
//!
//! | offset | bytes | what |
//! |--:|--:|---|
//! | 0 | 1 | flags; 1: the checksum is the receiver's to complete |
//! | 1 | 1 | kind of superframe; 0: a plain packet; 1: TCP over IPv4 |
//! | 2 | 2 | bytes of all headers |
//! | 4 | 2 | payload bytes of a segment |
//! | 6 | 2 | where the checksum starts, then its offset from there (2 bytes) |

use std::ops::Range;

/// Bytes before the IP packet.
pub(crate) const VNET_HEADER_BYTES: usize = 10;

const GSO_TYPE: usize = 1;
const GSO_SIZE: Range<usize> = 4..6;
const GSO_TCP_IPV4: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// How a superframe divides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superframe {
    ip_header_bytes: usize,
    /// Of IP and TCP.
    header_bytes: usize,
    payload_bytes: usize,
    segment_bytes: usize,
}

impl Superframe {
    /// None for a plain packet, and for one whose headers contradict it.
    pub(crate) fn find(frame: &[u8]) -> Option<Self> {
        let (vnet, packet) = frame.split_at_checked(VNET_HEADER_BYTES)?;
        if vnet[GSO_TYPE] != GSO_TCP_IPV4 {
            return None;
        }
        let segment_bytes = usize::from(u16::from_ne_bytes(vnet[GSO_SIZE].try_into().ok()?));
        let first = *packet.first()?;
        let ip_header_bytes = usize::from(first & 0x0f) * 4;
        let tcp = packet.get(ip_header_bytes..)?;
        let tcp_header_bytes = usize::from(tcp.get(12)? >> 4) * 4;
        let header_bytes = ip_header_bytes + tcp_header_bytes;
        let payload_bytes = packet.len().checked_sub(header_bytes)?;
        let is_sound = first >> 4 == 4
            && ip_header_bytes >= 20
            && packet[9] == PROTOCOL_TCP
            && tcp_header_bytes >= 20
            && segment_bytes > 0
            && payload_bytes > 0;
        is_sound.then_some(Self {
            ip_header_bytes,
            header_bytes,
            payload_bytes,
            segment_bytes,
        })
    }

    /// How many segments it holds.
    pub(crate) const fn segments(&self) -> usize {
        self.payload_bytes.div_ceil(self.segment_bytes)
    }

    /// Bytes of one segment as an IP packet.
    pub(crate) fn packet_bytes(&self, segment: usize) -> usize {
        self.header_bytes + self.payload(segment..segment + 1).len()
    }

    fn payload(&self, segments: Range<usize>) -> Range<usize> {
        let end = segments.end * self.segment_bytes;
        segments.start * self.segment_bytes..end.min(self.payload_bytes)
    }

    /// The frame of some of its segments: headers as the sender's own segmentation would have made
    /// them.
    pub(crate) fn part(&self, frame: &[u8], segments: Range<usize>) -> Box<[u8]> {
        if segments == (0..self.segments()) {
            return frame.into();
        }
        let payload = self.payload(segments.clone());
        let headers_end = VNET_HEADER_BYTES + self.header_bytes;
        let mut part = Vec::with_capacity(headers_end + payload.len());
        part.extend_from_slice(&frame[..headers_end]);
        part.extend_from_slice(&frame[headers_end..][payload.clone()]);
        if segments.len() == 1 {
            part[GSO_TYPE] = 0;
            part[GSO_SIZE].fill(0);
        }
        let (ip, tcp) = part[VNET_HEADER_BYTES..].split_at_mut(self.ip_header_bytes);
        self.mend_ip(ip, tcp.len(), segments.start);
        let offset = low_u32(payload.start);
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        tcp[4..8].copy_from_slice(&sequence.wrapping_add(offset).to_be_bytes());
        if segments.end < self.segments() {
            tcp[13] &= !FIN_PSH;
        }
        if segments.start > 0 {
            tcp[13] &= !CWR;
        }
        // The receiver completes the checksum: it starts as the sum of the pseudo header.
        let sum = sum(&ip[12..20]) + u32::from(PROTOCOL_TCP) + low_u32(tcp.len());
        tcp[16..18].copy_from_slice(&folded(sum).to_be_bytes());
        part.into()
    }

    fn mend_ip(&self, ip: &mut [u8], tcp_bytes: usize, first_segment: usize) {
        let total = low_u16(self.ip_header_bytes + tcp_bytes);
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(low_u16(first_segment));
        ip[4..6].copy_from_slice(&id.to_be_bytes());
        ip[10..12].fill(0);
        let checksum = !folded(sum(ip));
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Sum of 16-bit words, as of the Internet checksum.
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks_exact(2);
    words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum()
}

fn folded(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    low_u16(sum as usize)
}

/// A frame has at most 64 KiB: nothing is cut off.
#[expect(clippy::cast_possible_truncation, reason = "bounded by a frame's size")]
const fn low_u16(value: usize) -> u16 {
    value as u16
}

#[expect(clippy::cast_possible_truncation, reason = "bounded by a frame's size")]
const fn low_u32(value: usize) -> u32 {
    value as u32
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const SEGMENT: usize = 1000;

    /// 20 bytes of IP, 32 of TCP, as many of payload as asked.
    fn frame(payload: usize) -> Vec<u8> {
        let mut frame = vec![1, GSO_TCP_IPV4, 52, 0, 0, 0, 20, 0, 16, 0];
        frame[GSO_SIZE].copy_from_slice(&low_u16(SEGMENT).to_ne_bytes());
        let mut ip = [0; 20];
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&low_u16(52 + payload).to_be_bytes());
        ip[4..6].copy_from_slice(&0xfffe_u16.to_be_bytes());
        ip[9] = PROTOCOL_TCP;
        ip[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let mut tcp = [0; 32];
        tcp[4..8].copy_from_slice(&0xffff_fff0_u32.to_be_bytes());
        tcp[12] = 8 << 4;
        tcp[13] = 0x10 | FIN_PSH | CWR;
        frame.extend(ip);
        frame.extend(tcp);
        frame.extend((0..payload).map(|n| (n % 251) as u8));
        frame
    }

    #[test]
    fn parts_are_what_the_sender_would_have_segmented() {
        let whole = frame(4500);
        let superframe = Superframe::find(&whole).unwrap();
        assert_eq!(superframe.segments(), 5);
        assert_eq!(superframe.packet_bytes(0), 1052);
        assert_eq!(superframe.packet_bytes(4), 552);
        assert_eq!(*superframe.part(&whole, 0..5), whole[..]);
        let middle = superframe.part(&whole, 2..4);
        assert_eq!(middle.len(), VNET_HEADER_BYTES + 52 + 2 * SEGMENT);
        let (ip, tcp) = middle[VNET_HEADER_BYTES..].split_at(20);
        assert_eq!(folded(sum(ip)), 0xffff, "the IP checksum is right");
        assert_eq!(
            ip[2..6],
            [0x08, 0x04, 0x00, 0x00],
            "length 2052, id past its wrap"
        );
        assert_eq!(
            tcp[4..8],
            0x7c0_u32.to_be_bytes(),
            "sequence number past its wrap"
        );
        assert_eq!(tcp[13], 0x10, "neither the first nor the last");
        assert_eq!(tcp[32..], whole[VNET_HEADER_BYTES + 52..][2000..4000]);
        let last = superframe.part(&whole, 4..5);
        assert_eq!(last[GSO_TYPE], 0, "a single segment is a plain packet");
        assert_eq!(last[VNET_HEADER_BYTES + 20 + 13], 0x10 | FIN_PSH);
        assert_eq!(Superframe::find(&last), None);
    }

    #[test]
    fn what_contradicts_itself_is_a_plain_packet() {
        let whole = frame(4500);
        for length in 0..VNET_HEADER_BYTES + 53 {
            assert_eq!(Superframe::find(&whole[..length]), None, "{length}");
        }
        for (at, value) in [
            (1, 4),
            (10, 0x65),
            (10, 0x41),
            (19, 17),
            (42, 0),
            (42, 0xf0),
        ] {
            let mut bad = frame(8);
            bad[at] = value;
            assert_eq!(Superframe::find(&bad), None, "byte {at}: {value}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_divide_without_loss(
            mut bytes in vec(any::<u8>(), 0..3000), segment in 1..600_u16, first in any::<u8>(),
        ) {
            // Likely enough to be a superframe that most of these are.
            if let [_, kind, ..] = &mut bytes[..] {
                *kind = GSO_TCP_IPV4;
            }
            if bytes.len() > 60 {
                bytes[GSO_SIZE].copy_from_slice(&segment.to_ne_bytes());
                bytes[VNET_HEADER_BYTES] = 0x45 + first % 3;
                bytes[VNET_HEADER_BYTES + 9] = PROTOCOL_TCP;
            }
            if let Some(superframe) = Superframe::find(&bytes) {
                let headers = VNET_HEADER_BYTES + superframe.header_bytes;
                let count = superframe.segments();
                let parts = (0..count).map(|n| superframe.part(&bytes, n..n + 1));
                let payload: Vec<u8> = parts.flat_map(|part| part[headers..].to_vec()).collect();
                prop_assert!(payload == bytes[headers..]);
                let packets = (0..count).map(|n| superframe.packet_bytes(n)).sum::<usize>();
                prop_assert_eq!(packets, count * superframe.header_bytes + payload.len());
            }
        }
    }
}
