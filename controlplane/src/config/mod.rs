//! Configuration files: one table of keys is the parser, the help and the documentation.

mod error;
mod node;
mod parse;
mod quantity;
mod read;
mod schema;
mod suggest;

pub use error::{ConfigError, ConfigErrors, Source};
pub use node::{NodeConfig, STATE_FOLDER, keys};
pub use quantity::{Dimension, QuantityError, QuantityFault};
pub use read::{Unreadable, read};
pub use schema::{AUTO, Key, Kind, Reload, Value, Values};

pub use parse::is_address;
pub(crate) use parse::{parse, place};

/// The word of `known` that was probably meant by `word`.
pub fn nearest_word<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    suggest::nearest(word, known)
}

/// The key of `keys` whose name is nearest to `name`.
#[must_use]
pub fn nearest_key<'a>(name: &str, keys: impl IntoIterator<Item = &'a Key>) -> Option<&'a str> {
    let last = |name: &'a str| name.rsplit('.').next().unwrap_or(name);
    let names: Vec<&str> = keys.into_iter().map(|key| key.name).collect();
    suggest::nearest(name, names.iter().copied()).or_else(|| {
        let short = suggest::nearest(name, names.iter().map(|name| last(name)))?;
        names.iter().copied().find(|name| last(name) == short)
    })
}
