//! Destination: pages that the source asks for are looked for in the waiting VM's RAM, where a transfer that
//! broke off may have left them, and in what the node holds besides.
//!
//! Nothing is believed: each page that is found was read and hashed now. From then on it is like a page
//! that was applied, by its digest and in the root.

use dwcp_simd::{FingerprintKey, PAGE_BYTES, Page, RamRoot, kernels};
use dwcp_wire::{FoundPages, WantedPages};

use super::Session;
use crate::ram::RamError;

/// Pages by the hash of their content.
pub trait PageLibrary {
    /// Puts a page with this hash to `out`, if there is one.
    fn find(&mut self, hash: u64, out: &mut Page) -> bool;
}

/// Why pages were not looked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// The question is not possible.
    #[error(
        "the source asks for pages {page}..{end} of RAM block {ram_block}, which are not there or asked for already"
    )]
    NotThere {
        /// Block.
        ram_block: u32,
        /// First page.
        page: u32,
        /// Behind the last.
        end: u64,
    },
    /// RAM cannot be written.
    #[error(transparent)]
    Ram(#[from] RamError),
}

/// What was found for a question.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// The answer.
    pub answer: FoundPages,
    /// Part of the root.
    pub root: RamRoot,
    /// Pages that were in RAM.
    pub in_ram: u64,
    /// Pages from elsewhere.
    pub elsewhere: u64,
}

