//! What is wrong with a configuration file, and where.

use std::ops::Range;

use miette::{Diagnostic, NamedSource, SourceSpan};

/// One fault in a configuration file: shown with file, line, column, the text underlined, a hint.
#[derive(Clone, Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
#[diagnostic(code(dwcp::config))]
pub struct ConfigError {
    /// What is wrong.
    pub message: String,
    #[source_code]
    source_code: NamedSource<String>,
    #[label("{label}")]
    span: SourceSpan,
    label: String,
    /// What to write instead.
    #[help]
    pub hint: Option<String>,
}

impl ConfigError {
    /// Line of the fault, from 1.
    #[must_use]
    pub fn line(&self) -> usize {
        self.before().matches('\n').count() + 1
    }

    /// Column of the fault in characters, from 1.
    #[must_use]
    pub fn column(&self) -> usize {
        self.before()
            .rsplit('\n')
            .next()
            .map_or(0, |line| line.chars().count())
            + 1
    }

    /// Name of the file.
    #[must_use]
    pub fn file(&self) -> &str {
        self.source_code.name()
    }

    /// The text that is wrong.
    #[must_use]
    pub fn text(&self) -> &str {
        let from = self.span.offset();
        let text = self.source_code.inner();
        text.get(from..from + self.span.len()).unwrap_or_default()
    }

    /// What stands at the marked place instead.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    fn before(&self) -> &str {
        let text = self.source_code.inner();
        text.get(..self.span.offset()).unwrap_or(text)
    }
}

/// All faults of one file; at least one.
#[derive(Clone, Debug, thiserror::Error, Diagnostic)]
#[error("{}", summary(.faults))]
pub struct ConfigErrors {
    /// The faults, in the order of the file.
    #[related]
    pub faults: Vec<ConfigError>,
}

fn summary(faults: &[ConfigError]) -> String {
    let Some(first) = faults.first() else {
        return "configuration is not usable".to_owned();
    };
    let place = format!("{}:{}:{}", first.file(), first.line(), first.column());
    let more = match faults.len() {
        1 => String::new(),
        count => format!(" (and {} more)", count - 1),
    };
    format!("{place}: {}{more}", first.message)
}

/// Text of a configuration, with the name it is shown under.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Name of the file.
    pub name: &'a str,
    /// Its text.
    pub text: &'a str,
}

impl Source<'_> {
    /// A fault at a range of bytes of the text.
    #[must_use]
    pub fn fault(
        &self,
        at: Range<usize>,
        message: impl Into<String>,
        label: impl Into<String>,
        hint: Option<String>,
    ) -> ConfigError {
        ConfigError {
            message: message.into(),
            source_code: NamedSource::new(self.name, self.text.to_owned()).with_language("toml"),
            span: at.into(),
            label: label.into(),
            hint,
        }
    }
}
