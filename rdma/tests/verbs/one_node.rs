//! Both ends on one device.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dwcp_rdma::{
    Access, CompletedOperation, CompletionStatus, ConnectionEventKind, ConnectionId, EventChannel,
    MemoryRegion, Notify, Patience, Payload, QueuePairState, RdmaError, ReceiveRequest,
    RemoteAddress, SendRequest, ToInit, devices,
};

use crate::common::{
    INLINE_BYTES, LIMIT, Node, PAGE, SENDS_MAX, Two, accept, all_access, connect_by_hand,
    establish, event, fill, own_address, page_at, page_of, parameters, resolved,
};
use crate::expect_event;

/// A receive that takes a number alone.
const NUMBER: ReceiveRequest<'static> = ReceiveRequest { id: 0, spans: &[] };

/// Whoever dies is given this in its environment: where to connect to.
const VICTIM: &str = "DWCP_RDMA_VICTIM_CONNECTS_TO";

#[test]
#[ignore = "needs an RDMA device"]
fn the_device_is_described() {
    let devices = devices().unwrap();
    println!("{devices:?}");
    assert!(devices[0].max_qp > 0 && !devices[0].ports.is_empty());
    let error = dwcp_rdma::Context::open("nosuch0").unwrap_err();
    assert!(matches!(error, RdmaError::NoSuchDevice { .. }) && !error.is_absence());
}

#[test]
#[ignore = "needs an RDMA device"]
fn runs_of_pages_land_where_they_belong_and_nowhere_else() {
    let mut two = Two::new();
    let (source, from) = two.one.pages(64, Access::SOURCE);
    let (target, to) = two.other.pages(64, Access::REMOTE_WRITE);
    fill(&source, 64);
    // More than the driver is given at a time; the last alone is signalled.
    let mut batch = two.here.send_batch();
    let runs: Vec<(usize, usize)> = (0..21).map(|run| (run * 3, 1 + run % 2)).collect();
    for (index, &(page, count)) in runs.iter().enumerate() {
        let span = from.span(page * PAGE..(page + count) * PAGE).unwrap();
        let place = to.remote_address(page * PAGE).unwrap();
        let mut request = SendRequest::write(&span, place).id(100 + index as u64);
        if index + 1 == runs.len() {
            request = request.signalled();
        }
        batch.push(&request).unwrap();
    }
    assert_eq!(batch.len(), 21);
    batch.post().unwrap();
    let completion = two.one.good();
    assert_eq!((completion.id, completion.requests), (120, 21));
    assert_eq!(completion.operation, Some(CompletedOperation::Write));
    assert_eq!(two.here.sends_outstanding(), 0);
    for page in 0..64 {
        let sent = runs
            .iter()
            .any(|&(first, count)| (first..first + count).contains(&page));
        let expected = if sent { page_of(page) } else { vec![0; PAGE] };
        assert_eq!(page_at(&target, page), expected, "page {page}");
    }
    two.other.assert_quiet();
}

