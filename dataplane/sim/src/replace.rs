//! A data stream that breaks, and the connection that takes its place.

use dwcp_wire::RoundSummary;

use crate::link::Item;
use crate::pages;
use crate::world::{Happening, World};

impl World {
    /// A data stream breaks; the control connection does not. What is in flight on it is lost, and the source
    /// hears what that was when it has connected again.
    pub(crate) fn break_stream(&mut self, attempt: usize) {
        let stream = self.rng.index(self.links[attempt].streams.len());
        let pipe = &mut self.links[attempt].streams[stream];
        if pipe.is_broken() || pipe.is_held() {
            return;
        }
        let lost = pipe.hold();
        self.note("stream breaks", [stream as u64, lost.len() as u64], |_| {
            format!("{lost:?}")
        });
        // It is noticed, and a handshake follows.
        let wait = self.network_time() + self.network_time() + self.network_time();
        let happening = Happening::StreamResumes {
            attempt,
            stream,
            lost,
        };
        self.after(wait, happening);
    }

    /// The destination has said what it applied of the stream; the rest goes once more in its round.
    pub(crate) fn stream_resumes(&mut self, attempt: usize, stream: usize, lost: Vec<Item>) {
        let link = &mut self.links[attempt];
        link.streams[stream].release();
        let (mut sum, mut again) = (RoundSummary::default(), vec![]);
        let (mut marked, mut zero) = (None, 0);
        for item in lost {
            match item {
                Item::Mark { again, .. } => marked = Some(again + 1),
                Item::Pages(frame) => {
                    let sent = link.sent.entry(frame.round).or_default();
                    pages::take_back(sent, frame.summary());
                    pages::add(&mut sum, frame.summary());
                    link.in_flight_bytes = link.in_flight_bytes.saturating_sub(frame.bytes());
                    zero += frame
                        .pages
                        .iter()
                        .filter(|page| page.announced == 0)
                        .count() as u64;
                    again.extend(frame.pages.iter().map(|page| page.page));
                }
            }
        }
        let run = self.source.run.as_mut();
        let Some(run) = run.filter(|run| run.attempt == attempt) else {
            return;
        };
        if let Some(again) = marked {
            // The round was said to be sent; now a part of it is not.
            let told = run.told.take();
            run.sender = run.sender.take().or(told);
            if let Some(sender) = run.sender.as_mut() {
                sender.unmarked.insert(stream, again);
                sender.sent.marks_again += 1;
                let sent = self.links[attempt].sent.entry(sender.round).or_default();
                sent.marks_again += 1;
            }
        }
        let Some(sender) = run.sender.as_mut() else {
            return;
        };
        pages::take_back(&mut sender.sent, sum);
        sender.counts.zero -= zero;
        sender.counts.raw -= sum.pages - zero;
        sender.visited -= sum.pages;
        sender.force.extend(again.iter().copied());
        sender.todo.extend(again);
        let waits = std::mem::take(&mut sender.waits);
        if waits || (marked.is_some() && sender.unmarked.len() == 1) {
            self.sender_again(attempt);
        }
    }
}
