use std::cell::OnceCell;
use std::collections::BTreeSet;

use dwcp_api::RunResult;

use super::definition::{Matrix, Need, Scenario};
use super::here::{Class, Here};
use super::run::Measured;
use super::{parse, select};
use crate::failure::Failure;

fn built_in() -> Matrix {
    parse::built_in().unwrap()
}

/// A machine that has all there is, RDMA included.
fn complete() -> Here {
    let good = || OnceCell::from(Ok(()));
    Here {
        memory_mib: OnceCell::from(Some(1 << 30)),
        bare: good(),
        linux: good(),
        veth: good(),
        rate_limit: good(),
        delay: good(),
        rdma: good(),
    }
}

/// The complete machine without one thing.
fn without(need: Need) -> Here {
    let missing = || OnceCell::from(Err(format!("no {need:?}")));
    let here = complete();
    match need {
        Need::Memory => Here {
            memory_mib: OnceCell::from(Some(1)),
            ..here
        },
        Need::Qemu => Here {
            bare: missing(),
            linux: missing(),
            ..here
        },
        Need::Veth => Here {
            veth: missing(),
            ..here
        },
        Need::RateLimit => Here {
            rate_limit: missing(),
            ..here
        },
        Need::Delay => Here {
            delay: missing(),
            ..here
        },
        Need::Rdma => Here {
            rdma: missing(),
            ..here
        },
    }
}

#[test]
fn there_are_330_scenarios_and_no_name_is_there_twice() {
    let matrix = built_in();
    let scenarios = matrix.scenarios();
    assert_eq!(scenarios.len(), 330);
    let names: BTreeSet<_> = scenarios.iter().map(|scenario| scenario.name()).collect();
    assert_eq!(names.len(), 330);
    assert!(
        scenarios
            .iter()
            .zip(1..)
            .all(|(it, number)| it.number == number)
    );
}

/// A rule that decides nothing, whatever the machine lacks, would be dead.
#[test]
fn every_rule_decides_about_a_scenario_and_a_complete_machine_runs_what_fits_a_guest() {
    let matrix = built_in();
    for (index, rule) in matrix.rules.iter().enumerate() {
        let here = without(rule.needs);
        let mut others = matrix.clone();
        others.rules.remove(index);
        let decides = |scenario: &Scenario<'_>| {
            here.class(&matrix, scenario) != here.class(&others, scenario)
        };
        let decides = matrix.scenarios().iter().any(decides);
        assert!(decides, "{rule:?} decides nothing");
    }
    for scenario in matrix.scenarios() {
        let too_large = scenario.ram.mib > dwcp_testbed::synthetic::RAM_MIB_MAX
            && !["bare", "linux"].contains(&scenario.guest.name.as_str());
        let class = complete().class(&matrix, &scenario);
        assert_eq!(
            class == Class::Run,
            !too_large,
            "{}: {class:?}",
            scenario.name()
        );
    }
}

#[test]
fn a_refusal_outranks_a_simulation_and_says_why() {
    let matrix = built_in();
    let find = |name: &str| {
        let all = matrix.scenarios();
        *all.iter().find(|scenario| scenario.name() == name).unwrap()
    };
    let here = Here {
        memory_mib: OnceCell::from(Some(24 << 10)),
        ..without(Need::Delay)
    };
    let class = |name: &str| here.class(&matrix, &find(name)).words();
    assert_eq!(class("text/4GiB/wan"), "simulated: no Delay");
    assert_eq!(
        class("text/64GiB/wan"),
        "refused: both ends need 129.0 GiB of RAM, 24.0 are available here"
    );
    assert_eq!(class("linux/4GiB/wan"), "refused: no Delay");
    assert_eq!(class("linux/4GiB/veth"), "run");
    let class = complete().class(&matrix, &find("zero/512GiB/veth")).words();
    assert!(class.contains("at most 64 GiB"), "{class}");
}

#[test]
fn only_a_guest_that_outruns_its_link_may_stay() {
    let matrix = built_in();
    let may = |name: &str, result| {
        let all = matrix.scenarios();
        let scenario = all.iter().find(|it| it.name() == name).unwrap();
        matrix.may_end(scenario, result).is_some()
    };
    assert!(may("rewrite-10/4GiB/lan-1g", RunResult::Aborted));
    assert!(may("rewrite-10/4GiB/lan-1g", RunResult::Completed));
    assert!(!may("rewrite-10/4GiB/lan-1g", RunResult::Failed));
    assert!(!may("rewrite-1/4GiB/veth", RunResult::Aborted));
    assert!(may("rewrite-1/4GiB/veth", RunResult::Completed));
}

#[test]
fn a_guest_that_does_not_confirm_its_memory_is_never_good() {
    let matrix = built_in();
    let all = matrix.scenarios();
    let scenario = |name: &str| all.iter().find(|it| it.name() == name).unwrap();
    let measured = |result, verified| Measured {
        total_ms: 1.0,
        downtime_ms: 1.0,
        wire_bytes: 1,
        cpu_s: 1.0,
        rounds: 1,
        result,
        verified,
    };
    for (name, result, verified, good, says) in [
        (
            "text/1GiB/veth",
            RunResult::Completed,
            true,
            true,
            "verified",
        ),
        (
            "text/1GiB/veth",
            RunResult::Completed,
            false,
            false,
            "NOT VERIFIED",
        ),
        ("text/1GiB/veth", RunResult::Aborted, true, false, "WRONG"),
        (
            "rewrite-10/1GiB/lan-1g",
            RunResult::Aborted,
            true,
            true,
            "as fast as the link",
        ),
        (
            "rewrite-10/1GiB/lan-1g",
            RunResult::Aborted,
            false,
            false,
            "NOT VERIFIED",
        ),
    ] {
        let (judged, words) = measured(result, verified).judge(&matrix, scenario(name));
        assert_eq!(judged, good, "{name}: {words}");
        assert!(words.contains(says), "{name}: {words}");
    }
}

