use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

use dwcp_api::Codec;
use dwcp_wire::limits::WANTED_PAGES_MAX;
use dwcp_wire::{Control, PageRange};

use super::*;
use crate::engine::{
    AsItCame, Asker, Asking, Question, Taken, keep_allocated, take_found, wipe_unknown,
};
use crate::ram::testing::ram;

mod threads;

const SEED: u64 = 99;

fn session(blocks: &[u32]) -> Session {
    Session::new(ram(blocks), 7, Codec::Raw)
}

fn questions(source: &Session, came: Option<&AsItCame>, by_hash: bool) -> Vec<Question> {
    let mut asked = vec![];
    let ask = |question| {
        asked.push(question);
        true
    };
    let asking = Asking {
        content_seed: SEED,
        came,
        by_hash: &AtomicBool::new(by_hash),
        stop: &AtomicBool::new(false),
    };
    Asker::new(source, &asking).unwrap().ask(ask);
    asked
}

/// As it comes over the wire.
fn carried<T>(message: &Control, take: impl Fn(Control) -> Option<T>) -> T {
    let bytes = dwcp_wire::encode_control(message).unwrap();
    take(dwcp_wire::decode_control(&bytes).unwrap()).unwrap()
}

/// By their hashes; and RAM as it left, by block.
#[derive(Default)]
struct Pages(HashMap<u64, Page>, Vec<Vec<Page>>);

impl Pages {
    fn of(pages: impl IntoIterator<Item = Page>) -> Self {
        let key = FingerprintKey::new(SEED);
        let hashed = |page: Page| (kernels().fingerprint(&key, &page).lo, page);
        Self(pages.into_iter().map(hashed).collect(), vec![])
    }

    fn as_it_left(left: &Session) -> Self {
        let blocks = left.layout.blocks().iter().map(|block| {
            let page = |page| {
                let mut content = [0; PAGE_BYTES];
                block.read_page(page, &mut content);
                content
            };
            (0..block.pages()).map(page).collect()
        });
        Self(HashMap::new(), blocks.collect())
    }
}

impl PageLibrary for Pages {
    fn find(&self, hash: u64, out: &mut Page) -> bool {
        let page = self.0.get(&hash);
        page.map(|page| *out = *page).is_some()
    }

    fn read_as_it_left(&self, block: usize, page: u32, out: &mut [Page]) -> bool {
        let block = self.1.get(block);
        let pages = block.and_then(|pages| pages.get(page as usize..)?.get(..out.len()));
        pages.map(|pages| out.copy_from_slice(pages)).is_some()
    }
}

/// What the source asks, answered.
struct Exchanged {
    doubtful: Vec<PageRange>,
    found: u64,
    questions: usize,
}

/// Asks for all of the source's pages; returns those that were doubtful.
fn exchange(source: &Session, destination: &Session, library: &Pages) -> Vec<PageRange> {
    exchange_of(questions(source, None, true), source, destination, library).doubtful
}

fn exchange_of(
    questions: Vec<Question>,
    source: &Session,
    destination: &Session,
    library: &Pages,
) -> Exchanged {
    let finder = Finder::new(destination, SEED, library);
    let (mut there, mut here) = (RamRoot::default(), RamRoot::default());
    let mut exchanged = Exchanged {
        doubtful: vec![],
        found: 0,
        questions: questions.len(),
    };
    for question in questions {
        let asked = carried(&question.asked.clone().into(), PageQuestion::of);
        let found = finder.find(&asked).unwrap();
        there.merge(found.root);
        let answer = carried(&Control::Found(found.answer), |message| match message {
            Control::Found(found) => Some(found),
            _ => None,
        });
        match take_found(source, &question, &answer).unwrap() {
            Taken::Found { root, pages } => {
                here.merge(root);
                exchanged.found += pages;
            }
            Taken::Doubtful(range) => exchanged.doubtful.push(range),
        }
    }
    assert_eq!(there, destination.digests.root());
    assert_eq!(here, source.digests.root());
    exchanged
}

/// A VM that was at one node, and has written a page at the next since.
struct ThereAndBack {
    left: Session,
    came: AsItCame,
    source: Session,
}

const BLOCKS: [u32; 2] = [5, WANTED_PAGES_MAX as u32 * 2 + 100];

