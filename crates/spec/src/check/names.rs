//! What names may look like: hosts, labels, interfaces.

/// RFC 1123 label: Kubernetes' `IsDNS1123Label`.
pub(super) fn is_label(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 63
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// RFC 1123 subdomain: Kubernetes' `IsDNS1123Subdomain`.
pub(super) fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

/// Why a name is no host name, in words; `None` if it is one.
pub(super) fn why_no_hostname(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.parse::<std::net::IpAddr>().is_ok() {
        return Some("it is an address; a name is wanted");
    }
    if name.len() > 253 || name.split('.').any(|part| part.len() > 63) {
        return Some("a name has at most 253 characters, 63 between two dots (RFC 1123)");
    }
    if name.ends_with('.') {
        return Some("it ends with a dot; names are written without the root's dot here");
    }
    if name.contains('_') {
        return Some("an underscore is not allowed in host names (RFC 1123)");
    }
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return Some("upper-case letters are not allowed: Kubernetes compares names byte by byte");
    }
    (!is_subdomain(name))
        .then_some("only a-z, 0-9, `-` and `.` are allowed, beginning and ending with a letter or digit (RFC 1123)")
}

/// A label or taint key: `[prefix/]name`.
pub(super) fn why_no_key(key: &str) -> Option<&'static str> {
    let name = match key.split_once('/') {
        Some((prefix, name)) => {
            if !is_subdomain(prefix) {
                return Some("the part before the slash must be a DNS name of small letters");
            }
            name
        }
        None => key,
    };
    (name.is_empty() || !is_word(name))
        .then_some("a key is a name of at most 63 letters, digits, `-`, `_` and `.`, beginning and ending with a letter or digit, after an optional `prefix/`")
}

/// A label's or taint's value.
pub(super) fn why_no_value(value: &str) -> Option<&'static str> {
    (!is_word(value)).then_some(
        "a value has at most 63 letters, digits, `-`, `_` and `.`, and begins and ends with a letter or digit",
    )
}

fn is_word(word: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let ends = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = word.as_bytes();
    bytes.len() <= 63 && bytes.iter().all(|b| inner(*b)) && ends(bytes.first()) && ends(bytes.last())
}

/// Linux' IFNAMSIZ is 16 with the final zero; `/` and white space are refused by the kernel.
pub(super) fn is_interface(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':'))
}

/// Something that may be handed to ssh or another program as an argument of its own: no option, no control characters.
pub(super) fn why_no_argument(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        return Some("it is empty");
    }
    if text.contains("PRIVATE KEY") || text.lines().count() > 1 {
        return Some("this looks like a key; a cluster file holds no secrets, only the path to one");
    }
    if text.starts_with('-') {
        return Some("a program that gets it would take it for an option");
    }
    text.chars()
        .any(|c| c.is_control())
        .then_some("it has control characters in it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_follow_kubernetes() {
        for key in ["zone", "a.b/c", "node-role.kubernetes.io/control-plane", "A_b-c.1"] {
            assert_eq!(why_no_key(key), None, "{key}");
        }
        for key in ["", "/", "a/", "A/b", "a/b/c", "-a", "a-", "ä", &"x".repeat(64)] {
            assert!(why_no_key(key).is_some(), "{key}");
        }
        for value in ["", "a", "1.10", "A_b"] {
            assert_eq!(why_no_value(value), None, "{value}");
        }
        for value in ["a b", "-a", "a/b"] {
            assert!(why_no_value(value).is_some(), "{value}");
        }
    }

    #[test]
    fn interfaces_are_what_linux_accepts() {
        assert!(is_interface("eth0") && is_interface("bond0.100"));
        assert!(
            !is_interface("a-name-too-long-x") && !is_interface("a/b") && !is_interface("") && !is_interface("eth0:1")
        );
    }
}
