use std::sync::Mutex;

use super::*;

/// Three threads at each end.
#[test]
fn threads_share_what_is_asked_and_what_is_found() {
    let pages = WANTED_PAGES_MAX as u32 * 7 + 9;
    let (destination, source) = (session(&[pages]), session(&[pages]));
    let content = |page: u32| [page as u8 | 1; PAGE_BYTES];
    for page in (0..pages).step_by(3) {
        source.layout.blocks()[0].write_page(page, &content(page));
    }
    let library = Pages::of((0..256).map(content));
    let asking = Asking {
        content_seed: SEED,
        came: None,
        by_hash: &AtomicBool::new(true),
        stop: &AtomicBool::new(false),
    };
    let (asker, asked) = (Asker::new(&source, &asking).unwrap(), Mutex::new(vec![]));
    let finder = Finder::new(&destination, SEED, &library);
    let found = Mutex::new(vec![]);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                asker.ask(|question| {
                    asked.lock().unwrap().push(question);
                    true
                });
            });
        }
    });
    let asked = Mutex::into_inner(asked).unwrap();
    let count = asked.len();
    let asked = Mutex::new(asked.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(question) = { asked.lock().unwrap().next() } {
                    let answer = finder.find(&question.asked).unwrap().answer;
                    found.lock().unwrap().push((question, answer));
                }
            });
        }
    });
    assert_eq!(count, 8);
    for (question, answer) in found.into_inner().unwrap() {
        take_found(&source, &question, &answer).unwrap();
    }
    let known = (0..u64::from(pages)).filter(|page| source.digests.get(*page).is_some());
    assert_eq!(known.count() as u32, pages.div_ceil(3));
    assert_eq!(source.digests.root(), destination.digests.root());
}
