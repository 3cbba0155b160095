fn main() {
    let faults: u32 = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(0);
    for variant in [dwcp_sim::model::Variant::Precopy, dwcp_sim::model::Variant::Postcopy] {
        let e = dwcp_sim::model::explore(variant, dwcp_sim::Mutation::None, faults, &|e| eprintln!("{} states depth {}", e.states, e.depth));
        println!("{variant:?}: {} states {} transitions depth {} {:?} {:.1}s", e.states, e.transitions, e.depth, e.ends, e.seconds);
        if let Some(c) = e.counterexample {
            println!("{:?}", c.violation);
            for (s, w) in c.steps { println!("{s}\n      {w}"); }
        }
    }
}
