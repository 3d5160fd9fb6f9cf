//! PEFT folders: `adapter_config.json` beside `adapter_model.safetensors`, names and row order of
//! Hugging Face.
//!
//! | PEFT | here | tensors after `base_model.model.` |
//! |---|---|---|
//! | LORA | lora | `<module>.lora_A.weight` `[r, in]`, `<module>.lora_B.weight` `[out, r]` |
//! | IA3 | ia3 | `<module>.ia3_l` `[out, 1]`, `[1, in]` at feed-forward modules; ours holds `l - 1` |
//! | PROMPT_TUNING | prompt | `prompt_embeddings` `[n, hidden]` alone |
//! | PREFIX_TUNING | prefix | `prompt_embeddings` `[n, layers · 2 · kv_dim]` alone |
//!
//! PEFT puts learned keys into the cache as they are and begins the sequence at position n, we at 0:
//! `R(p + n) q · k = R(p) q · R(-n) k`, so keys are turned by -n on the way in and by n on the way out.

mod config;

use super::low_rank::{self, Halves};
use super::rows::{self, Order};
use super::{JSON_CAP, Parcel, misfit, names};
use crate::bundle::manifest::BaseRef;
use crate::error::clip;
use crate::mmap::Mapped;
use crate::model_spec::ModelSpec;
use crate::pet::{
    Ia3, Lora, Part, Pet, PetSpec, Place, Places, Prefix, Prompt, Site, ia3, lora, lora::Scaling, prefix, prompt,
};
use crate::tensors::{Dtype, Tensor, Tensors};
use crate::{Code, Error, Result, fs};
use config::{Config, Saved, targets_of};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Name of the file of settings.
pub const CONFIG: &str = "adapter_config.json";
/// Name of the file of tensors.
pub const MODEL: &str = "adapter_model.safetensors";
const ROOT: &str = "base_model.model.";
const LORA: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];
const IA3: &str = ".ia3_l";
const EMBEDDINGS: &str = "prompt_embeddings";

/// The shape and the values of a tensor.
type Values = (Vec<usize>, Vec<f32>);

/// Reads a folder for a base.
///
/// # Errors
/// Names the file and the setting or tensor that cannot be kept; nothing is left out.
pub fn read(folder: &Path, spec: &ModelSpec, base: &BaseRef) -> Result<Parcel> {
    let (settings, model) = (folder.join(CONFIG), folder.join(MODEL));
    if !model.exists() {
        let pickle = ["adapter_model.bin", "adapter_model.pt", "pytorch_model.bin"].map(|n| folder.join(n));
        pickle.iter().filter(|p| p.exists()).try_for_each(|p| super::refuse_pickle_name(p))?;
    }
    let read = || {
        let mut config = Config::parse(&Mapped::open(&settings)?).map_err(|e| e.in_file(&settings))?;
        config.check_task(spec)?;
        let kind = config.text("peft_type")?.ok_or_else(|| {
            Error::new(Code::Unsupported, "there is no peft_type")
                .hint("AdapterHub's folders have the same file names but are another format; give a PEFT folder")
        })?;
        let map = Mapped::open(&model)?;
        let (tensors, said) = parse(&map).map_err(|e| e.in_file(&model))?;
        let known_base = super::check_origin(base, |key| said.get(key).cloned())?;
        let parcel = match kind.as_str() {
            "LORA" => read_lora(config, tensors, spec),
            "IA3" => read_ia3(config, tensors, spec),
            "PROMPT_TUNING" => read_prompt(config, tensors, spec),
            "PREFIX_TUNING" => read_prefix(config, tensors, spec),
            other => Err(Error::new(Code::Unsupported, format!("peft_type is {:?}", clip(other)))
                .hint("LORA, IA3, PROMPT_TUNING and PREFIX_TUNING can be imported; PEFT's convert_to_lora makes LoRA of others")),
        }?;
        Ok(parcel.from(&format!("PEFT {kind}"), &map, known_base))
    };
    read().map_err(|e: Error| e.in_file(folder))
}

