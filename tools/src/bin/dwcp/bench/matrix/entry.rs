//! One `[[section]]` of a matrix file: its keys, one by one, and what is wrong with them.

use std::ops::{Range, RangeInclusive};

use dwcp_controlplane::config::{ConfigError, ConfigErrors, Dimension, Source, nearest_word};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Collects the faults of a file.
pub(super) struct Reader<'a> {
    source: Source<'a>,
    faults: Vec<ConfigError>,
}

/// A table, and the keys that were asked for.
pub(super) struct Entry<'r, 'a> {
    reader: &'r mut Reader<'a>,
    table: &'r DeTable<'a>,
    at: Range<usize>,
    section: &'r str,
    known: Vec<&'static str>,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(source: Source<'a>) -> Self {
        Self {
            source,
            faults: vec![],
        }
    }

    /// The file as TOML; sections that are not known are faults.
    pub(super) fn document(&mut self, sections: &[&str]) -> Result<DeTable<'a>, ConfigErrors> {
        let text = self.source.text;
        let parsed = DeTable::parse(text).map_err(|error| {
            let at = error.span().unwrap_or(text.len()..text.len());
            let message = error.message().lines().next().unwrap_or("not TOML");
            let fault = self.source.fault(at, message, "here", None);
            ConfigErrors {
                faults: vec![fault],
            }
        })?;
        let table = parsed.into_inner();
        for (name, value) in &table {
            let known = sections.contains(&&**name.get_ref());
            let is_list = value
                .get_ref()
                .as_array()
                .is_some_and(|list| list.iter().all(|entry| entry.get_ref().is_table()));
            if !known {
                let message = format!("unknown section `{}`", name.get_ref());
                self.unknown(name.span(), name.get_ref(), message, sections);
            } else if !is_list {
                let hint = format!("write [[{}]] and its keys below it", name.get_ref());
                let message = format!("`{}` is a list of sections", name.get_ref());
                self.fault(value.span(), message, "not a list of sections", Some(hint));
            }
        }
        Ok(table)
    }

    /// Reads every `[[section]]`.
    pub(super) fn each<T>(
        &mut self,
        document: &DeTable<'a>,
        section: &str,
        read: impl Fn(&mut Entry<'_, 'a>) -> Option<T>,
    ) -> Vec<T> {
        let list = document
            .get(section)
            .and_then(|list| list.get_ref().as_array());
        let mut all = vec![];
        for value in list.into_iter().flatten() {
            let Some(table) = value.get_ref().as_table() else {
                continue;
            };
            let mut entry = Entry {
                reader: self,
                table,
                at: value.span(),
                section,
                known: vec![],
            };
            let read = read(&mut entry);
            entry.refuse_unknown();
            all.extend(read);
        }
        all
    }

    /// An axis has entries, and each of them once. Those that could not be read are not in `names`.
    pub(super) fn check_axis(&mut self, document: &DeTable<'a>, axis: &str, names: &[String]) {
        let list = document
            .get(axis)
            .and_then(|list| list.get_ref().as_array());
        let places: Vec<_> = list.into_iter().flatten().map(Spanned::span).collect();
        if places.is_empty() && self.faults.is_empty() {
            let message = format!("no [[{axis}]]: there would be no scenario");
            self.fault(0..self.source.text.len().min(1), message, "here", None);
        }
        if places.len() != names.len() {
            return;
        }
        for (index, (name, at)) in names.iter().zip(places).enumerate() {
            if names[..index].contains(name) {
                let message = format!("{axis} `{name}` is there twice");
                self.fault(at, message, "the second", None);
            }
        }
    }

    /// # Errors
    /// All faults, in their order in the file.
    pub(super) fn finish(mut self) -> Result<(), ConfigErrors> {
        if self.faults.is_empty() {
            return Ok(());
        }
        self.faults
            .sort_by_key(|fault| (fault.line(), fault.column()));
        Err(ConfigErrors {
            faults: self.faults,
        })
    }

    fn fault(&mut self, at: Range<usize>, message: String, label: &str, hint: Option<String>) {
        let fault = self.source.fault(at, message, label, hint);
        self.faults.push(fault);
    }

    fn unknown(&mut self, at: Range<usize>, word: &str, message: String, known: &[&str]) {
        let hint = match nearest_word(word, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known here: {}", known.join(", ")),
        };
        self.fault(at, message, "not known", Some(hint));
    }
}

