//! Two kernels and a link between them. The same test runs in both, and looks where it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_rdma::{
    Access, CompletionStatus, ConnectionEventKind, ConnectionId, EventChannel, Payload,
    ReceiveRequest, RemoteAddress, SendRequest,
};

use crate::common::{
    Node, PAGE, SENDS_MAX, accept, all_access, establish, event, fill, page_at, page_of, parameters,
};
use crate::expect_event;

const PORT: u16 = 7471;
const PAGES: usize = 2048;
/// Pages of one WRITE.
const RUN: usize = 16;
/// WRITEs until one that tells the peer.
const NOTICE: usize = 8;

#[test]
#[ignore = "needs two nodes with RDMA devices: tools/testbed/rxe --nodes 2"]
fn pages_arrive_whole_over_a_bad_link_and_a_peer_that_is_gone_is_noticed() {
    match std::env::var("DWCP_RXE_NODE").as_deref() {
        Ok("1") => destination(),
        Ok("2") => source(),
        other => panic!("DWCP_RXE_NODE is {other:?}"),
    }
}

fn destination() {
    let channel = EventChannel::new().unwrap();
    let listener = ConnectionId::new(&channel).unwrap();
    let any: SocketAddr = format!("0.0.0.0:{PORT}").parse().unwrap();
    listener.listen(any, 4).unwrap();
    let ConnectionEventKind::ConnectRequest(id) = event(&channel).kind else {
        panic!("no request");
    };
    let node = Node::on(&id.open_device().unwrap());
    let (memory, region) = node.pages(PAGES, Access::REMOTE_WRITE);
    let place = region.remote_address(0).unwrap().to_bytes();
    let mut pair = accept(&node, &id, &place, |pair| {
        for id in 0..24 {
            let receive = ReceiveRequest { id, spans: &[] };
            pair.post_receive(&receive).unwrap();
        }
    });
    for notice in 0..PAGES / RUN / NOTICE {
        let completion = node.good();
        if notice == 0 {
            // The message that establishes may be one that the link loses.
            id.peer_has_sent().unwrap();
            expect_event!(&channel, ConnectionEventKind::Established);
        }
        assert_eq!(completion.immediate, Some(notice as u32));
        // All pages up to here are in place, in order, though packets were lost.
        for page in notice * RUN * NOTICE..(notice + 1) * RUN * NOTICE {
            assert_eq!(page_at(&memory, page), page_of(page), "page {page}");
        }
        let again = ReceiveRequest { id: 99, spans: &[] };
        pair.post_receive(&again).unwrap();
    }
    // The source's process ends without a word. Its kernel says so, once: the link may lose that. Then a request finds out.
    match channel.wait(Duration::from_secs(5)).unwrap() {
        Some(gone) => {
            assert!(matches!(gone.kind, ConnectionEventKind::Disconnected));
            assert_eq!(gone.connection, id.key());
            pair.fail().unwrap();
        }
        None => {
            println!("nobody said that the peer is gone");
            let mut batch = pair.send_batch();
            batch
                .push(&SendRequest::send(Payload::Inline(&[])))
                .unwrap();
            batch.post().unwrap();
            let failed = node.completions(1).remove(0);
            assert_eq!(failed.status, CompletionStatus::RetryExceeded);
        }
    }
    let flushed = node.completions(24);
    assert!(
        flushed
            .iter()
            .all(|one| one.status == CompletionStatus::Flushed)
    );
}

fn source() {
    let channel = EventChannel::new().unwrap();
    let id = patiently_resolved(&channel);
    let node = Node::on(&id.open_device().unwrap());
    let (memory, region) = node.pages(PAGES, Access::SOURCE);
    fill(&memory, PAGES);
    let pair = node.pair(id.to_init(all_access()).unwrap());
    id.connect(&parameters(pair.number(), b"pages")).unwrap();
    let response = expect_event!(&channel, ConnectionEventKind::ConnectResponse);
    let place = RemoteAddress::from_bytes(&response.private_data).unwrap();
    let mut pair = establish(&id, pair);
    let begun = Instant::now();
    for write in 0..PAGES / RUN {
        while pair.sends_outstanding() >= SENDS_MAX as usize {
            let mut done = vec![];
            node.completions
                .wait(Duration::from_secs(20), &mut done)
                .unwrap();
            assert!(done.iter().all(|one| one.is_success()), "{done:?}");
        }
        let at = write * RUN * PAGE;
        let span = region.span(at..at + RUN * PAGE).unwrap();
        let mut request = SendRequest::write(&span, place.plus(at as u64));
        if write % NOTICE == NOTICE - 1 {
            request = request.immediate((write / NOTICE) as u32).signalled();
        }
        let mut batch = pair.send_batch();
        batch.push(&request).unwrap();
        batch.post().unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while pair.sends_outstanding() > 0 {
        let mut done = vec![];
        node.completions
            .wait(Duration::from_secs(1), &mut done)
            .unwrap();
        assert!(done.iter().all(|one| one.is_success()), "{done:?}");
        assert!(Instant::now() < deadline, "not all is acknowledged");
    }
    println!(
        "{} KiB in {:.2} s",
        PAGES * PAGE / 1024,
        begun.elapsed().as_secs_f64()
    );
    let again = counter("rcvd_seq_err") + counter("completer_retry_err");
    println!("{again} times packets were sent again");
    assert!(again > 0, "the link lost nothing: 2048 packets at 0.5%");
    // Dies as a killed process does: nothing of ours says goodbye. Another process reports the test.
    std::mem::forget((id, pair, channel));
}

/// Finds the way to the other node, which may still be starting.
fn patiently_resolved(channel: &Arc<EventChannel>) -> ConnectionId {
    let peer: SocketAddr = format!("10.9.0.1:{PORT}").parse().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    // The listener is up some moments after its device.
    std::thread::sleep(Duration::from_secs(2));
    loop {
        let id = ConnectionId::new(channel).unwrap();
        id.resolve_address(peer, Duration::from_secs(1)).unwrap();
        if matches!(event(channel).kind, ConnectionEventKind::AddressResolved) {
            id.resolve_route(Duration::from_secs(2)).unwrap();
            expect_event!(channel, ConnectionEventKind::RouteResolved);
            return id;
        }
        assert!(Instant::now() < deadline, "the other node is not there");
    }
}

/// One of what soft-RoCE counts.
fn counter(name: &str) -> u64 {
    let file = format!("/sys/class/infiniband/rxe0/ports/1/hw_counters/{name}");
    let count = std::fs::read_to_string(file).unwrap();
    count.trim().parse().unwrap()
}
