//! Both ends on one device.

mod connections;
mod failures;
mod pages;
mod queues;

use dwcp_rdma::ReceiveRequest;

/// A receive that takes a number alone.
const NUMBER: ReceiveRequest<'static> = ReceiveRequest { id: 0, spans: &[] };
