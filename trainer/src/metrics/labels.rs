//! F1 scores of labels.

/// A class of the stream: (task, label).
pub type Class = (usize, usize);

/// The F1 of each class that has rows, `2 tp / (2 tp + fp + fn)`: the classes in order. `rows` holds each row's
/// true class and its answer. An answer of another task's label counts against that label.
pub fn f1(rows: &[(Class, Option<Class>)]) -> Vec<(Class, f64)> {
    let mut classes: Vec<Class> = rows.iter().map(|r| r.0).collect();
    classes.sort_unstable();
    classes.dedup();
    classes
        .into_iter()
        .map(|c| {
            let count = |f: &dyn Fn(&(Class, Option<Class>)) -> bool| rows.iter().filter(|r| f(r)).count() as f64;
            let hits = count(&|(t, a)| *t == c && *a == Some(c));
            (c, 2.0 * hits / (count(&|(t, _)| *t == c) + count(&|(_, a)| *a == Some(c))))
        })
        .collect()
}

/// Macro-F1: the mean of [`f1`] over the classes of one task, or of all.
pub fn macro_f1(f1: &[(Class, f64)], task: Option<usize>) -> Option<f64> {
    let mine: Vec<f64> = f1.iter().filter(|(c, _)| task.is_none_or(|t| c.0 == t)).map(|x| x.1).collect();
    (!mine.is_empty()).then(|| mine.iter().sum::<f64>() / mine.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_computed_case() {
        let (a, b, c) = ((0, 0), (0, 1), (1, 0));
        // a: 2 of 3 found, one false alarm; b: never found; c: 1 of 1 found, one false alarm.
        let rows = [(a, Some(a)), (a, Some(a)), (a, Some(c)), (b, Some(a)), (b, None), (c, Some(c)), (b, Some((2, 0)))];
        let f = f1(&rows);
        assert_eq!(f.iter().map(|x| x.0).collect::<Vec<_>>(), [a, b, c], "a class without rows has no F1");
        for (got, want) in f.iter().zip([4.0 / 6.0, 0.0, 2.0 / 3.0]) {
            assert!((got.1 - want).abs() < 1e-12, "{got:?} for {want}");
        }
        assert!((macro_f1(&f, Some(0)).unwrap() - 1.0 / 3.0).abs() < 1e-12);
        assert!((macro_f1(&f, None).unwrap() - 4.0 / 9.0).abs() < 1e-12);
        assert_eq!(macro_f1(&f, Some(2)), None);
    }
}
