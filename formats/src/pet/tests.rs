use super::lora::Scaling;
use super::*;
use crate::gguf::Gguf;
use crate::tiny::{self, TinyConfig};

pub(crate) fn spec() -> ModelSpec {
    let bytes = tiny::base(&TinyConfig::default()).unwrap();
    ModelSpec::from_gguf(&Gguf::parse(&bytes).unwrap()).unwrap()
}

fn parse(text: &str) -> Result<PetSpec> {
    let lora = Lora { rank: 8, alpha: 16.0, scaling: Scaling::AlphaOverRank };
    PetSpec::parse(text, lora, Places::LINEARS)
}

#[test]
fn texts_lead_to_specs_and_back_in_one_spelling() {
    for (given, canonical) in [
        ("lora", "lora:r=8,alpha=16"),
        ("bias + lora:r=4", "lora:r=4,alpha=16+bias"),
        ("lora:scaling=alpha/sqrt(r),at=attn_v/attn_q", "lora:r=8,alpha=16,scaling=alpha/sqrt(r),at=attn_q/attn_v"),
        ("adapter", "adapter:n=16,form=houlsby,act=gelu"),
        ("adapter:form=parallel,act=relu,n=3,last=2", "adapter:n=3,form=parallel,act=relu,last=2"),
        ("ia3", "ia3"),
        ("prefix:n=4,mid=32", "prefix:n=4,mid=32"),
        ("prompt:n=5", "prompt:n=5"),
        ("sparse:n=7,rule=fisher", "sparse:n=7,rule=fisher"),
    ] {
        let p = parse(given).unwrap();
        assert_eq!(p.to_string(), canonical);
        assert_eq!(PetSpec::from_canonical(canonical).unwrap(), p, "{canonical}");
    }
    assert_eq!(PetSpec::from_canonical("bias+lora:r=4,alpha=16").unwrap_err().code(), Code::NonCanonical);
}

#[test]
fn every_kind_is_listed_under_the_name_it_is_stored_by() {
    for kind in PetKind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        let usual = kind.usual();
        assert_eq!((usual.kind(), usual.check().is_ok()), (*kind, true));
        let p = parse(kind.name()).unwrap();
        assert_eq!(PetSpec::from_canonical(&p.to_string()).unwrap(), p);
        let e = parse(&format!("{}:no=1", kind.name())).unwrap_err().to_string();
        assert!(e.contains(&format!("{} has no option \"no\"", kind.name())), "{e}");
        assert!(e.contains(usual.syntax()) && !usual.about().is_empty(), "{e}");
    }
}

/// Fails if a kind acts at a place where it holds nothing, at one place twice, or at less than it says.
#[test]
fn a_kind_acts_once_at_each_of_its_places() {
    for kind in PetKind::ALL {
        let pet = kind.usual();
        let mut acts: Vec<Place> = Point::all().filter_map(|p| pet.acts_at(p)).collect();
        acts.sort_unstable();
        let places: Vec<Place> = pet.possible_places().iter().collect();
        assert!(acts.is_empty() || acts == places, "{kind:?} acts at {acts:?} of {places:?}");
    }
    let forms = adapter::Form::ALL.map(|form| Adapter { form, ..Adapter::default() });
    let points = forms.map(|a| Point::all().filter(|p| a.acts_at(*p).is_some()).count());
    assert_eq!(points, [2, 1, 2]);
}

#[test]
fn malformed_texts_are_refused_by_name() {
    for (text, says) in [
        ("lore", "lore"),
        ("", "no PET kind"),
        ("lora:r=0", "rank 0"),
        ("lora:r", "NAME=VALUE"),
        ("lora:rank=4", "no option \"rank\""),
        ("lora+lora", "lora twice"),
        ("lora:at=attn_norm", "attn_norm"),
        ("bias:at=token_embd", "token_embd"),
        ("prefix:at=attn_k", "prefix cannot act"),
        ("adapter:form=pfeiffer,at=attn_output", "adapter cannot act"),
        ("adapter:act=tanh", "tanh"),
        ("sparse:n=-1", "-1"),
        ("prompt:n=5000", "5000"),
        ("bias:last=0", "last"),
        ("bias:at=", "cannot act"),
    ] {
        let e = parse(text).unwrap_err().to_string();
        assert!(e.contains(says), "{text:?}: {e}");
    }
}

