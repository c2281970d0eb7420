//! Draws the documents' diagrams: SVG from a few lines of text, readable on a light and on a dark page.
//!
//! | line | what it draws |
//! |---|---|
//! | `lanes A \| B \| C` | a sequence diagram's participants; each line below is one step |
//! | `A -> B : text` | a message |
//! | `A ~> B : text` | a pushed message, without an answer |
//! | `note A : text` | what happens at one participant |
//! | `row A: text \| B: text` | a row of boxes, each with its name and what it is |
//! | `bars TITLE : TABLE : A \| label = B` | a bar for each figure that the rows A and B of a table of `docs/performance.md` have |

use std::fmt::Write;

const WIDTH: usize = 860;
const MARGIN: usize = 16;
const STEP: usize = 40;
/// The average width of a letter. Boxes are wider than their text.
const LETTER: usize = 7;
/// A chart's bars: the width of their labels, where they begin, and the length of the longest one.
const LABELS: usize = 310;
const BARS_FROM: f64 = 310.0;
const LONGEST_BAR: f64 = 430.0;
const BAR_STEP: usize = 24;

const STYLE: &str = "<style>text{font:13px system-ui,sans-serif;fill:#1f2328}.name{font-weight:600}\
.box{fill:#eef2f7;stroke:#8c959f}.line{stroke:#8c959f}.call{stroke:#0969da;fill:none}.push{stroke:#1a7f37;fill:none;\
stroke-dasharray:6 4}.note{fill:#fff8c5;stroke:#bf8700}.head-call{fill:#0969da}.head-push{fill:#1a7f37}.ours{fill:#0969da}.peer{fill:#afb8c1}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.box{fill:#21262d;stroke:#8b949e}.line{stroke:#8b949e}\
.call{stroke:#4493f8}.push{stroke:#3fb950}.note{fill:#3b2e00;stroke:#d29922}.head-call{fill:#4493f8}.head-push{fill:#3fb950}.ours{fill:#4493f8}.peer{fill:#656c76}}</style>";

/// The SVG of `text`. Its bars are as long as `tables` says, which is Markdown.
///
/// # Errors
///
/// The line that can't be read.
pub fn svg(text: &str, tables: &str) -> Result<String, String> {
    let mut drawing = Drawing {
        tables,
        ..Drawing::default()
    };
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        drawing.add(line).ok_or_else(|| {
            format!(
                "no such thing can be drawn, no table has such a row, or a text is too long: {line:?}"
            )
        })?;
    }
    Ok(drawing.finish())
}

#[derive(Default)]
struct Drawing<'a> {
    tables: &'a str,
    body: String,
    height: usize,
    lanes: Vec<String>,
    /// From where the participants' lines go down.
    lanes_from: usize,
}

