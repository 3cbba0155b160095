//! Which NUMA node each stretch of guest RAM lies on: found by a few samples, at the beginning of a
//! migration, on machines of several nodes.

use std::ops::Range;

use dwcp_numa::{NodeShare, node_of_policy, nodes_of_pages};
use dwcp_simd::PAGE_BYTES;

use super::block::RamBlock;
use super::layout::RamLayout;

/// Least pages of a stretch: a huge page of 2 MiB, which lies on one node.
const STRETCH_PAGES: u32 = 512;

/// Most stretches that are looked at: ten or twenty milliseconds, however large the RAM is.
const STRETCHES_MAX: u64 = 1024;

/// Pages of one block, on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStretch {
    /// Index of the block.
    pub block: usize,
    /// Its pages; the first is a multiple of 64.
    pub pages: Range<u32>,
    /// `None` where nobody can say, or where it is mixed.
    pub node: Option<usize>,
}

/// All of guest RAM in stretches, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RamNodes {
    stretches: Vec<NodeStretch>,
}

impl RamNodes {
    /// Looks at RAM. Of pages that have memory a few are touched: the kernel names the node of mapped
    /// pages only. For the others the policy of the VMM speaks, where it names one node.
    #[must_use]
    pub fn find(layout: &RamLayout) -> Self {
        let step = layout.pages().div_ceil(STRETCHES_MAX);
        let step = step.next_multiple_of(STRETCH_PAGES.into());
        let step = u32::try_from(step).unwrap_or(u32::MAX - STRETCH_PAGES + 1);
        let stretches = layout
            .blocks()
            .iter()
            .enumerate()
            .flat_map(|(index, block)| {
                let mut data = Data::of(block);
                let firsts = (0..block.pages()).step_by(step as usize);
                firsts.map(move |first| {
                    let pages = first..first.saturating_add(step).min(block.pages());
                    let node = node_of(&mut data, &pages);
                    (index, pages, node)
                })
            });
        Self::of(stretches)
    }

    /// From stretches in order, all of RAM: what a machine could say.
    #[must_use]
    pub fn of(stretches: impl IntoIterator<Item = (usize, Range<u32>, Option<usize>)>) -> Self {
        let mut nodes = Self::default();
        for (block, pages, node) in stretches {
            nodes.push(block, pages, node);
        }
        nodes
    }

    /// Adds a stretch behind the others.
    fn push(&mut self, block: usize, pages: Range<u32>, node: Option<usize>) {
        match self.stretches.last_mut() {
            Some(last) if (last.block, last.node) == (block, node) => last.pages.end = pages.end,
            _ => self.stretches.push(NodeStretch { block, pages, node }),
        }
    }

    /// The stretches; neighbours differ.
    #[must_use]
    pub fn stretches(&self) -> &[NodeStretch] {
        &self.stretches
    }

    /// RAM by node, in the order in which the nodes first appear; what is unknown is left out.
    #[must_use]
    pub fn shares(&self) -> Vec<NodeShare> {
        let mut shares: Vec<NodeShare> = vec![];
        for stretch in &self.stretches {
            let Some(node) = stretch.node else { continue };
            let bytes = stretch.pages.len() as u64 * PAGE_BYTES as u64;
            match shares.iter_mut().find(|share| share.node == node) {
                Some(share) => share.bytes += bytes,
                None => shares.push(NodeShare { node, bytes }),
            }
        }
        shares
    }
}

/// The node on which the samples of a stretch lie, if they agree.
fn node_of(data: &mut Data<'_>, pages: &Range<u32>) -> Option<usize> {
    let block = data.block;
    let samples = data.samples(pages);
    let addresses: Vec<usize> = samples.iter().map(|page| block.address(*page)).collect();
    let nodes = nodes_of_pages(&addresses).unwrap_or_default();
    if nodes.is_empty() {
        // Nothing is there yet.
        return node_of_policy(block.address(pages.start)).ok().flatten();
    }
    agreed(&nodes)
}

/// The node that all samples name. Where they differ the stretch is near to nobody.
fn agreed(samples: &[Option<usize>]) -> Option<usize> {
    let first = *samples.first()?;
    first.filter(|_| samples.iter().all(|other| *other == first))
}

/// What a block's file has memory for, looked at from front to back.
struct Data<'a> {
    block: &'a RamBlock,
    /// Pages that are known to have none. To find the end of a hole may take long: memory that is
    /// allocated and was never touched is walked through page by page.
    hole: Range<u32>,
}

