//! Draws the documents' diagrams: SVG from a few lines of text, readable on a light and on a dark page.
//!
//! | line | what it draws |
//! |---|---|
//! | `lanes A \| B \| C` | a sequence diagram's participants; each line below is one step |
//! | `A -> B : text` | a message |
//! | `A ~> B : text` | a pushed message, without an answer |
//! | `note A : text` | what happens at one participant |
//! | `row A: text \| B: text` | a row of boxes, each with its name and what it is |
//! | `bars TITLE : A = 12/s \| B = 3/s` | a bar for each figure; the longest has the largest number, and words have no bar |

use std::fmt::Write;

const WIDTH: usize = 860;
const MARGIN: usize = 16;
const STEP: usize = 40;
/// The average width of a letter. Boxes are wider than their text.
const LETTER: usize = 7;
/// A chart's bars: where they begin, and the length of the longest one.
const BARS_FROM: usize = 310;
const LONGEST_BAR: usize = 430;
const BAR_STEP: usize = 24;

const STYLE: &str = "<style>text{font:13px system-ui,sans-serif;fill:#1f2328}.name{font-weight:600}\
.box{fill:#eef2f7;stroke:#8c959f}.line{stroke:#8c959f}.call{stroke:#0969da;fill:none}.push{stroke:#1a7f37;fill:none;\
stroke-dasharray:6 4}.note{fill:#fff8c5;stroke:#bf8700}.head-call{fill:#0969da}.head-push{fill:#1a7f37}.ours{fill:#0969da}.peer{fill:#afb8c1}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.box{fill:#21262d;stroke:#8b949e}.line{stroke:#8b949e}\
.call{stroke:#4493f8}.push{stroke:#3fb950}.note{fill:#3b2e00;stroke:#d29922}.head-call{fill:#4493f8}.head-push{fill:#3fb950}.ours{fill:#4493f8}.peer{fill:#656c76}}</style>";

/// The SVG of `text`.
///
/// # Errors
///
/// The line that can't be read.
pub fn svg(text: &str) -> Result<String, String> {
    let mut drawing = Drawing::default();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        drawing.add(line).ok_or_else(|| {
            format!("no such thing can be drawn, or its text is too long: {line:?}")
        })?;
    }
    Ok(drawing.finish())
}

#[derive(Default)]
struct Drawing {
    body: String,
    height: usize,
    lanes: Vec<String>,
    /// From where the participants' lines go down.
    lanes_from: usize,
}

impl Drawing {
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
        let bars: Vec<_> = bars
            .split(" | ")
            .map(|bar| bar.split_once(" = "))
            .collect::<Option<_>>()?;
        let largest = bars.iter().filter_map(|(_, figure)| number(figure)).max()?;
        let (left, title_at) = (MARGIN, self.height + 32);
        let title = escape(title);
        self.draw(&format!(
            "<text class=\"name\" x=\"{left}\" y=\"{title_at}\">{title}</text>"
        ));
        self.height += 42;
        for (name, figure) in bars {
            let class = if name.starts_with("portalock") {
                "ours"
            } else {
                "peer"
            };
            let width = number(figure).map_or(0, |number| (LONGEST_BAR * number / largest).max(2));
            let (top, base) = (self.height + 3, self.height + 16);
            let (names_to, figure_at) = (BARS_FROM - 8, BARS_FROM + width + 8);
            let (name, figure) = (escape(name), escape(figure));
            self.draw(&format!(
                "<text x=\"{names_to}\" y=\"{base}\" text-anchor=\"end\">{name}</text>\
                 <rect class=\"{class}\" x=\"{BARS_FROM}\" y=\"{top}\" width=\"{width}\" height=\"18\" rx=\"2\"/>\
                 <text x=\"{figure_at}\" y=\"{base}\">{figure}</text>"
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

/// The number that a figure begins with, without what follows its decimal point.
fn number(figure: &str) -> Option<usize> {
    let digits = figure
        .split(|letter: char| !letter.is_ascii_digit())
        .next()?;
    digits.parse().ok()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
