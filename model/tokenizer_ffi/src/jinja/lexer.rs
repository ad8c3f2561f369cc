//! Source to tokens, as Jinja2's lexer with trim_blocks and lstrip_blocks.

use super::value::{fail, Error, Res};

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Data(String),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(String),
    Str(String),
    Int(i128),
    Float(f64),
    Operator(&'static str),
    End,
}

pub struct Lexed {
    pub token: Token,
    pub line: u32,
}

/// What str.isspace and \s take for white space.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

// Longest first.
const OPERATORS: [&str; 24] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".", ":",
    "|",
];

struct Lexer<'a> {
    rest: &'a str,
    line: u32,
    line_starting: bool,
    tokens: Vec<Lexed>,
}

pub fn tokenize(source: &str) -> Res<Vec<Lexed>> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { rest: &source, line: 1, line_starting: true, tokens: Vec::new() };
    lexer.run().map_err(|error| error.at(lexer.line))?;
    let line = lexer.line;
    lexer.tokens.push(Lexed { token: Token::End, line });
    Ok(lexer.tokens)
}

impl<'a> Lexer<'a> {
    fn push(&mut self, token: Token) {
        self.tokens.push(Lexed { token, line: self.line });
    }

    /// Goes on by `bytes`; true when they end a line.
    fn advance(&mut self, bytes: usize) {
        let (taken, rest) = self.rest.split_at(bytes);
        self.line += taken.bytes().filter(|byte| *byte == b'\n').count() as u32;
        self.line_starting = taken.ends_with('\n');
        self.rest = rest;
    }

    fn skip_space(&mut self) {
        let trimmed = self.rest.trim_start_matches(is_space);
        self.advance_keeping(self.rest.len() - trimmed.len());
    }

    // As advance, but an empty step leaves what is known of the line's start.
    fn advance_keeping(&mut self, bytes: usize) {
        if bytes > 0 {
            self.advance(bytes);
        }
    }

    fn run(&mut self) -> Res<()> {
        while !self.rest.is_empty() {
            let Some(at) = next_tag(self.rest) else {
                let data = self.rest.to_string();
                self.push(Token::Data(data));
                self.advance(self.rest.len());
                break;
            };
            let text = &self.rest[..at];
            let tag = &self.rest[at..];
            let sign = tag[2..].chars().next().filter(|sign| matches!(sign, '-' | '+'));
            let kept = strip_before(text, sign, !tag.starts_with("{{"), self.line_starting);
            if !kept.is_empty() {
                self.push(Token::Data(kept.to_string()));
            }
            let raw = raw_begin(tag);
            self.advance(at + raw.unwrap_or(2 + sign.map_or(0, |_| 1)));
            if raw.is_some() {
                self.raw()?;
            } else if tag.starts_with("{#") {
                self.comment()?;
            } else if tag.starts_with("{%") {
                self.push(Token::BlockBegin);
                self.expression("%}")?;
                self.push(Token::BlockEnd);
            } else {
                self.push(Token::VariableBegin);
                self.expression("}}")?;
                self.push(Token::VariableEnd);
            }
        }
        Ok(())
    }

    fn comment(&mut self) -> Res<()> {
        let Some(at) = self.rest.find("#}") else { return fail("Missing end of comment tag") };
        // The sign may be the comment's first character, as in {#-#}: then it has been taken for the beginning's.
        let sign = self.rest[..at].chars().next_back();
        self.advance(at);
        self.end_of_tag(2, sign);
        Ok(())
    }

    fn raw(&mut self) -> Res<()> {
        let mut from = 0;
        loop {
            let Some(found) = self.rest[from..].find("{%") else { return fail("Missing end of raw directive") };
            let at = from + found;
            let tag = &self.rest[at..];
            let sign = tag[2..].chars().next().filter(|sign| matches!(sign, '-' | '+'));
            let inner = tag[2 + sign.map_or(0, |_| 1)..].trim_start_matches(is_space);
            if let Some(after) = inner.strip_prefix("endraw") {
                let after = after.trim_start_matches(is_space);
                let end_sign = after.chars().next().filter(|sign| matches!(sign, '-' | '+'));
                let end = &after[end_sign.map_or(0, |_| 1)..];
                if end.starts_with("%}") {
                    let kept = strip_before(&self.rest[..at], sign, true, self.line_starting).to_string();
                    self.push(Token::Data(kept));
                    let consumed = self.rest.len() - end.len();
                    self.advance(consumed);
                    self.end_of_tag(2, end_sign);
                    return Ok(());
                }
            }
            from = at + 2;
        }
    }

