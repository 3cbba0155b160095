//! `dwcp bench matrix`: its classes, its limits, its record, and what is wrong with a file.

#[path = "../../controlplane/tests/fake/mod.rs"]
mod fake;
mod local;

use std::path::Path;

use local::{dwcp, json, run};

/// Two scenarios. No machine has an RDMA transport, so that every machine simulates the second.
const SMALL: &str = r#"
[[guest]]
name = "busy"
vmm = "synthetic"
filled_percent = 100
pages = "random"
rewritten_per_mille_per_s = 100

[[ram]]
size = "64MiB"

[[link]]
name = "loopback"
medium = "loopback"
rate_mbit_per_s = 0
one_way_delay_ms = 0
profile = "datacenter"

[[link]]
name = "far"
medium = "rdma"
rate_mbit_per_s = 0
one_way_delay_ms = 40
profile = "internet"

[[rule]]
link = ["far"]
needs = "rdma"
otherwise = "simulate"
"#;

fn file(folder: &Path, text: &str) -> String {
    let path = folder.join("m.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn matrix(arguments: &[&str], code: i32) -> (String, String) {
    run(dwcp().args(["bench", "matrix"]).args(arguments), code)
}

#[test]
fn every_scenario_of_the_program_has_one_class_and_a_refusal_its_reason() {
    // Only what needs no look at QEMU or at links: a look may build a guest.
    let filter = ["--list", "--json", "--filter", "guest=zero,text"];
    let (out, _) = matrix(
        &[&filter[..], &["--filter", "link=roce-100g,loopback"]].concat(),
        0,
    );
    let record = json(&out);
    assert_eq!(record["schema"], "dwcp.bench.matrix/1");
    assert!(record["machine"]["cores"].as_u64().unwrap() > 0);
    let runs = record["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2 * 6 * 2);
    for row in runs {
        let name = row["name"].as_str().unwrap();
        match row["class"].as_str().unwrap() {
            "run" => assert!(row["why"].is_null() && name.ends_with("loopback")),
            "refused" => {
                assert!(row["why"].as_str().unwrap().contains("RAM") || name.contains("roce"));
            }
            other => panic!("{name}: {other}"),
        }
    }
    let (out, _) = matrix(&["--print"], 0);
    let folder = tempfile::tempdir().unwrap();
    let printed = file(folder.path(), &out);
    let (out, _) = matrix(&["--file", &printed, "--filter", "330", "--list"], 0);
    assert!(
        out.contains("refused: no RDMA") || out.contains("refused: both ends"),
        "{out}"
    );
}

/// A simulated scenario has an outcome and no figures; a limit leaves the rest, and says so.
#[test]
fn a_scenario_is_simulated_and_the_limit_leaves_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let small = file(folder.path(), SMALL);
    let (out, err) = matrix(
        &["--file", &small, "--limit", "1", "--seeds", "50", "--json"],
        0,
    );
    let record = json(&out);
    let [real, simulated] = record["runs"].as_array().unwrap().as_slice() else {
        panic!("{out}");
    };
    assert_eq!(real["name"], "busy/64MiB/loopback");
    assert_eq!(real["outcome"], "not run: --limit");
    assert_eq!(simulated["class"], "simulated");
    assert_eq!(simulated["simulation"]["seeds"], 50);
    assert!(simulated["why"].as_str().unwrap().contains("no RDMA"));
    assert!(
        simulated.get("total_ms").is_none(),
        "a simulation has no speed"
    );
    assert!(err.contains("1 of 2: busy/64MiB/far: simulated"), "{err}");

    let path = folder.path().join("record.json");
    std::fs::write(&path, &out).unwrap();
    let page = folder.path().join("page.html");
    let mut report = dwcp();
    report
        .args(["bench", "report"])
        .arg(&path)
        .arg("--html")
        .arg(&page);
    let (out, _) = run(&mut report, 0);
    assert!(out.contains("| busy | 1 | not run: --limit |"), "{out}");
    assert!(out.contains("| busy | 1 | simulated, no RDMA"), "{out}");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("simulated, no RDMA"), "{page}");

    let (out, _) = matrix(&["--file", &small, "--time-limit", "0s"], 0);
    assert!(
        out.contains("2 scenarios: 0 run, 0 simulated, 0 refused, 2 not run"),
        "{out}"
    );
}

#[test]
fn what_is_wrong_is_said_with_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = SMALL
        .replace("pages = \"random\"", "pages = \"rndom\"")
        .replace("needs = ", "need = ");
    let wrong = file(folder.path(), &wrong);
    let (_, err) = matrix(&["--file", &wrong, "--list"], 2);
    assert!(
        err.contains("m.toml:6:9") && err.contains("did you mean `random`?"),
        "{err}"
    );
    assert!(
        err.contains("m.toml:28:1") && err.contains("did you mean `needs`?"),
        "{err}"
    );
    let (out, _) = matrix(&["--file", &wrong, "--list", "--json"], 2);
    assert_eq!(json(&out)["error"]["faults"][0]["line"], 6);
    for (arguments, says) in [
        (&["--file", "/missing.toml"][..], "--print"),
        (&["--filter", "guest=txt"], "did you mean text?"),
        (&["--time-limit", "10m"], "units: ms, s, min, h"),
        (&["--set", "transfer.strems=2", "--list"], "--set:1:1"),
    ] {
        let (_, err) = matrix(arguments, 2);
        assert!(err.contains(says), "{arguments:?}: {err}");
    }
    let (out, _) = matrix(&["--help"], 0);
    assert!(
        out.contains("Examples:") && out.contains("simulated"),
        "{out}"
    );
}

/// A scenario that was begun and went wrong is a failure; the others are reported all the same.
#[test]
fn a_scenario_that_goes_wrong_is_an_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let small = file(folder.path(), SMALL);
    // Alone in a folder: the daemons that it would start are not there.
    let alone = folder.path().join("dwcp");
    std::fs::copy(env!("CARGO_BIN_EXE_dwcp"), &alone).unwrap();
    let mut command = assert_cmd::Command::new(&alone);
    command.args(["bench", "matrix", "--file", &small, "--seeds", "10"]);
    let (out, err) = run(&mut command, 1);
    assert!(
        out.contains("WRONG: dwcp-dataplane is not in"),
        "{out}\n{err}"
    );
    assert!(
        out.contains("2 scenarios: 1 run, 1 simulated, 0 refused, 0 not run"),
        "{out}"
    );
    assert!(err.contains("scenarios that went wrong: 1"), "{err}");
}
