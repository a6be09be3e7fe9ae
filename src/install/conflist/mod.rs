//! The text of a CNI network configuration, and how a plugin entry gets into its chain and out of it again.
//!
//! Pure: text in, text out. A conflist belongs to someone else, so it is never parsed and written anew: the entry is
//! inserted into the text as it stands, in the layout of its neighbours, and taken out of it so that what was there
//! before is there again, byte for byte. `serde_json` decides what is valid; the scanner in here only finds where in
//! the valid text a value begins and ends, which `serde_json` does not tell.

use std::ops::Range;

use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Map, Value};

use crate::plugin::cni::VERSIONS;

/// The plugin's name in a chain, which is its file name in the CNI bin directory.
pub const PLUGIN: &str = "quarantine";

/// Why a text is not a network configuration that may be edited.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConflistError {
    /// A byte order mark, which the runtimes' JSON parser refuses.
    #[error("begins with a byte order mark, which no runtime accepts; remove it")]
    ByteOrderMark,
    /// Not JSON (a comment, a trailing comma, a file cut short, …).
    #[error("is not JSON: {0}; repair it first")]
    NotJson(String),
    /// The whole is not an object.
    #[error("is JSON, but not an object")]
    NotAnObject,
    /// A key that decides is there twice: parsers differ in which one they take.
    #[error("has the key \"{0}\" twice; leave one of them")]
    DuplicateKey(String),
    /// A key is missing, or its value is of another type.
    #[error("has no {0}")]
    Missing(&'static str),
    /// No chain to append to.
    #[error("has an empty \"plugins\" array; there is no plugin to chain after")]
    EmptyChain,
    /// An element of the chain is no plugin.
    #[error("has an element {0} in \"plugins\" that is not an object with one \"type\"")]
    NotAPlugin(usize),
    /// A single-plugin file with a chain in it, or the other way round; the file's suffix decides how it is read.
    #[error("is named like {named}, but holds {holds}; the runtime would refuse it, so rename it")]
    Misnamed {
        /// What its name says.
        named: &'static str,
        /// What it is.
        holds: &'static str,
    },
    /// The version is one that this plugin does not speak, or chains can't be made of.
    #[error("says \"cniVersion\": \"{0}\"; this plugin can be chained with {versions}", versions = VERSIONS.join(", "))]
    Version(String),
    /// The network of `lo`, which no packet leaves.
    #[error("is the loopback network; name the pods' network with --conflist")]
    Loopback,
    /// More than one entry of ours.
    #[error("has {0} \"{PLUGIN}\" entries; leave at most one of them")]
    SeveralEntries(usize),
    /// An entry of ours that says something else than what was asked for.
    #[error(
        "already has the entry {found}, and {wanted} was asked for; run `quarantine uninstall` first, or edit the file"
    )]
    DifferentEntry {
        /// What is there, as compact JSON.
        found: String,
        /// What was asked for, as compact JSON.
        wanted: String,
    },
    /// Nothing would be left of the chain.
    #[error("has no plugin but \"{PLUGIN}\"; remove the file yourself")]
    NothingElse,
}

/// One plugin entry of ours, as it is appended to a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry(Map<String, Value>);

impl Entry {
    /// The entry with these settings besides its type.
    #[must_use]
    pub fn new(settings: impl IntoIterator<Item = (String, Value)>) -> Self {
        let mut entry = Map::from_iter([("type".to_owned(), Value::from(PLUGIN))]);
        entry.extend(settings);
        Self(entry)
    }

    /// The entry as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        Value::Object(self.0.clone())
    }

    fn compact(&self) -> String {
        self.to_json().to_string()
    }

    /// The entry over several lines, each begun by `margin` (which has the line break), nested by `indent`.
    fn pretty(&self, margin: &str, indent: &str) -> String {
        let mut bytes = Vec::new();
        let mut serializer = Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(indent.as_bytes()));
        match self.0.serialize(&mut serializer).map(|()| String::from_utf8(bytes)) {
            // A line break inside a string is escaped: those in the text are the layout's.
            Ok(Ok(text)) => text.replace('\n', margin),
            _ => self.compact(),
        }
    }
}

/// How a runtime reads a file, which its suffix decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A chain of plugins (`.conflist`).
    List,
    /// A single plugin (`.conf`, `.json`).
    Single,
}

