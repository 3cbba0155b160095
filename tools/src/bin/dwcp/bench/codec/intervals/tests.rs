use super::*;

/// A row over 1 Gbit/s where an effort is best.
pub(in super::super) fn row(ram: &str, features: Features, best: usize) -> Row {
    let seconds = std::array::from_fn(|at| if at == best { 1.0 } else { 2.0 });
    Row {
        ram: ram.into(),
        link: "1gbit".into(),
        bytes_per_s: 125e6,
        is_short: false,
        by: "rule".into(),
        seen: [0.05, 0.0, 0.01, 1e7, 1e6],
        features,
        effort: 2,
        rule: 2,
        next: 2,
        ahead: Ahead {
            page_bytes: 2e7,
            busy_s: seconds,
            wire_bytes: [1e6; EFFORTS],
        },
    }
}

fn lines(rows: &[Row]) -> String {
    let mut lines = vec![serde_json::to_string(&Head::here().unwrap()).unwrap()];
    lines.extend(rows.iter().map(|row| serde_json::to_string(row).unwrap()));
    lines.join("\n")
}

fn refusal(text: &str) -> String {
    format!("{:#}", parse(text.as_bytes()).unwrap_err())
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("intervals");
    let rows = [
        row("database", [0.25; FEATURES.len()], 1),
        row("idle", [-3.5; FEATURES.len()], 5),
    ];
    write(&path, &rows).unwrap();
    let read = read(&path).unwrap();
    assert_eq!(read.rows, rows);
    assert_eq!(read.date.len(), 10);
}

#[test]
fn a_malformed_record_is_refused_by_line_and_reason() {
    let rows = [row("idle", [0.0; FEATURES.len()], 1)];
    assert!(refusal("").contains("empty"));
    assert!(refusal("{}").contains("line 1: not the head"));
    assert!(refusal(&lines(&[])).contains("no intervals"));
    let text = lines(&rows);
    assert!(refusal(&format!("{text}\n{{\"ram\":")).contains("line 3"));
    let cut = text.replace("\"rule\":2", "\"rule\":6");
    assert!(refusal(&cut).contains("line 2: a number in it is out of range"));
    let without = text.replace("\"effort\":2,", "");
    assert!(refusal(&without).contains("missing field `effort`"));
    let other = text.replace("\"waits\"", "\"weights\"");
    assert!(refusal(&other).contains("line 1: it has the features"));
    let older = text.replace("intervals/1", "intervals/0");
    assert!(refusal(&older).contains("schema"));
}

#[test]
fn pages_ahead_are_reckoned_between_frames() {
    let mib = f64::from(1 << 20);
    let points: Vec<_> = (0..=64)
        .map(|at| f64::from(at) * [mib, 0.001, mib / 2.0][0])
        .collect();
    let course = |speed: f64, ratio: f64| {
        let point = |pages: &f64| [*pages, pages / speed, pages / ratio];
        points.iter().map(point).collect::<Vec<_>>()
    };
    let courses = Courses(std::array::from_fn(|at| course(1e9, 1.0 + at as f64)));
    let ahead = courses.ahead(mib * 8.5, 0.0).unwrap();
    assert_eq!(ahead.page_bytes.round(), rounded(mib * 16.0));
    let seconds = ahead.seconds(1e8);
    assert!((seconds[0] - mib * 16.0 / 1e8).abs() < 1e-4);
    assert!((seconds[5] - mib * 16.0 / 6e8).abs() < 1e-4);
    assert!(
        courses.ahead(mib * 63.0, 0.0).is_none(),
        "too little is left to tell"
    );
}
