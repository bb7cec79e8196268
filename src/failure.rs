//! Why a command failed: a stable code, a message, what to do, and an exit code.

use esker_server::errors;

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// Stable, for programs.
    pub code: &'static str,
    /// What happened, and to what.
    pub message: String,
    /// What to do, where that is more specific than the advice for the code.
    pub advice: Option<String>,
    /// The process's exit code.
    pub exit: u8,
    /// Whether a printed document already contains it.
    pub is_printed: bool,
}

impl Failure {
    /// Exit code 1: something is wrong.
    pub fn wrong(code: &'static str, message: impl ToString) -> Failure {
        Failure {
            code,
            message: message.to_string(),
            advice: None,
            exit: 1,
            is_printed: false,
        }
    }

    /// The same, with what to do.
    pub fn advise(self, advice: impl ToString) -> Failure {
        Failure {
            advice: Some(advice.to_string()),
            ..self
        }
    }

    /// What to do.
    pub fn what_to_do(&self) -> String {
        let advice = self.advice.as_deref();
        let advice = advice.or_else(|| errors::what_to_do(self.code));
        advice.unwrap_or("The message says why.").to_owned()
    }

    /// What happened, to what, and what to do, for people.
    pub fn text(&self) -> String {
        match &self.advice {
            Some(advice) => format!("{}; {advice}", self.message),
            None => self.message.clone(),
        }
    }

    /// The command or its configuration is invalid.
    pub fn usage(code: &'static str, message: impl ToString) -> Failure {
        Failure {
            exit: 2,
            ..Failure::wrong(code, message)
        }
    }

    /// A server or a store could not be reached.
    pub fn unreachable(code: &'static str, message: impl ToString) -> Failure {
        Failure {
            exit: 3,
            ..Failure::wrong(code, message)
        }
    }
}
