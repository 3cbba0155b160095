//! A device, pairs of queue pairs on it, and pages that say what they are.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dwcp_rdma::{
    Access, Buffer, CompletionQueue, CompletionStatus, ConnectParameters, ConnectionEvent,
    ConnectionEventKind, ConnectionId, Context, DeviceList, Endpoint, EventChannel, Init,
    MemoryRegion, Path, Patience, ProtectionDomain, QueuePair, QueuePairOptions, ReadyToSend,
    SharedReceiveQueue, ToInit, ToReadyToReceive, ToReadyToSend, WorkCompletion,
};

pub(crate) const PAGE: usize = 4096;
pub(crate) const SENDS_MAX: u32 = 64;
pub(crate) const INLINE_BYTES: u32 = 64;
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// One end: everything that queue pairs are made of.
pub(crate) struct Node {
    pub(crate) domain: Arc<ProtectionDomain>,
    pub(crate) completions: Arc<CompletionQueue>,
    pub(crate) shared: Option<Arc<SharedReceiveQueue>>,
    /// Completions that came together with those that were waited for.
    early: Mutex<Vec<WorkCompletion>>,
}

impl Node {
    pub(crate) fn new() -> Self {
        let list = DeviceList::get().expect("an RDMA device");
        let device = list.iter().next().unwrap();
        Self::on(&device.open().unwrap())
    }

    pub(crate) fn on(context: &Arc<Context>) -> Self {
        Self {
            domain: ProtectionDomain::new(context).unwrap(),
            completions: CompletionQueue::new(context, 512).unwrap(),
            shared: None,
            early: Mutex::default(),
        }
    }

    pub(crate) fn with_shared_receives(mut self, capacity: u32) -> Self {
        self.shared = Some(SharedReceiveQueue::new(&self.domain, capacity, 1).unwrap());
        self
    }

    /// Registers that many new pages.
    pub(crate) fn pages(&self, pages: usize, access: Access) -> (Arc<Buffer>, Arc<MemoryRegion>) {
        let buffer = Arc::new(Buffer::new(pages * PAGE).unwrap());
        let all = 0..buffer.len();
        let region = MemoryRegion::register(&self.domain, buffer.clone(), all, access).unwrap();
        (buffer, region)
    }

    pub(crate) fn pair(&self, step: ToInit) -> QueuePair<Init> {
        let options = QueuePairOptions {
            send_completions: &self.completions,
            receive_completions: &self.completions,
            shared_receives: self.shared.as_ref(),
            sends_max: SENDS_MAX,
            receives_max: 32,
            spans_max: 4,
            inline_bytes_max: INLINE_BYTES,
        };
        let pair = QueuePair::new(&self.domain, &options).unwrap();
        pair.init(step).unwrap()
    }

    /// Waits for so many completions.
    pub(crate) fn completions(&self, count: usize) -> Vec<WorkCompletion> {
        let deadline = Instant::now() + LIMIT;
        let mut all = self.early.lock().unwrap();
        while all.len() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            let came = self.completions.wait(left, &mut all).unwrap();
            assert!(came > 0 || !left.is_zero(), "{count} wanted, came {all:?}");
        }
        all.drain(..count).collect()
    }

    /// Waits for one completion, a good one.
    pub(crate) fn good(&self) -> WorkCompletion {
        let completion = self.completions(1).remove(0);
        assert_eq!(completion.status, CompletionStatus::Success);
        completion
    }

    /// Nothing comes for a while.
    pub(crate) fn assert_quiet(&self) {
        let mut all = self.early.lock().unwrap();
        let wait = Duration::from_millis(50);
        self.completions.wait(wait, &mut all).unwrap();
        assert!(all.is_empty(), "{all:?}");
    }
}

/// Two queue pairs of one process, connected without the manager.
pub(crate) struct Two {
    pub(crate) one: Node,
    pub(crate) other: Node,
    pub(crate) here: QueuePair<ReadyToSend>,
    pub(crate) there: QueuePair<ReadyToSend>,
}

pub(crate) fn all_access() -> Access {
    Access::REMOTE_WRITE | Access::REMOTE_READ
}

impl Two {
    pub(crate) fn new() -> Self {
        Self::with(Patience::default())
    }

    pub(crate) fn with(patience: Patience) -> Self {
        let one = Node::new();
        let other = Node::on(one.domain.context());
        let (here, there) = connect_by_hand(&one, &other, patience);
        Self {
            one,
            other,
            here,
            there,
        }
    }
}