fn there_and_back() -> ThereAndBack {
    let (left, source) = (session(&BLOCKS), session(&BLOCKS));
    let first = Session::new(ram(&BLOCKS), 31, Codec::Raw);
    for at in [&left, &source, &first] {
        for page in 0..300 {
            at.layout.blocks()[1].write_page(page * 7, &[page as u8 | 1; PAGE_BYTES]);
        }
    }
    let mut root = RamRoot::default();
    for page in (0..300).map(|page| u64::from(BLOCKS[0] + page * 7)) {
        let mut content = [0; PAGE_BYTES];
        first.layout.blocks()[1].read_page((page - u64::from(BLOCKS[0])) as u32, &mut content);
        let fingerprint = kernels().fingerprint(&first.key, &content);
        first.digests.set(page, Some(fingerprint), &mut root);
    }
    source.layout.blocks()[1].write_page(70, &[99; PAGE_BYTES]);
    source.layout.blocks()[0].write_page(2, &[98; PAGE_BYTES]);
    let came = AsItCame::of(&first);
    ThereAndBack { left, came, source }
}

#[test]
fn pages_that_have_not_changed_are_named_by_bits() {
    let ThereAndBack { left, came, source } = &there_and_back();
    let destination = session(&BLOCKS);
    // What a transfer that broke off has left there is in the way of none.
    destination.layout.blocks()[1].write_page(7, &[50; PAGE_BYTES]);
    keep_allocated(&destination).unwrap();
    let questions = questions(source, Some(came), false);
    assert!(questions.iter().all(|question| !question.is_by_hash()));
    let library = &Pages::as_it_left(left);
    let exchanged = exchange_of(questions, source, &destination, library);
    assert_eq!((exchanged.found, exchanged.questions), (299, 1));
    assert_eq!(exchanged.doubtful, []);
    assert_eq!(source.digests.root(), destination.digests.root());
    for page in (0..300).map(|page| page * 7).filter(|page| *page != 70) {
        let mut both = [[0; PAGE_BYTES]; 2];
        for (at, content) in [source, &destination].into_iter().zip(&mut both) {
            at.layout.blocks()[1].read_page(page, content);
        }
        assert_eq!(both[0], both[1], "{page}");
    }
    // The page that was written, and one with memory that nobody knows of there.
    let written = destination.layout.global_page(1, 70);
    assert_eq!(destination.digests.get(written), None);
}

#[test]
fn the_others_are_asked_for_by_their_hashes() {
    let ThereAndBack { left, came, source } = &there_and_back();
    let destination = session(&BLOCKS);
    let mut library = Pages::as_it_left(left);
    library.0 = Pages::of([[98; PAGE_BYTES]]).0;
    let questions = questions(source, Some(came), true);
    let exchanged = exchange_of(questions, source, &destination, &library);
    assert_eq!((exchanged.found, exchanged.questions), (300, 3));
}

/// A baseline that rotted, one that is another's, and one that is gone.
#[test]
fn a_baseline_that_is_another_gives_nothing() {
    for harm in 0..3 {
        let ThereAndBack { left, came, source } = &there_and_back();
        let destination = session(&BLOCKS);
        let mut library = Pages::as_it_left(left);
        match harm {
            0 => library.1[1][14][77] ^= 1,
            1 => library.1[1].rotate_left(1),
            _ => library.1.clear(),
        }
        let questions = questions(source, Some(came), false);
        let exchanged = exchange_of(questions, source, &destination, &library);
        assert_eq!(exchanged.found, 0);
        // What was read is known to nobody, and is wiped.
        assert_eq!(destination.digests.root(), RamRoot::default());
        wipe_unknown(&destination, &AtomicBool::new(false)).unwrap();
        let mut content = [0; PAGE_BYTES];
        destination.layout.blocks()[1].read_page(7, &mut content);
        assert_eq!(content, [0; PAGE_BYTES]);
    }
}