#[test]
fn a_prompt_needs_all_layers_for_itself() {
    let spec = spec();
    assert_eq!(parse("prompt:n=2").unwrap().sites(&spec, 0).unwrap(), ["token_embd.weight"]);
    let e = parse("prompt:n=2").unwrap().sites(&spec, 2).unwrap_err();
    assert_eq!(e.code(), Code::Unsupported);
    assert!(e.to_string().contains("--trunk 0"), "{e}");
    assert!(parse("bias:last=3").unwrap().sites(&spec, 2).is_err(), "two layers are left above the trunk");
}

#[test]
fn parameters_are_those_of_the_tensors() {
    let spec = spec();
    let (h, q, kv, f) = (spec.hidden, spec.q_dim(), spec.kv_dim(), spec.ffn);
    let n = |text: &str| parse(text).unwrap().parameters(&spec, 2);
    assert_eq!(n("lora:r=3,at=attn_q"), 2 * 3 * (h + q));
    assert_eq!(n("bias"), 2 * (q + 2 * kv + 2 * h + 2 * f + 2 * h));
    assert_eq!(n("ia3"), 2 * (2 * kv + f));
    assert_eq!(n("adapter:n=5"), 2 * 2 * (2 * 5 * h + 5 + h));
    assert_eq!(n("prefix:n=4,mid=9"), 2 * 2 * 4 * kv);
    assert_eq!(n("sparse:n=123"), 123);
    assert_eq!(n("lora:r=2,at=attn_k,last=1+bias:at=attn_norm"), 2 * (h + kv) + 2 * h);
}

#[test]
fn a_budget_is_spent_but_not_exceeded() {
    let spec = spec();
    for kind in ["lora", "bias", "ia3", "adapter", "adapter:form=pfeiffer", "prefix", "prompt", "sparse", "lora+bias"] {
        let first = usize::from(kind != "prompt") * 2;
        let wanted = parse(kind).unwrap();
        let mut last = 0;
        for budget in [700, 1500, 3000, 20_000] {
            let p = match wanted.sized(&spec, first, Budget::Parameters(budget)) {
                Ok(p) => p,
                Err(e) => {
                    assert!(e.to_string().contains("too few") && budget < 1500, "{kind} {budget}: {e}");
                    continue;
                }
            };
            let n = p.parameters(&spec, first);
            assert!(n <= budget && n >= last && n > 0, "{kind}: {n} of {budget}");
            // A kind without a size of its own has a largest one, and a coarse kind leaves up to half.
            assert!(2 * n >= budget || ["bias", "ia3", "lora+bias"].contains(&kind), "{kind}: {n} of {budget} ({p})");
            last = n;
        }
    }
    let sparse = parse("sparse").unwrap().sized(&spec, 2, Budget::Part(0.01)).unwrap();
    assert_eq!(sparse.parameters(&spec, 2), (0.01 * spec.parameters() as f64).round() as usize);
    let e = parse("lora").unwrap().sized(&spec, 2, Budget::Parameters(3)).unwrap_err().to_string();
    assert!(e.contains("too few") && e.contains("sparse"), "{e}");
}

#[test]
fn budgets_are_parameters_or_parts() {
    assert_eq!("5000".parse::<Budget>().unwrap(), Budget::Parameters(5000));
    assert_eq!("0.1%".parse::<Budget>().unwrap(), Budget::Part(0.001));
    assert_eq!("1e-4".parse::<Budget>().unwrap(), Budget::Part(1e-4));
    for bad in ["0", "", "2.0", "-1e-4", "many", "101%", "NaN"] {
        assert!(bad.parse::<Budget>().is_err(), "{bad}");
    }
}
