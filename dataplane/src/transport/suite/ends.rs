//! Two ends of a stream, of each kind.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use dwcp_api::{IoPath, KernelTlsChoice, SendChoice};
use dwcp_wire::{StreamHello, StreamRole};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::ram::RamLayout;
use crate::tls::{DataStream, Identity, testing};
use crate::transport::{
    QueueLink, RdmaListener, RdmaMemory, RdmaRequest, Sealing, Slot, Stock, Transport,
    TransportOptions, Wait, find_route, open,
};

/// What a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Poll,
    Uring,
    /// Queue pairs, with poll beside.
    Rdma,
    /// TLS by the kernel, over poll.
    KernelPoll,
    /// The same over the ring.
    KernelUring,
}

impl Kind {
    /// Whether its streams are sockets whose records the kernel seals.
    pub(crate) const fn is_kernel(self) -> bool {
        matches!(self, Self::KernelPoll | Self::KernelUring)
    }
}

/// Says that the kernel seals here, and that this is to be tested.
const KERNEL_TLS: &str = "DWCP_TEST_KERNEL_TLS";

/// The address of this machine's device, if it has one to test with.
pub(crate) fn device() -> Option<IpAddr> {
    let own = std::env::var("DWCP_RXE_OWN").ok()?;
    Some(own.parse().expect("DWCP_RXE_OWN is an address"))
}

/// Runs a test on every transport that this machine has.
pub(crate) fn on_each(test: fn(Kind)) {
    match device() {
        Some(_) => test(Kind::Rdma),
        None => on_tcp(test),
    }
}

/// The same for what TCP alone has.
pub(crate) fn on_tcp(test: fn(Kind)) {
    let kinds = match std::env::var_os(KERNEL_TLS) {
        None => [Kind::Poll, Kind::Uring],
        Some(_) => [Kind::KernelPoll, Kind::KernelUring],
    };
    for kind in kinds {
        match open(options(kind, 1)) {
            Ok(_) => test(kind),
            Err(error) => println!("skipped: {kind:?}: {error}"),
        }
    }
}

pub(crate) fn bell() -> (EventFd, OwnedFd) {
    let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap();
    let watched: OwnedFd = bell.as_fd().try_clone_to_owned().unwrap();
    (bell, watched)
}

pub(crate) fn options(kind: Kind, buffers: usize) -> TransportOptions {
    TransportOptions {
        io: match kind {
            Kind::Uring | Kind::KernelUring => IoPath::Uring,
            Kind::Poll | Kind::KernelPoll | Kind::Rdma => IoPath::Poll,
        },
        send: SendChoice::Auto,
        buffers,
        sealed: kind.is_kernel(),
        kernel_tls: KernelTlsChoice::Auto,
        node: None,
        stock: Stock::default(),
        ram: None,
        rdma: None,
        bell: bell().1,
    }
}

/// The end that sends frames, and the one that gets them, each over RAM of its own.
pub(crate) fn transports(
    kind: Kind,
    buffers: [usize; 2],
    ram: [&Arc<RamLayout>; 2],
) -> [Box<dyn Transport>; 2] {
    let memory = [
        RdmaMemory::of_source(ram[0]),
        RdmaMemory::of_destination(ram[1]),
    ];
    let end = |index: usize| {
        let options = TransportOptions {
            ram: Some(Arc::clone(ram[index])),
            rdma: (kind == Kind::Rdma).then(|| Arc::clone(&memory[index])),
            ..options(kind, buffers[index])
        };
        open(options).unwrap().transport
    };
    [end(0), end(1)]
}

/// The same over RAM that nobody looks at.
pub(crate) fn plain_transports(kind: Kind, buffers: [usize; 2]) -> [Box<dyn Transport>; 2] {
    let ram = Arc::new(crate::ram::testing::ram(&[1]));
    transports(kind, buffers, [&ram, &ram])
}

/// Both ends of a stream, the sender's first.
pub(crate) fn pair(kind: Kind) -> [DataStream; 2] {
    if !kind.is_kernel() {
        return testing::sockets().map(DataStream::from);
    }
    static IDENTITY: LazyLock<Identity> =
        LazyLock::new(|| testing::identity(rustls::crypto::aws_lc_rs::default_provider()));
    testing::streams(&IDENTITY)
}

/// Connects two ends by one more stream; at the first end in the place of one that is over, if asked.
pub(crate) fn connect(
    kind: Kind,
    from: &mut dyn Transport,
    to: &mut dyn Transport,
    instead_of: Option<Slot>,
) -> (Slot, Slot) {
    if kind != Kind::Rdma {
        let [one, other] = pair(kind);
        let slot = from.add_stream(one, instead_of).unwrap();
        let there = to.add_stream(other, None).unwrap();
        if kind.is_kernel() {
            assert_eq!(from.sealing(slot), Sealing::Kernel);
            assert_eq!(to.sealing(there), Sealing::Kernel);
        }
        return (slot, there);
    }
    let (link, listener) = ask();
    let slot = from.add_queue(link, instead_of).unwrap();
    let request = listener.next(Duration::from_secs(10)).unwrap();
    let RdmaRequest { id, hello } = request.expect("a request");
    let other = to.add_queue(QueueLink::Answer { id, hello }, None);
    let mut none = vec![];
    for _ in 0..500 {
        from.wait(Wait::Upto(Duration::from_millis(2)), &mut none)
            .unwrap();
        to.wait(Wait::No, &mut none).unwrap();
    }
    assert!(none.is_empty(), "{none:?}");
    (slot, other.unwrap())
}

/// A queue pair for the sending end, and who is asked for it.
pub(crate) fn ask() -> (QueueLink, RdmaListener) {
    let address = SocketAddr::new(device().unwrap(), 0);
    let listener = RdmaListener::bind(address).unwrap().expect("a device");
    let id = find_route(listener.address_for(address.ip()), Duration::from_secs(10));
    let hello = StreamHello {
        token: 1,
        index: 0,
        role: StreamRole::Data,
        generation: 0,
    };
    let id = id.unwrap();
    (QueueLink::Ask { id, hello }, listener)
}
