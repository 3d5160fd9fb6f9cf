//! A stream: ordered tasks, each a folder with `train.jsonl`, `test.jsonl` and, if there is one, `valid.jsonl`.
//!
//! `stream.json` beside the folders gives the order and, optionally, a task's labels, template, answer length
//! and main `metric`; without it the folders are taken in order of name. A row is `{"text", "label"}`
//! (classification), `{"prompt", "completion"}` or `{"messages": [..]}` (generation); other keys are ignored.

mod row;

pub use row::{Goal, Row};

use crate::metrics::Metric;
use conpet_formats::bundle::manifest::TaskKind;
use conpet_formats::template;
use conpet_formats::{Code, Error, Result};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// One task with its rows in memory.
#[derive(Debug, Clone)]
pub struct Task {
    /// Name of the task, which is that of its folder.
    pub name: String,
    /// Classification or generation.
    pub kind: TaskKind,
    /// Labels, in the order of the head's rows; empty for generation.
    pub labels: Vec<String>,
    /// Template around the input, with `{input}` once.
    pub template: String,
    /// Longest answer, in tokens; 0 for classification.
    pub max_answer: u32,
    /// Rows to train on.
    pub train: Vec<Row>,
    /// Validation rows, to choose settings with; there may be none.
    pub valid: Vec<Row>,
    /// Test rows, to report on.
    pub test: Vec<Row>,
    /// BLAKE3 over all rows, lower-case hex.
    pub digest: String,
    /// The main metric.
    pub metric: Metric,
}

/// `stream.json`. A key that is not here is refused, so that a misspelled one is not lost.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamFile {
    tasks: Vec<serde_json::Value>,
    /// These say where the rows come from, and change nothing.
    #[serde(default, rename = "kind")]
    _kind: IgnoredAny,
    #[serde(default, rename = "license")]
    _license: IgnoredAny,
    #[serde(default, rename = "note")]
    _note: IgnoredAny,
    #[serde(default, rename = "source")]
    _source: IgnoredAny,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskMeta {
    name: String,
    labels: Option<Vec<String>>,
    template: Option<String>,
    max_answer: Option<u32>,
    metric: Option<Metric>,
}

/// Reads every task of a stream, in order.
///
/// # Errors
/// Names the file, the line, the value and the remedy.
pub fn open(path: &Path) -> Result<Vec<Task>> {
    let metas = order(path)?;
    let file = path.join("stream.json");
    if metas.is_empty() {
        let place = if file.exists() { &file } else { path };
        return Err(Error::new(Code::Missing, "the stream has no tasks").in_file(place).hint(
            "a stream is a folder with one folder for each task, holding train.jsonl, test.jsonl and, if there is one, valid.jsonl",
        ));
    }
    let mut seen = BTreeSet::new();
    metas
        .into_iter()
        .map(|m| {
            if !seen.insert(m.name.clone()) {
                return Err(Error::new(Code::Duplicate, format!("task {:?} is listed twice", m.name))
                    .in_file(&file)
                    .hint("list each task once"));
            }
            m.check().map_err(|e| e.in_file(&file))?;
            task(&path.join(&m.name), m)
        })
        .collect()
}

/// Inputs of no task, to measure whether they are refused: the rows of `file`, or of the stream's
/// `out_of_scope/test.jsonl` if it has one. Their labels are ignored.
///
/// # Errors
/// If the file cannot be read, or a row is malformed.
pub fn out_of_scope(stream: &Path, file: Option<&Path>) -> Result<Vec<Row>> {
    let usual = stream.join("out_of_scope/test.jsonl");
    match file {
        None if !usual.exists() => Ok(Vec::new()),
        file => {
            let path = file.unwrap_or(&usual);
            row::read(&conpet_formats::fs::read(path)?, path)
        }
    }
}

/// Fails if a task has no validation rows, which `what` is chosen or calibrated on.
///
/// # Errors
/// Names the task.
pub fn need_valid(tasks: &[Task], what: &str) -> Result<()> {
    let Some(bare) = tasks.iter().find(|t| t.valid.is_empty() && !t.train.is_empty()) else { return Ok(()) };
    Err(Error::new(Code::Missing, format!("task {:?} has no validation rows, which {what} takes", bare.name))
        .hint("give it a valid.jsonl; only --selector lda leaves training rows out instead"))
}

/// A file of rows under a name that is not read, in the folder of a task without validation rows: they may be meant
/// as such.
fn stray(dir: &Path) -> Option<String> {
    let names = std::fs::read_dir(dir).ok()?.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let mut stray: Vec<String> =
        names.filter(|n| n.ends_with(".jsonl") && n != "train.jsonl" && n != "test.jsonl").collect();
    stray.sort();
    stray.into_iter().next()
}