/// The tensors by name without the root, and what the file says of its base.
fn parse(bytes: &[u8]) -> Result<(BTreeMap<String, Values>, BTreeMap<String, String>)> {
    super::refuse_pickle(bytes)?;
    let len = bytes.first_chunk::<8>().map_or(u64::MAX, |b| u64::from_le_bytes(*b));
    if len > JSON_CAP as u64 {
        return Err(Error::new(Code::Cap, format!("a header of {len} bytes, cap {JSON_CAP}")).at(0));
    }
    let not_valid = |e: safetensors::SafeTensorError| Error::new(Code::Layout, format!("not valid safetensors: {e}"));
    let file = SafeTensors::deserialize(bytes).map_err(not_valid)?;
    let (_, meta) = SafeTensors::read_metadata(bytes).map_err(not_valid)?;
    let said = meta.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    let mut out = BTreeMap::new();
    for (name, t) in file.tensors() {
        let dtype = match t.dtype() {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::F16 => Dtype::F16,
            safetensors::Dtype::BF16 => Dtype::BF16,
            other => {
                return Err(Error::new(Code::Type, format!("values of type {other:?}, which no module can hold"))
                    .in_section(format!("tensor {}", clip(&name)))
                    .hint("save the adapter in float32, float16 or bfloat16"));
            }
        };
        let values = Tensor { dtype, shape: t.shape().to_vec(), data: t.data() }.to_f32();
        let short = name.strip_prefix(ROOT).unwrap_or(&name).to_owned();
        if out.insert(short, (t.shape().to_vec(), values)).is_some() {
            return Err(
                Error::new(Code::Duplicate, "two tensors of this name").in_section(format!("tensor {}", clip(&name)))
            );
        }
    }
    Ok((out, said))
}

/// The error for a tensor that belongs to no kind that can be imported.
fn unmatched(name: &str) -> Error {
    let hint = if name.contains("lora_magnitude_vector") {
        "this is DoRA, which divides by the norms of the base's rows; train plain LoRA"
    } else if name.contains("lora_embedding") || name.contains("embed_tokens") || name.contains("lm_head") {
        "adapters of embeddings and heads cannot be imported; train the linears of layers only"
    } else {
        "nothing is left out: make the adapter again without it"
    };
    Error::new(Code::Unsupported, "this tensor is of no kind that can be imported")
        .in_section(format!("tensor {}", clip(name)))
        .hint(hint)
}

/// Settings and tensors must name the same linears.
fn same_sites(targets: Option<BTreeSet<Site>>, found: BTreeSet<Site>) -> Result<()> {
    let Some(targets) = targets else { return Ok(()) };
    if let Some(site) = targets.difference(&found).next() {
        return Err(Error::new(
            Code::Missing,
            format!("the settings name {}, which has no tensors", names::path(*site)?),
        )
        .hint("the adapter is incomplete; save or copy it again"));
    }
    match found.difference(&targets).next() {
        None => Ok(()),
        Some(site) => Err(Error::new(
            Code::Unsupported,
            format!("there are tensors of {}, which the settings do not name", names::path(*site)?),
        )
        .hint("PEFT would not apply them; settings and tensors are of different adapters")),
    }
}

fn read_lora(mut c: Config, tensors: BTreeMap<String, Values>, spec: &ModelSpec) -> Result<Parcel> {
    c.check_bias()?;
    c.check_start()?;
    let rank = c.count("r")?.unwrap_or(8);
    let alpha = c.number("lora_alpha")?.unwrap_or(8.0);
    let scaling = if c.flag("use_rslora")? { Scaling::RankStabilised } else { Scaling::AlphaOverRank };
    let (ranks, alphas) = (c.pattern("rank_pattern")?, c.pattern("alpha_pattern")?);
    let targets = c.targets(spec)?;
    c.finish()?;
    let mut halves = Halves::default();
    let mut found = BTreeSet::new();
    for (name, (shape, mut values)) in tensors {
        let split = LORA.iter().enumerate().find_map(|(i, s)| Some((name.strip_suffix(s)?, i)));
        let (module, which) = split.ok_or_else(|| unmatched(&name))?;
        let site = names::site(spec, module)?;
        // The order of rows is known only where their number is.
        if which == 1 && shape.len() == 2 && shape[0] == site.place.shape(spec).0 && shape[1] > 0 {
            values = rows::reorder(spec, site, values, shape[1], Order::Gguf)?;
        }
        found.insert(site);
        halves.add(site, which, shape, values)?;
    }
    let pairs = halves.pairs(spec, |site, has| {
        let want = ranks.at(site)?.unwrap_or(rank as f64);
        if want != has as f64 {
            return Err(Error::new(
                Code::Value,
                format!("the settings give {} the rank {want}, its tensors have {has}", names::path(site)?),
            )
            .hint("settings and tensors are of different adapters"));
        }
        Ok(Lora { rank: has, alpha: alphas.at(site)?.unwrap_or(alpha), scaling }.scale())
    })?;
    same_sites(targets, found)?;
    let mut parcel = low_rank::parcel(pairs, Lora { rank, alpha, scaling })?;
    if !(ranks.is_empty() && alphas.is_empty()) {
        parcel.origin.insert("patterns".into(), "rank_pattern, alpha_pattern".into());
    }
    Ok(parcel)
}

