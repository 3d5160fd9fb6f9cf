//! The command line.

use clap::{Args, CommandFactory, Parser, Subcommand};
use conpet_program::{EXIT_CODES, HubArgs};
use std::ffi::OsString;
use std::path::PathBuf;

/// Shows, checks, compares and exports ConPET bundles, damaged ones as far as possible.
///
/// `conpet-inspect FILE` is short for `conpet-inspect show FILE`.
#[derive(Debug, Parser)]
#[command(name = "conpet-inspect", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// Print one JSON object with a "schema" field instead of tables
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// What is in a bundle: base, method, selector, tasks, modules, sections
    Show(StageArgs),
    /// The tasks of a bundle and their labels
    Tasks(StageArgs),
    /// The stages of a bundle, oldest first
    Log(FileArgs),
    /// What two stages have in common, proven by digests, and what differs
    Diff(DiffArgs),
    /// Check checksums, digests, the chain of stages, the manifest and every payload
    Verify(VerifyArgs),
    /// Shape, type, norm, range and NaN count of each tensor of a module, head or selector
    Tensors(TensorsArgs),
    /// Copy one section's payload (strict safetensors) to a new file
    Extract(ExtractArgs),
    /// What is in a GGUF base
    Gguf(GgufArgs),
    /// What lies at which byte: superblocks, commits, manifests, sections, padding, and what belongs to nothing
    Hexmap(FileArgs),
    /// Make an older stage the current one; nothing is erased
    Rollback(RollbackArgs),
    /// Write what a bundle has more than an earlier state of it: the update to send
    Delta(DeltaArgs),
    /// Append a delta and make its stage the current one, once all of it is proven
    Apply(ApplyArgs),
    /// End the trial of the current stage: it has proven itself
    MarkGood(MarkGoodArgs),
    /// Write the current stage alone in place of the bundle: what only earlier stages use goes
    Compact(CompactArgs),
    /// Write whatever still verifies of a damaged bundle to a new file
    Recover(RecoverArgs),
    /// Print the text to sign with minisign, of the current stage
    SigningText(SigningTextArgs),
    /// Append the current stage again with a signature of its signing text
    Sign(SignArgs),
    /// Which stage is current, whether it is on trial, which failed, and the floor
    Status(FileArgs),
    /// Take a module from a PEFT folder or a llama.cpp LoRA file into a bundle, or a bundle out of an OCI layout
    Import(ImportArgs),
    /// Write a module as a PEFT folder or a llama.cpp LoRA file, or the whole bundle as an OCI layout
    Export(ExportArgs),
    /// Make a base of a Hugging Face checkpoint: a folder with config.json, a tokenizer and safetensors
    Convert(ConvertArgs),
    /// Write a base in F16, BF16 or F32 in another type, as llama-quantize does
    Quantize(QuantizeArgs),
}

/// A bundle.
#[derive(Debug, Args)]
pub struct FileArgs {
    /// The bundle (*.cpb)
    pub file: PathBuf,
}

/// A bundle, and which of its stages.
#[derive(Debug, Args)]
pub struct StageArgs {
    /// The bundle (*.cpb)
    pub file: PathBuf,
    /// The stage to read [default: the current one]
    #[arg(long, value_name = "STAGE")]
    pub stage: Option<u64>,
}

/// Two stages.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The bundle (*.cpb)
    pub file: PathBuf,
    /// The earlier stage
    #[arg(value_name = "STAGE")]
    pub from: u64,
    /// The later stage
    #[arg(value_name = "STAGE")]
    pub to: u64,
}

/// How thoroughly to check.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The bundle (*.cpb)
    pub file: PathBuf,
    /// Also account for every byte of the file, and with --base compare every byte of the base
    #[arg(long)]
    pub full: bool,
    /// Also check that the current stage is signed by a key of the trust file
    #[command(flatten)]
    pub trust: TrustArgs,
    /// Also check that this GGUF is the base the bundle was trained on
    #[arg(short = 'm', long, value_name = "GGUF", visible_alias = "model")]
    pub base: Option<PathBuf>,
    /// Where the base is fetched from
    #[command(flatten)]
    pub hub: HubArgs,
}

/// A part of a bundle.
#[derive(Debug, Args)]
pub struct TensorsArgs {
    /// The bundle (*.cpb)
    pub file: PathBuf,
    /// m0000 (module), h0000 (head), selector, stats, a section number, or a task's name (its module)
    #[arg(value_name = "MODULE")]
    pub part: String,
    /// The stage to read [default: the current one]
    #[arg(long, value_name = "STAGE")]
    pub stage: Option<u64>,
}