/// Connects a new queue pair of each.
pub(crate) fn connect_by_hand(
    one: &Node,
    other: &Node,
    patience: Patience,
) -> (QueuePair<ReadyToSend>, QueuePair<ReadyToSend>) {
    let context = one.domain.context();
    let port = context.query_port(1).unwrap();
    let gid = context.default_gid(1).unwrap().expect("an address");
    let pairs = [one, other].map(|node| node.pair(ToInit::new(1, all_access())));
    let endpoint = |pair: &QueuePair<Init>| Endpoint {
        queue_pair: pair.number(),
        first_packet: pair.number() * 3,
        gid: gid.address,
        lid: 0,
    };
    let [one_end, other_end] = [endpoint(&pairs[0]), endpoint(&pairs[1])];
    let path = |peer| Path {
        port: port.clone(),
        gid: gid.clone(),
        peer,
        mtu_bytes: port.active_mtu_bytes,
    };
    let [here, there] = pairs;
    let up = |pair: QueuePair<Init>, own: Endpoint, peer: Endpoint| {
        let pair = pair.ready_to_receive(ToReadyToReceive::new(&path(peer)));
        let step = ToReadyToSend::new(own.first_packet, patience);
        pair.unwrap().ready_to_send(step).unwrap()
    };
    (up(here, one_end, other_end), up(there, other_end, one_end))
}

/// What a page of that number holds.
pub(crate) fn page_of(number: usize) -> Vec<u8> {
    (0..PAGE)
        .map(|at| (number.wrapping_mul(31) ^ at ^ (at >> 8)) as u8)
        .collect()
}

pub(crate) fn fill(buffer: &Buffer, pages: usize) {
    for page in 0..pages {
        buffer.write(page * PAGE, &page_of(page)).unwrap();
    }
}

pub(crate) fn page_at(buffer: &Buffer, page: usize) -> Vec<u8> {
    buffer.bytes(page * PAGE..(page + 1) * PAGE).unwrap()
}

/// The next event of a channel.
pub(crate) fn event(channel: &Arc<EventChannel>) -> ConnectionEvent {
    channel.wait(LIMIT).unwrap().expect("an event")
}

/// The next event, of this kind.
#[macro_export]
macro_rules! expect_event {
    ($channel:expr, $kind:pat) => {{
        let event = $crate::common::event($channel);
        assert!(matches!(event.kind, $kind), "{event:?}");
        event
    }};
}

pub(crate) fn parameters<'a>(queue_pair: u32, private_data: &'a [u8]) -> ConnectParameters<'a> {
    ConnectParameters {
        queue_pair,
        shares_receives: false,
        private_data,
        retries: 6,
        receiver_not_ready_retries: 7,
    }
}

/// Looks for the way to a listener.
pub(crate) fn resolved(channel: &Arc<EventChannel>, peer: SocketAddr) -> ConnectionId {
    let id = ConnectionId::new(channel).unwrap();
    id.resolve_address(peer, Duration::from_secs(2)).unwrap();
    let found = event(channel);
    assert!(
        matches!(found.kind, ConnectionEventKind::AddressResolved),
        "{found:?}"
    );
    assert_eq!(found.connection, id.key());
    id.resolve_route(Duration::from_secs(2)).unwrap();
    expect_event!(channel, ConnectionEventKind::RouteResolved);
    id
}

/// With our own patience, or to see the difference, the manager's (`DWCP_RDMA_PATIENCE=manager`).
fn to_ready_to_send(id: &ConnectionId) -> ToReadyToSend {
    let step = id.to_ready_to_send().unwrap();
    match std::env::var("DWCP_RDMA_PATIENCE").as_deref() {
        Ok("manager") => step,
        _ => step.with_patience(Patience::default()),
    }
}

/// Takes a request, which has come.
pub(crate) fn accept(
    node: &Node,
    id: &ConnectionId,
    private_data: &[u8],
    before: impl FnOnce(&mut QueuePair<Init>),
) -> QueuePair<ReadyToSend> {
    let mut pair = node.pair(id.to_init(all_access()).unwrap());
    before(&mut pair);
    let pair = pair
        .ready_to_receive(id.to_ready_to_receive().unwrap())
        .unwrap();
    let pair = pair.ready_to_send(to_ready_to_send(id)).unwrap();
    id.accept(&parameters(pair.number(), private_data)).unwrap();
    pair
}

/// Goes on after the peer's response.
pub(crate) fn establish(id: &ConnectionId, pair: QueuePair<Init>) -> QueuePair<ReadyToSend> {
    let pair = pair
        .ready_to_receive(id.to_ready_to_receive().unwrap())
        .unwrap();
    let pair = pair.ready_to_send(to_ready_to_send(id)).unwrap();
    id.establish().unwrap();
    pair
}

/// The address of this node's device, which has one beside the loopback.
pub(crate) fn own_address(port: u16) -> SocketAddr {
    let address = std::env::var("DWCP_RXE_OWN").unwrap_or_else(|_| {
        let context = Node::new().domain.context().clone();
        let gid = context.default_gid(1).unwrap().expect("an address");
        gid.address.to_ipv4_mapped().expect("IPv4").to_string()
    });
    SocketAddr::new(address.parse().unwrap(), port)
}
