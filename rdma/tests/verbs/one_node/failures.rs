//! What fails, and says so.

use std::sync::Arc;

use dwcp_rdma::{
    Access, CompletionStatus, MemoryRegion, Patience, Payload, QueuePairState, RdmaError,
    ReceiveRequest, RemoteAddress, SendRequest, ToInit,
};

use crate::common::{Node, PAGE, Two, all_access, fill, page_at};

#[test]
#[ignore = "needs an RDMA device"]
fn a_wrong_key_or_range_or_access_is_refused_by_the_peer() {
    let good = |to: &Arc<MemoryRegion>| to.remote_address(0).unwrap();
    let bad: [fn(RemoteAddress) -> RemoteAddress; 3] = [
        |place| RemoteAddress {
            rkey: place.rkey ^ 0x10,
            ..place
        },
        |place| place.plus(PAGE as u64),
        |place| RemoteAddress {
            address: place.address - 1,
            ..place
        },
    ];
    for (index, harm) in bad.into_iter().enumerate() {
        refused_at(|to| harm(good(to)), Access::REMOTE_WRITE, index);
    }
    refused_at(good, Access::REMOTE_READ, 3);
    refused_at(good, Access::LOCAL_WRITE, 4);
}

/// A WRITE to a place that the region does not give.
fn refused_at(place: impl Fn(&Arc<MemoryRegion>) -> RemoteAddress, access: Access, index: usize) {
    let mut two = Two::new();
    let (source, from) = two.one.pages(1, Access::SOURCE);
    let (target, to) = two.other.pages(1, access);
    fill(&source, 1);
    let span = from.span(0..PAGE).unwrap();
    let mut batch = two.here.send_batch();
    batch
        .push(&SendRequest::write(&span, place(&to)).id(1))
        .unwrap();
    batch
        .push(&SendRequest::write(&span, place(&to)).id(2))
        .unwrap();
    batch.post().unwrap();
    // Not signalled, and told nevertheless.
    let failed = two.one.completions(2);
    assert_eq!(failed[0].status, CompletionStatus::RemoteAccess, "{index}");
    assert_eq!(failed[1].status, CompletionStatus::Flushed, "{index}");
    assert_eq!((failed[0].id, failed[1].id), (1, 2));
    two.one.assert_quiet();
    assert_eq!(page_at(&target, 0), vec![0; PAGE], "{index}");
    assert_eq!(two.here.query_state().unwrap(), QueuePairState::Error);
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_region_that_is_gone_cannot_be_written() {
    let mut two = Two::new();
    let (_, from) = two.one.pages(1, Access::SOURCE);
    let (target, to) = two.other.pages(1, Access::REMOTE_WRITE);
    let place = to.remote_address(0).unwrap();
    drop(to);
    let span = from.span(0..PAGE).unwrap();
    let mut batch = two.here.send_batch();
    batch
        .push(&SendRequest::write(&span, place).signalled())
        .unwrap();
    batch.post().unwrap();
    assert_eq!(
        two.one.completions(1)[0].status,
        CompletionStatus::RemoteAccess
    );
    assert_eq!(Arc::strong_count(&target), 1);
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_message_that_is_too_long_for_its_receive_fails_on_both_sides() {
    let mut two = Two::new();
    let (_, from) = two.one.pages(2, Access::SOURCE);
    let (_, into) = two.other.pages(1, Access::LOCAL_WRITE);
    let spans = [into.span(0..PAGE).unwrap()];
    two.there
        .post_receive(&ReceiveRequest {
            id: 1,
            spans: &spans,
        })
        .unwrap();
    let long = from.span(0..PAGE + 1).unwrap();
    let mut batch = two.here.send_batch();
    batch.push(&SendRequest::send(&long)).unwrap();
    batch.post().unwrap();
    let failed = two.one.completions(1).remove(0).status;
    let is_invalid = failed == CompletionStatus::RemoteInvalidRequest
        || failed == CompletionStatus::RemoteOperation;
    assert!(is_invalid, "{failed}");
    let failed = two.other.completions(1).remove(0).status;
    // soft-RoCE calls it an operation error.
    let is_length = failed == CompletionStatus::LocalLength
        || failed == CompletionStatus::LocalQueuePairOperation;
    assert!(is_length, "{failed}");
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_peer_without_a_receive_or_without_a_pair_is_given_up_on() {
    let patience = Patience {
        timeout_exponent: 12,
        retries: 2,
        receiver_not_ready_retries: 2,
    };
    let mut two = Two::with(patience);
    let mut batch = two.here.send_batch();
    batch
        .push(&SendRequest::send(Payload::Inline(b"anybody?")))
        .unwrap();
    batch.post().unwrap();
    let failed = two.one.completions(1).remove(0).status;
    assert_eq!(failed, CompletionStatus::ReceiverNotReadyRetryExceeded);
    let mut two = Two::with(patience);
    drop(two.there);
    let mut batch = two.here.send_batch();
    batch
        .push(&SendRequest::send(Payload::Inline(b"anybody?")))
        .unwrap();
    batch.post().unwrap();
    let failed = two.one.completions(1).remove(0).status;
    assert_eq!(failed, CompletionStatus::RetryExceeded);
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_transition_that_fails_names_both_states() {
    let node = Node::new();
    let pair = node.pair(ToInit::new(1, all_access()));
    // A path to nowhere: no such address of this side.
    let context = node.domain.context();
    let mut gid = context.default_gid(1).unwrap().unwrap();
    gid.index = 200;
    let path = dwcp_rdma::Path {
        port: context.query_port(1).unwrap(),
        peer: dwcp_rdma::Endpoint {
            queue_pair: 1,
            first_packet: 0,
            gid: gid.address,
            lid: 0,
        },
        gid,
        mtu_bytes: 1024,
    };
    let step = dwcp_rdma::ToReadyToReceive::new(&path);
    let error = pair.ready_to_receive(step).unwrap_err();
    assert!(matches!(
        error,
        RdmaError::Transition {
            from: QueuePairState::Init,
            to: QueuePairState::ReadyToReceive,
            ..
        }
    ));
    assert!(error.to_string().contains("from INIT to RTR"), "{error}");
}
