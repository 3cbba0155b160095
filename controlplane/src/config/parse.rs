//! From text to checked values: every fault is collected, with its place.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, ConfigErrors, Source};
use super::quantity::{Dimension, QuantityError, QuantityFault};
use super::schema::{AUTO, Key, Kind, Value, Values};
use super::suggest::nearest;

/// The values that `source` gives to `keys`.
///
/// # Errors
/// All faults of the file.
pub(crate) fn parse(source: Source<'_>, keys: &[Key]) -> Result<Values, ConfigErrors> {
    let table = DeTable::parse(source.text).map_err(|error| {
        let end = source.text.len();
        let at = error.span().unwrap_or(end..end);
        let message = error
            .message()
            .lines()
            .next()
            .unwrap_or("not TOML")
            .to_owned();
        ConfigErrors {
            faults: vec![source.fault(at, message, "here", None)],
        }
    })?;
    let mut parser = Parser {
        source,
        keys,
        values: Values::new(),
        faults: Vec::new(),
    };
    parser.table(table.get_ref(), "");
    if parser.faults.is_empty() {
        return Ok(parser.values);
    }
    parser
        .faults
        .sort_by_key(|fault| (fault.line(), fault.column()));
    Err(ConfigErrors {
        faults: parser.faults,
    })
}

/// Where `source` gives a value to a key, if it does.
pub(crate) fn place(source: Source<'_>, key: &str) -> Option<Range<usize>> {
    let table = DeTable::parse(source.text).ok()?;
    let mut names = key.split('.');
    let mut value = table.get_ref().get(names.next()?)?;
    for name in names {
        let DeValue::Table(inner) = value.get_ref() else {
            return None;
        };
        value = inner.get(name)?;
    }
    Some(value.span())
}

struct Parser<'a> {
    source: Source<'a>,
    keys: &'a [Key],
    values: Values,
    faults: Vec<ConfigError>,
}

