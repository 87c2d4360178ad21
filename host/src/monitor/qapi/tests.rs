//! What `query-qmp-schema` says, as a client reads it.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::*;
use crate::monitor::{about, table};

/// The schema by name.
fn described() -> HashMap<String, Value> {
    let Value::Array(infos) = about::schema() else {
        panic!("it is a list");
    };
    let count = infos.len();
    let named: HashMap<_, _> = infos
        .into_iter()
        .map(|info| (info["name"].as_str().unwrap().to_owned(), info))
        .collect();
    assert_eq!(named.len(), count, "a name is there twice");
    named
}

#[test]
fn the_schema_is_what_its_own_type_says() {
    let result = Ok(about::schema());
    assert!(table::fits_result("query-qmp-schema", &result));
    assert!(table::fits_result("query-version", &Ok(about::version())));
    assert!(table::fits_result("query-commands", &Ok(about::commands())));
}

#[test]
fn every_type_that_is_named_is_described() {
    let schema = described();
    for info in schema.values() {
        let mut named: Vec<&Value> = ["arg-type", "ret-type", "element-type"]
            .iter()
            .filter_map(|key| info.get(key))
            .collect();
        for list in ["members", "variants"] {
            let list = info[list].as_array().into_iter().flatten();
            named.extend(list.filter_map(|item| item.get("type")));
        }
        for name in named {
            assert!(schema.contains_key(name.as_str().unwrap()), "{info}");
        }
    }
}

/// As management tools look for the modes of a migration.
#[test]
fn a_client_finds_the_modes_of_a_migration() {
    let schema = described();
    let command = &schema["migrate-set-parameters"];
    assert_eq!(command["meta-type"], "command");
    let arguments = &schema[command["arg-type"].as_str().unwrap()];
    assert_eq!(arguments["meta-type"], "object");
    let members = arguments["members"].as_array().unwrap();
    let mode = members.iter().find(|m| m["name"] == "mode").unwrap();
    assert_eq!(mode["default"], Value::Null);
    assert!(mode.as_object().unwrap().contains_key("default"));
    let modes = &schema[mode["type"].as_str().unwrap()];
    assert_eq!(modes["meta-type"], "enum");
    let all = json!(["normal", "cpr-reboot", "cpr-transfer", "cpr-exec"]);
    assert_eq!(modes["values"], all);
    assert_eq!(modes["members"][2], json!({"name": "cpr-transfer"}));
    let channels = &schema[schema["migrate"]["arg-type"].as_str().unwrap()]["members"][1];
    assert_eq!(channels["name"], "channels");
    let list = channels["type"].as_str().unwrap();
    assert!(list.starts_with('['), "{list}");
    assert_eq!(schema[list]["meta-type"], "array");
}

#[test]
fn a_union_has_its_tag_and_variants_and_a_type_may_have_itself() {
    static TREE: Object = Object::union(
        "Tree",
        &[
            Member::required("kind", Type::Enum(&KIND), ""),
            Member::optional("inner", Type::List(&Type::Object(&TREE)), ""),
        ],
        "kind",
        &[("leaf", &LEAF)],
    );
    static KIND: Enum = Enum {
        name: "Kind",
        values: &["leaf", "fork"],
    };
    static LEAF: Object = Object::new("Leaf", &[Member::required("size", Type::Uint8, "")]);
    static COMMAND: table::Spec = table::Spec::new("plant", "").returns(Type::Object(&TREE));
    let schema = schema([&COMMAND].into_iter(), std::iter::empty());
    let infos = schema.as_array().unwrap();
    let tree = infos.iter().find(|info| info["tag"] == "kind").unwrap();
    assert_eq!(tree["variants"][0]["case"], "leaf");
    let value = json!({"kind": "fork", "inner": [{"kind": "leaf", "size": 3}]});
    assert_eq!(check(&COMMAND.result, &value, "tree"), Ok(()));
    for (value, text) in [
        (json!({"kind": "leaf"}), "Parameter 'tree.size' is missing"),
        (
            json!({"kind": "fork", "size": 3}),
            "Parameter 'tree.size' is unexpected",
        ),
        (
            json!({"kind": "fork", "inner": [{"kind": "leaf", "size": 256}]}),
            "Parameter 'tree.inner[0].size' expects uint8_t",
        ),
        (
            json!({"kind": "bush"}),
            "Parameter 'kind' does not accept value 'bush'",
        ),
        (
            json!([]),
            "Invalid parameter type for 'tree', expected: object",
        ),
    ] {
        assert_eq!(check(&COMMAND.result, &value, "tree").unwrap_err(), text);
    }
}
