//! Who talked to whom, as a drawing: the pod in the middle, those who tried to reach it on the left, those that it is connected to
//! or tried on the right. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use super::html::Html;

/// The most ends on a side.
const SHOWN: usize = 14;
/// The most characters of a line beside an end.
const LINE_MAX: usize = 58;
const WIDTH: usize = 1080;
const ROW: usize = 64;

/// The pod and its ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagram {
    /// What the pod is called.
    pub pod: String,
    /// Those that it talked to, and those that talked to it.
    pub ends: Vec<End>,
}

/// Somebody at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Who.
    pub address: IpAddr,
    /// Whether that one tried to reach the pod, and not the pod that one.
    pub is_inward: bool,
    /// Whether a connection was established when the pod was cut off.
    pub was_connected: bool,
    /// How many packets were counted or kept.
    pub packets: u64,
    /// What else is known: protocols and ports, names, processes.
    pub lines: Vec<String>,
}

impl Diagram {
    /// One with an end for each address and direction.
    #[must_use]
    pub fn new(pod: String, ends: impl IntoIterator<Item = End>) -> Self {
        let mut merged: BTreeMap<(bool, IpAddr), End> = BTreeMap::new();
        for end in ends {
            let known =
                merged.entry((end.is_inward, end.address)).or_insert_with(|| End { lines: Vec::new(), ..end.clone() });
            known.was_connected |= end.was_connected;
            known.packets = known.packets.max(end.packets);
            for line in end.lines {
                if !known.lines.contains(&line) {
                    known.lines.push(line);
                }
            }
        }
        let mut ends: Vec<_> = merged.into_values().collect();
        ends.sort_by_key(|end| (!end.was_connected, std::cmp::Reverse(end.packets)));
        Self { pod, ends }
    }

    /// The drawing, as an SVG element.
    #[must_use]
    pub fn to_svg(&self) -> String {
        let side = |is_inward| self.ends.iter().filter(move |end| end.is_inward == is_inward);
        let (inward, outward) = (side(true).count(), side(false).count());
        let rows = inward.max(outward).min(SHOWN) + usize::from(inward.max(outward) > SHOWN);
        let height = (rows * ROW).max(160) + 40;
        let middle = height / 2;
        // With nobody on the left, the pod stands there.
        let centre = if inward == 0 { 130 } else { WIDTH / 2 };
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Who talked to whom\" xmlns=\"http://www.w3.org/2000/svg\">\n"
        );
        for is_inward in [true, false] {
            let ends: Vec<_> = side(is_inward).collect();
            let shown = ends.len().min(SHOWN);
            let more = ends.len() - shown;
            let top = middle - (shown + usize::from(more > 0)) * ROW / 2;
            for (row, end) in ends[..shown].iter().enumerate() {
                draw(&mut svg, end, centre, middle, top + row * ROW + ROW / 2);
            }
            if more > 0 {
                let (x, anchor) = if is_inward { (20, "start") } else { (WIDTH - 20, "end") };
                let y = top + shown * ROW + ROW / 2;
                let _ = writeln!(
                    svg,
                    "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" class=\"more\">and {more} more</text>"
                );
            }
        }
        let (left, up) = (centre - 105, middle - 34);
        let _ = write!(
            svg,
            "<rect x=\"{left}\" y=\"{up}\" width=\"210\" height=\"68\" rx=\"8\" class=\"pod\"/>\n\
             <text x=\"{centre}\" y=\"{}\" text-anchor=\"middle\" class=\"podname\">{}</text>\n\
             <text x=\"{centre}\" y=\"{}\" text-anchor=\"middle\" class=\"cut\">cut off</text>\n</svg>\n",
            middle - 4,
            Html(&cut(&self.pod, 26)),
            middle + 18
        );
        svg
    }
}

fn draw(svg: &mut String, end: &End, centre: usize, middle: usize, y: usize) {
    let half = 105;
    let (from, to, text, anchor) = if end.is_inward {
        (centre - half, 330, 320, "end")
    } else if centre < WIDTH / 2 {
        (centre + half, 520, 530, "start")
    } else {
        (centre + half, WIDTH - 330, WIDTH - 320, "start")
    };
    let class = if end.was_connected { "connected" } else { "tried" };
    let bend = from.midpoint(to);
    let _ = writeln!(svg, "<path d=\"M{from} {middle} C{bend} {middle} {bend} {y} {to} {y}\" class=\"{class}\"/>");
    let _ = writeln!(svg, "<circle cx=\"{to}\" cy=\"{y}\" r=\"5\" class=\"{class}\"/>");
    let packets = match end.packets {
        0 => String::new(),
        1 => " · 1 packet".to_owned(),
        packets => format!(" · {packets} packets"),
    };
    let _ = writeln!(
        svg,
        "<text x=\"{text}\" y=\"{}\" text-anchor=\"{anchor}\" class=\"address\">{}{packets}</text>",
        y - 6,
        end.address
    );
    let room = if anchor == "start" && text > WIDTH / 2 + 100 || end.is_inward { 44 } else { LINE_MAX + 26 };
    // Two lines of what is known.
    let mut lines = [String::new(), String::new()];
    for part in &end.lines {
        let at = usize::from(lines[0].chars().count() + part.chars().count() > room);
        if !lines[at].is_empty() {
            lines[at].push_str(" · ");
        }
        lines[at].push_str(part);
    }
    for (line, text_line) in lines.iter().filter(|line| !line.is_empty()).enumerate() {
        let _ = writeln!(
            svg,
            "<text x=\"{text}\" y=\"{}\" text-anchor=\"{anchor}\" class=\"known\">{}</text>",
            y + 10 + line * 14,
            Html(&cut(text_line, room))
        );
    }
}

/// No more than so many characters.
fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(last: u8, is_inward: bool) -> End {
        End {
            address: IpAddr::from([10, 0, 0, last]),
            is_inward,
            was_connected: false,
            packets: u64::from(last),
            lines: vec!["<script>".to_owned()],
        }
    }

    #[test]
    fn an_end_is_drawn_once_and_what_is_known_of_it_is_together() {
        let connected = End { was_connected: true, lines: vec!["tcp 443".to_owned()], ..end(7, false) };
        let diagram = Diagram::new("a/b".to_owned(), [end(9, false), end(7, false), connected, end(7, true)]);
        assert_eq!(diagram.ends.len(), 3);
        assert_eq!(diagram.ends[0].lines, ["<script>", "tcp 443"]);
        let svg = diagram.to_svg();
        assert!(!svg.contains("<script>") && svg.contains("&lt;script&gt;"), "{svg}");
    }

    #[test]
    fn a_crowd_is_cut_short() {
        let svg = Diagram::new("a/b".to_owned(), (0..100).map(|last| end(last, last % 2 == 0))).to_svg();
        assert_eq!(svg.matches("and 36 more").count(), 2, "{svg}");
        assert!(svg.len() < 20_000, "{}", svg.len());
    }
}
