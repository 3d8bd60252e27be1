//! The cluster file: YAML text in, [`Spec`] or a list of [`Finding`]s out.
//!
//! Two levels (parse, don't validate): the file is read into a tree that knows the line and column of every value,
//! the tree into the raw types of `file`, and those, with every check that needs more than one field, into a
//! [`Spec`] that cannot hold a bad value. No clock, files, sockets, environment or randomness in here.

mod check;
mod codes;
mod derive;
mod document;
mod file;
mod finding;
mod load;
mod schema;
mod shape;
mod spec;
mod suggest;
mod template;
mod yaml;

pub use codes::CODES;
pub use derive::{Capacity, FamilyCapacity, Quorum, Sans};
pub use finding::{Finding, Related, Severity, render, to_json};
pub use load::load;
pub use schema::{reference, schema};
pub use spec::*;
pub use template::Template;
