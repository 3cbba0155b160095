//! The bandwidth of a node, shared by the migrations that leave it: by priority, and what one does not use the
//! others have.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::node::lock;

/// Between two divisions.
const DIVIDED_FOR: Duration = Duration::from_millis(250);

/// Of what its priority entitles it to, a migration keeps this part however little it uses: it could not show
/// otherwise that it wants more.
const KEPT_PART: f64 = 0.1;

/// One that uses this part of what it got wants more.
const USED_PART: f64 = 0.8;

/// One that uses less gets so much more than it uses.
const MORE: f64 = 1.25;

/// Who shares, and what there is.
#[derive(Debug)]
pub(super) struct Shares {
    /// 0: there is no limit, and nothing to share.
    bytes_per_s: u64,
    parts: Mutex<Parts>,
}

#[derive(Debug, Default)]
struct Parts {
    members: Vec<Member>,
    next_ticket: u64,
    divided: Option<Instant>,
}

#[derive(Debug)]
struct Member {
    ticket: u64,
    weight: f64,
    /// Its own limit, bytes a second.
    limit: f64,
    /// What it had sent when it last said so.
    sent: (Instant, u64),
    /// The same when it was judged.
    judged: (Instant, u64),
    /// Bytes a second that it would send: it is seen to be held back, or it is not.
    want: f64,
    share: f64,
}

/// A migration that has its share; given up when dropped.
#[derive(Debug)]
pub(super) struct Share {
    shares: Arc<Shares>,
    ticket: u64,
}

impl Shares {
    pub(super) fn new(bytes_per_s: u64) -> Self {
        Self {
            bytes_per_s,
            parts: Mutex::default(),
        }
    }

    /// A share for one more, where there is anything to share.
    pub(super) fn join(self: &Arc<Self>, priority: u8) -> Option<Share> {
        if self.bytes_per_s == 0 {
            return None;
        }
        let mut parts = lock(&self.parts);
        parts.next_ticket += 1;
        let ticket = parts.next_ticket;
        parts.members.push(Member {
            ticket,
            weight: f64::from(priority.max(1)),
            limit: f64::INFINITY,
            sent: (Instant::now(), 0),
            judged: (Instant::now(), 0),
            want: f64::INFINITY,
            share: 0.0,
        });
        parts.divided = None;
        Some(Share {
            shares: Arc::clone(self),
            ticket,
        })
    }
}

impl Share {
    /// What it may send in a second, given what it has sent so far and its own limit in bytes a second, 0 for none.
    pub(super) fn bytes_per_s(&self, sent: u64, limit: u64) -> u64 {
        let mut parts = lock(&self.shares.parts);
        let all = self.shares.bytes_per_s as f64;
        let limit = if limit == 0 { all } else { limit as f64 };
        if let Some(member) = parts.member(self.ticket) {
            (member.sent, member.limit) = ((Instant::now(), sent), limit);
        }
        parts.divide(all);
        let share = parts.member(self.ticket).map_or(all, |member| member.share);
        (share.min(limit) as u64).max(1)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut parts = lock(&self.shares.parts);
        parts.members.retain(|member| member.ticket != self.ticket);
        parts.divided = None;
    }
}

impl Parts {
    fn member(&mut self, ticket: u64) -> Option<&mut Member> {
        self.members
            .iter_mut()
            .find(|member| member.ticket == ticket)
    }

    fn divide(&mut self, all: f64) {
        if self.divided.is_some_and(|at| at.elapsed() < DIVIDED_FOR) {
            return;
        }
        let weights: f64 = self.members.iter().map(|member| member.weight).sum();
        let is_first = self.divided.is_none();
        let wants = self.members.iter_mut().map(|member| {
            let fair = all * member.weight / weights;
            member.judge(is_first);
            (
                member.weight,
                member.want.max(fair * KEPT_PART).min(member.limit),
            )
        });
        let shares = divide(all, &wants.collect::<Vec<_>>());
        for (member, share) in self.members.iter_mut().zip(shares) {
            member.share = share;
        }
        self.divided = Some(Instant::now());
    }
}

impl Member {
    /// Judged by its own reports: another one's may come when its own is of some time ago. One that has said nothing for
    /// long enough is taken for what it was. Where the members have changed all begin anew.
    fn judge(&mut self, is_first: bool) {
        let ((at, sent), (since, before)) = (self.sent, self.judged);
        let elapsed = at.saturating_duration_since(since);
        if is_first {
            self.want = f64::INFINITY;
        } else if elapsed < DIVIDED_FOR / 2 {
            return;
        } else {
            let used = sent.saturating_sub(before) as f64 / elapsed.as_secs_f64();
            self.want = match used >= self.share * USED_PART {
                true => f64::INFINITY,
                false => used * MORE,
            };
        }
        self.judged = self.sent;
    }
}