/// A chain of plugins, as text.
#[derive(Debug, Clone)]
pub struct Conflist<'t> {
    text: &'t str,
    name: String,
    /// Whether plugins of a directory may be appended to the chain (CNI 1.1: unless `loadOnlyInlinedPlugins`).
    extensible: bool,
    /// Inside of the array's brackets.
    array: Range<usize>,
    plugins: Vec<Plugin>,
}

#[derive(Debug, Clone)]
struct Plugin {
    span: Range<usize>,
    kind: String,
    value: Value,
}

impl<'t> Conflist<'t> {
    /// Reads a chain and refuses whatever a runtime, or this program, could take for something else.
    ///
    /// # Errors
    /// With the reason, when the text is not a chain that may be edited.
    pub fn parse(text: &'t str) -> Result<Self, ConflistError> {
        let members = top_level(text)?;
        let find = |key: &str| unique(&members, key);
        if find("plugins")?.is_none() && find("type")?.is_some() {
            return Err(ConflistError::Misnamed { named: "a conflist", holds: "a single plugin" });
        }
        let name = name(text, find("name")?)?;
        versions(text, find("cniVersion")?, find("cniVersions")?)?;
        let extensible =
            find("loadOnlyInlinedPlugins")?.is_none_or(|span| value(text, &span) != Some(Value::Bool(true)));
        let span = find("plugins")?.ok_or(ConflistError::Missing("\"plugins\" array"))?;
        if !text[span.clone()].starts_with('[') {
            return Err(ConflistError::Missing("\"plugins\" array"));
        }
        let plugins = elements(text, span.start)
            .into_iter()
            .enumerate()
            .map(|(index, span)| Plugin::read(text, span).ok_or(ConflistError::NotAPlugin(index)))
            .collect::<Result<Vec<_>, _>>()?;
        match plugins.first() {
            None => return Err(ConflistError::EmptyChain),
            Some(first) if first.kind == "loopback" => return Err(ConflistError::Loopback),
            Some(_) => {}
        }
        match plugins.iter().filter(|plugin| plugin.kind == PLUGIN).count() {
            0 | 1 => {}
            more => return Err(ConflistError::SeveralEntries(more)),
        }
        Ok(Self { text, name, extensible, array: span.start + 1..span.end - 1, plugins })
    }

    /// The network's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a runtime may append plugins from a directory to this chain.
    #[must_use]
    pub fn extensible(&self) -> bool {
        self.extensible
    }

    /// The plugins' types, in the order of the chain.
    pub fn types(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().map(|plugin| plugin.kind.as_str())
    }

    /// The entry of ours that is in the chain.
    #[must_use]
    pub fn entry(&self) -> Option<&Value> {
        self.ours().map(|index| &self.plugins[index].value)
    }

    /// The types of the plugins that run after ours.
    #[must_use]
    pub fn after_ours(&self) -> Vec<&str> {
        self.ours().map_or_else(Vec::new, |index| self.types().skip(index + 1).collect())
    }

    /// The text with `entry` as the last of the chain; `None` where it is in the chain already.
    ///
    /// # Errors
    /// When an entry of ours is in the chain that says something else.
    pub fn with(&self, entry: &Entry) -> Result<Option<String>, ConflistError> {
        if let Some(found) = self.entry() {
            return match *found == entry.to_json() {
                true => Ok(None),
                false => Err(ConflistError::DifferentEntry { found: found.to_string(), wanted: entry.compact() }),
            };
        }
        let Some(last) = self.plugins.last() else { return Err(ConflistError::EmptyChain) };
        let gap = self.gap_before(last);
        let laid_out = match (line_break(gap), indent(&self.text[last.span.clone()], gap)) {
            (Some(margin), Some(indent)) if entry.0.len() > 1 => entry.pretty(margin, indent),
            _ => entry.compact(),
        };
        let (before, after) = self.text.split_at(last.span.end);
        Ok(Some(format!("{before},{gap}{laid_out}{after}")))
    }

    /// The text without our entry: the exact reverse of [`Conflist::with`]. `None` where it is not in the chain.
    ///
    /// # Errors
    /// When nothing would be left of the chain.
    pub fn without(&self) -> Result<Option<String>, ConflistError> {
        let Some(index) = self.ours() else { return Ok(None) };
        let ours = &self.plugins[index].span;
        let cut = match (index.checked_sub(1), self.plugins.get(index + 1)) {
            (Some(before), _) => self.plugins[before].span.end..ours.end,
            (None, Some(after)) => ours.start..after.span.start,
            (None, None) => return Err(ConflistError::NothingElse),
        };
        Ok(Some(format!("{}{}", &self.text[..cut.start], &self.text[cut.end..])))
    }

