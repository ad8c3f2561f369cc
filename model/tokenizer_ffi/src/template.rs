//! Chat templates as transformers renders them (utils/chat_template_utils.py): Jinja with trim_blocks and lstrip_blocks, loop
//! controls, tojson without HTML escapes, raise_exception, strftime_now, Python's string methods, and a `generation` block that
//! only marks its contents.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use minijinja::value::from_args;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};
use regex::Regex;

use crate::limits::{run_bounded, Overrun};
use crate::python_json;

const NAME: &str = "chat_template";
const MAX_SOURCE_BYTES: usize = 4 << 20;
const MAX_OUTPUT_BYTES: usize = 64 << 20;
const MEMORY_BYTES: usize = 256 << 20;
const INSTRUCTIONS: u64 = 20_000_000;
const TIME: Duration = Duration::from_secs(30);

pub enum RenderError {
    Invalid(String),
    Exhausted(String),
}

pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    // Set after an overrun: its thread is still there, and another would join it.
    exhausted: AtomicBool,
}

impl ChatTemplate {
    /// `now`, in seconds since 1970, is what `strftime_now` tells, in UTC: a template that prints the date must give the same text
    /// on every machine and after midnight.
    pub fn compile(source: &str, now: i64) -> Result<ChatTemplate, RenderError> {
        let now = DateTime::from_timestamp(now, 0)
            .ok_or_else(|| RenderError::Invalid(format!("{now} s since 1970 is no date")))?;
        if source.len() > MAX_SOURCE_BYTES {
            return Err(RenderError::Invalid(format!("over {MAX_SOURCE_BYTES} bytes long")));
        }
        let source = without_generation_tags(source);
        let compiled = run_bounded(MEMORY_BYTES, TIME, move || {
            let mut environment = new_environment(now);
            environment.add_template_owned(NAME, source).map(|()| environment)
        });
        match compiled {
            Ok(Ok(environment)) => {
                Ok(ChatTemplate { environment: Arc::new(environment), exhausted: AtomicBool::new(false) })
            }
            Ok(Err(error)) => Err(RenderError::Invalid(describe(&error))),
            Err(overrun) => Err(from_overrun(overrun)),
        }
    }

    /// `messages` is a JSON list, `variables` a JSON object of the template's other variables.
    pub fn render(&self, messages: &str, variables: &str) -> Result<String, RenderError> {
        if self.exhausted.load(Ordering::Relaxed) {
            return Err(RenderError::Exhausted("went over its limits before and is not run again".into()));
        }
        let environment = Arc::clone(&self.environment);
        let messages: Vec<serde_json::Value> =
            serde_json::from_str(messages).map_err(|error| RenderError::Invalid(format!("messages: {error}")))?;
        if messages.is_empty() {
            return Err(RenderError::Invalid("messages: the list is empty".into()));
        }
        let mut context: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(variables).map_err(|error| RenderError::Invalid(format!("variables: {error}")))?;
        context.insert("messages".into(), messages.into());
        let rendered = run_bounded(MEMORY_BYTES, TIME, move || {
            environment.get_template(NAME).and_then(|template| template.render(Value::from_serialize(&context)))
        });
        match rendered {
            Ok(Ok(text)) if text.len() > MAX_OUTPUT_BYTES => {
                Err(RenderError::Exhausted(format!("writes more than {MAX_OUTPUT_BYTES} bytes")))
            }
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error)) if error.kind() == ErrorKind::OutOfFuel => {
                Err(RenderError::Exhausted(format!("does not end within {INSTRUCTIONS} instructions")))
            }
            Ok(Err(error)) => Err(RenderError::Invalid(describe(&error))),
            Err(overrun) => {
                self.exhausted.store(!matches!(overrun, Overrun::Panic(_)), Ordering::Relaxed);
                Err(from_overrun(overrun))
            }
        }
    }
}

fn from_overrun(overrun: Overrun) -> RenderError {
    match overrun {
        Overrun::Memory => RenderError::Exhausted(format!("needs more than {MEMORY_BYTES} bytes of memory")),
        Overrun::Time => RenderError::Exhausted(format!("does not end within {} s", TIME.as_secs())),
        Overrun::Panic(message) => RenderError::Invalid(format!("panicked: {message}")),
    }
}

/// The error with its causes and the line of the template.
fn describe(error: &Error) -> String {
    let mut text = match error.detail() {
        Some(detail) if error.kind() == ErrorKind::InvalidOperation => detail.to_string(),
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    if let Some(line) = error.line() {
        let _ = write!(text, " (line {line} of the template)");
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

/// `{% generation %}` only marks what the model wrote. Its body has a scope of its own, so `with` takes its place.
fn without_generation_tags(source: &str) -> String {
    let open = Regex::new(r"\{%([-+]?)\s*generation\s*([-+]?)%\}").expect("a valid pattern");
    let close = Regex::new(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}").expect("a valid pattern");
    let opened = open.replace_all(source, "{%$1 with retort_generation = true $2%}");
    close.replace_all(&opened, "{%$1 endwith $2%}").into_owned()
}

fn new_environment(now: DateTime<Utc>) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(INSTRUCTIONS));
    environment.set_unknown_method_callback(python_method);
    environment.set_formatter(|out, _state, value| {
        python_json::write_str(value, out).map_err(|_| Error::new(ErrorKind::WriteFailure, "print a value"))
    });
    environment.add_filter("tojson", python_json::tojson);
    environment.add_filter("string", |value: &Value| {
        let mut text = String::new();
        let _ = python_json::write_str(value, &mut text);
        text
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |format: String| -> Result<String, Error> {
        let mut text = String::new();
        write!(text, "{}", now.format(&format))
            .map_err(|_| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: bad format {format:?}")))?;
        Ok(text)
    });
    environment
}

/// What minijinja-contrib's pycompat leaves out and templates use.
fn python_method(state: &State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        match method {
            "removeprefix" => {
                let (prefix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)));
            }
            "removesuffix" => {
                let (suffix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)));
            }
            "partition" | "rpartition" => {
                let (separator,): (&str,) = from_args(args)?;
                if separator.is_empty() {
                    return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
                }
                let first = method == "partition";
                let found = if first { text.split_once(separator) } else { text.rsplit_once(separator) };
                let parts = match found {
                    Some((before, after)) => [before, separator, after],
                    None if first => [text, "", ""],
                    None => ["", "", text],
                };
                return Ok(parts.into_iter().map(Value::from).collect());
            }
            "rsplit" => {
                let (separator, limit): (Option<&str>, Option<i64>) = from_args(args)?;
                if let Some(separator) = separator.filter(|separator| !separator.is_empty()) {
                    let limit = usize::try_from(limit.unwrap_or(-1)).unwrap_or(usize::MAX - 1);
                    let mut parts: Vec<&str> = text.rsplitn(limit.saturating_add(1), separator).collect();
                    parts.reverse();
                    return Ok(parts.into_iter().map(Value::from).collect());
                }
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}
