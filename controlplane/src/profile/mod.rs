//! Profiles: how a migration is to be moved, as TOML that people write.
//!
//! Three are built in, one per mode; a file gives the keys that differ and names the mode it starts
//! from. Both resolve to [`TransferSettings`].

mod doc;
mod keys;
mod resolve;

use std::io::ErrorKind;
use std::path::Path;

use dwcp_api::{RdmaChoice, TlsChoice, TransferSettings};
use miette::NamedSource;

pub use doc::{explain, markdown};

use crate::config::{self, ConfigErrors, Key, Source, Value, Values};
use crate::mode::Mode;

/// Name and text of the built-in profiles.
const BUILT_IN: &[(&str, &str)] = &[
    (
        "datacenter",
        include_str!("../../../tools/profiles/datacenter.toml"),
    ),
    (
        "hybrid",
        include_str!("../../../tools/profiles/hybrid.toml"),
    ),
    (
        "internet",
        include_str!("../../../tools/profiles/internet.toml"),
    ),
];

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[non_exhaustive]
pub enum ProfileError {
    /// Its text has faults.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Faults(#[from] ConfigErrors),
    /// A name that is neither a built-in profile nor a file.
    #[error("no profile `{name}`: {why}")]
    #[diagnostic(help("built in: datacenter, hybrid, internet; or give the path of a TOML file"))]
    NotFound {
        /// What was asked for.
        name: String,
        /// Why it was not taken as a file.
        why: String,
    },
    /// A file that cannot be read or used.
    #[error("profile `{name}` cannot be used: {why}")]
    #[diagnostic(help("built in: datacenter, hybrid, internet; or give the path of a TOML file"))]
    Unusable {
        /// What was asked for.
        name: String,
        /// What is in the way.
        why: String,
    },
    /// A file that does not say which mode it is for.
    #[error("{}: `mode` is missing", .file.name())]
    #[diagnostic(help("add the line: mode = \"datacenter\" (or hybrid, internet)"))]
    NoMode {
        /// The file.
        #[source_code]
        file: NamedSource<String>,
        /// Its first line.
        #[label("before this")]
        at: miette::SourceSpan,
    },
}

/// Every key of a profile, in the order of the files.
#[must_use]
pub const fn keys() -> &'static [Key] {
    keys::KEYS
}

/// The names of the built-in profiles.
pub fn built_in_names() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|(name, _)| *name)
}

/// The text of a built-in profile, comments included.
#[must_use]
pub fn built_in_text(name: &str) -> Option<&'static str> {
    Some(BUILT_IN.iter().find(|(built_in, _)| *built_in == name)?.1)
}

/// The settings of a profile: the name of a built-in one, or the path of a file.
///
/// # Errors
/// [`ProfileError`] with the faults and their places.
pub fn load(name: &str) -> Result<TransferSettings, ProfileError> {
    if let Some(text) = built_in_text(name) {
        return parse(name, text);
    }
    let text = std::fs::read_to_string(Path::new(name)).map_err(|error| unread(name, &error))?;
    parse(name, &text)
}

/// A path is known by its folder or its ending: what is wrong then is the file.
fn unread(name: &str, error: &std::io::Error) -> ProfileError {
    let is_path = name.contains(['/', '.']) || error.kind() != ErrorKind::NotFound;
    let near = config::nearest_word(name, built_in_names());
    let why = match near {
        Some(near) => format!("did you mean {near}?"),
        None => error.to_string(),
    };
    let name = name.to_owned();
    if is_path {
        ProfileError::Unusable { name, why }
    } else {
        ProfileError::NotFound { name, why }
    }
}

