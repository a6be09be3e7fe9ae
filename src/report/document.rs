//! What a report says, before it is a page. Pure.

use super::diagram::Diagram;

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its heading.
    pub title: String,
    /// The verdict in one word, which colours the page.
    pub verdict: String,
    /// Below the heading.
    pub subtitle: String,
    /// Its parts.
    pub sections: Vec<Section>,
}

/// A part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its heading.
    pub title: &'static str,
    /// What is in it.
    pub blocks: Vec<Block>,
}

/// One thing on the page. All text in it may be anybody's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block {
    /// A sentence.
    Text(String),
    /// Names and values.
    Facts(Vec<(&'static str, String)>),
    /// A table.
    Table {
        /// The heads of its columns.
        head: &'static [&'static str],
        /// Its rows.
        rows: Vec<Vec<String>>,
    },
    /// Who talked to whom.
    Diagram(Diagram),
}

impl Block {
    /// A table of the first `most` rows, and a sentence where there are more; another one in place of an empty table.
    #[must_use]
    pub fn table(head: &'static [&'static str], mut rows: Vec<Vec<String>>, most: usize, nothing: &str) -> Vec<Self> {
        if rows.is_empty() {
            return vec![Self::Text(nothing.to_owned())];
        }
        let more = rows.len().saturating_sub(most);
        rows.truncate(most);
        let mut blocks = vec![Self::Table { head, rows }];
        if more > 0 {
            blocks.push(Self::Text(format!("And {more} more, which are in the files.")));
        }
        blocks
    }
}
