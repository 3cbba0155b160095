//! Which scenarios are meant.

use dwcp_controlplane::config::nearest_word;

use super::definition::{Matrix, Scenario};
use crate::failure::Failure;

/// The scenarios that fit all filters; of those, `sample` drawn by `seed`.
pub(super) fn select<'a>(
    matrix: &'a Matrix,
    filters: &[String],
    sample: Option<usize>,
    seed: u64,
) -> Result<Vec<Scenario<'a>>, Failure> {
    let mut chosen = matrix.scenarios();
    for filter in filters {
        let fits = fits(matrix, filter)?;
        chosen.retain(|scenario| fits(scenario));
    }
    if chosen.is_empty() {
        let why = "no scenario fits all filters; `--list` without one shows all of them";
        return Err(Failure::Usage(why.into()));
    }
    if let Some(count) = sample {
        chosen.sort_by_key(|scenario| draw(seed, scenario.number as u64));
        chosen.truncate(count);
        chosen.sort_by_key(|scenario| scenario.number);
    }
    Ok(chosen)
}

/// A number that a seed gives to each scenario (the finaliser of splitmix64).
fn draw(seed: u64, number: u64) -> u64 {
    let mut z = seed
        .wrapping_add(number)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

type Fits = Box<dyn Fn(&Scenario<'_>) -> bool>;

/// `axis=name,name`, numbers, or names of scenarios.
fn fits(matrix: &Matrix, filter: &str) -> Result<Fits, Failure> {
    let Some((axis, wanted)) = filter.split_once('=') else {
        return one_of(matrix, filter);
    };
    let (known, of): (Vec<&str>, fn(&Scenario<'_>) -> String) = match axis {
        "guest" => (
            matrix.guests.iter().map(|it| it.name.as_str()).collect(),
            |scenario| scenario.guest.name.clone(),
        ),
        "ram" => (
            matrix.rams.iter().map(|it| it.name.as_str()).collect(),
            |scenario| scenario.ram.name.clone(),
        ),
        "link" => (
            matrix.links.iter().map(|it| it.name.as_str()).collect(),
            |scenario| scenario.link.name.clone(),
        ),
        _ => {
            let why = format!("--filter {filter}: no axis `{axis}`: guest, ram or link");
            return Err(Failure::Usage(why));
        }
    };
    let wanted: Vec<String> = wanted.split(',').map(str::to_owned).collect();
    for word in &wanted {
        if !known.contains(&word.as_str()) {
            return Err(unknown(filter, axis, word, &known));
        }
    }
    Ok(Box::new(move |scenario| wanted.contains(&of(scenario))))
}

fn one_of(matrix: &Matrix, filter: &str) -> Result<Fits, Failure> {
    let all = matrix.scenarios();
    let names: Vec<String> = all.iter().map(Scenario::name).collect();
    let mut numbers = vec![];
    for word in filter.split(',') {
        let by_number = word
            .parse::<usize>()
            .ok()
            .filter(|number| (1..=all.len()).contains(number));
        let by_name = || names.iter().position(|name| name == word).map(|at| at + 1);
        let Some(number) = by_number.or_else(by_name) else {
            let known: Vec<_> = names.iter().map(String::as_str).collect();
            return Err(unknown(filter, "scenario", word, &known));
        };
        numbers.push(number);
    }
    Ok(Box::new(move |scenario| numbers.contains(&scenario.number)))
}

fn unknown(filter: &str, what: &str, word: &str, known: &[&str]) -> Failure {
    let hint = match nearest_word(word, known.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None if known.len() > 20 => {
            format!("a number, 1 to {}, or a name of `--list`", known.len())
        }
        None => format!("there are {}", known.join(", ")),
    };
    Failure::Usage(format!("--filter {filter}: no {what} `{word}`: {hint}"))
}
