//! What every command's `--help` looks like, and numbers that no command takes.
#![allow(missing_docs)]

use assert_cmd::Command;

fn output(arguments: &[&str], columns: u32, code: i32) -> (String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp"));
    let output = command
        .args(arguments)
        .env("COLUMNS", columns.to_string())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

/// The help of a command and of all below it, each with its name.
fn helps(path: &[&str], columns: u32, found: &mut Vec<(String, String)>) {
    let (help, _) = output(&[path, &["--help"]].concat(), columns, 0);
    let below = help.split("\nCommands:\n").nth(1).unwrap_or_default();
    let below = below.split("\n\n").next().unwrap_or_default();
    let names = below.lines().filter_map(|line| {
        let named = line
            .strip_prefix("  ")
            .filter(|line| !line.starts_with(' '))?;
        named.split_whitespace().next()
    });
    for name in names.filter(|name| *name != "help") {
        helps(&[path, &[name]].concat(), columns, found);
    }
    found.push((path.join(" "), help));
}

fn all_helps(columns: u32) -> Vec<(String, String)> {
    let mut found = vec![];
    helps(&[], columns, &mut found);
    assert!(found.len() > 40, "{}", found.len());
    found
}

#[test]
fn every_command_has_examples_each_on_a_line_of_its_own() {
    for (name, help) in all_helps(100) {
        let examples = help.split("\nExamples:\n").nth(1);
        let examples = examples.unwrap_or_else(|| panic!("{name}: no examples\n{help}"));
        for line in examples.lines() {
            assert!(line.is_empty() || line.starts_with("  "), "{name}: {line}");
        }
        let own = format!("dwcp {name}");
        assert!(examples.contains(own.trim()), "{name}:\n{examples}");
    }
}

/// A paragraph that is broken in the source is broken again at the width of the terminal: `can be` / `any` /
/// `node.`
#[test]
fn prose_is_broken_by_the_width_alone() {
    for columns in [80, 100] {
        for (name, help) in all_helps(columns) {
            let lines: Vec<_> = help.lines().collect();
            for pair in lines.windows(2) {
                let [line, next] = pair else { continue };
                let is_prose = |line: &str| !line.is_empty() && !line.starts_with(' ');
                if !is_prose(line) || !is_prose(next) || line.ends_with(':') {
                    continue;
                }
                let word = next.split(' ').next().unwrap_or_default();
                let would_fit = line.len() + 1 + word.len() <= columns as usize;
                assert!(!would_fit, "{name}, {columns} columns: {line} / {next}");
            }
        }
    }
}

#[test]
fn every_value_of_an_option_is_described() {
    for (name, help) in all_helps(100) {
        for line in help.lines() {
            let value = line.trim_start().strip_prefix("- ");
            let is_bare = value.is_some_and(|value| !value.contains(' '));
            assert!(!is_bare, "{name}: {line}");
        }
    }
}

#[test]
fn what_measures_nothing_is_refused_before_it_starts() {
    for (arguments, words) in [
        (&["goodput", "--rounds", "0"][..], "1 or more"),
        (&["goodput", "--seconds", "0"], "1 or more"),
        (&["goodput", "--least", "2"], "from 0 to 1"),
        (&["goodput", "--least", "nan"], "from 0 to 1"),
        (&["goodput", "--least-of-best", "-1"], "from 0 to 1"),
        (&["wan", "--rounds", "0"], "1 or more"),
        (&["wan", "--size-mib", "0"], "from 1 to"),
        (&["cuts", "--points", "0"], "1 or more"),
        (&["cuts", "--size-mib", "0"], "from 1 to"),
        (&["faults", "--points", "0"], "1 or more"),
        (&["peers", "--size-mib", "512,0"], "from 1 to"),
        (&["tls", "--least", "1.5"], "from 0 to 1"),
    ] {
        let option = arguments[1];
        let value = arguments[2].split(',').next_back().unwrap();
        let given = [
            arguments[0].to_owned(),
            format!("{option}={}", arguments[2]),
        ];
        let given = ["bench", &given[0], &given[1]];
        let (_, err) = output(&given, 100, 2);
        let names = err.contains(words) && err.contains(option) && err.contains(value);
        assert!(names, "{arguments:?}: {err}");
    }
}