/// Puts tasks into the order of these names, comma-separated.
///
/// # Errors
/// If the names are not exactly the tasks' names.
pub fn reorder(tasks: &mut [Task], names: &str) -> Result<()> {
    let want: Vec<&str> = names.split(',').map(str::trim).collect();
    let place = |t: &Task| want.iter().position(|n| *n == t.name);
    if want.len() != tasks.len() || tasks.iter().any(|t| place(t).is_none()) {
        let known: Vec<_> = tasks.iter().map(|t| t.name.as_str()).collect();
        return Err(Error::new(Code::Value, format!("--order {names} does not name each task once"))
            .hint(format!("put these in the order you want: {}", known.join(","))));
    }
    tasks.sort_by_key(place);
    Ok(())
}

/// Reads one task's folder.
pub fn open_task(path: &Path) -> Result<Task> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    // A task in a stream's folder is read as `stream.json` describes it.
    let stream = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let known = if stream.join("stream.json").exists() { order(stream)? } else { Vec::new() };
    let meta = known.into_iter().find(|m| m.name == name).unwrap_or(TaskMeta { name, ..TaskMeta::default() });
    meta.check().map_err(|e| e.in_file(path.with_file_name("stream.json")))?;
    task(path, meta)
}

fn order(path: &Path) -> Result<Vec<TaskMeta>> {
    if !path.is_dir() {
        return Err(Error::new(Code::Io, "a stream is a folder, and there is no folder of this name")
            .in_file(path)
            .hint("check the path"));
    }
    let file = path.join("stream.json");
    if !file.exists() {
        let entries = std::fs::read_dir(path).map_err(|e| Error::io("list", e).in_file(path))?;
        let mut names: Vec<String> = entries
            .flatten()
            .filter(|e| e.path().join("train.jsonl").exists())
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        return Ok(names.into_iter().map(|name| TaskMeta { name, ..TaskMeta::default() }).collect());
    }
    let text = conpet_formats::fs::read_text(&file)?;
    let bad = |e: String| {
        Error::new(Code::Value, e)
            .in_file(&file)
            .hint("tasks is a list of names, or of {\"name\": .., \"labels\": [..]}")
    };
    let parsed: StreamFile = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    parsed
        .tasks
        .into_iter()
        .map(|v| {
            let meta = match v {
                serde_json::Value::String(name) => TaskMeta { name, ..TaskMeta::default() },
                other => serde_json::from_value(other).map_err(|e| bad(e.to_string()))?,
            };
            let plain =
                !meta.name.is_empty() && !meta.name.contains(['/', '\\']) && meta.name != ".." && meta.name != ".";
            if plain { Ok(meta) } else { Err(bad(format!("{:?} is not the name of a folder", meta.name))) }
        })
        .collect()
}

impl TaskMeta {
    /// Checks a task's entry in `stream.json`, before any row is read.
    fn check(&self) -> Result<()> {
        let named = |e: Error| e.in_section(format!("task {}", self.name));
        if let Some(t) = &self.template {
            conpet_formats::template::check(t).map_err(named)?;
        }
        let mut seen = BTreeSet::new();
        match self.labels.iter().flatten().find(|l| l.is_empty() || !seen.insert(l.as_str())) {
            Some(l) => Err(named(Error::new(Code::Duplicate, format!("label {l:?} is empty or listed twice")))
                .hint("list each label once")),
            None => Ok(()),
        }
    }
}

