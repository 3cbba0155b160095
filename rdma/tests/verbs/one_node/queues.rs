//! What queues hold, refuse and give back.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dwcp_rdma::{
    Access, CompletionStatus, Notify, Patience, Payload, QueuePairState, RdmaError, ReceiveRequest,
    SendRequest,
};

use super::NUMBER;
use crate::common::{LIMIT, Node, PAGE, SENDS_MAX, Two, connect_by_hand, fill, page_at, page_of};

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
            assert_eq!(completion.id, u64::from(complete), "in order");
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
