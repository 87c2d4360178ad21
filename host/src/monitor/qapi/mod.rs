//! QAPI's types, as far as commands and events use them: QEMU's `docs/devel/qapi-code-gen.rst`.
//!
//! Everything that is said of a command's arguments and results follows from values of these types:
//! how arguments are checked ([`check()`]), what `query-qmp-schema` tells ([`schema()`]) and the tables
//! of `docs/qmp.md`.

mod check;
mod schema;
#[cfg(test)]
mod tests;

pub use check::{check, check_members};
pub use schema::schema;

/// The type of a value.
#[derive(Debug, Clone, Copy)]
pub enum Type {
    /// `str`
    Str,
    /// `bool`
    Bool,
    /// `int`: 64 bits with a sign.
    Int,
    /// `uint8`
    Uint8,
    /// `uint16`
    Uint16,
    /// `uint32`
    Uint32,
    /// `uint64`
    Uint64,
    /// `size`: a `uint64` of bytes.
    Size,
    /// `number`
    Number,
    /// `null`
    Null,
    /// `any`
    Any,
    /// `[T]`
    List(&'static Type),
    /// An `enum`.
    Enum(&'static Enum),
    /// A `struct` or `union`.
    Object(&'static Object),
    /// An `alternate`.
    Alternate(&'static Alternate),
}

/// A choice of words.
#[derive(Debug)]
pub struct Enum {
    /// QAPI's name.
    pub name: &'static str,
    /// The words, in QAPI's order.
    pub values: &'static [&'static str],
}

/// An object with members; those of a union depend on its tag.
#[derive(Debug)]
pub struct Object {
    /// QAPI's name.
    pub name: &'static str,
    /// Members that are always possible.
    pub members: &'static [Member],
    /// Further ones, if it is a union.
    pub variants: Option<Variants>,
    /// Whether there may be any others, too, which somebody else checks.
    pub open: bool,
}

/// What a union's further members depend on.
#[derive(Debug)]
pub struct Variants {
    /// The name of the member, an [`Enum`], that says which variant it is.
    pub tag: &'static str,
    /// The further members of each value of the tag that has any.
    pub cases: &'static [(&'static str, &'static Object)],
}

/// A value of one of several JSON types.
#[derive(Debug)]
pub struct Alternate {
    /// QAPI's name.
    pub name: &'static str,
    /// What it may be.
    pub of: &'static [Type],
}

/// A member of an object, or an argument of a command.
#[derive(Debug)]
pub struct Member {
    /// Its key.
    pub name: &'static str,
    /// What its value is.
    pub of: Type,
    /// Whether it may be left out.
    pub optional: bool,
    /// What it means, with its unit: one sentence or phrase. May be empty where the name says all.
    pub doc: &'static str,
    /// `deprecated`, `unstable`.
    pub features: &'static [&'static str],
}

/// A command's result that says nothing, and the arguments of one that has none.
pub static EMPTY: Object = Object::new("", &[]);

impl Object {
    /// A struct.
    pub const fn new(name: &'static str, members: &'static [Member]) -> Self {
        Self {
            name,
            members,
            variants: None,
            open: false,
        }
    }

    /// A union: `members` has the one that is called `tag`.
    pub const fn union(
        name: &'static str,
        members: &'static [Member],
        tag: &'static str,
        cases: &'static [(&'static str, &'static Object)],
    ) -> Self {
        let variants = Some(Variants { tag, cases });
        Self {
            name,
            members,
            variants,
            open: false,
        }
    }
}

impl Member {
    /// One that must be there.
    pub const fn required(name: &'static str, of: Type, doc: &'static str) -> Self {
        Self {
            name,
            of,
            optional: false,
            doc,
            features: &[],
        }
    }

    /// One that may be left out.
    pub const fn optional(name: &'static str, of: Type, doc: &'static str) -> Self {
        Self {
            optional: true,
            ..Self::required(name, of, doc)
        }
    }

    /// The same with QAPI features.
    #[must_use]
    pub const fn with(self, features: &'static [&'static str]) -> Self {
        Self { features, ..self }
    }
}
