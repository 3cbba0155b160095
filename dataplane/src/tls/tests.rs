//! Sessions without a socket: keys that are renewed, bytes that are cut, changed or made up.

use proptest::prelude::*;
use rustls_pki_types::ServerName;

use super::testing::{identity, with_limit};
use super::*;

/// Carries what `from` has to say to `to`. Returns whether there was something.
fn carry(from: &mut Session, to: &mut Session, plain: &mut Vec<u8>) -> bool {
    let mut words = from.take_aside();
    let mut bytes = &mut words[..];
    let said = !bytes.is_empty();
    while !bytes.is_empty() {
        let opened = to.open(bytes, plain).unwrap();
        bytes = &mut bytes[opened.used..];
        if opened.what == Sealed::Part {
            break;
        }
    }
    said
}

/// A client and a server whose handshake is done.
fn pair(identity: &Identity) -> (Session, Session) {
    let name = ServerName::try_from("b").unwrap();
    let mut client = Session::client(identity, name).unwrap();
    let mut server = Session::server(identity).unwrap();
    let mut nothing = vec![];
    client.open(&mut [], &mut nothing).unwrap();
    while carry(&mut client, &mut server, &mut nothing)
        | carry(&mut server, &mut client, &mut nothing)
    {}
    assert!(!client.is_handshaking() && !server.is_handshaking());
    (client, server)
}

fn seal(session: &mut Session, plain: &[u8]) -> Vec<u8> {
    let mut sealed = vec![0; sealed_bytes(plain.len())];
    let bytes = session.seal(plain, &mut sealed).unwrap();
    sealed.truncate(bytes);
    sealed
}

fn open(session: &mut Session, sealed: &mut [u8]) -> Result<Vec<u8>, TlsError> {
    let (mut plain, mut at) = (vec![], 0);
    loop {
        let opened = session.open(&mut sealed[at..], &mut plain)?;
        at += opened.used;
        if opened.what != Sealed::Record {
            return Ok(plain);
        }
    }
}

#[test]
fn a_frame_fits_into_what_is_reckoned_for_it() {
    let (mut client, mut server) = pair(&identity(with_limit(1 << 20)));
    for bytes in [1, 64, 16 << 10, (16 << 10) + 1, 530_000] {
        let plain: Vec<u8> = (0..bytes).map(|at| at as u8).collect();
        let mut sealed = seal(&mut client, &plain);
        assert!(!sealed.windows(64).any(|part| plain.starts_with(part)));
        assert_eq!(open(&mut server, &mut sealed).unwrap(), plain);
    }
}

/// Nobody asks for it: rustls renews the keys when the cipher's limit is near, and the peer follows.
#[test]
fn keys_are_renewed_before_the_limit_of_the_cipher() {
    const LIMIT: u64 = 8;
    let (mut few, mut few_peer) = pair(&identity(with_limit(LIMIT)));
    let (mut many, mut many_peer) = pair(&identity(with_limit(1 << 20)));
    let mut renewals = 0;
    for round in 0..10 * LIMIT as usize {
        let plain = vec![round as u8; 1000];
        let (mut renewing, mut plainly) = (seal(&mut few, &plain), seal(&mut many, &plain));
        // A key update is a record more.
        renewals += usize::from(renewing.len() > plainly.len());
        assert_eq!(open(&mut few_peer, &mut renewing).unwrap(), plain);
        assert_eq!(open(&mut many_peer, &mut plainly).unwrap(), plain);
        // The peer was asked to renew its own.
        let answer = seal(&mut few_peer, b"seen");
        assert_eq!(open(&mut few, &mut answer.clone()).unwrap(), b"seen");
    }
    assert!(renewals >= 9, "{renewals} renewals");
}

#[test]
fn keys_are_renewed_when_that_is_asked_for() {
    let (mut client, mut server) = pair(&identity(with_limit(1 << 20)));
    for _ in 0..100 {
        client.renew_keys().unwrap();
        let mut sealed = seal(&mut client, b"under new keys");
        assert_eq!(open(&mut server, &mut sealed).unwrap(), b"under new keys");
        let mut answer = seal(&mut server, b"seen");
        assert_eq!(open(&mut client, &mut answer).unwrap(), b"seen");
    }
}

