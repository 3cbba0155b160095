//! How fast a migration's pages may leave.

use super::SourceDriver;

/// What is left of a rate in Mbit/s for a worker to count.
pub(super) const fn bytes_per_s(mbit: u32) -> u64 {
    mbit as u64 * 1_000_000 / 8
}

impl SourceDriver {
    pub(in crate::migration) fn limit_bandwidth(&mut self, mbit: u32) {
        self.limit_bytes_per_s = bytes_per_s(mbit);
        self.pace();
        self.recorder.remark(match mbit {
            0 => "bandwidth is not limited any more".to_owned(),
            mbit => format!("bandwidth limited to {mbit} Mbit/s, as asked meanwhile"),
        });
    }

    pub(in crate::migration) fn join_shares(&mut self) {
        self.share = self.node.shares.join(self.request.settings.priority);
        self.pace();
    }

    /// Its own limit, or its share of what leaves the node, which changes with what the others send.
    pub(super) fn pace(&self) {
        let bytes_per_s = match &self.share {
            Some(share) => {
                let sent = self.recorder.wire_bytes(Some(&self.session));
                // A frame may be more than what is due between two divisions.
                let sent = sent.saturating_sub(self.session.pace.ahead_bytes());
                share.bytes_per_s(sent, self.limit_bytes_per_s)
            }
            None => self.limit_bytes_per_s,
        };
        if self.session.pace.bytes_per_s() != bytes_per_s {
            self.session.pace.set(bytes_per_s);
            if self.recorder.pause.paused.is_none() {
                self.pace_streams();
            }
        }
    }
}
