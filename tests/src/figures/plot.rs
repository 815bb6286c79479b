//! A plot as SVG: straight lines over a logarithmic x axis, with the spread of each point.

use crate::figures::stats::Spread;

/// What is drawn.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Above it.
    pub title: String,
    /// Below that, smaller.
    pub subtitle: String,
    /// What x is, with its unit.
    pub x_label: String,
    /// What y is, with its unit.
    pub y_label: String,
    /// At most as many as there are colours.
    pub curves: Vec<Curve>,
}

/// A line with its points.
#[derive(Clone, Debug)]
pub struct Curve {
    /// In the legend.
    pub name: String,
    /// By x, which is 1 or more.
    pub points: Vec<(f64, Spread)>,
}

/// Size of the picture, and of the margins around the plot itself.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 96.0;
const BOTTOM: f64 = 60.0;
/// Told apart by all common kinds of colour vision (Okabe and Ito, "Color Universal Design", 2008): blue, vermilion,
/// bluish green.
const COLOURS: [&str; 3] = ["#0072b2", "#d55e00", "#009e73"];

/// The picture.
///
/// # Panics
/// Without a point, or with too many curves.
pub fn svg(plot: &Plot) -> String {
    assert!(plot.curves.len() <= COLOURS.len(), "more curves than colours");
    let points = || plot.curves.iter().flat_map(|curve| &curve.points);
    let decades = points().map(|(x, _)| x.log10().ceil()).fold(1.0, f64::max);
    let highest = points().map(|(_, y)| y.highest).fold(f64::MIN, f64::max);
    assert!(highest > 0.0, "nothing to draw");
    let step = round_step(highest / 5.0);
    let top = (highest / step).ceil() * step;
    let at_x = |x: f64| LEFT + x.log10() / decades * (WIDTH - LEFT - RIGHT);
    let at_y = |y: f64| HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n\
         <title>{0}</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"16\" font-weight=\"bold\">{0}</text>\n\
         <text x=\"{LEFT}\" y=\"45\" fill=\"#555\">{1}</text>\n",
        escaped(&plot.title),
        escaped(&plot.subtitle)
    );
    let mut add = |element: String| {
        svg += &element;
        svg.push('\n');
    };
    let (left, right, bottom) = (LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM);
    let mut decade = 0.0;
    while decade <= decades {
        let x = at_x(10_f64.powf(decade));
        add(format!(r##"<line x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{bottom}" stroke="#e2e2e2"/>"##));
        let label = amount(10_f64.powf(decade));
        add(format!(r#"<text x="{x:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#, bottom + 18.0));
        decade += 1.0;
    }
    let mut value = 0.0;
    while value <= top + step / 2.0 {
        let y = at_y(value);
        add(format!(r##"<line x1="{left}" y1="{y:.1}" x2="{right}" y2="{y:.1}" stroke="#e2e2e2"/>"##));
        let label = amount(value);
        add(format!(r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{label}</text>"#, left - 8.0, y + 4.5));
        value += step;
    }
    add(format!(
        r##"<path d="M{left},{TOP} V{bottom} H{right}" fill="none" stroke="#222" stroke-width="1.2"/>"##
    ));
    let (middle, label) = (f64::midpoint(left, right), escaped(&plot.x_label));
    add(format!(r#"<text x="{middle:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#, HEIGHT - 16.0));
    let (middle, label) = (f64::midpoint(TOP, bottom), escaped(&plot.y_label));
    add(format!(
        r#"<text transform="translate(20,{middle:.1}) rotate(-90)" text-anchor="middle">{label}</text>"#
    ));

    let mut legend = LEFT;
    for (number, (curve, colour)) in plot.curves.iter().zip(COLOURS).enumerate() {
        add(format!(r#"<g stroke="{colour}" fill="{colour}" stroke-width="2">"#));
        let line: Vec<String> =
            curve.points.iter().map(|(x, y)| format!("{:.1},{:.1}", at_x(*x), at_y(y.median))).collect();
        add(format!(r#"<polyline fill="none" points="{}"/>"#, line.join(" ")));
        for (x, y) in &curve.points {
            let (x, low, high) = (at_x(*x), at_y(y.lowest), at_y(y.highest));
            add(format!(r#"<path fill="none" stroke-width="1" d="M{x:.1},{low:.1} V{high:.1}"/>"#));
            add(mark(number, x, at_y(y.median)));
        }
        let y = 68.0;
        add(format!(r#"<path fill="none" d="M{legend:.1},{y} h26"/>"#));
        add(mark(number, legend + 13.0, y));
        add("</g>".into());
        add(format!(r#"<text x="{:.1}" y="{:.1}">{}</text>"#, legend + 33.0, y + 4.5, escaped(&curve.name)));
        // Characters of this size are some seven wide.
        legend += 33.0 + 7.2 * curve.name.chars().count() as f64 + 22.0;
    }
    svg += "</svg>\n";
    svg
}

/// A point, in a shape of the curve's own, for eyes and printers without colours.
fn mark(curve: usize, x: f64, y: f64) -> String {
    match curve {
        0 => format!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="4.5"/>"#),
        1 => format!(r#"<rect x="{:.1}" y="{:.1}" width="8" height="8"/>"#, x - 4.0, y - 4.0),
        _ => format!(r#"<path d="M{x:.1},{:.1} l5,9 h-10 z"/>"#, y - 5.0),
    }
}

/// 1, 2 or 5 times a power of ten, this or more.
fn round_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    power * factors.into_iter().find(|factor| factor * power >= least * 0.999).unwrap_or(10.0)
}

/// A round number as one reads it on an axis.
fn amount(value: f64) -> String {
    match value {
        millions if millions >= 1e6 => format!("{} M", short(millions / 1e6)),
        many if many >= 1e4 => format!("{},000", short(many / 1e3)),
        thousands if thousands >= 1e3 => {
            let text = format!("{thousands:.0}");
            format!("{},{}", &text[..1], &text[1..])
        }
        few => short(few),
    }
}

/// Without zeros at the end, and without the last bits of what was added up.
fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escaped(text: &str) -> String {
    // The ampersand first: the others bring one along.
    [("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\"", "&quot;")]
        .into_iter()
        .fold(text.to_owned(), |text, (plain, written)| text.replace(plain, written))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot() -> Plot {
        let curve = |name: &str, scale: f64| {
            let point = |x: f64| {
                let median = scale / (1.0 + x.log10());
                (x, Spread { median, lowest: median * 0.9, highest: median * 1.1 })
            };
            Curve { name: name.into(), points: [1.0, 1e3, 1e5].map(point).into() }
        };
        Plot {
            title: "Answers & <others>".into(),
            subtitle: "one core".into(),
            x_label: "addresses".into(),
            y_label: "answers per second".into(),
            curves: vec![curve("one", 3.3e6), curve("two", 2.5e6), curve("three", 5e5)],
        }
    }

    /// Every element is closed in its order, and nothing stands in the text that begins one.
    fn assert_well_formed(text: &str) {
        let mut open = Vec::new();
        for part in text.split('<').skip(1) {
            let (tag, rest) = part.split_once('>').expect("every tag ends");
            assert!(!rest.contains('>'), "{part}");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "{tag}");
            } else if !tag.ends_with('/') {
                open.push(tag.split(' ').next().expect("a name"));
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn the_picture_is_well_formed_and_has_everything_in_it() {
        let svg = svg(&plot());
        assert_well_formed(&svg);
        for text in ["Answers &amp; &lt;others&gt;", "one core", "addresses", "answers per second", "three"] {
            assert!(svg.contains(text), "{text} is missing in {svg}");
        }
        assert_eq!(svg.matches("<polyline").count(), 3);
        // Decades from 1 to 100,000, and 0 to 4 M in steps of 1 M.
        for label in [">1<", ">10<", ">1,000<", ">100,000<", ">0<", ">1 M<", ">4 M<"] {
            assert!(svg.contains(label), "{label} is missing in {svg}");
        }
    }

    #[test]
    fn everything_is_inside_the_picture() {
        let svg = svg(&plot());
        let numbers = |name: &str| -> Vec<f64> {
            let before = format!(" {name}=\"");
            let parts = svg.split(&before).skip(1);
            parts.map(|part| part.split('"').next().expect("a value").parse().expect("a number")).collect()
        };
        for (name, most) in
            [("x", WIDTH), ("cx", WIDTH), ("x2", WIDTH), ("y", HEIGHT), ("cy", HEIGHT), ("y1", HEIGHT)]
        {
            let values = numbers(name);
            assert!(!values.is_empty() && values.iter().all(|value| (0.0..=most).contains(value)), "{name}");
        }
    }

    #[test]
    fn steps_are_round_and_labels_short() {
        assert_eq!([0.9, 1.0, 1.1, 2.1, 660_000.0].map(round_step), [1.0, 1.0, 2.0, 5.0, 1e6]);
        let labels = [0.0, 1.0, 500.0, 1e3, 1.5e3, 1e4, 1e5, 5e5, 1e6, 2.5e6].map(amount);
        assert_eq!(
            labels,
            ["0", "1", "500", "1,000", "1,500", "10,000", "100,000", "500,000", "1 M", "2.5 M"]
        );
    }
}