    fn ours(&self) -> Option<usize> {
        self.plugins.iter().position(|plugin| plugin.kind == PLUGIN)
    }

    /// The white space between `plugin` and the comma or bracket before it.
    fn gap_before(&self, plugin: &Plugin) -> &'t str {
        let before = &self.text[self.array.start..plugin.span.start];
        &before[before.trim_end_matches(WHITE).len()..]
    }
}

impl Plugin {
    fn read(text: &str, span: Range<usize>) -> Option<Self> {
        let value = value(text, &span)?;
        // Runtimes are written in Go, whose JSON parser takes "Type" for "type" too.
        let kinds = value.as_object()?.iter().filter(|(key, _)| key.eq_ignore_ascii_case("type"));
        let kinds: Vec<&str> = kinds.filter_map(|(_, kind)| kind.as_str()).collect();
        let kind = match kinds[..] {
            [kind] if !kind.is_empty() => kind.to_owned(),
            _ => return None,
        };
        let types = members(text, span.start).into_iter().filter(|member| member.key.eq_ignore_ascii_case("type"));
        (types.count() == 1).then_some(Self { span, kind, value })
    }
}

/// A chain that has the one plugin of a single-plugin file, whose text stands in it unchanged but for its margin.
///
/// # Errors
/// When the text is not a single plugin's that may be chained.
pub fn as_chain(text: &str) -> Result<String, ConflistError> {
    let members = top_level(text)?;
    let find = |key: &str| unique(&members, key);
    if find("plugins")?.is_some() {
        return Err(ConflistError::Misnamed { named: "a single plugin's configuration", holds: "a chain" });
    }
    let name = name(text, find("name")?)?;
    let Some(version) = find("cniVersion")? else { return Err(ConflistError::Missing("\"cniVersion\"")) };
    versions(text, Some(version.clone()), None)?;
    let newline = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let plugin: Vec<&str> = text.trim_matches(WHITE).split(newline).collect();
    let plugin = plugin.join(&format!("{newline}    "));
    let version = format!("  \"cniVersion\": {},", &text[version]);
    let name = format!("  \"name\": {},", Value::from(name));
    let plugin = format!("    {plugin}");
    let list = ["{", &version, &name, "  \"plugins\": [", &plugin, "  ]", "}", ""].join(newline);
    Conflist::parse(&list)?;
    Ok(list)
}

/// Whether a file that this program would refuse to edit names the plugin all the same, as far as can be told.
#[must_use]
pub fn mentions_plugin(text: &str) -> bool {
    match Conflist::parse(text) {
        Ok(list) => list.entry().is_some(),
        Err(ConflistError::SeveralEntries(_)) => true,
        Err(_) => text.contains(&format!("\"{PLUGIN}\"")),
    }
}

/// The white space of JSON, and no other.
const WHITE: [char; 4] = [' ', '\t', '\r', '\n'];

/// Validates the text and returns its members.
fn top_level(text: &str) -> Result<Vec<Member>, ConflistError> {
    if text.starts_with('\u{feff}') {
        return Err(ConflistError::ByteOrderMark);
    }
    match serde_json::from_str::<Value>(text) {
        Err(error) => Err(ConflistError::NotJson(error.to_string())),
        Ok(Value::Object(_)) => Ok(members(text, text.len() - text.trim_start_matches(WHITE).len())),
        Ok(_) => Err(ConflistError::NotAnObject),
    }
}

fn unique(members: &[Member], key: &str) -> Result<Option<Range<usize>>, ConflistError> {
    let mut found = members.iter().filter(|member| member.key == key);
    let first = found.next().map(|member| member.value.clone());
    match found.next() {
        Some(_) => Err(ConflistError::DuplicateKey(key.to_owned())),
        None => Ok(first),
    }
}

fn value(text: &str, span: &Range<usize>) -> Option<Value> {
    serde_json::from_str(&text[span.clone()]).ok()
}

fn name(text: &str, span: Option<Range<usize>>) -> Result<String, ConflistError> {
    match span.and_then(|span| value(text, &span)) {
        Some(Value::String(name)) if !name.is_empty() => Ok(name),
        _ => Err(ConflistError::Missing("\"name\"")),
    }
}

