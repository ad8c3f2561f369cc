//! Statements, as Jinja2's parser with loop controls and transformers' `generation` tag. Expressions are in expression.rs.

use std::collections::HashMap;
use std::sync::Arc;

use super::ast::*;
use super::lexer::{tokenize, Lexed, Token};
use super::value::{fail, Error, Res};

const MAX_DEPTH: usize = 200;
// Of a op b op c, a.b.c and a|b|c in the whole template: each is a level of its tree.
const MAX_LINKS: usize = 20_000;

pub struct Parser {
    tokens: Vec<Lexed>,
    at: usize,
    names: Vec<String>,
    numbers: HashMap<String, u32>,
    depth: usize,
    links: usize,
    loops: usize,           // open for bodies, back to the macro or generation block around them
    pub conditional: usize, // open branches: what is unknown in one is an error only when it runs
    seen: Vec<u32>,         // names that expressions used, in order
}

pub fn parse(source: &str) -> Res<Template> {
    let mut parser = Parser {
        tokens: tokenize(source)?,
        at: 0,
        names: Vec::new(),
        numbers: HashMap::new(),
        depth: 0,
        links: 0,
        loops: 0,
        conditional: 0,
        seen: Vec::new(),
    };
    let body = parser.body(&[]).map_err(|error| error.at(parser.line()))?;
    if parser.peek() != &Token::End {
        return Err(Error::new("unexpected end of a block").at(parser.line()));
    }
    Ok(Template { body, names: parser.names })
}

impl Parser {
    pub fn line(&self) -> u32 {
        self.tokens[self.at.min(self.tokens.len() - 1)].line
    }

    pub fn peek(&self) -> &Token {
        self.look(0)
    }

    pub fn look(&self, ahead: usize) -> &Token {
        self.tokens.get(self.at + ahead).map_or(&Token::End, |lexed| &lexed.token)
    }

    pub fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    pub fn is_operator(&self, operator: &str) -> bool {
        matches!(self.peek(), Token::Operator(own) if *own == operator)
    }

    pub fn skip_operator(&mut self, operator: &str) -> bool {
        let found = self.is_operator(operator);
        self.at += found as usize;
        found
    }

    pub fn expect_operator(&mut self, operator: &str) -> Res<()> {
        if self.skip_operator(operator) {
            return Ok(());
        }
        fail(format!("expected '{operator}', got {}", self.describe()))
    }

