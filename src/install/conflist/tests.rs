use proptest::prelude::*;
use serde_json::json;

use super::*;

fn entry() -> Entry {
    Entry::new([])
}

fn full_entry() -> Entry {
    Entry::new([
        ("stateDir".to_owned(), json!("/srv/q")),
        ("policy".to_owned(), json!({ "probes": { "ports": [8080, "9000-9100"] }, "allow": [] })),
    ])
}

fn list(plugins: &str) -> String {
    format!("{{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"n\",\n  \"plugins\": {plugins}\n}}\n")
}

fn with(text: &str, entry: &Entry) -> String {
    Conflist::parse(text).unwrap().with(entry).unwrap().unwrap()
}

#[test]
fn the_entry_stands_as_its_neighbours_do() {
    let text = list("[\n    {\n      \"type\": \"bridge\"\n    }\n  ]");
    let wanted = list("[\n    {\n      \"type\": \"bridge\"\n    },\n    {\"type\":\"quarantine\"}\n  ]");
    assert_eq!(with(&text, &entry()), wanted);
}

#[test]
fn an_entry_with_settings_is_laid_out_over_lines_where_its_neighbours_are() {
    let text = list("[\r\n\t{\r\n\t\t\"type\": \"bridge\"\r\n\t}\r\n]");
    let entry = Entry::new([("hostGuard".to_owned(), json!("off"))]);
    let laid_out = "\r\n\t{\r\n\t\t\"type\": \"quarantine\",\r\n\t\t\"hostGuard\": \"off\"\r\n\t}";
    let wanted = list(&format!("[\r\n\t{{\r\n\t\t\"type\": \"bridge\"\r\n\t}},{laid_out}\r\n]"));
    assert_eq!(with(&text, &entry), wanted);
}

#[test]
fn an_entry_with_settings_stands_on_one_line_where_its_neighbours_do() {
    let text = list("[ { \"type\": \"bridge\" } ]");
    let entry = Entry::new([("hostGuard".to_owned(), json!("off"))]);
    let wanted = list("[ { \"type\": \"bridge\" }, {\"type\":\"quarantine\",\"hostGuard\":\"off\"} ]");
    assert_eq!(with(&text, &entry), wanted);
}

#[test]
fn the_same_entry_is_not_appended_again_and_another_is_refused() {
    let once = with(&list("[{\"type\":\"bridge\"}]"), &entry());
    assert_eq!(Conflist::parse(&once).unwrap().with(&entry()), Ok(None));
    let refused = Conflist::parse(&once).unwrap().with(&full_entry()).unwrap_err();
    assert!(refused.to_string().contains("quarantine uninstall"), "{refused}");
}

