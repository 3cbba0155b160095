//! The connection manager.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use dwcp_rdma::{
    Access, CompletedOperation, CompletionStatus, ConnectionEventKind, ConnectionId, EventChannel,
    Payload, RdmaError, RemoteAddress, SendRequest,
};

use super::NUMBER;
use crate::common::{
    LIMIT, Node, PAGE, accept, all_access, establish, event, fill, own_address, page_at, page_of,
    parameters, resolved,
};
use crate::expect_event;

/// Whoever dies is given this in its environment: where to connect to.
const VICTIM: &str = "DWCP_RDMA_VICTIM_CONNECTS_TO";

fn listener() -> (Arc<EventChannel>, ConnectionId, SocketAddr) {
    let channel = EventChannel::new().unwrap();
    let listener = ConnectionId::new(&channel).unwrap();
    listener.listen(own_address(0), 4).unwrap();
    let address = own_address(listener.local_port());
    assert_ne!(address.port(), 0);
    (channel, listener, address)
}

fn request(channel: &Arc<EventChannel>, listener: &ConnectionId) -> (ConnectionId, Vec<u8>) {
    let event = event(channel);
    assert_eq!(event.connection, listener.key());
    match event.kind {
        ConnectionEventKind::ConnectRequest(id) => (id, event.private_data),
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn the_manager_connects_and_carries_private_data_both_ways() {
    let (passive, listener, address) = listener();
    let active = EventChannel::new().unwrap();
    assert!(active.next_event().unwrap().is_none());
    let id = resolved(&active, address);
    let node = Node::on(&id.open_device().unwrap());
    let (source, from) = node.pages(4, Access::SOURCE);
    fill(&source, 4);
    let pair = node.pair(id.to_init(all_access()).unwrap());
    id.connect(&parameters(pair.number(), b"token of the migration"))
        .unwrap();

    let (served, data) = request(&passive, &listener);
    assert!(data.starts_with(b"token of the migration"));
    assert!(data[22..].iter().all(|byte| *byte == 0));
    let destination = Node::on(&served.open_device().unwrap());
    let (target, to) = destination.pages(4, Access::REMOTE_WRITE);
    let place = to.remote_address(0).unwrap().to_bytes();
    let there = accept(&destination, &served, &place, |pair| {
        pair.post_receive(&NUMBER).unwrap();
    });

    let response = expect_event!(&active, ConnectionEventKind::ConnectResponse);
    assert_eq!(response.connection, id.key());
    let place = RemoteAddress::from_bytes(&response.private_data).unwrap();
    let mut here = establish(&id, pair);
    let established = expect_event!(&passive, ConnectionEventKind::Established);
    assert_eq!(established.connection, served.key());

    let span = from.span(0..4 * PAGE).unwrap();
    let mut batch = here.send_batch();
    batch
        .push(&SendRequest::write(&span, place).immediate(4).signalled())
        .unwrap();
    batch.post().unwrap();
    assert_eq!(destination.good().immediate, Some(4));
    assert_eq!(page_at(&target, 3), page_of(3));
    node.good();

    id.disconnect().unwrap();
    let end = expect_event!(&passive, ConnectionEventKind::Disconnected);
    assert_eq!(end.connection, served.key());
    assert!(end.kind.is_end());
    served.disconnect().unwrap();
    expect_event!(&active, ConnectionEventKind::Disconnected);
    drop((here, there));
}

#[test]
#[ignore = "needs an RDMA device"]
fn what_comes_establishes_a_connection_whose_last_message_is_lost() {
    let (passive, listener, address) = listener();
    let active = EventChannel::new().unwrap();
    let id = resolved(&active, address);
    let node = Node::on(&id.open_device().unwrap());
    let pair = node.pair(id.to_init(all_access()).unwrap());
    id.connect(&parameters(pair.number(), &[])).unwrap();
    let (served, _) = request(&passive, &listener);
    assert!(served.peer_has_sent().is_err(), "not accepted yet");
    let _there = accept(&node, &served, &[], |pair| {
        pair.post_receive(&NUMBER).unwrap();
    });
    expect_event!(&active, ConnectionEventKind::ConnectResponse);
    // As if `establish` had been called and got lost.
    let step = id.to_ready_to_receive().unwrap();
    let pair = pair.ready_to_receive(step).unwrap();
    let mut here = pair.ready_to_send(id.to_ready_to_send().unwrap()).unwrap();
    let mut batch = here.send_batch();
    batch
        .push(&SendRequest::send(Payload::Inline(&[])))
        .unwrap();
    batch.post().unwrap();
    let came = node.good();
    assert_eq!(came.operation, Some(CompletedOperation::Receive));
    assert!(passive.next_event().unwrap().is_none());
    served.peer_has_sent().unwrap();
    let established = expect_event!(&passive, ConnectionEventKind::Established);
    assert_eq!(established.connection, served.key());
    served.peer_has_sent().unwrap();
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_connection_is_rejected_with_a_reason_or_since_nobody_listens() {
    let (passive, listener, address) = listener();
    let active = EventChannel::new().unwrap();
    let id = resolved(&active, address);
    let node = Node::on(&id.open_device().unwrap());
    let pair = node.pair(id.to_init(all_access()).unwrap());
    let too_much = id
        .connect(&parameters(pair.number(), &[0; 57]))
        .unwrap_err();
    assert!(matches!(
        too_much,
        RdmaError::PrivateDataTooLong {
            bytes: 57,
            limit: 56
        }
    ));
    id.connect(&parameters(pair.number(), b"hello")).unwrap();
    let (served, _) = request(&passive, &listener);
    served.reject(b"busy until noon").unwrap();
    let rejected = expect_event!(&active, ConnectionEventKind::Rejected);
    assert!(
        rejected.private_data.starts_with(b"busy until noon"),
        "{rejected:?}"
    );
    assert!(rejected.kind.is_end());

    // A request that is dropped is rejected, too, without words.
    let id = resolved(&active, address);
    let pair = node.pair(id.to_init(all_access()).unwrap());
    id.connect(&parameters(pair.number(), b"hello")).unwrap();
    drop(request(&passive, &listener));
    expect_event!(&active, ConnectionEventKind::Rejected);

    drop(listener);
    let id = resolved(&active, address);
    let pair = node.pair(id.to_init(all_access()).unwrap());
    id.connect(&parameters(pair.number(), b"hello")).unwrap();
    let rejected = expect_event!(&active, ConnectionEventKind::Rejected);
    assert_ne!(rejected.status, 0);

    // Steps in a wrong order are errors, not crashes.
    let id = ConnectionId::new(&active).unwrap();
    assert_eq!((id.device_name(), id.device_port()), (None, 0));
    assert!(id.resolve_route(Duration::from_secs(1)).is_err());
    assert!(id.connect(&parameters(1, &[])).is_err());
    assert!(id.accept(&parameters(1, &[])).is_err());
    assert!(id.disconnect().is_err());
    assert!(id.to_ready_to_send().is_err());
    assert!(id.open_device().is_err());
    id.resolve_address("10.9.0.77:1".parse().unwrap(), Duration::from_secs(1))
        .unwrap();
    expect_event!(&active, ConnectionEventKind::AddressError);
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_peer_that_is_killed_gives_an_event_and_its_memory_is_out_of_reach() {
    if let Ok(address) = std::env::var(VICTIM) {
        return be_killed(address.parse().unwrap());
    }
    let (passive, listener, address) = listener();
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture"])
        .arg("one_node::connections::a_peer_that_is_killed_gives_an_event_and_its_memory_is_out_of_reach")
        .env(VICTIM, address.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (served, data) = request(&passive, &listener);
    let place = RemoteAddress::from_bytes(&data).unwrap();
    let node = Node::on(&served.open_device().unwrap());
    let mut pair = accept(&node, &served, b"", |_| {});
    expect_event!(&passive, ConnectionEventKind::Established);
    let (_, from) = node.pages(1, Access::SOURCE);
    let span = from.span(0..PAGE).unwrap();
    let mut write = || {
        let mut batch = pair.send_batch();
        batch
            .push(&SendRequest::write(&span, place).signalled())
            .unwrap();
        batch.post().unwrap();
        node.completions(1).remove(0).status
    };
    assert_eq!(write(), CompletionStatus::Success);
    victim.kill().unwrap();
    victim.wait().unwrap();
    let end = expect_event!(&passive, ConnectionEventKind::Disconnected);
    assert_eq!(end.connection, served.key());
    let status = write();
    assert_ne!(status, CompletionStatus::Success);
    println!("a WRITE to a peer that was killed: {status}");
}

/// Connects, gives its memory away, and waits for the end.
fn be_killed(address: SocketAddr) {
    let channel = EventChannel::new().unwrap();
    let id = resolved(&channel, address);
    let node = Node::on(&id.open_device().unwrap());
    let (_, region) = node.pages(1, Access::REMOTE_WRITE);
    let place = region.remote_address(0).unwrap().to_bytes();
    let pair = node.pair(id.to_init(all_access()).unwrap());
    id.connect(&parameters(pair.number(), &place)).unwrap();
    expect_event!(&channel, ConnectionEventKind::ConnectResponse);
    let _pair = establish(&id, pair);
    std::thread::sleep(LIMIT);
}
