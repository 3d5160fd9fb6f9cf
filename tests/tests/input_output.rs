//! How `conpet-run` reads its input and flags and writes its output, and how all three programs end: what users
//! of such programs stumble over, tested from the outside.

#[path = "input_output/place.rs"]
mod place;

mod answers {
    //! Notices about an answer, and independence of prompts.

    use crate::place::Place;

    #[test]
    fn why_an_answer_ended_is_said() {
        let p = Place::get();
        let stopped = p.run(&["generate", "--json", "please open a day"]);
        assert_eq!(stopped.json()[0]["finish_reason"], "stop", "{stopped:?}");
        assert!(!stopped.stderr.contains("notice"), "{stopped:?}");
        let cut = p.run(&["generate", "--json", "-n", "1", "please open a day"]);
        assert_eq!(cut.json()[0]["finish_reason"], "length", "{cut:?}");
        let classified = p.run(&["classify", "--json", "please open a day", "how large is our coin"]);
        assert_eq!(classified.json()[0]["finish_reason"], "stop", "{classified:?}");
        assert!(classified.json()[1]["finish_reason"].is_null(), "a label is not cut: {classified:?}");
        for (flags, says) in [(["-n", "1"], "by -n"), (["-c", "12"], "by the context of 12")] {
            let cut = p.bare(&[&["generate", "the list of"], &flags[..]].concat());
            assert!(cut.code == Some(0) && cut.stderr.contains("notice: the answer was cut"), "{cut:?}");
            assert!(cut.stderr.contains(says) && cut.stderr.contains("hint: "), "{cut:?}");
        }
    }

    #[test]
    fn each_prompt_has_draws_of_its_own() {
        let p = Place::get();
        let draw = |texts: &[&str], seed: &str| {
            // A high temperature and no truncation, so that a base of random weights draws from many tokens.
            let warm = ["--temp", "5", "--top-k", "0", "--top-p", "1", "--min-p", "0"];
            let o = p.bare(&[&["generate", "--json", "-n", "12", "-s", seed], &warm[..], texts].concat());
            let text = |v: &serde_json::Value| v["text"].as_str().unwrap().to_owned();
            (o.json().iter().map(text).collect::<Vec<_>>(), o)
        };
        let twice = draw(&["the list", "the list"], "7").0;
        assert_ne!(twice[0], twice[1], "the same prompt twice is not the same answer twice");
        assert_eq!(draw(&["the list", "the list"], "7").0, twice, "but the same in each run");
        assert_eq!(draw(&["the list"], "7").0[0], twice[0]);
        // A random seed is printed, and gives the same text again.
        let (text, o) = draw(&["the list"], "-1");
        let seed = o.stderr.lines().find_map(|l| l.strip_prefix("seed ")).unwrap_or_else(|| panic!("{o:?}"));
        assert_eq!(draw(&["the list"], seed).0, text);
        assert_ne!(
            draw(&["the list"], "-1").1.stderr.lines().next(),
            o.stderr.lines().next(),
            "another seed each time"
        );
    }
}

mod rows {
    //! Reading rows: a bad row costs no other its answer.

    use crate::place::Place;

    #[test]
    fn a_byte_order_mark_line_ends_and_blank_lines_belong_to_no_row() {
        let p = Place::get();
        let rows = "\u{feff}{\"text\":\"how large is our coin\",\"label\":\"x\"}\r\n\r\n{\"prompt\":\"the colour of that sea\"}\r\n";
        let file = p.write("bom.jsonl", rows.as_bytes());
        for o in [p.run(&["classify", "--json", "-f", &file]), p.fed(&["classify", "--json"], rows.as_bytes())] {
            let answers = o.json();
            assert_eq!((o.code, answers.len()), (Some(0), 2), "{o:?}");
            assert_eq!(
                (answers[0]["text"].as_str(), answers[0]["label"].as_str()),
                (Some("how large is our coin"), Some("small"))
            );
            assert_eq!(
                (answers[1]["text"].as_str(), answers[1]["label"].as_str()),
                (Some("the colour of that sea"), Some("blue"))
            );
        }
    }