impl<'a> Entry<'_, 'a> {
    /// Where it stands.
    pub(super) fn at(&self) -> Range<usize> {
        self.at.clone()
    }

    pub(super) fn fault(
        &mut self,
        at: Range<usize>,
        message: String,
        label: &str,
        hint: Option<String>,
    ) {
        self.reader.fault(at, message, label, hint);
    }

    /// The value of a key that has to be there.
    fn value(&mut self, key: &'static str) -> Option<&Spanned<DeValue<'a>>> {
        self.known.push(key);
        let value = self.table.get(key);
        if value.is_none() {
            let message = format!("[[{}]] has no `{key}`", self.section);
            self.reader.fault(self.at.clone(), message, "here", None);
        }
        value
    }

    fn wrong(&mut self, at: Range<usize>, key: &str, takes: &str) {
        let message = format!("`{key}` takes {takes}");
        self.reader.fault(at, message, "not that", None);
    }

    /// Text, and where it stands.
    pub(super) fn text(&mut self, key: &'static str) -> Option<(String, Range<usize>)> {
        let value = self.value(key)?;
        let (at, text) = (value.span(), value.get_ref().as_str().map(str::to_owned));
        match text {
            Some(text) if !text.is_empty() => Some((text, at)),
            _ => {
                self.wrong(at, key, "text in quotes");
                None
            }
        }
    }

    /// A word that can be part of a scenario's name.
    pub(super) fn word(&mut self, key: &'static str) -> Option<String> {
        let (text, at) = self.text(key)?;
        if dwcp_api::is_name(&text) {
            return Some(text);
        }
        self.wrong(at, key, dwcp_api::NAME_RULE);
        None
    }

    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let (text, at) = self.text(key)?;
        let found = words.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            let message = format!("`{key}` cannot be `{text}`");
            self.reader.unknown(at, &text, message, &known);
        }
        found.map(|(_, value)| *value)
    }

    pub(super) fn integer(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.value(key)?;
        let at = value.span();
        let number = value.get_ref().as_integer();
        let number = number.and_then(|it| u64::from_str_radix(it.as_str(), it.radix()).ok());
        if let Some(number) = number.filter(|number| range.contains(number)) {
            return Some(number);
        }
        let takes = format!("a whole number, {} to {}", range.start(), range.end());
        self.wrong(at, key, &takes);
        None
    }

    pub(super) fn quantity(
        &mut self,
        key: &'static str,
        dimension: Dimension,
    ) -> Option<(u64, Range<usize>)> {
        let (text, at) = self.text(key)?;
        match dimension.parse(&text) {
            Ok(value) => Some((value, at)),
            Err(error) => {
                let takes = format!("{}: {error}", dimension.name());
                self.wrong(at, key, &takes);
                None
            }
        }
    }

    /// A list of known names; none when the key is left out.
    pub(super) fn names(&mut self, key: &'static str, known: &[String]) -> Vec<String> {
        let known: Vec<_> = known.iter().map(String::as_str).collect();
        let mut names = vec![];
        for (text, at) in self.texts(key) {
            if known.contains(&text.as_str()) {
                names.push(text);
            } else {
                let message = format!("no {key} `{text}`");
                self.reader.unknown(at, &text, message, &known);
            }
        }
        names
    }

    /// A list of texts, each with its place; none when the key is left out.
    pub(super) fn texts(&mut self, key: &'static str) -> Vec<(String, Range<usize>)> {
        self.known.push(key);
        let Some(value) = self.table.get(key) else {
            return vec![];
        };
        let Some(list) = value.get_ref().as_array() else {
            self.wrong(value.span(), key, "a list of texts in quotes");
            return vec![];
        };
        if list.is_empty() {
            self.wrong(value.span(), key, "at least one entry; leave it out");
        }
        let mut texts = vec![];
        for value in list {
            match value.get_ref().as_str() {
                Some(text) => texts.push((text.to_owned(), value.span())),
                None => self.wrong(value.span(), key, "texts in quotes"),
            }
        }
        texts
    }

    fn refuse_unknown(&mut self) {
        for (name, _) in self.table {
            let word: &str = name.get_ref();
            if !self.known.contains(&word) {
                let message = format!("unknown key `{word}` in [[{}]]", self.section);
                self.reader.unknown(name.span(), word, message, &self.known);
            }
        }
    }
}
