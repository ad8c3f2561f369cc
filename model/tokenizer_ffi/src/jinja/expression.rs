//! Expressions, with Jinja2's precedences.

use super::ast::*;
use super::filters;
use super::lexer::Token;
use super::parser::Parser;
use super::tests;
use super::value::{fail, Res};

impl Parser {
    pub fn expression(&mut self) -> Res<Expr> {
        self.nested(|parser| {
            let mut value = parser.or()?;
            while parser.skip_name("if") {
                parser.link()?;
                parser.conditional += 1;
                let rest = parser.conditional_rest();
                parser.conditional -= 1;
                let (test, otherwise) = rest?;
                value = Expr::Conditional(Box::new(test), Box::new(value), otherwise.map(Box::new));
            }
            Ok(value)
        })
    }

    fn conditional_rest(&mut self) -> Res<(Expr, Option<Expr>)> {
        let test = self.or()?;
        let otherwise = if self.skip_name("else") { Some(self.expression()?) } else { None };
        Ok((test, otherwise))
    }

    /// a, b or one expression. `ends`: names that end it after a comma.
    pub fn tuple(&mut self, with_conditional: bool, ends: &[&str]) -> Res<Expr> {
        self.tuple_in(with_conditional, ends, false)
    }

    fn tuple_in(&mut self, with_conditional: bool, ends: &[&str], parenthesised: bool) -> Res<Expr> {
        let mut items = Vec::new();
        let mut tuple = false;
        loop {
            if !items.is_empty() {
                self.expect_operator(",")?;
            }
            let ended = match self.peek() {
                Token::VariableEnd | Token::BlockEnd => true,
                Token::Operator(operator) => *operator == ")",
                Token::Name(name) => ends.contains(&name.as_str()),
                _ => false,
            };
            if ended {
                break;
            }
            items.push(if with_conditional { self.expression()? } else { self.nested(|parser| parser.or())? });
            if !self.is_operator(",") {
                break;
            }
            tuple = true;
        }
        if tuple || (items.is_empty() && parenthesised) {
            return Ok(Expr::Tuple(items));
        }
        match items.pop() {
            Some(item) => Ok(item),
            None => fail(format!("expected an expression, got {}", self.describe())),
        }
    }