    /// At the `bytes` that close a block or a comment, before which stood `sign`.
    fn end_of_tag(&mut self, bytes: usize, sign: Option<char>) {
        let after = &self.rest[bytes..];
        let extra = match sign {
            Some('-') => after.len() - after.trim_start_matches(is_space).len(),
            Some('+') => 0,
            _ => after.starts_with('\n') as usize,
        };
        self.advance(bytes + extra);
    }

    fn expression(&mut self, end: &'static str) -> Res<()> {
        let mut open: Vec<char> = Vec::new();
        loop {
            self.skip_space();
            if self.rest.is_empty() {
                return fail(format!("unexpected end of template, expected '{end}'"));
            }
            if open.is_empty() {
                let mut chars = self.rest.chars();
                let sign = chars.next().filter(|sign| *sign == '-' || (*sign == '+' && end == "%}"));
                if self.rest[sign.map_or(0, |_| 1)..].starts_with(end) {
                    if let Some(sign) = sign {
                        self.advance(1);
                        self.end_of_tag(2, Some(sign));
                    } else if end == "}}" {
                        self.advance(2);
                    } else {
                        self.end_of_tag(2, None);
                    }
                    return Ok(());
                }
            }
            self.token(&mut open)?;
        }
    }

    fn token(&mut self, open: &mut Vec<char>) -> Res<()> {
        let first = self.rest.chars().next().unwrap_or(' ');
        if first == '"' || first == '\'' {
            return self.string(first);
        }
        if first.is_ascii_digit() {
            return self.number();
        }
        if first.is_alphanumeric() || first == '_' {
            let size = self.rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(self.rest.len());
            let name = self.rest[..size].to_string();
            self.push(Token::Name(name));
            self.advance(size);
            return Ok(());
        }
        let found = if first == ',' { Some(",") } else { OPERATORS.into_iter().find(|op| self.rest.starts_with(op)) };
        let Some(operator) = found else { return fail(format!("unexpected char {first:?}")) };
        match operator {
            "(" => open.push(')'),
            "[" => open.push(']'),
            "{" => open.push('}'),
            ")" | "]" | "}" => match open.pop() {
                Some(expected) if operator.starts_with(expected) => {}
                Some(expected) => return fail(format!("unexpected '{operator}', expected '{expected}'")),
                None => return fail(format!("unexpected '{operator}'")),
            },
            _ => {}
        }
        self.push(Token::Operator(operator));
        self.advance(operator.len());
        Ok(())
    }

    fn string(&mut self, quote: char) -> Res<()> {
        let mut escaped = false;
        for (at, c) in self.rest.char_indices().skip(1) {
            if escaped {
                escaped = false;
            } else if c == '\\' {
                escaped = true;
            } else if c == quote {
                let text = unescape(&self.rest[1..at])?;
                self.push(Token::Str(text));
                self.advance(at + 1);
                return Ok(());
            }
        }
        fail("a string that does not end")
    }

