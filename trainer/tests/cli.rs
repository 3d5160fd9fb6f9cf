//! The program's own manners.

#[path = "../../tests/shared/manners.rs"]
mod manners;

use manners::Program;

const PROGRAM: Program = Program { path: env!("CARGO_BIN_EXE_conpet-train"), command: "stream" };

#[test]
fn help_and_version_go_to_standard_output() {
    PROGRAM.help_and_version_go_to_standard_output();
}

#[test]
fn bad_command_lines_exit_with_2() {
    PROGRAM.bad_command_lines_exit_with_2();
}

#[test]
fn missing_and_wrong_files_are_named_with_a_remedy() {
    PROGRAM.missing_and_wrong_files_are_named_with_a_remedy();
}

fn run(args: &[&str]) -> String {
    let out = std::process::Command::new(PROGRAM.path).args(args).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn settings_stand_under_the_heading_of_what_they_belong_to() {
    let help = run(&["stream", "--help"]);
    let lines: Vec<&str> = help.lines().collect();
    let line = |text: &str| {
        lines.iter().position(|l| l.trim_start().starts_with(text)).unwrap_or_else(|| panic!("{text} in\n{help}"))
    };
    for (heading, flag, next) in [
        ("Training:", "--adam-eps", "Rows:"),
        ("LoRA:", "--rank", "Head:"),
        ("lda:", "--ngram-weight", "ridge:"),
        ("lda:", "--calibration-rows", "ridge:"),
        ("Module:", "--modules", "LoRA:"),
        ("ewc:", "--fisher-rows", "lwf:"),
    ] {
        assert!(line(heading) < line(flag) && line(flag) < line(next), "{flag} is not under {heading}");
    }
    assert!(line("Options:") < line("--resume") && line("--resume") < line("Run:"));
}

#[test]
fn printed_settings_are_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    let printed = run(&["stream", "--print-config", "--trunk", "-1", "--lr", "0.5", "--select", "herding"]);
    std::fs::write(&file, &printed).unwrap();
    assert_eq!(run(&["stream", "--print-config", "--config", file.to_str().unwrap()]), printed);
    // The names of every release so far.
    let names = "abstain activations adam_eps align_ridge alpha batch calibration_rows centroid checkpoint_every clip crl_bank \
                 crl_temperature dropout epochs ewc_lambda fisher_rows head head_feature head_lr lae_experts lae_freeze \
                 lae_keep lr lwf_lambda lwf_temperature margin max_len memory memory_repeat method modules name ngram_weight \
                 o_lora_lambda params pet random_features rank replay_limit schedule score seed select selector \
                 selector_feature selector_hidden selector_memory selector_steps shrinkage sites subset test_subset threads \
                 top_k trunk warmup weight_decay weights";
    // A short form of a setting is printed as the setting.
    let quick = run(&["stream", "--print-config", "--quick"]);
    assert_eq!(quick, run(&["stream", "--print-config", "--modules", "none"]));
    assert!(quick.contains("modules = \"none\"") && printed.contains("modules = \"train\""), "{quick}");
    let mut keys: Vec<&str> = printed.lines().filter_map(|l| l.split_once(" = ")).map(|l| l.0).collect();
    keys.sort_unstable();
    assert_eq!(keys, names.split_whitespace().collect::<Vec<_>>());
}
