//! What somebody waits for is asked for at once: read by the adapter where that can be, otherwise on connection 0.

use dwcp_wire::PageRange;

use super::Fetch;
use crate::migration::node::lock;
use crate::migration::postcopy::link::Requests;
use crate::transport::READ_PAGES_MAX;

/// Pages asked for with one that somebody waits for: up to 64 KiB from it on.
const AROUND_PAGES: u32 = READ_PAGES_MAX;

impl Fetch {
    /// Asks for what somebody waits for by this connection from now on.
    pub(in crate::migration::postcopy) fn ask_by(&self, requests: Requests) {
        *lock(&self.demand) = Some(requests);
        self.ask_again();
    }

    /// What was asked for and has not come: at once where somebody waits.
    pub(in crate::migration::postcopy) fn ask_again(&self) {
        lock(&self.order).begin_anew();
        for (block, page) in self.waiting.pages() {
            self.ask_now(block, page);
        }
    }

    pub(super) fn ask_now(&self, block: u32, page: u32) {
        let mut ranges = vec![PageRange {
            ram_block: block,
            page,
            count: 1,
        }];
        let reader = self.reading.reader();
        let reach = reader.as_ref().and_then(|reader| reader.reach(block, page));
        let around = reach.unwrap_or(AROUND_PAGES);
        let mut order = lock(&self.order);
        ranges.extend(order.behind(&self.missing, block, page + 1, around - 1));
        order.needed(block, page + around - 1);
        drop(order);
        if reach.is_some() && reader.is_some_and(|reader| reader.read(&ranges)) {
            return;
        }
        let mut demand = lock(&self.demand);
        let asked = demand.as_mut().map(|requests| requests.ask(ranges));
        if matches!(asked, Some(Ok(()))) {
            return;
        }
        // Without a connection it is asked for when there is one.
        if let Some(requests) = demand.take() {
            requests.shut();
        }
        drop(demand);
        lock(&self.order).begin_anew();
    }
}