    fn number(&mut self) -> Res<()> {
        let bytes = self.rest.as_bytes();
        let digits = |from: usize| -> usize {
            let mut at = from;
            while at < bytes.len() && (bytes[at].is_ascii_digit() || (bytes[at] == b'_' && at > from)) {
                at += 1;
            }
            while at > from && bytes[at - 1] == b'_' {
                at -= 1;
            }
            at
        };
        if bytes.len() > 2 && bytes[0] == b'0' && matches!(bytes[1] | 32, b'x' | b'o' | b'b') {
            let radix = match bytes[1] | 32 {
                b'x' => 16,
                b'o' => 8,
                _ => 2,
            };
            let size = self.rest[2..].find(|c: char| !(c.is_digit(radix) || c == '_')).map_or(self.rest.len(), |n| n + 2);
            let value = i128::from_str_radix(&self.rest[2..size].replace('_', ""), radix);
            self.push(Token::Int(value.map_err(|_| Error::new("a number that cannot be read"))?));
            self.advance(size);
            return Ok(());
        }
        let mut end = digits(0);
        let mut float = false;
        // After a dot an integer is an index: x.0.1
        let after_dot = matches!(self.tokens.last(), Some(Lexed { token: Token::Operator("."), .. }));
        if !after_dot {
            if end + 1 < bytes.len() && bytes[end] == b'.' && bytes[end + 1].is_ascii_digit() {
                end = digits(end + 1);
                float = true;
            }
            if end < bytes.len() && bytes[end] | 32 == b'e' {
                let sign = (end + 1 < bytes.len() && matches!(bytes[end + 1], b'+' | b'-')) as usize;
                let exponent = digits(end + 1 + sign);
                if exponent > end + 1 + sign {
                    end = exponent;
                    float = true;
                }
            }
        }
        let text = self.rest[..end].replace('_', "");
        let token = if float {
            Token::Float(text.parse().map_err(|_| Error::new("a number that cannot be read"))?)
        } else if text.len() > 1 && text.starts_with('0') && text.bytes().any(|byte| byte != b'0') {
            return fail(format!("{text}: a number that begins with 0"));
        } else {
            Token::Int(text.parse().map_err(|_| Error::new(format!("{text}: too large a number")))?)
        };
        self.push(token);
        self.advance(end);
        Ok(())
    }
}

fn next_tag(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    bytes.windows(2).position(|pair| pair[0] == b'{' && matches!(pair[1], b'{' | b'%' | b'#'))
}

/// The bytes of `{% raw %}` at the beginning of `tag`, with the white space that its `-%}` takes.
fn raw_begin(tag: &str) -> Option<usize> {
    let rest = tag.strip_prefix("{%")?;
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest).trim_start_matches(is_space);
    let rest = rest.strip_prefix("raw")?.trim_start_matches(is_space);
    let rest = match rest.strip_prefix("-%}") {
        Some(rest) => rest.trim_start_matches(is_space),
        None => rest.strip_prefix("%}")?,
    };
    Some(tag.len() - rest.len())
}

fn strip_before(text: &str, sign: Option<char>, block: bool, line_starting: bool) -> &str {
    if sign == Some('-') {
        return text.trim_end_matches(is_space);
    }
    if sign.is_none() && block {
        let line = text.rfind('\n').map_or(0, |at| at + 1);
        if (line > 0 || line_starting) && text[line..].chars().all(is_space) {
            return &text[..line];
        }
    }
    text
}

/// As Python's unicode-escape codec.
fn unescape(text: &str) -> Res<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let Some(escape) = chars.next() else { return fail("a string that ends in \\") };
        let simple = match escape {
            '\n' => continue,
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'v' => '\u{b}',
            '\\' | '\'' | '"' => escape,
            '0'..='7' => {
                let mut code = escape as u32 - '0' as u32;
                for _ in 0..2 {
                    let Some(digit) = chars.peek().and_then(|c| c.to_digit(8)) else { break };
                    code = code * 8 + digit;
                    chars.next();
                }
                char::from_u32(code).unwrap_or('\u{fffd}')
            }
            'x' | 'u' | 'U' => {
                let size = [2, 4, 8][['x', 'u', 'U'].iter().position(|own| *own == escape).unwrap_or(0)];
                let mut code = hex(&mut chars, size)?;
                if (0xd800..0xdc00).contains(&code) {
                    let mut ahead = chars.clone();
                    if ahead.next() == Some('\\') && ahead.next() == Some('u') {
                        let low = hex(&mut ahead, 4)?;
                        if (0xdc00..0xe000).contains(&low) {
                            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                            chars = ahead;
                        }
                    }
                }
                match char::from_u32(code) {
                    Some(c) => c,
                    None => return fail(format!("\\{escape}{code:x} is no character")),
                }
            }
            other => {
                out.push('\\');
                other
            }
        };
        out.push(simple);
    }
    Ok(out)
}

fn hex(chars: &mut std::iter::Peekable<std::str::Chars>, size: usize) -> Res<u32> {
    let mut code = 0;
    for _ in 0..size {
        let Some(digit) = chars.next().and_then(|c| c.to_digit(16)) else { return fail("a truncated escape in a string") };
        code = (code << 4) | digit;
    }
    Ok(code)
}