impl<'a> Data<'a> {
    const fn of(block: &'a RamBlock) -> Self {
        Self { block, hole: 0..0 }
    }

    /// The first page from `page` on that has memory.
    fn next(&mut self, page: u32) -> u32 {
        if self.hole.contains(&page) {
            return self.hole.end;
        }
        // Of a file that cannot tell (hugetlbfs) nothing: to touch a page could allocate it.
        let found = self.block.data_from(page).ok().flatten();
        let found = found.unwrap_or_else(|| self.block.pages());
        self.hole = page..found;
        found
    }

    /// Pages of a stretch that have memory, made known to the kernel as ours: the first one, its
    /// neighbour, and one in the middle. Neighbours differ where pages are dealt out in turns.
    fn samples(&mut self, pages: &Range<u32>) -> Vec<u32> {
        let first = self.next(pages.start);
        if first >= pages.end {
            return vec![];
        }
        let middle = pages.start + (pages.end - pages.start) / 2;
        let mut samples = vec![first];
        for page in [first + 1, middle.max(first + 1)] {
            if page < pages.end && self.next(page) == page {
                samples.push(page);
            }
        }
        samples.dedup();
        samples.retain(|page| self.block.populate(*page, 1).is_ok());
        samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::testing::ram;

    /// The tests' machine may have any node.
    fn some_node() -> usize {
        dwcp_numa::Topology::detect().unwrap().nodes()[0].index
    }

    fn stretch(block: usize, pages: Range<u32>, node: Option<usize>) -> NodeStretch {
        NodeStretch { block, pages, node }
    }

    #[test]
    fn only_what_has_memory_is_found_and_nothing_is_allocated_for_it() {
        let layout = ram(&[4096, 600]);
        let page = [7; PAGE_BYTES];
        layout.blocks()[0].write_page(1024 + 5, &page);
        layout.blocks()[1].write_page(599, &page);
        let node = Some(some_node());
        let found = RamNodes::find(&layout);
        let expected = [
            stretch(0, 0..1024, None),
            stretch(0, 1024..1536, node),
            stretch(0, 1536..4096, None),
            stretch(1, 0..512, None),
            stretch(1, 512..600, node),
        ];
        assert_eq!(found.stretches(), expected);
        let held: u64 = layout
            .blocks()
            .iter()
            .map(|block| block.room().unwrap().held_bytes)
            .sum();
        assert_eq!(held, 2 * PAGE_BYTES as u64);
        let bytes = (512 + 88) * PAGE_BYTES as u64;
        assert_eq!(
            found.shares(),
            [NodeShare {
                node: some_node(),
                bytes
            }]
        );
    }

    #[test]
    fn the_vmms_policy_speaks_for_what_is_not_there_yet() {
        let layout = ram(&[2048]);
        let block = &layout.blocks()[0];
        // The policy belongs to the file: the VMM sets it in its own mapping.
        let vmms = memmap2::MmapOptions::new().map_raw(block).unwrap();
        let address = vmms.as_mut_ptr() as usize + 512 * PAGE_BYTES;
        dwcp_numa::prefer_node(address, 1024 * PAGE_BYTES, some_node()).unwrap();
        let found = RamNodes::find(&layout);
        let expected = [
            stretch(0, 0..512, None),
            stretch(0, 512..1536, Some(some_node())),
            stretch(0, 1536..2048, None),
        ];
        assert_eq!(found.stretches(), expected);
    }

    #[test]
    fn samples_that_differ_name_no_node() {
        assert_eq!(agreed(&[Some(1), Some(1), Some(1)]), Some(1));
        assert_eq!(agreed(&[Some(1), Some(0), Some(1)]), None);
        assert_eq!(agreed(&[Some(1), None]), None);
        assert_eq!(agreed(&[None, None]), None);
    }

    #[test]
    fn shares_are_in_the_order_of_ram() {
        let nodes = RamNodes::of([
            (0, 0..512, Some(3)),
            (0, 512..1024, Some(3)),
            (0, 1024..1536, None),
            (1, 0..512, Some(0)),
            (1, 512..520, Some(3)),
        ]);
        assert_eq!(nodes.stretches().len(), 4);
        let share = |node, pages| NodeShare {
            node,
            bytes: pages * PAGE_BYTES as u64,
        };
        assert_eq!(nodes.shares(), [share(3, 1032), share(0, 512)]);
    }
}
