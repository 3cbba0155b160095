//! Which state follows which without a fault, and from which of them a good end can be reached.

/// States are numbered as they were found; their successors lie behind each other in that order.
#[derive(Debug, Default)]
pub(super) struct Graph {
    begins: Vec<usize>,
    successors: Vec<u32>,
    good: Vec<u32>,
}

impl Graph {
    /// The next state's successors follow.
    pub(super) fn begin(&mut self) {
        self.begins.push(self.successors.len());
    }

    pub(super) fn push(&mut self, to: u32) {
        self.successors.push(to);
    }

    pub(super) fn is_good(&mut self, state: u32) {
        self.good.push(state);
    }

    /// The first state from which no good end can be reached.
    pub(super) fn first_without_end(&mut self) -> Option<u32> {
        let count = self.begins.len();
        let (starts, predecessors) = self.backwards();
        let mut reaches = vec![false; count];
        let mut waiting = std::mem::take(&mut self.good);
        for &state in &waiting {
            reaches[state as usize] = true;
        }
        while let Some(state) = waiting.pop() {
            let state = state as usize;
            for &before in &predecessors[starts[state]..starts[state + 1]] {
                if !std::mem::replace(&mut reaches[before as usize], true) {
                    waiting.push(before);
                }
            }
        }
        let first = reaches.iter().position(|&reaches| !reaches)?;
        Some(first as u32)
    }

    /// The same arrows, turned round: where each state's predecessors begin, and all of them.
    fn backwards(&self) -> (Vec<usize>, Vec<u32>) {
        let count = self.begins.len();
        let mut starts = vec![0; count + 2];
        for &to in &self.successors {
            starts[to as usize + 2] += 1;
        }
        for at in 2..starts.len() {
            starts[at] += starts[at - 1];
        }
        let mut predecessors = vec![0; self.successors.len()];
        for from in 0..count {
            let end = self.begins.get(from + 1).copied();
            let end = end.unwrap_or(self.successors.len());
            for &to in &self.successors[self.begins[from]..end] {
                let place = &mut starts[to as usize + 1];
                predecessors[*place] = from as u32;
                *place += 1;
            }
        }
        (starts, predecessors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(successors: &[&[u32]], good: &[u32]) -> Graph {
        let mut graph = Graph::default();
        for of_one in successors {
            graph.begin();
            of_one.iter().for_each(|&to| graph.push(to));
        }
        good.iter().for_each(|&state| graph.is_good(state));
        graph
    }

    #[test]
    fn a_circle_with_a_way_out_is_fine() {
        let all = [&[1][..], &[2, 0], &[1, 3], &[]];
        assert_eq!(graph(&all, &[3]).first_without_end(), None);
    }

    #[test]
    fn a_circle_without_one_is_found() {
        let all = [&[1, 3][..], &[2], &[1], &[]];
        assert_eq!(graph(&all, &[3]).first_without_end(), Some(1));
    }

    #[test]
    fn a_state_that_nothing_follows_and_that_is_not_good_is_found() {
        assert_eq!(
            graph(&[&[1, 2], &[], &[]], &[1]).first_without_end(),
            Some(2)
        );
    }
}