fn task(dir: &Path, meta: TaskMeta) -> Result<Task> {
    let mut hasher = Vec::new();
    let mut read = |split: &str| -> Result<Vec<Row>> {
        let file = dir.join(format!("{split}.jsonl"));
        // Without validation rows, what they are for is found from training rows left out.
        if split == "valid" && !file.exists() {
            return match stray(dir) {
                None => Ok(Vec::new()),
                Some(name) => Err(Error::new(Code::Missing, format!("there is no valid.jsonl, but {name}"))
                    .in_file(dir)
                    .hint("name the validation rows valid.jsonl, or move the file elsewhere")),
            };
        }
        let bytes =
            conpet_formats::fs::read(&file).map_err(|e| e.hint("each task needs train.jsonl and test.jsonl"))?;
        hasher.extend(conpet_formats::fingerprint::file_digest(&bytes).into_bytes());
        let rows = row::read(&bytes, &file)?;
        if rows.is_empty() {
            return Err(Error::new(Code::Missing, "the file has no rows")
                .in_file(&file)
                .hint("put at least one row in it"));
        }
        Ok(rows)
    };
    let (train, valid, test) = (read("train")?, read("valid")?, read("test")?);
    let generation = matches!(train[0].goal, Goal::Completion(_));
    let kind = if generation { TaskKind::Generation } else { TaskKind::Classification };
    let splits = [("train", &train), ("valid", &valid), ("test", &test)];
    for (split, rows) in splits {
        if let Some(i) = rows.iter().position(|r| matches!(r.goal, Goal::Completion(_)) != generation) {
            return Err(Error::new(Code::Value, format!("line {} has another kind than the first row", i + 1))
                .in_file(dir.join(format!("{split}.jsonl")))
                .hint("a task is either classification (text, label) or generation (prompt, completion)"));
        }
    }
    let unused = match generation {
        true => meta.labels.as_ref().map(|_| ("labels", "texts")),
        false => meta.max_answer.map(|_| ("max_answer", "labels")),
    };
    if let Some((key, answers)) = unused {
        return Err(Error::new(Code::Value, format!("{key} has no effect on a task that answers with {answers}"))
            .in_file(dir.with_file_name("stream.json"))
            .in_section(format!("task {}", meta.name))
            .hint("leave it out"));
    }
    let labels = match (&meta.labels, generation) {
        (_, true) => Vec::new(),
        (Some(l), false) => l.clone(),
        (None, false) => {
            let names: BTreeSet<&str> = train.iter().filter_map(Row::label).collect();
            names.into_iter().map(str::to_owned).collect()
        }
    };
    for (split, rows) in splits {
        for (i, r) in rows.iter().enumerate() {
            if let Some(l) = r.label().filter(|l| !labels.iter().any(|x| x == l)) {
                return Err(Error::new(
                    Code::Value,
                    format!("line {}: label {l:?} does not occur in the task's labels", i + 1),
                )
                .in_file(dir.join(format!("{split}.jsonl")))
                .hint("labels come from train.jsonl, or from labels in stream.json"));
            }
        }
    }
    let template = meta.template.unwrap_or_else(|| template::INPUT.into());
    let max_answer = if generation { meta.max_answer.unwrap_or(64) } else { 0 };
    let digest = conpet_formats::fingerprint::file_digest(&hasher);
    let metric = meta.metric.unwrap_or(if generation { Metric::RougeL } else { Metric::Accuracy });
    if matches!(metric, Metric::RougeL | Metric::ExactMatch) != generation && metric != Metric::Accuracy {
        return Err(Error::new(Code::Value, format!("metric {metric:?} does not fit the kind of task"))
            .in_file(dir.with_file_name("stream.json"))
            .in_section(format!("task {}", meta.name))
            .hint("classification has accuracy or macro-f1, generation has rouge-l, exact-match or accuracy"));
    }
    Ok(Task { name: meta.name, kind, labels, template, max_answer, train, valid, test, digest, metric })
}

impl Task {
    /// Number of classes that a selector has for it: its labels, or one for a generation task.
    pub fn classes(&self) -> usize {
        self.labels.len().max(1)
    }

    /// Index of a row's label.
    pub fn label(&self, row: &Row) -> Option<usize> {
        row.label().and_then(|l| self.labels.iter().position(|x| x == l))
    }

