//! Several modules in force at once, with weights of either sign, against a decoder of plain loops: in
//! prefill, token by token, and in batches where each sequence has a blend of its own.

use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::{Budget, PetKind, Site};
use conpet_runtime::batch::Span;
use conpet_runtime::blend::{Blend, Weigh};
use conpet_runtime::engine::Engine;
use conpet_runtime::kv::KvType;
use conpet_runtime::module::Module;
use conpet_runtime::session::Session;
use conpet_tests::kinds::{engine_of, families, far, in_full, loaded, output, parse, plain, possible, trunk, uneven};
use conpet_tests::{reference, token_by_token};
use conpet_trainer::pet::TrainedModule;
use std::sync::Arc;

const WEIGHTS: [f32; 2] = [0.7, -0.2];

/// Two modules of these specs that differ, as trained and as loaded.
fn pair(engine: &Engine, specs: [&str; 2]) -> [(TrainedModule, Arc<Module>); 2] {
    let spec = &engine.base.spec;
    let made = specs.map(|text| {
        let pet = parse(text);
        let pet = if text.contains(':') {
            pet
        } else {
            pet.sized(spec, trunk(spec, &pet), Budget::Parameters(2000)).unwrap()
        };
        uneven(engine, &pet)
    });
    let mut which = 0;
    made.map(|(mut module, sites)| {
        which += 1;
        for t in module.tensors.values_mut() {
            // Otherwise two modules of one spec would be the same.
            *t = (&*t * f64::from(2 * which - 3)).unwrap();
        }
        let hooked = Arc::new(loaded(engine, &module, &sites));
        (module, hooked)
    })
}

/// Every kind that can be weighed, its forms, and several kinds together.
fn specs() -> Vec<[String; 2]> {
    let kinds = PetKind::ALL.iter().filter(|k| k.usual().blends().is_ok());
    let alike = kinds.map(|k| [k.name().to_owned(), k.name().to_owned()]);
    let forms = [
        ["adapter:n=5,form=pfeiffer", "adapter:n=3,form=houlsby"],
        ["adapter:n=5,form=parallel", "adapter:n=3,form=parallel"],
        ["adapter:n=5,form=parallel", "adapter:n=3"],
        ["lora:r=2,at=attn_q/ffn_down", "lora:r=5,at=attn_q/attn_k/ffn_up"],
        ["lora:r=2+sparse:n=50+ia3+bias+adapter:n=2", "lora:r=3+ia3+bias+adapter:n=3"],
        ["ia3:at=attn_q/attn_output", "bias"],
    ];
    alike.chain(forms.map(|f| f.map(str::to_owned))).collect()
}

/// Those that are tried on a family: all, or only the widest pair.
fn specs_of(family: &str, spec: &ModelSpec) -> Vec<[String; 2]> {
    let tried = |pair: &[String; 2]| {
        pair.iter().all(|text| possible(spec, &parse(text)) && (in_full(family) || text.contains("+bias+")))
    };
    specs().into_iter().filter(tried).collect()
}

