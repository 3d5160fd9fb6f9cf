use super::tokens::Turned;
use super::wide::is_half;
use super::*;
use conpet_formats::quant::quantize;
use std::io::Write;

fn wave(n: usize, phase: f32) -> Vec<f32> {
    (0..n).map(|i| ((i as f32 + phase) * 0.37).sin() + ((i * 7) % 5) as f32 * 0.1 - 0.2).collect()
}

/// Bytes of `rows` rows of `cols` values; types that this project cannot write get arbitrary but finite blocks.
fn weights(ty: QuantType, rows: usize, cols: usize) -> Vec<u8> {
    let x = wave(rows * cols, 0.5);
    quantize(ty, &x).unwrap_or_else(|_| {
        let mut bytes: Vec<u8> = (0..ty.row_bytes(rows * cols).unwrap()).map(|i| (i * 37 % 251) as u8).collect();
        // The f16 fields must be small: keep every exponent low.
        let at: &[usize] = match ty {
            QuantType::Tq1_0 => &[52],
            QuantType::Tq2_0 => &[64],
            // A byte that is a power of two.
            QuantType::Mxfp4 => {
                bytes.chunks_exact_mut(17).for_each(|b| b[0] = 120 + b[0] % 4);
                &[]
            }
            _ => &[0],
        };
        for block in bytes.chunks_exact_mut(ty.block_bytes()) {
            for a in at {
                block[a + 1] = 0x20 | block[a + 1] & 3;
            }
        }
        bytes
    })
}

/// Checks that two sets of sums of `k` products agree. The order of addition may differ, so the bound grows
/// with the root of `k`.
fn close(a: &[f32], b: &[f32], k: usize, what: &str) {
    let size = b.iter().fold(1.0f32, |m, v| m.max(v.abs()));
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        assert!((x - y).abs() <= 4e-7 * size * (k as f32).sqrt() * 4.0, "{what}: [{i}] {x} for {y}");
    }
}

#[test]
fn every_form_is_found_by_its_name() {
    let names: Vec<_> = Kernels::all().iter().map(|k| k.name()).collect();
    // Read by .ci/neon.sh, which checks that each form was tested at all.
    let _ = writeln!(std::io::stdout(), "kernels here: {}", names.join(" "));
    assert!(names.iter().all(|n| Kernels::by_name(n).is_some_and(|k| k.name() == *n)));
    assert_eq!(names[0], "naive");
}

#[test]
fn products_equal_the_naive_ones_for_every_type_and_shape() {
    // Both in f32 and with rounded activations; fast and naive sets round alike, and differ only in the order
    // in which they add the runs.
    for exact in [true, false] {
        products_equal_the_naive_ones(exact);
    }
}

fn products_equal_the_naive_ones(exact: bool) {
    let form = |k: Kernels| if exact { k.exact() } else { k };
    let (one, three) = (Threads::new(1), Threads::new(3));
    for ty in QuantType::ALL {
        let b = ty.block_len();
        let widths: Vec<usize> = match b {
            1 => vec![1, 7, 8, 9, 16, 31, 32, 40, 64, 100],
            // Some that fill 256 values, and some that do not.
            32 => vec![32, 64, 96, 160, 256, 288, 512, 736],
            _ => vec![b, 2 * b, 3 * b, 5 * b],
        };
        for cols in widths {
            for rows in [1, 3, 8, 25, 61] {
                let bytes = weights(ty, rows, cols);
                let w = MatrixRef { ty, rows, cols, data: &bytes };
                for n in [1, 2, 3, 5, 8, 13, 25] {
                    let x = wave(n * cols, 3.0);
                    let want = [Kernels::naive().exact(), form(Kernels::naive())].map(|k| {
                        let mut y = vec![0.0; n * rows];
                        k.matmul(&one, w, &x, &mut y, n);
                        y
                    });
                    for k in Kernels::all().into_iter().map(form) {
                        // Sets that multiply half-precision numbers as floats do not round them.
                        let want = &want[usize::from(!is_half(ty) || k.wide())];
                        let what = format!("{} {} {rows}x{cols} n={n} exact={exact}", k.name(), ty.name());
                        let mut y = vec![f32::NAN; n * rows];
                        k.matmul(&one, w, &x, &mut y, n);
                        close(&y, want, cols, &what);
                        let mut again = vec![f32::NAN; n * rows];
                        k.matmul(&three, w, &x, &mut again, n);
                        assert_eq!(y, again, "{what}: depends on the thread count");
                    }
                }
            }
        }
    }
}

