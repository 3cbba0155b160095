//! Names that certificates carry.

use rustls_pki_types::DnsName;

use crate::files::PkiError;

/// What OpenSSL and others take as the name of a subject.
const CA_NAME_CHARACTERS_MAX: usize = 64;

const DNS_RULE: &str = "1 to 253 characters; words of 1 to 63 letters, digits, `-` and `_`, none of \
                        them beginning or ending with `-`, joined by single dots; the last word not a \
                        number";

fn refused(name: &str, why: impl Into<String>) -> PkiError {
    PkiError::Name {
        name: name.to_owned(),
        why: why.into(),
    }
}

/// A CA's name is for people: whatever can stand in a line.
pub(crate) fn check_ca(name: &str) -> Result<(), PkiError> {
    let is_sound = (1..=CA_NAME_CHARACTERS_MAX).contains(&name.chars().count())
        && !name.trim().is_empty()
        && !name.chars().any(char::is_control);
    if is_sound {
        return Ok(());
    }
    Err(refused(
        name,
        format!(
            "cannot name a CA: 1 to {CA_NAME_CHARACTERS_MAX} characters that can be seen, none of them a \
             control character such as a new line"
        ),
    ))
}

/// A node's name becomes the name in its certificate: it must be one of the DNS, too.
pub(crate) fn check_node(node: &str) -> Result<(), PkiError> {
    if !dwcp_api::is_name(node) {
        let rule = dwcp_api::NAME_RULE;
        return Err(refused(node, format!("cannot name a node: {rule}")));
    }
    if is_dns(node) {
        return Ok(());
    }
    Err(refused(
        node,
        format!("can name a node, but not in a certificate; there a name is {DNS_RULE}"),
    ))
}

/// Another DNS name of a node.
pub(crate) fn check_dns(name: &str) -> Result<(), PkiError> {
    if is_dns(name) {
        return Ok(());
    }
    Err(refused(
        name,
        format!("is no DNS name: {DNS_RULE}. An address is given by --address"),
    ))
}

/// With a dot at its end a name is the same to a resolver, and another one to who compares certificates.
fn is_dns(name: &str) -> bool {
    !name.ends_with('.') && DnsName::try_from(name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_that_is_said_is_the_one_that_was_broken() {
        let word = "x".repeat(63);
        let longest = format!("{word}.{word}.{word}.{}", "x".repeat(61));
        for good in ["a", "node_a.example.org", &word, &longest] {
            check_dns(good).unwrap();
        }
        check_node(&word).unwrap();
        for bad in ["a-", "a.", &"x".repeat(64), "a.-b", "a..b", "10.0.0.1"] {
            let error = check_node(bad).unwrap_err().to_string();
            assert!(error.contains("1 to 63 letters"), "{error}");
        }
        for bad in [
            "",
            "bad name",
            "a\nb",
            "*.example.org",
            &format!("x{longest}"),
        ] {
            let error = check_dns(bad).unwrap_err().to_string();
            assert!(error.contains("is no DNS name"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        for bad in ["", " ", "a\nb", "a\u{1b}[31m", "a\u{7f}", &"x".repeat(65)] {
            let error = check_ca(bad).unwrap_err().to_string();
            assert!(error.contains("cannot name a CA"), "{error}");
        }
        check_ca("Example, Inc.").unwrap();
    }
}