/// Fails if a weight, or a module of several, does not reach a kind's arithmetic.
#[test]
fn two_modules_at_signed_weights_compute_what_plain_loops_do() {
    for (family, config) in families() {
        let engine = engine_of(&config).with_kv_type(KvType::F32);
        let spec = &engine.base.spec;
        // Logits are of size about 30, the last states of an encoder about 1.
        let unit = if spec.causal { 1.0 } else { 0.04 };
        let texts = ["the list of files and words", "water", "what did you find in the house"];
        let prompts = texts.map(|t| engine.prompt(t, None).unwrap());
        for [a, b] in specs_of(family, spec) {
            let [(first, m0), (second, m1)] = pair(&engine, [&a, &b]);
            let blend = Blend::new([(m0.clone(), WEIGHTS[0]), (m1.clone(), WEIGHTS[1])]).unwrap();
            let [p0, p1] = [plain(&first), plain(&second)];
            let want = |p: &[u32]| reference::logits(&engine.base, p, &[(WEIGHTS[0], &p0), (WEIGHTS[1], &p1)]);
            let what = format!("{family}, {a} and {b}");
            let wanted = want(&prompts[0].tokens);
            let bare = output(&engine, &prompts[0], &Blend::none());
            assert!(far(&wanted, &bare) > 0.03 * unit, "{what}: the blend does nothing");
            let alone = output(&engine, &prompts[0], &Blend::from(m0.clone()));
            assert!(far(&wanted, &alone) > 0.03 * unit, "{what}: the second module or the weight does nothing");
            // The same sums in another order, through up to six layers, on logits of size about 30.
            let prefill = far(&output(&engine, &prompts[0], &blend), &wanted);
            assert!(prefill < 4e-3 * unit, "{what}: prefill is {prefill} from the reference");
            let depth = trunk(spec, &first.pet);
            if spec.causal {
                let decode = far(&token_by_token(&engine, depth, blend.clone(), &prompts[0]), &wanted);
                assert!(decode < 4e-3, "{what}: token by token is {decode} from the reference");
            }
            // A batch in which the blend, the bare base, a module alone and the blend again follow each other.
            let blends = [blend.clone(), Blend::none(), Blend::from(m1.clone()), blend.clone()];
            let mixed = mixed(
                &engine,
                &[&prompts[0].tokens, &prompts[1].tokens, &prompts[2].tokens, &prompts[1].tokens],
                &blends,
            );
            let apart: Vec<f32> = [0, 1, 2, 1]
                .into_iter()
                .zip(&blends)
                .flat_map(|(p, b)| mixed_alone(&engine, &prompts[p].tokens, b))
                .collect();
            let together = far(&mixed, &apart);
            assert!(together < 2e-3, "{what}: sequences of a batch are {together} from each alone");
        }
    }
}

/// States after the last layer of sequences in one batch.
fn mixed(engine: &Engine, sequences: &[&[u32]], blends: &[Blend]) -> Vec<f32> {
    let mut hidden = Vec::new();
    engine.embed(sequences.iter().flat_map(|t| t.iter().copied().zip(0..)), &mut hidden);
    let mut spans: Vec<Span<'_>> = sequences.iter().zip(blends).map(|(t, b)| Span::once(t.len(), b)).collect();
    engine.device().layers(0..engine.base.spec.n_layer, &mut spans, &mut hidden, &mut |_, _| {});
    hidden
}

fn mixed_alone(engine: &Engine, tokens: &[u32], blend: &Blend) -> Vec<f32> {
    mixed(engine, &[tokens], std::slice::from_ref(blend))
}

/// Weights by place and position, as a selector that acts at every layer and token would give them.
#[derive(Debug)]
struct Uneven;

impl Uneven {
    fn weight(site: Site, position: usize, module: usize) -> f32 {
        ((site.layer * 7 + site.place as usize * 3 + position * 5 + module * 11) as f32 * 0.7).sin()
    }
}

impl Weigh for Uneven {
    fn weigh(&self, site: Site, first: usize, x: &[f32], out: &mut [f32]) {
        let modules = 2;
        assert!(!x.is_empty() && x.len().is_multiple_of(out.len() / modules), "values of each token come along");
        for (t, weights) in out.chunks_exact_mut(modules).enumerate() {
            weights.iter_mut().enumerate().for_each(|(m, w)| *w = Self::weight(site, first + t, m));
        }
    }
}

/// Fails if a weight that differs by site or token reaches another site, another token, or another sequence's.
#[test]
fn weights_may_differ_by_site_and_token() {
    for (family, config) in families() {
        let engine = engine_of(&config).with_kv_type(KvType::F32).with_batch(4);
        let prompts = ["the list of files and words", "what did you find"].map(|t| engine.prompt(t, None).unwrap());
        let spec = &engine.base.spec;
        for [a, b] in specs_of(family, spec) {
            let [(first, m0), (second, m1)] = pair(&engine, [&a, &b]);
            let what = format!("{family}, {a} and {b}");
            let blend = Blend::weighed(vec![m0, m1], Arc::new(Uneven)).unwrap();
            let [p0, p1] = [plain(&first), plain(&second)];
            let weights = |m: usize| move |site: Site, position: usize| Uneven::weight(site, position, m);
            let want =
                reference::logits_weighed(&engine.base, &prompts[0].tokens, &[(&weights(0), &p0), (&weights(1), &p1)]);
            let prefill = far(&output(&engine, &prompts[0], &blend), &want);
            assert!(prefill < 4e-3, "{what}: prefill is {prefill} from the reference");
            if !spec.causal {
                continue;
            }
            // In batches of four tokens, beside another sequence of the same blend.
            let mut session = Session::new(&engine, 0);
            let mut both = [session.sequence(blend.clone()), session.sequence(blend.clone())];
            both[0].push(&prompts[1].tokens);
            both[1].push(&prompts[0].tokens);
            let [x, y] = &mut both;
            session.run(&mut [x, y]);
            let vocab = spec.vocab;
            let last = far(both[1].logits(), &want[want.len() - vocab..]);
            assert!(last < 4e-3, "{what}: in a batch of several it is {last} from the reference");
        }
    }
}

