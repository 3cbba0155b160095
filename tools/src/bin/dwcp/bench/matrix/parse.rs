//! From the text of a matrix file to a checked [`Matrix`]: every fault with line and column.

use dwcp_api::RunResult;
use dwcp_controlplane::config::{ConfigErrors, Dimension, Source};
use dwcp_controlplane::profile::{self, ProfileError};
use dwcp_testbed::Kind;
use dwcp_tools::lab::GuestChoice;

use super::definition::{
    Expectation, Guest, Link, Matrix, Medium, Need, Otherwise, Ram, Rule, Where,
};
use super::entry::{Entry, Reader};

/// The matrix that comes with the program.
pub(super) const BUILT_IN: &str = include_str!("../../../../../scenarios/matrix.toml");

/// What a `guest` may be.
const VMMS: [(&str, GuestChoice); 3] = [
    ("synthetic", GuestChoice::Synthetic),
    ("bare", GuestChoice::Qemu),
    ("linux", GuestChoice::Linux),
];

const PAGES: [(&str, Kind); 3] = [
    ("random", Kind::Random),
    ("text", Kind::Text),
    ("sparse", Kind::Sparse),
];

const MEDIA: [(&str, Medium); 3] = [
    ("loopback", Medium::Loopback),
    ("veth", Medium::Veth),
    ("rdma", Medium::Rdma),
];

const NEEDS: [(&str, Need); 6] = [
    ("memory", Need::Memory),
    ("qemu", Need::Qemu),
    ("veth", Need::Veth),
    ("rate-limit", Need::RateLimit),
    ("delay", Need::Delay),
    ("rdma", Need::Rdma),
];

const OTHERWISE: [(&str, Otherwise); 2] = [
    ("refuse", Otherwise::Refuse),
    ("simulate", Otherwise::Simulate),
];

const RESULTS: [(&str, RunResult); 2] = [
    ("completed", RunResult::Completed),
    ("aborted", RunResult::Aborted),
];

const SECTIONS: [&str; 5] = ["guest", "ram", "link", "rule", "expect"];

const MIB: u64 = 1 << 20;

/// The matrix that comes with the program.
pub(super) fn built_in() -> Result<Matrix, ConfigErrors> {
    parse("matrix.toml", BUILT_IN)
}

/// Reads a matrix; `name` is what faults call the file.
///
/// # Errors
/// All faults of the text, in their order.
pub(super) fn parse(name: &str, text: &str) -> Result<Matrix, ConfigErrors> {
    let mut reader = Reader::new(Source { name, text });
    let document = reader.document(&SECTIONS)?;
    let mut matrix = Matrix {
        guests: reader.each(&document, "guest", guest),
        rams: reader.each(&document, "ram", ram),
        links: reader.each(&document, "link", link),
        rules: vec![],
        expectations: vec![],
    };
    for (axis, entries) in [
        ("guest", names(&matrix.guests, |guest| &guest.name)),
        ("ram", names(&matrix.rams, |ram| &ram.name)),
        ("link", names(&matrix.links, |link| &link.name)),
    ] {
        reader.check_axis(&document, axis, &entries);
    }
    matrix.rules = reader.each(&document, "rule", |entry| rule(entry, &matrix));
    matrix.expectations = reader.each(&document, "expect", |entry| expectation(entry, &matrix));
    reader.finish()?;
    Ok(matrix)
}

fn names<T>(entries: &[T], name: impl Fn(&T) -> &String) -> Vec<String> {
    entries.iter().map(|entry| name(entry).clone()).collect()
}

fn guest(entry: &mut Entry<'_, '_>) -> Option<Guest> {
    let name = entry.word("name");
    let vmm = entry.choice("vmm", &VMMS);
    let filled_percent = entry.integer("filled_percent", 0..=100);
    let pages = entry.choice("pages", &PAGES);
    let rewritten_per_mille_per_s = entry.integer("rewritten_per_mille_per_s", 0..=1000);
    Some(Guest {
        name: name?,
        vmm: vmm?,
        filled_percent: filled_percent?,
        pages: pages?,
        rewritten_per_mille_per_s: rewritten_per_mille_per_s?,
    })
}