impl Drawing<'_> {
    fn add(&mut self, line: &str) -> Option<()> {
        if let Some(lanes) = line.strip_prefix("lanes ") {
            self.lanes(lanes);
            return Some(());
        }
        if let Some(row) = line.strip_prefix("row ") {
            return self.row(row);
        }
        if let Some(note) = line.strip_prefix("note ") {
            return self.note(note);
        }
        if let Some(bars) = line.strip_prefix("bars ") {
            return self.bars(bars);
        }
        let (ends, text) = line.split_once(" : ")?;
        match (ends.split_once(" -> "), ends.split_once(" ~> ")) {
            (Some((from, to)), _) => self.message(from, to, text, "call"),
            (_, Some((from, to))) => self.message(from, to, text, "push"),
            _ => None,
        }
    }

    fn lanes(&mut self, lanes: &str) {
        self.lanes = lanes.split(" | ").map(str::to_owned).collect();
        for number in 0..self.lanes.len() {
            let center = self.center(number);
            let name = escape(&self.lanes[number]);
            let width = (name.len() * LETTER + 28).max(90);
            let left = center - width / 2;
            self.draw(&format!(
                "<rect class=\"box\" x=\"{left}\" y=\"{MARGIN}\" width=\"{width}\" height=\"30\" rx=\"5\"/>\
                 <text class=\"name\" x=\"{center}\" y=\"36\" text-anchor=\"middle\">{name}</text>"
            ));
        }
        self.height = 64;
        self.lanes_from = 46;
    }

    fn center(&self, lane: usize) -> usize {
        WIDTH * (2 * lane + 1) / (2 * self.lanes.len())
    }

    fn lane(&self, name: &str) -> Option<usize> {
        let number = self.lanes.iter().position(|lane| lane == name)?;
        Some(self.center(number))
    }

    fn message(&mut self, from: &str, to: &str, text: &str, class: &str) -> Option<()> {
        let (from, to) = (self.lane(from)?, self.lane(to)?);
        let y = self.height + 22;
        let (tip, wing) = if to > from {
            (to - 2, to - 10)
        } else {
            (to + 2, to + 10)
        };
        if text.len() * LETTER > from.abs_diff(to) + 20 {
            return None;
        }
        let middle = usize::midpoint(from, to);
        let (up, down, label) = (y - 4, y + 4, y - 7);
        let text = escape(text);
        self.draw(&format!(
            "<line class=\"{class}\" x1=\"{from}\" y1=\"{y}\" x2=\"{wing}\" y2=\"{y}\"/>\
             <path class=\"head-{class}\" d=\"M{tip} {y}L{wing} {up}L{wing} {down}z\"/>\
             <text x=\"{middle}\" y=\"{label}\" text-anchor=\"middle\">{text}</text>"
        ));
        self.height += STEP;
        Some(())
    }

    fn note(&mut self, note: &str) -> Option<()> {
        let (at, text) = note.split_once(" : ")?;
        let center = self.lane(at)?;
        let width = text.len() * LETTER + 16;
        let left = (center.saturating_sub(width / 2))
            .clamp(MARGIN, WIDTH - MARGIN - width.min(WIDTH - 2 * MARGIN));
        let (top, middle, base) = (self.height, left + width / 2, self.height + 18);
        let text = escape(text);
        self.draw(&format!(
            "<rect class=\"note\" x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"26\" rx=\"4\"/>\
             <text x=\"{middle}\" y=\"{base}\" text-anchor=\"middle\">{text}</text>"
        ));
        self.height += STEP;
        Some(())
    }

    fn row(&mut self, row: &str) -> Option<()> {
        let boxes: Vec<_> = row
            .split(" | ")
            .map(|one| one.split_once(": "))
            .collect::<Option<_>>()?;
        let top = self.height + MARGIN;
        let width = (WIDTH - MARGIN) / boxes.len() - MARGIN;
        let lines = boxes
            .iter()
            .map(|(_, text)| wrap(text, width / LETTER).len());
        let height = 34 + 17 * lines.max()?;
        for (number, (name, text)) in boxes.iter().enumerate() {
            let left = MARGIN + number * (width + MARGIN);
            let middle = left + width / 2;
            let (title, name) = (top + 22, escape(name));
            self.draw(&format!(
                "<rect class=\"box\" x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" rx=\"5\"/>\
                 <text class=\"name\" x=\"{middle}\" y=\"{title}\" text-anchor=\"middle\">{name}</text>"
            ));
            for (number, line) in wrap(text, width / LETTER).iter().enumerate() {
                let (y, line) = (top + 40 + 17 * number, escape(line));
                self.draw(&format!(
                    "<text x=\"{middle}\" y=\"{y}\" text-anchor=\"middle\">{line}</text>"
                ));
            }
        }
        self.height = top + height;
        Some(())
    }

    fn bars(&mut self, bars: &str) -> Option<()> {
        let (title, bars) = bars.split_once(" : ")?;
        let (table, rows) = bars.split_once(" : ")?;
        let bars: Vec<_> = rows
            .split(" | ")
            .map(|row| {
                let (label, row) = row.split_once(" = ").unwrap_or((row, row));
                let figure = figure(self.tables, table, row)?;
                Some((label, figure, number(figure)?))
            })
            .collect::<Option<_>>()?;
        let largest = bars.iter().map(|bar| bar.2).fold(0.0, f64::max);
        let (left, title_at) = (MARGIN, self.height + 32);
        let title = escape(title);
        self.draw(&format!(
            "<text class=\"name\" x=\"{left}\" y=\"{title_at}\">{title}</text>"
        ));
        self.height += 42;
        for (label, figure, number) in bars {
            if label.len() * LETTER > LABELS {
                return None;
            }
            let class = match label {
                ours if ours.starts_with("portalock") => "ours",
                floor if floor.starts_with("floor") => "box",
                _ => "peer",
            };
            let width = (LONGEST_BAR * number / largest).max(2.0);
            let (top, base) = (self.height + 3, self.height + 16);
            let (labels_to, figure_at) = (BARS_FROM - 8.0, BARS_FROM + width + 8.0);
            let (label, figure) = (escape(label), escape(figure));
            self.draw(&format!(
                "<text x=\"{labels_to}\" y=\"{base}\" text-anchor=\"end\">{label}</text>\
                 <rect class=\"{class}\" x=\"{BARS_FROM}\" y=\"{top}\" width=\"{width:.0}\" height=\"18\" rx=\"2\"/>\
                 <text x=\"{figure_at:.0}\" y=\"{base}\">{figure}</text>"
            ));
            self.height += BAR_STEP;
        }
        Some(())
    }

    fn draw(&mut self, element: &str) {
        self.body.push_str(element);
        self.body.push('\n');
    }

    fn finish(self) -> String {
        let height = self.height + MARGIN;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\">\n{STYLE}\n"
        );
        for number in 0..self.lanes.len() {
            let x = self.center(number);
            // Writing to a string can't fail.
            let _ = writeln!(
                svg,
                "<line class=\"line\" x1=\"{x}\" y1=\"{}\" x2=\"{x}\" y2=\"{}\"/>",
                self.lanes_from, self.height
            );
        }
        svg + &self.body + "</svg>\n"
    }
}

fn wrap(text: &str, letters: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= letters => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// What the row says first, in the table below the heading.
fn figure<'a>(tables: &'a str, heading: &str, row: &str) -> Option<&'a str> {
    let heading = format!("\n### {heading}\n");
    let (_, below) = tables.split_once(&heading)?;
    below
        .lines()
        .take_while(|line| !line.starts_with('#'))
        .find_map(|line| {
            let (figure, _) = line
                .strip_prefix(&format!("| {row} | "))?
                .split_once(" |")?;
            Some(figure)
        })
}

/// The number that a figure begins with.
fn number(figure: &str) -> Option<f64> {
    let number = figure
        .split(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .next()?;
    number.parse().ok()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
