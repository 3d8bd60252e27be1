//! "Did you mean …".

/// The candidate closest to `word`, if close enough to be a slip: letters swapped, left out, doubled, or the case.
pub(crate) fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let normal = |s: &str| s.to_lowercase().replace(['-', '_'], "");
    let word = normal(word);
    candidates
        .into_iter()
        .map(|candidate| (distance(&word, &normal(candidate)), candidate))
        .filter(|(d, candidate)| *d <= (candidate.len().min(word.len()) / 3).max(1) && *d < word.len())
        .min_by_key(|(d, _)| *d)
        .map(|(_, candidate)| candidate)
}

/// Edits (insert, delete, replace, swap neighbours) from `a` to `b` (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let differ = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1)
                .min(row[j - 1] + 1)
                .min(rows[i - 1][j - 1] + differ);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_found_and_other_words_are_not() {
        let fields = ["version", "bootstrap", "podsPerNodeMask", "vip", "on", "extraArgs"];
        for (word, found) in [
            ("verison", Some("version")),
            ("Version", Some("version")),
            ("pods_per_node_mask", Some("podsPerNodeMask")),
            ("vpi", Some("vip")),
            ("extraArg", Some("extraArgs")),
            ("nothing", None),
            ("x", None),
        ] {
            assert_eq!(closest(word, fields), found, "{word}");
        }
    }
}