#[test]
fn the_entry_comes_out_from_any_place_in_the_chain() {
    for (chain, wanted) in [
        (r#"[{"type":"a"}, {"type":"quarantine"} ]"#, r#"[{"type":"a"} ]"#),
        (r#"[ {"type":"quarantine"}, {"type":"a"}]"#, r#"[ {"type":"a"}]"#),
        (r#"[{"type":"a"}, {"type":"quarantine"}, {"type":"b"}]"#, r#"[{"type":"a"}, {"type":"b"}]"#),
    ] {
        assert_eq!(Conflist::parse(&list(chain)).unwrap().without(), Ok(Some(list(wanted))));
    }
    let alone = list(r#"[{"type":"quarantine"}]"#);
    assert_eq!(Conflist::parse(&alone).unwrap().without(), Err(ConflistError::NothingElse));
}

#[test]
fn a_single_plugin_becomes_a_chain_with_its_text_unchanged() {
    let single = "{\n  \"cniVersion\": \"0.4.0\",\n  \"name\": \"n\",\n  \"type\": \"bridge\"\n}\n";
    let wanted = "{\n  \"cniVersion\": \"0.4.0\",\n  \"name\": \"n\",\n  \"plugins\": [\n    {\n      \"cniVersion\": \"0.4.0\",\n      \
                  \"name\": \"n\",\n      \"type\": \"bridge\"\n    }\n  ]\n}\n";
    assert_eq!(as_chain(single).unwrap(), wanted);
}

/// A JSON value, laid out at random.
fn laid_out() -> impl Strategy<Value = String> {
    let space = || prop::sample::select(vec!["", "", " ", "\n", "\r\n  ", "\t", "\n\n    "]);
    let string = prop_oneof![
        "[a-z]{0,6}",
        "[\\]\\[{}\",:\\\\/ é🔒\n]{0,8}",
        Just("plugins".to_owned()),
        Just("type".to_owned()),
        Just("quarantine".to_owned()),
    ]
    .prop_map(|text| Value::from(text).to_string());
    let scalar = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,2})?",
        string.clone(),
        Just("\"\\u005d\\u0022\"".to_owned()),
    ];
    scalar.prop_recursive(6, 64, 6, move |inner| {
        let spaced = (space(), inner.clone(), space()).prop_map(|(a, value, b)| format!("{a}{value}{b}"));
        let member =
            (space(), string.clone(), space(), inner).prop_map(|(a, key, b, value)| format!("{a}{key}{b}:{value}"));
        prop_oneof![
            (prop::collection::vec(spaced, 0..5), space()).prop_map(|(values, end)| match values.is_empty() {
                true => format!("[{end}]"),
                false => format!("[{}]", values.join(",")),
            }),
            (prop::collection::vec(member, 0..5), space())
                .prop_map(|(members, end)| format!("{{{}{end}}}", members.join(","))),
        ]
    })
}

/// A plugin with random settings, none of which looks like a type.
fn plugin() -> impl Strategy<Value = String> {
    (prop::sample::select(vec!["bridge", "portmap", "tuning"]), prop::collection::vec(laid_out(), 0..4)).prop_map(
        |(kind, settings)| {
            let settings: String =
                settings.iter().enumerate().map(|(index, value)| format!(",\n  \"k{index}\" : {value}")).collect();
            format!("{{ \"type\":\"{kind}\"{settings} }}")
        },
    )
}

fn chain() -> impl Strategy<Value = String> {
    let space = prop::sample::select(vec!["", " ", "\n    ", "\r\n\t", "\n\n  "]);
    (prop::collection::vec(plugin(), 1..4), space, laid_out(), laid_out()).prop_map(
        |(plugins, space, before, after)| {
            let plugins = plugins.join(&format!("{space},{space}"));
            format!(
                "{space}{{\"before\":{before},\"cniVersion\":\"1.1.0\",{space}\"plugins\":[{space}{plugins}{space}],\
             \"name\":\"n\",\"after\":{after}}}{space}"
            )
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn scanner_finds_the_end_of_any_value(value in laid_out(), after in prop::sample::select(vec!["", " ", ",1", "]", "}", "\n"])) {
        prop_assume!(serde_json::from_str::<Value>(&value).is_ok());
        let ends_by_itself = value.ends_with(['"', ']', '}']);
        prop_assume!(ends_by_itself || !after.is_empty());
        prop_assert_eq!(value_end(&format!("{value}{after}"), 0), value.len());
    }

    #[test]
    fn in_and_out_again_is_the_same_text(text in chain(), full in any::<bool>()) {
        let entry = if full { full_entry() } else { entry() };
        let edited = Conflist::parse(&text).unwrap().with(&entry).unwrap().unwrap();

        let mut wanted: Value = serde_json::from_str(&text).unwrap();
        wanted["plugins"].as_array_mut().unwrap().push(entry.to_json());
        prop_assert_eq!(serde_json::from_str::<Value>(&edited).unwrap(), wanted, "the entry is last, all else unchanged");

        let edited = Conflist::parse(&edited).unwrap();
        prop_assert_eq!(edited.with(&entry), Ok(None));
        prop_assert_eq!(edited.without(), Ok(Some(text.clone())));
    }

    #[test]
    fn a_single_plugin_keeps_its_meaning_in_a_chain(settings in prop::collection::vec(laid_out(), 0..4)) {
        let settings: String = settings.iter().enumerate().map(|(i, value)| format!(", \"k{i}\":{value}\n")).collect();
        let single = format!("\n{{ \"cniVersion\":\"0.4.0\",\n\"type\":\"bridge\", \"name\":\"n\"{settings} }}");
        let chain: Value = serde_json::from_str(&as_chain(&single).unwrap()).unwrap();
        let wanted: Value = serde_json::from_str(&single).unwrap();
        prop_assert_eq!(chain, json!({ "cniVersion": "0.4.0", "name": "n", "plugins": [wanted] }));
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}", chain in chain(), cut in any::<prop::sample::Index>()) {
        let _ = Conflist::parse(&text);
        let _ = as_chain(&text);
        let cuts: Vec<usize> = chain.char_indices().map(|(index, _)| index).collect();
        let cut = cuts[cut.index(cuts.len())];
        if !chain[cut..].trim_matches(WHITE).is_empty() {
            prop_assert!(Conflist::parse(&chain[..cut]).is_err());
        }
    }
}