fn read_ia3(mut c: Config, tensors: BTreeMap<String, Values>, spec: &ModelSpec) -> Result<Parcel> {
    let targets = c.targets(spec)?;
    // Whether a vector scales what its linear reads shows in its shape; the settings only repeat it.
    c.feedforward()?;
    c.finish()?;
    let (mut out, mut found, mut places) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    for (name, (shape, l)) in tensors {
        let site = names::site(spec, name.strip_suffix(IA3).ok_or_else(|| unmatched(&name))?)?;
        let (rows, input) = site.place.shape(spec);
        let scales_input = ia3::scales_input(site.place);
        let want = if scales_input { [1, input] } else { [rows, 1] };
        if shape != want {
            if shape == [1, input] || shape == [rows, 1] {
                let which = if scales_input { "gives" } else { "reads" };
                return Err(Error::new(Code::Unsupported, format!("(IA)³ scales what {} {which}", names::path(site)?))
                    .hint("here (IA)³ scales what down_proj reads and what the other linears give; set feedforward_modules to down_proj"));
            }
            return Err(misfit(&name, &shape, &format!("{want:?}")));
        }
        let l = rows::reorder(spec, site, l, 1, Order::Gguf)?;
        out.insert(format!("{site}.{}", ia3::L), (vec![l.len()], l.iter().map(|v| v - 1.0).collect()));
        found.insert(site);
        places.insert(site.place);
    }
    if found.is_empty() {
        return Err(Error::new(Code::Missing, "the adapter has no ia3_l tensor"));
    }
    same_sites(targets, found)?;
    let at = Places::of(&places.into_iter().collect::<Vec<_>>());
    Parcel::new(PetSpec::new(vec![Part { at, ..Part::new(Pet::Ia3(Ia3)) }])?, out)
}

/// How many tokens a prompt or a prefix has learned, and their one tensor.
fn embeddings(mut c: Config, tensors: BTreeMap<String, Values>, width: usize) -> Result<(usize, Vec<f32>)> {
    if let Some(n) = c.count("num_transformer_submodules")?.filter(|n| *n != 1) {
        return Err(Error::new(Code::Unsupported, format!("num_transformer_submodules is {n}, a decoder has 1")));
    }
    let said = c.count("num_virtual_tokens")?;
    c.finish()?;
    let mut all = tensors.into_iter();
    let (name, (shape, values)) =
        all.next().ok_or_else(|| Error::new(Code::Missing, format!("no tensor {EMBEDDINGS}")))?;
    if let Some(name) = [Some(name).filter(|n| n != EMBEDDINGS), all.next().map(|t| t.0)].into_iter().flatten().next() {
        return Err(unmatched(&name));
    }
    match *shape.as_slice() {
        [n, w] if w == width && said.is_none_or(|s| s == n) => Ok((n, values)),
        [n, w] if w == width => Err(Error::new(
            Code::Value,
            format!("num_virtual_tokens is {}, the tensor has {n} rows", said.unwrap_or(0)),
        )),
        _ => Err(misfit(EMBEDDINGS, &shape, &format!("[n, {width}]"))),
    }
}

/// What is learned before the sequence means the same on both sides only where every layer sees everything:
/// a window hides it from later tokens in PEFT, and not here.
fn no_windows(spec: &ModelSpec) -> Result<()> {
    match spec.window() {
        None => Ok(()),
        Some(window) => Err(Error::new(
            Code::Unsupported,
            format!(
                "learned tokens on a base with windows of {window} tokens, where PEFT lets later tokens lose sight of them"
            ),
        )
        .hint("use lora or ia3 on this base")),
    }
}

fn read_prompt(c: Config, tensors: BTreeMap<String, Values>, spec: &ModelSpec) -> Result<Parcel> {
    no_windows(spec)?;
    let (n, values) = embeddings(c, tensors, spec.hidden)?;
    let site = Site { layer: 0, place: Place::Embedding };
    let pet = PetSpec::new(vec![Part::new(Pet::Prompt(Prompt { rows: n }))])?;
    Parcel::new(pet, BTreeMap::from([(format!("{site}.{}", prompt::ROWS), (vec![n, spec.hidden], values))]))
}