    pub fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(own) if own == name)
    }

    pub fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += found as usize;
        found
    }

    pub fn expect_name(&mut self) -> Res<String> {
        match self.next() {
            Token::Name(name) => Ok(name),
            _ => {
                self.at -= 1;
                fail(format!("expected a name, got {}", self.describe()))
            }
        }
    }

    pub fn describe(&self) -> String {
        match self.peek() {
            Token::Name(name) => format!("'{name}'"),
            Token::Operator(operator) => format!("'{operator}'"),
            Token::Str(_) => "a string".into(),
            Token::Int(_) | Token::Float(_) => "a number".into(),
            Token::BlockEnd => "the end of the statement".into(),
            Token::VariableEnd => "the end of the print statement".into(),
            _ => "the end of the template".into(),
        }
    }

    pub fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.names.len() as u32;
        self.names.push(name.to_string());
        self.numbers.insert(name.to_string(), number);
        number
    }

    pub fn use_name(&mut self, name: &str) -> u32 {
        let number = self.number(name);
        self.seen.push(number);
        number
    }

    pub fn nested<T>(&mut self, body: impl FnOnce(&mut Parser) -> Res<T>) -> Res<T> {
        if self.depth >= MAX_DEPTH {
            return fail(format!("nested deeper than {MAX_DEPTH}"));
        }
        self.depth += 1;
        let result = body(self);
        self.depth -= 1;
        result
    }

    pub fn link(&mut self) -> Res<()> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return fail(format!("more than {MAX_LINKS} operators, attributes and filters"));
        }
        Ok(())
    }

    /// Up to and without `{% <one of ends>`, whose name is next.
    fn body(&mut self, ends: &[&str]) -> Res<Vec<Statement>> {
        self.nested(|parser| {
            let mut statements = Vec::new();
            loop {
                let line = parser.line();
                match parser.next() {
                    Token::End => {
                        parser.at -= 1;
                        if ends.is_empty() {
                            return Ok(statements);
                        }
                        return fail(format!("unexpected end of template; expected {}", ends.join(" or ")));
                    }
                    Token::Data(text) => statements.push(Statement { line, kind: StatementKind::Text(text) }),
                    Token::VariableBegin => {
                        let value = parser.tuple(true, &[])?;
                        if parser.next() != Token::VariableEnd {
                            parser.at -= 1;
                            return fail(format!("expected '}}}}', got {}", parser.describe()));
                        }
                        statements.push(Statement { line, kind: StatementKind::Print(value) });
                    }
                    Token::BlockBegin => {
                        if matches!(parser.peek(), Token::Name(name) if ends.contains(&name.as_str())) {
                            return Ok(statements);
                        }
                        let kind = parser.statement()?;
                        parser.block_end()?;
                        statements.push(Statement { line, kind });
                    }
                    _ => return fail("unexpected token"),
                }
            }
        })
    }

    fn block_end(&mut self) -> Res<()> {
        if self.peek() == &Token::BlockEnd {
            self.at += 1;
            return Ok(());
        }
        fail(format!("expected '%}}', got {}", self.describe()))
    }

    /// The rest of a tag, its body, and the name of what ends it.
    fn rest(&mut self, ends: &[&str]) -> Res<Vec<Statement>> {
        // {% if x: %}
        self.skip_operator(":");
        self.block_end()?;
        let statements = self.body(ends)?;
        Ok(statements)
    }

    fn rest_to(&mut self, end: &str) -> Res<Vec<Statement>> {
        let statements = self.rest(&[end])?;
        self.at += 1;
        Ok(statements)
    }

    fn statement(&mut self) -> Res<StatementKind> {
        let name = self.expect_name()?;
        match name.as_str() {
            "for" => self.for_loop(),
            "if" => self.if_chain(),
            "set" => self.set(),
            "with" => self.with(),
            "macro" => {
                let name = self.expect_name()?;
                let definition = self.macro_definition(name, "endmacro")?;
                Ok(StatementKind::Macro(definition))
            }
            "call" => self.call_block(),
            "filter" => {
                let filters = self.filters(true)?;
                let body = self.rest_to("endfilter")?;
                Ok(StatementKind::FilterBlock(filters, body))
            }
            "print" => {
                let mut values = Vec::new();
                while self.peek() != &Token::BlockEnd {
                    if !values.is_empty() {
                        self.expect_operator(",")?;
                    }
                    values.push(self.expression()?);
                }
                let statement = |kind| Statement { line: 0, kind };
                Ok(StatementKind::Scoped(values.into_iter().map(|value| statement(StatementKind::Print(value))).collect()))
            }
            "autoescape" => {
                self.expression()?;
                Ok(StatementKind::Scoped(self.rest_to("endautoescape")?))
            }
            "block" => {
                let name = self.expect_name()?;
                while self.skip_name("scoped") || self.skip_name("required") {}
                let body = self.rest_to("endblock")?;
                self.skip_name(&name);
                Ok(StatementKind::Scoped(body))
            }
            "generation" => {
                let loops = std::mem::take(&mut self.loops);
                let body = self.rest_to("endgeneration");
                self.loops = loops;
                Ok(StatementKind::Generation(body?))
            }
            "break" | "continue" if self.loops == 0 => fail(format!("'{name}' outside of a loop")),
            "break" => Ok(StatementKind::Break),
            "continue" => Ok(StatementKind::Continue),
            "include" | "import" | "from" | "extends" => {
                while self.peek() != &Token::BlockEnd && self.peek() != &Token::End {
                    self.at += 1;
                }
                Ok(StatementKind::Unsupported("a template that loads another one: there is no loader for chat templates"))
            }
            other => fail(format!("Encountered unknown tag '{other}'.")),
        }
    }

    fn for_loop(&mut self) -> Res<StatementKind> {
        let target = self.target(&["in"], false)?;
        if !self.skip_name("in") {
            return fail(format!("expected 'in', got {}", self.describe()));
        }
        let iterable = self.tuple(false, &["recursive"])?;
        let condition = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        let loop_name = self.number("loop");
        let seen = self.seen.len();
        self.loops += 1;
        let body = self.rest(&["endfor", "else"]);
        self.loops -= 1;
        let body = body?;
        let uses_loop = self.seen[seen..].contains(&loop_name);
        let otherwise = if self.skip_name("else") { self.rest(&["endfor"])? } else { Vec::new() };
        self.at += 1;
        Ok(StatementKind::For(Arc::new(For {
            target,
            iterable,
            condition,
            recursive,
            uses_loop,
            body,
            otherwise,
            loop_name,
        })))
    }

    fn if_chain(&mut self) -> Res<StatementKind> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(false, &[])?;
            self.conditional += 1;
            let body = self.rest(&["elif", "else", "endif"]);
            self.conditional -= 1;
            branches.push((test, body?));
            if self.skip_name("elif") {
                continue;
            }
            let mut otherwise = Vec::new();
            if self.skip_name("else") {
                self.conditional += 1;
                let body = self.rest(&["endif"]);
                self.conditional -= 1;
                otherwise = body?;
            }
            self.at += 1;
            return Ok(StatementKind::If(branches, otherwise));
        }
    }

    fn set(&mut self) -> Res<StatementKind> {
        let target = self.target(&[], true)?;
        if self.skip_operator("=") {
            let value = self.tuple(true, &[])?;
            return Ok(StatementKind::Set(target, value));
        }
        let filters = self.filters(false)?;
        let body = self.rest_to("endset")?;
        Ok(StatementKind::SetBlock(target, filters, body))
    }

    fn with(&mut self) -> Res<StatementKind> {
        let mut values = Vec::new();
        while self.peek() != &Token::BlockEnd {
            if !values.is_empty() {
                self.expect_operator(",")?;
            }
            let target = self.target(&[], false)?;
            self.expect_operator("=")?;
            values.push((target, self.expression()?));
        }
        let body = self.rest_to("endwith")?;
        Ok(StatementKind::With(values, body))
    }

    fn call_block(&mut self) -> Res<StatementKind> {
        // {% call(a, b) f() %}: the parameters come before the call.
        let parameters = if self.is_operator("(") { self.signature()? } else { Vec::new() };
        let Expr::Call(call) = self.expression()? else { return fail("expected a call") };
        let definition = self.macro_body("caller".into(), parameters, "endcall")?;
        Ok(StatementKind::Call(*call, definition))
    }

    fn macro_definition(&mut self, name: String, end: &str) -> Res<Arc<MacroDef>> {
        self.number(&name);
        let parameters = self.signature()?;
        self.macro_body(name, parameters, end)
    }

    fn signature(&mut self) -> Res<Vec<(u32, Option<Expr>)>> {
        self.expect_operator("(")?;
        let mut parameters: Vec<(u32, Option<Expr>)> = Vec::new();
        while !self.is_operator(")") {
            if !parameters.is_empty() {
                self.expect_operator(",")?;
            }
            let name = self.expect_name()?;
            let name = self.number(&name);
            let default = if self.skip_operator("=") { Some(self.expression()?) } else { None };
            if default.is_none() && parameters.last().is_some_and(|(_, default)| default.is_some()) {
                return fail("non-default argument follows default argument");
            }
            parameters.push((name, default));
        }
        self.expect_operator(")")?;
        Ok(parameters)
    }

    fn macro_body(&mut self, name: String, parameters: Vec<(u32, Option<Expr>)>, end: &str) -> Res<Arc<MacroDef>> {
        let seen = self.seen.len();
        let loops = std::mem::take(&mut self.loops);
        let body = self.rest_to(end);
        self.loops = loops;
        let body = body?;
        let [caller_name, varargs_name, kwargs_name] = ["caller", "varargs", "kwargs"].map(|name| self.number(name));
        let used = |name: u32| self.seen[seen..].contains(&name) && !parameters.iter().any(|(own, _)| *own == name);
        let [uses_caller, uses_varargs, uses_kwargs] = [caller_name, varargs_name, kwargs_name].map(used);
        Ok(Arc::new(MacroDef {
            name,
            parameters,
            body,
            caller_name,
            varargs_name,
            kwargs_name,
            uses_caller,
            uses_varargs,
            uses_kwargs,
        }))
    }

    fn target(&mut self, ends: &[&str], with_namespace: bool) -> Res<Target> {
        if with_namespace && matches!(self.look(1), Token::Operator(".")) {
            let name = self.expect_name()?;
            self.at += 1;
            let attribute = self.expect_name()?;
            return Ok(Target::Attribute(self.use_name(&name), attribute));
        }
        let mut targets = Vec::new();
        let mut tuple = false;
        loop {
            if self.is_operator("(") {
                self.at += 1;
                let inner = self.nested(|parser| parser.target(ends, with_namespace))?;
                self.expect_operator(")")?;
                targets.push(match inner {
                    Target::Tuple(_) => inner,
                    single => single,
                });
            } else {
                let name = self.expect_name()?;
                if matches!(name.as_str(), "true" | "false" | "none" | "True" | "False" | "None") {
                    return fail(format!("can't assign to '{name}'"));
                }
                targets.push(Target::Name(self.number(&name)));
            }
            if !self.skip_operator(",") {
                break;
            }
            tuple = true;
            let ended = match self.peek() {
                Token::BlockEnd | Token::VariableEnd => true,
                Token::Operator(operator) => matches!(*operator, ")" | "="),
                Token::Name(name) => ends.contains(&name.as_str()),
                _ => false,
            };
            if ended {
                break;
            }
        }
        if tuple {
            return Ok(Target::Tuple(targets));
        }
        targets.pop().ok_or_else(|| Error::new("expected a name"))
    }
}