/// CNI 1.1 lets a chain offer several versions, of which the runtime picks one.
fn versions(text: &str, one: Option<Range<usize>>, many: Option<Range<usize>>) -> Result<(), ConflistError> {
    let one = one.and_then(|span| value(text, &span)).ok_or(ConflistError::Missing("\"cniVersion\""))?;
    let many = match many.map(|span| value(text, &span)) {
        None => Vec::new(),
        Some(Some(Value::Array(many))) => many,
        Some(_) => return Err(ConflistError::Missing("array in \"cniVersions\"")),
    };
    for version in std::iter::once(one).chain(many) {
        match version.as_str() {
            Some(version) if VERSIONS.contains(&version) => {}
            Some(version) => return Err(ConflistError::Version(version.to_owned())),
            None => return Err(ConflistError::Version(version.to_string())),
        }
    }
    Ok(())
}

/// The last line break of `gap` and what follows it: what a line of an element begins with.
fn line_break(gap: &str) -> Option<&str> {
    let newline = gap.rfind('\n')?;
    Some(if gap[..newline].ends_with('\r') { &gap[newline - 1..] } else { &gap[newline..] })
}

/// By how much the members of `element`, which stands after `gap`, are indented, when it is laid out over several lines.
fn indent<'t>(element: &'t str, gap: &str) -> Option<&'t str> {
    let inner = &element[1..];
    let inner = &inner[..inner.len() - inner.trim_start_matches(WHITE).len()];
    let (own, line) = (line_break(gap)?, line_break(inner)?);
    Some(line.strip_prefix(own).filter(|indent| !indent.is_empty()).unwrap_or("  "))
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    key: String,
    value: Range<usize>,
}

/// The members of the object that begins at `start` of valid JSON.
fn members(text: &str, start: usize) -> Vec<Member> {
    let member = |at| {
        let key_end = value_end(text, at);
        let value_start = skip_white(text, skip_white(text, key_end) + 1);
        let key = serde_json::from_str(&text[at..key_end]).unwrap_or_default();
        Member { key, value: value_start..value_end(text, value_start) }
    };
    items(text, start, '}', member, |member| member.value.end)
}

/// The elements of the array that begins at `start` of valid JSON.
fn elements(text: &str, start: usize) -> Vec<Range<usize>> {
    items(text, start, ']', |at| at..value_end(text, at), |element| element.end)
}

/// What stands between the bracket at `start` and the one that closes it, separated by commas.
fn items<T>(text: &str, start: usize, close: char, item: impl Fn(usize) -> T, end: impl Fn(&T) -> usize) -> Vec<T> {
    let mut items = Vec::new();
    let mut at = skip_white(text, start + 1);
    while !text[at..].starts_with(close) {
        let next = item(at);
        at = skip_white(text, end(&next));
        items.push(next);
        if text[at..].starts_with(',') {
            at = skip_white(text, at + 1);
        }
    }
    items
}

fn skip_white(text: &str, from: usize) -> usize {
    text.len() - text[from..].trim_start_matches(WHITE).len()
}

/// Where the value that begins at `start` of valid JSON ends.
fn value_end(text: &str, start: usize) -> usize {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (start, 0_usize);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => at = string_end(bytes, at),
            b'[' | b'{' => (at, depth) = (at + 1, depth + 1),
            b']' | b'}' | b',' if depth == 0 => return at,
            b']' | b'}' => (at, depth) = (at + 1, depth - 1),
            b' ' | b'\t' | b'\r' | b'\n' if depth == 0 => return at,
            _ => at += 1,
        }
        if depth == 0 && matches!(byte, b'"' | b']' | b'}') {
            return at;
        }
    }
    at
}

/// Where the string that begins at `start` ends. Bytes will do: in UTF-8 a quote or a backslash is never part of
/// another character.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub fn try_any(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(chain) = as_chain(text) {
        assert!(Conflist::parse(&chain).is_ok());
    }
    let Ok(list) = Conflist::parse(text) else { return };
    assert_eq!(mentions_plugin(text), list.entry().is_some());
    let entry = Entry::new([("hostGuard".to_owned(), Value::from("off"))]);
    if let Ok(Some(with)) = list.with(&entry) {
        let edited = Conflist::parse(&with);
        assert_eq!(edited.as_ref().ok().and_then(Conflist::entry), Some(&entry.to_json()));
        assert_eq!(edited.and_then(|edited| edited.without()), Ok(Some(text.to_owned())), "in and out again");
    }
    if let Ok(Some(without)) = list.without() {
        assert!(Conflist::parse(&without).is_ok_and(|list| list.entry().is_none()));
    }
}

#[cfg(test)]
mod tests;
