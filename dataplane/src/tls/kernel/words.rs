//! What TLS itself says on a stream whose records the kernel opens: alerts, tickets, key updates.
//!
//! The kernel hands such a record out only to a call that asks for its kind, and fails every other.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, TlsGetRecordType as Kind, cmsg_space, recvmsg,
};
use rustls::AlertDescription;
use socket2::{MsgHdr, SockRef};

use crate::tls::TlsError;

/// Bytes of a record, opened.
const RECORD_BYTES_MAX: usize = 16 * 1024;

/// A record that is no data.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Word {
    Alert(AlertDescription),
    /// Part of the messages of the handshake that come after it.
    Handshake(Vec<u8>),
}

/// Takes the next record, which is no data. `None` when there is none.
pub(super) fn hear(socket: &TcpStream) -> Result<Option<Word>, TlsError> {
    let mut bytes = vec![0; RECORD_BYTES_MAX];
    let mut control = vec![0; cmsg_space::<u8>()];
    let mut into = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let heard = match recvmsg::<()>(socket.as_raw_fd(), &mut into, Some(&mut control), flags) {
        Ok(heard) => heard,
        Err(nix::errno::Errno::EAGAIN) => return Ok(None),
        Err(errno) => return Err(io::Error::from(errno).into()),
    };
    let count = heard.bytes;
    let kind = heard
        .cmsgs()
        .map_err(io::Error::from)?
        .find_map(|message| match message {
            ControlMessageOwned::TlsGetRecordType(kind) => Some(kind),
            _ => None,
        });
    bytes.truncate(count);
    match (kind, &bytes[..]) {
        (Some(Kind::Alert), [_, description]) => Ok(Some(Word::Alert((*description).into()))),
        (Some(Kind::Handshake), [_, ..]) => Ok(Some(Word::Handshake(bytes))),
        _ => Err(TlsError::Unasked),
    }
}

/// The whole messages at the front of `said`, each with its kind, which are taken out of it.
pub(super) fn messages(said: &mut Vec<u8>) -> Vec<(u8, Vec<u8>)> {
    let mut whole = vec![];
    while let [kind, a, b, c, rest @ ..] = &said[..] {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some(content) = rest.get(..length) else {
            break;
        };
        whole.push((*kind, content.to_vec()));
        said.drain(..4 + length);
    }
    whole
}

/// Says an alert, where there is room for it.
pub(super) fn alert(socket: &TcpStream, description: AlertDescription) -> io::Result<()> {
    const WARNING: u8 = 1;
    const FATAL: u8 = 2;
    let level = match description {
        AlertDescription::CloseNotify => WARNING,
        _ => FATAL,
    };
    let alert = [level, description.into()];
    let (bytes, control) = ([IoSlice::new(&alert)], kind_of_record(Kind::Alert));
    let message = MsgHdr::new().with_buffers(&bytes).with_control(&control);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    SockRef::from(socket).sendmsg(&message, flags).map(drop)
}

/// Bytes of a control message with one byte in it: `cmsghdr`, the byte, and its padding.
const CONTROL_BYTES: usize = size_of::<libc::cmsghdr>() + size_of::<usize>();

/// The control message that says of what kind a record is to be.
fn kind_of_record(kind: Kind) -> [u8; CONTROL_BYTES] {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    const { assert!(std::mem::offset_of!(libc::cmsghdr, cmsg_level) == size_of::<usize>()) }
    let kind = match kind {
        Kind::Alert => 21,
        Kind::Handshake => 22,
        _ => 23,
    };
    let mut bytes = [0; CONTROL_BYTES];
    let (header, content) = bytes.split_at_mut(HEADER);
    let (length, place) = header.split_at_mut(size_of::<usize>());
    length.copy_from_slice(&(HEADER + 1).to_ne_bytes());
    place[..4].copy_from_slice(&libc::SOL_TLS.to_ne_bytes());
    place[4..].copy_from_slice(&libc::TLS_SET_RECORD_TYPE.to_ne_bytes());
    content[0] = kind;
    bytes
}

/// Sends bytes as a record of the handshake, as a peer does that renews its keys.
#[cfg(test)]
pub(super) fn say_handshake(socket: &TcpStream, said: &[u8]) -> io::Result<()> {
    let (bytes, control) = ([IoSlice::new(said)], kind_of_record(Kind::Handshake));
    let message = MsgHdr::new().with_buffers(&bytes).with_control(&control);
    SockRef::from(socket).sendmsg(&message, 0).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_wait_for_their_rest() {
        let mut said = vec![4, 0, 0, 2, 7, 8, 24, 0, 0, 1, 0, 4, 0, 0, 9, 1];
        let whole = messages(&mut said);
        assert_eq!(whole, [(4, vec![7, 8]), (24, vec![0])]);
        assert_eq!(said, [4, 0, 0, 9, 1]);
        assert!(messages(&mut said).is_empty());
    }
}