    fn or(&mut self) -> Res<Expr> {
        let mut left = self.and()?;
        while self.skip_name("or") {
            self.link()?;
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Res<Expr> {
        let mut left = self.not()?;
        while self.skip_name("and") {
            self.link()?;
            left = Expr::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Res<Expr> {
        if self.skip_name("not") {
            return Ok(Expr::Not(Box::new(self.nested(|parser| parser.not())?)));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Res<Expr> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let comparison = match self.peek() {
                Token::Operator("==") => Comparison::Eq,
                Token::Operator("!=") => Comparison::Ne,
                Token::Operator("<") => Comparison::Lt,
                Token::Operator("<=") => Comparison::Le,
                Token::Operator(">") => Comparison::Gt,
                Token::Operator(">=") => Comparison::Ge,
                Token::Name(name) if name == "in" => Comparison::In,
                Token::Name(name) if name == "not" && matches!(self.look(1), Token::Name(name) if name == "in") => {
                    self.next();
                    Comparison::NotIn
                }
                _ => break,
            };
            self.next();
            rest.push((comparison, self.sum()?));
        }
        if rest.is_empty() {
            return Ok(first);
        }
        Ok(Expr::Compare(Box::new(first), rest))
    }

    fn sum(&mut self) -> Res<Expr> {
        let mut left = self.concatenation()?;
        loop {
            let operator = match self.peek() {
                Token::Operator("+") => Operator::Add,
                Token::Operator("-") => Operator::Sub,
                _ => return Ok(left),
            };
            self.next();
            self.link()?;
            left = Expr::Binary(operator, Box::new(left), Box::new(self.concatenation()?));
        }
    }

    fn concatenation(&mut self) -> Res<Expr> {
        let mut parts = vec![self.product()?];
        while self.skip_operator("~") {
            parts.push(self.product()?);
        }
        if parts.len() > 1 {
            return Ok(Expr::Concat(parts));
        }
        Ok(parts.swap_remove(0))
    }

    fn product(&mut self) -> Res<Expr> {
        let mut left = self.power()?;
        loop {
            let operator = match self.peek() {
                Token::Operator("*") => Operator::Mul,
                Token::Operator("/") => Operator::Div,
                Token::Operator("//") => Operator::FloorDiv,
                Token::Operator("%") => Operator::Mod,
                _ => return Ok(left),
            };
            self.next();
            self.link()?;
            left = Expr::Binary(operator, Box::new(left), Box::new(self.power()?));
        }
    }

    fn power(&mut self) -> Res<Expr> {
        let mut left = self.unary(true)?;
        while self.skip_operator("**") {
            self.link()?;
            left = Expr::Binary(Operator::Pow, Box::new(left), Box::new(self.unary(true)?));
        }
        Ok(left)
    }

    fn unary(&mut self, with_filter: bool) -> Res<Expr> {
        self.nested(|parser| {
            let value = if parser.skip_operator("-") {
                Expr::Negative(Box::new(parser.unary(false)?))
            } else if parser.skip_operator("+") {
                Expr::Positive(Box::new(parser.unary(false)?))
            } else {
                parser.primary()?
            };
            let value = parser.postfix(value)?;
            if with_filter {
                return parser.filtered(value);
            }
            Ok(value)
        })
    }

    fn primary(&mut self) -> Res<Expr> {
        match self.next() {
            Token::Name(name) => Ok(match name.as_str() {
                "true" | "True" => Expr::Constant(Constant::Bool(true)),
                "false" | "False" => Expr::Constant(Constant::Bool(false)),
                "none" | "None" => Expr::Constant(Constant::None),
                _ => Expr::Name(self.use_name(&name)),
            }),
            Token::Str(mut text) => {
                while let Token::Str(more) = self.peek() {
                    text.push_str(more);
                    self.next();
                }
                Ok(Expr::Constant(Constant::Str(text)))
            }
            Token::Int(number) => Ok(Expr::Constant(Constant::Int(number))),
            Token::Float(number) => Ok(Expr::Constant(Constant::Float(number))),
            Token::Operator("(") => {
                let value = self.tuple_in(true, &[], true)?;
                self.expect_operator(")")?;
                Ok(value)
            }
            Token::Operator("[") => {
                let mut items = Vec::new();
                while !self.is_operator("]") {
                    if !items.is_empty() {
                        self.expect_operator(",")?;
                    }
                    if self.is_operator("]") {
                        break;
                    }
                    items.push(self.expression()?);
                }
                self.expect_operator("]")?;
                Ok(Expr::List(items))
            }
            Token::Operator("{") => {
                let mut items = Vec::new();
                while !self.is_operator("}") {
                    if !items.is_empty() {
                        self.expect_operator(",")?;
                    }
                    if self.is_operator("}") {
                        break;
                    }
                    let key = self.expression()?;
                    self.expect_operator(":")?;
                    items.push((key, self.expression()?));
                }
                self.expect_operator("}")?;
                Ok(Expr::Dict(items))
            }
            Token::Operator(operator) => fail(format!("unexpected '{operator}'")),
            Token::VariableEnd | Token::BlockEnd => fail("expected an expression, got the end of the statement"),
            _ => fail("expected an expression"),
        }
    }

    fn postfix(&mut self, mut value: Expr) -> Res<Expr> {
        loop {
            if self.is_operator(".") || self.is_operator("[") || self.is_operator("(") {
                self.link()?;
            }
            if self.skip_operator(".") {
                value = match self.next() {
                    Token::Name(name) => Expr::Attribute(Box::new(value), name),
                    Token::Int(index) => Expr::Item(Box::new(value), Box::new(Expr::Constant(Constant::Int(index)))),
                    _ => return fail("expected name or number after '.'"),
                };
            } else if self.skip_operator("[") {
                value = self.subscript(value)?;
            } else if self.is_operator("(") {
                value = self.call(value)?;
            } else {
                return Ok(value);
            }
        }
    }

    fn call(&mut self, function: Expr) -> Res<Expr> {
        let arguments = self.arguments()?;
        Ok(Expr::Call(Box::new(Call { function, arguments })))
    }

    fn subscript(&mut self, value: Expr) -> Res<Expr> {
        let mut indices = Vec::new();
        loop {
            if !indices.is_empty() {
                self.expect_operator(",")?;
            }
            let mut parts: [Option<Expr>; 3] = [None, None, None];
            let mut colons = 0;
            loop {
                if self.skip_operator(":") {
                    colons += 1;
                    if colons > 2 {
                        return fail("unexpected ':'");
                    }
                } else if self.is_operator("]") || self.is_operator(",") {
                    break;
                } else if parts[colons].is_some() {
                    return fail(format!("expected ']', got {}", self.describe()));
                } else {
                    parts[colons] = Some(self.expression()?);
                }
            }
            indices.push((parts, colons));
            if self.skip_operator("]") {
                break;
            }
        }
        if indices.len() == 1 {
            let (mut parts, colons) = indices.swap_remove(0);
            if colons > 0 {
                return Ok(Expr::Slice(Box::new(value), Box::new(parts)));
            }
            let Some(index) = parts[0].take() else { return fail("expected a subscript") };
            return Ok(Expr::Item(Box::new(value), Box::new(index)));
        }
        let mut items = Vec::new();
        for (mut parts, colons) in indices {
            match parts[0].take() {
                Some(index) if colons == 0 => items.push(index),
                _ => return fail("a slice among several subscripts"),
            }
        }
        Ok(Expr::Item(Box::new(value), Box::new(Expr::Tuple(items))))
    }

    fn arguments(&mut self) -> Res<Arguments> {
        self.expect_operator("(")?;
        let mut arguments = Arguments::default();
        let mut any = false;
        while !self.is_operator(")") {
            if any {
                self.expect_operator(",")?;
                if self.is_operator(")") {
                    break;
                }
            }
            any = true;
            if self.skip_operator("**") {
                if arguments.keyword_rest.is_some() {
                    return fail("invalid syntax for function call expression");
                }
                arguments.keyword_rest = Some(Box::new(self.expression()?));
            } else if self.skip_operator("*") {
                if arguments.rest.is_some() || arguments.keyword_rest.is_some() {
                    return fail("invalid syntax for function call expression");
                }
                arguments.rest = Some(Box::new(self.expression()?));
            } else if matches!(self.peek(), Token::Name(_)) && matches!(self.look(1), Token::Operator("=")) {
                let name = self.expect_name()?;
                self.next();
                if arguments.keyword_rest.is_some() || arguments.keyword.iter().any(|(own, _)| *own == name) {
                    return fail("invalid syntax for function call expression");
                }
                arguments.keyword.push((name, self.expression()?));
            } else {
                if !arguments.keyword.is_empty() || arguments.rest.is_some() || arguments.keyword_rest.is_some() {
                    return fail("invalid syntax for function call expression");
                }
                arguments.positional.push(self.expression()?);
            }
        }
        self.expect_operator(")")?;
        Ok(arguments)
    }

    /// Filters, tests, and calls of what they gave.
    fn filtered(&mut self, mut value: Expr) -> Res<Expr> {
        loop {
            if self.is_name("is") || self.is_operator("(") {
                self.link()?;
            }
            if self.is_operator("|") {
                for filter in self.filters(false)? {
                    value = Expr::Filter(Box::new(value), filter);
                }
            } else if self.is_name("is") {
                value = self.test(value)?;
            } else if self.is_operator("(") {
                value = self.call(value)?;
            } else {
                return Ok(value);
            }
        }
    }

    fn dotted_name(&mut self) -> Res<String> {
        let mut name = self.expect_name()?;
        while self.skip_operator(".") {
            name.push('.');
            name.push_str(&self.expect_name()?);
        }
        Ok(name)
    }

    /// | a | b(c); with `bare` the first has no bar.
    pub fn filters(&mut self, bare: bool) -> Res<Vec<FilterCall>> {
        let mut filters = Vec::new();
        while self.skip_operator("|") || (bare && filters.is_empty()) {
            let name = self.dotted_name()?;
            self.link()?;
            if self.conditional == 0 && !filters::exists(&name) {
                return fail(format!("No filter named '{name}'."));
            }
            let arguments = if self.is_operator("(") { self.arguments()? } else { Arguments::default() };
            filters.push(FilterCall { name, arguments });
        }
        Ok(filters)
    }

    fn test(&mut self, value: Expr) -> Res<Expr> {
        self.next();
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        if self.conditional == 0 && !tests::exists(&name) {
            return fail(format!("No test named '{name}'."));
        }
        let takes_argument = match self.peek() {
            Token::Name(name) => !matches!(name.as_str(), "else" | "or" | "and"),
            Token::Str(_) | Token::Int(_) | Token::Float(_) => true,
            Token::Operator(operator) => matches!(*operator, "[" | "{"),
            _ => false,
        };
        let mut arguments = Arguments::default();
        if self.is_operator("(") {
            arguments = self.arguments()?;
        } else if takes_argument {
            if self.is_name("is") {
                return fail("You cannot chain multiple tests with is");
            }
            let argument = self.primary()?;
            arguments.positional.push(self.postfix(argument)?);
        }
        Ok(Expr::Test(Box::new(value), name, arguments, negated))
    }
}