fn read_prefix(c: Config, tensors: BTreeMap<String, Values>, spec: &ModelSpec) -> Result<Parcel> {
    no_windows(spec)?;
    let kv = spec.kv_dim();
    let (n, values) = embeddings(c, tensors, spec.n_layer * 2 * kv)?;
    let mut out = BTreeMap::new();
    for layer in 0..spec.n_layer {
        for (which, place) in [Place::K, Place::V].into_iter().enumerate() {
            let token = values.chunks_exact(spec.n_layer * 2 * kv);
            let mut pairs = Vec::with_capacity(n * kv);
            for row in token.map(|t| t[(2 * layer + which) * kv..][..kv].to_vec()) {
                pairs.extend(rows::reorder(spec, Site { layer, place }, row, 1, Order::Gguf)?);
            }
            if place == Place::K {
                rows::turn(spec, layer, &mut pairs, -(n as f64));
            }
            out.insert(format!("{}.{}", Site { layer, place }, prefix::PAIRS), (vec![n, kv], pairs));
        }
    }
    Parcel::new(PetSpec::new(vec![Part::new(Pet::Prefix(Prefix { pairs: n, mid: 0 }))])?, out)
}

/// Writes a folder, which must not exist; `base_name` is the model's name or path for PEFT's Auto classes.
///
/// # Errors
/// `E_UNSUPPORTED` for a kind that PEFT does not have.
pub fn write(folder: &Path, parcel: &Parcel, spec: &ModelSpec, base: &BaseRef, base_name: Option<&str>) -> Result<()> {
    names::check_base(spec)?;
    let (settings, tensors) = export(parcel, spec, base_name)?;
    let bytes = safetensors(&tensors, base)?;
    fs::create_folder(folder, |dir| {
        for (name, bytes) in [(CONFIG, settings.as_bytes()), (MODEL, &bytes)] {
            fs::create_new(&dir.join(name), |w| w.write_all(bytes).map_err(|e| Error::io("write", e)))?;
        }
        Ok(())
    })
}

