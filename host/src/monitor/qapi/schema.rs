//! `query-qmp-schema`: QAPI's `introspect.json`.
//!
//! As in QEMU the names of types are numbers that mean nothing, so that clients look at what a type
//! is and not at what it is called; only builtin types, commands and events have names.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::{Enum, Member, Object, Type};
use crate::monitor::table::{Event, Spec};

/// The answer: everything that can be said of `commands` and `events`.
pub fn schema(
    commands: impl Iterator<Item = &'static Spec>,
    events: impl Iterator<Item = &'static Event>,
) -> Value {
    let mut schema = Schema::default();
    for command in commands {
        let mut info = json!({
            "name": command.name,
            "meta-type": "command",
            "arg-type": schema.object(&command.arguments),
            "ret-type": schema.name(&command.result),
        });
        if command.oob {
            info["allow-oob"] = true.into();
        }
        if !command.features.is_empty() {
            info["features"] = json!(command.features);
        }
        schema.infos.push(info);
    }
    for event in events {
        let arguments = schema.object(&event.data);
        schema.infos.push(json!({
            "name": event.name,
            "meta-type": "event",
            "arg-type": arguments,
        }));
    }
    schema.infos.into()
}

/// What was described until now.
#[derive(Default)]
struct Schema {
    infos: Vec<Value>,
    /// The numbers of types, by where they stand in memory: they are statics, and some have no name.
    numbers: HashMap<usize, String>,
    builtins: HashSet<&'static str>,
    arrays: HashSet<String>,
}

impl Schema {
    /// A type's name, after it has been described.
    fn name(&mut self, of: &'static Type) -> String {
        let (name, json_type) = match of {
            Type::Str => ("str", "string"),
            Type::Bool => ("bool", "boolean"),
            // QEMU tells of integers of all sizes in this way.
            Type::Int | Type::Uint8 | Type::Uint16 | Type::Uint32 | Type::Uint64 | Type::Size => {
                ("int", "int")
            }
            Type::Number => ("number", "number"),
            Type::Null => ("null", "null"),
            Type::Any => ("any", "value"),
            Type::List(item) => return self.array(item),
            Type::Enum(of) => return self.words(of),
            Type::Object(of) => return self.object(of),
            Type::Alternate(of) => {
                return self.numbered(std::ptr::from_ref(*of).addr(), |schema| {
                    let member = |of| json!({ "type": schema.name(of) });
                    let members: Vec<Value> = of.of.iter().map(member).collect();
                    json!({ "meta-type": "alternate", "members": members })
                });
            }
        };
        if self.builtins.insert(name) {
            self.infos
                .push(json!({ "name": name, "meta-type": "builtin", "json-type": json_type }));
        }
        name.to_owned()
    }

    fn array(&mut self, item: &'static Type) -> String {
        let element = self.name(item);
        let name = format!("[{element}]");
        if self.arrays.insert(name.clone()) {
            self.infos
                .push(json!({ "name": name, "meta-type": "array", "element-type": element }));
        }
        name
    }

    fn words(&mut self, of: &'static Enum) -> String {
        self.numbered(std::ptr::from_ref(of).addr(), |_| {
            let members: Vec<Value> = of.values.iter().map(|v| json!({ "name": v })).collect();
            json!({ "meta-type": "enum", "members": members, "values": of.values })
        })
    }

    fn object(&mut self, of: &'static Object) -> String {
        // All that have no members are the same.
        let place = match of.members {
            [] => 0,
            _ => std::ptr::from_ref(of).addr(),
        };
        self.numbered(place, |schema| {
            let members: Vec<Value> = of.members.iter().map(|m| schema.member(m)).collect();
            let mut info = json!({ "meta-type": "object", "members": members });
            if let Some(variants) = &of.variants {
                let case = |(value, of): &(&str, &'static Object)| json!({ "case": value, "type": schema.object(of) });
                let cases: Vec<Value> = variants.cases.iter().map(case).collect();
                info["tag"] = variants.tag.into();
                info["variants"] = cases.into();
            }
            info
        })
    }

    fn member(&mut self, member: &'static Member) -> Value {
        let mut info = json!({ "name": member.name, "type": self.name(&member.of) });
        if member.optional {
            // That it is there says that the member may be left out.
            info["default"] = Value::Null;
        }
        if !member.features.is_empty() {
            info["features"] = json!(member.features);
        }
        info
    }

    /// The number of the type at `place`. It is given before the type is described, as a type may
    /// have itself as a member.
    fn numbered(&mut self, place: usize, describe: impl FnOnce(&mut Self) -> Value) -> String {
        if let Some(number) = self.numbers.get(&place) {
            return number.clone();
        }
        let number = self.numbers.len().to_string();
        self.numbers.insert(place, number.clone());
        let mut info = Map::new();
        info.insert("name".into(), number.clone().into());
        if let Value::Object(more) = describe(self) {
            info.extend(more);
        }
        self.infos.push(info.into());
        number
    }
}