    #[test]
    fn a_bad_row_costs_no_other_row_its_answer() {
        let p = Place::get();
        let long = "please open a day ".repeat(400);
        let rows: [&[u8]; 6] = [
            b"how large is our coin",
            b"\xff\xfe",
            b"the colour of that sea",
            long.as_bytes(),
            b"{\"text\":\"a\",\"prompt\":\"b\"}",
            b"please open a day",
        ];
        let file = p.write("bad.txt", &rows.join(&b'\n'));
        let bad = [(2, "E_TEXT"), (4, "E_CAP"), (5, "E_VALUE")];
        for command in ["classify", "generate", "route"] {
            let o = p.run(&[command, "--json", "-f", &file]);
            assert_eq!(o.code, Some(1), "{o:?}");
            let answers = o.json();
            assert_eq!(answers.len(), rows.len(), "a line for each row: {o:?}");
            for (i, answer) in answers.iter().enumerate() {
                let error = answer["error"].as_str();
                match bad.iter().find(|(line, _)| *line == i + 1) {
                    None => assert!(error.is_none(), "row {}: {o:?}", i + 1),
                    Some((line, code)) => {
                        let place = format!("{file}: line {line}: ");
                        assert!(error.unwrap_or_default().starts_with(&place), "row {line}: {o:?}");
                        assert!(o.stderr.contains(&format!("error: {place}")) && o.stderr.contains(code), "{o:?}");
                    }
                }
            }
            assert!(o.stderr.contains("3 of 6 inputs got no answer"), "{o:?}");
            // Without --json a refused row has no line; the rest is the same with and without the flag.
            let (plain, named) = (p.run(&[command, "-f", &file]), p.run(&[command, "--keep-going", "-f", &file]));
            assert!(plain.code == Some(1) && named.code == Some(1) && !plain.stdout.contains("error"), "{plain:?}");
            assert_eq!(plain.stdout.lines().count(), named.stdout.lines().count());
            let first = p.run(&[command, "--json", "--fail-fast", "-f", &file]);
            assert_eq!((first.code, first.json().len()), (Some(1), 1), "{first:?}");
            assert!(first.stderr.contains("line 2: ") && !first.stderr.contains("line 4"), "{first:?}");
        }
        let o = p.run(&["classify", "--json", "how large is our coin", &long]);
        assert!(o.code == Some(1) && o.stderr.contains("text 2 of the command line: "), "{o:?}");
    }

    #[test]
    fn rows_are_answered_as_they_come() {
        let p = Place::get();
        for command in ["classify", "generate", "route"] {
            let mut other = p.start(&[command, "--json"]);
            for text in ["how large is our coin", "the colour of that sea", "please open a day"] {
                other.write(&format!("{text}\n"));
                let answer: serde_json::Value = serde_json::from_str(&other.line()).unwrap();
                let asked = answer.get("text").filter(|_| command != "generate").or(answer.get("prompt"));
                assert_eq!(asked.and_then(|t| t.as_str()), Some(text), "{command}: {answer}");
            }
            assert_eq!(other.end().code, Some(0));
        }
    }
}

mod chat {
    //! A conversation continues where it can.

    use crate::place::Place;

    #[test]
    fn a_line_that_is_not_utf8_is_named_and_the_conversation_goes_on() {
        let o = Place::get().fed_bare(&["chat", "-n", "3"], b"the list\n\xff\xfe\nthe day\n");
        assert_eq!(o.code, Some(1), "{o:?}");
        assert!(o.stderr.contains("standard input: line 2: ") && o.stderr.contains("E_TEXT"), "{o:?}");
        assert_eq!(o.stderr.matches("notice: the answer was cut after 3 tokens").count(), 2, "two answers: {o:?}");
    }