#[test]
fn weights_may_differ_by_layer() {
    let (_, config) = &families()[0];
    let engine = engine_of(config);
    let n = engine.base.spec.n_layer;
    let [(first, m0), (second, m1)] = pair(&engine, ["lora:r=2+ia3", "lora:r=3+bias"]);
    let p = engine.prompt("the list of files and words", None).unwrap();
    let blend = Blend::by_layer(vec![m0.clone(), m1.clone()], vec![(n - 1..n, vec![0.5, -1.5])]).unwrap();
    let [p0, p1] = [plain(&first), plain(&second)];
    let only = |w: f32| move |site: Site, _: usize| if site.layer == n - 1 { w } else { 0.0 };
    let want = reference::logits_weighed(&engine.base, &p.tokens, &[(&only(0.5), &p0), (&only(-1.5), &p1)]);
    assert!(far(&engine.logits(&p, &blend), &want) < 4e-3);
    for bad in [vec![(0..n, vec![1.0])], vec![(0..2, vec![1.0, 1.0]), (1..n, vec![1.0, 1.0])]] {
        assert!(Blend::by_layer(vec![m0.clone(), m1.clone()], bad).is_err());
    }
}

/// Learned keys and values have no sum of weights: refused by name, not applied in part.
#[test]
fn what_cannot_be_weighed_is_refused_by_name() {
    let engine = engine_of(&families()[0].1);
    for kind in PetKind::ALL.iter().filter(|k| k.usual().blends().is_err()) {
        let [(first, m0), (_, m1)] = pair(&engine, [kind.name(), kind.name()]);
        let [(other, lora), _] = pair(&engine, ["lora:r=2", "lora:r=2"]);
        let why = kind.usual().blends().unwrap_err();
        let refused = |blend: conpet_formats::Result<Blend>| {
            let e = blend.unwrap_err().to_string();
            assert!(e.contains(kind.name()) && e.contains(why), "{e}");
        };
        refused(Blend::new([(m0.clone(), 0.5)]));
        refused(Blend::new([(m0.clone(), 1.0), (m1, 1.0)]));
        refused(Blend::by_layer(vec![m0.clone()], vec![(0..1, vec![1.0])]));
        refused(Blend::weighed(vec![m0.clone()], Arc::new(Uneven)));
        // Whole, beside a module that can be weighed: what learned rows become hangs on all that acts on them.
        let together = Blend::new([(m0.clone(), 1.0), (lora.clone(), -0.5)]);
        if first.pet.acts_on_input() {
            refused(together);
            continue;
        }
        let p = engine.prompt("the list of files", None).unwrap();
        let got = engine.logits(&p, &together.unwrap());
        assert!(far(&got, &engine.logits(&p, &Blend::from(m0))) > 0.03, "the other module does nothing");
        let want = reference::logits(&engine.base, &p.tokens, &[(1.0, &plain(&first)), (-0.5, &plain(&other))]);
        assert!(far(&got, &want) < 4e-3, "{} from the reference", far(&got, &want));
    }
    let [(_, m), _] = pair(&engine, ["lora:r=2", "lora:r=2"]);
    assert!(Blend::new([(m.clone(), 1.0), (m.clone(), 1.0)]).unwrap_err().to_string().contains("twice"));
    assert!(Blend::new([(m.clone(), f32::NAN)]).is_err());
    assert!(Blend::new([(m, 0.0)]).unwrap().is_none());
}
