//! A block of lines in a file whose rest belongs to others, such as `/etc/hosts`.

use std::ops::Range;

/// `text` with the lines between `# BEGIN marker` and `# END marker` replaced by `content`, or with block and markers
/// removed. A new block goes to the end. Every other byte stays as it is.
pub fn edit(text: &[u8], marker: &str, content: Option<&[u8]>) -> Vec<u8> {
    let [begin, end] = markers(marker);
    let old = find(text, marker);
    let mut block = Vec::new();
    if let Some(content) = content {
        block.extend_from_slice(begin.as_bytes());
        block.extend_from_slice(content);
        if !content.is_empty() && !content.ends_with(b"\n") {
            block.push(b'\n');
        }
        block.extend_from_slice(end.as_bytes());
    }
    let (before, after) = match old {
        Some(old) => (&text[..old.start], &text[old.end..]),
        None => (text, &b""[..]),
    };
    let mut made = before.to_vec();
    if !block.is_empty() && !made.is_empty() && !made.ends_with(b"\n") {
        made.push(b'\n');
    }
    made.extend_from_slice(&block);
    made.extend_from_slice(after);
    made
}

/// The lines of the block in `text`, without its markers; `None` where there is none.
pub fn content<'a>(text: &'a str, marker: &str) -> Option<&'a str> {
    let block = &text[find(text.as_bytes(), marker)?];
    let [begin, end] = markers(marker);
    // The last line of a text may lack its newline.
    block
        .strip_prefix(&begin)?
        .trim_end_matches('\n')
        .strip_suffix(end.trim_end())
}

fn markers(marker: &str) -> [String; 2] {
    ["BEGIN", "END"].map(|word| format!("# {word} {marker}\n"))
}

/// Where the block is, markers included.
fn find(text: &[u8], marker: &str) -> Option<Range<usize>> {
    let [begin, end] = markers(marker);
    let first = find_line(text, begin.as_bytes(), 0)?;
    let at = find_line(text, end.as_bytes(), first)?;
    // A beginning whose end somebody lost is no block: what follows it is theirs.
    let (mut from, mut next) = (first, first);
    while let Some(later) = find_line(&text[..at], begin.as_bytes(), next) {
        (from, next) = (later, later + begin.len());
    }
    Some(from..at + end.len().min(text.len() - at))
}

/// Offset of `line` (which ends with a newline; the last line of the text may lack it) at or after `from`.
fn find_line(text: &[u8], line: &[u8], from: usize) -> Option<usize> {
    let bare = &line[..line.len() - 1];
    let mut at = from;
    for piece in text[from..].split_inclusive(|&byte| byte == b'\n') {
        if piece == line || piece == bare {
            return Some(at);
        }
        at += piece.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{content, edit};

    #[test]
    fn only_the_block_changes() {
        let hosts = b"127.0.0.1 localhost\n# mine\n10.0.0.1 other";
        let with = edit(hosts, "quorate", Some(b"10.77.0.100 api"));
        assert_eq!(
            with,
            b"127.0.0.1 localhost\n# mine\n10.0.0.1 other\n# BEGIN quorate\n10.77.0.100 api\n# END quorate\n"
        );
        let other = edit(&with, "quorate", Some(b"10.77.0.101 api\n"));
        assert_eq!(
            other,
            b"127.0.0.1 localhost\n# mine\n10.0.0.1 other\n# BEGIN quorate\n10.77.0.101 api\n# END quorate\n"
        );
        assert_eq!(
            edit(&other, "quorate", None),
            b"127.0.0.1 localhost\n# mine\n10.0.0.1 other\n"
        );
        assert_eq!(
            edit(&edit(&other, "quorate", Some(b"x\n")), "quorate", Some(b"x\n")),
            edit(&other, "quorate", Some(b"x\n"))
        );
    }

    #[test]
    fn a_block_without_an_end_is_not_taken_for_one() {
        let text = b"# BEGIN quorate\nprecious\n";
        assert_eq!(edit(text, "quorate", None), text);
        // Nor when a whole one follows.
        let with = edit(text, "quorate", Some(b"ours\n"));
        assert_eq!(
            with,
            b"# BEGIN quorate\nprecious\n# BEGIN quorate\nours\n# END quorate\n"
        );
        assert_eq!(edit(&with, "quorate", None), text);
        assert_eq!(content(&String::from_utf8_lossy(&with), "quorate"), Some("ours\n"));
        assert_eq!(content(&String::from_utf8_lossy(text), "quorate"), None);
        assert_eq!(content("# BEGIN q\na\n# END q", "q"), Some("a\n"));
        assert_eq!(edit(&with, "quorate", Some(b"ours\n")), with);
        assert_eq!(edit(b"# BEGIN q\na\n# END q", "q", None), b"");
        assert_eq!(edit(b"", "q", Some(b"")), b"# BEGIN q\n# END q\n");
    }
}