/// The settings, and the tensors by full name.
fn export(
    parcel: &Parcel,
    spec: &ModelSpec,
    base_name: Option<&str>,
) -> Result<(String, BTreeMap<String, (Dtype, Values)>)> {
    let tensors = Tensors::parse(&parcel.payload)?;
    let sites = parcel.sites(spec)?;
    let mut out = BTreeMap::new();
    let (peft_type, own): (_, Vec<(&'static str, Value)>) = match parcel.only("a PEFT folder")?.pet {
        Pet::Lora(l) => {
            for site in &sites {
                for (i, what) in lora::NAMES.into_iter().enumerate() {
                    let (shape, mut v) = parcel.tensor(&tensors, *site, what)?;
                    if i == 1 {
                        v = rows::reorder(spec, *site, v, shape[1], Order::HuggingFace)?;
                    }
                    out.insert(format!("{ROOT}{}{}", names::path(*site)?, LORA[i]), (parcel.dtype, (shape, v)));
                }
            }
            let (targets, layers) = targets_of(spec, &sites, true)?;
            let alpha = if l.alpha.fract() == 0.0 { json!(l.alpha as i64) } else { json!(l.alpha) };
            let own = vec![
                ("alpha_pattern", json!({})),
                ("bias", json!("none")),
                ("fan_in_fan_out", json!(false)),
                ("init_lora_weights", json!(true)),
                ("layers_pattern", layers.as_ref().map_or(Value::Null, |_| json!("layers"))),
                ("layers_to_transform", json!(layers)),
                ("lora_alpha", alpha),
                ("lora_dropout", json!(0.0)),
                ("r", json!(l.rank)),
                ("rank_pattern", json!({})),
                ("target_modules", json!(targets)),
                ("use_dora", json!(false)),
                ("use_rslora", json!(l.scaling == Scaling::RankStabilised)),
            ];
            ("LORA", own)
        }
        Pet::Ia3(_) => {
            for site in &sites {
                let (_, l) = parcel.tensor(&tensors, *site, ia3::L)?;
                let l: Vec<f32> = l.iter().map(|v| v + 1.0).collect();
                let l = rows::reorder(spec, *site, l, 1, Order::HuggingFace)?;
                let shape = if ia3::scales_input(site.place) { vec![1, l.len()] } else { vec![l.len(), 1] };
                out.insert(format!("{ROOT}{}{IA3}", names::path(*site)?), (Dtype::F32, (shape, l)));
            }
            let (targets, _) = targets_of(spec, &sites, false)?;
            let down = |t: &&String| t.ends_with(names::short(Place::Down).unwrap_or_default());
            let own = vec![
                ("fan_in_fan_out", json!(false)),
                ("feedforward_modules", json!(targets.iter().filter(down).collect::<Vec<_>>())),
                ("init_ia3_weights", json!(true)),
                ("target_modules", json!(targets)),
            ];
            ("IA3", own)
        }
        Pet::Prompt(p) => {
            no_windows(spec)?;
            let v = parcel.tensor(&tensors, Site { layer: 0, place: Place::Embedding }, prompt::ROWS)?;
            out.insert(EMBEDDINGS.into(), (parcel.dtype, v));
            (
                "PROMPT_TUNING",
                [tokens(p.rows, spec.hidden, spec, spec.n_head), vec![("prompt_tuning_init", json!("RANDOM"))]]
                    .concat(),
            )
        }
        Pet::Prefix(p) => {
            out.insert(EMBEDDINGS.into(), (Dtype::F32, prefix_rows(parcel, &tensors, p.pairs, spec)?));
            let own = [tokens(p.pairs, spec.kv_dim(), spec, spec.n_kv_head), vec![("prefix_projection", json!(false))]];
            ("PREFIX_TUNING", own.concat())
        }
        _ => {
            return Err(Error::new(Code::Unsupported, format!("PEFT has no kind that is {}", parcel.pet)).hint(
                "lora, ia3, prompt and prefix can be exported; conpet-inspect extract copies any module as it is",
            ));
        }
    };
    Ok((Saved { peft_type, base_name, own }.json(), out))
}

fn tokens(n: usize, width: usize, spec: &ModelSpec, heads: usize) -> Vec<(&'static str, Value)> {
    vec![
        ("num_attention_heads", json!(heads)),
        ("num_layers", json!(spec.n_layer)),
        ("num_transformer_submodules", json!(1)),
        ("num_virtual_tokens", json!(n)),
        ("token_dim", json!(width)),
    ]
}

/// Learned pairs of all layers, as PEFT lays them: `[n, layers · 2 · kv_dim]`.
fn prefix_rows(parcel: &Parcel, tensors: &Tensors<'_>, n: usize, spec: &ModelSpec) -> Result<Values> {
    no_windows(spec)?;
    let (kv, width) = (spec.kv_dim(), spec.n_layer * 2 * spec.kv_dim());
    if parcel.sites.len() != 2 * spec.n_layer {
        return Err(Error::new(Code::Unsupported, "the module has learned pairs in some layers, PEFT's in all")
            .hint("train it without trunk and last=, or use lora"));
    }
    let mut out = vec![0.0; n * width];
    for layer in 0..spec.n_layer {
        for (which, place) in [Place::K, Place::V].into_iter().enumerate() {
            let (_, mut pairs) = parcel.tensor(tensors, Site { layer, place }, prefix::PAIRS)?;
            if place == Place::K {
                rows::turn(spec, layer, &mut pairs, n as f64);
            }
            for (row, out) in pairs.chunks_exact(kv).zip(out.chunks_exact_mut(width)) {
                let row = rows::reorder(spec, Site { layer, place }, row.to_vec(), 1, Order::HuggingFace)?;
                out[(2 * layer + which) * kv..][..kv].copy_from_slice(&row);
            }
        }
    }
    Ok((vec![n, width], out))
}

/// A safetensors file as PEFT's, the same bytes for the same content, that also says which base it is for.
fn safetensors(tensors: &BTreeMap<String, (Dtype, Values)>, base: &BaseRef) -> Result<Vec<u8>> {
    let said: BTreeMap<&str, &str> = super::base_entries(base).into_iter().chain([("format", "pt")]).collect();
    let mut header = BTreeMap::from([("__metadata__", json!(said))]);
    let mut data = Vec::new();
    for (name, (dtype, (shape, values))) in tensors {
        let start = data.len();
        match dtype {
            Dtype::F16 => data.extend(values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes())),
            _ => data.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        }
        let dtype = if *dtype == Dtype::F16 { "F16" } else { "F32" };
        header.insert(name, json!({"data_offsets": [start, data.len()], "dtype": dtype, "shape": shape}));
    }
    let mut json = serde_json::to_string(&header).unwrap_or_default();
    if json.len() > JSON_CAP {
        return Err(Error::new(Code::Cap, format!("a header of {} bytes, cap {JSON_CAP}", json.len())));
    }
    json.extend(std::iter::repeat_n(' ', json.len().next_multiple_of(8) - json.len()));
    Ok([&(json.len() as u64).to_le_bytes(), json.as_bytes(), &data].concat())
}