    /// Keeps at most `train` training rows, and `test` validation and test rows, of each class (of the task,
    /// for generation): the first ones. 0 keeps all.
    pub fn subset(&mut self, train: usize, test: usize) {
        for (rows, n) in [(&mut self.train, train), (&mut self.valid, test), (&mut self.test, test)] {
            let mut count: BTreeMap<String, usize> = BTreeMap::new();
            rows.retain(|r| {
                let c = count.entry(r.label().unwrap_or_default().to_owned()).or_default();
                *c += 1;
                n == 0 || *c <= n
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, task: &str, train: &str, test: &str) {
        let d = dir.join(task);
        std::fs::create_dir_all(&d).unwrap();
        for (split, text) in [("train", train), ("valid", test), ("test", test)] {
            std::fs::write(d.join(format!("{split}.jsonl")), text).unwrap();
        }
    }

    const AB: &str = "{\"text\":\"x\",\"label\":\"b\"}\n{\"text\":\"y\",\"label\":\"a\",\"extra\":1}\n\n";

    /// Fails if a misspelled key, or one without effect, is passed over in silence.
    #[test]
    fn what_stream_json_says_is_used_or_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "t", AB, AB);
        for (text, named) in [
            (r#"{"tasks":["t"],"ordr":[]}"#, "ordr"),
            (r#"{"note":"x"}"#, "tasks"),
            (r#"{"tasks":[{"name":"t","tempalte":"{input}!"}]}"#, "tempalte"),
            (r#"{"tasks":[{"name":"t","max_answer":9}]}"#, "max_answer"),
        ] {
            std::fs::write(dir.path().join("stream.json"), text).unwrap();
            for refused in [open(dir.path()).map(|_| ()), open_task(&dir.path().join("t")).map(|_| ())] {
                let said = refused.unwrap_err().to_string();
                assert!(said.contains(named) && said.contains("stream.json"), "{text}: {said}");
            }
        }
        std::fs::write(dir.path().join("stream.json"), r#"{"tasks":["t"],"note":1,"source":"x","license":"y"}"#)
            .unwrap();
        assert_eq!(open(dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn reads_rows_labels_and_order() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "two", AB, AB);
        write(
            dir.path(),
            "one",
            "{\"prompt\":\"p\",\"completion\":\"c\"}",
            "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"yo\"}]}",
        );
        let names = |t: &[Task]| t.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
        let t = open(dir.path()).unwrap();
        assert_eq!(names(&t), ["one", "two"], "by name without stream.json");
        assert_eq!((t[0].kind, t[1].labels.join(",")), (TaskKind::Generation, "a,b".into()));
        assert_eq!(t[0].test[0].goal, Goal::Completion("yo".into()));
        std::fs::write(
            dir.path().join("stream.json"),
            r#"{"tasks":["two",{"name":"one","max_answer":9,"template":"{input}!"}]}"#,
        )
        .unwrap();
        let t = open(dir.path()).unwrap();
        assert_eq!(names(&t), ["two", "one"]);
        assert_eq!((t[1].max_answer, t[1].template.as_str()), (9, "{input}!"));
        let mut t = t;
        reorder(&mut t, "one, two").unwrap();
        assert_eq!(names(&t), ["one", "two"]);
        for bad in ["one", "one,one", "one,two,two", "one,three"] {
            assert_eq!(reorder(&mut t, bad).unwrap_err().code(), Code::Value, "{bad}");
        }
        assert_eq!((t[0].metric, t[1].metric), (Metric::RougeL, Metric::Accuracy));
        assert!(out_of_scope(dir.path(), None).unwrap().is_empty());
        let rows = out_of_scope(dir.path(), Some(&dir.path().join("two/test.jsonl"))).unwrap();
        assert_eq!((rows.len(), rows[0].text.as_str()), (2, "x"));
        let mut two = open_task(&dir.path().join("two")).unwrap();
        two.test.extend(two.train.clone());
        two.subset(1, 0);
        assert_eq!((two.train.len(), two.test.len()), (2, 4));
        two.subset(0, 1);
        assert_eq!((two.train.len(), two.valid.len(), two.test.len()), (2, 2, 2));
    }

    #[test]
    fn bad_streams_are_refused_with_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert_eq!(open(&at("nowhere")).unwrap_err().code(), Code::Io);
        std::fs::create_dir(at("empty")).unwrap();
        assert_eq!(open(&at("empty")).unwrap_err().code(), Code::Missing);
        for (i, (train, test, says)) in [
            (AB, "{\"text\":\"x\",\"label\":\"zz\"}", "\"zz\""),
            ("{\"text\":\"x\"}", AB, "line 1"),
            (AB, "nonsense", "line 1"),
            ("", AB, "no rows"),
            (AB, "{\"prompt\":\"p\",\"completion\":\"c\"}", "another kind"),
            ("{\"text\":\"\",\"label\":\"a\"}", AB, "empty"),
            ("{\"text\":3,\"label\":\"a\"}", AB, "line 1"),
            ("\u{feff}{\"text\":\"a\",\"label\":\"a\",\"messages\":[]}", AB, "two kinds"),
            ("{\"messages\":[]}", AB, "assistant"),
        ]
        .into_iter()
        .enumerate()
        {
            let s = at(&format!("s{i}"));
            write(&s, "t", train, test);
            let e = open(&s).unwrap_err().to_string();
            assert!(e.contains(says) && e.contains(".jsonl"), "case {i}: {e}");
        }
        for names in [
            "\"../x\"",
            "\"t\",\"t\"",
            "3",
            "{\"nam\":\"t\"}",
            "{\"name\":\"t\",\"metric\":\"rouge-l\"}",
            "{\"name\":\"t\",\"metric\":\"x\"}",
        ] {
            let s = at("s0");
            std::fs::write(s.join("stream.json"), format!("{{\"tasks\":[{names}]}}")).unwrap();
            assert!(open(&s).is_err(), "{names}");
        }
    }

    #[test]
    fn validation_rows_may_be_left_out_but_not_misnamed() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str| std::fs::write(dir.path().join(name), "{\"text\":\"a\",\"label\":\"b\"}\n").unwrap();
        put("train.jsonl");
        put("test.jsonl");
        let task = open_task(dir.path()).unwrap();
        assert!(task.valid.is_empty());
        let e = need_valid(&[task], "probe").unwrap_err();
        assert!(e.code() == Code::Missing && e.message().contains("probe"), "{e}");
        put("dev.jsonl");
        let e = open_task(dir.path()).unwrap_err();
        assert!(e.message().contains("dev.jsonl") && e.remedy().contains("valid.jsonl"), "{e}");
        put("valid.jsonl");
        assert_eq!(open_task(dir.path()).unwrap().valid.len(), 1);
    }
}