/// The settings that profile text stands for; `name` is what faults call it.
///
/// # Errors
/// [`ProfileError`] with the faults and their places.
pub fn parse(name: &str, text: &str) -> Result<TransferSettings, ProfileError> {
    let given = config::parse(Source { name, text }, keys::KEYS)?;
    let Some(Value::Text(mode)) = given.get("mode") else {
        return Err(ProfileError::NoMode {
            file: NamedSource::new(name, text.to_owned()),
            at: (0..text.lines().next().map_or(0, str::len)).into(),
        });
    };
    let mut values = built_in_values(mode)?;
    values.extend(given);
    let settings = resolve(&values, name)?;
    match contradiction(&settings) {
        None => Ok(settings),
        Some((key, message, hint)) => {
            let source = Source { name, text };
            let at = config::place(source, key).or_else(|| config::place(source, "mode"));
            let at = at.unwrap_or_default();
            let fault = source.fault(at, message, "cannot be so", Some(hint.to_owned()));
            let faults = vec![fault];
            Err(ConfigErrors { faults }.into())
        }
    }
}

/// Values each of which is good, and which no migration can have together: the key that is wrong, why, and what to do.
fn contradiction(
    settings: &TransferSettings,
) -> Option<(&'static str, &'static str, &'static str)> {
    let is_internet = settings.mode == Mode::Internet.name();
    if is_internet && settings.tls == TlsChoice::Off {
        return Some((
            "transfer.tls",
            "`transfer.tls` cannot be `off`: mode internet is never plain text",
            "leave it out; a path that you trust is mode hybrid or datacenter",
        ));
    }
    let is_tls = is_internet || settings.tls == TlsChoice::On;
    (is_tls && settings.rdma == RdmaChoice::Required).then_some((
        "transfer.rdma",
        "`transfer.rdma` cannot be `required` with TLS: RDMA has no encryption",
        "on a network that only your hypervisors have access to, mode datacenter with tls = \"off\"",
    ))
}

/// Settings with some keys changed: each change is `key=value`, the value as in a file but with
/// quotes optional.
///
/// # Errors
/// [`ProfileError::Faults`] under the name `--set`.
pub fn with_changes<'a>(
    settings: &TransferSettings,
    changes: impl IntoIterator<Item = &'a str>,
) -> Result<TransferSettings, ProfileError> {
    let mut values = resolve::values(settings);
    for change in changes {
        values.extend(parse_change(change)?);
    }
    resolve(&values, "--set")
}

fn parse_change(change: &str) -> Result<Values, ConfigErrors> {
    const NAME: &str = "--set";
    let Some((key, value)) = change.split_once('=') else {
        let source = Source {
            name: NAME,
            text: change,
        };
        let hint = "write key=value, for example transfer.streams=4".to_owned();
        let fault = source.fault(0..change.len(), "no `=`", "here", Some(hint));
        return Err(ConfigErrors {
            faults: vec![fault],
        });
    };
    let (key, value) = (key.trim(), value.trim());
    let bare = format!("{key} = {value}");
    let quoted = format!("{key} = {value:?}");
    let is_toml = toml::de::DeTable::parse(&bare).is_ok();
    let text = if is_toml { &bare } else { &quoted };
    config::parse(Source { name: NAME, text }, keys::KEYS)
}

fn built_in_values(mode: &str) -> Result<Values, ProfileError> {
    let text = built_in_text(mode).unwrap_or_default();
    Ok(config::parse(Source { name: mode, text }, keys::KEYS)?)
}

fn resolve(values: &Values, name: &str) -> Result<TransferSettings, ProfileError> {
    resolve::settings(values).ok_or_else(|| ProfileError::Unusable {
        name: name.to_owned(),
        why: "it does not give every key".to_owned(),
    })
}

/// Value of a key in a built-in profile, as it is written in a file.
#[must_use]
pub fn default_text(key: &Key, profile: &str) -> Option<String> {
    let values = built_in_values(profile).ok()?;
    Some(key.kind.show(values.get(key.name)?))
}

/// Settings as the text of a profile file.
#[must_use]
pub fn to_toml(settings: &TransferSettings) -> String {
    let values = resolve::values(settings);
    let mut text = String::new();
    let mut section = "";
    for key in keys::KEYS {
        let (own, name) = key.name.rsplit_once('.').unwrap_or(("", key.name));
        if own != section {
            text.push_str(&format!("\n[{own}]\n"));
            section = own;
        }
        if let Some(value) = values.get(key.name) {
            text.push_str(&format!("{name} = {}\n", key.kind.show(value)));
        }
    }
    text
}

#[cfg(test)]
mod tests;
