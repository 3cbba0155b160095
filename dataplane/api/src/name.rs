//! Names of VMs and nodes: one rule, wherever they come from.

/// What a name is, in words.
pub const NAME_RULE: &str =
    "1 to 64 letters, digits, `-`, `_` or `.`, not beginning with `-` or `.`";

const NAME_BYTES_MAX: usize = 64;

/// Whether a text can name a VM or a node. It becomes part of file names, log lines and records.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.chars().all(good)
        && !text.starts_with(['-', '.'])
}

/// Takes the name of a node from an argument.
///
/// # Errors
/// Why it is none, for a person.
pub fn parse_node_name(text: &str) -> Result<String, String> {
    if is_name(text) {
        return Ok(text.to_owned());
    }
    Err(format!("`{text:.80}` cannot name a node: {NAME_RULE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_word_that_can_stand_in_a_path() {
        for good in ["a", "web-1", "node_a.example.org", "0", &"x".repeat(64)] {
            assert!(is_name(good), "{good}");
        }
        for bad in [
            "",
            "-a",
            ".",
            "..",
            "a/b",
            "a b",
            "ä",
            "a\n",
            &"x".repeat(65),
        ] {
            assert!(!is_name(bad), "{bad}");
            assert!(parse_node_name(bad).unwrap_err().contains(NAME_RULE));
        }
    }
}