#[test]
fn what_a_lora_adds_equals_its_two_products() {
    let t = Threads::new(3);
    for (base, factors) in [(QuantType::Q4_0, QuantType::F16), (QuantType::F32, QuantType::BF16)] {
        let (cols, rows) = (64, [61, 16]);
        let weight = |ty, rows, cols| weights(ty, rows, cols);
        let bytes = rows.map(|r| weight(base, r, cols));
        for ranks in [[8, 3], [4, 17]] {
            let (a, b) = (ranks.map(|r| weight(factors, r, cols)), [0, 1].map(|i| weight(factors, rows[i], ranks[i])));
            let matrix = |ty, rows, cols, data| MatrixRef { ty, rows, cols, data };
            for n in [1, 2, 25] {
                let x = wave(n * cols, 3.0);
                let want = [0, 1].map(|i| {
                    let k = Kernels::naive().exact();
                    let (mut y, mut low, mut more) =
                        (vec![0.0; n * rows[i]], vec![0.0; n * ranks[i]], vec![0.0; n * rows[i]]);
                    k.matmul(&t, matrix(base, rows[i], cols, &bytes[i]), &x, &mut y, n);
                    k.matmul(&t, matrix(factors, ranks[i], cols, &a[i]), &x, &mut low, n);
                    k.matmul(&t, matrix(factors, rows[i], ranks[i], &b[i]), &low, &mut more, n);
                    y.iter().zip(more).map(|(y, m)| y + 0.5 * m).collect::<Vec<f32>>()
                });
                for k in Kernels::all().into_iter().map(Kernels::exact) {
                    let pitch = low_rank_width(ranks.into_iter());
                    let mut low = vec![f32::NAN; n * pitch];
                    let both = [0, 1].map(|i| matrix(factors, ranks[i], cols, &a[i]));
                    k.project(&t, both.into_iter(), &x, &mut low, n);
                    let add = |i: usize| {
                        let b = matrix(factors, rows[i], ranks[i], &b[i]);
                        Some(LowRank { low: &low, pitch, at: i * ranks[0], b, scale: 0.5 })
                    };
                    let mut y = rows.map(|r| vec![f32::NAN; n * r]);
                    let [y0, y1] = &mut y;
                    let w = [0, 1].map(|i| matrix(base, rows[i], cols, &bytes[i]));
                    k.matmul_many(&t, [(w[0], y0, add(0)), (w[1], y1, add(1))], &x, n);
                    for i in 0..2 {
                        close(&y[i], &want[i], 64 * cols, &format!("{} {} {ranks:?} n={n}", k.name(), base.name()));
                    }
                }
            }
        }
    }
}

#[test]
fn rounding_activations_costs_little() {
    let t = Threads::new(1);
    for ty in QuantType::ALL.into_iter().filter(|ty| *ty != QuantType::F32) {
        let steps = if is_half(ty) { 8190.0 } else { 254.0 };
        let (rows, cols, n) = (32, 1024, 3);
        let bytes = weights(ty, rows, cols);
        let w = MatrixRef { ty, rows, cols, data: &bytes };
        let x = wave(n * cols, 1.0);
        let (mut exact, mut rounded) = (vec![0.0; n * rows], vec![0.0; n * rows]);
        Kernels::detect().exact().matmul(&t, w, &x, &mut exact, n);
        Kernels::naive().matmul(&t, w, &x, &mut rounded, n);
        // An activation is off by up to 1/254 of its run's largest (1/8190 where it meets half-precision
        // weights, which are off by half that), evenly spread: over 1,024 products the errors add like a
        // random walk, to about 1/254 / sqrt(3) of the product of the norms.
        let mut row = vec![0.0; cols];
        for (i, (a, b)) in exact.iter().zip(&rounded).enumerate() {
            Kernels::naive().dequantize_row(w, i % rows, &mut row);
            let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
            let bound = 3.0 / steps * norm(&row) * norm(&x[i / rows * cols..][..cols]) / (cols as f32).sqrt() * 1.2;
            assert!((a - b).abs() <= bound, "{}: {b} for {a}, bound {bound}", ty.name());
        }
        assert!(exact != rounded, "{}: the rounded path was not taken", ty.name());
    }
}