impl Parser<'_> {
    fn table(&mut self, table: &DeTable<'_>, prefix: &str) {
        for (name, value) in table {
            let path = if prefix.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{prefix}.{}", name.get_ref())
            };
            let known = self.keys.iter().find(|key| key.name == path);
            let is_section = self.keys.iter().any(|key| {
                key.name
                    .strip_prefix(&path)
                    .is_some_and(|rest| rest.starts_with('.'))
            });
            match (known, value.get_ref()) {
                (Some(key), _) => self.value(key, value),
                (None, DeValue::Table(inner)) if is_section => self.table(inner, &path),
                (None, _) if is_section => {
                    let message = format!("`{path}` is a section");
                    let hint = format!("write [{path}] and its keys below it");
                    self.fault(value.span(), message, "not a table", Some(hint));
                }
                (None, other) => {
                    let is_table = matches!(other, DeValue::Table(_));
                    self.unknown(name.span(), &path, prefix, is_table);
                }
            }
        }
    }

    fn unknown(&mut self, at: Range<usize>, path: &str, prefix: &str, is_table: bool) {
        let last = path.rsplit('.').next().unwrap_or(path);
        let section = |key: &Key| key.name.rsplit_once('.').map_or("", |(section, _)| section);
        let moved = self
            .keys
            .iter()
            .find(|key| key.name.rsplit('.').next() == Some(last));
        let near = || nearest(path, self.keys.iter().map(|key| key.name));
        let near_section = || {
            let sections = self.keys.iter().filter_map(|key| key.name.split_once('.'));
            nearest(path, sections.map(|(section, _)| section))
        };
        let hint = if let Some(key) = moved {
            match section(key) {
                "" => format!("`{last}` stands above the first section"),
                section => format!("`{last}` belongs to section [{section}]"),
            }
        } else if let Some(section) = near_section().filter(|_| is_table) {
            format!("did you mean section [{section}]?")
        } else if let Some(name) = near() {
            format!("did you mean `{name}`?")
        } else {
            let here: Vec<_> = self
                .keys
                .iter()
                .filter(|key| section(key) == prefix)
                .map(|key| key.name.rsplit('.').next().unwrap_or(key.name))
                .collect();
            format!("known here: {}", here.join(", "))
        };
        self.fault(at, format!("unknown key `{path}`"), "not known", Some(hint));
    }

    fn value(&mut self, key: &Key, value: &Spanned<DeValue<'_>>) {
        let at = value.span();
        let checked = match (key.kind, value.get_ref()) {
            (
                Kind::Integer { min, max } | Kind::IntegerOrAuto { min, max },
                DeValue::Integer(integer),
            ) => {
                let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
                self.integer(key, at, number, min..=max)
            }
            (Kind::Quantity { dimension, .. }, DeValue::String(text)) => {
                self.quantity(key, at, text, dimension)
            }
            (Kind::Quantity { dimension, .. }, DeValue::Integer(_) | DeValue::Float(_)) => {
                let error = QuantityError {
                    fault: QuantityFault::NoUnit,
                    at: 0..at.len(),
                };
                self.bad_quantity(key, at, &error, dimension);
                None
            }
            (Kind::Choice(words), DeValue::String(text)) => self.choice(key, at, text, words),
            (Kind::IntegerOrAuto { .. }, DeValue::String(text)) => {
                self.integer_or_auto(key, at, text)
            }
            (Kind::Boolean, DeValue::Boolean(value)) => Some(Value::Boolean(*value)),
            (Kind::Name, DeValue::String(text)) => self
                .name(at, text)
                .then(|| Value::Text(text.clone().into_owned())),
            (Kind::Text(_), DeValue::String(text)) => self.text(key, at, text),
            (Kind::Peers, DeValue::Table(table)) => self.peers(table),
            (kind, other) => {
                let message = format!("`{}` takes {}", key.name, with_article(kind.type_name()));
                let label = format!("this is {}", with_article(other.type_str()));
                self.fault(at, message, label, Some(format_hint(kind)));
                None
            }
        };
        if let Some(checked) = checked {
            self.values.insert(key.name, checked);
        }
    }

    fn integer(
        &mut self,
        key: &Key,
        at: Range<usize>,
        number: Option<i64>,
        range: std::ops::RangeInclusive<i64>,
    ) -> Option<Value> {
        match number {
            Some(number) if range.contains(&number) => Some(Value::Integer(number)),
            _ => self.out_of_range(key, at),
        }
    }

    fn out_of_range(&mut self, key: &Key, at: Range<usize>) -> Option<Value> {
        let message = format!("`{}` is out of range", key.name);
        let hint = format!("allowed: {}", key.kind.range());
        self.fault(at, message, "out of range", Some(hint));
        None
    }

    fn quantity(
        &mut self,
        key: &Key,
        at: Range<usize>,
        text: &str,
        dimension: Dimension,
    ) -> Option<Value> {
        let Kind::Quantity { min, max, .. } = key.kind else {
            return None;
        };
        match dimension.parse(text) {
            Ok(value) if (min..=max).contains(&value) => Some(Value::Quantity(value)),
            Ok(_) => self.out_of_range(key, at),
            Err(error) => {
                let inside = self.inside(&at, text, error.at.clone());
                self.bad_quantity(key, inside, &error, dimension);
                None
            }
        }
    }

    /// The place of a part of a string's value in the file. A string with escapes is taken whole.
    fn inside(&self, at: &Range<usize>, text: &str, part: Range<usize>) -> Range<usize> {
        let written = self.source.text.get(at.clone()).unwrap_or_default();
        if !part.is_empty() && written.get(1..written.len().saturating_sub(1)) == Some(text) {
            at.start + 1 + part.start..at.start + 1 + part.end
        } else {
            at.clone()
        }
    }

    fn bad_quantity(
        &mut self,
        key: &Key,
        at: Range<usize>,
        error: &QuantityError,
        dimension: Dimension,
    ) {
        let message = format!("`{}` takes {}: {error}", key.name, dimension.name());
        let meant = match &error.fault {
            QuantityFault::Unit(unit) => dimension.unit_meant(unit),
            _ => None,
        };
        let units = dimension.unit_list();
        let hint = match meant {
            Some(unit) => format!("did you mean `{unit}`? Units: {units}"),
            None if error.fault == QuantityFault::Fraction => {
                format!("use a smaller unit; units: {units}")
            }
            None => format!("units: {units}; for example {}", example(key.kind)),
        };
        self.fault(at, message, error.to_string(), Some(hint));
    }

    fn choice(&mut self, key: &Key, at: Range<usize>, text: &str, words: &[&str]) -> Option<Value> {
        if words.contains(&text) {
            return Some(Value::Text(text.to_owned()));
        }
        let message = format!("`{}` cannot be `{text}`", key.name);
        let list = words.join(", ");
        let hint = match nearest(text, words.iter().copied()) {
            Some(word) => format!("did you mean \"{word}\"? Allowed: {list}"),
            None => format!("allowed: {list}"),
        };
        let all = self.inside(&at, text, 0..text.len());
        self.fault(all, message, "not a choice", Some(hint));
        None
    }

    fn integer_or_auto(&mut self, key: &Key, at: Range<usize>, text: &str) -> Option<Value> {
        if text == AUTO {
            return Some(Value::Text(text.to_owned()));
        }
        let message = format!("`{}` cannot be `{text}`", key.name);
        let allowed = key.kind.range();
        let hint = match (text.parse::<i64>(), nearest(text, [AUTO])) {
            (Ok(number), _) => format!("write {number} without quotes; allowed: {allowed}"),
            (_, Some(word)) => format!("did you mean \"{word}\"? Allowed: {allowed}"),
            _ => format!("allowed: {allowed}"),
        };
        let all = self.inside(&at, text, 0..text.len());
        self.fault(
            all,
            message,
            "not a number of this range, nor auto",
            Some(hint),
        );
        None
    }

    fn text(&mut self, key: &Key, at: Range<usize>, text: &str) -> Option<Value> {
        if text.is_empty() || text.len() > 4096 || text.contains(char::is_control) {
            let message = format!(
                "`{}` takes {}",
                key.name,
                with_article(key.kind.type_name())
            );
            self.fault(
                at,
                message,
                "empty, too long, or with control characters",
                None,
            );
            return None;
        }
        Some(Value::Text(text.to_owned()))
    }

    /// Whether text can name a node; a fault if not.
    fn name(&mut self, at: Range<usize>, text: &str) -> bool {
        let is_good = dwcp_api::is_name(text);
        if !is_good {
            let message = format!("`{text:.80}` cannot name a node");
            let hint = dwcp_api::NAME_RULE.to_owned();
            self.fault(at, message, "not a name", Some(hint));
        }
        is_good
    }

    fn peers(&mut self, table: &DeTable<'_>) -> Option<Value> {
        let mut peers = Vec::new();
        for (name, value) in table {
            if !self.name(name.span(), name.get_ref()) {
                continue;
            }
            match value.get_ref() {
                DeValue::String(address) if is_address(address) => {
                    peers.push((name.get_ref().to_string(), address.to_string()));
                }
                _ => {
                    let message = format!("peer `{}` needs an address", name.get_ref());
                    let hint = "write \"host:port\" of the peer's data plane".to_owned();
                    self.fault(value.span(), message, "not host:port", Some(hint));
                }
            }
        }
        Some(Value::Peers(peers))
    }

    fn fault(
        &mut self,
        at: Range<usize>,
        message: impl Into<String>,
        label: impl Into<String>,
        hint: Option<String>,
    ) {
        let fault = self.source.fault(at, message, label, hint);
        self.faults.push(fault);
    }
}

/// Whether text is `host:port`, with the host in brackets when it holds colons.
#[must_use]
pub fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host_good = match bare {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains([':', ' ', '/', '[', ']']),
    };
    host_good && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// `a path`, `an integer`; words that are values themselves stand alone.
fn with_article(what: &str) -> String {
    match what.chars().next() {
        _ if what == "text" || what.contains(" or false") => what.to_owned(),
        Some('a' | 'e' | 'i' | 'o' | 'u') => format!("an {what}"),
        _ => format!("a {what}"),
    }
}

fn example(kind: Kind) -> String {
    match kind {
        Kind::Quantity {
            dimension: Dimension::Bytes,
            ..
        } => "\"64MiB\"".to_owned(),
        _ => "\"300ms\"".to_owned(),
    }
}

fn format_hint(kind: Kind) -> String {
    match kind {
        Kind::Quantity { .. } => {
            format!("for example {}; allowed: {}", example(kind), kind.range())
        }
        Kind::Name | Kind::Text(_) => "write it in quotes".to_owned(),
        Kind::Peers => "write [peers] and below it name = \"host:port\"".to_owned(),
        _ => format!("allowed: {}", kind.range()),
    }
}
