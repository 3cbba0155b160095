//! The table of keys that a kind of file may hold, and the values they take.

use std::collections::BTreeMap;

use super::quantity::Dimension;

/// A key of a configuration file. The table of these is the parser, `dwcp config explain` and
/// `docs/CONFIG.md` at once.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Dotted name: `transfer.streams`.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// When a changed value counts.
    pub reload: Reload,
    /// What it does, in a paragraph.
    pub doc: &'static str,
}

/// Leaves a number to the program.
pub const AUTO: &str = "auto";

/// What a key takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A whole number in a range, both ends allowed.
    Integer {
        /// Least.
        min: i64,
        /// Most.
        max: i64,
    },
    /// A whole number in a range, both ends allowed, or the word [`AUTO`].
    IntegerOrAuto {
        /// Least.
        min: i64,
        /// Most.
        max: i64,
    },
    /// A quantity in a range, both ends allowed.
    Quantity {
        /// What it measures.
        dimension: Dimension,
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// One of some words.
    Choice(&'static [&'static str]),
    /// `true` or `false`.
    Boolean,
    /// The name of a node.
    Name,
    /// Text; the words say what for: `a path`, `host:port`.
    Text(&'static str),
    /// A table of names to `host:port`.
    Peers,
}

/// When a changed value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// Read for every migration: counts for those that start afterwards.
    NextMigration,
    /// Read again on SIGHUP.
    Signal,
    /// Counts after a restart of the daemon.
    Restart,
}

impl Reload {
    /// In words.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::NextMigration => "yes: counts for migrations started afterwards",
            Self::Signal => "yes: on SIGHUP to dwcp-controlplane",
            Self::Restart => "no: restart dwcp-controlplane",
        }
    }
}

/// A checked value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Of [`Kind::Integer`] and [`Kind::IntegerOrAuto`].
    Integer(i64),
    /// Of [`Kind::Quantity`], in bytes or milliseconds.
    Quantity(u64),
    /// Of [`Kind::Choice`], [`Kind::Name`], [`Kind::Text`] and [`Kind::IntegerOrAuto`].
    Text(String),
    /// Of [`Kind::Boolean`].
    Boolean(bool),
    /// Of [`Kind::Peers`].
    Peers(Vec<(String, String)>),
}

/// Checked values by key name.
pub type Values = BTreeMap<&'static str, Value>;

impl Kind {
    /// The type, in words.
    #[must_use]
    pub const fn type_name(self) -> &'static str {
        match self {
            Self::Integer { .. } => "whole number",
            Self::IntegerOrAuto { .. } => "whole number or \"auto\"",
            Self::Quantity {
                dimension: Dimension::Bytes,
                ..
            } => "size",
            Self::Quantity {
                dimension: Dimension::Milliseconds,
                ..
            } => "time",
            Self::Choice(_) => "choice",
            Self::Boolean => "true or false",
            Self::Name => "name",
            Self::Text(what) => what,
            Self::Peers => "table of name = \"host:port\"",
        }
    }

    /// Units it takes, or a dash.
    #[must_use]
    pub fn unit(self) -> String {
        match self {
            Self::Quantity { dimension, .. } => dimension.unit_list(),
            _ => "-".to_owned(),
        }
    }

    /// Values it takes, in words.
    #[must_use]
    pub fn range(self) -> String {
        match self {
            Self::Integer { min, max } => format!("{min} to {max}"),
            Self::IntegerOrAuto { min, max } => format!("{min} to {max}, {AUTO}"),
            Self::Quantity {
                dimension,
                min,
                max,
            } => {
                format!("{} to {}", dimension.show(min), dimension.show(max))
            }
            Self::Choice(words) => words.join(", "),
            Self::Boolean => "true, false".to_owned(),
            Self::Name => dwcp_api::NAME_RULE.to_owned(),
            Self::Text(_) | Self::Peers => "-".to_owned(),
        }
    }

    /// A value as it is written in a file.
    #[must_use]
    pub fn show(self, value: &Value) -> String {
        match (self, value) {
            (Self::Quantity { dimension, .. }, Value::Quantity(value)) => {
                format!("\"{}\"", dimension.show(*value))
            }
            (_, Value::Integer(value)) => value.to_string(),
            (_, Value::Quantity(value)) => value.to_string(),
            (_, Value::Text(text)) => format!("{text:?}"),
            (_, Value::Boolean(value)) => value.to_string(),
            (_, Value::Peers(peers)) => {
                let list: Vec<_> = peers
                    .iter()
                    .map(|(name, at)| format!("{name} = {at:?}"))
                    .collect();
                format!("{{ {} }}", list.join(", "))
            }
        }
    }
}