/// What to copy, and where to.
#[derive(Debug, Args)]
pub struct ExtractArgs {
    /// The bundle (*.cpb)
    pub file: PathBuf,
    /// m0000 (module), h0000 (head), selector, stats, a section number, or a task's name (its module)
    #[arg(value_name = "SECTION")]
    pub part: String,
    /// The file to create; it must not exist
    pub to: PathBuf,
    /// The stage to read [default: the current one]
    #[arg(long, value_name = "STAGE")]
    pub stage: Option<u64>,
}

/// A base.
#[derive(Debug, Args)]
pub struct GgufArgs {
    /// The base (*.gguf); of a split base, any shard
    #[arg(required_unless_present = "hf_repo")]
    pub file: Option<PathBuf>,
    /// Where the base is fetched from
    #[command(flatten)]
    pub hub: HubArgs,
    /// Also compare with what the gguf-rs crate reads from the same header
    #[arg(long)]
    pub cross_check: bool,
}

/// Where to go back to.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// The bundle (*.cpb)
    pub file: PathBuf,
    /// The stage to make current
    pub stage: u64,
}

/// Between which states.
#[derive(Debug, Args)]
pub struct DeltaArgs {
    /// The bundle as those have it that are to be updated (*.cpb)
    pub old: PathBuf,
    /// The same bundle, grown since (*.cpb)
    pub new: PathBuf,
    /// The delta to create; it must not exist
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub to: PathBuf,
}

/// What to append to what.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// The bundle (*.cpb)
    pub file: PathBuf,
    /// The delta (from `conpet-inspect delta`)
    pub delta: PathBuf,
    /// Go back by itself, after 3 starts of conpet-run, unless `mark-good` is run
    #[arg(long)]
    pub trial: bool,
    /// Who must have signed the stage.
    #[command(flatten)]
    pub trust: TrustArgs,
}

/// Whose signatures count.
#[derive(Debug, Args)]
pub struct TrustArgs {
    /// Minisign public keys, one a line; the stage must be signed by one of them [default:
    /// /etc/conpet/trust, if it exists]
    #[arg(long, value_name = "FILE", env = "CONPET_TRUST")]
    pub trust: Option<PathBuf>,
}

/// What to leave out.
#[derive(Debug, Args)]
pub struct CompactArgs {
    /// The bundle (*.cpb)
    pub file: PathBuf,
    /// Also leave out the selector's current statistics: it answers as before, but learns no further task
    #[arg(long)]
    pub drop_statistics: bool,
    /// Compact although the stage is signed; sign the result anew
    #[arg(long)]
    pub drop_signature: bool,
}

/// What to save, and where to.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The damaged bundle (*.cpb)
    pub file: PathBuf,
    /// The bundle to create; it must not exist
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub to: PathBuf,
    /// The stage to save [default: the current one, or else the last in the file]
    #[arg(long, value_name = "STAGE")]
    pub stage: Option<u64>,
}

/// What to sign.
#[derive(Debug, Args)]
pub struct SigningTextArgs {
    /// The bundle (*.cpb)
    pub file: PathBuf,
    /// Write the text to this new file instead of standard output
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub to: Option<PathBuf>,
}

/// A signature and its bundle.
#[derive(Debug, Args)]
pub struct SignArgs {
    /// The bundle (*.cpb)
    pub file: PathBuf,
    /// The signature that minisign made of the signing text (*.minisig)
    pub signature: PathBuf,
    /// Who may sign.
    #[command(flatten)]
    pub trust: TrustArgs,
}

/// What has proven itself.
#[derive(Debug, Args)]
pub struct MarkGoodArgs {
    /// The bundle (*.cpb)
    pub file: PathBuf,
    /// Also refuse every earlier stage from now on
    #[arg(long)]
    pub floor: bool,
}

/// What to take in, and where it goes.
#[derive(Debug, Args)]
#[command(after_help = "\
PEFT folders: LORA (also rsLoRA, rank_pattern, alpha_pattern), IA3, PROMPT_TUNING, PREFIX_TUNING.
What a module cannot hold (DoRA, modules_to_save, biases, embeddings, pickle files) is refused by name.")]
pub struct ImportArgs {
    /// A PEFT folder, a llama.cpp LoRA file (*.gguf), or a folder that is an OCI layout
    pub from: PathBuf,
    /// The base (*.gguf). Of an OCI layout: where its base goes, or the base it must be for
    #[arg(short = 'm', long, value_name = "GGUF", visible_alias = "model")]
    pub base: Option<PathBuf>,
    /// Where the base is fetched from
    #[command(flatten)]
    pub hub: HubArgs,
    /// The bundle: a new file, or one that gets another stage
    #[arg(short = 'b', long, value_name = "BUNDLE")]
    pub bundle: PathBuf,
    /// Name of the new task, which is answered by text
    #[arg(long, value_name = "NAME")]
    pub task: Option<String>,
    /// Literal text around {input}, as the adapter was trained with
    #[arg(long, value_name = "TEXT", default_value = conpet_formats::template::INPUT)]
    pub template: String,
    /// Longest answer, in tokens
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_answer: u32,
}

