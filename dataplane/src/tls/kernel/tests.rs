//! What streams of the kernel do beside what every transport does. Tests that need such a kernel are ignored; here they, and the
//! suite of all transports, run in guests that have one.

use std::io::Write;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use dwcp_api::{IoPath, KernelTlsChoice};
use dwcp_testbed::rxe::in_guests;
use rustls::crypto::CryptoProvider;
use rustls_pki_types::ServerName;

use super::*;
use crate::tls::testing::{identity, only, sockets, streams, with_limit};
use crate::tls::{DataStream, connect, sealed_bytes};
use crate::transport::{
    BufferId, Completion, ReceiveInto, Sealing, SendFrame, Stock, Transport, TransportOptions,
    Wait, open,
};

const IN_A_GUEST: [&str; 5] = ["--no-rdma", "--modules", "tls", "--timeout", "300"];

#[test]
fn the_suite_of_transports_in_a_guest() {
    let mut options = IN_A_GUEST.to_vec();
    options.extend(["--env", "DWCP_TEST_KERNEL_TLS=1", "--memory", "2048"]);
    in_guests(&options, "--include-ignored", "transport::suite::", 11);
}

#[test]
fn streams_of_the_kernel_in_a_guest() {
    let tests = "tls::kernel::tests::ends_";
    in_guests(&IN_A_GUEST, "--include-ignored", tests, 8);
}

fn provider() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

/// One end of a stream.
struct End {
    transport: Box<dyn Transport>,
    into: BufferId,
}

impl End {
    fn new(stream: DataStream, io: IoPath, kernel_tls: KernelTlsChoice) -> Self {
        let opened = open(TransportOptions {
            io,
            send: dwcp_api::SendChoice::Auto,
            buffers: 8,
            sealed: true,
            kernel_tls,
            node: None,
            stock: Stock::default(),
            ram: None,
            rdma: None,
            bell: crate::transport::bell_for_tests(),
        });
        let mut transport = opened.unwrap().transport;
        let slot = transport.add_stream(stream, None).unwrap();
        assert_eq!(slot, 0);
        let into = transport.buffers().take().unwrap();
        Self { transport, into }
    }

    fn of_kernel(stream: DataStream, io: IoPath) -> Self {
        let end = Self::new(stream, io, KernelTlsChoice::Auto);
        assert_eq!(end.transport.sealing(0), Sealing::Kernel);
        end
    }

    fn send(&mut self, bytes: &[u8]) {
        let buffer = self.transport.buffers().take().unwrap();
        self.transport.buffers().bytes_mut(buffer)[..bytes.len()].copy_from_slice(bytes);
        self.transport
            .send(0, SendFrame::alone(buffer, 0..bytes.len()));
    }

    fn ask(&mut self) {
        self.transport
            .receive(0, ReceiveInto::buffer(self.into, 0..1 << 16));
    }

    /// Waits a moment. Returns bytes that came, and why the stream is over if it is.
    fn look(&mut self) -> (Vec<u8>, Option<String>) {
        let mut done = vec![];
        let wait = Wait::Upto(Duration::from_millis(1));
        self.transport.wait(wait, &mut done).unwrap();
        let (mut came, mut over) = (vec![], None);
        for done in done {
            match done {
                Completion::Sent { buffer, .. } => self.transport.buffers().give(buffer),
                Completion::Received { bytes, .. } => {
                    let buffer = self.transport.buffers().bytes_mut(self.into);
                    came.extend_from_slice(&buffer[..bytes]);
                    self.ask();
                }
                Completion::Closed { error, .. } => over = Some(error.to_string()),
                Completion::Rung => {}
            }
        }
        (came, over)
    }

    /// Why the stream ends.
    fn end(&mut self) -> String {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let (_, Some(why)) = self.look() {
                return why;
            }
            assert!(Instant::now() < deadline, "it does not end");
        }
    }
}

/// Says `said` from one end to the other.
fn say(from: &mut End, to: &mut End, said: &[u8]) {
    let (mut came, mut left) = (vec![], said);
    let deadline = Instant::now() + Duration::from_secs(20);
    while came.len() < said.len() {
        assert!(Instant::now() < deadline, "{} bytes came", came.len());
        if from.transport.buffers().free() > 0 && !left.is_empty() {
            let (part, rest) = left.split_at(left.len().min(300_000));
            from.send(part);
            left = rest;
        }
        let (_, over) = from.look();
        assert_eq!(over, None);
        let (bytes, over) = to.look();
        assert_eq!(over, None);
        came.extend(bytes);
    }
    assert!(came == said, "bytes differ");
}