#[test]
fn a_record_that_is_lost_or_repeated_is_found() {
    let (mut client, mut server) = pair(&identity(with_limit(1 << 20)));
    let first = seal(&mut client, b"first");
    open(&mut server, &mut first.clone()).unwrap();
    let error = open(&mut server, &mut first.clone()).unwrap_err();
    assert!(error.to_string().contains("does not decrypt"), "{error}");
    // It stays so, and nothing is said any more.
    assert!(matches!(open(&mut server, &mut []), Err(TlsError::Broken)));
    assert!(matches!(
        server.seal(b"more", &mut [0; 1024]),
        Err(TlsError::Broken)
    ));
    let (mut client, mut server) = pair(&identity(with_limit(1 << 20)));
    let _lost = seal(&mut client, b"first");
    let mut second = seal(&mut client, b"second");
    assert!(open(&mut server, &mut second).is_err());
}

#[test]
fn a_record_in_parts_waits_for_the_rest() {
    let (mut client, mut server) = pair(&identity(with_limit(1 << 20)));
    let mut sealed = seal(&mut client, &[7; 5000]);
    let mut plain = vec![];
    for bytes in [0, 1, 4, 5, 100, sealed.len() - 1] {
        let opened = server.open(&mut sealed[..bytes], &mut plain).unwrap();
        assert_eq!(
            opened,
            Opened {
                used: 0,
                what: Sealed::Part
            }
        );
    }
    assert_eq!(open(&mut server, &mut sealed).unwrap(), [7; 5000]);
    let mut end = vec![0; sealed_bytes(0)];
    let bytes = client.seal_end(&mut end).unwrap();
    let opened = server.open(&mut end[..bytes], &mut plain).unwrap();
    assert_eq!(opened.what, Sealed::End);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A peer may say anything, in the handshake and behind it: an error, and no panic.
    #[test]
    fn made_up_bytes_are_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        kind in 20_u8..25,
        change in any::<prop::sample::Index>(),
    ) {
        let identity = identity(with_limit(1 << 20));
        let mut record = vec![kind, 3, 3];
        record.extend((bytes.len() as u16).to_be_bytes());
        record.extend(&bytes);
        let mut plain = vec![];
        let _ = Session::server(&identity).unwrap().open(&mut record.clone(), &mut plain);
        let _ = Session::server(&identity).unwrap().open(&mut bytes.clone(), &mut plain);
        let (mut client, mut server) = pair(&identity);
        let _ = open(&mut server, &mut record.clone());
        let _ = server.seal(b"still there", &mut [0; 1024]);
        let _ = open(&mut client, &mut record);
        // A bit of a good record.
        let (mut client, mut server) = pair(&identity);
        let mut sealed = seal(&mut client, &[1; 300]);
        let at = change.index(sealed.len());
        sealed[at] ^= 1;
        if let Ok(plain) = open(&mut server, &mut sealed) {
            // The length says that more is to come, or its version is not looked at.
            prop_assert!(plain.is_empty() || plain == [1; 300]);
        }
    }
}

/// Whoever has ended writes no more, whether the other end has ended, too, or not.
#[test]
fn nothing_is_written_after_the_end() {
    for is_answered in [false, true] {
        let (mut client, mut server) = pair(&identity(with_limit(1 << 20)));
        let mut end = vec![0; sealed_bytes(0)];
        let bytes = client.seal_end(&mut end).unwrap();
        let mut plain = vec![];
        let opened = server.open(&mut end[..bytes], &mut plain).unwrap();
        assert_eq!(opened.what, Sealed::End);
        if is_answered {
            // It may say more, until it ends, too.
            let mut words = seal(&mut server, b"words");
            assert_eq!(open(&mut client, &mut words).unwrap(), b"words");
            let mut end = vec![0; sealed_bytes(0)];
            let bytes = server.seal_end(&mut end).unwrap();
            let opened = client.open(&mut end[..bytes], &mut plain).unwrap();
            assert_eq!(opened.what, Sealed::End);
        }
        let mut room = vec![0; sealed_bytes(5)];
        for session in [&mut client, &mut server] {
            if session.seal_end(&mut room).is_err() {
                assert!(matches!(
                    session.seal(b"words", &mut room),
                    Err(TlsError::Ended)
                ));
            } else {
                assert!(!is_answered);
            }
        }
    }
}