/// What to write, and how.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The bundle (*.cpb)
    pub file: PathBuf,
    /// m0000 (module) or a task's name (its module); with --to oci, nothing
    #[arg(value_name = "MODULE")]
    pub part: Option<String>,
    /// What to write, and the new file or folder: peft DIR, gguf FILE, or oci DIR
    #[arg(long, num_args = 2, value_names = ["FORMAT", "PATH"], required = true)]
    pub to: Vec<OsString>,
    /// The base (*.gguf): needed for peft and gguf; with oci it goes into the layout
    #[arg(short = 'm', long, value_name = "GGUF", visible_alias = "model")]
    pub base: Option<PathBuf>,
    /// Where the base is fetched from
    #[command(flatten)]
    pub hub: HubArgs,
    /// Name or path of the model for PEFT's Auto classes (base_model_name_or_path)
    #[arg(long, value_name = "NAME")]
    pub base_name: Option<String>,
    /// Write the module although its task has parts that the format cannot hold, such as a head
    #[arg(long)]
    pub lossy: bool,
    /// The stage to read [default: the current one]
    #[arg(long, value_name = "STAGE")]
    pub stage: Option<u64>,
}

/// What to convert, and where to.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// The folder of the checkpoint
    #[arg(value_name = "DIR")]
    pub from: PathBuf,
    /// The base to create (*.gguf); it must not exist
    #[arg(short = 'o', long = "output", alias = "outfile", value_name = "FILE")]
    pub to: PathBuf,
    /// Type of the weights: f32, f16, bf16, q8_0, q4_0, q4_1, q4_k, q5_k, q6_k and others
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub outtype: String,
}

/// What to quantize, how, and where to.
#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// The base (*.gguf), in F16, BF16 or F32
    #[arg(value_name = "IN")]
    pub from: PathBuf,
    /// The base to create; it must not exist
    #[arg(value_name = "OUT")]
    pub to: PathBuf,
    /// Type of the weights: q8_0, q4_0, q4_1, q5_0, q5_1, q6_k, or a mixture such as q4_k_m
    #[arg(value_name = "TYPE")]
    pub ty: String,
}

/// Inserts `show` where the first word is no command: `conpet-inspect FILE`. A bare word before another
/// word is left alone: that is a command misspelt.
pub fn with_default_command(mut args: Vec<OsString>) -> Vec<OsString> {
    let known = Cli::command();
    // The options before a command take no values, so the first other word is the command.
    let first = args.iter().skip(1).position(|a| !a.as_encoded_bytes().starts_with(b"-"));
    if let Some(i) = first.map(|i| i + 1) {
        let is_command = args[i] == "help" || known.get_subcommands().any(|c| args[i] == c.get_name());
        let bare = !args[i].as_encoded_bytes().iter().any(|b| b".\\/".contains(b));
        let followed = args.get(i + 1).is_some_and(|a| !a.as_encoded_bytes().starts_with(b"-"));
        if !(is_command || bare && followed) {
            args.insert(i, "show".into());
        }
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn show_is_the_default() {
        let cases: [(&[&str], &[&str]); 9] = [
            (&["x", "a.cpb"], &["x", "show", "a.cpb"]),
            (&["x", "--json", "a.cpb", "--stage", "1"], &["x", "--json", "show", "a.cpb", "--stage", "1"]),
            (&["x", "log", "a.cpb"], &["x", "log", "a.cpb"]),
            (&["x", "help", "log"], &["x", "help", "log"]),
            (&["x", "--help"], &["x", "--help"]),
            (&["x", "verfy", "a.cpb"], &["x", "verfy", "a.cpb"]),
            (&["x", "a.cpb", "b.cpb"], &["x", "show", "a.cpb", "b.cpb"]),
            (&["x", "skills", "--json"], &["x", "show", "skills", "--json"]),
            (&["x"], &["x"]),
        ];
        for (given, want) in cases {
            let given = given.iter().map(OsString::from).collect();
            assert_eq!(with_default_command(given), want);
        }
    }
}