#[test]
fn numbers_that_are_not_finite_reach_the_result() {
    for (k, ty) in Kernels::all().into_iter().flat_map(|k| [(k, QuantType::Q8_0), (k, QuantType::F16)]) {
        for n in [1, 3] {
            let bytes = weights(ty, 16, 64);
            let w = MatrixRef { ty, rows: 16, cols: 64, data: &bytes };
            let mut x = wave(n * 64, 0.0);
            x[5] = f32::NAN;
            let mut y = vec![0.0; n * 16];
            k.matmul(&Threads::new(1), w, &x, &mut y, n);
            assert!(y[..16].iter().all(|v| v.is_nan()), "{} n={n}: {:?}", k.name(), &y[..16]);
            assert!(y[16..].iter().all(|v| v.is_finite()));
        }
    }
}

#[test]
fn several_weights_in_one_region_equal_one_by_one() {
    let t = Threads::new(2);
    let (a, b) = (weights(QuantType::Q4_1, 40, 1024), weights(QuantType::Q8_0, 72, 1024));
    let (wa, wb) = (
        MatrixRef { ty: QuantType::Q4_1, rows: 40, cols: 1024, data: &a },
        MatrixRef { ty: QuantType::Q8_0, rows: 72, cols: 1024, data: &b },
    );
    for k in Kernels::all() {
        for n in [1, 6] {
            let x = wave(n * 1024, 0.0);
            let (mut ya, mut yb) = (vec![0.0; n * 40], vec![0.0; n * 72]);
            k.matmul_many(&t, [(wa, &mut ya, None), (wb, &mut yb, None)], &x, n);
            let (mut za, mut zb) = (vec![0.0; n * 40], vec![0.0; n * 72]);
            k.matmul(&t, wa, &x, &mut za, n);
            k.matmul(&t, wb, &x, &mut zb, n);
            assert_eq!((ya, yb), (za, zb), "{}", k.name());
        }
    }
}

#[test]
fn small_vector_operations_equal_the_naive_ones() {
    let naive = Kernels::naive();
    for k in Kernels::all() {
        for n in (0..70).chain([576]) {
            let (a, b) = (wave(n, 0.0), wave(n, 9.0));
            let h: Vec<f16> = b.iter().map(|v| f16::from_f32(*v)).collect();
            close(&[k.dot_f32(&a, &b)], &[naive.dot_f32(&a, &b)], n.max(1), "dot_f32");
            let (mut wide, mut want) = (vec![0.0; n], vec![0.0; n]);
            k.widen(&h, &mut wide);
            naive.widen(&h, &mut want);
            assert_eq!(wide, want);
            let apply = |k: Kernels| {
                let (mut x, mut y, mut s, mut g) = (a.clone(), a.clone(), a.clone(), a.clone());
                k.axpy_f32(&mut x, 0.3, &b);
                let (max, sum) = k.softmax_step(&mut y, 0.5);
                y.extend([max, sum]);
                if n > 0 {
                    k.softmax(&mut s);
                }
                g.iter_mut().for_each(|v| *v *= 30.0);
                let mut h = g.clone();
                k.gate_mul(Activation::Silu, &mut g, &b);
                k.gate_mul(Activation::GeluTanh, &mut h, &b);
                let (mut e, mut c) = (b.clone(), b.clone());
                k.activate(Activation::Gelu, &mut e);
                k.soft_cap(&mut c, 0.7);
                [x, y, s, g, h, e, c]
            };
            for (got, want) in apply(k).iter().zip(apply(naive)) {
                // exp is exact to 2e-7 relative; sums over n terms add their rounding.
                let size = want.iter().fold(1.0f32, |m, v| m.max(v.abs()));
                for (x, y) in got.iter().zip(&want) {
                    assert!((x - y).abs() <= 2e-6 * size, "{} n={n}: {x} for {y}", k.name());
                }
            }
        }
    }
}

#[test]
fn small_products_and_transposes_equal_the_naive_ones() {
    let naive = Kernels::naive();
    for k in Kernels::all() {
        for (rows, depth, cols) in [(1, 1, 16), (3, 64, 64), (7, 5, 16), (13, 40, 48), (29, 17, 96), (96, 64, 64)] {
            let (lda, ldb, ldc) = (depth + 3, cols + 16, cols + 5);
            let (a, b) = (wave(rows * lda, 0.0), wave(depth * ldb, 4.0));
            for add in [false, true] {
                let g = Gemm { a: &a, lda, rows, b: &b, ldb, k: depth, cols, add };
                let (mut got, mut want) = (vec![0.5; rows * ldc], vec![0.5; rows * ldc]);
                k.gemm(g, &mut got, ldc);
                naive.gemm(g, &mut want, ldc);
                close(&got, &want, depth, &format!("{} gemm {rows}x{depth}x{cols} add={add}", k.name()));
            }
            let ldo = rows + 2;
            let (mut got, mut want) = (vec![0.0; depth * ldo], vec![0.0; depth * ldo]);
            k.transpose(&a, lda, rows, depth, &mut got, ldo);
            naive.transpose(&a, lda, rows, depth, &mut want, ldo);
            assert_eq!(got, want, "{} transpose {rows}x{depth}", k.name());
        }
    }
}