    #[test]
    fn a_conversation_that_outgrows_the_context_forgets_its_oldest_turns() {
        let p = Place::get();
        let turns = "the people look at the water\n".repeat(8);
        let o = p.fed_bare(&["chat", "-n", "8", "-c", "128", "--system-prompt", "you are"], turns.as_bytes());
        assert_eq!(o.code, Some(0), "{o:?}");
        assert!(o.stderr.contains("outgrew the context of 128 tokens"), "{o:?}");
        // Every turn has its answer: eight tokens, or fewer if the model ended it.
        assert!(o.stderr.matches("by the context").count() == 0, "room was made for the answer: {o:?}");
        assert!(o.stdout.lines().count() >= 8, "{o:?}");
        let long = "the people look at the water ".repeat(60);
        let o = p.fed_bare(&["chat", "-n", "3", "-c", "128"], format!("the list\n{long}\nthe day\n").as_bytes());
        assert!(o.code == Some(1) && o.stderr.contains("line 2: ") && o.stderr.contains("E_CAP"), "{o:?}");
        assert_eq!(o.stderr.matches("notice: the answer was cut").count(), 2, "{o:?}");
        // What was said before it is not forgotten: with it, the next turn no longer fits.
        let some = "the people look at the water ".repeat(10);
        let o = p.fed_bare(&["chat", "-n", "3", "-c", "128"], format!("{some}\n{long}\n{some}\n").as_bytes());
        assert!(o.stderr.contains("line 2: ") && o.stderr.contains("2 of its oldest turns are forgotten"), "{o:?}");
    }

    #[test]
    fn an_empty_template_is_named() {
        let p = Place::get();
        let base = p.base_with_an_empty_template();
        let o = p.with(&base, &["chat"], b"hello\n");
        assert!(o.code == Some(1) && o.stderr.contains("the chat template is empty"), "{o:?}");
        assert!(o.stderr.contains(&base) && o.stderr.contains("conpet-run generate"), "{o:?}");
    }
}

mod flags {
    //! llama.cpp's values for llama.cpp's names; errors name the flag, or the variable, that gave the value.

    use crate::place::Place;

    #[test]
    fn minus_one_means_what_it_means_to_llama_cpp() {
        let p = Place::get();
        let o = p.bare_under(&[("LLAMA_ARG_THREADS", "-1")], &["generate", "the list", "-n", "2"]);
        assert_eq!(o.code, Some(0), "{o:?}");
        let o = p.bare(&[
            "generate",
            "--json",
            "the list",
            "-n",
            "-1",
            "-c",
            "40",
            "-t",
            "-1",
            "--top-k",
            "-1",
            "--repeat-last-n",
            "-1",
        ]);
        let answer = &o.json()[0];
        let [prompt, predicted] = ["prompt_n", "predicted_n"].map(|k| answer["timings"][k].as_u64().unwrap());
        assert!(answer["finish_reason"] == "stop" || prompt + predicted == 40, "{o:?}");
    }

    #[test]
    fn a_bad_value_is_refused_by_the_name_of_what_gave_it() {
        let p = Place::get();
        let cases: [(&[(&str, &str)], &[&str], i32, &str); 7] = [
            (&[("LLAMA_ARG_CTX_SIZE", "99999")], &[], 1, "LLAMA_ARG_CTX_SIZE=99999 is more than the base's 512"),
            (&[], &["-c", "99999"], 1, "--ctx-size 99999 is more than the base's 512"),
            (&[("LLAMA_ARG_THREADS", "-7")], &[], 2, "LLAMA_ARG_THREADS"),
            (&[("LLAMA_ARG_N_PREDICT", "many")], &[], 2, "LLAMA_ARG_N_PREDICT"),
            (&[], &["-n", "-2"], 2, "-1 for no limit"),
            (&[], &["-s", "-2"], 2, "-1 for a random seed"),
            (&[], &["-c", "-1"], 2, "--ctx-size"),
        ];
        for (variables, flags, code, says) in cases {
            let o = p.bare_under(variables, &[&["generate", "the list"], flags].concat());
            assert_eq!(o.code, Some(code), "{variables:?} {flags:?}: {o:?}");
            assert!(o.stderr.contains(says) && !o.stderr.contains("'-- "), "{variables:?} {flags:?}: {o:?}");
        }
        let o = p.bare(&["generate", "the list", "-n", "2", "-t", "9999"]);
        assert!(o.code == Some(0) && o.stderr.contains("--threads 9999 is more than there are processors"), "{o:?}");
        let o = p.run(&["classify", "a text", "-f", "a-file"]);
        assert_eq!(o.code, Some(2), "a file is not read beside texts, so it is refused: {o:?}");
    }
}