const IOS: [IoPath; 2] = [IoPath::Poll, IoPath::Uring];

#[test]
fn kernels_are_told_apart_by_their_release() {
    for old in ["6.1.0-57-cloud-amd64", "6.4.16", "5.15.0", "what"] {
        assert!(!wakes_for_whole_records(old), "{old}");
    }
    for new in ["6.5.0", "6.12.95+deb12-amd64", "6.18.44-fc-v857", "7.0-rc1"] {
        assert!(wakes_for_whole_records(new), "{new}");
    }
}

/// On the wire it is the same TLS, whoever seals.
#[test]
#[ignore = "needs kernel TLS"]
fn ends_of_every_cipher_speak_with_each_other_and_with_rustls() {
    use KernelTlsChoice::{Auto, Off};
    let said: Vec<u8> = (0..2_000_003_u32).map(|at| ((at * 7) >> 3) as u8).collect();
    assert_eq!(KernelTls::find().unwrap().ciphers, Cipher::ALL);
    for suite in 0..3 {
        let identity = identity(only(suite));
        for choices in [[Auto, Auto], [Auto, Off], [Off, Auto]] {
            for io in IOS {
                let [one, other] = streams(&identity);
                let mut one = End::new(one, io, choices[0]);
                let mut other = End::new(other, io, choices[1]);
                for (end, choice) in [(&one, choices[0]), (&other, choices[1])] {
                    let is_kernel = end.transport.sealing(0) == Sealing::Kernel;
                    assert_eq!(is_kernel, choice == Auto, "suite {suite}");
                }
                one.ask();
                other.ask();
                // The client has the server's tickets before it.
                say(&mut other, &mut one, &said);
                say(&mut one, &mut other, &said);
                say(&mut other, &mut one, b"and back");
            }
        }
    }
}

#[test]
#[ignore = "needs kernel TLS"]
fn ends_tell_an_end_from_a_cut() {
    let identity = identity(provider());
    for io in IOS {
        // Nothing is under way: it is said.
        let [one, mut other] = streams(&identity).map(|end| End::of_kernel(end, io));
        other.ask();
        drop(one);
        assert_eq!(other.end(), "the other side closed the connection");
        // By rustls, too.
        let [one, other] = streams(&identity);
        let one = End::new(one, io, KernelTlsChoice::Off);
        let mut other = End::of_kernel(other, io);
        other.ask();
        drop(one);
        assert_eq!(other.end(), "the other side closed the connection");
        // Between two records, and within one.
        for rest in [0, 1, 700] {
            let [one, other] = streams(&identity);
            let mut other = End::of_kernel(other, io);
            other.ask();
            let mut sealed = seal(one.sealed.unwrap(), &[7; 1000]);
            sealed.truncate(sealed.len() - rest);
            (&one.socket).write_all(&sealed).unwrap();
            one.socket.shutdown(Shutdown::Write).unwrap();
            let why = other.end();
            assert!(why.contains("broke, or was cut"), "{io:?}: {why}");
        }
    }
}

fn seal(mut stream: SealedStream, plain: &[u8]) -> Vec<u8> {
    let mut sealed = vec![0; sealed_bytes(plain.len())];
    let bytes = stream.session.seal(plain, &mut sealed).unwrap();
    sealed.truncate(bytes);
    sealed
}

#[test]
#[ignore = "needs kernel TLS"]
fn ends_find_what_was_changed_on_the_way() {
    let identity = identity(provider());
    let cases = [
        (500, "does not decrypt"),
        // Of the header: what it is, its version, its length.
        (1, "no TLS record"),
        (3, "no TLS record"),
    ];
    for io in IOS {
        for (at, words) in cases {
            let [one, other] = streams(&identity);
            let mut other = End::of_kernel(other, io);
            other.ask();
            let mut sealed = seal(one.sealed.unwrap(), &[7; 1000]);
            sealed[at] ^= 0xF0;
            (&one.socket).write_all(&sealed).unwrap();
            let why = other.end();
            assert!(why.contains(words), "{io:?}, byte {at}: {why}");
        }
    }
}

/// And what came before them is not lost.
#[test]
#[ignore = "needs kernel TLS"]
fn ends_hear_alerts() {
    let identity = identity(provider());
    for io in IOS {
        let [one, other] = streams(&identity);
        let kernel = KernelTls::find().unwrap();
        let sealed = one.sealed.unwrap();
        let handed = KernelStream::hand_over(&one.socket, sealed, &kernel);
        assert!(matches!(handed, HandedOver::Kernel(_)), "{handed:?}");
        (&one.socket).write_all(b"before").unwrap();
        words::alert(&one.socket, AlertDescription::AccessDenied).unwrap();
        let mut other = End::of_kernel(other, io);
        other.ask();
        let (mut came, mut over) = (vec![], None);
        while over.is_none() {
            let (bytes, why) = other.look();
            came.extend(bytes);
            over = why;
        }
        assert_eq!(came, b"before");
        let why = over.unwrap();
        assert!(why.contains("takes no TLS"), "{why}");
    }
}