#[test]
fn softmax_and_silu_survive_extremes() {
    for k in Kernels::all() {
        let mut x = [-1e30, 0.0, 80.0, f32::NEG_INFINITY, -1e5, 1.0, 2.0, 3.0, 4.0];
        k.softmax(&mut x);
        assert!((x.iter().sum::<f32>() - 1.0).abs() < 1e-5 && x[2] > 0.999, "{}: {x:?}", k.name());
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            let mut g = [-200.0, 200.0, 0.0];
            k.gate_mul(activation, &mut g, &[1.0, 1.0, 1.0]);
            assert!(g[0].abs() < 1e-30 && (g[1] - 200.0).abs() < 1e-3 && g[2] == 0.0, "{}: {g:?}", k.name());
        }
        let mut g = [1.0, -0.5];
        k.gate_mul(Activation::GeluTanh, &mut g, &[1.0, 2.0]);
        // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), computed elsewhere.
        assert!((g[0] - 0.841_192).abs() < 1e-5 && (g[1] + 0.308_571_5).abs() < 1e-5, "{}: {g:?}", k.name());
        let mut g = [1.0, -0.5, -3.0, 40.0, -40.0];
        k.activate(Activation::Gelu, &mut g);
        // x · Φ(x), computed elsewhere.
        for (g, want) in g.iter().zip([0.841_344_7, -0.154_268_77, -0.004_049_694, 40.0, 0.0]) {
            assert!((g - want).abs() < 1e-6, "{}: {g} for {want}", k.name());
        }
        let mut x = [0.5, -1e6, 1e6];
        k.soft_cap(&mut x, 2.0);
        assert!((x[0] - 0.489_837_3).abs() < 1e-6 && x[1..] == [-2.0, 2.0], "{}: {x:?}", k.name());
        let mut x = [1.0, 2.0, 6.0];
        k.layer_norm_inplace(&mut x, [&[1.0, 2.0, 1.0], &[0.0, 0.5, 1.0]], 0.0);
        // mean 3, variance 14 / 3.
        for (x, want) in x.iter().zip([-0.925_820_1, -0.425_820_1, 2.388_73]) {
            assert!((x - want).abs() < 1e-6, "{}: {x} for {want}", k.name());
        }
        let mut x = [1.0, f32::NAN, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        k.softmax(&mut x);
        assert!(x.iter().any(|v| v.is_nan()), "{}: NaN must not be hidden", k.name());
    }
}

#[test]
fn rope_turns_by_the_given_angle_and_keeps_length() {
    let (s, c) = 0.5f32.sin_cos();
    let table = [c, s, 1.0, 0.0];
    let mut a = [1.0, 0.0, 3.0, 4.0, 9.0];
    Kernels::naive().rope(&mut a[..4], 4, &table, RopeKind::Adjacent);
    assert_eq!(a, [c, s, 3.0, 4.0, 9.0]);
    let mut h = [1.0, 3.0, 0.0, 4.0];
    Kernels::naive().rope(&mut h, 4, &table, RopeKind::Halves);
    assert_eq!(h, [c, 3.0, s, 4.0]);
}

/// Fails if two instruction sets unpack a panel, full or short, to different bits.
#[test]
fn panels_are_the_same_bits_whoever_unpacks_them() {
    for ty in QuantType::ALL.iter().copied().filter(|t| is_blocks(*t)) {
        for cols in [ty.block_len(), 3 * ty.block_len(), 256 + 2 * ty.block_len(), 18 * ty.block_len()] {
            for rows in [panel::ROWS, panel::ROWS - 3, 8, 1] {
                let bytes = weights(ty, rows, cols);
                let unpacked = |k: Kernels| {
                    let mut p = Panel::default();
                    dispatch!(k, unpack(&mut p, ty, &bytes, rows, cols));
                    let runs = cols / p.run * panel::ROWS;
                    let bits = |v: &[f32]| v[..runs].iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    // Rows that are missing have scales of zero; what their codes are does not matter.
                    let there = |i: usize| i / 4 % panel::ROWS < rows;
                    let codes: Vec<u8> = (0..cols * panel::ROWS).filter(|i| there(*i)).map(|i| p.codes[i]).collect();
                    (p.run, p.bits, codes, bits(&p.scales), bits(&p.mins))
                };
                let want = unpacked(Kernels::naive());
                for k in Kernels::all() {
                    assert!(unpacked(k) == want, "{} {} {rows} rows of {cols}", k.name(), ty.name());
                }
            }
        }
    }
}