/// Looks for pages, and puts those that are found elsewhere into RAM. Nothing else may write RAM meanwhile.
///
/// # Errors
/// [`FindError`].
pub fn find_pages(
    session: &Session,
    wanted: &WantedPages,
    content_key: &FingerprintKey,
    library: &mut dyn PageLibrary,
) -> Result<Found, FindError> {
    let (ram_block, page) = (wanted.ram_block, wanted.page);
    let not_there = || FindError::NotThere {
        ram_block,
        page,
        end: u64::from(page) + wanted.pages() as u64,
    };
    let index = ram_block as usize;
    let block = session.layout.blocks().get(index).ok_or_else(not_there)?;
    if u64::from(page) + wanted.pages() as u64 > u64::from(block.pages()) {
        return Err(not_there());
    }
    let mut found = Found {
        answer: FoundPages::none(ram_block, page, wanted.pages()),
        root: RamRoot::default(),
        in_ram: 0,
        elsewhere: 0,
    };
    let mut content = [0; PAGE_BYTES];
    for (at, hash) in wanted.hashes().enumerate().filter(|(_, hash)| *hash != 0) {
        let number = page + at as u32;
        let global = session.layout.global_page(index, number);
        let is_unknown = session.digests.is_unknown(global);
        if !is_unknown && session.digests.get(global).is_some() {
            return Err(not_there());
        }
        // A page without memory is not looked at: that would allocate it.
        if is_unknown {
            block.read_page(number, &mut content);
        }
        if is_unknown && kernels().fingerprint(content_key, &content).lo == hash {
            found.in_ram += 1;
        } else if library.find(hash, &mut content) && !kernels().is_zero(&content) {
            block.write_pages(number, std::slice::from_ref(&content))?;
            found.elsewhere += 1;
        } else {
            continue;
        }
        let fingerprint = kernels().fingerprint(&session.key, &content);
        session
            .digests
            .set(global, Some(fingerprint), &mut found.root);
        found.answer.set(at);
    }
    found.answer.root = found.root.0;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::AtomicBool;

    use dwcp_api::Codec;
    use dwcp_wire::limits::WANTED_PAGES_MAX;
    use dwcp_wire::{Control, PageRange};

    use super::*;
    use crate::engine::{Question, Taken, ask_for_pages, keep_allocated, take_found};
    use crate::ram::testing::ram;

    const SEED: u64 = 99;

    fn session(blocks: &[u32]) -> Session {
        Session::new(ram(blocks), 7, Codec::Raw)
    }

    fn questions(source: &Session) -> Vec<Question> {
        let mut asked = vec![];
        let ask = |question| {
            asked.push(question);
            true
        };
        ask_for_pages(source, SEED, &AtomicBool::new(false), ask).unwrap();
        asked
    }

    /// As it comes over the wire.
    fn carried<T>(message: &Control, take: impl Fn(Control) -> Option<T>) -> T {
        let bytes = dwcp_wire::encode_control(message).unwrap();
        take(dwcp_wire::decode_control(&bytes).unwrap()).unwrap()
    }

    struct Pages(HashMap<u64, Page>);

    impl Pages {
        fn of(pages: impl IntoIterator<Item = Page>) -> Self {
            let key = FingerprintKey::new(SEED);
            let hashed = |page: Page| (kernels().fingerprint(&key, &page).lo, page);
            Self(pages.into_iter().map(hashed).collect())
        }
    }

    impl PageLibrary for Pages {
        fn find(&mut self, hash: u64, out: &mut Page) -> bool {
            let page = self.0.get(&hash);
            page.map(|page| *out = *page).is_some()
        }
    }

    impl PageLibrary for () {
        fn find(&mut self, _: u64, _: &mut Page) -> bool {
            false
        }
    }

    /// Asks for all of the source's pages; returns those that were doubtful.
    fn exchange(
        source: &Session,
        destination: &Session,
        library: &mut dyn PageLibrary,
    ) -> Vec<PageRange> {
        let key = FingerprintKey::new(SEED);
        let (mut there, mut here) = (RamRoot::default(), RamRoot::default());
        let mut doubtful = vec![];
        for question in questions(source) {
            let wanted = Control::Wanted(question.wanted.clone());
            let wanted = carried(&wanted, |message| match message {
                Control::Wanted(wanted) => Some(wanted),
                _ => None,
            });
            let found = find_pages(destination, &wanted, &key, library).unwrap();
            there.merge(found.root);
            let answer = carried(&Control::Found(found.answer), |message| match message {
                Control::Found(found) => Some(found),
                _ => None,
            });
            match take_found(source, &question, &answer).unwrap() {
                Taken::Found { root, .. } => here.merge(root),
                Taken::Doubtful(range) => doubtful.push(range),
            }
        }
        assert_eq!(there, destination.digests.root());
        assert_eq!(here, source.digests.root());
        doubtful
    }

    #[test]
    fn pages_in_ram_and_elsewhere_are_found_and_both_ends_agree() {
        let blocks = [5, WANTED_PAGES_MAX as u32 * 2 + 100];
        let (destination, source) = (session(&blocks), session(&blocks));
        let write = |at: &Session, block: usize, page, byte| {
            at.layout.blocks()[block].write_page(page, &[byte; PAGE_BYTES]);
        };
        // The same, another page, a page where the source has none, one in the library, and one nowhere.
        let same = [(0, 3, 1), (1, 70, 2), (1, WANTED_PAGES_MAX as u32 + 5, 3)];
        for (block, page, byte) in same {
            write(&destination, block, page, byte);
            write(&source, block, page, byte);
        }
        write(&destination, 1, 100, 50);
        write(&source, 1, 100, 51);
        write(&destination, 1, 101, 52);
        for page in [200, 201, 8000] {
            write(&source, 1, page, 60);
        }
        write(&source, 1, 300, 61);
        keep_allocated(&destination).unwrap();
        let library = &mut Pages::of([[60; PAGE_BYTES], [51; PAGE_BYTES]]);
        assert_eq!(exchange(&source, &destination, library), []);
        let roots = [&source, &destination].map(|session| session.digests.root());
        assert_eq!(roots[0], roots[1]);
        let known = |session: &Session| {
            let pages = 0..session.layout.pages();
            pages
                .filter(|&page| session.digests.get(page).is_some())
                .collect::<Vec<_>>()
        };
        assert_eq!(known(&source).len(), 3 + 1 + 3);
        let mut content = [0; PAGE_BYTES];
        destination.layout.blocks()[1].read_page(8000, &mut content);
        assert_eq!(content, [60; PAGE_BYTES]);
        // What was not asked for is still unknown, and will be wiped.
        assert!(
            destination
                .digests
                .is_unknown(destination.layout.global_page(1, 101))
        );
    }

    /// A library whose pages are not what their hashes say.
    #[test]
    fn a_hash_that_lies_makes_pages_doubtful() {
        let (destination, source) = (session(&[50]), session(&[50]));
        source.layout.blocks()[0].write_page(7, &[1; PAGE_BYTES]);
        let mut library = Pages::of([[1; PAGE_BYTES]]);
        library.0.values_mut().for_each(|page| page[9] ^= 1);
        let doubtful = exchange(&source, &destination, &mut library);
        let range = PageRange {
            ram_block: 0,
            page: 0,
            count: 8,
        };
        assert_eq!(doubtful, [range]);
        assert_eq!(source.digests.get(7), None);
    }

    #[test]
    fn pages_that_are_not_there_and_pages_asked_for_twice_are_refused() {
        let destination = session(&[10, 10]);
        let key = FingerprintKey::new(SEED);
        let ask = |block, page, library: &mut dyn PageLibrary| {
            let hash = kernels().fingerprint(&key, &[1; PAGE_BYTES]).lo;
            let wanted = WantedPages::new(block, page, &[hash; 3]);
            find_pages(&destination, &wanted, &key, library)
        };
        for (block, page) in [(2, 0), (0, 8), (0, u32::MAX), (u32::MAX, 0)] {
            assert!(ask(block, page, &mut ()).is_err(), "{block} {page}");
        }
        assert!(ask(1, 7, &mut ()).is_ok());
        assert!(ask(1, 7, &mut Pages::of([[1; PAGE_BYTES]])).is_ok());
        assert!(ask(1, 5, &mut ()).is_err(), "page 7 is there");
    }

    #[test]
    fn an_answer_to_another_question_is_refused() {
        let source = session(&[50]);
        source.layout.blocks()[0].write_page(3, &[1; PAGE_BYTES]);
        let [question] = &questions(&source)[..] else {
            panic!("one question")
        };
        let pages = question.wanted.pages();
        assert_eq!((pages, question.pages()), (4, 1));
        let mut not_asked = FoundPages::none(0, 0, pages);
        not_asked.set(2);
        let others = [
            FoundPages::none(1, 0, pages),
            FoundPages::none(0, 1, pages),
            FoundPages::none(0, 0, pages + 8),
            not_asked,
        ];
        for answer in others {
            assert!(
                take_found(&source, question, &answer).is_err(),
                "{answer:?}"
            );
        }
        let none = FoundPages::none(0, 0, pages);
        let nothing = Taken::Found {
            pages: 0,
            root: RamRoot::default(),
        };
        assert_eq!(take_found(&source, question, &none), Ok(nothing));
    }

    #[test]
    fn asking_ends_when_it_is_told_to() {
        let source = session(&[64]);
        source.layout.blocks()[0].write_page(1, &[1; PAGE_BYTES]);
        let stop = AtomicBool::new(true);
        ask_for_pages(&source, SEED, &stop, |_| panic!("asked")).unwrap();
    }
}
