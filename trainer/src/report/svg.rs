//! Plots as inline SVG, drawn by hand: no scripts, no fonts, nothing to fetch.

use std::fmt::Write as _;

/// Colours of lines, as classes `c0`, `c1`, ... of the page's style.
const COLOURS: usize = 10;

/// Text made safe for HTML.
pub(super) fn escape(s: &str) -> String {
    s.chars()
        .flat_map(|c| match c {
            '&' => "&amp;".chars().collect::<Vec<_>>(),
            '<' => "&lt;".chars().collect(),
            '>' => "&gt;".chars().collect(),
            '"' => "&quot;".chars().collect(),
            c if c.is_control() => vec!['\u{fffd}'],
            c => vec![c],
        })
        .collect()
}

fn clip(s: &str) -> String {
    if s.chars().count() > 18 { format!("{}…", s.chars().take(17).collect::<String>()) } else { s.to_owned() }
}

/// A heat map; `cells[row][col]` from 0 to 1, `None` is left blank.
pub(super) fn heat_map(rows: &[String], cols: &[String], cells: &[Vec<Option<f64>>]) -> String {
    let (cell, left, top) = (46, 150, 118);
    let (w, h) = (left + cell * cols.len() + 30, top + cell * rows.len() + 8);
    let mut s = format!(r#"<svg viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img">"#);
    for (j, name) in cols.iter().enumerate() {
        let x = left + cell * j + cell / 2;
        let _ = write!(
            s,
            r#"<text class="axis" transform="translate({x} {}) rotate(-45)">{}</text>"#,
            top - 8,
            escape(&clip(name))
        );
    }
    for (i, name) in rows.iter().enumerate() {
        let y = top + cell * i;
        let _ = write!(
            s,
            r#"<text class="axis" text-anchor="end" x="{}" y="{}">{}</text>"#,
            left - 8,
            y + cell / 2 + 4,
            escape(&clip(name))
        );
        for (j, v) in cells[i].iter().enumerate() {
            let x = left + cell * j;
            match v {
                None => {
                    let _ =
                        write!(s, r#"<rect class="none" x="{x}" y="{y}" width="{}" height="{}"/>"#, cell - 2, cell - 2);
                }
                Some(v) => {
                    let dark = if *v > 0.55 { "on" } else { "off" };
                    let _ = write!(
                        s,
                        r#"<rect class="cell" fill-opacity="{:.3}" x="{x}" y="{y}" width="{}" height="{}"/><text class="{dark}" text-anchor="middle" x="{}" y="{}">{}</text>"#,
                        0.04 + 0.96 * v.clamp(0.0, 1.0).powi(2),
                        cell - 2,
                        cell - 2,
                        x + cell / 2 - 1,
                        y + cell / 2 + 4,
                        number(100.0 * v)
                    );
                }
            }
        }
    }
    s + "</svg>"
}

fn number(v: f64) -> String {
    if v == 0.0 {
        "0".into()
    } else if v >= 99.95 {
        "100".into()
    } else {
        format!("{v:.1}")
    }
}

/// One line of a plot.
#[derive(Debug)]
pub(super) struct Line {
    /// Name of the line.
    pub name: String,
    /// Value and spread at each stage, from 0 to 1.
    pub points: Vec<(f64, f64)>,
}

/// Lines over stages, with their spread as bands; `first` is the stage of the first point.
pub(super) fn lines(series: &[Line], first: usize) -> String {
    let (w, top, left, right, bottom) = (760.0, 16.0, 48.0, 230.0, 36.0);
    // Room for all names beside the last points.
    let h = (300.0f64).max(top + bottom + 16.0 * series.len() as f64);
    let n = series.iter().map(|s| s.points.len()).max().unwrap_or(1).max(1);
    let x = |i: usize, len: usize| {
        // A line with a single point is placed at the last stage.
        let i = if len == 1 { n - 1 } else { i };
        left + (w - left - right) * if n > 1 { i as f64 / (n - 1) as f64 } else { 0.5 }
    };
    let y = |v: f64| top + (h - top - bottom) * (1.0 - v.clamp(0.0, 1.0));
    let mut s = format!(r#"<svg viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img">"#);
    for i in 0..=5 {
        let v = f64::from(i) / 5.0;
        let _ = write!(
            s,
            r#"<line class="grid" x1="{left}" x2="{}" y1="{1}" y2="{1}"/><text class="axis" text-anchor="end" x="{2}" y="{3}">{4}</text>"#,
            w - right,
            y(v),
            left - 8.0,
            y(v) + 4.0,
            i * 20
        );
    }
    for i in 0..n {
        let _ = write!(
            s,
            r#"<text class="axis" text-anchor="middle" x="{}" y="{}">{}</text>"#,
            x(i, n.max(2)),
            h - 14.0,
            first + i
        );
    }
    for (k, line) in series.iter().enumerate().filter(|(_, l)| l.points.iter().any(|p| p.1 > 0.0)) {
        let at = |(i, v): (usize, f64)| format!("{:.1},{:.1}", x(i, line.points.len()), y(v));
        let upper = line.points.iter().enumerate().map(|(i, p)| at((i, p.0 + p.1)));
        let lower = line.points.iter().enumerate().rev().map(|(i, p)| at((i, p.0 - p.1)));
        let points: Vec<String> = upper.chain(lower).collect();
        let _ = write!(s, r#"<polygon class="band c{}" points="{}"/>"#, k % COLOURS, points.join(" "));
    }
    let mut labels: Vec<(f64, usize)> =
        series.iter().enumerate().filter_map(|(k, l)| Some((y(l.points.last()?.0), k))).collect();
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Names are spaced apart; if the lowest would leave the picture, all move up.
    let mut places: Vec<f64> = Vec::new();
    for (at, _) in &labels {
        places.push(places.last().map_or(*at, |last| at.max(last + 16.0)));
    }
    let mut floor = h - bottom;
    for p in places.iter_mut().rev() {
        *p = p.min(floor);
        floor = *p - 16.0;
    }
    for ((_, k), place) in labels.into_iter().zip(places) {
        let Line { name, points: v } = &series[k];
        let points: Vec<String> =
            v.iter().enumerate().map(|(i, p)| format!("{:.1},{:.1}", x(i, v.len()), y(p.0))).collect();
        let colour = k % COLOURS;
        let _ = write!(s, r#"<polyline class="line c{colour}" points="{}"/>"#, points.join(" "));
        for p in points {
            let (px, py) = p.split_once(',').unwrap_or(("0", "0"));
            let _ = write!(s, r#"<circle class="dot c{colour}" cx="{px}" cy="{py}" r="3.5"/>"#);
        }
        let end = v.last().map_or(0.0, |p| p.0);
        let _ = write!(
            s,
            r#"<text class="name c{colour}" x="{}" y="{}">{} {}</text>"#,
            w - right + 12.0,
            place + 4.0,
            escape(&clip(name)),
            number(100.0 * end)
        );
    }
    s + "</svg>"
}

/// Lines through points `(x, y)`, x logarithmic, y from 0 to 1; `floor` is a dashed line across.
pub(super) fn scatter(series: &[(String, Vec<(f64, f64)>)], floor: Option<f64>) -> String {
    let (w, h, left, top, right, bottom) = (900.0, 420.0, 48.0, 16.0, 230.0, 36.0);
    let all = || series.iter().flat_map(|s| &s.1);
    let decades = |f: fn(f64, f64) -> f64, start: f64| all().map(|p| p.0.log10()).fold(start, f);
    let (from, to) = (decades(f64::min, f64::MAX).floor(), decades(f64::max, f64::MIN).ceil());
    if from > to {
        return String::new();
    }
    let span = (to - from).max(1.0);
    // The scale begins at the tenth below the lowest value.
    let low = (10.0 * all().map(|p| p.1).chain(floor).fold(1.0, f64::min)).floor().min(9.0) / 10.0;
    let x = |v: f64| left + (w - left - right) * (v.log10() - from) / span;
    let y = |v: f64| top + (h - top - bottom) * (1.0 - v) / (1.0 - low);
    let mut s = format!(r#"<svg viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img">"#);
    for i in (low * 10.0).round() as i32..=10 {
        let at = y(f64::from(i) / 10.0);
        let _ = write!(
            s,
            r#"<line class="grid" x1="{left}" x2="{}" y1="{at}" y2="{at}"/><text class="axis" text-anchor="end" x="{}" y="{}">{}</text>"#,
            w - right,
            left - 8.0,
            at + 4.0,
            i * 10
        );
    }
    for d in 0..=span as i32 {
        let (at, power) = (x(10f64.powf(from + f64::from(d))), from as i32 + d);
        let _ = write!(s, r#"<text class="axis" text-anchor="middle" x="{at}" y="{}">1e{power}</text>"#, h - 14.0);
    }
    if let Some(v) = floor {
        let _ = write!(
            s,
            r#"<line class="grid" stroke-dasharray="6 4" x1="{left}" x2="{}" y1="{1}" y2="{1}"/>"#,
            w - right,
            y(v)
        );
    }
    for (k, (name, points)) in series.iter().enumerate() {
        let at: Vec<String> = points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        // Lines that repeat a colour are dashed.
        let (colour, dash) = (k % COLOURS, if k >= COLOURS { r#" stroke-dasharray="5 4""# } else { "" });
        let _ = write!(s, r#"<polyline class="line c{colour}"{dash} points="{}"/>"#, at.join(" "));
        for p in points {
            let _ = write!(s, r#"<circle class="dot c{colour}" cx="{:.1}" cy="{:.1}" r="3.5"/>"#, x(p.0), y(p.1));
        }
        let row = top + 18.0 * k as f64 + 8.0;
        let (a, b) = (w - right + 12.0, w - right + 36.0);
        let _ = write!(
            s,
            r#"<line class="line c{colour}"{dash} x1="{a}" x2="{b}" y1="{row}" y2="{row}"/><text x="{}" y="{}">{}</text>"#,
            b + 8.0,
            row + 4.0,
            escape(&name.chars().take(28).collect::<String>())
        );
    }
    s + "</svg>"
}
