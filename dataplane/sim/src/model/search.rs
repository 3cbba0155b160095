//! Every state, breadth first, each once; then whether a good end can be reached from each.
//!
//! A state is known by 128 bits of its hash. Its parent and the number of the step that led to it are kept, so
//! that the way to it can be taken again; the state itself only until its successors are known.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_128;

use super::graph::Graph;
use super::world::World;
use crate::invariants::{Violation, bounded};

/// Between two lines on how far it is.
const PROGRESS: Duration = Duration::from_secs(2);

/// No way to a state is so long, unless something grows without a bound.
const DEPTH_MAX: u32 = 1_000;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Explored {
    /// Different states.
    pub states: u64,
    /// Steps from a state to another, faults included.
    pub transitions: u64,
    /// Steps to the state that is farthest from the first.
    pub depth: u32,
    /// States in which nothing is left to be done, by where the guest is.
    pub ends: BTreeMap<&'static str, u64>,
    /// Time taken.
    pub seconds: f64,
    /// The shortest way to a broken invariant, if there is one.
    pub counterexample: Option<Counterexample>,
}

/// A way to a broken invariant.
#[derive(Clone, Debug)]
pub struct Counterexample {
    /// What broke.
    pub violation: Violation,
    /// The steps, and after each the state.
    pub steps: Vec<(String, String)>,
}

/// How far a search is, for those who wait.
pub type Progress<'a> = &'a dyn Fn(&Explored);

struct Search<'a> {
    known: HashMap<u128, u32, BuildHasherDefault<Low>>,
    /// Of each state: its parent, and the number of the step among the parent's.
    parents: Vec<(u32, u16)>,
    graph: Graph,
    waiting: VecDeque<World>,
    scratch: Bytes,
    explored: Explored,
    began: Instant,
    told: Instant,
    progress: Progress<'a>,
}

/// Explores all that can follow `first`, up to the first broken invariant.
pub(super) fn explore(first: &World, progress: Progress<'_>) -> Explored {
    let now = Instant::now();
    let mut search = Search {
        known: HashMap::default(),
        parents: vec![],
        graph: Graph::default(),
        waiting: VecDeque::new(),
        scratch: Bytes::default(),
        explored: Explored::default(),
        began: now,
        told: now,
        progress,
    };
    search.add(first.clone(), (0, 0));
    let broken = search.run().or_else(|| search.without_end());
    let mut explored = search.explored;
    explored.counterexample =
        broken.map(|(violation, at)| way(first, &search.parents, at, violation));
    explored.seconds = search.began.elapsed().as_secs_f64();
    explored
}

/// A broken invariant: what, and the parent and step that lead to it.
type Broken = (Violation, (u32, Option<u16>));

impl Search<'_> {
    /// The number of a state; a new one waits for its turn.
    fn add(&mut self, world: World, from: (u32, u16)) -> u32 {
        self.scratch.0.clear();
        world.hash(&mut self.scratch);
        let next = self.parents.len() as u32;
        match self.known.entry(xxh3_128(&self.scratch.0)) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(place) => {
                place.insert(next);
                self.parents.push(from);
                self.waiting.push_back(world);
                next
            }
        }
    }

    fn run(&mut self) -> Option<Broken> {
        let mut level_ends = 1;
        for at in 0.. {
            let Some(world) = self.waiting.pop_front() else {
                break;
            };
            if at == level_ends {
                self.explored.depth += 1;
                level_ends = self.parents.len() as u32;
            }
            if self.explored.depth > DEPTH_MAX {
                let what = format!("something grows for {DEPTH_MAX} steps");
                let invariant = bounded::NAME;
                return Some((Violation { invariant, what }, (at, None)));
            }
            if let Some(broken) = self.expand(&world, at) {
                return Some(broken);
            }
            self.explored.states = u64::from(at) + 1;
            if at % 1024 == 0 && self.told.elapsed() > PROGRESS {
                self.told = Instant::now();
                self.explored.seconds = self.began.elapsed().as_secs_f64();
                (self.progress)(&self.explored);
            }
        }
        None
    }

    fn expand(&mut self, world: &World, at: u32) -> Option<Broken> {
        let mut is_end = true;
        self.graph.begin();
        for (number, step) in world.steps().into_iter().enumerate() {
            let number = number as u16;
            let mut next = world.clone();
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| next.take(step))) {
                return Some((panicked(&*panic), (at, Some(number))));
            }
            if let Some(violation) = next.broken.take() {
                return Some((violation, (at, Some(number))));
            }
            if step.is_fault() {
                // One that changes nothing is none.
                next.faults_left += 1;
                if next == *world {
                    continue;
                }
                next.faults_left -= 1;
            } else if next == *world {
                continue;
            }
            self.explored.transitions += 1;
            let to = self.add(next, (at, number));
            if !step.is_fault() {
                is_end = false;
                self.graph.push(to);
            }
        }
        if !is_end {
            return None;
        }
        match world.end() {
            Ok(end) => {
                *self.explored.ends.entry(end).or_default() += 1;
                self.graph.is_good(at);
                None
            }
            Err(violation) => Some((violation, (at, None))),
        }
    }

    /// A state from which, without more faults, no good end can be reached any more.
    fn without_end(&mut self) -> Option<Broken> {
        let at = self.graph.first_without_end()?;
        let violation = Violation {
            invariant: "end_in_reach",
            what: "from here on no good end can be reached".to_owned(),
        };
        Some((violation, (at, None)))
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Violation {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
    Violation {
        invariant: "no_panic",
        what: text.unwrap_or_else(|| "a machine panicked".to_owned()),
    }
}

/// Takes the way to a state again.
fn way(
    first: &World,
    parents: &[(u32, u16)],
    (mut at, last): (u32, Option<u16>),
    violation: Violation,
) -> Counterexample {
    let mut numbers = Vec::from_iter(last);
    while at != 0 {
        let (parent, number) = parents[at as usize];
        numbers.push(number);
        at = parent;
    }
    let mut world = first.clone();
    let mut steps = vec![("(before the switchover)".to_owned(), world.to_string())];
    for number in numbers.into_iter().rev() {
        let step = world.steps()[usize::from(number)];
        // The last of them may be the one that panics.
        let taken = catch_unwind(AssertUnwindSafe(|| world.take(step)));
        let state = match taken {
            Ok(()) => world.to_string(),
            Err(_) => "panics".to_owned(),
        };
        steps.push((step.to_string(), state));
    }
    Counterexample { violation, steps }
}

/// What is hashed, as bytes: they are hashed at once, which is faster.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Hasher for Bytes {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}

/// A hash is hashed enough.
#[derive(Default)]
struct Low(u64);

impl Hasher for Low {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
