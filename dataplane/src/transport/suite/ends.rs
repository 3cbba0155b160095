//! Two ends of a stream, of each kind.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use dwcp_api::{IoPath, SendChoice};
use dwcp_wire::{StreamHello, StreamRole};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::ram::{RamLayout, testing};
use crate::transport::{
    QueueLink, RdmaListener, RdmaMemory, RdmaRequest, Slot, Stock, Transport, TransportOptions,
    Wait, find_route, open,
};

/// What a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Poll,
    Uring,
    /// Queue pairs, with poll beside.
    Rdma,
}

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
    for kind in [Kind::Poll, Kind::Uring] {
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
            Kind::Uring => IoPath::Uring,
            Kind::Poll | Kind::Rdma => IoPath::Poll,
        },
        send: SendChoice::Auto,
        buffers,
        sealed: false,
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
    let ram = Arc::new(testing::ram(&[1]));
    transports(kind, buffers, [&ram, &ram])
}

pub(crate) fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (one, listener.accept().unwrap().0)
}

/// Connects two ends by one more stream; at the first end in the place of one that is over, if asked.
pub(crate) fn connect(
    kind: Kind,
    from: &mut dyn Transport,
    to: &mut dyn Transport,
    instead_of: Option<Slot>,
) -> (Slot, Slot) {
    if kind != Kind::Rdma {
        let (one, other) = pair();
        let slot = from.add(one, instead_of).unwrap();
        return (slot, to.add(other, None).unwrap());
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
