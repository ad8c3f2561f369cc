//! Chat templates as transformers renders them (utils/chat_template_utils.py), within bounds of memory, time and instructions.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use crate::jinja::{self, ErrorKind, Rendered};
use crate::limits::{run_bounded, Overrun};

const MAX_SOURCE_BYTES: usize = 4 << 20;
const MEMORY_BYTES: usize = 256 << 20;
const TIME: Duration = Duration::from_secs(30);
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

pub enum RenderError {
    Invalid(String),
    Exhausted(String),
}

fn invalid<T>(message: impl Into<String>) -> Result<T, RenderError> {
    Err(RenderError::Invalid(message.into()))
}

pub struct ChatTemplate {
    source: String,
    template: Arc<jinja::Template>,
    now: i64,
    // Set after an overrun: its thread is still there, and another would join it.
    exhausted: AtomicBool,
}

impl ChatTemplate {
    /// `now`, in seconds since 1970, is what `strftime_now` tells, in UTC: a template that prints the date must give the same text
    /// on every machine and after midnight.
    pub fn compile(source: &str, now: i64) -> Result<ChatTemplate, RenderError> {
        if source.len() > MAX_SOURCE_BYTES {
            return invalid(format!("over {MAX_SOURCE_BYTES} bytes long"));
        }
        if chrono::DateTime::from_timestamp(now, 0).is_none() {
            return invalid(format!("{now} s since 1970 is no date"));
        }
        let source = source.to_string();
        let own = source.clone();
        let template = match run_bounded(MEMORY_BYTES, TIME, move || jinja::parse(&own)) {
            Ok(parsed) => Arc::new(parsed.map_err(describe)?),
            Err(overrun) => return Err(from_overrun(overrun)),
        };
        Ok(ChatTemplate { source, template, now, exhausted: AtomicBool::new(false) })
    }

    /// `messages` is a JSON list, `variables` a JSON object of the template's other variables. `continued` names the last message's
    /// field that the model is to go on with ("": none): the text ends where that field ends.
    pub fn render(&self, messages: &str, variables: &str, continued: &str) -> Result<Rendered, RenderError> {
        if self.exhausted.load(Ordering::Relaxed) {
            return Err(RenderError::Exhausted("went over its limits before and is not run again".into()));
        }
        let mut messages: Vec<serde_json::Value> =
            serde_json::from_str(messages).map_err(|error| RenderError::Invalid(format!("messages: {error}")))?;
        if messages.is_empty() {
            return invalid("messages: the list is empty");
        }
        let final_message = if continued.is_empty() { None } else { Some(self.mark(&mut messages, continued)?) };
        let mut context: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(variables).map_err(|error| RenderError::Invalid(format!("variables: {error}")))?;
        context.insert("messages".into(), messages.into());
        let template = Arc::clone(&self.template);
        let now = self.now;
        let mut rendered = match run_bounded(MEMORY_BYTES, TIME, move || jinja::render(&template, &context, now)) {
            Ok(result) => result.map_err(describe)?,
            Err(overrun) => {
                self.exhausted.store(!matches!(overrun, Overrun::Panic(_)), Ordering::Relaxed);
                return Err(from_overrun(overrun));
            }
        };
        if let Some(final_message) = final_message {
            cut(&mut rendered.text, &final_message)?;
        }
        Ok(rendered)
    }

    /// Appends the tag to the last message's field and returns what stood there.
    fn mark(&self, messages: &mut [serde_json::Value], field: &str) -> Result<String, RenderError> {
        let content = messages.last_mut().and_then(|last| last.get_mut(field)).filter(|content| !content.is_null());
        let Some(content) = content else {
            return invalid(format!("continue_final_message is set but the final message has no \"{field}\" to continue!"));
        };
        if !self.source.contains(field) {
            return invalid(format!(
                "continue_final_message is set to \"{field}\" but this is not an accepted field in the chat_template"
            ));
        }
        let text = match content {
            serde_json::Value::Array(parts) => {
                match parts.iter_mut().rev().find_map(|part| part.as_object_mut().and_then(|part| part.get_mut("text"))) {
                    Some(text) => text,
                    None => {
                        return invalid(
                            "continue_final_message is set but we could not find any text to continue in the final message!",
                        )
                    }
                }
            }
            other => other,
        };
        let Some(own) = text.as_str().map(str::to_string) else {
            return invalid(format!("continue_final_message: the final message's \"{field}\" is no text"));
        };
        *text = serde_json::Value::String(own.clone() + CONTINUE_TAG);
        Ok(own)
    }
}

fn cut(text: &mut String, final_message: &str) -> Result<(), RenderError> {
    let tag = CONTINUE_TAG.trim_end();
    let found = text.rfind(tag);
    let Some(at) = found.filter(|_| text.contains(final_message.trim_matches(jinja::is_space))) else {
        return invalid(
            "continue_final_message is set but the final message does not appear in the chat after applying the chat template! \
             This can happen if the chat template deletes portions of the final message. Please verify the chat template and \
             final message in your chat to ensure they are compatible.",
        );
    };
    let spaced = text[at..].starts_with(CONTINUE_TAG);
    text.truncate(at);
    if !spaced {
        text.truncate(text.trim_end_matches(jinja::is_space).len());
    }
    Ok(())
}

fn from_overrun(overrun: Overrun) -> RenderError {
    match overrun {
        Overrun::Memory => RenderError::Exhausted(format!("needs more than {MEMORY_BYTES} bytes of memory")),
        Overrun::Time => RenderError::Exhausted(format!("does not end within {} s", TIME.as_secs())),
        Overrun::Panic(message) => RenderError::Invalid(format!("stopped: {message}")),
    }
}

fn describe(error: jinja::Error) -> RenderError {
    let message = match error.line {
        0 => error.message,
        line => format!("{} (line {line} of the template)", error.message),
    };
    match error.kind {
        ErrorKind::Invalid => RenderError::Invalid(message),
        ErrorKind::Exhausted => RenderError::Exhausted(message),
    }
}
