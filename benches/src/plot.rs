//! Plots as SVG, with both axes logarithmic: a straight level line is a cost that does not grow.

use std::{fmt::Write as _, fs, io, path::Path};

/// A line with its name: points (x, y), both above 0.
pub type Series = (String, Vec<(f64, f64)>);

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 36.0;
const BOTTOM: f64 = 48.0;
/// Told apart by those who don't see all colours, too (Okabe and Ito).
const COLOURS: [&str; 6] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9",
];

/// Whole decades around the values.
fn decades(values: impl Iterator<Item = f64> + Clone) -> (i32, i32) {
    let low = values.clone().fold(f64::INFINITY, f64::min).log10().floor();
    let high = values.fold(0.0, f64::max).log10().ceil();
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a logarithm of a measured value"
    )]
    let (low, high) = (low as i32, high as i32);
    (low, high.max(low + 1))
}

/// Writes a plot to a file.
///
/// # Errors
///
/// If the file can't be written.
pub fn write(path: &Path, title: &str, x: &str, y: &str, series: &[Series]) -> io::Result<()> {
    fs::write(path, svg(title, x, y, series))
}

fn svg(title: &str, x: &str, y: &str, series: &[Series]) -> String {
    let points = || series.iter().flat_map(|(_, points)| points);
    let (x_low, x_high) = decades(points().map(|point| point.0));
    let (y_low, y_high) = decades(points().map(|point| point.1));
    let place = |value: f64, (low, high): (i32, i32)| {
        (value.log10() - f64::from(low)) / f64::from(high - low)
    };
    let across = |value: f64| LEFT + place(value, (x_low, x_high)) * (WIDTH - LEFT - RIGHT);
    let up = |value: f64| HEIGHT - BOTTOM - place(value, (y_low, y_high)) * (HEIGHT - TOP - BOTTOM);

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{}</text>\n",
        escaped(title)
    );
    // Writing to a String can't fail.
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    for decade in x_low..=x_high {
        let (value, bottom) = (10_f64.powi(decade), HEIGHT - BOTTOM);
        let at = across(value);
        line(format!(
            "<path d=\"M{at:.1} {TOP}V{bottom}\" stroke=\"#ddd\"/>"
        ));
        line(format!(
            "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{value}</text>",
            bottom + 16.0
        ));
    }
    for decade in y_low..=y_high {
        let (value, right) = (10_f64.powi(decade), WIDTH - RIGHT);
        let at = up(value);
        line(format!(
            "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#ddd\"/>"
        ));
        line(format!(
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            LEFT - 6.0,
            at + 4.0
        ));
    }
    line(format!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 12.0,
        escaped(x)
    ));
    line(format!(
        "<text transform=\"translate(16 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        (TOP + HEIGHT - BOTTOM) / 2.0,
        escaped(y)
    ));
    for ((name, points), (index, colour)) in series.iter().zip(COLOURS.iter().cycle().enumerate()) {
        let path: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{:.1} {:.1}", across(*x), up(*y)))
            .collect();
        line(format!(
            "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join("L")
        ));
        for (x, y) in points {
            line(format!(
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
                across(*x),
                up(*y)
            ));
        }
        #[expect(clippy::cast_precision_loss, reason = "a handful of series")]
        let y = TOP + 12.0 + 18.0 * index as f64;
        let x = WIDTH - RIGHT + 12.0;
        line(format!(
            "<circle cx=\"{x}\" cy=\"{}\" r=\"4\" fill=\"{colour}\"/>",
            y - 4.0
        ));
        line(format!(
            "<text x=\"{}\" y=\"{y}\">{}</text>",
            x + 10.0,
            escaped(name)
        ));
    }
    out.push_str("</svg>\n");
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_lies_within_the_axes() {
        let series = [("a<b".to_owned(), vec![(10.0, 0.5), (1000.0, 20.0)])];
        let svg = svg("title", "x", "y", &series);
        assert!(svg.contains("a&lt;b"));
        assert!(svg.contains(&format!("<circle cx=\"{LEFT:.1}\"")));
        assert!(svg.contains(&format!("<circle cx=\"{:.1}\"", WIDTH - RIGHT)));
    }
}