#[test]
fn filters_and_samples_choose() {
    let matrix = built_in();
    let select = |filters: &[&str], sample, seed| {
        let filters: Vec<_> = filters.iter().map(|&filter| filter.to_owned()).collect();
        let chosen = select::select(&matrix, &filters, sample, seed)?;
        Ok::<_, Failure>(chosen.iter().map(|it| it.name()).collect::<Vec<_>>())
    };
    let chosen = select(&["guest=text,linux", "ram=1GiB", "link=veth"], None, 1).unwrap();
    assert_eq!(chosen, ["text/1GiB/veth", "linux/1GiB/veth"]);
    let chosen = select(&["1,zero/1GiB/wan"], None, 1).unwrap();
    assert_eq!(chosen, ["zero/256MiB/loopback", "zero/1GiB/wan"]);
    let drawn = select(&[], Some(20), 7).unwrap();
    assert_eq!(drawn.len(), 20);
    assert_eq!(drawn, select(&[], Some(20), 7).unwrap());
    assert_ne!(drawn, select(&[], Some(20), 8).unwrap());
    for (filter, says) in [
        ("guest=txt", "did you mean text?"),
        ("colour=red", "guest, ram or link"),
        ("331", "1 to 330"),
        ("text/1GiB/vet", "did you mean text/1GiB/veth?"),
    ] {
        let words = select(&[filter], None, 1).unwrap_err().text();
        assert!(words.contains(says), "{filter}: {words}");
    }
    let none = select(&["1", "2"], None, 1).unwrap_err().text();
    assert!(none.contains("no scenario fits"), "{none}");
}

/// What is changed in the built-in file, its column then (0: what is missing has no place of its own),
/// and what is said.
const FAULTS: &[(&str, &str, usize, &str)] = &[
    ("vmm = \"bare\"", "vm = \"bare\"", 1, "unknown key `vm`"),
    ("vmm = \"bare\"", "vmm = \"bear\"", 7, "cannot be `bear`"),
    ("filled_percent = 0", "filled_percent = 101", 18, "0 to 100"),
    (
        "size = \"1GiB\"",
        "size = \"1GB\"",
        8,
        "`size` takes a size",
    ),
    (
        "size = \"1GiB\"",
        "size = \"256MiB\"",
        0,
        "256MiB` is there twice",
    ),
    ("size = \"1GiB\"", "size = \"1MiB\"", 8, "at least 64MiB"),
    ("medium = \"rdma\"", "medium = 5", 10, "text in quotes"),
    (
        "needs = \"memory\"",
        "needs = \"money\"",
        9,
        "cannot be `money`",
    ),
    ("link = [\"wan\"]", "link = [\"wann\"]", 9, "no link `wann`"),
    ("link = [\"wan\"]", "link = []", 8, "leave it out"),
    (
        "result = [\"completed\", \"aborted\"]",
        "result = [\"failed\"]",
        11,
        "no result",
    ),
    ("[[expect]]", "[[expects]]", 3, "unknown section `expects`"),
    ("name = \"zero\"", "name = zero", 8, ""),
    ("name = \"zero\"", "name = \"a/b\"", 8, "takes"),
    (
        "rate_mbit_per_s = 900",
        "rate_mbit_per_s = 0",
        0,
        "cannot be made so",
    ),
    ("otherwise = \"simulate\"", "", 0, "has no `otherwise`"),
    (
        "profile = \"hybrid\"",
        "profile = \"hybird\"",
        11,
        "no profile `hybird`",
    ),
    (
        "rounds_max=5",
        "round_max=5",
        0,
        "unknown key `switchover.round_max`",
    ),
];

#[test]
fn every_fault_of_a_file_has_its_line_and_column() {
    let line_of = |text: &str, part: &str| {
        let at = text.find(part).unwrap();
        text[..at].matches('\n').count() + 1
    };
    for &(from, to, column, says) in FAULTS {
        let text = parse::BUILT_IN.replacen(from, to, 1);
        assert_ne!(text, parse::BUILT_IN, "{from}");
        let errors = parse::parse("x.toml", &text).unwrap_err();
        let mut faults = errors.faults.iter();
        let fault = faults.find(|fault| fault.message.contains(says));
        let fault = fault.unwrap_or_else(|| panic!("{to}: {errors}"));
        if column > 0 {
            let line = line_of(&text, to);
            assert_eq!(
                (fault.line(), fault.column()),
                (line, column),
                "{to}: {errors}"
            );
        }
        assert!(errors.to_string().starts_with("x.toml:"), "{errors}");
    }
    let empty = parse::parse("x.toml", "").unwrap_err().to_string();
    assert!(empty.contains("no [[guest]]"), "{empty}");
}
