//! A document as one page of HTML that loads nothing and runs nothing. Pure.
//!
//! Everything that is not written here goes through [`Html`]. Should that ever not be enough, the page forbids the browser to run
//! scripts or to load anything (Content-Security-Policy).

use std::fmt::{self, Write as _};

use super::document::{Block, Document};
use crate::model::escaped::Shown;

/// Text as HTML has it, in an element or in a quoted attribute.
pub(super) struct Html<'a>(pub(super) &'a str);

impl fmt::Display for Html<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in Shown(self.0).to_string().chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Cells of no more characters stay on one line.
const WHOLE_MAX: usize = 26;

const STYLE: &str = "\
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f5f7; color: #1c2430; font: 15px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; }
header { background: #1c2430; color: #fff; padding: 28px 0 24px; }
header > div, main { max-width: 1160px; margin: 0 auto; padding: 0 40px; }
h1 { margin: 0 0 6px; font-size: 26px; font-weight: 650; overflow-wrap: anywhere; }
header p { margin: 0; color: #b9c2cf; }
.verdict { display: inline-block; margin-left: 12px; padding: 2px 12px; border-radius: 999px; font-size: 15px; vertical-align: 4px; background: #5b6675; }
.contained { background: #1a7f4b; } .partial { background: #b26a00; } .open, .unknown { background: #b3261e; }
section { background: #fff; border: 1px solid #dfe3e8; border-radius: 8px; margin: 22px 0; padding: 18px 24px 20px; }
h2 { margin: 0 0 12px; font-size: 18px; }
p { margin: 8px 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 24px; margin: 0; }
dt { color: #5b6675; } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; margin: 8px 0; font-size: 13.5px; }
th { text-align: left; font-weight: 600; color: #5b6675; border-bottom: 2px solid #dfe3e8; padding: 4px 14px 4px 0; white-space: nowrap; }
td { border-bottom: 1px solid #eceff2; padding: 5px 14px 5px 0; vertical-align: top; overflow-wrap: anywhere; }
td.whole { white-space: nowrap; }
tr { break-inside: avoid; }
svg { width: 100%; height: auto; display: block; }
svg text { font: 13px system-ui, 'DejaVu Sans', sans-serif; fill: #1c2430; }
svg .address { font-weight: 600; } svg .known, svg .more { fill: #5b6675; font-size: 12px; }
svg path { fill: none; stroke-width: 1.6; } svg path.tried { stroke: #b3261e; stroke-dasharray: 5 4; } svg path.connected { stroke: #1f5fbf; stroke-width: 2.4; }
svg circle.tried { fill: #b3261e; } svg circle.connected { fill: #1f5fbf; }
svg .pod { fill: #1c2430; } svg .podname { fill: #fff; font-weight: 600; } svg .cut { fill: #ffb4ab; font-size: 12px; }
.legend { color: #5b6675; font-size: 13px; } .legend b { font-weight: 600; } .legend .a { color: #1f5fbf; } .legend .b { color: #b3261e; }
@media print { body { background: #fff; } section { border: 0; padding: 0; } header { background: #fff; color: #1c2430; } header p { color: #5b6675; } }
";

/// The page.
#[must_use]
pub fn to_html(document: &Document) -> String {
    let mut page = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.push_str(
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n",
    );
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    let title = Html(&document.title);
    let _ = write!(page, "<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header><div>\n");
    let verdict = Html(&document.verdict);
    let _ = writeln!(page, "<h1>{title}<span class=\"verdict {verdict}\">{verdict}</span></h1>");
    let _ = write!(page, "<p>{}</p>\n</div></header>\n<main>\n", Html(&document.subtitle));
    for section in &document.sections {
        let _ = writeln!(page, "<section>\n<h2>{}</h2>", Html(section.title));
        section.blocks.iter().for_each(|block| write_block(&mut page, block));
        page.push_str("</section>\n");
    }
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn write_block(page: &mut String, block: &Block) {
    match block {
        Block::Text(text) => drop(writeln!(page, "<p>{}</p>", Html(text))),
        Block::Facts(facts) => {
            page.push_str("<dl>\n");
            for (name, value) in facts {
                let _ = writeln!(page, "<dt>{}</dt><dd>{}</dd>", Html(name), Html(value));
            }
            page.push_str("</dl>\n");
        }
        Block::Table { head, rows } => {
            page.push_str("<table>\n<thead><tr>");
            for cell in *head {
                let _ = write!(page, "<th>{}</th>", Html(cell));
            }
            page.push_str("</tr></thead>\n<tbody>\n");
            for row in rows {
                page.push_str("<tr>");
                for cell in row {
                    // What is short is not broken, so that what is long is.
                    let class = if cell.chars().count() <= WHOLE_MAX { " class=\"whole\"" } else { "" };
                    let _ = write!(page, "<td{class}>{}</td>", Html(cell));
                }
                page.push_str("</tr>\n");
            }
            page.push_str("</tbody>\n</table>\n");
        }
        Block::Diagram(diagram) => {
            page.push_str(&diagram.to_svg());
            page.push_str(
                "<p class=\"legend\"><b class=\"a\">Solid</b>: a connection that was established when the pod was cut off. \
                 <b class=\"b\">Dashed</b>: tried since, and dropped. Left: who tried to reach the pod.</p>\n",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::document::Section;
    use super::*;

    #[test]
    fn nothing_that_was_written_by_others_is_markup() {
        let bad = "</td><script>alert(1)</script><img src=x onerror='a' title=\"b\">&\u{202e}\n";
        let blocks = vec![
            Block::Text(bad.to_owned()),
            Block::Facts(vec![("Reason", bad.to_owned())]),
            Block::Table { head: &["A"], rows: vec![vec![bad.to_owned()]] },
        ];
        let document = Document {
            title: bad.to_owned(),
            verdict: "contained".to_owned(),
            subtitle: bad.to_owned(),
            sections: vec![Section { title: "S", blocks }],
        };
        let page = to_html(&document);
        assert!(!page.contains("<script") && !page.contains("<img") && !page.contains('\u{202e}'), "{page}");
        let escaped = "&lt;/td&gt;&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=&#39;a&#39; \
                       title=&quot;b&quot;&gt;&amp;\\u{202e}\\u{a}";
        assert_eq!(page.matches(escaped).count(), 6, "{page}");
    }
}
