//! Scores of generated texts.

/// True if the answer equals the reference text, ignoring white space at both ends.
pub fn exact_match(answer: &str, want: &str) -> bool {
    answer.trim() == want.trim()
}

/// ROUGE-L (Lin 2004) as the `rouge_score` package computes it without stemming: the F1 of `P = L / |answer|`
/// and `R = L / |want|`, with `L` the length of the longest common subsequence of words; words are runs of
/// `a-z0-9` of the lower-cased text. 0 if either text has no words.
pub fn rouge_l(answer: &str, want: &str) -> f64 {
    let (a, b) = (words(answer), words(want));
    let common = longest_common_subsequence(&a, &b) as f64;
    if common == 0.0 { 0.0 } else { 2.0 * common / (a.len() + b.len()) as f64 }
}

fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let parts = lower.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
    parts.filter(|w| !w.is_empty()).map(str::to_owned).collect()
}

fn longest_common_subsequence(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hand_computed_cases() {
        // rouge_score's own example: "testing one two" against "testing": P = 1/3, R = 1, F = 1/2.
        assert_eq!(rouge_l("testing one two", "testing"), 0.5);
        // Lin 2004, section 3: "police kill the gunman" and "the gunman kill police" against "police killed
        // the gunman": 3 of 4 and 2 of 4 words in order.
        assert_eq!(rouge_l("police kill the gunman", "police killed the gunman"), 0.75);
        assert_eq!(rouge_l("the gunman kill police", "police killed the gunman"), 0.5);
        // Case and punctuation do not count; word order does.
        assert_eq!(rouge_l("It's 3 o'clock!", "IT S 3: o clock"), 1.0);
        assert!((rouge_l("a b c d", "d c b a") - 0.25).abs() < 1e-12);
        // (P, R) = (2/3, 2/4).
        assert!((rouge_l("x b d", "a b c d") - 4.0 / 7.0).abs() < 1e-12);
        for (a, b) in [("", "a"), ("a", ""), ("...", "!"), ("日本", "日本")] {
            assert_eq!(rouge_l(a, b), 0.0, "{a:?} {b:?}");
        }
        assert!(exact_match(" yes\n", "yes") && !exact_match("Yes", "yes"));
    }
}