#[test]
#[ignore = "needs an RDMA device"]
fn several_spans_are_one_write() {
    let mut two = Two::new();
    let (first, from) = two.one.pages(4, Access::SOURCE);
    let (second, also_from) = two.one.pages(4, Access::SOURCE);
    let (target, to) = two.other.pages(4, Access::REMOTE_WRITE);
    fill(&first, 4);
    second.write(0, &[9; PAGE]).unwrap();
    let spans = [
        from.span(3 * PAGE..4 * PAGE).unwrap(),
        also_from.span(0..100).unwrap(),
        from.span(0..PAGE).unwrap(),
    ];
    let request = SendRequest::write(&spans[..], to.remote_address(8).unwrap()).signalled();
    let mut batch = two.here.send_batch();
    batch.push(&request).unwrap();
    batch.post().unwrap();
    two.one.good();
    let expected = [page_of(3), vec![9; 100], page_of(0)].concat();
    assert_eq!(target.bytes(8..8 + expected.len()).unwrap(), expected);
    let five = vec![from.span(0..1).unwrap(); 5];
    let mut batch = two.here.send_batch();
    let error = batch.push(&SendRequest::send(&five[..])).unwrap_err();
    assert!(matches!(
        error,
        RdmaError::TooManySpans { spans: 5, limit: 4 }
    ));
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_write_with_a_number_tells_the_peer_when_the_bytes_are_there() {
    let mut two = Two::new();
    let (source, from) = two.one.pages(32, Access::SOURCE);
    let (target, to) = two.other.pages(32, Access::REMOTE_WRITE);
    fill(&source, 32);
    two.there
        .post_receive(&ReceiveRequest { id: 7, spans: &[] })
        .unwrap();
    let mut batch = two.here.send_batch();
    for page in 0..31 {
        let span = from.span(page * PAGE..(page + 1) * PAGE).unwrap();
        let place = to.remote_address(page * PAGE).unwrap();
        batch.push(&SendRequest::write(&span, place)).unwrap();
    }
    let last = from.span(31 * PAGE..32 * PAGE).unwrap();
    let place = to.remote_address(31 * PAGE).unwrap();
    let notice = SendRequest::write(&last, place).immediate(0xc0ff_ee01);
    batch.push(&notice.signalled()).unwrap();
    batch.post().unwrap();
    let completion = two.other.good();
    for page in 0..32 {
        assert_eq!(page_at(&target, page), page_of(page), "page {page}");
    }
    assert_eq!(completion.immediate, Some(0xc0ff_ee01));
    let operation = CompletedOperation::ReceiveWriteImmediate;
    assert_eq!(completion.operation, Some(operation));
    assert_eq!((completion.id, completion.bytes), (7, PAGE as u32));
    assert_eq!(completion.queue_pair, two.there.number());
    assert_eq!(two.one.good().requests, 32);
}

#[test]
#[ignore = "needs an RDMA device"]
fn pairs_share_receives() {
    let one = Node::new();
    let other = Node::on(one.domain.context()).with_shared_receives(16);
    let shared = other.shared.clone().unwrap();
    let (memory, region) = other.pages(16, Access::LOCAL_WRITE);
    let (mut first, at_first) = connect_by_hand(&one, &other, Patience::default());
    let (mut second, at_second) = connect_by_hand(&one, &other, Patience::default());
    for id in 0..16 {
        let at = id as usize * PAGE;
        let spans = [region.span(at..at + PAGE).unwrap()];
        shared.post(&ReceiveRequest { id, spans: &spans }).unwrap();
    }
    let full = shared.post(&NUMBER).unwrap_err();
    assert!(matches!(
        full,
        RdmaError::QueueFull {
            outstanding: 16,
            ..
        }
    ));
    let senders = [&mut first, &mut second];
    for message in 0..10_u8 {
        let mut batch = senders[usize::from(message % 2)].send_batch();
        let bytes = [message; 33];
        let request = SendRequest::send(Payload::Inline(&bytes)).immediate(message.into());
        batch.push(&request.signalled()).unwrap();
        batch.post().unwrap();
        one.good();
    }
    let came = other.completions(10);
    for (message, completion) in (0..10_u8).zip(&came) {
        let expected = [&at_first, &at_second][usize::from(message % 2)].number();
        assert_eq!(completion.queue_pair, expected, "message {message}");
        assert_eq!(
            (completion.bytes, completion.immediate),
            (33, Some(message.into()))
        );
        let at = completion.id as usize * PAGE;
        assert_eq!(memory.bytes(at..at + 33).unwrap(), [message; 33]);
    }
    assert_eq!(shared.outstanding(), 6);
    // One of the pairs goes; the other still finds its receives.
    drop(at_first);
    let mut batch = second.send_batch();
    let request = SendRequest::send(Payload::Inline(b"still here"));
    batch.push(&request.signalled()).unwrap();
    batch.post().unwrap();
    one.good();
    assert_eq!(other.good().bytes, 10);
    // Without shared receives of its own domain there is no pair.
    let mut mixed = Node::on(one.domain.context());
    mixed.shared = Some(shared);
    let options = dwcp_rdma::QueuePairOptions {
        send_completions: &mixed.completions,
        receive_completions: &mixed.completions,
        shared_receives: mixed.shared.as_ref(),
        sends_max: 1,
        receives_max: 0,
        spans_max: 1,
        inline_bytes_max: 0,
    };
    let refused = dwcp_rdma::QueuePair::new(&mixed.domain, &options).unwrap_err();
    assert!(matches!(refused, RdmaError::OtherProtectionDomain));
}

#[test]
#[ignore = "needs an RDMA device"]
fn pages_are_read_from_the_peer() {
    let mut two = Two::new();
    let (target, into) = two.one.pages(8, Access::LOCAL_WRITE);
    let (source, from) = two.other.pages(8, Access::REMOTE_READ);
    fill(&source, 8);
    let spans = [
        into.span(0..3 * PAGE).unwrap(),
        into.span(4 * PAGE..5 * PAGE).unwrap(),
    ];
    let place = from.remote_address(2 * PAGE).unwrap();
    let mut batch = two.here.send_batch();
    batch
        .push(&SendRequest::read(&spans, place).id(5).signalled())
        .unwrap();
    batch.post().unwrap();
    let completion = two.one.good();
    assert_eq!(
        (completion.id, completion.operation),
        (5, Some(CompletedOperation::Read))
    );
    for (page, expected) in [(0, 2), (1, 3), (2, 4), (4, 5)] {
        assert_eq!(page_at(&target, page), page_of(expected), "page {page}");
    }
    assert_eq!(page_at(&target, 3), vec![0; PAGE]);
    let (_, not_writable) = two.one.pages(1, Access::SOURCE);
    let spans = [not_writable.span(0..PAGE).unwrap()];
    let mut batch = two.here.send_batch();
    let error = batch.push(&SendRequest::read(&spans, place)).unwrap_err();
    assert!(matches!(error, RdmaError::NotWritable));
    assert!(batch.is_empty());
}

#[test]
#[ignore = "needs an RDMA device"]
fn inline_bytes_are_those_of_the_push() {
    let mut two = Two::new();
    let (memory, region) = two.other.pages(1, Access::LOCAL_WRITE);
    for id in 0..20 {
        let spans = [region.span(id * 64..(id + 1) * 64).unwrap()];
        let id = id as u64;
        two.there
            .post_receive(&ReceiveRequest { id, spans: &spans })
            .unwrap();
    }
    let mut bytes = vec![0; INLINE_BYTES as usize];
    let mut batch = two.here.send_batch();
    for message in 0..20_u8 {
        bytes.fill(message);
        let request = SendRequest::send(Payload::Inline(&bytes)).id(message.into());
        batch.push(&request.signalled()).unwrap();
    }
    bytes.fill(0xff);
    drop(bytes);
    let too_long = vec![1; INLINE_BYTES as usize + 1];
    let error = batch
        .push(&SendRequest::send(Payload::Inline(&too_long)))
        .unwrap_err();
    assert!(matches!(
        error,
        RdmaError::InlineTooLong {
            bytes: 65,
            limit: 64
        }
    ));
    batch.post().unwrap();
    let sent = two.one.completions(20);
    assert!(
        sent.iter()
            .zip(0..)
            .all(|(one, id)| one.id == id && one.is_success())
    );
    two.other.completions(20);
    for message in 0..20 {
        let at = message * 64;
        assert_eq!(memory.bytes(at..at + 64).unwrap(), vec![message as u8; 64]);
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn one_completion_in_sixteen_is_enough() {
    let mut two = Two::new();
    let (source, from) = two.one.pages(1, Access::SOURCE);
    let (target, to) = two.other.pages(1, Access::REMOTE_WRITE);
    fill(&source, 1);
    let (mut posted, mut complete, mut signals) = (0_u32, 0_u32, 0);
    let mut done = vec![];
    while complete < 1024 {
        while posted < 1024 && two.here.sends_outstanding() < SENDS_MAX as usize {
            let at = posted as usize * 4 % PAGE;
            let span = from.span(at..at + 4).unwrap();
            let place = to.remote_address(at).unwrap();
            posted += 1;
            let mut request = SendRequest::write(&span, place).id(posted.into());
            if posted.is_multiple_of(16) {
                request = request.signalled();
            }
            let mut batch = two.here.send_batch();
            batch.push(&request).unwrap();
            batch.post().unwrap();
        }
        two.one.completions.wait(LIMIT, &mut done).unwrap();
        for completion in done.drain(..) {
            assert!(completion.is_success(), "{completion:?}");
            complete += completion.requests;
            signals += 1;
            assert_eq!(completion.id, complete.into(), "in order");
        }
    }
    assert_eq!((posted, signals), (1024, 64));
    assert_eq!(page_at(&target, 0), page_of(0));
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_full_queue_refuses_and_posts_nothing() {
    let mut two = Two::new();
    let (_, from) = two.one.pages(1, Access::SOURCE);
    let (_, to) = two.other.pages(1, Access::REMOTE_WRITE);
    let span = from.span(0..PAGE).unwrap();
    let request = SendRequest::write(&span, to.remote_address(0).unwrap());
    let mut batch = two.here.send_batch();
    for _ in 1..SENDS_MAX {
        batch.push(&request).unwrap();
    }
    batch.push(&request.signalled()).unwrap();
    let error = batch.push(&request).unwrap_err();
    assert!(matches!(
        error,
        RdmaError::QueueFull {
            more: 65,
            limit: 64,
            ..
        }
    ));
    batch.post().unwrap();
    assert_eq!(two.one.good().requests, SENDS_MAX);
    // Dropped, not posted.
    let mut batch = two.here.send_batch();
    batch.push(&request.signalled()).unwrap();
    drop(batch);
    assert_eq!(two.here.sends_outstanding(), 0);
    two.one.assert_quiet();
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_pair_that_is_made_to_fail_gives_everything_back_flushed() {
    let mut two = Two::new();
    let (_, region) = two.one.pages(8, Access::LOCAL_WRITE);
    for id in 0..8 {
        let spans = [region.span(0..PAGE).unwrap()];
        two.here
            .post_receive(&ReceiveRequest { id, spans: &spans })
            .unwrap();
    }
    assert_eq!(Arc::strong_count(&region), 9, "each receive holds it");
    assert_eq!(two.here.query_state().unwrap(), QueuePairState::ReadyToSend);
    two.here.fail().unwrap();
    assert_eq!(two.here.query_state().unwrap(), QueuePairState::Error);
    let mut batch = two.here.send_batch();
    batch
        .push(&SendRequest::send(Payload::Inline(b"late")).id(100))
        .unwrap();
    batch.post().unwrap();
    let flushed = two.one.completions(9);
    let mut ids: Vec<u64> = flushed.iter().map(|one| one.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2, 3, 4, 5, 6, 7, 100]);
    for completion in &flushed {
        assert_eq!(completion.status, CompletionStatus::Flushed);
        assert_eq!((completion.operation, completion.bytes), (None, 0));
    }
    two.one.assert_quiet();
    assert_eq!(Arc::strong_count(&region), 1, "nothing holds it any more");
}

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
fn a_posted_request_keeps_its_memory_and_a_dropped_pair_lets_it_go() {
    let mut two = Two::new();
    let (memory, region) = two.other.pages(1, Access::LOCAL_WRITE);
    let memory = Arc::downgrade(&{ memory });
    let weak = Arc::downgrade(&region);
    let spans = [region.span(0..PAGE).unwrap()];
    two.there
        .post_receive(&ReceiveRequest {
            id: 1,
            spans: &spans,
        })
        .unwrap();
    drop((spans, region));
    assert!(weak.upgrade().is_some() && memory.upgrade().is_some());
    // The peer may still write to it, and does.
    let mut batch = two.here.send_batch();
    batch
        .push(&SendRequest::send(Payload::Inline(b"after all")).signalled())
        .unwrap();
    batch.post().unwrap();
    two.one.good();
    let kept = memory.upgrade().unwrap();
    assert_eq!(kept.bytes(0..9).unwrap(), b"after all");
    drop(kept);
    two.other.good();
    assert!(weak.upgrade().is_none(), "complete: nothing holds it");
    assert!(memory.upgrade().is_none());

    let (memory, region) = two.other.pages(1, Access::LOCAL_WRITE);
    let spans = [region.span(0..PAGE).unwrap()];
    two.there
        .post_receive(&ReceiveRequest {
            id: 2,
            spans: &spans,
        })
        .unwrap();
    let weak = Arc::downgrade(&region);
    drop((spans, region));
    assert!(weak.upgrade().is_some());
    drop(two.there);
    assert!(weak.upgrade().is_none(), "no queue: nothing holds it");
    assert_eq!(Arc::strong_count(&memory), 1);
}

#[test]
#[ignore = "needs an RDMA device"]
fn what_is_of_another_domain_is_refused() {
    let mut two = Two::new();
    let (_, stranger) = two.other.pages(1, Access::LOCAL_WRITE);
    let spans = [stranger.span(0..PAGE).unwrap()];
    let mut batch = two.here.send_batch();
    let error = batch.push(&SendRequest::send(&spans[..])).unwrap_err();
    assert!(matches!(error, RdmaError::OtherProtectionDomain));
    drop(batch);
    let request = ReceiveRequest {
        id: 1,
        spans: &spans,
    };
    let error = two.here.post_receive(&request).unwrap_err();
    assert!(matches!(error, RdmaError::OtherProtectionDomain));
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_sleeper_is_woken_by_what_completes() {
    let mut two = Two::new();
    two.there.post_receive(&NUMBER).unwrap();
    two.there.post_receive(&NUMBER).unwrap();
    let queue = two.other.completions.clone();
    let sleeper = std::thread::spawn(move || {
        let begun = Instant::now();
        let mut all = vec![];
        queue.wait(LIMIT, &mut all).unwrap();
        (begun.elapsed(), all)
    });
    std::thread::sleep(Duration::from_millis(300));
    let mut send = |solicited: bool| {
        let mut request = SendRequest::send(Payload::Inline(&[])).signalled();
        if solicited {
            request = request.solicited();
        }
        let mut batch = two.here.send_batch();
        batch.push(&request).unwrap();
        batch.post().unwrap();
    };
    send(false);
    let (waited, all) = sleeper.join().unwrap();
    assert!(all.len() == 1 && all[0].is_success(), "{all:?}");
    assert!(
        waited > Duration::from_millis(200) && waited < LIMIT / 2,
        "{waited:?}"
    );
    // Only what is solicited rings.
    let queue = &two.other.completions;
    queue.take_events().unwrap();
    queue.arm(Notify::Solicited).unwrap();
    send(false);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(queue.take_events().unwrap(), 0);
    two.other.good();
    two.there.post_receive(&NUMBER).unwrap();
    two.other.completions.take_events().unwrap();
    two.other.completions.arm(Notify::Solicited).unwrap();
    let mut batch = two.here.send_batch();
    let request = SendRequest::send(Payload::Inline(&[])).solicited();
    batch.push(&request.signalled()).unwrap();
    batch.post().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(two.other.completions.take_events().unwrap(), 1);
    assert!(two.other.completions.as_fd().try_clone_to_owned().is_ok());
    two.other.good();
}

#[test]
#[ignore = "needs an RDMA device"]
fn two_threads_poll_one_queue_and_nothing_is_lost() {
    const REQUESTS: u32 = 4096;
    let mut two = Two::new();
    let (_, from) = two.one.pages(1, Access::SOURCE);
    let (_, to) = two.other.pages(1, Access::REMOTE_WRITE);
    let span = from.span(0..8).unwrap();
    let request = SendRequest::write(&span, to.remote_address(0).unwrap()).signalled();
    let seen = Arc::new(AtomicU32::new(0));
    let pollers: Vec<_> = (0..2)
        .map(|_| {
            let (queue, seen) = (two.one.completions.clone(), seen.clone());
            std::thread::spawn(move || {
                let begun = Instant::now();
                let mut all = vec![];
                while seen.load(Ordering::Acquire) < REQUESTS && begun.elapsed() < LIMIT {
                    queue.poll(&mut all).unwrap();
                    for completion in all.drain(..) {
                        assert!(completion.is_success(), "{completion:?}");
                        assert_eq!(completion.requests, 1, "in the order of the queue");
                        seen.fetch_add(1, Ordering::AcqRel);
                    }
                }
            })
        })
        .collect();
    for _ in 0..REQUESTS {
        while two.here.sends_outstanding() == SENDS_MAX as usize {
            assert!(!pollers.iter().all(|poller| poller.is_finished()));
            std::thread::yield_now();
        }
        let mut batch = two.here.send_batch();
        batch.push(&request).unwrap();
        batch.post().unwrap();
    }
    for poller in pollers {
        poller.join().unwrap();
    }
    assert_eq!(seen.load(Ordering::Acquire), REQUESTS);
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
        .arg("one_node::a_peer_that_is_killed_gives_an_event_and_its_memory_is_out_of_reach")
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