/// Divides `all` by weight among those who want so much: nobody gets more than it wants while another wants more.
/// What nobody wants goes to all, by weight.
fn divide(all: f64, wants: &[(f64, f64)]) -> Vec<f64> {
    let mut shares = vec![0.0; wants.len()];
    let mut open: Vec<usize> = (0..wants.len()).collect();
    let mut left = all;
    loop {
        let weights: f64 = open.iter().map(|&at| wants[at].0).sum();
        if weights <= 0.0 {
            break;
        }
        let fair = |at: usize| left * wants[at].0 / weights;
        let (content, hungry): (Vec<_>, Vec<_>) =
            open.iter().partition(|&&at| wants[at].1 <= fair(at));
        if content.is_empty() {
            hungry.iter().for_each(|&at| shares[at] = fair(at));
            return shares;
        }
        for &at in &content {
            shares[at] = wants[at].1;
        }
        left -= content.iter().map(|&at| wants[at].1).sum::<f64>();
        open = hungry;
    }
    let weights: f64 = wants.iter().map(|(weight, _)| weight).sum();
    let all = wants.iter().zip(shares);
    all.map(|((weight, _), share)| share + left * weight / weights)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: f64 = f64::INFINITY;

    fn near(found: &[f64], wanted: &[f64]) {
        for (found, wanted) in found.iter().zip(wanted) {
            assert!((found - wanted).abs() < 1e-6, "{found} is not {wanted}");
        }
    }

    #[test]
    fn by_weight_and_what_one_does_not_want_the_others_have() {
        near(&divide(90.0, &[(1.0, ALL), (2.0, ALL)]), &[30.0, 60.0]);
        near(
            &divide(90.0, &[(1.0, ALL), (1.0, 10.0), (2.0, ALL)]),
            &[80.0 / 3.0, 10.0, 160.0 / 3.0],
        );
        near(&divide(90.0, &[(1.0, 10.0), (2.0, 20.0)]), &[30.0, 60.0]);
        assert!(divide(1.0, &[]).is_empty());
    }

    proptest! {
        #[test]
        fn all_of_it_is_given_and_no_more(
            wants in prop::collection::vec((1.0..100.0_f64, 0.0..200.0_f64), 1..20),
            all in 1.0..1000.0_f64,
        ) {
            let shares = divide(all, &wants);
            let sum: f64 = shares.iter().sum();
            prop_assert!((sum - all).abs() < 1e-6 * all);
            // Who gets less than it wants gets no less for its weight than anybody.
            for (&(weight, want), &share) in wants.iter().zip(&shares) {
                if share < want - 1e-6 {
                    for (&(other, _), &its) in wants.iter().zip(&shares) {
                        prop_assert!(its / other <= share / weight + 1e-6);
                    }
                }
            }
        }
    }

    fn member(share: f64, judged: (Instant, u64), sent: (Instant, u64)) -> Member {
        Member {
            ticket: 0,
            weight: 1.0,
            limit: f64::INFINITY,
            sent,
            judged,
            want: f64::INFINITY,
            share,
        }
    }

    /// It sends all that it may, and said so 150 ms before somebody else has the bandwidth divided.
    #[test]
    fn a_member_is_judged_by_the_time_of_its_own_words() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        let mut held_back = member(1e6, (now, 0), (now + ms(130), 130_000));
        held_back.judge(false);
        assert!(held_back.want.is_infinite());
        let mut silent = member(1e6, (now, 0), (now + ms(20), 0));
        silent.judge(false);
        assert!(silent.want.is_infinite(), "too short to say anything");
        let mut idle = member(1e6, (now, 0), (now + ms(250), 100_000));
        idle.judge(false);
        near(&[idle.want], &[500_000.0]);
        idle.judge(true);
        assert!(idle.want.is_infinite());
    }

    #[test]
    fn a_share_grows_when_another_leaves_and_keeps_its_own_limit() {
        let shares = Arc::new(Shares::new(1000));
        let first = shares.join(10).unwrap();
        assert_eq!(first.bytes_per_s(0, 0), 1000);
        let second = shares.join(30).unwrap();
        assert_eq!(
            (first.bytes_per_s(0, 0), second.bytes_per_s(0, 0)),
            (250, 750)
        );
        assert_eq!(second.bytes_per_s(0, 100), 100);
        drop(second);
        assert_eq!(first.bytes_per_s(0, 0), 1000);
        assert!(Arc::new(Shares::new(0)).join(10).is_none());
    }
}