/// The pages that it does not speak of would be in no round, and in no root.
#[test]
fn an_answer_to_bits_is_all_or_nothing() {
    let ThereAndBack { came, source, .. } = &there_and_back();
    let [question] = &questions(source, Some(came), false)[..] else {
        panic!("one question")
    };
    let mut found = KnownPages::none(1, 0, question.asked.chunk().2);
    assert!(take_found(source, question, &found).is_ok());
    let mut content = [0; PAGE_BYTES];
    source.layout.blocks()[1].read_page(7, &mut content);
    let mut root = RamRoot::default();
    root.add(
        source.layout.global_page(1, 7),
        kernels().fingerprint(&source.key, &content),
    );
    found.set(7);
    found.root = root.0;
    assert!(take_found(source, question, &found).is_err());
}

#[test]
fn bits_for_pages_that_are_known_or_not_there_are_refused() {
    let ThereAndBack { left, came, source } = &there_and_back();
    let destination = session(&BLOCKS);
    let library = &Pages::as_it_left(left);
    let [question] = &questions(source, Some(came), false)[..] else {
        panic!("one question")
    };
    let ask = |asked: &PageQuestion| Finder::new(&destination, SEED, library).find(asked);
    assert!(ask(&question.asked).is_ok());
    assert!(ask(&question.asked).is_err(), "they are there");
    for (block, page) in [(2, 0), (0, 5), (1, u32::MAX)] {
        let mut known = KnownPages::none(block, page, 8);
        known.set(1);
        assert!(ask(&PageQuestion::Unchanged(known)).is_err());
    }
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
    let library = &Pages::of([[60; PAGE_BYTES], [51; PAGE_BYTES]]);
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
    let doubtful = exchange(&source, &destination, &library);
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
    let ask = |block, page, library: &Pages| {
        let hash = kernels().fingerprint(&key, &[1; PAGE_BYTES]).lo;
        let wanted = WantedPages::new(block, page, &[hash; 3]);
        Finder::new(&destination, SEED, library).find(&PageQuestion::Wanted(wanted))
    };
    for (block, page) in [(2, 0), (0, 8), (0, u32::MAX), (u32::MAX, 0)] {
        let none = &Pages::default();
        assert!(ask(block, page, none).is_err(), "{block} {page}");
    }
    assert!(ask(1, 7, &Pages::default()).is_ok());
    assert!(ask(1, 7, &Pages::of([[1; PAGE_BYTES]])).is_ok());
    assert!(ask(1, 5, &Pages::default()).is_err(), "page 7 is there");
}

/// Another thread may be looking for it.
#[test]
fn a_page_is_not_looked_for_twice_even_if_it_is_not_there() {
    let destination = session(&[10, 10]);
    let library = Pages::default();
    let finder = Finder::new(&destination, SEED, &library);
    let ask = |page, hashes: &[u64]| {
        finder.find(&PageQuestion::Wanted(WantedPages::new(1, page, hashes)))
    };
    assert!(ask(2, &[1, 0, 1]).is_ok());
    assert!(ask(3, &[1]).is_ok(), "it was left out");
    assert!(ask(4, &[1]).is_err());
    let mut known = KnownPages::none(1, 0, 8);
    known.set(2);
    assert!(finder.find(&PageQuestion::Unchanged(known)).is_err());
}

#[test]
fn an_answer_to_another_question_is_refused() {
    let source = session(&[50]);
    source.layout.blocks()[0].write_page(3, &[1; PAGE_BYTES]);
    let [question] = &questions(&source, None, true)[..] else {
        panic!("one question")
    };
    let (_, _, pages) = question.asked.chunk();
    assert_eq!((pages, question.pages()), (4, 1));
    let mut not_asked = KnownPages::none(0, 0, pages);
    not_asked.set(2);
    let others = [
        KnownPages::none(1, 0, pages),
        KnownPages::none(0, 1, pages),
        KnownPages::none(0, 0, pages + 8),
        not_asked,
    ];
    for answer in others {
        assert!(
            take_found(&source, question, &answer).is_err(),
            "{answer:?}"
        );
    }
    let none = KnownPages::none(0, 0, pages);
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
    for (by_hash, stop) in [(true, true), (false, false)] {
        let asking = Asking {
            content_seed: SEED,
            came: None,
            by_hash: &AtomicBool::new(by_hash),
            stop: &AtomicBool::new(stop),
        };
        let asker = Asker::new(&source, &asking).unwrap();
        asker.ask(|_| panic!("asked"));
    }
}
