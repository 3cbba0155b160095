//! Pages and numbers get where they belong.

use dwcp_rdma::{
    Access, CompletedOperation, MemoryRegion, Payload, RdmaError, ReceiveRequest, SendRequest,
    devices,
};

use crate::common::{INLINE_BYTES, Node, PAGE, Two, fill, page_at, page_of};

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
fn a_region_lies_in_its_memory_and_a_span_in_its_region() {
    let node = Node::new();
    let (buffer, region) = node.pages(4, Access::SOURCE);
    let register = |range| {
        let memory = buffer.clone();
        MemoryRegion::register(&node.domain, memory, range, Access::SOURCE)
    };
    for range in [
        0..0,
        5..5,
        0..4 * PAGE + 1,
        4 * PAGE..5 * PAGE,
        usize::MAX..usize::MAX,
    ] {
        let error = register(range).unwrap_err();
        assert!(matches!(error, RdmaError::OutsideMemory { .. }), "{error}");
    }
    let part = register(100..PAGE + 101).unwrap();
    assert_eq!(part.length(), PAGE + 1);
    assert_eq!(part.span(0..PAGE + 1).unwrap().length(), PAGE as u32 + 1);
    assert!(part.span(1..PAGE + 2).is_err());
    assert!(part.remote_address(PAGE + 2).is_err());
    let whole = region.remote_address(100).unwrap().address;
    assert_eq!(part.remote_address(0).unwrap().address, whole);
}
