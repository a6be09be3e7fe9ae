//! A report for people: who was isolated, by whom and why, what was cut, what the pod tried, and what ran in it; one page that
//! stands by itself.
//!
//! [`mod@gather`] asks the state directory and the kernel; all else is pure: what was found becomes a [`document::Document`] ([`mod@compose`]),
//! and that a page of HTML or Markdown, which are the only two places where text becomes markup, and escape all of it.

mod compose;
mod diagram;
mod document;
mod gather;
mod history;
mod html;
mod markdown;

#[cfg(any(test, fuzzing))]
pub use history::try_any;

pub use compose::compose;
pub use gather::{GatherError, gather};
pub use html::to_html;
pub use markdown::to_markdown;