#[test]
#[ignore = "needs kernel TLS"]
fn ends_do_not_follow_a_peer_that_renews_its_key() {
    let identity = identity(provider());
    for io in IOS {
        let [one, other] = streams(&identity);
        let mut other = End::of_kernel(other, io);
        other.ask();
        let mut sealed = one.sealed.unwrap();
        sealed.session.renew_keys().unwrap();
        (&one.socket)
            .write_all(&seal(sealed, b"under a new key"))
            .unwrap();
        let why = other.end();
        assert!(why.contains("renewed its key"), "{io:?}: {why}");
        // Nor anything else that is said within TLS.
        let [one, other] = streams(&identity);
        let kernel = KernelTls::find().unwrap();
        let sealed = one.sealed.unwrap();
        let _one = KernelStream::hand_over(&one.socket, sealed, &kernel);
        let mut other = End::of_kernel(other, io);
        other.ask();
        words::say_handshake(&one.socket, &[1, 0, 0, 1, 0]).unwrap();
        let why = other.end();
        assert!(why.contains("not asked for"), "{io:?}: {why}");
    }
}

/// Records are counted by the kernel, and the stream ends before the limit.
#[test]
#[ignore = "needs kernel TLS"]
fn ends_stop_before_a_key_has_sealed_too_much() {
    const LIMIT: u64 = 4096;
    let identity = identity(with_limit(LIMIT));
    for io in IOS {
        for frame_bytes in [100, 500_000] {
            let [one, other] = streams(&identity);
            let socket = one.socket.try_clone().unwrap();
            let session = &one.sealed.as_ref().unwrap().session;
            let (cipher, limit) = session.cipher().unwrap();
            assert_eq!(limit, LIMIT);
            let mut one = End::of_kernel(one, io);
            let mut other = End::of_kernel(other, io);
            other.ask();
            let (frame, mut records) = (vec![7; frame_bytes], 0);
            let why = loop {
                if one.transport.buffers().free() > 0 {
                    one.send(&frame);
                }
                let seen = keys::sealed_records(&socket, cipher);
                records = seen.unwrap_or(records).max(records);
                other.look();
                if let (_, Some(why)) = one.look() {
                    break why;
                }
            };
            assert!(why.contains("near its limit"), "{io:?}: {why}");
            assert!((LIMIT / 2..LIMIT).contains(&records), "{records} records");
        }
    }
}

/// Where the kernel opens records the tickets among them are not lost: the next connection takes one.
#[test]
#[ignore = "needs kernel TLS"]
fn ends_keep_the_tickets_that_come() {
    let identity = identity(provider());
    let [one, other] = streams(&identity);
    let mut one = End::of_kernel(one, IoPath::Poll);
    let mut other = End::of_kernel(other, IoPath::Poll);
    one.ask();
    say(&mut other, &mut one, b"behind the tickets");
    let [socket, accepting] = sockets();
    let name = ServerName::try_from("b").unwrap();
    let time = Duration::from_secs(10);
    std::thread::scope(|scope| {
        let server = scope.spawn(|| crate::tls::accept(&identity, accepting, time).unwrap());
        assert!(
            connect(&identity, socket, &name, time)
                .unwrap()
                .is_resumed()
        );
        assert!(server.join().unwrap().is_resumed());
    });
}

/// What was read before the switch stays with who has read it.
#[test]
#[ignore = "needs kernel TLS"]
fn ends_with_bytes_that_came_early_stay_with_rustls() {
    let identity = identity(provider());
    for io in IOS {
        let [one, mut other] = streams(&identity);
        other.sealed.as_mut().unwrap().plain = b"early".to_vec();
        let mut one = End::of_kernel(one, io);
        let mut other = End::new(other, io, KernelTlsChoice::Auto);
        assert_eq!(other.transport.sealing(0), Sealing::Transport);
        other.ask();
        one.ask();
        let mut came = vec![];
        while came.len() < 5 {
            came.extend(other.look().0);
        }
        assert_eq!(came, b"early");
        say(&mut one, &mut other, b"late");
        say(&mut other, &mut one, b"and back");
    }
}
