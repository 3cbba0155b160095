use std::path::Path;

use dwcp_dataplane::path::{FEATURES, Features, Node, Tree};

use super::super::intervals::tests::row;
use super::*;
use crate::bench::draws::Draws;

/// Intervals where two of the features say what is best, and the others nothing.
fn planted(seed: u64, count: usize) -> Vec<Row> {
    let mut draws = Draws::of(seed);
    let mut one = || {
        let features: Features = std::array::from_fn(|_| draws.share() as f32);
        row("planted", features, best(&features))
    };
    (0..count).map(|_| one()).collect()
}

fn best(features: &Features) -> usize {
    match (features[1] > 0.3, features[10] > 0.6) {
        (false, _) => 0,
        (true, false) => 2,
        (true, true) => 5,
    }
}

fn about() -> About {
    About {
        records: vec!["planted.jsonl".into()],
        ..About::default()
    }
}

#[test]
fn a_planted_rule_is_found() {
    let tree = learn(&planted(1, 2000), &LIMITS).unwrap();
    let unseen = planted(2, 1000);
    let right = unseen
        .iter()
        .filter(|row| tree.choose(&row.features) == best(&row.features))
        .count();
    assert!(right >= 990, "{right} of 1000, {:?}", tree.nodes());
    assert!(tree.nodes().len() <= 9, "{:?}", tree.nodes());
    let of_all = cases(&unseen, &tree);
    assert!(
        of_all[0].learned_lost < 0.01 && of_all[0].rule_lost > 0.3,
        "{of_all:?}"
    );
}

#[test]
fn no_split_is_by_a_feature_that_is_left_out() {
    let limits = Limits {
        without: 1 << 10,
        ..LIMITS
    };
    let tree = learn(&planted(1, 2000), &limits).unwrap();
    let is_by = |node: &Node| matches!(node, Node::Split { feature: 10, .. });
    assert!(!tree.nodes().iter().any(is_by), "{:?}", tree.nodes());
    assert!(tree.nodes().len() > 1);
}

#[test]
fn where_nothing_tells_the_cheapest_is_taken() {
    let rows: Vec<_> = (0..100)
        .map(|_| row("same", [0.5; FEATURES.len()], 3))
        .collect();
    let tree = learn(&rows, &LIMITS).unwrap();
    assert_eq!(
        (tree.nodes().len(), tree.choose(&[9.0; FEATURES.len()])),
        (1, 3)
    );
}

#[test]
fn what_is_left_out_teaches_nothing() {
    let mut rows = planted(3, 400);
    // There, and only there, the fourth effort is the best.
    rows.extend((0..100).map(|_| row("other", [0.9; FEATURES.len()], 4)));
    let held_out = hold_out(&rows, &LIMITS).unwrap();
    let of = |name: &str| held_out.iter().find(|one| one.name == name).unwrap();
    assert_eq!(
        held_out.len(),
        2,
        "one link alone is not left out: {held_out:?}"
    );
    assert!(of("other").learned_lost > 0.9, "{held_out:?}");
}

#[test]
fn the_same_rows_give_the_same_tree_and_both_files_hold_it() {
    let tree = learn(&planted(4, 500), &LIMITS).unwrap();
    assert_eq!(tree, learn(&planted(4, 500), &LIMITS).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tree.json");
    file::write(&path, &tree, &about()).unwrap();
    assert_eq!(file::read(&path).unwrap(), tree);
    let rust = file::rust(&tree, &about());
    assert_eq!(rust.matches(" // ").count(), tree.nodes().len(), "{rust}");
}

#[test]
fn a_malformed_tree_is_refused() {
    let refusal = |text: &str| format!("{:#}", file::parse(text).unwrap_err());
    assert!(refusal("[]").contains("not a tree"));
    let features = serde_json::to_string(&FEATURES).unwrap();
    let about = serde_json::to_string(&about()).unwrap();
    let of =
        |nodes: &str| format!("{{\"about\":{about},\"features\":{features},\"nodes\":[{nodes}]}}");
    assert!(refusal(&of("")).contains("1 to 256 nodes, not 0"));
    assert!(refusal(&of("{\"take\":6}")).contains("node 0 names what is not there"));
    let backwards = "{\"split\":{\"feature\":0,\"at_most\":1,\"then\":0,\"otherwise\":0}}";
    assert!(refusal(&of(backwards)).contains("node 0"));
}

/// Grown again from its records: the same file, the same nodes, the same choices.
#[test]
fn the_compiled_tree_is_what_its_records_give() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let records = Tree::TRAINED_ON.iter();
    let records = records.map(|name| root.join("benches/records").join(name));
    let learned = Learned::from(&records.collect::<Vec<_>>(), |_| true, &LIMITS).unwrap();
    let compiled = Tree::compiled();
    assert_eq!(learned.tree.nodes(), compiled.nodes());
    for row in &learned.rows {
        let choice = learned.tree.choose(&row.features);
        assert_eq!(choice, compiled.choose(&row.features));
    }
    let table = root.join("dataplane/src/path/effort/learned/table.rs");
    let table = std::fs::read_to_string(table).unwrap();
    assert_eq!(table, file::rust(&learned.tree, &learned.about));
}
