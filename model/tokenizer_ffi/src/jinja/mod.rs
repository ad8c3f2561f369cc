//! Jinja2 as transformers uses it: ImmutableSandboxedEnvironment(trim_blocks, lstrip_blocks, loop controls) and a `generation`
//! block. Written for it, since what a template prints must be Python's to the byte: tuples, floats, missing values, methods.

mod ast;
mod eval;
mod expression;
mod filters;
mod format;
mod functions;
mod lexer;
mod methods;
mod ops;
mod parser;
mod print;
mod scope;
mod sequence_filters;
mod tests;
mod text_methods;
mod value;

pub use ast::Template;
pub use eval::{render, Rendered};
pub use lexer::is_space;
pub use parser::parse;
pub use value::{Error, ErrorKind};