#[test]
fn finer_rounding_equals_the_naive_one_and_is_finer() {
    let (rows, cols, t) = (48, 1024, Threads::new(2));
    let bytes = weights(QuantType::Q8_0, rows, cols);
    let w = MatrixRef { ty: QuantType::Q8_0, rows, cols, data: &bytes };
    for n in [2, 12, 33] {
        let x = wave(n * cols, 1.0);
        let product = |k: Kernels| {
            let mut y = vec![f32::NAN; n * rows];
            k.matmul(&t, w, &x, &mut y, n);
            y
        };
        let [exact, fine, coarse] = [Kernels::naive().exact(), Kernels::naive().fine(), Kernels::naive()].map(product);
        for k in Kernels::all().into_iter().map(Kernels::fine) {
            close(&product(k), if k.finer() { &fine } else { &coarse }, cols, &format!("{} n={n}", k.name()));
        }
        let off = |y: &[f32]| y.iter().zip(&exact).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
        // Steps are 32 times as small.
        assert!(off(&fine) < off(&coarse) / 16.0, "{} and {}", off(&fine), off(&coarse));
    }
}

/// Fails if a set multiplies weights with turned activations to something else than plain loops do.
#[test]
fn products_with_turned_activations_equal_the_naive_ones() {
    let (naive, threads) = (Kernels::naive(), Threads::new(2));
    for k in Kernels::all() {
        for (rows, cols, n) in [(1, 32, 2), (12, 96, 8), (23, 544, 12), (48, 1056, 16), (35, 288, 17), (17, 320, 41)] {
            let what = format!("{} {rows}x{cols} n={n}", k.name());
            let (w, x) = (wave(rows * cols, 0.5), wave(n * cols, 3.0));
            let mut turned = Turned::default();
            let columns = |c: &[f32], pitch: usize| {
                c.chunks_exact(pitch).take(rows).flat_map(|c| c[..n].to_vec()).collect::<Vec<_>>()
            };
            let blocks = turned.fill(k, &threads, &x, n);
            let product = |k: Kernels| {
                let mut c = vec![f32::NAN; rows * blocks.pitch()];
                dispatch!(k, product_turned(&w, rows, blocks, &mut c));
                columns(&c, blocks.pitch())
            };
            let got = product(k);
            close(&got, &product(naive), cols, &what);
            let mut back = vec![f32::NAN; n * (rows + 3)];
            let mut c = vec![0.0; rows * blocks.pitch()];
            dispatch!(k, product_turned(&w, rows, blocks, &mut c));
            // SAFETY: `n` rows of `rows + 3` numbers.
            unsafe { dispatch!(k, store_turned(&c, blocks.pitch(), rows, n, back.as_mut_ptr(), rows + 3)) };
            for (t, back) in back.chunks_exact(rows + 3).enumerate() {
                assert!(
                    (0..rows).all(|r| back[r] == got[r * n + t]) && back[rows..].iter().all(|v| v.is_nan()),
                    "{what}"
                );
            }
            for (ty, limit) in [
                (QuantType::Q8_0, 127.0),
                (QuantType::Q8_0, wide::ACTIVATION),
                (QuantType::F16, wide::ACTIVATION),
                (QuantType::BF16, wide::ACTIVATION),
            ] {
                let bytes = quantize(ty, &w).unwrap();
                let blocks = turned.fill_wide(k, &threads, &x, n, limit);
                let product = |k: Kernels| {
                    let (mut tile, mut c) = (WideTile::default(), vec![f32::NAN; rows * blocks.pitch()]);
                    dispatch!(k, unpack_tile(&mut tile, ty, &bytes, rows, cols));
                    dispatch!(k, product_turned_wide(&tile, rows, blocks, &mut c));
                    columns(&c, blocks.pitch())
                };
                close(&product(k), &product(naive), cols, &format!("{what} {} {limit}", ty.name()));
            }
        }
    }
}
