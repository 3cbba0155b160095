//! How programs speak to people.

use std::error::Error;
use std::io::IsTerminal;

/// An error with its causes, in one line. Most errors say their cause themselves: what was said is
/// not said again.
#[must_use]
pub fn in_words(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

/// Whether what is written to standard error may be coloured: a terminal shows it, and the user has
/// not set `NO_COLOR`.
#[must_use]
pub fn stderr_takes_colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !unwanted
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::SocketError;
    use crate::codec::CodecError;

    #[test]
    fn a_cause_is_said_once_whether_or_not_the_error_says_it() {
        let source = std::io::Error::from_raw_os_error(98);
        let says = SocketError::Io {
            path: PathBuf::from("/run/x"),
            source,
        };
        assert_eq!(
            in_words(&says),
            "/run/x: Address already in use (os error 98)"
        );
        let silent = CodecError::Malformed(postcard::Error::DeserializeUnexpectedEnd);
        let words = in_words(&silent);
        assert!(
            words.starts_with("malformed message: ") && words.len() > 20,
            "{words}"
        );
    }
}