fn ram(entry: &mut Entry<'_, '_>) -> Option<Ram> {
    let (bytes, at) = entry.quantity("size", Dimension::Bytes)?;
    if bytes < 64 * MIB || !bytes.is_multiple_of(MIB) {
        entry.fault(
            at,
            "`size` is whole MiB, at least 64MiB".into(),
            "out of range",
            None,
        );
        return None;
    }
    Some(Ram {
        name: Dimension::Bytes.show(bytes),
        mib: bytes / MIB,
    })
}

fn link(entry: &mut Entry<'_, '_>) -> Option<Link> {
    let name = entry.word("name");
    let medium = entry.choice("medium", &MEDIA);
    let rate_mbit_per_s = entry.integer("rate_mbit_per_s", 0..=1_000_000);
    let one_way_delay_ms = entry.integer("one_way_delay_ms", 0..=10_000);
    let profile = profile_of(entry);
    let profile = profile?;
    let link = Link {
        name: name?,
        medium: medium?,
        rate_mbit_per_s: rate_mbit_per_s?,
        one_way_delay_ms: one_way_delay_ms?,
        profile: profile.0,
        set: profile.1,
    };
    let shaped = link.rate_mbit_per_s > 0 || link.one_way_delay_ms > 0;
    let hint = match link.medium {
        Medium::Loopback if shaped => "give it medium = \"veth\", or a rate and a delay of 0",
        Medium::Veth if link.one_way_delay_ms > 0 && link.rate_mbit_per_s == 0 => {
            "a link with a delay has a rate, too: give rate_mbit_per_s"
        }
        _ => return Some(link),
    };
    let message = format!("link `{}` cannot be made so", link.name);
    entry.fault(entry.at(), message, "this link", Some(hint.into()));
    None
}

/// A profile that can be had, and changes that it takes.
fn profile_of(entry: &mut Entry<'_, '_>) -> Option<(String, Vec<String>)> {
    let name = entry.text("profile");
    let set = entry.texts("set");
    let (name, at) = name?;
    let base = match profile::load(&name) {
        Ok(base) => base,
        Err(error) => {
            let hint = "a mode, or the path of a profile's file".to_owned();
            entry.fault(at, error.to_string(), "this profile", Some(hint));
            return None;
        }
    };
    for (change, at) in &set {
        if let Err(error) = profile::with_changes(&base, [change.as_str()]) {
            let hint = "one key in full: dwcp config explain KEY".to_owned();
            let message = match &error {
                ProfileError::Faults(errors) => errors.faults.first().map(|it| it.message.clone()),
                _ => None,
            };
            let message = message.unwrap_or_else(|| error.to_string());
            entry.fault(at.clone(), message, "this change", Some(hint));
        }
    }
    Some((name, set.into_iter().map(|(change, _)| change).collect()))
}

fn of(entry: &mut Entry<'_, '_>, matrix: &Matrix) -> Where {
    Where {
        guests: entry.names("guest", &names(&matrix.guests, |guest| &guest.name)),
        rams: entry.names("ram", &names(&matrix.rams, |ram| &ram.name)),
        links: entry.names("link", &names(&matrix.links, |link| &link.name)),
    }
}

fn rule(entry: &mut Entry<'_, '_>, matrix: &Matrix) -> Option<Rule> {
    let of = of(entry, matrix);
    let needs = entry.choice("needs", &NEEDS);
    let otherwise = entry.choice("otherwise", &OTHERWISE);
    Some(Rule {
        of,
        needs: needs?,
        otherwise: otherwise?,
    })
}

fn expectation(entry: &mut Entry<'_, '_>, matrix: &Matrix) -> Option<Expectation> {
    let of = of(entry, matrix);
    let known = RESULTS.map(|(word, _)| word.to_owned());
    let words = entry.names("result", &known);
    let why = entry.text("why");
    let named = |(word, _): &&(&str, RunResult)| words.iter().any(|given| given == word);
    let results: Vec<_> = RESULTS.iter().filter(named).map(|(_, it)| *it).collect();
    if results.is_empty() {
        let hint = format!("known: {}", known.join(", "));
        entry.fault(
            entry.at(),
            "no `result` that would be good".into(),
            "this rule",
            Some(hint),
        );
    }
    let (why, _) = why?;
    Some(Expectation { of, results, why })
}
