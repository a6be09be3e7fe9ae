//! A document as Markdown. Pure. Every character that means something in it is escaped, in all that anybody else wrote.

use std::fmt::{self, Write as _};

use super::document::{Block, Document};
use crate::model::escaped::Shown;

struct Markdown<'a>(&'a str);

impl fmt::Display for Markdown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A name that begins so becomes a link where nobody has written one.
        let text = Shown(self.0).to_string().replace("www.", "www\\.").replace("://", "\\://");
        let mut characters = text.chars().peekable();
        while let Some(c) = characters.next() {
            match c {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                // One of the two above.
                '\\' if matches!(characters.peek(), Some('.' | ':')) => f.write_char('\\')?,
                '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '#' | '!' | '$' | '@' => write!(f, "\\{c}")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// The text.
#[must_use]
pub fn to_markdown(document: &Document) -> String {
    let mut text = format!(
        "# {}: {}\n\n{}\n",
        Markdown(&document.title),
        Markdown(&document.verdict),
        Markdown(&document.subtitle)
    );
    for section in &document.sections {
        let _ = write!(text, "\n## {}\n", section.title);
        section.blocks.iter().for_each(|block| write_block(&mut text, block));
    }
    text
}

fn write_block(text: &mut String, block: &Block) {
    match block {
        Block::Text(sentence) => drop(write!(text, "\n{}\n", Markdown(sentence))),
        Block::Facts(facts) => {
            text.push('\n');
            for (name, value) in facts {
                let _ = writeln!(text, "- **{}**: {}", Markdown(name), Markdown(value));
            }
        }
        Block::Table { head, rows } => {
            let _ = write!(text, "\n| {} |\n|{}\n", head.join(" | "), " --- |".repeat(head.len()));
            for row in rows {
                let cells: Vec<_> = row.iter().map(|cell| Markdown(cell).to_string()).collect();
                let _ = writeln!(text, "| {} |", cells.join(" | "));
            }
        }
        Block::Diagram(diagram) => {
            text.push('\n');
            for end in &diagram.ends {
                let arrow = if end.is_inward { "←" } else { "→" };
                let how = if end.was_connected { "was connected" } else { "tried" };
                let _ = writeln!(
                    text,
                    "- {} {arrow} {} ({how}, {} packets): {}",
                    Markdown(&diagram.pod),
                    end.address,
                    end.packets,
                    Markdown(&end.lines.join(", "))
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_was_written_by_others_is_markup() {
        for (text, shown) in [
            ("a|b `c` *d* _e_ [f](g)", "a\\|b \\`c\\` \\*d\\* \\_e\\_ \\[f\\](g)"),
            ("<script>&\n# x", "&lt;script&gt;&amp;\\\\u{a}\\# x"),
            ("http://www.evil.example x@y", "http\\://www\\.evil.example x\\@y"),
            ("\\.x", "\\.x"),
        ] {
            assert_eq!(Markdown(text).to_string(), shown);
        }
    }
}
