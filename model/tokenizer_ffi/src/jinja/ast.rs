//! The tree of a template. Names are numbers in Template::names.

use std::sync::Arc;

pub struct Template {
    pub body: Vec<Statement>,
    pub names: Vec<String>,
}

pub struct Statement {
    pub line: u32,
    pub kind: StatementKind,
}

pub enum StatementKind {
    Text(String),
    Print(Expr),
    For(Arc<For>),
    If(Vec<(Expr, Vec<Statement>)>, Vec<Statement>),
    Set(Target, Expr),
    SetBlock(Target, Vec<FilterCall>, Vec<Statement>),
    With(Vec<(Target, Expr)>, Vec<Statement>),
    Macro(Arc<MacroDef>),
    // {% call(args) f(x) %}: the call, and its body as `caller`.
    Call(Call, Arc<MacroDef>),
    FilterBlock(Vec<FilterCall>, Vec<Statement>),
    Scoped(Vec<Statement>), // block, autoescape
    Generation(Vec<Statement>),
    Break,
    Continue,
    Unsupported(&'static str), // needs a loader: transformers gives none
}

pub struct For {
    pub target: Target,
    pub iterable: Expr,
    pub condition: Option<Expr>,
    pub recursive: bool,
    pub uses_loop: bool,
    pub body: Vec<Statement>,
    pub otherwise: Vec<Statement>,
    pub loop_name: u32,
}

pub struct MacroDef {
    pub name: String,
    pub parameters: Vec<(u32, Option<Expr>)>,
    pub body: Vec<Statement>,
    pub caller_name: u32,
    pub varargs_name: u32,
    pub kwargs_name: u32,
    pub uses_caller: bool,
    pub uses_varargs: bool,
    pub uses_kwargs: bool,
}

pub enum Target {
    Name(u32),
    Attribute(u32, String), // of a namespace
    Tuple(Vec<Target>),
}

#[derive(Clone)]
pub enum Constant {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(String),
}

pub enum Expr {
    Constant(Constant),
    Name(u32),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attribute(Box<Expr>, String),
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, Box<[Option<Expr>; 3]>),
    Call(Box<Call>),
    Filter(Box<Expr>, FilterCall),
    Test(Box<Expr>, String, Arguments, bool), // true: `is not`
    Conditional(Box<Expr>, Box<Expr>, Option<Box<Expr>>), // test, then, else
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Binary(Operator, Box<Expr>, Box<Expr>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
}

pub struct Call {
    pub function: Expr,
    pub arguments: Arguments,
}

pub struct FilterCall {
    pub name: String,
    pub arguments: Arguments,
}

#[derive(Default)]
pub struct Arguments {
    pub positional: Vec<Expr>,
    pub keyword: Vec<(String, Expr)>,
    pub rest: Option<Box<Expr>>,          // *x
    pub keyword_rest: Option<Box<Expr>>, // **x
}

#[derive(Clone, Copy)]
pub enum Operator {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Clone, Copy)]
pub enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}
