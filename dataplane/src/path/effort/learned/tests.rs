use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use dwcp_api::{Codec, Prefer};
use dwcp_simd::{FingerprintKey, PAGE_BYTES, Page};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;
use crate::path::testing::noise;
use crate::path::{
    BuiltFrame, Effort, EffortChooser, Encoder, FRAME_BUFFER_BYTES, Outgoing, RoundWork, Seen,
};
use crate::ram::{Digests, RamBlock, RamLayout};

/// Pages of the RAM that is sent: some shrink, some do not.
const PAGES: u64 = 12_288;

const fn split(feature: u8, at_most: f32, then: u8, otherwise: u8) -> Node {
    Node::Split {
        feature,
        at_most,
        then,
        otherwise,
    }
}

fn ram() -> RamLayout {
    let file = File::from(memfd_create("learned", MFdFlags::MFD_CLOEXEC).unwrap());
    let bytes = PAGES * PAGE_BYTES as u64;
    file.set_len(bytes).unwrap();
    for page in 0..PAGES {
        let mut content: Page = noise(page / 3);
        if page % 3 > 0 {
            content[256..].fill(page as u8);
        }
        file.write_all_at(&content, page * PAGE_BYTES as u64)
            .unwrap();
    }
    RamLayout::new(vec![
        RamBlock::map("ram".into(), file.into(), bytes, 0).unwrap(),
    ])
    .unwrap()
}

/// All of `ram` by a chooser, on a clock that is reckoned: what is sent depends on decisions alone.
fn sent(
    ram: &RamLayout,
    mut chooser: EffortChooser,
    mut look: impl FnMut(Seen),
) -> (Vec<u8>, Vec<Effort>) {
    const LINK: u64 = 2_000_000;
    let (digests, key) = (Digests::new(ram), FingerprintKey::new(1));
    let mut dirty = ram.empty_bitmap();
    dirty.blocks[0].set_range(0, PAGES as u32);
    let work = RoundWork::new(0, dirty, ram.empty_bitmap());
    let codec = Codec::Auto {
        window_bytes: 1 << 20,
        prefer: Prefer::Time,
    };
    let (mut line, mut encoder) = (
        Outgoing::new(ram, &digests, &key, false),
        Encoder::new(codec, 1),
    );
    line.begin(&work);
    encoder.set_effort(chooser.effort());
    let (mut bytes, mut efforts) = (vec![], vec![chooser.effort()]);
    let (mut buffer, mut now) = (vec![0; FRAME_BUFFER_BYTES], Instant::now());
    for sequence in 1.. {
        let Some(frame) = line.next_frame(&work, &mut buffer, &mut encoder, 0, sequence) else {
            break;
        };
        let wire_bytes = frame.bytes();
        bytes.extend_from_slice(&buffer);
        let built = BuiltFrame {
            page_bytes: line.pages_with_data() * PAGE_BYTES as u64,
            wire_bytes,
            encoding: Duration::from_micros(500),
        };
        let wait = Duration::from_nanos(wire_bytes * 1_000_000_000 / LINK);
        now += wait;
        chooser.waited(wait);
        if let Some(effort) = chooser.built(now, &built) {
            encoder.set_effort(effort);
            efforts.push(effort);
        }
        chooser.take_seen().into_iter().for_each(&mut look);
    }
    (bytes, efforts)
}

fn chooser() -> EffortChooser {
    EffortChooser::new(1 << 16, false, 1.0, Prefer::Time)
}

#[test]
fn a_shadow_changes_no_byte_and_a_driver_does() {
    let ram = ram();
    let others = Tree::new(vec![split(0, 2.5, 1, 2), Node::Take(5), Node::Take(1)]).unwrap();
    let (alone, by_rule) = sent(&ram, chooser(), |_| {});
    let (mut seen, mut differs) = (0, 0);
    let (shadowed, beside) = sent(&ram, chooser(), |interval| {
        seen += 1;
        differs += u32::from(interval.by(&others) != interval.rule);
        assert_eq!(
            interval.features[RULE],
            EFFORTS
                .iter()
                .position(|one| *one == interval.rule)
                .unwrap() as f32
        );
    });
    assert!(seen > 4 && differs > 0, "{differs} of {seen}");
    assert!(
        alone == shadowed,
        "{} and {} bytes",
        alone.len(),
        shadowed.len()
    );
    assert_eq!(by_rule, beside);
    let (led, by_tree) = sent(&ram, chooser().led_by(Some(others)), |_| {});
    assert_ne!(by_tree, by_rule);
    assert!(led != alone);
}

#[test]
fn it_takes_what_it_is_told_once() {
    let ram = ram();
    let mut told = chooser();
    told.tell(Effort::ALL[4]);
    let mut first = None;
    let (_, efforts) = sent(&ram, told, |seen| {
        first.get_or_insert(seen);
    });
    let first = first.unwrap();
    assert_eq!((efforts[0], efforts[1]), (first.effort, Effort::ALL[4]));
    assert_ne!(first.rule, Effort::ALL[4]);
}

#[test]
fn a_walk_follows_its_splits() {
    let tree = vec![
        split(1, 0.5, 1, 2),
        Node::Take(0),
        split(10, -1.0, 3, 4),
        Node::Take(1),
        Node::Take(5),
    ];
    let tree = Tree::new(tree).unwrap();
    let mut features = [0.0; FEATURES.len()];
    assert_eq!(tree.choose(&features), 0);
    features[1] = 0.5;
    assert_eq!(tree.choose(&features), 0, "up to the threshold");
    features[1] = 0.6;
    assert_eq!(tree.choose(&features), 5);
    features[10] = -1.0;
    assert_eq!(tree.choose(&features), 1);
    features[1] = f32::NAN;
    assert!(tree.choose(&features) < EFFORTS.len());
}

#[test]
fn what_might_not_end_is_no_tree() {
    assert_eq!(Tree::new(vec![]), Err(TreeError::Size(0)));
    let many = vec![Node::Take(0); NODES_MAX + 1];
    assert_eq!(Tree::new(many), Err(TreeError::Size(NODES_MAX + 1)));
    for bad in [
        split(0, 0.0, 0, 1),
        split(0, 0.0, 1, 2),
        split(FEATURES.len() as u8, 0.0, 1, 1),
        split(0, f32::NAN, 1, 1),
        Node::Take(EFFORTS.len() as u8),
    ] {
        assert_eq!(
            Tree::new(vec![bad, Node::Take(0)]),
            Err(TreeError::Node(0)),
            "{bad:?}"
        );
    }
    assert_eq!(check(&table::NODES), Ok(()), "the compiled one");
}