mod ends {
    //! Signals, readers that go away, and disks that are full.

    use crate::place::{Place, Running};
    use std::process::Stdio;

    #[test]
    fn a_program_that_waits_for_input_ends_at_the_first_signal() {
        let p = Place::get();
        for (signal, code) in [("INT", 130), ("TERM", 143)] {
            for command in ["classify", "generate", "route"] {
                let mut waiting = p.start(&[command, "--json"]);
                waiting.write("how large is our coin\n");
                waiting.line();
                waiting.signal(signal);
                let o = waiting.wait();
                assert_eq!((o.code, o.stderr.contains("error")), (Some(code), false), "{command} {signal}: {o:?}");
            }
            let mut waiting = p.start_bare(&["chat", "-n", "2"]);
            waiting.write("the list\n");
            waiting.line();
            waiting.signal(signal);
            assert_eq!(waiting.wait().code, Some(code), "chat {signal}");
        }
    }

    /// An answer that would take minutes.
    fn long_answer(p: &Place, extra: &[&str]) -> Running {
        let base = p.base_with_a_long_context();
        let mut running = p.start_with(&base, &[&["generate", "-n", "-1", "the list of"], extra].concat());
        running.bytes(200);
        running
    }

    #[test]
    fn an_answer_under_way_ends_at_the_next_token() {
        let p = Place::get();
        for (signal, code) in [("INT", 130), ("TERM", 143)] {
            let running = long_answer(p, &[]);
            running.signal(signal);
            let o = running.wait();
            assert_eq!(o.code, Some(code), "{o:?}");
            assert!(o.stderr.contains("answer "), "it came to a good end: {o:?}");
        }
        let mut closed = long_answer(p, &[]);
        closed.close();
        let o = closed.wait();
        assert_eq!((o.code, o.stderr.as_str()), (Some(0), ""), "the reader has gone away");
    }

    #[test]
    fn the_second_signal_ends_at_once_and_leaves_no_core() {
        let p = Place::get();
        let training = p.start_training();
        training.signal("TERM");
        training.signal("TERM");
        let o = training.wait();
        assert_eq!(o.code, Some(143), "{o:?}");
    }

    #[test]
    fn a_reader_that_goes_away_is_no_fault_and_a_full_disk_is() {
        let p = Place::get();
        let bundle = p.bundle();
        let commands: [(&str, &[&str]); 4] = [
            ("conpet-train", &["stream", "--print-config"]),
            ("conpet-inspect", &["show", &bundle]),
            ("conpet-inspect", &["--help"]),
            ("conpet-run", &["tokenize", "the list", "-m", &p.base()]),
        ];
        for (program, args) in commands {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let o = p.program(program, args, writer.into());
            assert_eq!((o.code, o.stderr.as_str()), (Some(0), ""), "{program} {args:?}");
        }
        let full = || Stdio::from(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
        for command in
            [&["chat", "-n", "2"][..], &["generate", "-n", "2"], &["generate", "--json"], &["classify"], &["route"]]
        {
            let o = p.fed_into(command, b"the list\n", full());
            assert!(o.code == Some(4) && o.stderr.contains("cannot write to stdout"), "{command:?}: {o:?}");
        }
    }
}
